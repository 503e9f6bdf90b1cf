import pandas as pd
from runs import detected, finish

from nbsupport import ROOT, audits, paper, results
from nbsupport.artifacts import Run
from nbsupport.scenarios import PROFILES, Scenario


def test_the_audit_of_the_paper_finds_what_is_wrong_and_nothing_else():
    found = audits.audit_paper().set_index(["where", "method"])
    assert set(found.index) == {
        ("Table 1, standard-s3-p10-r0", "activation"),
        ("Table 2, label_consistent-s3-p15-r0", "activation"),
        ("Table 2, label_consistent-s3-p15-r0", "heatmap"),
        ("Table 3, standard-s3-p33-r0", "raw_fastica"),
        ("Table 5, label_consistent-s3-p33-r0", "activation"),
        ("Table 5, sigma^2, label_consistent-s3-p33-r0", "heatmap"),
        ("Table 5, sigma^2, label_consistent-s3-p15-r0", "activation"),
        ("Table 5, sigma^2, label_consistent-s3-p15-r0", "heatmap"),
        ("Section 6.1.3", "attack"),
        ("caption of Fig. 2", "attack"),
    }
    known = {record.id for record in paper.ERRATA}
    assert set(found["erratum"]) <= known
    said = found["but"].to_dict()
    mislabelled = said["Table 2, label_consistent-s3-p15-r0", "heatmap"]
    assert "the three agree at 32.9 %" in mislabelled
    assert "at 15.0 %" in mislabelled
    assert "ACC 87.17" in said["Table 1, standard-s3-p10-r0", "activation"]
    assert "no number of images gives TNR" in said["Table 1, standard-s3-p10-r0", "activation"]
    assert "ACC 89.55" in said["Table 5, label_consistent-s3-p33-r0", "activation"]
    assert "at most 0.06 for ACC" in said["Table 5, sigma^2, label_consistent-s3-p33-r0", "heatmap"]
    assert said["Section 6.1.3", "attack"] == "Table 4 has 32, 64, 128"


def test_amplitudes_of_table_4_are_those_of_its_rows():
    rows = {Scenario.parse(r.scenario).amplitude for r in paper.TABLES if r.table == "4"}
    assert rows == set(paper.AMPLITUDES["Table 4"])


def test_the_audit_accepts_what_we_wrote_and_finds_a_changed_digit(tmp_path):
    run = Run(tmp_path / "runs", PROFILES["fast"], Scenario.parse("standard-s3-p33-r0"))
    counts = {"activation": (738, 75, 1596, 54), "heatmap": (812, 1, 1650, 0)}
    finish(run, {method: detected(*found) for method, found in counts.items()})
    table = results.collect([run]).assign(n_poisoned=813, n_class=2463)
    assert len(audits.audit_ours(table)) == 0
    path = tmp_path / "results.csv"
    results.write_csv(table, path)
    read = pd.read_csv(path)
    assert len(audits.audit_ours(read)) == 0
    for change in ({"tpr": 99.0}, {"n_tp": 811}, {"n_poisoned": 812}):
        found = audits.audit_ours(read.assign(**change))
        assert "heatmap" in set(found["method"]), change


def test_a_rate_near_the_middle_of_two_decimals_is_rounded_once(tmp_path):
    run = Run(tmp_path / "runs", PROFILES["fast"], Scenario.parse("label_consistent-s3-p02-r2"))
    finish(run, {"activation": detected(23, 10, 974, 643)})  # TNR 60.235003, not 60.235
    table = results.collect([run]).assign(n_poisoned=33, n_class=1650)
    results.write_csv(table, tmp_path / "results.csv")
    assert len(audits.audit_ours(pd.read_csv(tmp_path / "results.csv"))) == 0


def test_our_published_results_pass_the_audit():
    published = pd.read_csv(ROOT / "figures" / "results.csv")
    assert len(published) > 0
    assert audits.audit_ours(published).to_dict("records") == []
