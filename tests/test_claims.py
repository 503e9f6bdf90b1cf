import pandas as pd
import pytest

from nbsupport import ROOT, claims
from nbsupport.claims import CLAIMS, HOLDS, NOT, OPEN, PARTLY


def network(scenario, took=True, asr=100.0, masr=90.0, n=(544, 1650), **methods):
    """Make rows of results.csv; a method is (acc, tpr, tnr), (.., auroc) or with seconds too."""
    about = {
        "scenario": scenario, "attack_took": took, "asr": asr, "masr": masr,
        "n_poisoned": n[0], "n_class": n[1], "n_tp": 0, "n_fn": n[0],
        "amplitude": int(scenario.split("-a")[1].split("-")[0]) if "-a" in scenario else 0,
    }  # fmt: skip
    names = ("acc", "tpr", "tnr", "auroc", "seconds", "n_tp", "n_fn")
    defaults = (0.0, 0.0, 0.0, 90.0, 1.0)
    return [
        about | dict(zip(names, defaults)) | dict(zip(names, rates)) | {"method": method}  # noqa: B905
        for method, rates in methods.items()
    ]


def answer(start, *networks):
    """Ask the claim whose sentence begins so."""
    table = claims.ledger(pd.DataFrame([row for rows in networks for row in rows]))
    (row,) = table[table["the paper says"].str.startswith(start)].to_dict("records")
    return row["verdict"], row["here"]


PERFECT, GOOD, POOR = (100.0, 100.0, 100.0), (99.0, 97.0, 100.0), (60.0, 20.0, 80.0)


def test_nothing_is_said_where_nothing_is_finished():
    nothing = pd.DataFrame(network("standard-s3-p15-r0", heatmap=GOOD)).iloc[:0]
    told = claims.ledger(nothing)
    assert len(told) == len(CLAIMS)
    assert set(told["verdict"]) == {OPEN}
    assert set(told["here"]) == {""}


def test_networks_that_the_paper_does_not_have_have_no_say():
    others = ("blended-a20-p15-r0", "standard-s3-p15-resnet-r0", "standard-s1-p15-r0")
    rows = [network(name, heatmap=GOOD, activation=POOR) for name in others]
    assert answer("Heatmap Clustering consistently", *rows) == (OPEN, "")
    verdict, here = answer(
        "Heatmap Clustering consistently",
        *rows,
        network("standard-s3-p15-r3", heatmap=GOOD, activation=POOR),
    )
    assert (verdict, here) == (HOLDS, "higher ACC in 1 of 1 networks whose attack took")


def test_always_better_is_not_better_nearly_always():
    ahead = network("standard-s3-p15-r0", heatmap=GOOD, activation=POOR)
    behind = network("amplitude-a128-p33-r0", heatmap=POOR, activation=GOOD)
    failed = network("amplitude-a64-p33-r0", took=False, heatmap=POOR, activation=GOOD)
    ask = "Heatmap Clustering consistently"
    assert answer(ask, ahead)[0] == HOLDS
    assert answer(ask, behind)[0] == NOT
    verdict, here = answer(ask, ahead, behind, failed)
    assert verdict == PARTLY
    assert here == (
        "higher ACC in 1 of 2 networks whose attack took, in 0 of 1 others; behind on "
        "amplitude-a128-p33-r0"
    )


@pytest.mark.parametrize(("found", "verdict"), [((0, 34), HOLDS), ((2, 32), HOLDS), ((30, 4), NOT)])
def test_none_at_two_percent_leaves_room_for_a_few(found, verdict):
    rows = network(
        "standard-s3-p02-r0",
        heatmap=(53.0, 0.0, 54.0, 9.0, 1.0, *found),
        activation=(53.0, 0.0, 54.0, 9.0, 1.0, *found),
    )
    told, here = answer("For both detection algorithms", rows)
    assert told == verdict
    share = f"finds {found[0]} of 34 ({found[0]} of 34 where the attack took)"
    assert here.startswith(f"Heatmap Clustering {share}; Activation Clustering {share}; ")


def test_at_two_percent_networks_whose_attack_failed_are_told_apart():
    worked, failed = (
        network(
            f"standard-s3-p02-r{r}", took=r == 0, heatmap=(53.0, 0.0, 54.0, 9.0, 1.0, n, 34 - n)
        )
        for r, n in enumerate((2, 5))
    )
    here = answer("For both detection algorithms", worked, failed)[1]
    assert here.startswith("Heatmap Clustering finds 7 of 68 (2 of 34 where the attack took);")


def test_spread_needs_repetitions():
    ask = "the standard deviation of the accuracy"
    steady, restless = (99.0, 99.2), (99.0, 80.0)
    rows = [
        network(f"label_consistent-s3-p33-r{r}", heatmap=(a, 99.0, 100.0), activation=(b, b, 100.0))
        for r, (a, b) in enumerate(zip(steady, restless, strict=True))
    ]
    assert answer(ask, rows[0]) == (OPEN, "")
    assert answer(ask, *rows) == (
        HOLDS,
        "label-consistent: 9.50 against 0.10 at 33 % (2 networks); 30 times would do, in print it "
        "is 36 and 63",
    )
    twenty = network(
        "label_consistent-s3-p33-r1", heatmap=(99.2, 9.0, 9.0), activation=(95.0, 9.0, 9.0)
    )
    assert answer(ask, rows[0], twenty)[0] == NOT, "20 times are no two orders, nor nearly"
    assert answer("Most of this effect", *rows)[0] == NOT
    steady = [
        network(f"label_consistent-s3-p33-r{r}", heatmap=GOOD, activation=GOOD) for r in (0, 1)
    ]
    assert answer(ask, *steady)[0] == NOT, "of no spread nothing is 30 times"
    assert answer("a clear advantage", *rows)[0] == NOT, "a tie in one network"
    rows[0] = network("label_consistent-s3-p33-r0", heatmap=(99.0, 99.5, 100.0), activation=GOOD)
    assert answer("a clear advantage", *rows)[0] == PARTLY, "a tie in the accuracy"
    rows[0] = network("label_consistent-s3-p33-r0", heatmap=(99.4, 99.5, 100.0), activation=GOOD)
    assert answer("a clear advantage", *rows)[0] == PARTLY, "a tie in the TNR, if at 100"
    rows = [
        network(f"label_consistent-s3-p33-r{r}", heatmap=PERFECT, activation=POOR) for r in range(2)
    ]
    assert answer("a clear advantage", *rows)[0] == HOLDS


def standard(percent, **more):
    return network(f"standard-s3-p{percent}-r0", **more)


RAW = {"n": (813, 2463), "raw_pca": (65.0, 51.0, 72.0), "raw_fastica": (63.0, 32.0, 78.0)}


@pytest.mark.parametrize(
    ("sentence", "right", "wrong"),
    [
        ("in both cases the accuracy", standard("33", **RAW),
         standard("33", **RAW | dict.fromkeys(("raw_pca", "raw_fastica"), POOR))),
        ("using PCA performs better", standard("33", **RAW),
         standard("33", raw_pca=(60.0, 32.0, 80.0), raw_fastica=(60.0, 51.0, 80.0))),
        ("the attack success rate for all", standard("10", heatmap=GOOD),
         standard("10", asr=98.0, heatmap=GOOD)),
        ("both accuracy and true positive", standard("10", heatmap=GOOD),
         standard("10", heatmap=(98.9, 89.0, 100.0))),
        ("both accuracy and true positive", standard("10", heatmap=GOOD),
         standard("10", heatmap=(97.0, 95.0, 97.5))),
        ("Heatmap clustering has a close", standard("05", heatmap=GOOD),
         standard("05", heatmap=(99.0, 99.0, 98.9))),
        ("For 33%, 15% and 10%", standard("10", activation=GOOD),
         standard("10", activation=(99.0, 90.0, 100.0))),
    ],
)  # fmt: skip
def test_each_rule_tells_right_from_wrong(sentence, right, wrong):
    assert answer(sentence, right)[0] == HOLDS
    assert answer(sentence, wrong)[0] == NOT
    failed = network("amplitude-a64-p33-r0", took=False, heatmap=POOR)
    assert answer(sentence, failed)[0] == OPEN, "of another attack"


@pytest.mark.parametrize(("rank", "verdict"), [(50.0, HOLDS), (90.0, NOT), (5.0, NOT)])
def test_spectral_signatures_are_judged_on_label_consistent_poison(rank, verdict):
    plain = standard("15", spectral=(50.0, 50.0, 50.0, 95.0))
    consistent = network("label_consistent-s3-p15-r0", spectral=(50.0, 50.0, 50.0, rank))
    told, here = answer("[on Clever Hans artifacts]", plain, consistent)
    assert told == verdict
    assert here.startswith(f"as an inference: AUROC {rank} on label-consistent, 95.0 on standard")
    assert answer("[on Clever Hans artifacts]", consistent)[0] == OPEN


def test_the_spread_may_come_from_the_tnr():
    rows = [
        network(f"label_consistent-s3-p33-r{r}", heatmap=GOOD, activation=(a, 97.0 + r / 10, a))
        for r, a in enumerate((99.0, 80.0))
    ]
    verdict, here = answer("Most of this effect", *rows)
    assert (verdict, here) == (
        HOLDS, "label-consistent: 9.50 beside 0.05 of the TPR at 33 %",
    )  # fmt: skip


def test_sentences_on_label_consistent_poison_leave_out_no_rate():
    often = network("label_consistent-s3-p15-r0", heatmap=PERFECT, activation=GOOD)
    rare = network("label_consistent-s3-p02-r0", heatmap=POOR, activation=POOR)
    failed = network("label_consistent-s3-p02-r1", took=False, heatmap=POOR, activation=POOR)
    for sentence, told in {
        "when considering label": "ACC of 95 or more in {} (60.0 to 99.0)",
        "both detection methods": "both ACC 95 or more in {}",
        "HC is missing a few": "both higher in {}",
    }.items():
        apart = "1 of 1 networks above 2 %, 0 of 1 at 2 %"
        assert answer(sentence, often, rare, failed) == (PARTLY, told.format(apart))
        assert answer(sentence, often)[0] == HOLDS
        assert answer(sentence, rare)[0] == NOT


def test_the_true_negative_rates_are_compared_network_by_network():
    ask = "the true negative rate for Activation"
    high = network("standard-s3-p15-r0", heatmap=PERFECT, activation=GOOD)
    low = network("standard-s3-p05-r0", heatmap=PERFECT, activation=POOR)
    verdict, here = answer(ask, high, low)
    assert verdict == PARTLY
    assert here == (
        "lower by more than a point in 1 of 2 networks (mean, AC and HC: 100.0 and 100.0 at 15 %; "
        "80.0 and 100.0 at 5 %)"
    )
    assert answer(ask, low)[0] == HOLDS
    assert answer(ask, high)[0] == NOT


def test_only_attacks_that_took_prove_that_one_can_be_detected():
    ask = "The assumption"
    took = network("amplitude-a128-p33-r0", heatmap=POOR, activation=GOOD)
    failed = network("amplitude-a32-p33-r0", took=False, heatmap=GOOD, activation=GOOD)
    verdict, here = answer(ask, took, failed)
    assert verdict == HOLDS
    assert here == (
        "Activation and Heatmap Clustering at 128: ACC 99.0 and 60.0; 32: ACC 99.0 and 99.0 (the "
        "attack did not take); accusing nobody: 67.0"
    )
    assert answer(ask, failed)[0] == OPEN
    took = network("amplitude-a128-p33-r0", heatmap=POOR, activation=POOR)
    assert answer(ask, took, failed)[0] == NOT


def test_the_decay_of_the_masr_asks_for_all_amplitudes():
    ask = "reducing the amplitude"
    rows = {
        a: network(f"amplitude-a{a}-p33-r0", masr=masr, heatmap=GOOD)
        for a, masr in ((128, 80.0), (64, 60.0), (32, 50.0))
    }
    assert answer(ask, rows[128], rows[32]) == (OPEN, "")
    assert answer(ask, *rows.values())[0] == PARTLY, "it falls, and by less than half"
    rows[32] = network("amplitude-a32-p33-r0", masr=10.0, heatmap=GOOD)
    assert answer(ask, *rows.values()) == (HOLDS, "mean MASR 80.0 at 128, 60.0 at 64, 10.0 at 32")


def test_a_distance_sets_apart_whichever_group_is_called_poison():
    ask = "we get a better distance"
    turned = network("standard-s3-p15-r0", heatmap=(*GOOD, 5.0), heatmap_euclidean=(*GOOD, 90.0))
    still = network("amplitude-a64-p33-r0", heatmap=(*GOOD, 55.0), heatmap_euclidean=(*GOOD, 99.0))
    assert answer(ask, turned)[0] == HOLDS
    assert answer(ask, still)[0] == OPEN, "the sentence is about different positions"
    rare = network("standard-s3-p02-r0", heatmap=(*GOOD, 55.0), heatmap_euclidean=(*GOOD, 99.0))
    assert answer(ask, turned, rare)[0] == PARTLY, "rare poison counts as well"
    verdict, here = answer(ask, turned, still)
    assert verdict == HOLDS
    assert here.endswith(
        "1 of 1 with triggers in different positions, 0 of 1 with triggers in one position "
        "(networks)"
    )


def test_every_claim_is_answered_from_what_is_published():
    told = claims.ledger(pd.read_csv(ROOT / "figures" / "results.csv"))
    assert OPEN not in set(told["verdict"])
    assert set(told["verdict"]) == {HOLDS, PARTLY, NOT}
    assert told["here"].str.contains(r"\d").all(), "a verdict shows its numbers"
    assert not told["here"].str.contains("nan").any()
    assert told["the paper says"].is_unique
