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
    return X, np.arange(len(X)) >= n_clean


@pytest.mark.parametrize("n_poisoned", [6, 40, 240])
@pytest.mark.parametrize("strength", [8.0, 30.0])
def test_one_setting_serves_all_rates_and_strengths(n_poisoned, strength):
    X, truth = table(n_poisoned=n_poisoned, strength=strength)
    found = PoisonDetector().fit(X)
    assert found.present_
    assert np.array_equal(found.poisoned_, truth)
    assert np.array_equal(found.labels_, truth.astype(int))
    score = found.decision_function(X)
    assert score[truth].min() > score[~truth].max()


def test_a_clean_class_is_called_clean():
    for seed in range(20):
        X, _ = table(n_poisoned=0, seed=seed)
        found = PoisonDetector().fit(X)
        assert not found.present_
        assert not found.poisoned_.any()
        assert found.threshold_ == np.inf


@pytest.mark.parametrize("weak", [0, 1, 2])
def test_images_that_stand_out_in_two_ways_only_are_not_accused(weak):
    X, _ = table(n_poisoned=0)
    typical = np.median(X, axis=0)[0]
    X[:50, 0] = typical + 30 * np.array([3.0, 0.5, 7.0])
    assert PoisonDetector().fit(X).poisoned_[:50].all()
    X[:50, 0, weak] = typical[weak] - 0.1
    assert not PoisonDetector().fit(X).poisoned_[:50].any()


def test_presence_needs_a_number_and_a_share():
    X, _ = table(n_clean=400, n_poisoned=4)
    assert PoisonDetector().fit(X).n_strong_ == 4
    assert not PoisonDetector().fit(X).present_
    assert PoisonDetector(min_images=4).fit(X).present_
    X, _ = table(n_clean=2000, n_poisoned=9)
    assert not PoisonDetector().fit(X).present_
    assert PoisonDetector(min_share=0.004).fit(X).present_


def test_of_several_sides_the_strongest_counts():
    X, truth = table(sides=3)
    X[truth, 0] = X[0, 0]
    X[truth, 2] = X[0, 2]
    assert np.array_equal(PoisonDetector().fit(X).poisoned_, truth)


def test_units_and_order_do_not_matter():
    X, _ = table(sides=2)
    one = PoisonDetector().fit(X)
    two = PoisonDetector().fit(X * [4.0, 0.1, 2.0] + [7.0, -3.0, 0.0])
    assert np.allclose(
        one.decision_function(X), two.decision_function(X * [4, 0.1, 2] + [7, -3, 0])
    )
    order = np.random.default_rng(1).permutation(len(X))
    assert np.array_equal(PoisonDetector().fit(X[order]).poisoned_, one.poisoned_[order])


def test_equal_images_are_no_candidates():
    found = PoisonDetector().fit(np.ones((50, 2, 3)))
    assert found.n_strong_ == 0
    assert len(set(found.decision_function(np.ones((50, 2, 3))))) == 1


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((4, 2)), r"shape \(n, k, 3\), got \(4, 2\)"),
        (np.zeros((0, 1, 3)), r"got \(0, 1, 3\)"),
        (np.full((4, 1, 3), np.nan), "NaN or infinity"),
    ],
)
def test_wrong_evidence_is_refused(X, words):
    with pytest.raises(ValueError, match=words):
        PoisonDetector().fit(X)


def test_other_sides_than_fitted_are_refused():
    found = PoisonDetector().fit(table(sides=2)[0])
    with pytest.raises(ValueError, match="evidence of 1 sides, was fitted with 2"):
        found.decision_function(table(sides=1)[0])


def test_parameters_are_checked_as_in_scikit_learn():
    with pytest.raises(ValueError, match="Invalid parameter 'stron'"):
        PoisonDetector().set_params(stron=0.5)
    with pytest.raises(ValueError, match="relative is 2; needs more than 0 and at most 1"):
        PoisonDetector(relative=2).fit(table()[0])
    assert clone(PoisonDetector(strong=3.5)).get_params()["strong"] == 3.5
