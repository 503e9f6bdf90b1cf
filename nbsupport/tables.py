"""The paper's tables beside ours, cell by cell, and the score of it all."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbsupport import figures, metrics, paper, plots
from nbsupport.artifacts import checksum, code_version, write_json, write_text
from nbsupport.audits import LAST_DIGIT
from nbsupport.evaluation import ATTACK_TOOK
from nbsupport.metrics import Interval
from nbsupport.results import OURS, csv_text
from nbsupport.scenarios import ATTACKS, Scenario

__all__ = [
    "COLUMNS", "PRINTED", "VERDICTS", "compare", "comparison", "detections", "experiment", "export",
    "first_check", "in_order", "missing", "note", "publish_scoreboard", "ranked", "readable",
    "results_table", "scoreboard", "styled",
]  # fmt: skip

PROPOSED = "heatmap"
"""The method that the paper proposes: ours is held against its printed rates."""

RATES = ("acc", "tpr", "tnr")

PRINTED = {
    **{number: tuple(row for row in paper.TABLES if row.table == number) for number in "1234"},
    "5": paper.TABLE5,
    "thesis": (
        *paper.THESIS_STICKER_SIZES,
        *paper.THESIS_FULL_AMPLITUDE,
        paper.THESIS_EUCLIDEAN,
    ),
    "thesis, means": paper.THESIS_STATISTICS,
}
"""Printed rows by table: the paper's five, then what only the thesis reports."""

COLUMNS = [
    "table", "experiment", "method", "rate", "printed", "paper", "ours", "low", "high",
    "difference", "difference_low", "difference_high", "n", "n_runs", "paper_sigma", "sigma",
    "verdict", "note",
]  # fmt: skip
"""Columns of a comparison; see `compare`."""

_ABOUT = {"5": "table5-setting"}
"""Errata about a whole table."""

VERDICTS = ("better", "within", "open", "worse", "weak", "missing", "no value")
"""What can be said of a cell; see `compare`."""

TOLD = ("better", "within", "open", "worse")
"""Verdicts on cells that have a value on both sides."""

WIDE = 20.0
"""Percentage points: the width from which on an interval that holds 0 says too little."""


def experiment(scenario: str) -> str:
    """Name what repetitions have in common: a scenario id without its repetition."""
    return re.sub(r"-r\d+$", "", str(scenario))


def in_order(results: pd.DataFrame) -> pd.DataFrame:
    """Sort rows of results.csv by scenario, and methods as every figure does: ours comes last."""
    order = {method: place for place, method in enumerate(figures.METHOD_STYLE)}
    return results.sort_values(
        ["scenario", "method"],
        key=lambda column: column.map(order) if column.name == "method" else column,
        ignore_index=True,
    )


def compare(
    results: pd.DataFrame, strength: pd.DataFrame, table: str, *, ours: str = OURS
) -> pd.DataFrame:
    """Set every cell of a printed table beside what came out here.

    Repetitions of an experiment are taken together; a cell without a finished run stays, empty.

    Parameters
    ----------
    results : DataFrame
        From `results.collect`, of one profile.
    strength : DataFrame
        From `results.strength`, of the same runs.
    table : str
        One of `PRINTED`.
    ours : str
        Method that is added beside the paper's, held against the paper's own proposal.

    Returns
    -------
    DataFrame
        One row per cell, with `COLUMNS`. ``method`` is "attack" for attack success rates;
        ``printed`` is what the paper says and ``paper`` what can be held against it
        (`paper.Row.comparable`); ``ours`` is the mean over ``n_runs`` runs, with ``low`` to
        ``high`` its interval (`metrics.pooled`) and ``sigma`` their standard deviation; ``n``
        counts the images of all runs. The interval of the ``difference`` counts the images behind
        the print as well (`metrics.difference`). Rates are in percent. ``verdict`` is "within" if
        it holds 0, or "open" if it does and is wider than `WIDE`, else "better" or "worse";
        "missing" without a run; "no value" where the paper prints none that holds.

    Notes
    -----
    Where the printed attack took, detection rates of runs whose attack did not take cannot be
    compared: such runs are left out, and if there is no other, the cell is "weak". Where the
    printed attack did not take either, every run counts.
    """
    if table not in PRINTED:
        raise ValueError(f"no table is called {table!r}; choose one of {', '.join(PRINTED)}")
    cells = []
    for scenario in dict.fromkeys(row.scenario for row in PRINTED[table]):
        rows = {row.method: row for row in PRINTED[table] if row.scenario == scenario}
        here, tests = _repetitions(results, scenario), _repetitions(strength, scenario)
        names = {"table": table, "experiment": experiment(scenario)}
        note = _note(here, len(_wanted(table, scenario)))
        first = next(iter(rows.values()))
        proposed = paper.published(scenario, PROPOSED) or first
        attack = _attack_cell(proposed, tests, names, note)
        if attack and _strength(first):
            cells.append(attack)
        took = here[here["attack_took"].ne(False)]
        excused = _took(proposed) and len(took) < len(here)
        weak = excused and took.empty
        if excused and not weak:
            note, here = f"{note}, left out", took
        if PROPOSED in rows and ours not in rows:
            rows[ours] = rows[PROPOSED]
        for method, row in rows.items():
            of_method = here[here["method"] == method]
            for rate in RATES:
                values, n = of_method[rate], of_method[_IMAGES[rate]].sum(axis=1)
                sigma = getattr(row, f"{rate}_std", math.nan)
                cell = names | {"method": method, "rate": rate, "paper_sigma": sigma}
                cell |= _cell(getattr(row, rate), row.interval(rate), values, n, n)
                cell["note"] = "; ".join(filter(None, (row.erratum, _ABOUT.get(table), note)))
                if weak and cell["verdict"] in TOLD:
                    cell["verdict"] = "weak"
                cells.append(cell)
    return pd.DataFrame(cells, columns=COLUMNS)


_IMAGES = {
    "acc": ["n_tp", "n_fn", "n_tn", "n_fp"],
    "tpr": ["n_tp", "n_fn"],
    "tnr": ["n_tn", "n_fp"],
}


def _repetitions(frame: pd.DataFrame, scenario: str) -> pd.DataFrame:
    return frame[frame["scenario"].map(experiment) == experiment(scenario)]


def _wanted(table: str, scenario: str) -> list[str]:
    """Runs that a cell asks for: as many repetitions as its source says."""
    row = next(row for row in PRINTED[table] if row.scenario == scenario)
    return [f"{experiment(scenario)}-r{r}" for r in range(getattr(row, "runs", 1))]


def _note(here: pd.DataFrame, wanted: int) -> str:
    """Say how many runs stand behind a row, where that is not what its source says."""
    runs = here.drop_duplicates("scenario")
    failed = int(runs["attack_took"].eq(False).sum())
    return "; ".join(
        text
        for text, told in (
            (f"{len(runs)} of {wanted} runs", 0 < len(runs) < wanted),
            (f"attack did not take in {failed} of {len(runs)} runs", failed),
        )
        if told
    )


def _strength(row) -> str:
    """Name the attack success rate that a printed row has; empty where it has none."""
    return next((r for r in ("asr", "masr") if getattr(row, r, None) is not None), "")


def _took(row) -> bool:
    """Whether the attack of a printed row took, by the limits for ours; True where none is said."""
    rate = _strength(row)
    return not rate or not row.valid or getattr(row, rate) >= ATTACK_TOOK[rate]


def _attack_cell(row, tests: pd.DataFrame, names: Mapping, note: str) -> dict | None:
    rate = _strength(row)
    if not rate:
        return None
    printed, found = getattr(row, rate), tests[tests["rate"] == rate]
    # The paper tested on the same images, so that its rate weighs as many as one of ours.
    comparable, weight = printed if row.valid else math.nan, found["n_effective"].astype(float)
    theirs = metrics.summarised(comparable, 0.0, weight.mean())
    cell = _cell(printed, theirs, found["value"], found["n"], found["n_effective"])
    said = "; ".join(filter(None, ("" if row.valid else row.erratum, note)))
    return dict(names) | {"method": "attack", "rate": rate} | cell | {"note": said}


def _cell(printed: float, theirs: Interval, values, n, n_effective) -> dict:
    interval = metrics.pooled(values, n_effective)
    apart = metrics.difference(interval, theirs)
    return {
        "printed": printed,
        "paper": theirs.estimate,
        "ours": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "difference": apart.estimate,
        "difference_low": apart.low,
        "difference_high": apart.high,
        "n": int(n.sum()),
        "n_runs": len(values),
        # As the source: the deviation of the runs themselves, not the estimate for all runs.
        "sigma": float(np.std(values)) if len(values) > 1 else math.nan,
        "verdict": _verdict(theirs, apart),
    }


def _verdict(theirs: Interval, apart: Interval) -> str:
    if math.isnan(theirs.estimate):
        return "no value"
    if math.isnan(apart.estimate):
        return "missing"
    if apart.low - LAST_DIGIT <= 0 <= apart.high + LAST_DIGIT:
        return "within" if apart.high - apart.low <= WIDE else "open"
    return "better" if apart.estimate > 0 else "worse"


def missing(results: pd.DataFrame, table: str) -> list[str]:
    """List the ids of the runs that a table asks for and that are not finished."""
    here = set(results["scenario"])
    scenarios = dict.fromkeys(row.scenario for row in PRINTED[table])
    return [run for s in scenarios for run in _wanted(table, s) if run not in here]


def scoreboard(cells: pd.DataFrame) -> pd.DataFrame:
    """Count the cells of each method by verdict.

    Parameters
    ----------
    cells : DataFrame
        From `compare`, of one table or of several in a row.

    Returns
    -------
    DataFrame
        One row per method in order of appearance: ``method``, ``cells``, then `VERDICTS`.
    """
    counts = pd.crosstab(cells["method"], cells["verdict"])
    counts = counts.reindex(index=cells["method"].unique(), columns=VERDICTS, fill_value=0)
    counts.insert(0, "cells", counts.sum(axis=1))
    return counts.rename_axis(index="method", columns=None).reset_index()


def publish_scoreboard(
    cells: pd.DataFrame, folder: Path, provenance: Mapping[str, Any], *, ours: str = OURS
):
    """Write the scoreboard as ``scoreboard.{csv,md,tex,pdf,png,json}``.

    Parameters
    ----------
    cells : DataFrame
        From `compare`, of all tables.
    folder : Path
        Where to.
    provenance : mapping
        From `results.provenance`.
    ours : str
        Our method, counted apart.

    Returns
    -------
    board : DataFrame
        From `scoreboard`.
    fig : Figure
        The same as bars, still open.
    """
    board = scoreboard(cells)
    # Ours is held against cells that count for the paper's proposal already.
    sums = board[~board["method"].isin(["attack", ours])][[*TOLD]].sum()
    met = f"{sums['better'] + sums['within']} of {sums.sum()}"
    title = f"Met or bettered: the paper's methods {met} rates ({sums['open']} open)"
    if ours in set(board["method"]):
        own = board.set_index("method").loc[ours, [*TOLD]]
        label = figures.method_style(ours).label
        title += f", {label} {own['better'] + own['within']} of {own.sum()}"
    fig = plots.scoreboard_bars(board, title=title)
    figures.save(fig, "scoreboard", folder)
    export(board, "scoreboard", folder, provenance)
    return board, fig


def detections(
    results: pd.DataFrame, methods: Iterable[str] = ("activation", PROPOSED, OURS)
) -> pd.DataFrame:
    """Put what each method found into one line an experiment, images of all repetitions together.

    Parameters
    ----------
    results : DataFrame
        From `results.collect`, of one profile.
    methods : iterable of str
        Methods to show; the last one's AUROC (mean of the repetitions) and images too. Networks
        that not all of them have judged are left out.

    Returns
    -------
    DataFrame
        All text. Poisoned images are counted among those of their class and, in brackets, told as
        a share of all training images. Rates of a method are ACC / TPR / TNR in percent; before
        those of Heatmap Clustering (HC) stand the printed ones, if they can be compared. A star
        behind the attack success (the mean of the runs) marks that it did not take in at least one
        run.
    """
    methods, lines = list(methods), []
    heads = {m: figures.method_style(m).label for m in methods} | {PROPOSED: "HC, here"}
    names = [heads[m] for m in methods]
    if PROPOSED in methods:
        names.insert(methods.index(PROPOSED), "HC, printed")
    for name, found in _judged(results, methods):
        rate = "masr" if Scenario.parse(f"{name}-r0").label_consistent else "asr"
        ours = found[methods[-1]]
        star = " *" * bool(ours["attack_took"].eq(False).any())
        rates = {heads[m]: _three_rates(found[m]) for m in methods}
        printed = paper.published(f"{name}-r0", PROPOSED)
        values = [printed.comparable(r) for r in RATES] if printed else [math.nan]
        if not all(map(math.isnan, values)):
            rates["HC, printed"] = " / ".join(map(_figure, values))
        n = ours[["n_poisoned", "n_class", "poison_rate_dataset"]].mean()
        share = f"{n['poison_rate_dataset']:.2g} % of all"
        lines.append(
            {
                "experiment": name,
                "networks": len(ours),
                "poisoned": f"{n['n_poisoned']:.0f} of {n['n_class']:.0f} ({share})",
                "attack": f"{rate.upper()} {ours[rate].mean():.1f}{star}",
                **{name: rates.get(name, "–") for name in names},
                "AUROC": f"{ours['auroc'].mean():.2f}",
                "missed": f"{ours['n_fn'].sum()} of {ours[_IMAGES['tpr']].sum().sum()}",
                "false alarms": f"{ours['n_fp'].sum()} of {ours[_IMAGES['tnr']].sum().sum()}",
            }
        )
    return pd.DataFrame(lines)


def first_check(
    results: pd.DataFrame, second: Iterable[str] = (PROPOSED, OURS), *, alarm: float = 0.35
) -> pd.DataFrame:
    """Let Activation Clustering decide whether a second method looks at all (Section 8).

    Parameters
    ----------
    results : DataFrame
        From `results.collect`, of one profile.
    second : iterable of str
        Methods that look where it rings, and accuse nobody where it does not.
    alarm : float, in (0, 1)
        Activation Clustering rings if the smaller of its two groups is below this share of the
        class; 0.35 is the default of the Adversarial Robustness Toolbox.

    Returns
    -------
    DataFrame
        All text, one line an experiment, images of all repetitions together: in how many networks
        it rings, least and largest smaller group in percent of the class, and TPR / TNR in percent
        of each second method, alone and behind the check. Networks that not all of them have judged
        are left out.

    Raises
    ------
    ValueError
        If ``alarm`` is no share.
    """
    if not 0 < alarm < 1:
        raise ValueError(f"alarm is {alarm!r}; give a share of the class between 0 and 1")
    lines, second = [], list(second)
    for name, judged in _judged(results, ["activation", *second]):
        found = {method: rows.set_index("scenario") for method, rows in judged.items()}
        first = found["activation"]
        smaller = (first["n_tp"] + first["n_fp"]) / first["n_class"]
        rings = smaller[smaller.between(0, alarm, inclusive="neither")].index
        ends = dict.fromkeys(f"{100 * share:.1f}" for share in (smaller.min(), smaller.max()))
        line = {
            "experiment": name,
            "networks": len(first),
            "rings": f"{len(rings)} of {len(first)}",
            "smaller group (%)": " to ".join(ends),
        }
        for method in second:
            label, heard = figures.method_style(method).label, found[method].copy()
            line[label] = _two_rates(heard)
            silent = heard.index.difference(rings)
            for missed, kept in (("n_fn", "n_tp"), ("n_tn", "n_fp")):
                heard.loc[silent, missed] += heard.loc[silent, kept]
                heard.loc[silent, kept] = 0
            line[f"{label}, if AC rings"] = _two_rates(heard)
        lines.append(line)
    return pd.DataFrame(lines)


def _judged(
    results: pd.DataFrame, methods: Iterable[str]
) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Give each experiment with the rows of each method, of networks that all have judged."""
    wanted = set(methods)
    for name in ranked(results["scenario"].map(experiment)):
        rows = _repetitions(results, f"{name}-r0")
        rows = rows[rows["method"].isin(wanted)]
        rows = rows[rows.groupby("scenario")["method"].transform("nunique") == len(wanted)]
        if len(rows):
            yield name, dict(list(rows.groupby("method")))


def ranked(experiments: Iterable[str]) -> list[str]:
    """List experiments as the paper's tables do: by attack, large and frequent triggers first."""
    return sorted(set(experiments), key=_rank)


def _rank(name: str) -> tuple:
    s = Scenario.parse(f"{name}-r0")
    strength = (s.side or 0, s.amplitude or 0, float(s.percent or 0))
    return ATTACKS.index(s.attack), *(-x for x in strength), name


def _three_rates(rows: pd.DataFrame) -> str:
    counts = rows.sum(numeric_only=True)
    return " / ".join(_share(*metrics.hits(counts, rate)) for rate in RATES)


def _two_rates(rows: pd.DataFrame) -> str:
    return _three_rates(rows).partition(" / ")[2]


def _figure(value: float) -> str:
    """Write a printed rate as short as our own; a dash where it cannot be compared."""
    return "–" if math.isnan(value) else _share(value, 100)


def _share(k: float, n: int) -> str:
    """Write k of n in percent; "100" stands for all of them, not for 99.996 %."""
    if not n:
        return "–"
    share = 100 * k / n
    return "100" if k == n else f"{min(share, 99.99):.{1 if share < 99.95 else 2}f}"


def readable(cells: pd.DataFrame) -> pd.DataFrame:
    """Write the cells of a comparison as a reader wants them, all as text.

    A printed value that cannot be held against ours stands in brackets; one that an erratum puts
    right stands in brackets behind the right one.
    """
    spread = cells[["paper_sigma", "sigma"]].notna().any().any()
    columns = {
        "experiment": cells["experiment"],
        "method": _labels(cells),
        "rate": cells["rate"].str.upper(),
        "paper": [_printed(*pair) for pair in zip(cells["printed"], cells["paper"], strict=True)],
        "ours (95 %)": _with_interval(cells[["ours", "low", "high"]], ".2f"),
        "difference (95 %)": _with_interval(
            cells[["difference", "difference_low", "difference_high"]], "+z.2f"
        ),
        "n": cells["n"].map("{:,}".format),
        "runs": cells["n_runs"].astype(str),
    }
    if spread:
        columns |= {
            "σ, paper": cells["paper_sigma"].map(_number),
            "σ, ours": cells["sigma"].map(_number),
        }
    return pd.DataFrame(columns | {"verdict": cells["verdict"], "note": cells["note"]})


def _with_interval(columns: pd.DataFrame, form: str) -> list[str]:
    """Write a value and its interval: "99.67 (99.12 to 99.87)"; a dash where there is none."""
    rows = columns.itertuples(index=False)
    return [
        "–" if math.isnan(value) else f"{value:{form}} ({low:{form}} to {high:{form}})"
        for value, low, high in rows
    ]


def styled(cells: pd.DataFrame, caption: str) -> "pd.io.formats.style.Styler":
    """Show the finished cells of a comparison; the caption names the experiments still missing."""
    done, absent = _finished(cells)
    text = readable(done).set_index(["experiment", "method", "rate"])
    colours = {
        verdict: f"color: black; background-color: {colour}"
        for verdict, colour in (("better", "#d6e9f5"), ("worse", "#fbe3d0"))
    }
    caption += f" ({absent})" if absent else ""
    return text.style.map(lambda v: colours.get(v, ""), ["verdict"]).pipe(
        figures.captioned, caption
    )


def _finished(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Split a comparison into the cells that have a value, and a word on experiments without."""
    done = cells[cells["n_runs"] > 0]
    absent = [e for e in cells["experiment"].unique() if e not in set(done["experiment"])]
    return done, f"not finished: {', '.join(absent)}" if absent else ""


def comparison(
    results: pd.DataFrame, *, rates: Sequence[str] = ("acc", "tpr", "tnr")
) -> pd.DataFrame:
    """Set our detection rates beside the paper's.

    Parameters
    ----------
    results : DataFrame
        Rows of figures/results.csv.
    rates : sequence of str
        Of "acc", "tpr" and "tnr".

    Returns
    -------
    DataFrame
        One row per run, method and rate: ``profile`` (if ``results`` has it), ``scenario``,
        ``method``, ``rate``, ``paper`` (NaN without a valid published value), ``ours``,
        ``difference`` in percentage points, ``n`` (images behind our rate), ``low``, ``high``
        (95 % Wilson interval) and ``note`` (id of an erratum about the printed row).
    """
    rows = []
    for result in results.to_dict("records"):
        printed = paper.published(result["scenario"], result["method"])
        for rate in rates:
            k, n = metrics.hits(result, rate)
            interval = metrics.wilson(k, n)
            theirs = printed.comparable(rate) if printed else math.nan
            rows.append(
                {key: result[key] for key in ("profile",) if key in result}
                | {
                    "scenario": result["scenario"],
                    "method": result["method"],
                    "rate": rate,
                    "paper": theirs,
                    "ours": interval.estimate,
                    "difference": interval.estimate - theirs,
                    "n": n,
                    "low": interval.low,
                    "high": interval.high,
                    "note": printed.erratum if printed else "",
                }
            )
    return pd.DataFrame(rows)


def results_table(table: pd.DataFrame, *, caption: str = "") -> "pd.io.formats.style.Styler":
    """Style a `comparison` for reading; ``.data`` of the result is what is shown, as numbers.

    Parameters
    ----------
    table : DataFrame
        From `comparison`; save it as CSV beside the figure.
    caption : str
        Finding.

    Raises
    ------
    ValueError
        If a run, method and rate occurs twice.
    """
    keys = [k for k in ("profile", "scenario", "method", "rate") if k in table]
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise ValueError(f"{len(twice)} rows occur twice, such as {twice.iloc[0][keys].to_dict()}")
    shown = table.assign(
        method=[figures.method_style(m).label for m in table["method"]],
        rate=table["rate"].str.upper(),
    )
    interval = [
        "–" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    shown.insert(shown.columns.get_loc("low"), "95 % interval", interval)
    shown = shown.drop(columns=["low", "high"]).set_index(keys)

    def colour(value):
        if math.isnan(value) or abs(value) < 0.5:
            return ""
        return f"color: black; background-color: {'#d6e9f5' if value > 0 else '#fbe3d0'}"

    return (
        shown.style.format(
            {"paper": "{:.2f}", "ours": "{:.2f}", "difference": "{:+.2f}", "n": "{:,}"}, na_rep="–"
        )
        .map(colour, subset=["difference"])
        .pipe(figures.captioned, caption)
    )


def export(
    table: pd.DataFrame, name: str, folder: Path, provenance: Mapping[str, Any]
) -> list[Path]:
    """Write a table as CSV (numbers), Markdown and LaTeX (text), and where it comes from as JSON.

    Parameters
    ----------
    table : DataFrame
        A comparison, whose texts become `readable` and leave out what is not finished, or any other
        table.
    name : str
        Stem of the files.
    folder : Path
        Where to.
    provenance : mapping
        From `results.provenance`; of its runs those stay that the table is made from.

    Returns
    -------
    list of Path
        CSV, Markdown, LaTeX, JSON.
    """
    folder = Path(folder)
    named = (*table.get("experiment", ()), *table.get("scenario", ()))
    about = set(map(experiment, named))
    # Column by column, as objects: pandas would turn whole numbers beside a gap into floats.
    text = pd.DataFrame({name: map(_text, table[name]) for name in table}, dtype=object)
    absent = ""
    if list(table.columns) == COLUMNS:
        done, absent = _finished(table)
        text = readable(done)
    elif "method" in table:
        text = text.assign(method=_labels(table))
    body = {
        ".csv": csv_text(table),
        ".md": _markdown(text) + (f"\n{absent.capitalize()}.\n" if absent else ""),
        ".tex": _latex(text),
    }
    paths = []
    for suffix, content in body.items():
        paths.append(folder / f"{name}{suffix}")
        write_text(paths[-1], content)
    runs = {
        run: told
        for run, told in provenance["runs"].items()
        if not about or experiment(run.split("/")[1]) in about
    }
    return [*paths, note(name, folder, {**provenance, "runs": runs})]


def note(name: str, folder: Path, provenance: Mapping[str, Any]) -> Path:
    """Write where a table comes from into ``<name>.json``, with the checksums of its files.

    Pictures of the same name, if any, belong to the same table.
    """
    files = [path for path in sorted(folder.glob(f"{name}.*")) if path.suffix != ".json"]
    told = {
        "table": name,
        "files": {path.name: checksum(path) for path in files},
        "code": code_version(),
        **provenance,
    }
    path = folder / f"{name}.json"
    write_json(path, told)
    return path


def _text(value) -> Any:
    if pd.isna(value):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else value


def _labels(table: pd.DataFrame) -> list[str]:
    return [
        "attack success" if name == "attack" else figures.method_style(name).label
        for name in table["method"]
    ]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _printed(printed: float, comparable: float) -> str:
    if math.isnan(comparable):
        return f"({printed:.2f})"
    return _number(comparable) + ("" if comparable == printed else f" ({printed:.2f})")


WRAPPED = 40
"""Characters from which on the texts of a column are broken into lines in LaTeX."""


def _latex(text: pd.DataFrame) -> str:
    longest = [max(len(str(value)) for value in (name, *text[name])) for name in text]
    columns = "".join("p{16em}" if n >= WRAPPED else "l" for n in longest)
    table = text.to_latex(
        index=False, escape=True, longtable=len(text) > 40, column_format=columns
    ).replace("σ", r"$\sigma$")  # the one letter here that pdfLaTeX does not know by itself
    needs = "% Needs the packages booktabs and longtable"
    wide = sum(min(n, WRAPPED) for n in longest) > 80
    return (
        needs
        + (r", a landscape page, \scriptsize and \tabcolsep=3pt" if wide else "")
        + f".\n{table}"
    )


def _markdown(text: pd.DataFrame) -> str:
    rows: Iterable = [text.columns, ["---"] * len(text.columns), *text.itertuples(index=False)]
    lines = ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
