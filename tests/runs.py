"""Finished runs that nobody computed: sound artefacts with invented content, in milliseconds."""

import json
from dataclasses import fields

import nbformat
import numpy as np
import pandas as pd
import torch

from nbsupport.attacks import Manifest
from nbsupport.evidence import Evidence
from nbsupport.metrics import Confusion

METHODS = ("spectral", "heatmap")

DETECTIONS = {
    "activation": Confusion(738, 75, 1596, 54),
    "heatmap": Confusion(812, 1, 1650, 0),
}
RESULTS = pd.DataFrame(
    [
        {"profile": "demo", "scenario": "standard-s3-p33-r0", "method": method, **counts.record()}
        for method, counts in DETECTIONS.items()
    ]
)
"""Rows of results.csv: one run, two methods."""


def shown(path):
    """All that the cells of an executed notebook put out; their sources do not count."""
    cells = nbformat.read(path, 4).cells
    outputs = [cell.outputs for cell in cells if cell.cell_type == "code"]
    return json.dumps(outputs, ensure_ascii=False)


def method(seed, **values):
    """Rates and counts of one method: 20 poisoned images of 60."""
    found = {
        "acc": 90 + seed, "tpr": 80.123456789 + seed, "tnr": 99.0, "auroc": 97.5,
        "n_tp": 16 + seed, "n_fn": 4, "n_tn": 39, "n_fp": 1, "seconds": 1.25,
    }  # fmt: skip
    return found | values


def detected(tp, fn, tn, fp):
    """Rates of given counts, as notebook 4 records them."""
    counts = {"n_tp": tp, "n_fn": fn, "n_tn": tn, "n_fp": fp}
    rates = {
        "acc": 100 * (tp + tn) / sum(counts.values()),
        "tpr": 100 * tp / (tp + fn),
        "tnr": 100 * tn / (tn + fp),
    }
    return rates | counts | {"auroc": 97.5, "seconds": 1.25}


def manifest(n, **columns):
    """Columns of a manifest of n training images, all of them poisoned."""
    zeros = {field.name: np.zeros(n, int) for field in fields(Manifest)}
    return zeros | {"ids": np.arange(n), "cover": np.zeros(n, bool)} | columns


def finish(run, methods=METHODS, seed=0, **training):
    """Leave the records of a finished run; ``methods`` are names, or names with their rates."""
    clean = run.scenario.attack == "clean"
    counts = {
        "poison_rate_class": 0.0 if clean else 33.3,
        "poison_rate_dataset": 0.0 if clean else 0.125,
        "n_poisoned": 0 if clean else 20,
    }
    record = {
        "clean_accuracy": 97.75,
        "asr": 100.0,
        "n_asr": 30,
        "masr": 88.5,
        "asr_per_class": [None if c == 5 else 100.0 for c in range(43)],
        "confusion": np.diag(np.full(43, 10)),
        "attack_took": None if clean else True,
        "counts": {
            "train": counts | {"n_class": 60},
            "validation": {"poison_rate_class": 1.0, "n_poisoned": 1, "n_class": 100},
        },
    }
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
    run.save("attack", manifest(9, images=images), {}, seconds=2)
    own, inputs = ((run, "attack"),), ()
    if run.scenario.needs_surrogate:
        surrogate = run.of(run.scenario.surrogate)
        inputs = ((surrogate, "training"),) if surrogate.has("training") else ()
    run.save(
        "training", {"w": torch.ones(1)}, record | training,
        made_from=own + inputs, device="cuda", seconds=100,
    )  # fmt: skip
    maps = rng.random((12, 32, 32)).astype("float32")
    names = ("heatmaps_released", "heatmaps_squared", "heatmaps_gamma", "heatmaps_paper")
    relevance = {"ids": np.arange(12), "activations": rng.random((12, 4))}
    relevance |= dict.fromkeys(names, maps)
    cells, margins = np.zeros((12, 2), int), rng.random((12, 2))
    unknown = np.full((12, 2), np.nan)
    relevance |= Evidence(
        (3, 5), cells, cells, margins[:, 0], margins, cells, unknown, unknown
    ).arrays()
    seen = {"relevance mass on the trigger (%)": 50.0 + seed, "pointing game (%)": 100.0}
    explained = {
        "n": 12,
        "seconds": {"released": 1.26, "gamma": 2.0, "evidence": 20.0},
        "localisation": None if clean else {"released": seen, "gamma": seen},
        "detection": {"gamma": {"heatmap, AUROC (%)": 99.5}},
    }
    run.save("relevance", relevance, explained, made_from=own, seconds=30)
    scores = {"scores": np.arange(3) + seed}
    if not isinstance(methods, dict):
        methods = {name: method(seed + i) for i, name in enumerate(methods)}
    run.save("detection", scores, {"methods": methods}, made_from=own, seconds=7, device="cpu")
    return run
