import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import RESULTS, detected, finish

from nbsupport import metrics, results, tables
from nbsupport.artifacts import Run, checksum
from nbsupport.results import OURS
from nbsupport.scenarios import EXTENDED, PAPER, PROFILES, Scenario

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(tmp_path):
    def make(text, **methods):
        poisoned = {m: counts for m, counts in methods.items() if isinstance(counts, tuple)}
        training = {name: value for name, value in methods.items() if name not in poisoned}
        run = Run(tmp_path / "runs", PROFILES["fast"], Scenario.parse(text))
        return finish(run, {m: detected(*c) for m, c in poisoned.items()}, **training)

    return make


def compared(runs, table, **options):
    return tables.compare(results.collect(runs), results.strength(runs), table, **options)


def cell(cells, method, rate, experiment=None):
    chosen = cells[(cells["method"] == method) & (cells["rate"] == rate)]
    if experiment:
        chosen = chosen[chosen["experiment"] == experiment]
    (row,) = chosen.to_dict("records")
    return row


def read_as(rate):
    """The rates of a weak attack, by class read: the same for all but the target."""
    by_class = [None if c == 5 else rate for c in range(43)]
    return {"masr": rate, "asr_per_class": by_class, "attack_took": False}


STANDARD = {"activation": (738, 75, 1596, 54), "heatmap": (812, 1, 1650, 0)}
"""The paper's own counts at 33 %: whoever repeats them must be told that nothing differs."""


@pytest.mark.parametrize("text", ["standard-s3-p15-resnet", "standard-s3-p15-released", "clean"])
def test_an_experiment_is_a_scenario_without_its_repetition(text):
    assert tables.experiment(f"{text}-r12") == text
    assert tables.experiment(text) == text


def test_cells_of_every_printed_table_are_there_without_any_run():
    nothing = results.collect([]), results.strength([])
    sizes = {table: len(tables.compare(*nothing, table)) for table in tables.PRINTED}
    # Experiments, with three rates of two methods and of ours, and an attack rate; Table 3: two
    # methods; Table 5 prints no attack rate; the thesis once more, one method without GW.
    assert sizes == {
        "1": 5 * 10, "2": 5 * 10, "3": 6, "4": 3 * 10, "5": 2 * 9,
        "thesis": 13 * 10 + 4, "thesis, means": 5 * 9,
    }  # fmt: skip
    cells = tables.compare(*nothing, "1")
    assert list(cells.columns) == tables.COLUMNS
    assert set(cells["verdict"]) == {"missing"}
    assert cells["ours"].isna().all()
    assert (cells["n_runs"] == 0).all()
    with pytest.raises(ValueError, match="no table is called '6'; choose one of 1, 2"):
        tables.compare(*nothing, "6")


def test_the_paper_held_against_itself_differs_nowhere(make):
    cells = compared([make("standard-s3-p33-r0", **STANDARD)], "1")
    mine = cells[(cells["experiment"] == "standard-s3-p33") & (cells["method"] != OURS)]
    # The attack of this run was tried on too few images to tell 100 % from 80.
    opened = mine[mine["verdict"] == "open"]
    assert opened["method"].tolist() == ["attack"]
    assert set(mine["verdict"].drop(opened.index)) == {"within"}
    assert mine["difference"].abs().max() < 0.006
    row = cell(cells, "heatmap", "tpr", "standard-s3-p33")
    wilson = metrics.wilson(812, 813)
    assert (row["paper"], row["n"], row["n_runs"]) == (99.88, 813, 1)
    assert (row["ours"], row["low"], row["high"]) == pytest.approx(
        (wilson.estimate, wilson.low, wilson.high)
    )
    assert math.isnan(row["sigma"])


def test_our_detector_is_held_against_the_proposal(make):
    runs = [make("standard-s3-p33-r0", mine=(813, 0, 1600, 50), **STANDARD)]
    cells = compared(runs, "1", ours="mine")
    row = cell(cells, "mine", "tnr", "standard-s3-p33")
    assert (row["paper"], row["verdict"]) == (100.0, "worse")
    assert row["difference"] == pytest.approx(-100 * 50 / 1650)
    assert "mine" not in set(compared(runs, "3", ours="mine")["method"])
    # The paper's method as ours is no second row.
    assert len(compared(runs, "1", ours="heatmap")) == 5 * 7


def test_better_and_worse_go_by_the_interval_of_the_difference(make):
    runs = [make("standard-s3-p15-r0", activation=(270, 21, 1650, 0), heatmap=(280, 11, 1650, 0))]
    cells = compared(runs, "1")
    found = {
        (m, r): cell(cells, m, r, "standard-s3-p15")["verdict"]
        for m in ("activation", "heatmap")
        for r in ("acc", "tpr", "tnr")
    }
    assert found == {
        ("activation", "acc"): "better", ("activation", "tpr"): "worse",
        ("activation", "tnr"): "better", ("heatmap", "acc"): "worse",
        ("heatmap", "tpr"): "worse", ("heatmap", "tnr"): "within",
    }  # fmt: skip


def test_a_few_images_of_difference_are_none(make):
    """One network against one: 809 of 813 beside the printed 812 shows nothing."""
    close = make("standard-s3-p33-r0", heatmap=(809, 4, 1650, 0))
    row = cell(compared([close], "1"), "heatmap", "tpr", "standard-s3-p33")
    assert row["high"] < row["paper"], "our interval alone would call it worse"
    assert row["difference_low"] < row["difference"] < 0 < row["difference_high"]
    assert row["verdict"] == "within"
    far = make("standard-s3-p15-r0", heatmap=(280, 11, 1650, 0))
    row = cell(compared([far], "1"), "heatmap", "tpr", "standard-s3-p15")
    assert row["difference_high"] < 0
    assert row["verdict"] == "worse"


def test_an_interval_that_says_too_little_agrees_with_nothing(make):
    """Two networks, 99.9 and 63.4 %, were said to agree with a print of 99.48 %."""
    steady = [(75, 12, 1648, 2), (75, 12, 1647, 3)]
    apart = [(75, 12, 1648, 2), (84, 3, 1010, 640)]
    for counts, verdict in ((steady, "within"), (apart, "open")):
        runs = [make(f"standard-s3-p05-r{r}", heatmap=each) for r, each in enumerate(counts)]
        row = cell(compared(runs, "1"), "heatmap", "acc", "standard-s3-p05")
        assert row["difference_low"] < 0 < row["difference_high"]
        assert (row["verdict"] == "open") == (
            row["difference_high"] - row["difference_low"] > tables.WIDE
        )
        assert row["verdict"] == verdict


def test_a_row_of_another_experiment_is_shown_and_not_compared(make):
    runs = [make("label_consistent-s3-p15-r0", heatmap=(240, 8, 1402, 0), masr=83.15)]
    cells = compared(runs, "2")
    row = cell(cells, "heatmap", "tpr", "label_consistent-s3-p15")
    assert (row["printed"], row["verdict"], row["note"]) == (96.69, "no value", "table2-p15")
    assert math.isnan(row["paper"])
    assert row["ours"] == pytest.approx(100 * 240 / 248)
    attack = cell(cells, "attack", "masr", "label_consistent-s3-p15")
    assert (attack["verdict"], attack["note"]) == ("no value", "table2-p15")
    text = tables.readable(cells)
    assert "(96.69)" in set(text["paper"])


def test_a_corrected_print_is_compared_as_corrected():
    nothing = results.collect([]), results.strength([])
    row = cell(tables.compare(*nothing, "1"), "activation", "tnr", "standard-s3-p10")
    assert (row["printed"], row["paper"], row["note"]) == (86.17, 86.67, "table1-p10")
    mean = cell(tables.compare(*nothing, "5"), "activation", "acc", "label_consistent-s3-p33")
    assert (mean["printed"], mean["paper"], mean["paper_sigma"]) == (90.36, 89.55, 6.81)
    assert "86.67 (86.17)" in set(tables.readable(tables.compare(*nothing, "1"))["paper"])


def test_repetitions_are_taken_together_with_their_spread(make):
    hits = (544, 540, 500)
    runs = [
        make(f"label_consistent-s3-p33-r{r}", heatmap=(tp, 544 - tp, 1106, 0))
        for r, tp in enumerate(hits)
    ]
    cells = compared(runs, "5")
    row = cell(cells, "heatmap", "tpr", "label_consistent-s3-p33")
    rates = [100 * tp / 544 for tp in hits]
    assert row["ours"] == pytest.approx(np.mean(rates))
    assert row["sigma"] == pytest.approx(np.std(rates))
    assert (row["n"], row["n_runs"], row["paper_sigma"]) == (3 * 544, 3, 0.58)
    assert row["note"] == "table5-setting; 3 of 10 runs"
    # The runs differ by far more than 544 images explain: the plain interval would be too narrow.
    plain = metrics.wilson(sum(hits), 3 * 544)
    assert row["low"] < plain.low - 1
    assert row["high"] > plain.high
    same = cell(compared(runs, "2"), "heatmap", "tpr", "label_consistent-s3-p33")
    assert same["ours"] == row["ours"]
    assert tables.missing(results.collect(runs), "5")[0] == "label_consistent-s3-p33-r3"


def rates_of(cells, method, experiment):
    return cells[(cells["experiment"] == experiment) & (cells["method"] == method)]


def test_an_attack_that_failed_here_alone_makes_its_detection_weak(make):
    weak = make("standard-s3-p02-r0", heatmap=(0, 34, 1650, 0), asr=69.0, attack_took=False)
    cells = compared([weak], "1")
    row = cell(cells, "heatmap", "acc", "standard-s3-p02")
    assert (row["verdict"], row["paper"]) == ("weak", 52.85)
    assert row["note"] == "attack did not take in 1 of 1 runs"
    assert cell(cells, "attack", "asr", "standard-s3-p02")["verdict"] == "worse"
    # The paper's own attack of amplitude 32 did not take either: there is something to compare.
    for strength, verdict in ((25.65, "within"), (7.0, "worse")):
        run = make("amplitude-a32-p33-r0", heatmap=(318, 226, 1028, 78), **read_as(strength))
        cells = compared([run], "4")
        assert set(rates_of(cells, "heatmap", "amplitude-a32-p33")["verdict"]) == {"within"}
        assert cell(cells, "attack", "masr", "amplitude-a32-p33")["verdict"] == verdict


def test_runs_whose_attack_failed_are_left_out_where_another_took(make):
    failed = make("standard-s3-p02-r0", heatmap=(0, 34, 1650, 0), asr=69.0, attack_took=False)
    took = make("standard-s3-p02-r1", heatmap=(17, 17, 1650, 0), asr=99.0)
    found = rates_of(compared([failed, took], "1"), "heatmap", "standard-s3-p02")
    assert set(found["n_runs"]) == {1}
    assert set(found["note"]) == {"attack did not take in 1 of 2 runs, left out"}
    tpr = found[found["rate"] == "tpr"].iloc[0]
    assert (tpr["ours"], tpr["n"], tpr["verdict"]) == (50.0, 34, "better")


def test_a_failed_attack_is_weak_also_where_its_printed_strength_is_of_another_run(make):
    failed = make("label_consistent-s3-p15-r0", heatmap=(200, 91, 1359, 0), **read_as(20.0))
    found = compared([failed], "5")
    found = found[(found["experiment"] == "label_consistent-s3-p15") & (found["n_runs"] > 0)]
    assert set(found["verdict"]) == {"weak"}


def test_euclidean_clustering_of_the_thesis_is_held_against_ours(make):
    run = make("standard-s3-p33-r0", heatmap_euclidean=(97, 716, 1650, 0))
    found = rates_of(compared([run], "thesis"), "heatmap_euclidean", "standard-s3-p33")
    tpr = found[found["rate"] == "tpr"].iloc[0]
    assert (tpr["paper"], round(tpr["ours"], 2), tpr["verdict"]) == (52.52, 11.93, "worse")


def test_missing_names_what_the_paper_needs():
    nothing = results.collect([])
    names = [run for table in "12345" for run in tables.missing(nothing, table)]
    assert set(names) == set(PAPER)
    assert tables.missing(nothing, "3") == ["standard-s3-p33-r0"]


def test_the_extended_set_is_what_the_thesis_asks_for():
    nothing = results.collect([])
    asked = [run for t in ("thesis", "thesis, means") for run in tables.missing(nothing, t)]
    assert set(asked) - set(PAPER) == set(EXTENDED)


def test_experiments_are_ranked_as_in_the_paper():
    names = [
        "standard-s3-p33", "standard-s3-p05", "standard-s1-p15", "label_consistent-s3-p02",
        "amplitude-a128-p33", "amplitude-a64-p33", "amplitude-a32-p33",
    ]  # fmt: skip
    assert tables.ranked(sorted(names) * 2) == names


@pytest.mark.parametrize(
    ("k", "n", "text"),
    [(0, 0, "–"), (3, 3, "100"), (9994, 10000, "99.9"), (9996, 10000, "99.96"),
     (99998, 100000, "99.99"), (1, 3, "33.3")],
)  # fmt: skip
def test_100_stands_for_all_of_them(k, n, text):
    assert tables._share(k, n) == text


def test_scoreboard_counts_every_cell_once(make):
    cells = compared([make("standard-s3-p33-r0", **STANDARD)], "1")
    board = tables.scoreboard(cells).set_index("method")
    assert list(board.index) == ["attack", "activation", "heatmap", OURS]
    assert board["cells"].tolist() == [5, 15, 15, 15]
    assert (board[list(tables.VERDICTS)].sum(axis=1) == board["cells"]).all()
    assert board.loc["heatmap", ["within", "missing"]].tolist() == [3, 12]


def test_scoreboard_is_written_with_its_picture_and_origin(make, tmp_path):
    run = make("standard-s3-p33-r0", **STANDARD)
    cells = compared([run], "1")
    out = tmp_path / "out"
    board, fig = tables.publish_scoreboard(cells, out, results.provenance([run]))
    assert {p.name for p in out.iterdir()} == {
        f"scoreboard.{kind}" for kind in ("csv", "md", "tex", "pdf", "png", "json")
    }
    assert "Heatmap Clustering" in (out / "scoreboard.md").read_text()
    note = json.loads((out / "scoreboard.json").read_text())
    assert set(note["files"]) == {f"scoreboard.{k}" for k in ("csv", "md", "tex", "pdf", "png")}
    assert all(checksum(out / name) == digest for name, digest in note["files"].items())
    assert list(note["runs"]) == ["fast/standard-s3-p33-r0"]
    written = [int(text.get_text() or 0) for text in fig.axes[0].texts]
    assert sum(written) == board["cells"].sum() == 50


def test_export_writes_numbers_texts_and_the_runs_it_is_made_from(make, tmp_path):
    mine, other = make("standard-s3-p33-r0", **STANDARD), make("clean-r0")
    cells = compared([mine], "1")
    paths = tables.export(cells, "table1", tmp_path / "out", results.provenance([mine, other]))
    assert [p.name for p in paths] == ["table1.csv", "table1.md", "table1.tex", "table1.json"]
    read = pd.read_csv(paths[0])
    assert list(read.columns) == tables.COLUMNS
    assert len(read) == 50
    *lines, empty, absent = paths[1].read_text().splitlines()
    assert len(lines) == 2 + 7, "the finished experiment alone: attack and two methods"
    assert len({line.count("|") for line in lines}) == 1
    assert (empty, absent) == (
        "", "Not finished: standard-s3-p15, standard-s3-p10, standard-s3-p05, standard-s3-p02."
    )  # fmt: skip
    told = "TPR | 99.88 | 99.88 (99.31 to 99.98) | +0.00 (-0.58 to +0.57) | 813 | 1 | within |"
    assert f"| standard-s3-p33 | Heatmap Clustering | {told}" in paths[1].read_text()
    latex = paths[2].read_text()
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    assert "ours (95 \\%)" in latex
    assert latex.startswith("% Needs the packages booktabs and longtable, a landscape page")
    assert "_" not in latex.replace(r"\_", "")
    note = json.loads(paths[3].read_text())
    stages = note["runs"].pop("fast/standard-s3-p33-r0")
    assert note["runs"] == {}, "clean-r0 is no part of Table 1"
    assert stages["training"]["device"] == "cuda"
    assert stages["training"]["seconds"] == 100
    first = [path.read_bytes() for path in paths]
    tables.export(cells, "table1", tmp_path / "out", results.provenance([mine, other]))
    assert [path.read_bytes() for path in paths] == first


def test_spreads_are_shown_where_there_are_any(make):
    runs = [make(f"label_consistent-s3-p33-r{r}", heatmap=(540, 4, 1106, 0)) for r in (0, 1)]
    text = tables.readable(compared(runs, "5"))
    row = text[(text["method"] == "Heatmap Clustering") & (text["rate"] == "TPR")].iloc[0]
    assert (row["σ, paper"], row["σ, ours"], row["runs"]) == ("0.58", "0.00", "2")
    single = tables.readable(compared([make("standard-s3-p33-r0", **STANDARD)], "1"))
    assert "σ, ours" not in single


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.tex")), ids=lambda p: p.stem)
def test_published_latex_compiles_as_it_is_and_stays_on_the_page(path):
    needs, begin, *lines = path.read_text().splitlines()
    assert needs.startswith("% Needs the packages booktabs")
    strange = {letter for letter in path.read_text() if ord(letter) > 127}
    assert strange <= {"–"}, "pdfLaTeX knows no other letter by itself"
    columns = re.fullmatch(r"\\begin\{(?:tabular|longtable)\}\{([lp{}\d.em]+)\}", begin)[1]
    kinds = re.findall(r"l|p\{16em\}", columns)
    for line in lines:
        cells = line.removesuffix(r" \\").split(" & ")
        assert len(cells) in (1, len(kinds))
        for kind, cell in zip(kinds, cells if len(cells) > 1 else [], strict=False):
            assert kind != "l" or len(cell.replace("\\", "")) < 50, "a line that nothing breaks"


def test_styled_shows_what_is_finished_and_names_the_rest(make):
    cells = compared([make("standard-s3-p33-r0", **STANDARD)], "1")
    html = tables.styled(cells, "Table 1").to_html()
    assert "Heatmap Clustering" in html
    assert "not finished: standard-s3-p15, standard-s3-p10" in html
    assert html.count("<td") == 10 * 7 - 3 * 7, "nothing of ours is there, so no row of it"
    assert html == tables.styled(cells, "Table 1").to_html()
    nothing = tables.compare(results.collect([]), results.strength([]), "3")
    assert "not finished: standard-s3-p33" in tables.styled(nothing, "Table 3").to_html()


def test_any_table_can_be_exported_with_the_runs_it_names(make, tmp_path):
    runs = [make("standard-s3-p33-r0", **STANDARD), make("standard-s3-p15-r0", **STANDARD)]
    seen = results.localisation(runs[:1])
    paths = tables.export(seen, "localisation", tmp_path, results.provenance(runs))
    assert pd.read_csv(paths[0])["composite"].tolist() == ["released", "gamma"]
    # Numbers are written out in the CSV alone.
    assert "| 50.00 | 100.00 |" in paths[1].read_text()
    assert list(json.loads(paths[-1].read_text())["runs"]) == ["fast/standard-s3-p33-r0"]


def test_rows_go_by_scenario_and_ours_come_last():
    methods = ["poison_detector", "heatmap", "raw_pca", "activation"]
    names = ["standard-s3-p33-r0", "amplitude-a64-p33-r0"]
    rows = pd.DataFrame([{"scenario": n, "method": m} for n in names for m in methods])
    assert tables.in_order(rows).to_numpy().tolist() == [
        [name, method]
        for name in reversed(names)
        for method in ("raw_pca", "activation", "heatmap", "poison_detector")
    ]


def test_detections_count_the_images_of_all_repetitions(make):
    perfect = dict.fromkeys(("activation", "heatmap"), (34, 0, 1650, 0))
    runs = [
        make(
            "amplitude-a64-p33-r0", **perfect, poison_detector=(30, 4, 1650, 0), attack_took=False
        ),
        make("standard-s3-p02-r1", **perfect, poison_detector=(34, 0, 1650, 0), asr=90.0),
        make("standard-s3-p02-r0", **perfect, poison_detector=(33, 1, 1649, 1), asr=80.0),
        make("standard-s3-p15-r0", **STANDARD),
        make("clean-r0"),
    ]
    shown = tables.detections(results.collect(runs))
    # The one without our detector is left out; the order is the paper's.
    assert shown["experiment"].tolist() == ["standard-s3-p02", "amplitude-a64-p33"]
    rare, faint = shown.to_dict("records")
    assert (rare["networks"], rare["attack"], rare["missed"]) == (2, "ASR 85.0", "1 of 68")
    assert rare["false alarms"] == "1 of 3300"
    assert rare["HC, here"] == "100 / 100 / 100"
    # 3,366 of 3,368 and 3,299 of 3,300 are not 100 %.
    assert rare["PoisonDetector"] == "99.9 / 98.5 / 99.97"
    assert rare["HC, printed"] == "52.9 / 0.0 / 53.9"
    assert rare["poisoned"] == "20 of 60 (0.12 % of all)"
    assert faint["attack"] == "MASR 88.5 *"
    text = tables.detections(results.collect(runs[1:2]), ["heatmap"])
    assert text["missed"].tolist() == ["0 of 34"]
    # A network that was not judged by all of them counts nowhere.
    partly = make("standard-s3-p02-r2", poison_detector=(0, 34, 1650, 0), asr=0.0)
    (line, _) = tables.detections(results.collect([*runs, partly])).to_dict("records")
    assert line == rare
    # A row whose printed numbers belong to another experiment has none to show.
    wrong = make("label_consistent-s3-p15-r0", heatmap=(34, 0, 1650, 0))
    (line,) = tables.detections(results.collect([wrong]), ["heatmap"]).to_dict("records")
    assert line["HC, printed"] == "–"


def test_a_first_check_that_is_silent_loses_what_the_second_would_find(make):
    halves, perfect = (20, 0, 20, 20), (20, 0, 40, 0)
    runs = [
        # Smaller groups of 40 and of 20 of 60 images: only the second is below 35 %.
        make("standard-s3-p05-r0", activation=halves, heatmap=perfect, poison_detector=perfect),
        make(
            "standard-s3-p05-r1", activation=perfect, heatmap=(5, 15, 30, 10),
            poison_detector=(0, 20, 40, 0),
        ),
        make("standard-s3-p15-r0", activation=perfect, heatmap=perfect),
        make("clean-r0"),
    ]  # fmt: skip
    found = results.collect(runs)
    (line,) = tables.first_check(found).to_dict("records")  # the other run lacks our detector
    assert line == {
        "experiment": "standard-s3-p05",
        "networks": 2,
        "rings": "1 of 2",
        "smaller group (%)": "33.3 to 66.7",
        "Heatmap Clustering": "62.5 / 87.5",
        "Heatmap Clustering, if AC rings": "12.5 / 87.5",
        "PoisonDetector": "50.0 / 100",
        "PoisonDetector, if AC rings": "0.0 / 100",
    }
    always = tables.first_check(found, ["heatmap"], alarm=0.7)
    assert always["rings"].tolist() == ["1 of 1", "2 of 2"]
    assert (always["Heatmap Clustering"] == always["Heatmap Clustering, if AC rings"]).all()
    # A network that was not judged by all of them is no silent one.
    both = [runs[2], make("standard-s3-p15-r1", heatmap=(0, 20, 40, 0))]
    (line,) = tables.first_check(results.collect(both), ["heatmap"]).to_dict("records")
    assert (line["networks"], line["Heatmap Clustering, if AC rings"]) == (1, "100 / 100")
    # Who accuses nobody has no smaller group, and does not ring.
    nobody = make("standard-s3-p33-r0", activation=(0, 20, 40, 0), heatmap=perfect)
    (line,) = tables.first_check(results.collect([nobody]), ["heatmap"]).to_dict("records")
    assert (line["rings"], line["Heatmap Clustering, if AC rings"]) == ("0 of 1", "0.0 / 100")
    for alarm in (0, 1, 35):
        with pytest.raises(ValueError, match=f"alarm is {alarm}; give a share"):
            tables.first_check(found, alarm=alarm)


@pytest.mark.parametrize(
    ("name", "page"), [("detections", "figures/README.md"), ("scoreboard", "README.md")]
)
def test_tables_in_the_readmes_are_the_published_ones(name, page):
    published = (ROOT / "figures" / f"{name}.md").read_text()
    assert published in (ROOT / page).read_text(), f"copy figures/{name}.md to its place in {page}"


def test_the_short_table_of_the_readme_is_part_of_the_published_one():
    full = pd.read_csv(ROOT / "figures" / "detections.csv")
    wanted = {tables.experiment(run) for run in PAPER}
    columns = ["experiment", "attack", "Activation Clustering", "HC, printed", "HC, here"]
    columns += ["PoisonDetector"]
    short = full.loc[full["experiment"].isin(wanted), columns]
    assert len(short) == len(wanted)
    lines = "".join(f"| {' | '.join(line)} |\n" for line in short.to_numpy())
    assert lines in (ROOT / "README.md").read_text(), f"put these into README.md:\n{lines}"


def test_comparison_sets_ours_beside_the_paper():
    table = tables.comparison(RESULTS)
    row = table[(table.method == "heatmap") & (table.rate == "tpr")].iloc[0]
    assert (row.paper, row.n, row.note) == (99.88, 813, "")
    assert row.ours == pytest.approx(100 * 812 / 813)
    assert row.difference == pytest.approx(row.ours - 99.88)
    assert row.low < row.ours < row.high


def test_comparison_has_no_value_for_the_mislabelled_row():
    other = RESULTS.assign(scenario="label_consistent-s3-p15-r0")
    table = tables.comparison(other)
    assert table.paper.isna().all()
    assert table.difference.isna().all()
    assert set(table.note) == {"table2-p15"}


def test_results_table_reads_well():
    table = tables.comparison(RESULTS)
    html = tables.results_table(table, caption="As printed").to_html()
    for text in ("As printed", "Heatmap Clustering", "99.88", "2,463", "99.31 to 99.98"):
        assert text in html
    assert html == tables.results_table(table, caption="As printed").to_html()
    with pytest.raises(ValueError, match="occur twice"):
        tables.results_table(pd.concat([table, table]))


def test_what_has_no_value_is_a_dash(tmp_path):
    table = pd.DataFrame({"low": [1.5, math.nan], "target": [5, None]}, dtype=object)
    paths = tables.export(table, "gaps", tmp_path, {"runs": {}})
    csv, markdown, latex, _ = (path.read_text() for path in paths)
    assert csv.splitlines()[2] == ","
    assert markdown.splitlines()[-1] == "| – | – |"
    assert "NaN" not in latex
    assert "None" not in latex


def test_a_rate_of_no_images_is_none(make):
    methods = ("activation", "heatmap", "mixture", OURS)
    run = make("standard-s3-p15-r0", **dict.fromkeys(methods, (1, 0, 60, 0)))
    (line,) = tables.detections(results.collect([run]).assign(n_tp=0)).to_dict("records")
    assert line["PoisonDetector"] == "100 / – / 100"
