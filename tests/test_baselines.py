import tracemalloc

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import silhouette_score
from suspects import FEATURES, IMAGES, N_POISON, N

from nbsupport.baselines import (
    CLUSTER_ANALYSES,
    ActivationClustering,
    RawClustering,
    SpectralSignature,
    grey,
)
from nbsupport.embedding_clustering import VectorClustering


@pytest.mark.parametrize("reduce", ["PCA", "FastICA"])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_fewer_images_than_components(reduce, n):
    X = FEATURES[N_POISON - n // 2 : N_POISON + n - n // 2]
    with pytest.warns(UserWarning, match=f"only {n - 1} of the n_components=10"):
        fitted = ActivationClustering(reduce).fit(X)
    assert fitted.n_components_ == n - 1
    assert np.isfinite(fitted.decision_function(X)).all()


@pytest.mark.parametrize("detector", [ActivationClustering, VectorClustering])
def test_many_features_need_no_square_of_them(detector):
    X = np.random.default_rng(0).normal(size=(40, 6000))
    X[:9, :300] += 3
    tracemalloc.start()
    found = detector(n_components=10).fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e8, "their covariances are 288 MB"
    assert np.flatnonzero(found.poisoned_).tolist() == list(range(9))


def test_reduction_is_pca_and_whitened_ica():
    pca = ActivationClustering().fit(FEATURES)
    centred = FEATURES - FEATURES.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(pca._transform(FEATURES)), np.abs(u * s)[:, :10], atol=1e-9)
    ica = ActivationClustering("FastICA").fit(FEATURES)
    sources = ica._transform(FEATURES)
    np.testing.assert_allclose(np.cov(sources.T, bias=True), np.eye(10), atol=1e-8)
    expected = KMeans(2, n_init=10, random_state=0).fit(u[:, :10] * s[:10])
    assert pca.inertia_ == pytest.approx(expected.inertia_, rel=1e-9)


@pytest.mark.parametrize("wrong", [{"reduce": "TSNE"}, {"cluster_analysis": "silhouette-scores"}])
def test_unknown_choices_show_the_allowed_ones(wrong):
    with pytest.raises(ValueError, match="choose one of"):
        ActivationClustering(**wrong).fit(FEATURES)


def test_report_agrees_with_labels_and_verdict():
    elsewhere = np.median(FEATURES[:N_POISON], axis=0) + 0.1
    for rule in CLUSTER_ANALYSES:
        fitted = ActivationClustering(cluster_analysis=rule, other_classes=[elsewhere])
        fitted.fit(FEATURES)
        report = fitted.report_
        assert report["sizes"] == np.bincount(fitted.labels_).tolist()
        assert report["n_poisoned"] == fitted.poisoned_.sum() == N_POISON
        assert report["n_clean"] + report["n_poisoned"] == N
        assert report["silhouette"] == pytest.approx(
            silhouette_score(fitted._transform(FEATURES), fitted.labels_)
        )


def test_rules_may_acquit_and_the_counts_say_so():
    clean = np.random.default_rng(0).normal(size=(200, 30))
    assert ActivationClustering().fit(clean).poisoned_.sum() > 50
    for options in (
        {"cluster_analysis": "relative-size", "size_threshold": 0.3},
        {"cluster_analysis": "silhouette", "size_threshold": 0.5, "silhouette_threshold": 0.25},
    ):
        fitted = ActivationClustering(**options).fit(clean)
        assert not fitted.poisoned_.any()
        assert fitted.report_["n_poisoned"] == 0
        assert fitted.report_["n_clean"] == 200
        assert fitted.report_["poison_clusters"] == []
        assert fitted.decision_function(clean).std() > 0


def test_silhouette_flags_the_small_cluster_of_a_real_split():
    """The toolbox mixes up the clusters in this rule: the small one is suspicious, yet clean."""
    fitted = ActivationClustering(cluster_analysis="silhouette").fit(FEATURES)
    small = np.argmin(fitted.report_["sizes"])
    assert fitted.report_["poison_clusters"] == [small]
    np.testing.assert_array_equal(fitted.poisoned_, fitted.labels_ == small)
    assert fitted.report_["silhouette"] > fitted.silhouette_threshold
    strict = clone(fitted).set_params(silhouette_threshold=0.99).fit(FEATURES)
    assert not strict.poisoned_.any()
    np.testing.assert_array_equal(strict.labels_, fitted.labels_)


def two_groups(sizes, places, seed=0):
    rng = np.random.default_rng(seed)
    return np.vstack([p + rng.normal(size=(n, 4)) for n, p in zip(sizes, places, strict=True)])


def test_distance_flags_the_cluster_that_belongs_elsewhere():
    near, far = np.zeros(4), np.full(4, 20.0)
    X = two_groups((30, 20), (near, far))
    rule = {"cluster_analysis": "distance"}
    from_far = ActivationClustering(other_classes=[far + 1, -far], **rule).fit(X)
    np.testing.assert_array_equal(from_far.poisoned_, np.arange(50) >= 30)
    nowhere = ActivationClustering(other_classes=[-10 * far], **rule).fit(X)
    assert not nowhere.poisoned_.any()
    # It may be the larger cluster, or both, each nearer to another class.
    larger = ActivationClustering(other_classes=[near], **rule).fit(X)
    np.testing.assert_array_equal(larger.poisoned_, np.arange(50) < 30)
    both = ActivationClustering(other_classes=[near, far], **rule).fit(X)
    assert both.poisoned_.all()
    assert both.decision_function(X).std() > 0


def test_distance_is_the_comparison_of_medians():
    rng = np.random.default_rng(3)
    flagged = 0
    for _ in range(40):
        X = two_groups((40, 25), rng.normal(0, 3, (2, 4)), rng.integers(99))
        others = rng.normal(0, 5, (3, 4))
        fitted = ActivationClustering(cluster_analysis="distance", other_classes=others).fit(X)
        median = [np.median(X[fitted.labels_ == k], axis=0) for k in (0, 1)]
        own = [np.linalg.norm(m - np.median(X, axis=0)) for m in median]
        expected = [
            any(
                np.linalg.norm(median[k] - c) < own[k]
                and not np.linalg.norm(median[1 - k] - c) < own[1 - k]
                for c in others
            )
            for k in (0, 1)
        ]
        np.testing.assert_array_equal(fitted.poisoned_, np.array(expected)[fitted.labels_])
        np.testing.assert_allclose(fitted.report_["distance_to_own_class"], own)
        flagged += any(expected)
    assert 5 < flagged < 40


def test_distance_needs_the_other_classes():
    with pytest.raises(ValueError, match="pass other_classes="):
        ActivationClustering(cluster_analysis="distance").fit(FEATURES)
    with pytest.raises(ValueError, match=r"shape \(classes, 24\)"):
        ActivationClustering(cluster_analysis="distance", other_classes=np.zeros((3, 9))).fit(
            FEATURES
        )
    others = np.zeros((3, 24))
    others[1] = np.nan  # the median of a class without images
    with pytest.raises(ValueError, match=r"NaN or infinity in rows \[1\].*leave out"):
        ActivationClustering(cluster_analysis="distance", other_classes=others).fit(FEATURES)


@pytest.mark.parametrize("detector", [ActivationClustering, VectorClustering])
def test_some_component_must_be_kept(detector):
    with pytest.raises(ValueError, match="n_components is 0; needs 1 or more"):
        detector(n_components=0).fit(FEATURES)


def test_tie_goes_to_the_tighter_cluster():
    rng = np.random.default_rng(0)
    loose, tight = rng.normal(size=(10, 2)), 20 + 0.1 * rng.normal(size=(10, 2))
    for X in (np.vstack([loose, tight]), np.vstack([tight, loose])):
        assert (ActivationClustering().fit(X).poisoned_ == (X[:, 0] > 10)).all()


def test_more_clusters_than_two():
    X, y = make_blobs([40, 30, 8], n_features=6, centers=None, random_state=0)
    fitted = ActivationClustering(n_clusters=3).fit(X)
    np.testing.assert_array_equal(fitted.poisoned_, y == 2)
    np.testing.assert_array_equal(fitted.decision_function(X) > 0, fitted.poisoned_)


def test_images_of_one_channel_are_grey_already():
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 7, 5), dtype=np.uint8)
    assert np.array_equal(grey(images), images[:, 0])
    with pytest.raises(ValueError, match=r"\(4, 2, 7, 5\)"):
        grey(images.repeat(2, axis=1))


def test_grey_is_that_of_pil():
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16)).astype(np.uint8)
    for image, ours in zip(noise, grey(noise), strict=True):
        theirs = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"))
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="uint8"):
        grey(noise / 255.0)
    flat = grey(IMAGES).reshape(N, -1)
    np.testing.assert_array_equal(
        RawClustering().fit(IMAGES).labels_, RawClustering().fit(flat).labels_
    )


def test_spectral_signature_is_the_squared_projection():
    fitted = SpectralSignature().fit(FEATURES)
    _, _, v = np.linalg.svd(FEATURES - FEATURES.mean(axis=0))
    expected = ((FEATURES - FEATURES.mean(axis=0)) @ v[0]) ** 2
    np.testing.assert_allclose(fitted.decision_function(FEATURES), expected, rtol=1e-9)
    clean = np.random.default_rng(0).normal(size=(300, 24))
    assert SpectralSignature().fit(clean).poisoned_.mean() < 0.01
