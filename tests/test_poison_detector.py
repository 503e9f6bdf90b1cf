import warnings

import numpy as np
import pytest
from sklearn.base import clone

from nbsupport.poison_detector import PoisonDetector


def table(n_clean=500, n_poisoned=10, strength=8.0, sides=1, seed=0):
    """Evidence of clean images (standard normals) and of images strong in all three kinds."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(n_clean, sides, 3))
    poisoned = strength + rng.normal(size=(n_poisoned, sides, 3))
    # Units of logits: the detector has to find centre and scale itself.
    X = np.concatenate([clean, poisoned]) * [3.0, 0.5, 7.0] + [-10.0, 2.0, 1.0]
    return X.reshape(len(X), -1), np.arange(len(X)) >= n_clean


def crowds(n_clean, n_poisoned, gap, seed=0):
    """Activations of two groups, ``gap`` standard deviations apart in each of 16 directions."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_clean + n_poisoned, 16))
    X[n_clean:] += gap
    return X


def alone(**options):
    return PoisonDetector(sides=1, **options)


@pytest.mark.parametrize("n_poisoned", [6, 40, 240])
@pytest.mark.parametrize("strength", [8.0, 30.0])
def test_one_setting_serves_all_rates_and_strengths(n_poisoned, strength):
    X, truth = table(n_poisoned=n_poisoned, strength=strength)
    found = alone().fit(X)
    assert found.present_
    assert np.array_equal(found.poisoned_, truth)
    assert np.array_equal(found.labels_, truth.astype(int))
    score = found.decision_function(X)
    assert score[truth].min() > score[~truth].max()


def test_a_clean_class_is_called_clean():
    for seed in range(20):
        X, _ = table(n_poisoned=0, seed=seed)
        found = alone().fit(X)
        assert not found.present_
        assert not found.poisoned_.any()
        assert found.threshold_ == np.inf


@pytest.mark.parametrize("weak", [0, 1, 2])
def test_images_that_stand_out_in_two_ways_only_are_not_accused(weak):
    X, _ = table(n_poisoned=0)
    typical = np.median(X, axis=0)
    X[:50] = typical + 30 * np.array([3.0, 0.5, 7.0])
    assert alone().fit(X).poisoned_[:50].all()
    X[:50, weak] = typical[weak] - 0.1
    assert not alone().fit(X).poisoned_[:50].any()


def test_presence_needs_a_number_and_a_share():
    X, _ = table(n_clean=400, n_poisoned=4)
    assert alone().fit(X).n_strong_ == 4
    assert not alone().fit(X).present_
    assert alone(min_images=4).fit(X).present_
    X, _ = table(n_clean=2000, n_poisoned=9)
    assert not alone().fit(X).present_
    assert alone(min_share=0.004).fit(X).present_
    assert alone().fewest(np.array([1, 400, 1000, 2000])).tolist() == [5, 5, 5, 10]


def test_images_without_strength_rank_behind_all_others_by_what_they_add_up_to():
    X, _ = table()
    deviations = [(9, -0.1, 9), (1, -0.1, 1), (1, -3, 1), (-3, 1, 1), (-5, -5, -5)]
    X[:5] = [-10, 2, 1] + np.array(deviations) * [3.0, 0.5, 7.0]
    found = alone().fit(X)
    score, strength = found.decision_function(X), found.strength(X)
    assert not strength[:5].any()
    assert score[strength == 0].max() < score[strength > 0].min()
    assert score[0] == score[1] > max(score[2:4])
    assert min(score[2:4]) > score[4]


def test_the_limits_are_those_that_notebook_4_tells():
    # Others are another detector: published results would have to be made anew.
    assert PoisonDetector().get_params() == {
        "sides": 2, "strong": 3.0, "min_images": 5, "min_share": 0.005, "relative": 0.45,
        "silhouette_threshold": 0.55, "agreed_threshold": 0.45, "chance": 0.001,
        "size_threshold": 0.4, "min_class": 50, "random_state": 0,
    }  # fmt: skip


def test_of_several_sides_the_strongest_counts():
    X, truth = table(sides=3)
    X[truth, :3] = X[0, :3]
    X[truth, 6:] = X[0, 6:]
    assert np.array_equal(PoisonDetector(sides=3).fit(X).poisoned_, truth)


def test_units_and_order_do_not_matter():
    X, _ = table(sides=2)
    other = X * np.tile([4.0, 0.1, 2.0], 2) + np.tile([7.0, -3.0, 0.0], 2)
    one, two = PoisonDetector().fit(X), PoisonDetector().fit(other)
    assert np.allclose(one.decision_function(X), two.decision_function(other))
    order = np.random.default_rng(1).permutation(len(X))
    assert np.array_equal(PoisonDetector().fit(X[order]).poisoned_, one.poisoned_[order])


def test_equal_images_are_no_candidates():
    found = PoisonDetector().fit(np.ones((50, 9)))
    assert found.n_strong_ == 0
    assert not found.present_
    assert len(set(found.decision_function(np.ones((50, 9))))) == 1


@pytest.mark.parametrize("n_poisoned", [100, 270])
def test_a_crowd_apart_is_accused_though_no_image_stands_out(n_poisoned):
    X, truth = table(n_poisoned=n_poisoned, strength=0.0, sides=2)
    X = np.hstack([X, crowds(500, n_poisoned, 4.0)])
    found = PoisonDetector().fit(X)
    assert found.witnesses_ == ["activations"]
    assert found.present_
    assert np.array_equal(found.poisoned_, truth)
    assert np.array_equal(found.decision_function(X) >= 1, truth)


@pytest.mark.parametrize(("n_poisoned", "gap"), [(200, 1.0), (480, 4.0), (0, 0.0)])
def test_crowds_that_are_near_or_of_equal_size_accuse_nobody(n_poisoned, gap):
    X, _ = table(n_poisoned=n_poisoned, strength=0.0, sides=2)
    found = PoisonDetector().fit(np.hstack([X, crowds(500, n_poisoned, gap)]))
    assert found.witnesses_ == []
    assert not found.poisoned_.any()
    assert found.silhouette_ is not None


def some_strong(rows, gap=2.0, n_poisoned=200):
    """A class in two groups of no great distance, and images of strong evidence at `rows`."""
    X, truth = table(n_poisoned=n_poisoned, strength=0.0, sides=2)
    X[rows] = np.median(X, axis=0) + 30 * np.tile([3.0, 0.5, 7.0], 2)
    return np.hstack([X, crowds(500, n_poisoned, gap)]), truth


@pytest.mark.parametrize(
    ("rows", "witnesses"),
    [
        ([], []),
        ([500, 501], []),
        (range(500, 504), []),
        (range(500, 505), ["evidence"]),
        (range(500, 508), ["evidence", "activations"]),
        (range(8), ["evidence"]),
        ([*range(500, 504), *range(4)], ["evidence"]),
    ],
)
def test_two_groups_are_poison_where_the_strong_candidates_are_in_the_smaller(rows, witnesses):
    X, truth = some_strong(list(rows))
    found = PoisonDetector().fit(X)
    assert 0.45 < found.silhouette_ < 0.55
    assert found.witnesses_ == witnesses
    inside, n, k = truth[list(rows)].sum(), len(rows), truth.sum()
    draws = np.random.default_rng(0).hypergeometric(k, len(X) - k, n, 100_000) if n else [0]
    assert found.chance_ == pytest.approx(np.mean(np.array(draws) >= inside), abs=0.005)
    if "activations" in witnesses:
        assert found.poisoned_[truth].mean() > 0.95
        assert found.poisoned_[~truth].mean() < 0.01


def test_five_candidates_in_the_smaller_group_are_enough():
    for rows, witnesses in ((range(500, 504), []), (range(500, 505), ["evidence", "activations"])):
        assert PoisonDetector(chance=0.01).fit(some_strong(rows)[0]).witnesses_ == witnesses


def test_candidates_too_few_to_be_heard_lead_to_their_group():
    X, truth = some_strong(range(500, 506))
    assert PoisonDetector(min_share=0.01, chance=1e-4).fit(X).witnesses_ == []
    found = PoisonDetector(min_share=0.01).fit(X)
    assert found.witnesses_ == ["activations"]
    assert found.poisoned_[truth].mean() > 0.9
    assert np.array_equal(found.decision_function(X) >= 1, found.poisoned_)


def test_no_candidates_make_a_crowd_of_one_group():
    X, _ = some_strong(range(500, 508), gap=1.0)
    assert PoisonDetector().fit(X).witnesses_ == ["evidence"]


def test_a_wide_group_is_accused_up_to_its_edge():
    """k-means cuts in the middle between a tight group and a wide one."""
    X, truth = table(n_poisoned=200, strength=0.0, sides=2)
    activations = 0.5 * crowds(500, 200, 0.0)
    activations[truth, 0] = 10 + 6 * activations[truth, 0]
    found = PoisonDetector().fit(np.hstack([X, activations]))
    assert found.witnesses_ == ["activations"]
    cut = (activations[truth, 0].mean() + activations[~truth, 0].mean()) / 2
    beyond = (activations[truth, 0] > cut).mean()
    assert found.poisoned_[truth].mean() > beyond + 0.02
    assert found.poisoned_[~truth].mean() < 0.01


@pytest.mark.parametrize("n_poisoned", [60, 150])
def test_a_clean_class_of_two_kinds_is_not_accused_beside_a_poisoned_group(n_poisoned):
    """A mixture fitted anew would take the tight kind for one group and all others for another."""
    rng = np.random.default_rng(0)
    X, truth = table(n_clean=900, n_poisoned=n_poisoned, strength=0.0, sides=2)
    activations = np.concatenate(
        [
            0.3 * rng.normal(size=(600, 16)),
            rng.normal(size=(300, 16)) + 4 * np.eye(16)[1],
            2 * rng.normal(size=(n_poisoned, 16)) + 12 * np.eye(16)[0],
        ]
    )
    found = PoisonDetector().fit(np.hstack([X, activations]))
    assert found.witnesses_ == ["activations"]
    assert found.poisoned_[truth].all()
    assert found.poisoned_[~truth].mean() < 0.01


@pytest.mark.parametrize("equal", [[False, True], [True, True], [True, False]])
def test_groups_of_equal_images_have_a_border_too(equal):
    """A defender meets copies: a trigger on one picture, or a layer that is dead for a class."""
    X, truth = table(n_poisoned=100, strength=0.0, sides=2)
    activations = crowds(500, 100, 4.0)
    for group, same in zip((~truth, truth), equal, strict=True):
        if same:
            activations[group] = activations[group][0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*directions asked for")
        found = PoisonDetector().fit(np.hstack([X, activations]))
    assert found.witnesses_ == ["activations"]
    assert np.array_equal(found.poisoned_, truth)
    assert np.array_equal(found.decision_function(np.hstack([X, activations])) >= 1, truth)


@pytest.mark.parametrize(("n_clean", "shift"), [(60, 2.0), (180, 3.0), (400, 10.0)])
def test_a_single_odd_image_is_no_group(n_clean, shift):
    X, _ = table(n_clean=n_clean, n_poisoned=0, sides=2)
    activations = np.abs(np.random.default_rng(0).normal(size=(n_clean, 16)))
    activations[7] += shift
    found = PoisonDetector().fit(np.hstack([X, activations]))
    assert found.silhouette_ > 0.55
    assert not found.present_
    # Whoever takes one image for a group has it accused by its distance: it has no Gaussian.
    alone = PoisonDetector(min_images=1, min_share=1e-3).fit(np.hstack([X, activations]))
    assert np.flatnonzero(alone.poisoned_).tolist() == [7]


def test_candidates_agree_by_number_not_by_luck():
    """Two candidates in a tiny cluster are improbable, and still only two."""
    X, _ = table(n_clean=580, n_poisoned=20, strength=0.0, sides=2)
    X[-20:-18] = np.median(X, axis=0) + 30 * np.tile([3.0, 0.5, 7.0], 2)
    found = PoisonDetector().fit(np.hstack([X, crowds(580, 20, 1.8)]))
    assert found.chance_ < 0.002
    assert found.silhouette_ < 0.55
    assert not found.present_


def test_the_seed_reaches_the_clusters():
    X = np.hstack([table(n_poisoned=100, strength=0.0, sides=2)[0], crowds(500, 100, 4.0)])
    assert PoisonDetector().fit(X)._clusters.random_state == 0
    assert PoisonDetector(random_state=7).fit(X)._clusters.random_state == 7


def test_a_handful_of_images_is_no_crowd():
    X = np.hstack([table(30, 10, strength=0.0, sides=2)[0], crowds(30, 10, 6.0)])
    assert PoisonDetector().fit(X).silhouette_ is None
    assert PoisonDetector(min_class=40).fit(X).witnesses_ == ["activations"]


def test_each_witness_accuses_whom_the_other_misses():
    X, truth = table(n_poisoned=150, sides=2)
    X[truth.nonzero()[0][:30], :6] = X[0, :6]
    activations = crowds(500, 150, 4.0)
    activations[truth.nonzero()[0][-30:]] -= 4.0
    found = PoisonDetector().fit(np.hstack([X, activations]))
    assert found.witnesses_ == ["evidence", "activations"]
    assert np.array_equal(found.poisoned_, truth)
    assert np.array_equal(PoisonDetector().fit(X).poisoned_[truth], np.arange(150) >= 30)


def test_a_gain_that_was_not_measured_gives_no_strength():
    X, truth = table(sides=1)
    X[:, 1][~truth & (np.arange(len(X)) % 2 == 0)] = np.nan
    found = alone().fit(X)
    assert np.array_equal(found.poisoned_, truth)
    X[-1, 1] = np.nan
    assert not alone().fit(X).poisoned_[-1]
    assert np.isfinite(found.decision_function(X)).all()
    X[:, 1] = np.nan
    assert alone().fit(X).n_strong_ == 0


@pytest.mark.parametrize("n_poisoned", [10, 100, 250, 400])
def test_gains_of_a_sample_stand_for_the_others(n_poisoned):
    """Of likely candidates all gains are known: where poison is frequent, it is most of them."""
    X, truth = table(n_poisoned=n_poisoned, strength=12.0)
    likely = (X[:, ::2] > np.median(X[:, ::2], axis=0)).all(axis=1)
    X[~likely & (np.random.default_rng(1).random(len(X)) > 0.15), 1] = np.nan
    assert np.array_equal(alone().fit(X).poisoned_, truth)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((4, 1, 3)), r"shape \(n, 6 or more\), got \(4, 1, 3\)"),
        (np.zeros((4, 5)), r"got \(4, 5\)"),
        (np.zeros((0, 6)), r"got \(0, 6\)"),
        (np.full((4, 6), np.nan), "NaN or infinity"),
    ],
)
def test_wrong_evidence_is_refused(X, words):
    with pytest.raises(ValueError, match=words):
        PoisonDetector().fit(X)


def test_other_columns_than_fitted_are_refused():
    found = PoisonDetector().fit(table(sides=2)[0])
    with pytest.raises(ValueError, match="X has 7 columns, was fitted with 6"):
        found.decision_function(np.zeros((3, 7)))


def test_parameters_are_checked_as_in_scikit_learn():
    with pytest.raises(ValueError, match="Invalid parameter 'stron'"):
        PoisonDetector().set_params(stron=0.5)
    with pytest.raises(ValueError, match="relative is 2; needs more than 0 and at most 1"):
        alone(relative=2).fit(table()[0])
    assert clone(PoisonDetector(strong=3.5)).get_params()["strong"] == 3.5
