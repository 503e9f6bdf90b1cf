"""The tidy table of results: one row per finished run and method."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from nbsupport.artifacts import STAGES, Run, atomic, library_versions

__all__ = ["COLUMNS", "collect", "provenance", "update_csv"]

KEYS = ["profile", "scenario", "method"]

VERDICT = ["acc", "tpr", "tnr", "auroc", "n_tp", "n_fn", "n_tn", "n_fp", "seconds"]

COLUMNS = [
    "profile",
    "scenario",
    "attack",
    "side",
    "amplitude",
    "poison_rate_class",
    "n_poisoned",
    "n_class",
    "repetition",
    "clean_accuracy",
    "asr",
    "masr",
    "attack_took",
    "method",
    *VERDICT,
    "device",
    "commit",
]
"""Columns of results.csv: rates in percent, empty where they are not defined."""


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
                    "side": attack.side,
                    "amplitude": attack.amplitude,
                    "poison_rate_class": counts["poison_rate_class"],
                    "n_poisoned": counts["n_poisoned"],
                    "n_class": counts["n_class"],
                    "repetition": attack.repetition,
                    "method": method,
                    "device": training["device"],
                    "commit": detection["code"],
                }
                | {
                    key: training["result"][key]
                    for key in ("clean_accuracy", "asr", "masr", "attack_took")
                }
                | {key: found[key] for key in VERDICT}
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def provenance(runs: Iterable[Run]) -> dict:
    """Say where results come from: checksums, code, device and seconds of every stage.

    Returns
    -------
    dict
        Ready for the JSON file beside a figure.
    """
    kept = ("payload", "code", "device", "seconds")
    return {
        "runs": {
            f"{run.profile}/{run.scenario}": {
                stage: {key: record[key] for key in kept}
                for stage, record in ((stage, run.load(stage)) for stage in STAGES)
            }
            for run in runs
        },
        "libraries": library_versions(),
    }


def update_csv(results: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write results into a CSV file, replacing older rows of the same runs and methods.

    Returns
    -------
    DataFrame
        All rows that the file holds now, sorted by profile, scenario and method.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        older = pd.read_csv(path)
        runs = pd.MultiIndex.from_frame(results[KEYS[:2]])
        older = older[~pd.MultiIndex.from_frame(older[KEYS[:2]]).isin(runs)]
        results = pd.concat([older, results]) if len(older) else results
    # Columns that met an empty one hold objects, whose digits would not be rounded.
    results = results.sort_values(KEYS, kind="stable").infer_objects()
    with atomic(path) as temporary:
        results.to_csv(temporary, index=False, float_format="%.6g")
    return results.reset_index(drop=True)
