"""Rows of runs on other machines stay, and all published tables follow from published rows."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from nbsupport import ROOT, claims, results, tables
from nbsupport.artifacts import CHAIN, STAGES, ArtifactError
from nbsupport.published import KEEP, TIDY, Published

FIGURES = ROOT / "figures"
NEW, OLD = "standard-s3-p33-r0", "standard-s3-p33-r1"


@pytest.fixture
def publish(tmp_path):
    """Publish rows of runs as notebook 5 does."""
    folder = tmp_path / "figures"

    def publish(runs, keep="no"):
        before = Published(folder, "tiny", runs, keep=keep)
        whole, told = [run for run in runs if run.has("detection")], results.provenance(runs, ())
        told["profiles"] = ["tiny"]
        told["runs"] = {
            f"tiny/{run.scenario}": {
                stage: {"version": STAGES[stage].version, "payload": run.load(stage)["payload"]}
                for stage in CHAIN
                if run.has(stage)
            }
            for run in runs
        }
        rows = {
            "results": results.collect(whole),
            "strength": results.strength(whole),
            "networks": results.networks(runs),
        }
        joined = {name: before.join(name, each) for name, each in rows.items()}
        for name, table in joined.items():
            tables.export(table, name, folder, before.tell(name, told))
        return joined, before, folder

    return publish


def side(folder, name, runs, **columns):
    """Publish a side road of some runs."""
    rows = pd.DataFrame({"scenario": runs} | columns)
    tables.export(rows, name, folder, {"runs": {}, "profiles": ["tiny"]})


def save_scan(run, labels, per_class):
    made_from = (run, "attack"), (run, "training")
    run.save("scan", {"label": np.arange(labels)}, {"per_class": per_class}, made_from=made_from)


def test_rows_of_other_machines_stay_beside_new_ones(make, publish):
    publish([make(OLD, seed=3), make("clean-r0")])
    joined, _, folder = publish([make(NEW)], keep="yes")
    assert joined["results"]["scenario"].tolist() == ["clean-r0"] * 2 + [NEW] * 2 + [OLD] * 2
    assert joined["networks"]["scenario"].tolist() == ["clean-r0", NEW, OLD]
    assert joined["networks"]["n_poisoned"].tolist() == [0, 20, 20]
    told = json.loads((folder / "networks.json").read_text())
    assert list(told["runs"]) == ["tiny/clean-r0", f"tiny/{NEW}", f"tiny/{OLD}"]
    # And once more, on a third machine that has nothing: the same files.
    files = {path: path.read_bytes() for path in folder.iterdir()}
    _, before, _ = publish([], keep="yes")
    assert str(before) == "3 published networks stay beside them"
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_a_run_made_anew_replaces_what_is_published_of_it(make, publish):
    publish([make(NEW), make(OLD)])
    newer = make(NEW, seed=5, methods=("heatmap",))
    joined, before, folder = publish([newer], keep="yes")
    table = joined["results"]
    assert table.loc[table["scenario"] == NEW, ["method", "acc"]].to_numpy().tolist() == [
        ["heatmap", 95],
    ]  # fmt: skip
    assert (before.kept, before.lacking) == ({OLD}, {})
    told = json.loads((folder / "results.json").read_text())["runs"][f"tiny/{NEW}"]
    assert told["detection"]["payload"] == newer.load("detection")["payload"]


def test_what_is_published_of_a_run_stays_until_all_of_it_is_made_anew(make, publish):
    joined, _, folder = publish([make(NEW, masr=77.0), make(OLD)])
    side(folder, "scans", [NEW, OLD], classes=[3, 3], per_class=[400, 400], accused=[9, 1])
    before_told = json.loads((folder / "networks.json").read_text())["runs"][f"tiny/{NEW}"]
    again = make(NEW, masr=11.0, seed=4)
    for _ in range(2):  # and what was written does not change the answer
        joined, before, _ = publish([again], keep="yes")
        assert joined["networks"]["masr"].tolist() == [77.0, 88.5]
        assert joined["results"]["acc"].tolist() == [90, 91, 90, 91]
        assert before.join("scans", pd.DataFrame())["accused"].tolist() == [9, 1]
        assert before.lacking == {NEW: ["scans"]}
        assert f"what is published of {NEW} stays: here it has not all of it yet (scans)" in str(
            before
        )
        told = json.loads((folder / "networks.json").read_text())["runs"][f"tiny/{NEW}"]
        assert told == before_told, "the provenance is that of the rows"
    for labels, per_class in ((2, 400), (3, 30)):  # part of what is published
        save_scan(again, labels, per_class)
        assert publish([again], keep="yes")[1].lacking == {NEW: ["scans"]}
    side(folder, "scans", [NEW, OLD], classes=[3, 3], per_class=[400, 400], target=[5, 5])
    save_scan(again, 3, 400)  # as many classes, and not the one that was attacked
    assert publish([again], keep="yes")[1].lacking == {NEW: ["scans"]}
    side(folder, "scans", [NEW, OLD], classes=[3, 3], per_class=[400, 400], target=["", 5])
    joined, before, _ = publish([again], keep="yes")
    assert joined["networks"]["masr"].tolist() == [11.0, 88.5]
    assert before.join("scans", pd.DataFrame())["scenario"].tolist() == [OLD]


def test_a_table_that_only_the_newer_network_has_waits_for_the_others(make, publish):
    _, _, folder = publish([make(NEW)])
    side(folder, "scans", [NEW], classes=[3], per_class=[400], accused=[9])
    before = publish([make(NEW, seed=4)], keep="yes")[1]
    assert before.lacking == {NEW: ["scans"]}
    ablation = pd.DataFrame({"scenario": [NEW], "auroc": [50.0]})
    assert len(before.join("ablation", ablation)) == 0
    assert before.sweep() == []


def test_networks_after_detection_stay_until_every_filter_is_there(make, publish):
    _, _, folder = publish([make(NEW)])
    side(folder, "after_detection", [NEW] * 3, filter=["before", "perfect", "random"])
    again = make(NEW, seed=4)
    for name, lacking in (("perfect", {NEW: ["after_detection"]}), ("random", {})):
        place = f"retrained/{name}"
        again.save(f"{place}/filter", {"ids": np.arange(2)}, {}, made_from=((again, "detection"),))
        made_from = (again, "attack"), (again, f"{place}/filter")
        again.save(f"{place}/training", {"w": torch.ones(1)}, {}, made_from=made_from)
        assert Published(folder, "tiny", [again], keep="yes").lacking == lacking
    # A choice of images that is not sound any more makes its network worthless.
    again.path("retrained/random/filter").write_text("{")
    lacking = {NEW: ["after_detection"]}
    assert Published(folder, "tiny", [again], keep="yes").lacking == lacking


def test_a_run_in_training_may_be_published_again_and_again(make, publish):
    run = make(NEW, masr=11.0)
    run.path("detection").unlink()
    for masr in (11.0, 12.0):
        training = run.load("training")["result"] | {"masr": masr}
        run.save("training", {"w": torch.ones(1)}, training, made_from=((run, "attack"),))
        joined, before, _ = publish([run], keep="ask")
        assert joined["networks"]["masr"].tolist() == [masr]
        assert before.kept == set()


def test_nothing_published_is_dropped_without_a_word(make, publish, tmp_path):
    publish([make(OLD)])
    files = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    words = f"holds 1 runs of profile 'tiny' that are not finished here, such as {OLD}.*KEEP=yes"
    with pytest.raises(ValueError, match=words):
        publish([make(NEW)], keep="ask")
    assert {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == files
    assert set(publish([make(OLD)], keep="ask")[0]["results"]["scenario"]) == {OLD}
    assert set(publish([make(NEW)], keep="no")[0]["results"]["scenario"]) == {NEW}


def test_dropped_tables_leave_no_files(make, publish):
    _, _, folder = publish([make(OLD)])
    side(folder, "scans", [OLD], accused=[1])
    before = Published(folder, "demo", [], keep="no")
    for name in TIDY:
        before.join(name, pd.DataFrame())
    gone = before.sweep()
    assert {"scans.csv", "scans.json", "results.csv", "networks.md"} <= set(gone)
    assert list(folder.iterdir()) == []
    assert Published(folder, "tiny", [], keep="ask").kept == set()


@pytest.mark.parametrize("keep", ["ask", "yes"])
def test_tables_of_another_profile_are_neither_mixed_in_nor_replaced(make, publish, keep):
    _, _, folder = publish([make(OLD)])
    words = "is of profile 'tiny', and a folder holds one profile.*FIGURES=.*by 'demo'"
    with pytest.raises(ValueError, match=words):
        Published(folder, "demo", [], keep=keep)
    assert len(Published(folder, "demo", [], keep="no").join("networks", pd.DataFrame())) == 0


def test_a_run_of_another_profile_replaces_nothing(make, publish):
    _, _, folder = publish([make(OLD)])
    assert Published(folder, "tiny", [make(OLD, profile="demo")], keep="yes").kept == {OLD}


@pytest.mark.parametrize("name", ["results", "strength", "networks"])
def test_an_edited_table_is_refused_by_name(make, publish, name):
    _, _, folder = publish([make(OLD)])
    path = folder / f"{name}.csv"
    path.write_text(path.read_text().replace("88.5", "98.5"))
    with pytest.raises(ArtifactError, match=rf"{name}\.csv is not the table that {name}\.json"):
        publish([], keep="yes")
    path.with_suffix(".json").unlink()
    with pytest.raises(ArtifactError, match=rf"{name}\.csv is not the table that {name}\.json"):
        publish([], keep="yes")


def test_half_a_collection_is_refused_by_name(make, publish):
    _, _, folder = publish([make(OLD)])
    side(folder, "scans", [OLD], classes=[3], per_class=[400])
    for name in ("strength", "scans"):
        held = (folder / f"{name}.csv").read_bytes()
        (folder / f"{name}.csv").unlink()
        with pytest.raises(ArtifactError, match=rf"{name}\.csv is gone, of which {name}\.json"):
            publish([], keep="yes")
        (folder / f"{name}.csv").write_bytes(held)
    (folder / "strength.csv").unlink()
    (folder / "strength.json").unlink()
    with pytest.raises(ArtifactError, match=rf"strength\.csv lacks {OLD}, which results\.csv has"):
        publish([], keep="yes")
    (folder / "strength.json").write_text("<<<<<<< HEAD")
    with pytest.raises(ArtifactError, match=r"strength\.json is no JSON"):
        publish([], keep="yes")
    assert publish([make(NEW)], keep="no")[1].kept == set()


def test_rows_of_an_older_version_are_named(make, publish, monkeypatch):
    publish([make(OLD)])
    stage = replace(STAGES["detection"], version=99)
    monkeypatch.setitem(STAGES, "detection", stage)
    _, before, _ = publish([], keep="yes")
    assert before.older == {OLD: ["detection"]}
    assert f"beware: {OLD} is published from an older version of detection" in str(before)


def test_rows_of_an_older_side_stage_are_named(make, publish, monkeypatch):
    _, _, folder = publish([make(OLD)])
    told = {"runs": {f"tiny/{OLD}": {"scan": {"version": STAGES["scan"].version}}}}
    table = pd.DataFrame({"scenario": [OLD], "classes": [3]})
    tables.export(table, "scans", folder, {**told, "profiles": ["tiny"]})
    assert Published(folder, "tiny", [], keep="yes").older == {}
    monkeypatch.setitem(STAGES, "scan", replace(STAGES["scan"], version=99))
    assert Published(folder, "tiny", [], keep="yes").older == {OLD: ["scan"]}


@pytest.mark.parametrize("keep", ["True", "", "maybe"])
def test_another_word_names_the_choices(tmp_path, keep):
    with pytest.raises(ValueError, match=r"keep is .*; choose 'ask', 'yes', 'no'"):
        Published(tmp_path, "tiny", [], keep=keep)
    assert set(KEEP) == {"ask", "yes", "no"}


def test_another_table_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"no tidy table is called 'table1'.*strength"):
        Published(tmp_path, "tiny", []).join("table1", pd.DataFrame())


def test_numbers_are_those_that_the_file_will_hold(tmp_path):
    rows = pd.DataFrame(
        {
            "scenario": [NEW, OLD],
            "rate": [100 / 3, 100.0],
            "whole": [100.0, 100.0],
            "n": [12, 7],
            "n_strong": [12, None],
            "low": [0.5, None],
            "took": [True, None],
            "who": ["a, b", None],
        }
    ).astype({"n_strong": object, "took": object, "low": object})
    found = Published(tmp_path, "tiny", []).join("networks", rows)
    assert found["rate"].tolist() == [33.3333333, 100.0]
    assert found["whole"].dtype == float
    assert found["n"].dtype == int
    assert [str(v) for v in found["n_strong"]] == ["12", "None"]
    assert found["low"].isna().tolist() == [False, True]
    assert found["took"].tolist() == [True, None]
    assert found["who"].tolist() == ["a, b", None]
    tables.export(found, "networks", tmp_path, {"runs": {}, "profiles": ["tiny"]})
    again = Published(tmp_path, "tiny", [], keep="yes").join("networks", pd.DataFrame())
    first = (tmp_path / "networks.csv").read_bytes()
    tables.export(again, "networks", tmp_path, {"runs": {}, "profiles": ["tiny"]})
    assert (tmp_path / "networks.csv").read_bytes() == first


def test_a_table_made_from_others_names_all_their_runs(make, publish):
    """The ledger was published by a machine with a few runs, and named these alone ever after."""
    publish([make(OLD, seed=3)])
    _, before, _ = publish([make(NEW)], keep="yes")
    empty = {"runs": {}, "profiles": [], "runs_made_with": {}}
    assert list(before.tell("a table of today", empty)["runs"]) == [f"tiny/{OLD}"]
    assert before.tell("scans", empty)["runs"] == {}, "a tidy table has rows of its own"


@pytest.mark.parametrize(
    "name", ["claims", "scoreboard", "detections", "detection_rates", "first_check"]
)
def test_what_is_made_from_all_results_names_all_their_runs(name):
    rows = pd.read_csv(FIGURES / "results.csv")
    told = json.loads((FIGURES / f"{name}.json").read_text())["runs"]
    assert {f"fast/{run}" for run in rows["scenario"]} == set(told)


@pytest.fixture(scope="module")
def all_published():
    return Published(FIGURES, "fast", [], keep="yes")


@pytest.mark.parametrize("name", TIDY)
def test_every_published_run_says_where_it_comes_from(all_published, name):
    rows = all_published.join(name, pd.DataFrame())
    assert len(rows)
    told = all_published.tell(name, {"runs": {}, "profiles": [], "runs_made_with": {}})
    assert {f"fast/{run}" for run in rows["scenario"]} <= set(told["runs"])
    assert all_published.older == {}, "published again from today's versions"
    assert "torch" in told["runs_made_with"]


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5", "thesis"])
def test_published_comparisons_follow_from_published_rows(all_published, number, tmp_path):
    frames = [all_published.join(name, pd.DataFrame()) for name in ("results", "strength")]
    parts = [number] if number != "thesis" else ["thesis", "thesis, means"]
    cells = pd.concat([tables.compare(*frames, part) for part in parts])
    name = "thesis" if number == "thesis" else f"table{number}"
    for path in tables.export(cells, name, tmp_path, {"runs": {}})[:3]:
        assert path.read_text() == (FIGURES / path.name).read_text()


def test_published_summaries_follow_from_published_rows(all_published, tmp_path):
    frames = [all_published.join(name, pd.DataFrame()) for name in ("results", "strength")]
    cells = pd.concat([tables.compare(*frames, number) for number in "12345"])
    made = {"scoreboard": tables.scoreboard(cells)}
    made["detections"] = tables.detections(frames[0])
    made["first_check"] = tables.first_check(frames[0])
    made["claims"] = claims.ledger(frames[0])
    for name, table in made.items():
        for path in tables.export(table, name, tmp_path, {"runs": {}})[:3]:
            assert path.read_text() == (FIGURES / path.name).read_text()
