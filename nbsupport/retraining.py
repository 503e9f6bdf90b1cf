"""After detection: take the flagged images away, train again, and see what is left of the backdoor.

A *filter* names the images that go (`nbsupport.artifacts.FILTERS`). The second network starts from
the same weights and follows the same recipe and seeds as the first, so that the missing images are
all that differs. Both steps leave artefacts below the run, in ``retrained/<filter>``.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from nbsupport import metrics
from nbsupport.artifacts import FILTERS, STAGES, Run, checksum
from nbsupport.devices import describe
from nbsupport.evaluation import Progress, evaluate, load_poisoned
from nbsupport.models import build
from nbsupport.training import fit, identity

__all__ = ["SECOND", "choose", "collect", "compare", "retrain"]

SECOND = tuple(name for name in STAGES if name.startswith("retrained/"))
"""Stages that choices of images and second networks are, of all filters."""


def choose(run: Run, name: str) -> np.ndarray:
    """Write down which training images a filter takes away.

    Parameters
    ----------
    run : Run
        Run whose detection is finished.
    name : {"poison_detector", "heatmap", "perfect", "random"}
        A detector's verdict; all poisoned images of the class; or as many images as
        PoisonDetector flags, drawn from the class.

    Returns
    -------
    ndarray, int64
        Their ids, sorted.

    Raises
    ------
    ArtifactError
        If there is no sound detection.
    ValueError
        If no filter has this name, or the detector has not judged this run.
    """
    if name not in FILTERS:
        raise ValueError(f"no filter is called {name!r}; choose one of {', '.join(FILTERS)}")
    found = run.arrays("detection")
    ids, truth = found["ids"], found["truth"]
    judge = "poison_detector" if name == "random" else name
    verdict = truth if name == "perfect" else found.get(f"{judge}_poisoned")
    if verdict is None:
        raise ValueError(f"{judge} has not judged {run.scenario}: 04_gw_clustering left it out")
    chosen = ids[verdict]
    if name == "random":
        chosen = run.scenario.rng("random filter").choice(np.sort(ids), len(chosen), replace=False)
    chosen = np.sort(chosen).astype(np.int64)
    hits = int(np.isin(chosen, ids[truth]).sum())
    run.save(
        _stages(name)[0],
        {"ids": chosen},
        {"n": len(chosen), "n_poisoned": hits, "n_missed": int(truth.sum()) - hits},
        made_from=((run, "detection"),),
    )
    return chosen


def retrain(
    run: Run, name: str, folder: str, device: torch.device, *, progress: Progress | None = None
) -> dict:
    """Train the network of a run again, without the images that a filter takes away.

    Only training images go: the defender judges no others, and the validation images only choose
    the epoch. After an interruption it goes on from the last finished epoch. Two filters that take
    away the same images give the same network, which is trained once (twice, if both are trained at
    the same time); one that takes none away gives the first network.

    Parameters
    ----------
    run : Run
        Run whose training is finished and whose filter is written down, see `choose`.
    name : str
        The filter.
    folder : str
        Folder of GTSRB, or "auto".
    device : torch.device
        Where to compute.
    progress : callable, optional
        As in `training.fit`.

    Returns
    -------
    dict
        What was found, as in a record of training; and ``n_removed``, ``same_as`` (stage whose
        network this is, or None).

    Raises
    ------
    ArtifactError
        If something that is needed is missing or stale.
    """
    chosen, stage = _stages(name)
    removed, before = run.arrays(chosen)["ids"], run.load("training")
    checkpoint = run.path(stage).with_name("training.checkpoint.pt")
    twin = _twin(run, name, removed)
    if twin:
        weights, earlier = run.weights(twin), run.load(twin)
        found, seconds, place = earlier["result"], earlier["seconds"], earlier["device"]
    else:
        profile, attack = run.profile, run.scenario
        dataset, _, poisoned = load_poisoned(run, folder)
        model = build(attack.model, dropout=profile.dropout, seed=attack.seed("weights"))
        history = fit(
            model,
            poisoned.train.select(~np.isin(poisoned.train.ids, removed)),
            poisoned.validation,
            profile,
            seed=attack.seed("training"),
            device=device,
            checkpoint=checkpoint,
            identity=f"{identity(run)} without {checksum(run.payload(chosen))}",
            progress=progress,
        )
        found = evaluate(model, dataset, attack, device, profile.precision).record()
        found |= {"history": [vars(epoch) for epoch in history]}
        weights = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
        seconds = sum(epoch.seconds for epoch in history)
        place = describe(device, profile.precision)
    found |= {"n_removed": len(removed), "same_as": twin}
    run.save(
        stage,
        weights,
        found,
        made_from=((run, "attack"), (run, "training"), (run, chosen)),
        parameters=before["parameters"] | {"filter": name},
        seconds=seconds,
        device=place,
    )
    checkpoint.unlink(missing_ok=True)
    return found


def compare(run: Run) -> pd.DataFrame:
    """Set the network of a run beside those that were trained after a filter.

    Parameters
    ----------
    run : Run
        Run whose training is finished.

    Returns
    -------
    DataFrame
        One row per network, "before" first, then the finished ones of `FILTERS`: ``filter``,
        ``removed`` and ``poison_removed`` (images), ``poison_left``, ``clean_accuracy`` with its
        95 % interval ``clean_low`` to ``clean_high``, ``rate`` ("asr" or "masr"), ``success``
        (that rate) with ``low`` to ``high`` (NaN for the MASR), ``attack_took``. Rates in percent.
    """
    first = run.load("training")["result"]
    rate = "masr" if run.scenario.label_consistent else "asr"
    n = first["counts"]["train"]["n_poisoned"]
    rows = [("before", 0, 0, first)]
    for name in _retrained(run):
        chosen, found = (run.load(stage)["result"] for stage in _stages(name))
        rows.append((name, chosen["n"], chosen["n_poisoned"], found))
    accuracy = [_accuracy(found["confusion"]) for *_, found in rows]
    return pd.DataFrame(
        {
            "filter": name,
            "removed": removed,
            "poison_removed": hit,
            "poison_left": n - hit,
            "clean_accuracy": interval.estimate,
            "clean_low": interval.low,
            "clean_high": interval.high,
            "rate": rate,
            "success": found[rate],
            "low": found["asr_interval"][0] if rate == "asr" else np.nan,
            "high": found["asr_interval"][1] if rate == "asr" else np.nan,
            "attack_took": found["attack_took"],
        }
        for (name, removed, hit, found), interval in zip(rows, accuracy, strict=True)
    )


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """Put the comparisons of all runs with a second network below each other.

    Parameters
    ----------
    runs : iterable of Run
        Runs whose training is finished.

    Returns
    -------
    DataFrame
        ``scenario`` and the columns of `compare`; without rows if there is no second network.
    """
    again = [run for run in runs if _retrained(run)]
    if not again:
        return pd.DataFrame()
    parts = [compare(run).assign(scenario=str(run.scenario)) for run in again]
    table = pd.concat(parts, ignore_index=True)
    return table[["scenario", *table.columns.drop("scenario")]]


def _stages(name: str) -> tuple[str, str]:
    """Name the stages of a filter: the choice of images, and the second network."""
    return f"retrained/{name}/filter", f"retrained/{name}/training"


def _retrained(run: Run) -> list[str]:
    """List the filters after which the network of a run was trained again."""
    return [name for name in FILTERS if all(map(run.has, _stages(name)))]


def _accuracy(confusion) -> metrics.Interval:
    confusion = np.asarray(confusion)
    return metrics.wilson(int(confusion.trace()), int(confusion.sum()))


def _twin(run: Run, name: str, removed: np.ndarray) -> str | None:
    """Name a finished network that was trained on the same images."""
    if len(removed) == 0:
        return "training"
    for other in _retrained(run):
        chosen, stage = _stages(other)
        if other != name and np.array_equal(run.arrays(chosen)["ids"], removed):
            return stage
    return None
