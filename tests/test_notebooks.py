"""The chain of notebooks on the profile ``tiny``: run by Snakemake, killed, resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from batch import SCENARIO, call, papermill, snakemake
from runs import shown

from nbsupport import ROOT, ablation, artifacts, results
from nbsupport.scenarios import Profile, Scenario

pytestmark = pytest.mark.notebooks

STAGES = ("01_attacks", "02_training", "03_lrp", "04_gw_clustering")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run the workflow, kill its process group once training has begun, and resume it.

    Returns the folder of runs and the modification time of the attack before the kill.
    """
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "tiny" / SCENARIO
    first = subprocess.Popen(
        snakemake(runs), cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "02_training.ipynb").exists():
        assert first.poll() is None, "the workflow ended before it could be killed"
        assert time.monotonic() < deadline, "the attack took more than five minutes"
        time.sleep(0.2)
    time.sleep(2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "training.json").exists()
    before = (folder / "attack.npz").stat().st_mtime_ns

    assert call(snakemake(runs, "--unlock")).returncode == 0
    # The side road with it: it shares what comes before.
    resumed = call(snakemake(runs, "all", "every_ablation"))
    assert resumed.returncode == 0, resumed.stderr[-5000:]
    return runs, before, resumed.stderr


@pytest.fixture(scope="module")
def run(chain):
    return artifacts.Run(chain[0], Profile.parse("tiny"), Scenario.parse(SCENARIO))


def test_a_killed_run_goes_on_with_what_is_missing(chain, run):
    _, before, log = chain
    assert run.payload("attack").stat().st_mtime_ns == before
    assert "01_attacks" not in log
    assert "notebooks/02_training.ipynb" in log


def test_progress_is_counted_and_names_the_notebook(chain):
    log = chain[2]
    assert re.search(r"\d+ of \d+ steps \(100%\) done", log)
    assert "[02_training standard-s3-p15-r0] training: " in log


def test_nothing_is_left_to_do_and_the_attack_is_the_same_elsewhere(chain, run, tmp_path):
    again = call(snakemake(chain[0]))
    assert again.returncode == 0
    assert "Nothing to be done" in again.stderr
    other = artifacts.Run(tmp_path, run.profile, run.scenario)
    out = tmp_path / "01.ipynb"
    done = papermill(
        "01_attacks", out, None,
        scenario=SCENARIO, profile="tiny", runs=tmp_path, interactive=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert other.payload("attack").read_bytes() == run.payload("attack").read_bytes()


def test_every_stage_is_sound_and_joined_by_id(run):
    for stage in artifacts.CHAIN:
        run.load(stage)
    attack, detection = run.arrays("attack"), run.arrays("detection")
    poisoned = attack["ids"][(attack["split"] == 0) & ~attack["cover"]]
    assert len(poisoned) == Scenario.parse(SCENARIO).n_poisoned(15) == 3
    assert set(detection["ids"][detection["truth"]]) == set(poisoned)
    assert len(np.unique(detection["ids"])) == len(detection["ids"]) == 18
    assert set(run.arrays("relevance")["ids"]) == set(detection["ids"])


def test_the_record_tells_where_relevance_was_lost(run):
    found = run.load("relevance")["result"]
    assert set(found["conservation_by_layer"]) == set(found["conservation"])
    for layers in found["conservation_by_layer"].values():
        assert len({part["layer"] for part in layers}) == len(layers) > 3
        for part in layers:
            lost = part["received"] - part["passed"] - part["bias"]
            assert abs(lost) <= 0.05 * max(1.0, abs(part["received"]))


def test_rates_follow_from_the_saved_verdicts(run):
    arrays, record = run.arrays("detection"), run.load("detection")["result"]
    truth = arrays["truth"]
    for method, found in record["methods"].items():
        flagged = arrays[f"{method}_poisoned"]
        assert found["n_tp"] == (flagged & truth).sum()
        assert found["n_fp"] == (flagged & ~truth).sum()
        assert found["acc"] == pytest.approx(100 * (flagged == truth).mean())
    assert record["same_as_solver"] == 1.0, "closed form and real solver disagree"


def test_the_ablation_is_scored_by_image_id(run):
    arrays, found = run.arrays("ablation"), run.load("ablation")["result"]
    truth = np.isin(arrays["ids"], run.arrays("detection")["ids"][run.arrays("detection")["truth"]])
    assert len(found["cells"]) == len(arrays["poisoned"]) > 100
    for cell, flagged in zip(found["cells"], arrays["poisoned"], strict=True):
        assert (cell["n_tp"], cell["n_fp"]) == ((flagged & truth).sum(), (flagged & ~truth).sum())
    # The collapsed distance of the grid is the paper's method of notebook 4.
    names = [tuple(arrays[key][i] for key in ablation.KEYS) for i in range(len(found["cells"]))]
    published = arrays["poisoned"][names.index(ablation.PUBLISHED)]
    theirs = run.arrays("detection")
    by_id = dict(zip(theirs["ids"], theirs["heatmap_poisoned"], strict=True))
    assert np.mean([by_id[i] == p for i, p in zip(arrays["ids"], published, strict=True)]) > 0.9


def test_results_are_the_tidy_table(run, chain):
    table = pd.read_csv(chain[0] / "tiny" / "results.csv")
    assert list(table.columns) == results.COLUMNS
    assert set(table["method"]) == set(run.load("detection")["result"]["methods"])
    assert (table["n_poisoned"] == 3).all()
    figures = chain[0] / "tiny" / "figures"
    assert (figures / "detection_rates.pdf").exists()
    provenance = json.loads((figures / "detection_rates.json").read_text())
    assert SCENARIO in json.dumps(provenance)


@pytest.mark.parametrize("name", [*STAGES, "07_ablation", "05_results"])
def test_executed_notebook_reads_well_without_a_kernel(chain, name):
    folder = chain[0] / "tiny"
    path = folder / f"{name}.ipynb" if name == "05_results" else folder / SCENARIO / f"{name}.ipynb"
    pictures = 0
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            data = output.get("data", {})
            assert not [kind for kind in data if "widget" in kind]
            if "image/png" in data:
                pictures += 1
                assert len(output.metadata["image/png"]["alt"]) > 20
    assert pictures >= 1


DOWNSTREAM = ["training", "lrp", "gw_clustering", "results", "all"]


def plan(runs: Path, script: str = "", cwd: Path = ROOT) -> set[str]:
    """Rules that would run again, after ``script`` was run in the interpreter of the workflow."""
    command = snakemake(runs, "--dry-run")
    runner = f"{script}\nimport sys\nfrom snakemake.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = call([sys.executable, "-c", runner, *command[3:]], cwd=cwd)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("Job stats")[2]
    return set(re.findall(r"^([a-z_]+) +\d+$", table, re.M)) - {"total"}


@pytest.fixture
def checkout(tmp_path):
    """A copy of all that the workflow watches, with the notes on how each file was made.

    Without those a new command could not be noticed.
    """
    for name in ("notebooks", "nbsupport"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy2(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / ".snakemake" / "metadata", tmp_path / ".snakemake" / "metadata")
    return tmp_path


QUICK = {"nbsupport/distances.py": DOWNSTREAM[2:], "notebooks/05_results.ipynb": DOWNSTREAM[3:]}


def test_an_edit_never_reruns_a_training(chain, checkout):
    slow = [checkout / name for name in ("notebooks/02_training.ipynb", "nbsupport/training.py")]
    for path in (*slow, *(checkout / name for name in QUICK), checkout / "Snakefile"):
        path.touch()
    assert plan(chain[0], cwd=checkout) == set(), "younger files with the same content"
    for path in slow:
        path.write_text(path.read_text() + "\n")
    text = (checkout / "Snakefile").read_text()
    (checkout / "Snakefile").write_text(text.replace("papermill ", "papermill  "))
    assert plan(chain[0], cwd=checkout) == set()


@pytest.mark.parametrize("change", QUICK)
def test_an_edit_reruns_quick_steps(chain, checkout, change):
    path = checkout / change
    path.write_text(path.read_text() + "\n")
    assert plan(chain[0], cwd=checkout) == set(QUICK[change])


@pytest.mark.parametrize(("stage", "first"), [("training", 0), ("relevance", 1)])
def test_a_new_version_of_a_slow_stage_reruns_it_and_what_follows(chain, stage, first):
    script = (
        "from dataclasses import replace\nfrom nbsupport.artifacts import STAGES\n"
        f"STAGES[{stage!r}] = replace(STAGES[{stage!r}], version=99)"
    )
    assert plan(chain[0], script) == set(DOWNSTREAM[first:])


def test_a_poor_surrogate_is_refused(chain, tmp_path):
    # One epoch on tiny data teaches nothing, so the tiny network itself is the poor surrogate.
    clean = chain[0] / "tiny" / "clean-r0"
    wanted = ["02_training", clean / "model.safetensors"]
    made = call(snakemake(chain[0], str(wanted[1])))
    assert made.returncode == 0, made.stderr[-3000:]
    out = tmp_path / "out.ipynb"
    done = papermill(
        "01_attacks", out, "nbsupport",
        scenario="label_consistent-s3-p33-r0", profile="tiny", runs=chain[0], interactive=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"surrogate .* reaches \d+\.\d % clean accuracy", done.stderr)


def test_the_overview_shows_what_is_finished(chain, tmp_path):
    out = tmp_path / "out.ipynb"
    done = papermill("00_overview", out, "nbsupport", profile="tiny", runs=chain[0])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "✓" in shown(out)


def test_your_network_is_the_scenario_s_if_none_is_given(chain, run, tmp_path):
    place = {"profile": "tiny", "runs": chain[0], "device": "cpu", "interactive": False}
    asked = {"classes": "5 2", "per_class": 12}
    out = tmp_path / "08.ipynb"
    done = papermill("08_your_network", out, "nbsupport", **place, **asked)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((run.folder / "checkup" / "report.json").read_text())
    assert {entry["label"] for entry in report["classes"]} == {2, 5}
    half = papermill("08_your_network", out, "nbsupport", **place, weights="mine.safetensors")
    assert half.returncode != 0
    assert "give network, weights and images together" in half.stderr


def test_notebook_6_scans_filters_and_trains_again(chain, run, tmp_path):
    asked = {"make": "scan perfect", "classes": "5 2", "per_class": 12}
    place = {"profile": "tiny", "runs": chain[0], "device": "cpu", "interactive": False}
    out = tmp_path / "06_beyond.ipynb"
    done = papermill("06_beyond", out, "nbsupport", **place, **asked)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(run.arrays("scan")["label"]) == {2, 5}
    attack = run.arrays("attack")
    poisoned = attack["ids"][(attack["split"] == 0) & ~attack["cover"]]
    assert set(run.arrays("retrained/perfect/filter")["ids"]) == set(poisoned)
    assert run.load("retrained/perfect/training")["result"]["n_removed"] == len(poisoned)
    assert not (run.folder / "beyond.csv").exists()
    outputs = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    said = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "no training yet after: PoisonDetector, Heatmap Clustering, random filter" in said
    assert "clean-r0 is not scanned; needed: " in said
    assert "standard-s3-p15-resnet-r0 blended-a20-p15-r0" in said
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 6

    written = run.path("retrained/perfect/training").stat().st_mtime_ns
    again = papermill("06_beyond", out, "nbsupport", **place, make="none")
    assert again.returncode == 0, again.stderr[-3000:]
    assert run.path("retrained/perfect/training").stat().st_mtime_ns == written
    table = pd.read_csv(run.folder / "beyond.csv")
    assert list(table["filter"]) == ["before", "perfect"]
    assert list(table["poison_left"]) == [len(poisoned), 0]

    # Notebook 5 gathers both, and the grid.
    place = {"profile": "tiny", "runs": chain[0], "figures_folder": tmp_path / "figures"}
    done = papermill("05_results", tmp_path / "05.ipynb", "nbsupport", **place, interactive=False)
    assert done.returncode == 0, done.stderr[-3000:]
    scans = pd.read_csv(tmp_path / "figures" / "scans.csv")
    assert scans[["scenario", "classes", "per_class", "target"]].to_numpy().tolist() == [
        [SCENARIO, 2, 12, 5],
    ]  # fmt: skip
    after = pd.read_csv(tmp_path / "figures" / "after_detection.csv")
    assert list(after["filter"]) == ["before", "perfect"]
    told = json.loads((tmp_path / "figures" / "after_detection.json").read_text())
    assert "retrained/perfect/training" in told["runs"][f"tiny/{SCENARIO}"]
    assert set(pd.read_csv(tmp_path / "figures" / "ablation.csv")["scenario"]) == {SCENARIO}
    told = json.loads((tmp_path / "figures" / "ablation.json").read_text())
    assert "ablation" in told["runs"][f"tiny/{SCENARIO}"]
    assert set(told["files"]) == {"ablation.pdf", "ablation.png"}


def test_edited_images_behind_a_run_are_noticed(chain, run, tmp_path):
    # Relevance of another attack under the same name: stale for everything made from it.
    copy = tmp_path / "tiny" / SCENARIO
    copy.mkdir(parents=True)
    for file in run.folder.iterdir():
        if file.suffix in {".npz", ".json", ".safetensors"}:
            (copy / file.name).write_bytes(file.read_bytes())
    with np.load(copy / "attack.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["images"][0] ^= 1
    np.savez_compressed(copy / "attack.npz", **changed)
    done = papermill(
        "05_results", tmp_path / "out.ipynb", "nbsupport",
        profile="tiny", runs=tmp_path, interactive=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "no finished run" in done.stderr
