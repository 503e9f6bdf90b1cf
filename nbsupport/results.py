"""The tidy tables of results: detections per run and method, attacks per run."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbsupport import metrics
from nbsupport.artifacts import CHAIN, PLACE, Run, library_versions, write_text

__all__ = [
    "COLUMNS", "OURS", "collect", "csv_text", "localisation", "networks", "odd_images",
    "odd_settings", "paired", "provenance", "strength", "write_csv",
]  # fmt: skip

OURS = "poison_detector"
"""The best detector of this edition, which stands beside the paper's methods."""

KEYS = ["profile", "scenario", "method"]

VERDICT = ["acc", "tpr", "tnr", "auroc", "n_tp", "n_fn", "n_tn", "n_fp", "seconds"]

TRAINED = ["clean_accuracy", "asr", "masr", "attack_took"]

_SPREAD = ("blended", "sinusoidal")
"""Attacks whose trigger lies over the whole image and has no side."""

COUNTS = ["poison_rate_class", "poison_rate_dataset", "n_poisoned", "n_class"]

COLUMNS = [
    "profile",
    "scenario",
    "attack",
    "side",
    "amplitude",
    *COUNTS,
    "repetition",
    *TRAINED,
    "method",
    *VERDICT,
    "device",
    "commit",
    "percent",
    "options",
]
"""Columns of results.csv: rates in percent, empty where they are not defined. `figures/README.md`
tells what each of them holds."""


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """Read the records of finished runs.

    Parameters
    ----------
    runs : iterable of Run
        Runs with detection finished; see `artifacts.finished_runs`.

    Returns
    -------
    DataFrame
        With `COLUMNS`, one row per run and method.

    Raises
    ------
    ArtifactError
        If a record is missing or unsound.
    """
    rows = []
    for run in runs:
        training, detection = run.load("training"), run.load("detection")
        attack = run.scenario
        counts = training["result"]["counts"]["train"]
        for method, found in detection["result"]["methods"].items():
            rows.append(
                {
                    "profile": str(run.profile),
                    "scenario": str(attack),
                    "attack": attack.attack,
                    "side": None if attack.attack in _SPREAD else attack.side,
                    "amplitude": attack.amplitude,
                    **{key: counts[key] for key in COUNTS},
                    "repetition": attack.repetition,
                    "method": method,
                    "device": training["device"],
                    "commit": detection["code"],
                    "percent": float(attack.percent),
                    "options": " ".join(attack.options),
                }
                | {key: training["result"][key] for key in TRAINED}
                | {key: found[key] for key in VERDICT}
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def odd_settings(runs: Iterable[Run], stage: str = "detection") -> dict[str, dict]:
    """Find runs whose stage was made with other parameters than that of most runs.

    Parameters
    ----------
    runs : iterable of Run
        Runs with the stage finished.
    stage : str
        Whose notebook's own parameters are compared; those of every notebook are not (`PLACE` in
        `nbsupport.artifacts`).

    Returns
    -------
    dict
        Parameters by scenario, of the odd ones; such rows do not belong into one table.
    """
    told = {str(run.scenario): run.load(stage)["parameters"] for run in runs}
    own = {name: {k: v for k, v in p.items() if k not in PLACE} for name, p in told.items()}
    texts = [json.dumps(knobs, sort_keys=True) for knobs in own.values()]
    usual = max(texts, key=texts.count, default="")
    return {name: own[name] for name, text in zip(own, texts, strict=True) if text != usual}


def odd_images(told: Mapping[str, Any]) -> dict[str, str]:
    """Find runs that were made from other images than most.

    Parameters
    ----------
    told : mapping
        Provenance of the runs, from `provenance` (and `Published.tell`).

    Returns
    -------
    dict
        Fingerprint of the images by scenario, of the odd ones; such rows do not belong into one
        table. Runs whose images nobody noted are passed over.
    """
    noted = {
        name.partition("/")[2]: stages["attack"]["images"]
        for name, stages in told["runs"].items()
        if stages.get("attack", {}).get("images")
    }
    every = list(noted.values())
    usual = max(every, key=every.count, default="")
    return {name: images for name, images in noted.items() if images != usual}


def networks(runs: Iterable[Run]) -> pd.DataFrame:
    """Say how each network turned out, and what `PoisonDetector` heard in its attacked class.

    Parameters
    ----------
    runs : iterable of Run
        Runs with training finished, those of networks that nobody attacked included.

    Returns
    -------
    DataFrame
        One row per run: ``scenario``, ``n_poisoned`` training images, ``clean_accuracy``, ``asr``
        and ``masr`` in percent (of triggered test images, whoever trained on none), and
        ``attack_took``, None without an attack. Then from detection, None where it is not finished:
        ``witnesses`` who were believed, ``n_strong`` candidates and the ``silhouette`` of the
        activations.

    Raises
    ------
    ArtifactError
        If a record is missing or unsound.
    """
    rows = []
    for run in runs:
        found, heard = run.load("training")["result"], {}
        if run.has("detection"):
            methods = run.load("detection")["result"]["methods"]
            heard = methods.get("poison_detector", {}).get("details", {})
        rows.append(
            {"scenario": str(run.scenario), "n_poisoned": found["counts"]["train"]["n_poisoned"]}
            | {key: found[key] for key in TRAINED}
            | {"witnesses": " ".join(heard.get("witnesses", ())) or ("nobody" if heard else None)}
            | {name: heard.get(name) for name in ("n_strong", "silhouette")}
        )
    return pd.DataFrame(rows, dtype=object)


def strength(runs: Iterable[Run]) -> pd.DataFrame:
    """Read how well the attacks of finished runs work, with the images behind each rate.

    Parameters
    ----------
    runs : iterable of Run
        Runs with training finished.

    Returns
    -------
    DataFrame
        One row per run and rate ("clean_accuracy", "asr", "masr"): ``scenario``, ``rate``,
        ``value`` in percent, ``n`` (test images) and ``n_effective`` (images that would make a
        plain rate as certain; for the mean over classes, which weigh the same however few images
        they have, fewer than ``n`` as a rule).

    Raises
    ------
    ArtifactError
        If a record is missing or unsound.
    """
    rows = []
    for run in runs:
        found, target = run.load("training")["result"], run.scenario.target_class
        sizes = np.array([sum(row) for row in found["confusion"]])
        classes = np.array([c for c, size in enumerate(sizes) if size and c != target])
        rates = np.array(found["asr_per_class"], dtype=float)[classes]
        images = {
            "clean_accuracy": (sizes.sum(), sizes.sum()),
            "asr": (found["n_asr"], found["n_asr"]),
            "masr": (sizes[classes].sum(), _effective(rates, sizes[classes])),
        }
        rows += [
            {"scenario": str(run.scenario), "rate": rate, "value": found[rate]}
            | {"n": int(n), "n_effective": float(n_effective)}
            for rate, (n, n_effective) in images.items()
        ]
    return pd.DataFrame(rows, columns=["scenario", "rate", "value", "n", "n_effective"])


def localisation(runs: Iterable[Run]) -> pd.DataFrame:
    """Read how well the heatmaps of each composite see the trigger.

    Parameters
    ----------
    runs : iterable of Run
        Runs with relevance finished; those without poisoned images have no trigger to be seen.

    Returns
    -------
    DataFrame
        One row per run and composite: ``scenario``, ``composite``, the three measures of
        `nbsupport.localisation` and the AUROC of clusterings on these heatmaps, in percent, and
        ``n`` (all images of the class).

    Raises
    ------
    ArtifactError
        If a record is missing or unsound.
    """
    rows = []
    for run in runs:
        found = run.load("relevance")["result"]
        rows += [
            {"scenario": str(run.scenario), "composite": composite}
            | seen
            | found["detection"].get(composite, {})
            | {"n": found["n"]}
            for composite, seen in (found["localisation"] or {}).items()
        ]
    return pd.DataFrame(rows)


def _effective(rates: np.ndarray, sizes: np.ndarray) -> float:
    """Images in a plain rate of the same variance as an unweighted mean of class rates.

    Half a hit and half a miss are added to each class (Jeffreys), so that rates of 0 and 100 %
    keep a variance.
    """
    share = (rates * sizes / 100 + 0.5) / (sizes + 1)
    variance = (share * (1 - share) / sizes).sum() / len(sizes) ** 2
    return share.mean() * (1 - share.mean()) / variance


def provenance(runs: Iterable[Run], stages: Iterable[str] = CHAIN) -> dict:
    """Say where results come from: version, checksums, code, device and seconds of the stages.

    The checksums are of what a stage was made from (the attacker's network, too), of what it made,
    and of the images of the data set.

    Parameters
    ----------
    runs : iterable of Run
        What the results are made from.
    stages : iterable of str
        Stages that were read. Those of the chain must be there; side roads, such as a training
        after a filter, are told of where a run has them.

    Returns
    -------
    dict
        Ready for the JSON file beside a figure.
    """
    runs, stages = list(runs), tuple(stages)
    kept = ("version", "made_from", "payload", "code", "device", "seconds")
    records = {
        f"{run.profile}/{run.scenario}": {
            stage: run.load(stage) for stage in stages if stage in CHAIN or run.has(stage)
        }
        for run in runs
    }
    made_with: dict[str, set[str]] = {}
    for record in (record for of_run in records.values() for record in of_run.values()):
        for name, version in record["libraries"].items():
            made_with.setdefault(name, set()).add(version)
    return {
        "profiles": sorted({str(run.profile) for run in runs}),
        "runs": {
            name: {
                stage: {key: record[key] for key in kept}
                | ({"images": record["result"].get("fingerprint")} if stage == "attack" else {})
                for stage, record in of_run.items()
            }
            for name, of_run in records.items()
        },
        "runs_made_with": {name: sorted(versions) for name, versions in made_with.items()},
        "libraries": library_versions(),
    }


def paired(runs: Iterable[Run], ours: str = OURS, theirs: str = "heatmap") -> pd.DataFrame:
    """Compare two methods image by image: both judged the same images of the same network.

    Parameters
    ----------
    runs : iterable of Run
        Runs with detection finished; those without either method are left out.
    ours, theirs : str
        Methods.

    Returns
    -------
    DataFrame
        One row per run: ``scenario``, ``n``, the average precision of both (percent; chance is the
        share of poisoned images), and ``gain``, how many percent of the images ours tells right
        beyond theirs, with its 95 % bootstrap interval ``low`` to ``high``.
    """
    from scipy.stats import bootstrap  # a second to import, wanted only here

    rows = []
    for run in runs:
        found = run.arrays("detection")
        if not {f"{m}_poisoned" for m in (ours, theirs)} <= set(found):
            continue
        truth, rng = found["truth"], run.scenario.rng("bootstrap")
        right = [(found[f"{m}_poisoned"] == truth).astype(float) for m in (ours, theirs)]
        gain = right[0] - right[1]
        drawn = bootstrap((gain,), np.mean, n_resamples=2000, method="percentile", rng=rng)
        precision = {
            f"average_precision_{m}": 100 * metrics.average_precision(truth, found[f"{m}_score"])
            for m in (ours, theirs)
        }
        ends = {"gain": gain.mean()} | drawn.confidence_interval._asdict()
        rows.append(
            {"scenario": str(run.scenario), "n": len(truth)}
            | precision
            | {name: 100 * float(value) for name, value in ends.items()}
        )
    return pd.DataFrame(rows)


def csv_text(rows: pd.DataFrame) -> str:
    """Write a table as CSV, numbers with nine digits.

    Digits enough that whoever rounds a rate to two decimals rounds it once, not twice.
    """
    # Columns that met an empty one hold objects, whose digits would not be rounded.
    return rows.infer_objects().to_csv(index=False, float_format="%.9g")


def write_csv(results: pd.DataFrame, path: Path) -> None:
    """Write results.csv, sorted by profile, scenario and method.

    Parameters
    ----------
    results : DataFrame
        From `collect`.
    path : Path
        File to write.
    """
    write_text(path, csv_text(results.sort_values(KEYS, kind="stable")))
