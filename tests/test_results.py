import json
import re

import numpy as np
import pandas as pd
import pytest

from nbsupport import __version__, artifacts, results
from nbsupport.artifacts import CHAIN, ArtifactError
from nbsupport.results import collect, provenance, strength, write_csv

COLUMNS = [
    "profile",
    "scenario",
    "attack",
    "side",
    "amplitude",
    "poison_rate_class",
    "poison_rate_dataset",
    "n_poisoned",
    "n_class",
    "repetition",
    "clean_accuracy",
    "asr",
    "masr",
    "attack_took",
    "method",
    "acc",
    "tpr",
    "tnr",
    "auroc",
    "n_tp",
    "n_fn",
    "n_tn",
    "n_fp",
    "seconds",
    "device",
    "commit",
    "percent",
    "options",
]
"""Promised to readers of results.csv, in this order: more may follow, none may go or move."""


def test_columns_are_those_promised():
    assert results.COLUMNS == COLUMNS


def test_one_row_per_run_and_method(make):
    runs = [make(), make("amplitude-a64-p33-r3", profile="demo", seed=5)]
    table = collect(runs)
    assert list(table.columns) == COLUMNS
    assert table[["profile", "scenario", "method"]].to_numpy().tolist() == [
        ["tiny", "standard-s3-p33-r0", "spectral"],
        ["tiny", "standard-s3-p33-r0", "heatmap"],
        ["demo", "amplitude-a64-p33-r3", "spectral"],
        ["demo", "amplitude-a64-p33-r3", "heatmap"],
    ]
    row = table.iloc[3].to_dict()
    assert re.match(r"\d+\.\d+\.\d+", row.pop("commit"))
    assert row == {
        "profile": "demo", "scenario": "amplitude-a64-p33-r3", "attack": "amplitude", "side": 3,
        "amplitude": 64, "poison_rate_class": 33.3, "poison_rate_dataset": 0.125, "n_poisoned": 20,
        "n_class": 60,
        "repetition": 3, "clean_accuracy": 97.75, "asr": 100.0, "masr": 88.5, "attack_took": True,
        "method": "heatmap", "acc": 96, "tpr": 86.123456789, "tnr": 99.0, "auroc": 97.5,
        "n_tp": 22, "n_fn": 4, "n_tn": 39, "n_fp": 1, "seconds": 1.25, "device": "cuda",
        "percent": 33.0, "options": "",
    }  # fmt: skip


def test_a_grid_can_be_grouped_by_its_own_axes(make):
    runs = ("standard-s3-p0.5-from1+2-win20x20-resnet-r1", "blended-a20-p15-r0")
    rows = collect(map(make, runs)).query("method == 'heatmap'")
    assert rows["percent"].tolist() == [0.5, 15.0]
    assert rows["options"].tolist() == ["from1+2 win20x20 resnet", ""]
    # A pattern over the whole image has no side.
    assert rows["side"].tolist()[0] == 3
    assert pd.isna(rows["side"].tolist()[1])


def test_no_runs_give_an_empty_table(tmp_path):
    table = collect([])
    assert list(table.columns) == COLUMNS
    assert len(table) == 0
    write_csv(table, tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().strip() == ",".join(COLUMNS)


def test_unfinished_run_is_refused(make):
    run = make()
    run.path("training").unlink()
    with pytest.raises(ArtifactError, match=r"training\.json is missing"):
        collect([run])


def test_file_holds_the_table_sorted(make, tmp_path):
    path = tmp_path / "figures" / "results.csv"
    table = collect([make(), make(profile="demo"), make("clean-r0")])
    write_csv(table, path)
    read = pd.read_csv(path)
    assert list(read.columns) == COLUMNS
    keys = ["profile", "scenario", "method"]
    assert read[keys].to_numpy().tolist() == sorted(table[keys].to_numpy().tolist())
    assert read["tpr"].tolist()[:2] == [81.1234568, 80.1234568], "nine digits"
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]


def test_undefined_rates_are_empty(make, tmp_path):
    path = tmp_path / "results.csv"
    write_csv(collect([make("clean-r0", methods=("spectral",), asr=None)]), path)
    row = dict(zip(*(line.split(",") for line in path.read_text().splitlines()), strict=True))
    assert (row["asr"], row["attack_took"], row["masr"]) == ("", "", "88.5")


def test_the_order_of_the_runs_does_not_show(make, tmp_path):
    path = tmp_path / "results.csv"
    runs = [make(), make("clean-r0", asr=None), make("amplitude-a64-p33-r3", seed=3)]
    write_csv(collect(runs), path)
    first = path.read_bytes()
    write_csv(collect(runs[::-1]), path)
    assert path.read_bytes() == first


def test_an_interrupted_write_keeps_the_old_file(make, tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_csv(collect([make()]), path)
    before, fewer = path.read_bytes(), collect([make()])[:1]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_csv(fewer, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["results.csv"]


def test_strength_tells_the_images_behind_each_rate(make):
    some = [None if c == 5 else 60.0 for c in range(43)]
    runs = [make(), make("label_consistent-s3-p33-r0", masr=60.0, asr_per_class=some)]
    table = strength(runs)
    assert table["scenario"].tolist() == [str(r.scenario) for r in runs for _ in range(3)]
    rows = table.set_index(["scenario", "rate"])
    assert rows.loc[("standard-s3-p33-r0", "asr")].tolist() == [100.0, 30, 30.0]
    assert rows.loc[("standard-s3-p33-r0", "clean_accuracy")].tolist() == [97.75, 430, 430.0]
    value, n, effective = rows.loc[("label_consistent-s3-p33-r0", "masr")]
    assert (value, n) == (60.0, 420)
    # Classes of one size and one rate: their mean is the plain rate.
    assert effective == pytest.approx(420)


def test_small_classes_make_the_mean_over_classes_less_certain(make):
    sizes = np.full(43, 10)
    sizes[0] = 100_000
    run = make("label_consistent-s3-p33-r0", confusion=np.diag(sizes))
    row = strength([run]).set_index("rate").loc["masr"]
    assert row["n"] == 100_410
    assert row["n_effective"] < 1000


def test_strength_of_no_runs_is_an_empty_table():
    assert list(strength([]).columns) == ["scenario", "rate", "value", "n", "n_effective"]


def test_provenance_names_what_the_results_are_made_of(make):
    runs = [make(), make("clean-r0", profile="demo")]
    found = provenance(runs)
    assert found["profiles"] == ["demo", "tiny"]
    assert list(found["runs"]) == ["tiny/standard-s3-p33-r0", "demo/clean-r0"]
    for run in runs:
        stages = found["runs"][f"{run.profile}/{run.scenario}"]
        assert list(stages) == list(CHAIN)
        for stage, told in stages.items():
            record = run.load(stage)
            assert told["payload"] == record["payload"]
            assert told["made_from"] == record["made_from"]
            assert ("images" in told) == (stage == "attack")
            assert told["seconds"] == run.load(stage)["seconds"]
            assert told["code"].startswith(__version__)
    assert found["libraries"]["numpy"] == np.__version__
    assert found["runs_made_with"]["numpy"] == [np.__version__]
    assert json.loads(json.dumps(found)) == found


def test_networks_tell_what_training_made_and_who_was_heard(make):
    rates = {"acc": 99.0, "tpr": 90.0, "tnr": 100.0, "auroc": 99.0, "seconds": 1.0}
    rates |= {"n_tp": 18, "n_fn": 2, "n_tn": 40, "n_fp": 0}
    details = {"witnesses": ["evidence"], "n_strong": 12, "silhouette": 0.485}
    heard = make(methods={"poison_detector": rates | {"details": details}})
    silent = {"witnesses": [], "n_strong": 0, "silhouette": 0.541}
    missed = make("amplitude-a32-p33-r0", methods={"poison_detector": rates | {"details": silent}})
    other = make("clean-r0")
    found = results.networks([heard, missed, other]).set_index("scenario")
    assert found["witnesses"].tolist() == ["evidence", "nobody", None]
    assert found["n_strong"].tolist() == [12, 0, None]
    assert found["silhouette"].tolist() == [0.485, 0.541, None]
    assert found["n_poisoned"].tolist() == [20, 20, 0]
    assert found.loc["clean-r0", ["clean_accuracy", "asr", "attack_took"]].tolist() == [
        97.75, 100.0, None,
    ]  # fmt: skip


def test_localisation_has_one_row_per_run_and_composite(make):
    runs = [make(), make("clean-r0"), make("label_consistent-s3-p33-r0", seed=3)]
    seen = results.localisation(runs)
    assert (
        seen["scenario"].tolist() == ["standard-s3-p33-r0"] * 2 + ["label_consistent-s3-p33-r0"] * 2
    )
    assert seen["relevance mass on the trigger (%)"].tolist() == [50, 50, 53, 53]
    assert seen["heatmap, AUROC (%)"].dropna().tolist() == [99.5, 99.5]
    assert seen["composite"].tolist() == ["released", "gamma"] * 2
    assert "seconds" not in seen  # what is published of the same run must stay the same
    assert len(results.localisation(runs[1:2])) == 0


def test_two_methods_are_compared_image_by_image(make):
    run, other = make(), make("standard-s3-p33-r1")
    truth = np.arange(100) < 20
    cut = (truth != (np.arange(100) < 10)) | (np.arange(100) > 79)  # 10 missed, 20 accused
    arrays = {"truth": truth, "ids": np.arange(100)}
    arrays |= {"heatmap_poisoned": cut, "heatmap_score": cut * 1.0}
    arrays |= {"poison_detector_poisoned": truth, "poison_detector_score": truth * 1.0}
    run.save("detection", arrays, run.load("detection")["result"])
    found = results.paired([run, other])
    (row,) = found.to_dict("records")  # the other run has no such arrays
    assert (row["scenario"], row["n"], row["gain"]) == ("standard-s3-p33-r0", 100, 30)
    assert 15 < row["low"] < 30 < row["high"] < 45
    assert row["average_precision_poison_detector"] == 100
    assert row["average_precision_heatmap"] < 40
    assert results.paired([run], "heatmap", "poison_detector")["gain"].tolist() == [-30]


def test_runs_judged_with_other_settings_are_named(make):
    runs = [make(f"standard-s3-p33-r{r}") for r in range(3)]
    assert results.odd_settings(runs) == {} == results.odd_settings([])
    found = runs[1].load("detection")["result"]
    usual = {"scenario": "standard-s3-p33-r0", "epsilon": 0.1}
    for run, knobs in zip(runs, (usual, usual | {"epsilon": 0.001}, usual), strict=True):
        run.save("detection", {"scores": np.arange(3)}, found, parameters=knobs)
    assert results.odd_settings(runs) == {"standard-s3-p33-r1": {"epsilon": 0.001}}


def test_runs_of_other_images_are_named(make):
    runs = [make(f"standard-s3-p33-r{r}") for r in range(4)]
    assert results.odd_images(results.provenance(runs)) == {}
    for run, images in zip(runs, ("aaa", "bbb", "aaa", None), strict=True):
        run.save("attack", run.arrays("attack"), {"fingerprint": images} if images else {})
    told = results.provenance(runs)
    assert results.odd_images(told) == {"standard-s3-p33-r1": "bbb"}
    told["runs"]["demo/published"] = {"detection": {}}  # nobody noted them
    assert results.odd_images(told) == {"standard-s3-p33-r1": "bbb"}
