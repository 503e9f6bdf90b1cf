"""One look for all figures: theme, method styles, saving and showing.

The recurring figures are in `pictures` (of images) and `plots` (of numbers). Each returns its
figure, takes a title that states the finding, and leaves it to the caller to `show` (with
alternative text) and to `save`. Torch tensors and NumPy arrays are both welcome; rates are in
percent.
"""

import base64
import io
import textwrap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from nbsupport import ROOT
from nbsupport.artifacts import atomic, checksum, code_version, write_json

__all__ = [
    "CLEAN", "LOOKS", "METHOD_STYLE", "PALETTE", "POISONED", "RATES", "SAVED_DPI", "WIDTH", "Style",
    "as_array", "captioned", "headline", "method_style", "save", "show", "show_file", "use_theme",
]  # fmt: skip

WIDTH = 8.5
"""Width of a notebook's column in inches."""

SAVED_DPI = 200
"""Pixels an inch of the pictures that `save` writes."""

PALETTE = sns.color_palette("colorblind").as_hex()
"""Colours that are told apart by all readers."""

CLEAN, POISONED = PALETTE[2], "#a3123a"
"""Colours of clean and poisoned images; no method has them."""

LOOKS = (
    ("o", PALETTE[4]), ("s", "0.25"), ("D", "#b58900"), ("^", "#1b7f8c"), ("v", "#7a3b00"),
    ("P", "0.55"),
)  # fmt: skip
"""Markers and colours of series that are no methods: rules of relevance, kinds of attacks."""

RATES = {
    "acc": "accuracy (%)",
    "tpr": "true positive rate (%)",
    "tnr": "true negative rate (%)",
    "asr": "attack success rate (%)",
    "masr": "mean attack success rate (%)",
}
"""Axis labels by column of figures/results.csv."""


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure: never by colour alone."""

    label: str
    color: str
    marker: str


METHOD_STYLE = {
    "raw_pca": Style("raw images, PCA", PALETTE[7], "X"),
    "raw_fastica": Style("raw images, FastICA", "#5f5f5f", "P"),
    "activation": Style("Activation Clustering", PALETTE[1], "s"),
    "activation_logits": Style("activations, logits", PALETTE[5], "v"),
    "heatmap": Style("Heatmap Clustering", PALETTE[0], "o"),
    "heatmap_restarts": Style("Heatmap Clustering, best of ten starts", "#0b3d66", "H"),
    "heatmap_euclidean": Style("heatmaps, Euclidean", PALETTE[9], "D"),
    "mixture": Style("distance mixture", "#5b2a86", "*"),
    "heatmap_sliced": Style("heatmaps, sliced Wasserstein", "#805500", "h"),
    "spray": Style("SpRAy", PALETTE[6], "p"),
    "spectral": Style("Spectral Signatures", PALETTE[4], "^"),
    "poison_detector": Style("PoisonDetector", "#14532d", "d"),
}
"""The fixed style of each method; `method_style` also answers for others."""


def method_style(method: str) -> Style:
    """Look up a method's style; one without a fixed style gets one from its name, always the same.

    Two such methods may share a colour or a marker: give those that meet in a figure a fixed one.
    """
    if method in METHOD_STYLE:
        return METHOD_STYLE[method]
    spare = [(color, marker) for marker in "<>ph" for color in (PALETTE[6], PALETTE[8], "#805500")]
    color, marker = spare[zlib.crc32(method.encode()) % len(spare)]
    return Style(method.replace("_", " "), color, marker)


def use_theme() -> None:
    """Set the look of all figures that follow."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.constrained_layout.use": True,
            "figure.figsize": (WIDTH, 4.0),
            "savefig.dpi": SAVED_DPI,
            "pdf.fonttype": 42,
            "svg.hashsalt": "nbsupport",
            # Ships with matplotlib, so that a figure has the same size on every machine.
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 10,
            "axes.labelsize": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "figure.titlesize": 12,
            "legend.fontsize": 9,
            "legend.title_fontsize": 9,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "image.interpolation": "nearest",
            "image.cmap": "viridis",
        },
    )


def save(
    fig: Figure,
    name: str,
    folder: str | Path = "figures",
    provenance: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a figure as PDF and PNG, and what it was made from beside them.

    The files carry no date: the same figure gives the same bytes.

    Parameters
    ----------
    fig : Figure
        Figure to write; it stays open.
    name : str
        Stem of the files, such as "fig4_heatmaps".
    folder : str or Path
        Where to; relative to the repository.
    provenance : mapping, optional
        What it was made from (JSON types): scenarios, checksums of artefacts, parameters.

    Returns
    -------
    list of Path
        The PDF, the PNG and, with a provenance, the JSON.

    Raises
    ------
    ValueError
        If the name is no plain file stem.
    """
    if not name or Path(name).name != name or "." in name:
        raise ValueError(f"{name!r} is no file stem; expected one such as 'fig4_heatmaps'")
    folder = ROOT / folder
    folder.mkdir(parents=True, exist_ok=True)
    undated = {"pdf": {"CreationDate": None, "ModDate": None}, "png": {"Software": None}}
    paths = []
    for kind, details in undated.items():
        paths.append(folder / f"{name}.{kind}")
        with atomic(paths[-1]) as temporary:
            fig.savefig(temporary, metadata=details, bbox_inches="tight")
    if provenance is not None:
        body = {
            "figure": name,
            "files": {path.name: checksum(path) for path in paths},
            "code": code_version(),
            **provenance,
        }
        paths.append(folder / f"{name}.json")
        write_json(paths[-1], body)
    return paths


def show(fig: Figure, alt: str) -> None:
    """Display a figure with its alternative text, repeat the text as caption, and close it.

    Parameters
    ----------
    fig : Figure
        Figure to show; closed afterwards, so that no notebook shows it twice.
    alt : str
        One or two sentences that say what is to be seen, for readers who cannot see it.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    # Rendered here and not by the kernel's formatter, which not every back end installs.
    buffer = io.BytesIO()
    if get_ipython() is not None:
        fig.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    _display(buffer.getvalue(), alt, dpi=150)
    plt.close(fig)


def show_file(path: str | Path, alt: str) -> None:
    """Display a PNG that `save` wrote, with its alternative text as caption.

    Parameters
    ----------
    path : str or Path
        The picture; relative to the repository.
    alt : str
        As in `show`.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    _display((ROOT / path).read_bytes(), alt, dpi=SAVED_DPI)


def _display(png: bytes, alt: str, dpi: float) -> None:
    alt = " ".join(alt.split())
    if not alt:
        raise ValueError("alt is empty; say in a sentence what the figure shows")
    if get_ipython() is not None:
        # Bytes 16 to 19 of a PNG hold its width; a page has 96 pixels an inch.
        details = {"alt": alt, "width": int(int.from_bytes(png[16:20], "big") * 96 / dpi)}
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
        display(data, metadata={"image/png": details}, raw=True)
        display({"text/markdown": f"*{alt}*", "text/plain": alt}, raw=True)


def captioned(table: "pd.io.formats.style.Styler", caption: str) -> "pd.io.formats.style.Styler":
    """Give a table of a page its caption, and the same marks in the page at every run."""
    text = caption + table.data.to_csv()
    return (
        table.set_caption(caption)
        # Else random: the same table would never give the same page.
        .set_uuid(f"{zlib.crc32(text.encode()):08x}")
        .set_table_styles(
            [
                {"selector": "caption", "props": "text-align: left; font-weight: bold;"},
                {"selector": "th.row_heading", "props": "text-align: left; font-weight: normal;"},
            ]
        )
    )


def as_array(values) -> np.ndarray:
    """Bring a tensor, wherever it lies, or anything else to a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def headline(fig: Figure, title: str) -> None:
    """State the finding above a figure, as many lines as it takes."""
    if title:
        # Twelve points of DejaVu Sans bold take about a tenth of an inch a letter.
        lines = textwrap.fill(title, max(20, int(fig.get_figwidth() * 10)))
        fig.suptitle(lines, x=0.01, ha="left", fontweight="bold")
