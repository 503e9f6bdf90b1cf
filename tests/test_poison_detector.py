import numpy as np
import pytest
from sklearn.base import clone

from nbsupport.poison_detector import PoisonDetector


@pytest.fixture
def table(rng):
    clean = np.column_stack([rng.uniform(5, 9, 95), rng.uniform(2, 5, 95), rng.uniform(0, 0.4, 95)])
    poisoned = np.column_stack([np.full(6, 8.0), np.full(6, -3.0), np.linspace(0.8, 1, 6)])
    return np.concatenate([clean, poisoned]), np.arange(101) >= 95


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_images_that_carry_their_label_along_are_accused(table):
    X, truth = table
    found = PoisonDetector().fit(X)
    assert np.array_equal(found.poisoned_, truth)
    assert np.array_equal(found.labels_, truth.astype(int))
    assert found.present_
    assert found.n_candidates_ == 6
    score = found.decision_function(X)
    assert score[truth].min() > score[~truth].max()


def test_a_clean_class_is_called_clean(table):
    X, truth = table
    found = PoisonDetector().fit(X[~truth])
    assert not found.present_
    assert not found.poisoned_.any()
    few = np.concatenate([X[~truth], X[truth][:4]])
    found = PoisonDetector(min_images=5).fit(few)
    assert (found.n_candidates_, found.present_, found.poisoned_.any()) == (4, False, False)
    assert PoisonDetector(min_images=4).fit(few).poisoned_.sum() == 4


def test_the_verdict_on_an_image_does_not_depend_on_the_others(table):
    X, truth = table
    some = np.concatenate([np.flatnonzero(~truth)[:7], np.flatnonzero(truth)])
    assert np.array_equal(PoisonDetector().fit(X[some]).poisoned_, truth[some])
    order = np.random.default_rng(1).permutation(len(X))
    assert np.array_equal(PoisonDetector().fit(X[order]).poisoned_, truth[order])


def test_equal_shares_are_ranked_by_what_the_piece_was_worth():
    X = np.array([[5.0, 4.0, 0.5], [5.0, -4.0, 0.5], [5.0, 4.9, 0.55]])
    score = PoisonDetector().fit(X).decision_function(X)
    assert score.argsort().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((4, 2)), r"shape \(n, 3\), got \(4, 2\)"),
        (np.zeros(3), r"got \(3,\)"),
        (np.full((4, 3), np.nan), "NaN or infinity"),
    ],
)
def test_wrong_evidence_is_refused(X, words):
    with pytest.raises(ValueError, match=words):
        PoisonDetector().fit(X)


def test_parameters_are_checked_as_in_scikit_learn(table):
    with pytest.raises(ValueError, match="Invalid parameter 'treshold'"):
        PoisonDetector().set_params(treshold=0.5)
    with pytest.raises(ValueError, match=r"threshold is 2; needs a share in \(0, 1\]"):
        PoisonDetector(threshold=2).fit(table[0])
    assert clone(PoisonDetector(threshold=0.4)).get_params()["threshold"] == 0.4
