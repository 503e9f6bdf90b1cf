import warnings

import numpy as np
import pytest
from heatmaps import disc_maps
from sklearn.base import clone
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from suspects import FEATURES, HEATMAPS, TRUTH, N

from nbsupport import distances, gw
from nbsupport.embedding_clustering import DistanceMixture, SpRAy, VectorClustering
from nbsupport.embeddings import downsized, sliced_quantiles
from nbsupport.heatmap_clustering import HeatmapClustering


def test_mixture_finds_a_small_group_and_splits_a_clean_class_all_the_same():
    rng = np.random.default_rng(0)
    maps = disc_maps(400, 20, rng, bright=2.5)
    fitted = DistanceMixture().fit(maps)
    score = fitted.decision_function(maps)
    assert roc_auc_score(np.arange(400) < 20, score) > 0.99
    assert fitted.poisoned_[:20].mean() > 0.9
    clean = DistanceMixture().fit(maps[20:])
    assert clean.poisoned_.mean() > 0.05
    assert fitted.gap_ > 2 * clean.gap_
    Z = fitted._project(fitted._embed(maps))
    posterior = fitted.mixture_.predict_proba(Z)[:, fitted.suspect_]
    np.testing.assert_allclose(1 / (1 + np.exp(-np.clip(score, -500, 500))), posterior, atol=1e-9)
    centre = posterior @ Z / posterior.sum()
    np.testing.assert_allclose(fitted.cluster_centers_[fitted.suspect_], centre, atol=0.01)


def test_clusterings_of_vectors_are_those_of_scikit_learn():
    Z = FEATURES - FEATURES.mean(axis=0)
    oracles = {
        "kmeans": KMeans(2, n_init=10, random_state=0),
        "mixture": GaussianMixture(2, n_init=10, random_state=0),
        "spectral": SpectralClustering(2, affinity="nearest_neighbors", random_state=0),
    }
    assert adjusted_rand_score(TRUTH, oracles["kmeans"].fit_predict(Z)) == 1
    for clusterer, oracle in oracles.items():
        kept = 4 if clusterer == "mixture" else None
        ours = VectorClustering(clusterer, n_components=kept).fit(FEATURES).labels_
        with warnings.catch_warnings(action="ignore"):  # a graph in two pieces
            theirs = oracle.fit_predict(PCA(4).fit_transform(Z) if kept else Z)
        assert adjusted_rand_score(ours, theirs) > 0.95, clusterer


@pytest.mark.parametrize("metric", ["mean-distance", "sliced-wasserstein", "euclidean"])
def test_kmeans_of_an_embedding_is_heatmap_clustering(metric):
    weights = gw.grid_weights(HEATMAPS)
    vectors = {
        "mean-distance": lambda: distances.distance_moments(weights).mean[:, None],
        "sliced-wasserstein": lambda: sliced_quantiles(weights),
        "euclidean": lambda: weights,
    }[metric]()
    ours = VectorClustering().fit(vectors)
    other = HeatmapClustering(metric, max_iter=100).fit(HEATMAPS)
    assert adjusted_rand_score(ours.labels_, other.labels_) > 0.9
    if metric != "euclidean":
        np.testing.assert_array_equal(ours.poisoned_, other.poisoned_)


def test_components_are_those_of_pca():
    fitted = VectorClustering(n_components=3).fit(FEATURES)
    Z = fitted._project(FEATURES)
    u, s, _ = np.linalg.svd(FEATURES - FEATURES.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(Z), np.abs(u * s)[:, :3] / s[0] * np.sqrt(N - 1), atol=1e-9)


def test_wrong_choices_are_named():
    with pytest.raises(ValueError, match=r"clusterer='dbscan'.*choose one of.*spectral"):
        VectorClustering("dbscan").fit(FEATURES)
    with pytest.raises(ValueError, match="n_samples=120 is less than n_clusters=121"):
        VectorClustering(n_clusters=N + 1).fit(FEATURES)
    with pytest.raises(ValueError, match="max_clusters is 1; needs 2 or more"):
        SpRAy(max_clusters=1).fit(HEATMAPS)


def test_distance_mixture_of_equal_maps_has_no_gap():
    fitted = DistanceMixture().fit(np.repeat(HEATMAPS[:1], 9, axis=0))
    assert (fitted.gap_, fitted.n_iter_, fitted.mixture_) == (0.0, 0, None)
    assert fitted.cluster_centers_ is None


PLACES = ((6, 6), (6, 25), (25, 15))


def blobs(counts, places=PLACES, noise=0.7, seed=0):
    """Heatmaps with one round blob each; the maps of a group have theirs in one place."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    group = np.repeat(np.arange(len(counts)), counts)
    middle = np.array(places)[group] + rng.normal(0, noise, (len(group), 2))
    far = (y - middle[:, 0, None, None]) ** 2 + (x - middle[:, 1, None, None]) ** 2
    return np.exp(-far / 18) * rng.uniform(1, 9, (len(group), 1, 1)), group


def test_spray_counts_the_groups_and_flags_the_small_ones():
    maps, group = blobs((16, 11, 10))
    fitted = SpRAy().fit(maps)
    assert fitted.n_clusters_ == 3
    assert adjusted_rand_score(fitted.labels_, group) == 1
    np.testing.assert_array_equal(fitted.poisoned_, group > 0)
    assert fitted.eigenvalues_.shape == (9,)
    assert (np.diff(fitted.eigenvalues_) > -1e-9).all()
    np.testing.assert_allclose(fitted.eigenvalues_[:3], 0, atol=1e-9)
    score = fitted.decision_function(maps)
    np.testing.assert_array_equal(score > 0, fitted.poisoned_)
    few = SpRAy(size_threshold=0.28).fit(maps)
    np.testing.assert_array_equal(few.poisoned_, group == 2)
    nobody = SpRAy(size_threshold=0.1).fit(maps)
    assert not nobody.poisoned_.any()
    assert roc_auc_score(group == 2, nobody.decision_function(maps)) == 1


def test_spray_never_flags_the_largest_group():
    maps, group = blobs((12, 11, 10))
    fitted = SpRAy(size_threshold=0.9).fit(maps)
    np.testing.assert_array_equal(fitted.poisoned_, group > 0)


def test_spray_is_spectral_clustering_of_coarse_maps():
    for maps in (blobs((50, 40))[0], HEATMAPS):
        ours = SpRAy(n_clusters=2).fit(maps)
        with warnings.catch_warnings(action="ignore"):  # a graph in two pieces: the easy case
            oracle = SpectralClustering(2, affinity="nearest_neighbors", random_state=0)
            theirs = oracle.fit_predict(downsized(maps))
        assert adjusted_rand_score(ours.labels_, theirs) > 0.95
        # Each map is its own nearest neighbour.
        assert ours.inertia_ == pytest.approx(ours._cost(maps).min(axis=1).sum(), abs=1e-12)
    assert ours.inertia_ > 0
    assert ours.fit(np.repeat(maps[:1], 9, axis=0)).inertia_ == 0


def test_spray_acquits_one_group_and_still_scores():
    maps = np.random.default_rng(0).normal(size=(80, 16, 16))
    fitted = SpRAy().fit(maps)
    assert fitted.n_clusters_ == 1
    assert not fitted.poisoned_.any()
    assert fitted.decision_function(maps).std() > 0


def test_place_is_all_to_spray_and_nothing_to_sliced_wasserstein():
    maps, group = blobs((14, 12), places=[(10, 10), (20, 20)], noise=0.3)
    assert adjusted_rand_score(SpRAy().fit(maps).labels_, group) == 1
    sliced = VectorClustering().fit(sliced_quantiles(gw.grid_weights(maps)))
    assert abs(adjusted_rand_score(sliced.labels_, group)) < 0.2


def test_a_new_map_is_scored_as_its_nearest():
    maps, _ = blobs((16, 11, 10))
    fitted = SpRAy().fit(maps)
    score = fitted.decision_function(maps)
    np.testing.assert_allclose(fitted.decision_function(maps[::-1] * 3.0), score[::-1], rtol=1e-9)
    new, kind = blobs((5, 5, 5), seed=1)
    np.testing.assert_array_equal(fitted.decision_function(new) > 0, kind > 0)
    assert not hasattr(clone(fitted), "labels_")
