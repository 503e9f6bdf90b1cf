"""What is published of runs that are not here: their rows stay beside those of new runs.

A batch of weeks is trained on more machines than one, and networks do not travel with a clone of
the repository. The published tables do: whoever has three new runs adds them to the others, and
who has none draws every table and plot of numbers anew from the published rows.
"""

import json
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from nbsupport.artifacts import ArtifactError, Run, checksum, wanted

__all__ = ["KEEP", "TIDY", "Published"]

KEEP = ("ask", "yes", "no")
"""What becomes of published runs that are not here."""

TIDY = (
    "results", "strength", "networks", "localisation", "without_poison", "scans",
    "after_detection", "ablation",
)  # fmt: skip
"""Tables with rows of single runs; all others are made from these."""


class Published:
    """The tidy tables in a folder of figures, without the runs that are made anew here.

    Parameters
    ----------
    folder : Path
        Where ``<table>.csv`` and, beside it, ``<table>.json`` lie; it may be empty or missing.
    profile : str
        Only rows of this profile are kept.
    trained : iterable of Run
        Runs here, with training finished. Once finished altogether they replace all that is
        published of them, in every table: a scan of the older network must not stand beside the
        detection rates of the newer.
    keep : {"ask", "yes", "no"}
        Whether the rows of other runs stay; "ask" refuses where there are any.

    Attributes
    ----------
    here : set of str
        Ids of the runs that are finished here.
    kept : set of str
        Ids of the runs whose published rows stay.

    Raises
    ------
    ValueError
        If ``keep`` is another word, is "ask" and there are rows of other runs, or is not "no" and
        the tables are those of another profile.
    ArtifactError
        If a table is not the one that its JSON file names.
    """

    def __init__(self, folder: Path, profile: str, trained: Iterable[Run], *, keep: str = "ask"):
        if keep not in KEEP:
            raise ValueError(f"keep is {keep!r}; choose {', '.join(map(repr, KEEP))}")
        self.folder, self.profile = Path(folder), str(profile)
        whole = (run for run in trained if all(map(run.has, wanted(run.scenario))))
        self.here = {str(run.scenario) for run in whole}
        tables = {} if keep == "no" else {name: self._rows(name) for name in TIDY}
        self._tables = {name: rows for name, rows in tables.items() if len(rows)}
        self.kept = {run for rows in self._tables.values() for run in rows["scenario"]}
        others = {profile for name in TIDY for profile in self._told(name).get("profiles", ())}
        others -= {self.profile}
        if keep != "no" and others:
            raise ValueError(
                f"{self.folder} holds tables of profile {min(others)!r}, which those of "
                f"{self.profile!r} would replace: another figures_folder (FIGURES=) leaves them "
                "alone, keep='no' drops them"
            )
        if keep == "ask" and self.kept:
            raise ValueError(
                f"{self.folder} holds {len(self.kept)} runs of profile {self.profile!r} that are "
                f"not finished here, such as {min(self.kept)}: keep='yes' (make figures KEEP=yes) "
                "leaves them in the tables, keep='no' drops them; another figures_folder "
                "(FIGURES=) starts a collection of your own"
            )

    def join(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Put the kept rows of a table and new ones below each other, sorted by scenario.

        Parameters
        ----------
        name : str
            One of `TIDY`.
        rows : DataFrame
            New rows, with a column ``scenario``; those of a run that is published and not finished
            here are left out. May be empty.

        Returns
        -------
        DataFrame
            As it will be read from the file: numbers rounded to nine digits, so that whatever is
            made from it can be made again from what is published.
        """
        if name not in TIDY:
            raise ValueError(f"no tidy table is called {name!r}; choose one of {', '.join(TIDY)}")
        kept = self._tables.get(name)
        if len(rows):
            rows = rows[~rows["scenario"].isin(self.kept)]
        if not len(rows) and kept is None:
            return rows
        parts = [_text(rows)] if len(rows) else []
        text = pd.concat(parts if kept is None else [*parts, kept])
        text = text.sort_values("scenario", kind="stable")
        # A float that happens to be whole everywhere is one still: 100.00 %, not 100.
        floats = {c: float for c in rows if len(rows) and pd.api.types.is_float_dtype(rows[c])}
        return _typed(text).astype(floats).reset_index(drop=True)

    def tell(self, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the provenance of new runs what is known of the kept ones.

        Parameters
        ----------
        name : str
            Table or figure, whose JSON file may lie in the folder.
        told : mapping
            From `results.provenance`, about the runs here.

        Returns
        -------
        dict
            The same with the kept runs, all versions that made either, and the ``note`` that the
            file may hold.
        """
        before = self._told(name)
        kept = {
            run: stages
            for run, stages in before.get("runs", {}).items()
            if run.startswith(f"{self.profile}/") and run.split("/", 1)[1] in self.kept
        }
        if not kept:
            return dict(told)
        versions = {library: set(made) for library, made in told["runs_made_with"].items()}
        for library, made in before.get("runs_made_with", {}).items():
            versions.setdefault(library, set()).update(made)
        return {
            **told,
            "profiles": sorted({*told["profiles"], self.profile}),
            "runs": dict(sorted((kept | told["runs"]).items())),
            "runs_made_with": {name: sorted(made) for name, made in sorted(versions.items())},
        } | {key: before[key] for key in ("note",) if key in before}

    def _told(self, name: str) -> dict[str, Any]:
        """Read the JSON file beside a table or figure."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _rows(self, name: str) -> pd.DataFrame:
        """Read the rows of a published table that no run here replaces, as text."""
        path = self.folder / f"{name}.csv"
        if not path.exists():
            return pd.DataFrame()
        told = self._told(name)
        sums, found = {**told.get("files", {}), **told.get("csv", {})}, checksum(path)
        if sums.get(path.name, found) != found:
            raise ArtifactError(
                f"{path} is not the table that {name}.json tells about; take back the change "
                "(git checkout) or drop the published rows (keep='no')"
            )
        rows = _read(path)
        if "profile" in rows:
            rows = rows[rows["profile"] == self.profile]
        return rows[~rows["scenario"].isin(self.here)]


def _read(source) -> pd.DataFrame:
    return pd.read_csv(source, dtype=str, keep_default_na=False)


def _text(rows: pd.DataFrame) -> pd.DataFrame:
    # Columns of objects would keep all their digits.
    return _read(StringIO(rows.infer_objects().to_csv(index=False, float_format="%.9g")))


def _typed(text: pd.DataFrame) -> pd.DataFrame:
    """Read text as numbers: whole ones with gaps stay whole, gaps are None or NaN."""
    source = StringIO(text.to_csv(index=False))
    frame = pd.read_csv(
        source, dtype_backend="numpy_nullable", keep_default_na=False, na_values=[""]
    )
    for name, column in frame.items():
        if not column.hasnans and not pd.api.types.is_string_dtype(column):
            frame[name] = column.astype(column.dtype.numpy_dtype)
        elif pd.api.types.is_float_dtype(column):
            frame[name] = column.astype(float)
        else:
            frame[name] = column.astype(object).where(column.notna(), None)
    return frame
