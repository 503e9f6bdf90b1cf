import math

import pytest

from nbsupport import metrics, paper
from nbsupport.scenarios import PAPER, Scenario

ROWS = paper.TABLES + paper.THESIS_STICKER_SIZES + paper.THESIS_FULL_AMPLITUDE


def test_every_cell_of_tables_1_to_4_is_there():
    cells = [row.table for row in paper.TABLES]
    assert [cells.count(table) for table in "1234"] == [10, 10, 2, 6]


def test_each_scenario_and_method_is_printed_once():
    keys = [(row.scenario, row.method) for row in paper.TABLES]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.scenario}/{row.method}")
def test_ids_and_sizes_agree_with_the_scenarios(row):
    scenario = Scenario.parse(row.scenario)
    assert str(scenario) == row.scenario
    assert row.n_poisoned == scenario.n_poisoned(paper.N_CLASS)
    added = 0 if scenario.label_consistent else row.n_poisoned
    assert row.n_class == paper.N_CLASS + added
    # p is the share of the attacked class, to the image.
    share = 100 * row.n_poisoned / row.n_class
    assert share == pytest.approx(100 * float(scenario.share), abs=0.06)


def test_table_rows_are_runs_of_the_paper():
    assert {row.scenario for row in paper.TABLES} <= set(PAPER)


def test_counts_fill_the_class():
    for row in (*ROWS, paper.THESIS_EUCLIDEAN):
        if row.counts:
            assert sum(vars(row.counts).values()) == row.n_class
            # The mislabelled row is the only one whose poison is not what its scenario says.
            assert (row.counts.tp + row.counts.fn == row.n_poisoned) == row.valid
            assert row.counts_from in ("log", "rates")


def test_published_finds_rows_by_id_or_scenario():
    row = paper.published("label_consistent-s3-p10-r0", "heatmap")
    assert (row.acc, row.tpr, row.tnr, row.masr, row.asr) == (99.82, 98.18, 100.0, 90.45, None)
    assert paper.published(Scenario.parse(row.scenario), "heatmap") is row
    assert paper.published("standard-s3-p33-r0", "raw_pca").tnr == 72.36
    assert paper.published("label_consistent-s3-p10-r1", "heatmap") is None
    assert paper.published("standard-s3-p33-r0", "spectral") is None


def test_the_mislabelled_row_keeps_its_print_and_is_marked():
    invalid = [row for row in paper.TABLES if not row.valid]
    assert {row.scenario for row in invalid} == {"label_consistent-s3-p15-r0"}
    assert [(row.acc, row.counts.tp, row.counts.fn) for row in invalid] == [
        (96.42, 485, 59),
        (98.91, 526, 18),
    ]
    assert {row.erratum for row in invalid} == {"table2-p15"}


def test_statistics_by_rate():
    printed = {(r.percent, r.method): r for r in paper.TABLE5}
    row = printed["33", "heatmap"]
    assert (row.acc, row.acc_std, row.runs) == (99.82, 0.19, 10)
    assert {percent for percent, _ in printed} == {"33", "15"}
    thesis = {(r.percent, r.method): r for r in paper.THESIS_STATISTICS}
    # Paper and thesis print the same numbers for different experiments.
    for printed in paper.TABLE5:
        other = thesis[printed.percent, printed.method]
        assert (printed.acc, printed.tpr_std) == (other.acc, other.tpr_std)
        assert (printed.attack, other.attack) == ("label_consistent", "standard")


def test_thesis_two_percent_row_is_a_standard_attack():
    row = next(r for r in paper.THESIS_STATISTICS if (r.percent, r.method) == ("02", "activation"))

    def attainable(n):
        return round(100 * round(row.tpr / 100 * n) / n, 3) == row.tpr

    assert attainable(5 * 34)
    assert not attainable(5 * 33)
    assert not attainable(10 * 33)


def test_per_class_hits_reproduce_every_printed_masr_as_macro_mean():
    printed = {r.scenario: r.masr for r in ROWS if r.masr is not None}
    assert set(paper.PER_CLASS_HITS) == set(printed)
    for scenario, hits in paper.PER_CLASS_HITS.items():
        rates = paper.per_class_rates(scenario)
        assert rates[15] == pytest.approx(100 * hits[15] / 210)
        assert (len(rates), hits[5], math.isnan(rates.pop(5))) == (43, None, True)
        assert all(0 <= rate <= 100 for rate in rates)
        assert sum(rates) / 42 == pytest.approx(printed[scenario], abs=0.005001)


def test_what_may_be_compared_is_the_print_unless_an_erratum_knows_better():
    for row in paper.TABLES:
        if not row.erratum:
            assert [row.comparable(r) for r in ("acc", "tpr", "tnr")] == [row.acc, row.tpr, row.tnr]
    misprint = paper.published("standard-s3-p10-r0", "activation")
    assert [misprint.comparable(r) for r in ("acc", "tpr", "tnr")] == [87.62, 96.17, 86.67]
    slip = paper.published("standard-s3-p33-r0", "raw_fastica")
    assert [slip.comparable(r) for r in ("acc", "tpr", "tnr")] == [63.13, 31.98, 78.48]
    other = paper.published("label_consistent-s3-p15-r0", "heatmap")
    assert all(math.isnan(other.comparable(r)) for r in ("acc", "tpr", "tnr"))
    means = {
        (row.percent, row.method): [row.comparable(r) for r in ("acc", "tpr", "tnr")]
        for row in paper.TABLE5
    }
    assert means["33", "activation"] == [89.55, 94.41, 87.16]
    assert means["15", "heatmap"][0] == 99.89
    thesis = [row for row in paper.THESIS_STATISTICS if math.isnan(row.comparable("acc"))]
    assert {(row.percent, row.method) for row in thesis} == {
        ("10", "heatmap"), ("05", "heatmap"), ("02", "heatmap"),
    }  # fmt: skip


def test_a_printed_rate_has_an_interval_of_its_own():
    row = paper.published("standard-s3-p33-r0", "heatmap")
    wilson = metrics.wilson(812, 813)
    assert row.interval("tpr").estimate == 99.88
    assert (row.interval("tpr").low, row.interval("tpr").high) == pytest.approx(
        (wilson.low, wilson.high), abs=0.01
    )
    assert row.interval("tnr") == metrics.wilson(1650, 1650)
    (mean,) = (r for r in paper.TABLE5 if (r.percent, r.method) == ("33", "activation"))
    # Ten runs whose TNR varies by ten points: their 11,060 images prove little.
    found = mean.interval("tnr")
    assert found.high - found.low == pytest.approx(2 * 2.26 * 9.96 / 3, rel=0.05)
    invalid = paper.published("label_consistent-s3-p15-r0", "heatmap")
    assert math.isnan(invalid.interval("tpr").low)


@pytest.mark.parametrize(("runs", "n", "hits"), [(5, 291, [1405]), (10, 248, [])])
def test_a_mean_of_table_5_fits_standard_attacks_alone(runs, n, hits):
    (row,) = (r for r in paper.TABLE5 if (r.percent, r.method) == ("15", "activation"))
    rates = {k: 100 * k / (runs * n) for k in range(runs * n + 1)}
    # Rounded or cut off, whichever.
    assert [k for k, rate in rates.items() if abs(rate - row.tpr) < 0.01] == hits


@pytest.mark.parametrize(
    ("percent", "method", "standard", "consistent"),
    [("33", "activation", 813, 544), ("33", "heatmap", 813, 544), ("15", "heatmap", 291, 248)],
)
def test_the_other_means_of_table_5_fit_both_attacks(percent, method, standard, consistent):
    (row,) = (r for r in paper.TABLE5 if (r.percent, r.method) == (percent, method))
    for n in (5 * standard, 10 * consistent):
        assert any(abs(100 * k / n - row.tpr) < 0.01 for k in range(n + 1))


def test_the_errata_tell_which_layer_the_released_clustering_reads():
    (record,) = (e for e in paper.ERRATA if e.id == "activation-layer")
    assert record.kind == "code"
    assert "logits" in record.wrong
    assert "Activation Clustering" in record.where


def test_errata_are_complete_and_referenced_ids_exist():
    ids = [record.id for record in paper.ERRATA]
    assert len(set(ids)) == len(ids)
    for record in paper.ERRATA:
        assert record.kind in ("arithmetic", "text", "code")
        assert all(vars(record).values()), record.id
    used = {row.erratum for row in (*ROWS, *paper.TABLE5, *paper.THESIS_STATISTICS)} - {""}
    assert used <= set(ids)
