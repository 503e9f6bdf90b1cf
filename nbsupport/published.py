"""What is published of runs that are not here: their rows stay beside those of new runs.

A batch of weeks is trained on more machines than one, and networks do not travel with a clone of
the repository. The published tables do: whoever has three new runs adds them to the others, and
who has none draws every table and plot of numbers anew from the published rows.
"""

import json
import math
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from nbsupport.artifacts import FILTERS, STAGES, ArtifactError, Run, checksum
from nbsupport.results import csv_text

__all__ = ["KEEP", "TIDY", "Published"]

KEEP = ("ask", "yes", "no")
"""What becomes of published runs that are not here."""

TIDY = {
    "results": ("detection",),
    "strength": ("training",),
    "networks": ("training",),
    "localisation": ("relevance",),
    "without_poison": ("relevance",),
    "scans": ("scan",),
    "after_detection": tuple(f"retrained/{name}/training" for name in FILTERS),
    "ablation": ("ablation",),
}
"""Tables with rows of single runs, and the stages that rows come from; all other tables are made
from these."""

WHOLE = {
    "side", "amplitude", "repetition", "n", "n_poisoned", "n_class", "n_tp", "n_fn", "n_tn", "n_fp",
    "n_strong", "images", "classes", "per_class", "target", "accused", "accused_wrongly", "removed",
    "poison_removed", "poison_left",
}  # fmt: skip
"""Columns of whole numbers; a 100 in any other is 100.0."""


class Published:
    """The tidy tables in a folder of figures, of runs that are not made anew here.

    Parameters
    ----------
    folder : Path
        Where ``<table>.csv`` and, beside it, ``<table>.json`` lie; it may be empty or missing.
    profile : str
        Whose tables; a folder holds those of one profile.
    runs : iterable of Run
        Runs here, with training finished. A run replaces what is published of it once it has all
        that is: a scan of the older network must not stand beside the rates of the newer.
    keep : {"ask", "yes", "no"}
        Whether the rows of other runs stay; "ask" refuses where there are any.

    Attributes
    ----------
    kept : set of str
        Ids of the runs whose published rows stay.
    lacking : dict
        Of runs that are here and do not replace what is published: the tables they lack.
    older : dict
        Of kept runs with a stage of an older version than today's: these stages.

    Raises
    ------
    ValueError
        If ``keep`` is another word, is "ask" and there are rows of other runs, or is not "no" and
        the tables are those of another profile.
    ArtifactError
        If a table is not the one that its JSON file names, one of the two is gone, or a table lacks
        rows of a run that others have.
    """

    def __init__(self, folder: Path, profile: str, runs: Iterable[Run], *, keep: str = "ask"):
        if keep not in KEEP:
            raise ValueError(f"keep is {keep!r}; choose {', '.join(map(repr, KEEP))}")
        self.folder, self.profile, self._empty = Path(folder), str(profile), set()
        self._tables = {} if keep == "no" else {name: self._read(name) for name in TIDY}
        rows = {name: set(table["scenario"]) for name, table in self._tables.items() if len(table)}
        here = {str(run.scenario): run for run in runs if str(run.profile) == self.profile}
        self.kept, self.lacking = set().union(*rows.values()), {}
        for name in self.kept & set(here):
            lacks = [
                table
                for table, there in rows.items()
                if name in there and not _covers(here[name], table, self._rows(table, [name]))
            ]
            if lacks:
                self.lacking[name] = lacks
        self.kept -= set(here) - set(self.lacking)
        self._check(rows)
        self._tables = {name: self._rows(name, self.kept) for name in rows}
        told = [self._told(name).get("runs", {}) for name in rows] if self.kept else []
        self.older = {}
        for name in sorted(self.kept):
            about = [runs.get(f"{self.profile}/{name}", {}).items() for runs in told]
            made = {stage: record.get("version", 0) for table in about for stage, record in table}
            if old := [s for s in STAGES if made.get(s, math.inf) < STAGES[s].version]:
                self.older[name] = old
        if keep == "ask" and self.kept:
            raise ValueError(
                f"{self.folder} holds {len(self.kept)} runs of profile {self.profile!r} that are "
                f"not finished here, such as {min(self.kept)}: keep='yes' (make figures KEEP=yes) "
                "leaves them in the tables, keep='no' drops them; another figures_folder "
                "(FIGURES=) starts a collection of your own"
            )

    def __str__(self):
        lines = [f"{len(self.kept)} published networks stay beside them"] * bool(self.kept)
        lines += [
            f"beware: {run} is published from an older version of {', '.join(stages)}"
            for run, stages in self.older.items()
        ]
        lines += [
            f"what is published of {run} stays: here it has not all of it yet ({', '.join(tables)})"
            for run, tables in sorted(self.lacking.items())
        ]
        return "\n".join(lines) or "nothing published stays beside them"

    def join(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Put the kept rows of a table and new ones below each other, sorted by scenario.

        Parameters
        ----------
        name : str
            One of `TIDY`.
        rows : DataFrame
            New rows, with a column ``scenario``; those of a run whose published rows are kept are
            left out. May be empty.

        Returns
        -------
        DataFrame
            As it will be read from the file: numbers rounded to nine digits, so that whatever is
            made from it can be made again from what is published.
        """
        if name not in TIDY:
            raise ValueError(f"no tidy table is called {name!r}; choose one of {', '.join(TIDY)}")
        parts = [self._tables.get(name, pd.DataFrame())]
        if len(rows):
            rows = rows[~rows["scenario"].isin(self.kept)]
            parts.insert(0, _strings(StringIO(csv_text(rows))))
        parts = [part for part in parts if len(part)]
        if not parts:
            self._empty.add(name)
            return rows
        return _typed(pd.concat(parts).sort_values("scenario", kind="stable"))

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
        # A table made from the others may be younger than some of their rows.
        names = (name,) if name in TIDY else ("results", name)
        sources = [self._told(each) for each in names] if self.kept else []
        kept = {
            run: stages
            for source in sources
            for run, stages in source.get("runs", {}).items()
            if run.split("/", 1)[1] in self.kept
        }
        if not kept:
            return dict(told)
        versions = {library: set(made) for library, made in told["runs_made_with"].items()}
        for source in sources:
            for library, made in source.get("runs_made_with", {}).items():
                versions.setdefault(library, set()).update(made)
        return {
            **told,
            "profiles": [self.profile],
            # The kept ones last: the same run may be half finished here.
            "runs": dict(sorted((told["runs"] | kept).items())),
            "runs_made_with": {name: sorted(made) for name, made in sorted(versions.items())},
        } | {key: sources[-1][key] for key in ("note",) if key in sources[-1]}

    def sweep(self) -> list[str]:
        """Remove the files of tables of which `join` found nothing left; return their names."""
        gone = [path for name in self._empty for path in self.folder.glob(f"{name}.*")]
        for path in gone:
            path.unlink()
        return sorted(path.name for path in gone)

    def _rows(self, name: str, scenarios: Iterable[str]) -> pd.DataFrame:
        """Take the rows of some scenarios from a published table."""
        table = self._tables[name]
        return table[table["scenario"].isin(scenarios)]

    def _told(self, name: str) -> dict[str, Any]:
        """Read the JSON file beside a table or figure."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return {}
        try:
            told = json.loads(path.read_text())
        except ValueError as error:
            raise ArtifactError(f"{path} is no JSON ({error}); {_WAY_OUT}") from error
        if others := set(told.get("profiles", ())) - {self.profile}:
            raise ValueError(
                f"{path} is of profile {min(others)!r}, and a folder holds one profile: another "
                f"figures_folder (FIGURES=) leaves it alone, keep='no' replaces it by "
                f"{self.profile!r}"
            )
        return told

    def _read(self, name: str) -> pd.DataFrame:
        """Read a published table as text."""
        path = self.folder / f"{name}.csv"
        told = self._told(name)
        sums = {**told.get("files", {}), **told.get("csv", {})}
        if not path.exists():
            if path.name in sums:
                raise ArtifactError(f"{path} is gone, of which {name}.json tells; {_WAY_OUT}")
            return pd.DataFrame()
        if sums.get(path.name) != checksum(path):
            raise ArtifactError(f"{path} is not the table that {name}.json tells of; {_WAY_OUT}")
        return _strings(path)

    def _check(self, rows: Mapping[str, set[str]]) -> None:
        """Refuse results of kept runs whose attack nobody knows."""
        for name in ("strength", "networks"):
            gone = (rows.get("results", set()) & self.kept) - rows.get(name, set())
            if gone:
                raise ArtifactError(
                    f"{self.folder / name}.csv lacks {min(gone)}, which results.csv has; {_WAY_OUT}"
                )


_WAY_OUT = "take back the change (git checkout) or drop the published rows (keep='no')"


def _covers(run: Run, table: str, rows: pd.DataFrame) -> bool:
    """Whether a run has all that is published of it in a table."""
    if table == "after_detection":
        filters = {*rows["filter"]} & {*FILTERS}
        both = [f"retrained/{name}/{stage}" for name in filters for stage in ("filter", "training")]
        return all(map(run.has, both))
    if table == "scans" and run.has("scan"):
        # A scan of some classes, or of smaller samples, is not what stands there.
        (row,) = rows.to_dict("records")
        per_class, classes = run.load("scan")["result"]["per_class"], run.arrays("scan")["label"]
        looked = not row.get("target") or int(row["target"]) in classes
        enough = per_class >= int(row["per_class"]) and len(classes) >= int(row["classes"])
        return looked and enough
    return any(map(run.has, TIDY[table]))


def _strings(source) -> pd.DataFrame:
    return pd.read_csv(source, dtype=str, keep_default_na=False)


def _typed(text: pd.DataFrame) -> pd.DataFrame:
    """Read text as numbers: whole ones with gaps stay whole, gaps are None or NaN."""
    source = StringIO(text.to_csv(index=False))
    frame = pd.read_csv(
        source, dtype_backend="numpy_nullable", keep_default_na=False, na_values=[""]
    )
    for name, column in frame.items():
        kind = column.dtype.kind
        if kind in "if" and name not in WHOLE:
            frame[name] = column.astype(float)
        elif kind in "ib" and not column.hasnans:
            frame[name] = column.astype(column.dtype.numpy_dtype)
        else:
            frame[name] = column.astype(object).where(column.notna(), None)
    return frame
