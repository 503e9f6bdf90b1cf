import json
import warnings

import numpy as np
import pytest
import torch
from suspects import INPUTS, TRUTH, N

from nbsupport import detection, metrics
from nbsupport.data import Split
from nbsupport.detection import METHODS, DetectionInputs, controls, detect, judge
from nbsupport.evidence import Evidence


@pytest.mark.parametrize("method", METHODS)
def test_detect_speaks_of_each_id(method):
    result = detect(method, INPUTS)
    assert result.score.shape == result.poisoned.shape == result.ids.shape == (N,)
    assert result.details["n_flagged"] == result.poisoned.sum()
    json.dumps(result.details)
    order = np.random.default_rng(1).permutation(N)
    again = detect(method, INPUTS.select(order))
    verdict = dict(zip(again.ids.tolist(), again.poisoned.tolist(), strict=True))
    assert [verdict[i] for i in result.ids.tolist()] == result.poisoned.tolist()


def test_some_of_the_inputs_by_mask_or_by_number():
    rows = np.flatnonzero(TRUTH)
    for some in (INPUTS.select(TRUTH), INPUTS.select(rows)):
        assert some.ids.tolist() == INPUTS.ids[rows].tolist()
        for name in ("images", "activations", "logits", "evidence"):
            assert np.array_equal(getattr(some, name), getattr(INPUTS, name)[rows])
        assert np.array_equal(some.heatmaps["gamma"], INPUTS.heatmaps["gamma"][rows])
    bare = DetectionInputs(range(3), logits=np.eye(3)).select([2, 0])
    assert (bare.ids.tolist(), bare.images, bare.heatmaps) == ([2, 0], None, {})


def test_detect_takes_the_closed_form_only_above_the_threshold():
    details = detect("heatmap", INPUTS).details
    assert details["metric"] == "mean-distance"
    assert details["epsilon"] > details["epsilon_star"]
    near = detect("heatmap", INPUTS, epsilon=1.2 * details["epsilon_star"]).details
    assert near["metric"] == "gw", "just above eps* a mean may keep its shape"
    solved = detect("heatmap", INPUTS, epsilon=0.2 * details["epsilon_star"]).details
    assert solved["metric"] == "gw"


def test_heatmap_clustering_starts_once_as_released_and_ten_times_for_comparison():
    released, best = (detect(m, INPUTS).details for m in ("heatmap", "heatmap_restarts"))
    told = {name: released[name] for name in ("start", "n_init", "max_iter")}
    assert told == {"start": "released", "n_init": 1, "max_iter": 20}
    assert released["n_iter"] <= 20
    assert (best["metric"], best["start"], best["converged"]) == (
        "mean-distance", "k-means++", True,
    )  # fmt: skip
    assert {best["n_init"], METHODS["heatmap_restarts"].estimator.n_init} == {10}, "the solver too"
    # Two pixels with masses q and 1 - q have the mean distance 2 q (1 - q). Four maps far from a
    # wide crowd: the sum of costs is least where they stand alone, but one start ends in the crowd.
    distance = np.r_[np.full(4, 0.06), np.linspace(0.3, 0.46, 95)]
    maps = np.zeros((99, 32, 32))
    maps[:, 4, 4] = (1 - np.sqrt(1 - 2 * distance)) / 2
    maps[:, 20, 20] = 1 - maps[:, 4, 4]
    far = DetectionInputs(np.arange(99), heatmaps={"released": maps})
    assert detect("heatmap_restarts", far, metric="mean-distance").poisoned.nonzero()[
        0
    ].tolist() == [0, 1, 2, 3]
    for seed in range(3):
        lucky = detect("heatmap", far, metric="mean-distance", random_state=seed)
        assert lucky.poisoned.sum() > 25, "one start finds the best cut here too"


def test_inputs_are_what_the_relevance_artefact_holds_by_id():
    rng = np.random.default_rng(0)
    maps = {name: rng.normal(size=(4, 6, 6)) for name in ("squared", "gamma")}
    names = ("row", "column", "margin", "occluded", "answer", "gain", "carried")
    column = {name: rng.normal(size=4 if name == "margin" else (4, 1)) for name in names}
    found = Evidence((3,), **column)
    explained = {
        "ids": np.array([7, 2, 9, 4]),
        "activations": rng.normal(size=(4, 5)),
        "logits": rng.normal(size=(4, 3)),
    }
    arrays = explained | {f"heatmaps_{name}": m for name, m in maps.items()} | found.arrays()
    inputs = DetectionInputs.from_arrays(arrays)
    order = [1, 3, 0, 2]
    assert inputs.ids.tolist() == [2, 4, 7, 9]
    assert inputs.images is None
    for name in ("activations", "logits"):
        assert np.array_equal(getattr(inputs, name), arrays[name][order])
    assert set(inputs.heatmaps) == {"squared", "gamma"}
    assert np.array_equal(inputs.heatmaps["gamma"], maps["gamma"][order])
    told = found.table(maps["squared"], arrays["activations"])
    assert np.array_equal(inputs.evidence, told[order])

    shuffled = torch.tensor([9, 7, 4, 2])
    pictures = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    split = Split(pictures, torch.zeros(4, dtype=torch.int64), shuffled, shuffled)
    assert DetectionInputs.from_arrays(arrays, split).images.flatten().tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="4 other images than the 3 given"):
        DetectionInputs.from_arrays(arrays, split.select([0, 1, 2]))


def test_detect_says_what_is_missing():
    empty = DetectionInputs(np.arange(N))
    with pytest.raises(ValueError, match="needs images"):
        detect("raw_pca", empty)
    with pytest.raises(ValueError, match="composite 'released'"):
        detect("heatmap", empty)
    with pytest.raises(ValueError, match="composite 'flat'"):
        detect("mixture", INPUTS, composite="flat")
    with pytest.raises(ValueError, match="means nothing"):
        detect("activation", INPUTS, composite="gamma")
    with pytest.raises(ValueError, match="choose one of"):
        detect("heatmaps", INPUTS)
    with pytest.raises(ValueError, match="Invalid parameter"):
        detect("activation", INPUTS, nb_dims=3)
    with pytest.raises(ValueError, match="unique"):
        DetectionInputs(np.array([1, 1]))
    with pytest.raises(ValueError, match="3 rows for 2 ids"):
        DetectionInputs(np.array([1, 2]), activations=np.zeros((3, 2)))


def test_the_presence_test_goes_into_the_record():
    details = detect("poison_detector", INPUTS).details
    assert (details["present"], details["n_strong"], details["n_flagged"]) == (True, 18, 18)
    clean = DetectionInputs(INPUTS.ids[18:], evidence=INPUTS.evidence[18:])
    found = detect("poison_detector", clean)
    assert not found.details["present"]
    assert not found.poisoned.any()


def test_prototypes_are_never_fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detect("activation", INPUTS)
    assert not hasattr(METHODS["activation"].estimator, "labels_")


def test_arrays_among_the_parameters_are_recorded_by_shape():
    others = INPUTS.activations[:2] + 50
    details = detect(
        "activation", INPUTS, cluster_analysis="distance", other_classes=others
    ).details
    assert details["other_classes"] == f"array of shape {others.shape}"
    json.dumps(details)
    details = detect("heatmap", INPUTS, device=torch.device("cpu")).details
    assert json.loads(json.dumps(details))["device"] == "cpu"


def test_what_a_reader_chose_is_asked_again():
    details = detect("heatmap", INPUTS, epsilon=0.02, share=0.9).details
    assert detection.chosen({"details": details}) == {"epsilon": 0.02, "share": 0.9}
    assert detection.chosen({}) == {}


def test_numbers_of_numpy_among_the_parameters_can_be_recorded():
    details = detect("activation", INPUTS, random_state=np.int64(3)).details
    assert json.loads(json.dumps(details))["random_state"] == 3


def test_judge_joins_the_truth_by_id():
    result = detect("heatmap", INPUTS)
    row = judge(result, INPUTS.ids, TRUTH)
    counts = metrics.confusion(TRUTH, result.poisoned)
    assert {name: row[name] for name in counts.record()} == counts.record()
    assert row["auroc"] == 100 * metrics.auroc(TRUTH, result.score)
    assert (row["seconds"], row["details"]) == (result.seconds, result.details)
    order = np.random.default_rng(0).permutation(N)
    assert judge(result, INPUTS.ids[order], TRUTH[order]) == row
    with pytest.raises(ValueError, match="different images"):
        judge(result, INPUTS.ids + 1, TRUTH)


def test_controls_stand_in_the_same_table_as_the_methods():
    found = controls(INPUTS.ids, TRUTH, rng=np.random.default_rng(0))
    rows = {name: judge(result, INPUTS.ids, TRUTH) for name, result in found.items()}
    assert {tuple(row) for row in rows.values()} == {
        tuple(judge(detect("spectral", INPUTS), INPUTS.ids, TRUTH))
    }
    assert (rows["perfect"]["acc"], rows["perfect"]["auroc"]) == (100, 100)
    assert (rows["none"]["tpr"], rows["none"]["tnr"], rows["none"]["auroc"]) == (0, 100, 50)
    random = rows["random"]
    assert random["n_tp"] + random["n_fp"] == TRUTH.sum()
    assert random["n_tp"] < TRUTH.sum()
    json.dumps(rows)


def test_random_filter_is_right_by_chance_only():
    rng = np.random.default_rng(0)
    rows = [
        judge(controls(INPUTS.ids, TRUTH, rng=rng)["random"], INPUTS.ids, TRUTH) for _ in range(200)
    ]
    auroc = np.array([row["auroc"] for row in rows])
    assert abs(auroc.mean() - 50) < 4 * auroc.std() / np.sqrt(len(auroc))
    assert np.mean([row["tpr"] for row in rows]) == pytest.approx(100 * TRUTH.mean(), abs=2)


@pytest.mark.parametrize("method", ["heatmap", "mixture", "activation", "spray"])
def test_scores_against_shuffled_truth_show_nothing(method):
    score = detect(method, INPUTS).score
    chance = metrics.shuffled_auroc(TRUTH, score, rng=np.random.default_rng(0))
    assert chance.estimate == pytest.approx(0.5, abs=0.02)
    assert chance.low < 0.5 < chance.high
    assert metrics.auroc(TRUTH, score) > chance.high


def test_chance_is_not_defined_for_one_kind_of_image():
    chance = metrics.shuffled_auroc(np.ones(9), np.arange(9), rng=np.random.default_rng(0))
    assert np.isnan([chance.estimate, chance.low, chance.high]).all()


def test_every_estimator_has_its_name_here():
    kinds = {type(method.estimator).__name__ for method in METHODS.values()}
    assert kinds <= set(detection.__all__)


@pytest.mark.parametrize("sides", [1, 3])
def test_the_windows_are_counted_with_the_evidence(sides):
    """Of other than two sizes of window nothing is taken for activations, nor the other way."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(80, 3 * sides + 8))
    inputs = detection.DetectionInputs(np.arange(80), evidence=table, sides=sides)
    expected = detection.PoisonDetector(sides=sides).fit(table)
    for told in (inputs, inputs.select(np.arange(80))):
        found = detection.detect("poison_detector", told)
        assert found.details["sides"] == sides
        assert found.score == pytest.approx(expected.decision_function(table))
