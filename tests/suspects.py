"""One suspicious class for the tests of all detectors: images, activations and heatmaps."""

import numpy as np
import pytest
from heatmaps import disc_maps

from nbsupport.detection import DetectionInputs

N, N_POISON = 120, 18
TRUTH = np.arange(N) < N_POISON

HEATMAPS = disc_maps(N, N_POISON, np.random.default_rng(0), bright=2.5)


def make_features():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N, 24)) * np.linspace(3, 0.5, 24)
    X[:N_POISON] += 5 * rng.normal(size=24)
    return X


def make_images():
    X = np.random.default_rng(2).integers(60, 120, (N, 3, 16, 16))
    X[:N_POISON] += 90
    return X.astype(np.uint8)


def make_evidence():
    X = np.random.default_rng(3).normal(size=(N, 6))
    X[:N_POISON] += 8
    return X


FEATURES, IMAGES, EVIDENCE = make_features(), make_images(), make_evidence()

INPUTS = DetectionInputs(
    ids=1000 + np.arange(N),
    images=IMAGES,
    activations=FEATURES,
    logits=FEATURES[:, :9],
    heatmaps={"released": HEATMAPS, "gamma": HEATMAPS},
    evidence=EVIDENCE,
)

for array in (TRUTH, HEATMAPS, FEATURES, IMAGES, EVIDENCE):
    array.flags.writeable = False


def by_name(estimators):
    return pytest.mark.parametrize("estimator", estimators, ids=lambda e: str(e)[:60])
