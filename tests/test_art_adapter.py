import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from suspects import HEATMAPS, TRUTH
from test_poison_detector import table

from nbsupport.art_adapter import ArtPoisonDetector
from nbsupport.baselines import CLUSTER_ANALYSES, ActivationClustering
from nbsupport.embedding_clustering import SpRAy
from nbsupport.heatmap_clustering import HeatmapClustering
from nbsupport.poison_detector import PoisonDetector

RNG = np.random.default_rng(0)
CENTRES = 8 * np.eye(4, 12)
LABELS = RNG.permutation(np.repeat([0, 1, 3], [70, 60, 50]))
POISON = (LABELS == 1) & (RNG.random(180) < 0.3)
X = CENTRES[np.where(POISON, 3, LABELS)] + RNG.normal(size=(180, 12))
RATES = ("TruePositive", "TrueNegative", "FalsePositive", "FalseNegative")


def make(**options):
    return ArtPoisonDetector(ActivationClustering(**options), X, LABELS)


def test_report_and_list_have_the_shape_of_the_toolbox():
    report, is_clean = make().detect_poison()
    assert isinstance(is_clean, list)
    assert {type(value) for value in is_clean} == {int}
    assert len(is_clean) == len(X)
    assert set(is_clean) == {0, 1}
    assert {name for name in report if name.startswith("Class_")} == {
        "Class_0", "Class_1", "Class_3",
    }  # fmt: skip
    for label in (0, 1, 3):
        clusters = report[f"Class_{label}"]
        assert set(clusters) == {"cluster_0", "cluster_1"}
        share = [cluster["ptc_data_in_cluster"] for cluster in clusters.values()]
        assert sum(share) == pytest.approx(1, abs=0.02)
        assert sum(cluster["suspicious_cluster"] for cluster in clusters.values()) == 1
    assert report["suspicious_clusters"] == 3
    assert report["cluster_analysis"] == "smaller"
    json.dumps(report)


def test_the_report_looks_alike_for_every_cluster_analysis():
    def names(part):
        return {k: names(v) for k, v in part.items()} if isinstance(part, dict) else None

    reports = [make(cluster_analysis=rule).detect_poison()[0] for rule in CLUSTER_ANALYSES]
    assert [report["cluster_analysis"] for report in reports] == list(CLUSTER_ANALYSES)
    for report in reports:
        assert names(report) == names(reports[0])


def test_a_class_without_poison_is_left_alone_by_a_detector_that_asks_for_presence():
    # Three images that stand out are too few to call a class poisoned.
    (poisoned, truth), (odd, _) = (table(n_poisoned=n, sides=2, seed=n) for n in (30, 3))
    order = np.random.default_rng(2).permutation(len(poisoned) + len(odd))
    rows, labels = np.concatenate([poisoned, odd])[order], np.repeat([4, 7], [530, 503])[order]
    report, is_clean = ArtPoisonDetector(PoisonDetector(), rows, labels).detect_poison()
    expected = np.concatenate([truth, np.zeros(503, bool)])[order]
    np.testing.assert_array_equal(np.array(is_clean) == 0, expected)
    assert report["suspicious_clusters"] == 1
    assert report["Class_4"] == {
        "cluster_0": {"ptc_data_in_cluster": 0.94, "suspicious_cluster": False},
        "cluster_1": {"ptc_data_in_cluster": 0.06, "suspicious_cluster": True},
    }
    assert report["Class_7"] == {
        "cluster_0": {"ptc_data_in_cluster": 1.0, "suspicious_cluster": False}
    }


def test_verdicts_keep_the_order_of_the_images():
    report, is_clean = make(cluster_analysis="distance").detect_poison()
    np.testing.assert_array_equal(np.array(is_clean) == 0, POISON)
    assert report["suspicious_clusters"] == 1
    order = np.random.default_rng(1).permutation(len(X))
    again = ArtPoisonDetector(
        ActivationClustering(cluster_analysis="distance"), X[order], LABELS[order]
    )
    np.testing.assert_array_equal(again.detect_poison()[1], np.array(is_clean)[order])
    alone = ActivationClustering(
        cluster_analysis="distance",
        other_classes=[np.median(X[k == LABELS], axis=0) for k in (0, 3)],
    ).fit(X[LABELS == 1])
    np.testing.assert_array_equal(alone.poisoned_, POISON[LABELS == 1])


def test_evaluation_counts_each_class():
    detector = make()
    is_clean = np.array(detector.detect_poison()[1])
    result = json.loads(detector.evaluate_defence(1 - POISON))
    assert set(result) == {"class_0", "class_1", "class_3"}
    for label in (0, 1, 3):
        rows = label == LABELS
        (tn, fp), (fn, tp) = confusion_matrix(POISON[rows], is_clean[rows] == 0, labels=[0, 1])
        counts = {
            "TruePositive": (tp, tp + fn), "TrueNegative": (tn, tn + fp),
            "FalsePositive": (fp, tn + fp), "FalseNegative": (fn, tp + fn),
        }  # fmt: skip
        found = result[f"class_{label}"]
        assert tuple(found) == RATES
        for name, (k, n) in counts.items():
            assert (found[name]["numerator"], found[name]["denominator"]) == (k, n)
            rate = pytest.approx(100 * k / n, abs=0.005) if n else -1
            assert found[name]["rate"] == rate
    assert result["class_0"]["TruePositive"]["rate"] == -1
    assert result["class_1"]["TruePositive"]["rate"] > 90


def test_one_hot_labels_are_labels():
    one_hot = np.eye(4)[LABELS]
    ours = ArtPoisonDetector(ActivationClustering(), X, one_hot)
    assert ours.detect_poison() == make().detect_poison()


def test_a_column_of_labels_is_no_one_hot_row():
    X, y = np.random.default_rng(0).normal(size=(12, 4)), np.repeat([0, 1, 3], 4)
    found = ArtPoisonDetector(ActivationClustering(), X, y[:, None])
    assert found.y_train.tolist() == y.tolist()
    with pytest.raises(ValueError, match="no one-hot vectors"):
        ArtPoisonDetector(ActivationClustering(), X, np.stack([y, y], axis=1))


def test_parameters_reach_the_estimator_and_unknown_ones_raise():
    detector = make()
    report, is_clean = detector.detect_poison(cluster_analysis="relative-size", size_threshold=0.4)
    assert report["cluster_analysis"] == detector.get_params()["cluster_analysis"]
    assert report["size_threshold"] == 0.4
    assert is_clean != make().detect_poison()[1]
    with pytest.raises(ValueError, match="Invalid parameter"):
        detector.detect_poison(nb_dims=3)


def test_a_class_too_small_to_split_is_named_and_kept():
    labels = LABELS.copy()
    labels[:1] = 9
    report, is_clean = ArtPoisonDetector(ActivationClustering(), X, labels).detect_poison()
    assert report["Class_9"] == {"skipped": "1 images cannot be split"}
    assert is_clean[0] == 1


@pytest.mark.parametrize("estimator", [HeatmapClustering("mean-distance"), SpRAy()])
def test_heatmap_detectors_can_be_wrapped(estimator):
    detector = ArtPoisonDetector(estimator, HEATMAPS, np.arange(len(HEATMAPS)) % 2)
    _, is_clean = detector.detect_poison()
    alone = estimator.fit(HEATMAPS[::2])
    np.testing.assert_array_equal(np.array(is_clean)[::2] == 0, alone.poisoned_)
    np.testing.assert_allclose(detector.score[::2], alone.decision_function(HEATMAPS[::2]))
    if isinstance(estimator, HeatmapClustering):
        assert (np.array(is_clean)[TRUTH] == 0).mean() > 0.9


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="180 rows in x_train for 10 labels"):
        ArtPoisonDetector(ActivationClustering(), X, LABELS[:10])
    with pytest.raises(ValueError, match="is_clean has shape"):
        make().evaluate_defence([1, 0])
    with pytest.raises(ValueError, match="0 and 1"):
        make().evaluate_defence(np.full(180, 2))
