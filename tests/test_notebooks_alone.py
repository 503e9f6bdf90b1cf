"""What the workflow plans, and notebooks that need no run before them."""

import json
import re

import nbformat
import owned
import pytest
from batch import call, papermill, snakemake

pytestmark = pytest.mark.notebooks


def test_label_consistent_attacks_wait_for_the_surrogate(tmp_path):
    plan = call(snakemake(tmp_path, "--dry-run", scenarios="label_consistent-s3-p33-r0"))
    assert plan.returncode == 0, plan.stderr
    # Its own network, and the attacker's, which is not explained.
    assert re.search(r"^training +2$", plan.stdout, re.M)
    assert re.search(r"^lrp +1$", plan.stdout, re.M)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"profile": "quick"}, ["'quick'", "demo"]),
        ({"scenarios": "standard-s9"}, ["'standard-s9'", "standard-s<side>"]),
        ({"sceanrio": "x"}, ["sceanrio", "scenarios"]),
    ],
)
def test_wrong_settings_stop_the_workflow_before_it_writes(tmp_path, config, words):
    done = call(snakemake(tmp_path / "runs", **config))
    assert done.returncode != 0
    assert [word for word in words if word not in done.stderr + done.stdout] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "missing"),
    [("02_training", "01_attacks"), ("04_gw_clustering", "03_lrp"), ("06_beyond", "01_attacks")],
)
def test_a_notebook_opened_too_early_names_the_command(tmp_path, name, missing):
    out = tmp_path / "out.ipynb"
    done = papermill(name, out, "nbsupport", profile="tiny", runs=tmp_path / "runs")
    assert done.returncode != 0
    assert f"papermill --engine nbsupport notebooks/{missing}.ipynb" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_notebook_6_needs_is_planned_and_nothing_twice(tmp_path):
    plan = call(snakemake(tmp_path, "--dry-run", "every_beyond", filters="perfect heatmap"))
    assert plan.returncode == 0, plan.stderr
    jobs = dict(re.findall(r"^([a-z_]+) +(\d+)$", plan.stdout.partition("Job stats")[2], re.M))
    wanted = {"training": "2", "scan": "2", "filters": "1", "retraining": "2", "beyond": "1"}
    assert {name: jobs.get(name) for name in wanted} == wanted
    assert "results" not in jobs
    clean = call(snakemake(tmp_path, "--dry-run", "every_beyond", scenarios="clean-r0"))
    assert re.search(r"^scan +1$", clean.stdout, re.M)
    wrong = call(snakemake(tmp_path, "--dry-run", filters="perfct"))
    assert wrong.returncode != 0
    assert "unknown filters ['perfct']; choose among poison_detector" in wrong.stderr


def test_a_network_of_your_own_is_asked(tmp_path):
    told, poisoned = owned.write(tmp_path)
    out = tmp_path / "08.ipynb"
    done = papermill(
        "08_your_network", out, "nbsupport",
        **told, device="cpu", interactive=False, folder=tmp_path / "found",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "found" / "report.json").read_text())
    assert (report["named"], report["accused"]) == ([0], poisoned)
    assert report["parameters"]["mean"] == told["mean"]
    assert set(report["files"]) == {"network", "weights", "images"}
    assert {path.name for path in (tmp_path / "found").glob("*.png")} == {
        "suspicious_classes.png", "accused.png",
    }  # fmt: skip
    text = out.read_text()
    assert "images accused: 15, kept: 400" in text
    outputs = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    (counted,) = (
        o["data"]["text/html"] for o in outputs if "others of the class" in str(o.get("data"))
    )
    shares = [int(share) for share in re.findall(r">(\d+) %<", counted)]
    # Accused and others: as they are, covered, pasted. The trigger is what makes the difference.
    assert shares[:2] == [100, 100]
    assert shares[2] < 50 < shares[4]
    assert shares[5] < 50 < shares[3]
