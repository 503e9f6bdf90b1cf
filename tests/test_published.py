"""Rows of runs on other machines stay, and all published tables follow from published rows."""

import json

import pandas as pd
import pytest
from runs import finish

from nbsupport import ROOT, results, tables
from nbsupport.artifacts import ArtifactError, Run
from nbsupport.published import KEEP, TIDY, Published
from nbsupport.scenarios import PROFILES, Scenario

FIGURES = ROOT / "figures"
NEW, OLD = "standard-s3-p33-r0", "standard-s3-p33-r1"


@pytest.fixture
def make(tmp_path):
    def make(text, profile="tiny", **options):
        run = Run(tmp_path / "runs", PROFILES[profile], Scenario.parse(text))
        return finish(run, **options)

    return make


@pytest.fixture
def publish(tmp_path):
    """Publish runs as notebook 5 does, and open the folder on another machine."""
    folder = tmp_path / "figures"

    def publish(runs, keep="no", profile="tiny"):
        before = Published(folder, profile, runs, keep=keep)
        table = before.join("results", results.collect(runs))
        told, every = results.provenance(runs), before.join("networks", results.networks(runs))
        results.update_csv(table, folder / "results.csv")
        tables.export(every, "networks", folder, before.tell("networks", told))
        return table, every, folder

    return publish


def test_rows_of_other_machines_stay_beside_new_ones(make, publish):
    publish([make(OLD, seed=3), make("clean-r0")])
    table, every, folder = publish([make(NEW)], keep="yes")
    assert table["scenario"].tolist() == ["clean-r0"] * 2 + [NEW] * 2 + [OLD] * 2
    assert every["scenario"].tolist() == ["clean-r0", NEW, OLD]
    assert every["n_poisoned"].tolist() == [0, 20, 20]
    told = json.loads((folder / "networks.json").read_text())
    assert list(told["runs"]) == ["tiny/clean-r0", f"tiny/{NEW}", f"tiny/{OLD}"]
    assert told["runs"][f"tiny/{OLD}"]["training"]["seconds"] == 100
    # And once more, on a third machine that has nothing.
    third, _, _ = publish([], keep="yes")
    third, table = tables.in_order(third), tables.in_order(table)
    pd.testing.assert_frame_equal(third, table, check_dtype=False)


def test_a_run_made_anew_replaces_all_that_is_published_of_it(make, publish):
    _, _, folder = publish([make(NEW), make(OLD)])
    scans = pd.DataFrame({"scenario": [NEW, OLD], "accused": [9, 1]})
    tables.export(scans, "scans", folder, {"runs": {}, "profiles": ["tiny"]})
    newer = make(NEW, seed=5, methods=("heatmap",))
    table, _, _ = publish([newer], keep="yes")
    assert table.loc[table["scenario"] == NEW, ["method", "acc"]].to_numpy().tolist() == [
        ["heatmap", 95],
    ]  # fmt: skip
    scans = Published(folder, "tiny", [newer], keep="yes").join("scans", pd.DataFrame())
    assert scans.to_dict("records") == [{"scenario": OLD, "accused": 1}], "of the older network"


def test_a_published_run_is_not_replaced_before_it_is_finished(make, publish):
    publish([make(OLD, masr=77.0)])
    trained = make(OLD, masr=11.0)
    trained.path("detection").unlink()
    before = Published(publish([], keep="yes")[2], "tiny", [trained], keep="yes")
    assert before.join("networks", results.networks([trained]))["masr"].tolist() == [77.0]


def test_nothing_published_is_dropped_without_a_word(make, publish, tmp_path):
    publish([make(OLD)])
    files = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    words = f"holds 1 runs of profile 'tiny' that are not finished here, such as {OLD}.*KEEP=yes"
    with pytest.raises(ValueError, match=words):
        publish([make(NEW)], keep="ask")
    assert {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == files
    assert set(publish([make(OLD)], keep="ask")[0]["scenario"]) == {OLD}
    assert set(publish([make(NEW)], keep="no")[0]["scenario"]) == {NEW}


@pytest.mark.parametrize("keep", ["ask", "yes"])
def test_tables_of_another_profile_are_neither_mixed_in_nor_replaced(make, publish, keep):
    _, _, folder = publish([make(OLD)])
    words = "holds tables of profile 'tiny', which those of 'demo' would replace.*FIGURES="
    with pytest.raises(ValueError, match=words):
        Published(folder, "demo", [], keep=keep)
    assert len(Published(folder, "demo", [], keep="no").join("networks", pd.DataFrame())) == 0


def test_an_edited_table_is_refused_by_name(make, publish):
    _, _, folder = publish([make(OLD)])
    path = folder / "networks.csv"
    path.write_text(path.read_text().replace("88.5", "98.5"))
    with pytest.raises(ArtifactError, match=r"networks\.csv is not the table that networks\.json"):
        publish([], keep="yes")


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
            "gap": [12, None],
            "low": [0.5, None],
            "took": [True, None],
            "who": ["a, b", None],
        }
    ).astype({"gap": object, "took": object, "low": object})
    found = Published(tmp_path, "tiny", []).join("networks", rows)
    assert found["rate"].tolist() == [33.3333333, 100.0]
    assert found["whole"].dtype == float
    assert found["n"].dtype == int
    assert [str(v) for v in found["gap"]] == ["12", "None"]
    assert found["low"].isna().tolist() == [False, True]
    assert found["took"].tolist() == [True, None]
    assert found["who"].tolist() == ["a, b", None]
    tables.export(found, "networks", tmp_path, {"runs": {}, "profiles": ["tiny"]})
    again = Published(tmp_path, "tiny", [], keep="yes").join("networks", pd.DataFrame())
    first = (tmp_path / "networks.csv").read_bytes()
    tables.export(again, "networks", tmp_path, {"runs": {}, "profiles": ["tiny"]})
    assert (tmp_path / "networks.csv").read_bytes() == first


@pytest.fixture(scope="module")
def all_published():
    return Published(FIGURES, "fast", [], keep="yes")


@pytest.mark.parametrize("name", TIDY)
def test_every_published_run_says_where_it_comes_from(all_published, name):
    rows = all_published.join(name, pd.DataFrame())
    assert len(rows)
    beside = "detections" if name == "results" else name
    told = all_published.tell(beside, {"runs": {}, "profiles": [], "runs_made_with": {}})
    assert {f"fast/{run}" for run in rows["scenario"]} <= set(told["runs"])
    assert "torch" in told["runs_made_with"]


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5", "thesis"])
def test_published_comparisons_follow_from_published_rows(all_published, number, tmp_path):
    frames = [all_published.join(name, pd.DataFrame()) for name in ("results", "strength")]
    parts = [number] if number != "thesis" else ["thesis", "thesis, means"]
    cells = pd.concat([tables.compare(*frames, part) for part in parts])
    name = "thesis" if number == "thesis" else f"table{number}"
    for path in tables.export(cells, name, tmp_path, {"runs": {}})[:3]:
        assert path.read_text() == (FIGURES / path.name).read_text()


def test_published_scoreboard_and_detections_follow_from_published_rows(all_published, tmp_path):
    frames = [all_published.join(name, pd.DataFrame()) for name in ("results", "strength")]
    cells = pd.concat([tables.compare(*frames, number) for number in "12345"])
    methods = ("activation", "heatmap", "heatmap_restarts", "mixture", results.OURS)
    made = {"scoreboard": tables.scoreboard(cells)}
    made["detections"] = tables.detections(frames[0], methods)
    for name, table in made.items():
        for path in tables.export(table, name, tmp_path, {"runs": {}})[:3]:
            assert path.read_text() == (FIGURES / path.name).read_text()
