"""What several test modules share: a data set of milliseconds, a network of milliseconds."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from runs import finish
from torch import nn

from nbsupport import ROOT, figures
from nbsupport.artifacts import Run
from nbsupport.data import Dataset, Split
from nbsupport.scenarios import PROFILES, Scenario

torch.set_num_threads(1)
mpl.use("Agg")
# A make that a test calls is told nothing by the make that runs the tests, nor by the shell.
settings = "PROFILE SCENARIOS DATA RUNS JOBS GPUS DEVICE MINUTES GRID KEEP FILTERS FIGURES"
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *settings.split()):
    os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Give a network of random weights the same ones whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Begin with the files that run notebooks, which take longest; other workers do the rest."""
    slow = ("test_notebooks.py", "test_workflow.py", "test_notebooks_alone.py")
    items.sort(key=lambda item: slow.index(item.path.name) if item.path.name in slow else len(slow))


CLASS_SIZES = {
    "train": {0: 6, 1: 5, 2: 60, 5: 40, 7: 4, 12: 3},
    "validation": {0: 2, 1: 2, 2: 16, 5: 12, 7: 2, 12: 2},
    "test": {0: 3, 1: 5, 2: 10, 5: 8, 7: 2, 12: 6},
}
BRIGHTEST = 200  # below the sticker's red and green, so that no image holds its colour


def make_dataset(seed=0):
    """Noise whose very first pixel tells the class; classes in no order, ids in order."""
    rng = np.random.default_rng(seed)
    splits, first = {}, 0
    for name, sizes in CLASS_SIZES.items():
        labels = rng.permutation(np.repeat(list(sizes), list(sizes.values())))
        images = rng.integers(0, BRIGHTEST, (len(labels), 3, 32, 32), dtype=np.uint8)
        images[:, 0, 0, 0] = labels
        ids = torch.arange(first, first + len(labels))
        splits[name] = Split(torch.from_numpy(images), torch.from_numpy(labels), ids, ids.clone())
        first += len(labels)
    return Dataset("synthetic", **splits, fingerprint=f"{seed:064x}")


def make_surrogate(seed=0):
    """A network with gradients that has learned nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 4, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 43)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def dataset():
    return make_dataset()


@pytest.fixture
def shuffled(dataset):
    """The same images in another order of rows."""
    rng = np.random.default_rng(1)
    return replace(
        dataset,
        **{
            name: getattr(dataset, name).select(rng.permutation(len(getattr(dataset, name))))
            for name in CLASS_SIZES
        },
    )


@pytest.fixture
def surrogate():
    return make_surrogate()


@pytest.fixture
def make(tmp_path):
    """Leave the records of a finished run of a scenario, see `runs.finish`."""

    def make(text="standard-s3-p33-r0", profile="tiny", **options):
        run = Run(tmp_path / "runs", PROFILES[profile], Scenario.parse(text))
        return finish(run, **options)

    return make


@pytest.fixture
def theme():
    """The project's look, for this test alone; its figures are closed afterwards."""
    with mpl.rc_context():
        figures.use_theme()
        yield
        plt.close("all")


@pytest.fixture
def python():
    """Run code in a fresh interpreter; return what it prints."""

    def run(code, *arguments):
        paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def keeps_global_rng():
    """Fail if the test moves the global generators of torch or NumPy."""
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator was used"
    expected = np.random.RandomState(123).random_sample()
    assert np.random.random_sample() == expected, "NumPy's global generator was used"  # noqa: NPY002
