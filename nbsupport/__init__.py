"""Support package of the living edition of *Heatmap Clustering* (Schulth, Berghoff, Neu).

Import the modules by name (``from nbsupport import attacks``); importing the package itself stays
light, because the workflow and the command line need it before torch is wanted.
"""

from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parents[1]
"""The repository: relative paths in parameters start here, whatever the working folder is."""

__all__ = ["ROOT", "__version__"]
