import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import SpectralClustering
from sklearn.datasets import make_blobs, make_moons
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import kneighbors_graph

from nbsupport.clusterers import KMeansGroups, MixtureGroups, SpectralGroups

BLOBS, KINDS = make_blobs([60, 40, 20], n_features=3, cluster_std=0.7, random_state=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KMeansGroups(3),
        lambda: MixtureGroups(3),
        lambda: SpectralGroups(3),
    ],
)
def test_groups_are_found_and_the_cheapest_is_the_own(make):
    groups = make()
    labels = groups.fit(BLOBS)
    assert adjusted_rand_score(labels, KINDS) == 1
    for cost in (groups.cost(BLOBS), groups.spread(BLOBS)):
        assert cost.shape == (len(BLOBS), 3)
        np.testing.assert_array_equal(cost.argmin(axis=1), labels)
    assert not groups.acquits
    assert groups.n_iter >= 1


def test_mixture_costs_are_log_odds():
    groups = MixtureGroups(3)
    groups.fit(BLOBS)
    posterior = np.exp(-groups.cost(BLOBS))
    posterior /= posterior.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(posterior, groups.mixture.predict_proba(BLOBS), atol=1e-12)
    assert isinstance(groups.mixture, GaussianMixture)


def test_gap_is_the_distance_in_standard_deviations_of_the_other():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(0, 2, 4000), rng.normal(20, 0.5, 500)])[:, None]
    groups = MixtureGroups(2)
    small = groups.fit(X)[-1]
    assert groups.gap(small) == pytest.approx(10, rel=0.05)
    assert groups.gap(1 - small) == pytest.approx(40, rel=0.1)


def test_spectral_groups_follow_the_graph():
    X, kind = make_moons(200, noise=0.05, random_state=0)
    groups = SpectralGroups(2)
    labels = groups.fit(X)
    assert adjusted_rand_score(labels, kind) == 1
    assert adjusted_rand_score(KMeansGroups(2).fit(X), kind) < 0.6
    oracle = SpectralClustering(2, affinity="nearest_neighbors", random_state=0)
    assert adjusted_rand_score(labels, oracle.fit_predict(X)) == 1


def test_eigenvalues_count_the_pieces_of_the_graph():
    X, _ = make_blobs([14, 12, 11], n_features=3, cluster_std=0.7, random_state=1)
    for points in (BLOBS, X):
        groups = SpectralGroups("eigengap")
        groups.fit(points)
        graph = kneighbors_graph(points, 10, include_self=True)
        pieces, _ = connected_components(graph, directed=False)
        assert (groups.eigenvalues < 1e-9).sum() == pieces == 3
    assert (groups.n_found, groups.acquits) == (3, False)


@pytest.mark.parametrize("pieces", [7, 8, 9, 20])
def test_more_pieces_than_may_be_told_apart_are_not_counted_by_rounding_errors(pieces):
    centres = 100 * np.random.default_rng(0).normal(size=(pieces, 3))
    points, _ = make_blobs([30] * pieces, centers=centres, cluster_std=0.1, random_state=0)
    groups = SpectralGroups("eigengap")
    groups.fit(points)
    assert (groups.n_found, groups.acquits) == (min(pieces, 8), False)


def test_one_group_is_acquitted_and_split_for_its_scores():
    groups = SpectralGroups("eigengap")
    labels = groups.fit(np.random.default_rng(0).normal(size=(80, 30)))
    assert (groups.n_found, groups.acquits) == (1, True)
    assert len(np.unique(labels)) == 2


def test_equal_points_share_a_group_and_count_once():
    rng = np.random.default_rng(0)
    X = np.vstack([np.zeros((40, 2)), rng.normal(0, 0.1, (30, 2)), rng.normal(9, 0.1, (20, 2))])
    groups = SpectralGroups(2)
    labels = groups.fit(X)
    assert len(np.unique(labels[:70])) == 1
    assert adjusted_rand_score(labels, np.arange(90) >= 70) == 1
    few = SpectralGroups("eigengap")
    assert set(few.fit(np.repeat([[0.0], [1.0]], 5, axis=0))) == {0, 1}
