import json
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.utils import estimator_checks
from test_gw import disc_maps

from nbsupport import detection, gw
from nbsupport.detection import (
    METHODS,
    ActivationClustering,
    DetectionInputs,
    DistanceMixture,
    HeatmapClustering,
    RawClustering,
    SpectralSignature,
    detect,
)

N, N_POISON = 120, 18


@pytest.fixture(scope="module")
def heatmaps():
    return disc_maps(N, N_POISON, np.random.default_rng(0), bright=2.5)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N, 24)) * np.linspace(3, 0.5, 24)
    X[:N_POISON] += 5 * rng.normal(size=24)
    return X


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(2)
    X = rng.integers(60, 120, (N, 3, 16, 16))
    X[:N_POISON] += 90
    return X.astype(np.uint8)


@pytest.fixture(scope="module")
def inputs(heatmaps, features, images):
    return DetectionInputs(
        ids=1000 + np.arange(N),
        images=images,
        activations=features,
        logits=features[:, :9],
        heatmaps={"released": heatmaps, "gamma": heatmaps},
    )


TRUTH = np.arange(N) < N_POISON
ESTIMATORS = [
    RawClustering(),
    ActivationClustering(),
    HeatmapClustering("mean-distance"),
    DistanceMixture(),
    SpectralSignature(),
]
HEATMAP_ESTIMATORS = [
    HeatmapClustering("mean-distance"),
    HeatmapClustering("euclidean"),
    DistanceMixture(),
]


def by_name(estimators):
    return pytest.mark.parametrize("estimator", estimators, ids=lambda e: str(e)[:40])


# HeatmapClustering and DistanceMixture take images, which scikit-learn's tables of random features
# are not: for them, only the checks of parameters apply (below).
@estimator_checks.parametrize_with_checks(
    [ActivationClustering(), RawClustering(), SpectralSignature()]
)
@pytest.mark.filterwarnings("ignore:.*directions asked for")
def test_scikit_learn_accepts_feature_estimators(estimator, check):
    check(estimator)


@by_name(HEATMAP_ESTIMATORS)
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_mixin_order,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learn_accepts_heatmap_estimators(estimator, check):
    check(type(estimator).__name__, estimator)


@by_name(ESTIMATORS)
def test_unknown_parameters_raise(estimator):
    with pytest.raises(ValueError, match="Invalid parameter"):
        clone(estimator).set_params(nb_dims=3)


def data_of(estimator, inputs):
    if isinstance(estimator, (HeatmapClustering, DistanceMixture)):
        return inputs.heatmaps["gamma"]
    return inputs.images if isinstance(estimator, RawClustering) else inputs.activations


@by_name([*ESTIMATORS, RawClustering("FastICA"), ActivationClustering("FastICA")])
def test_same_answer_twice_and_in_any_order(estimator, inputs):
    X = data_of(estimator, inputs)
    first, second = clone(estimator).fit(X), clone(estimator).fit(X)
    np.testing.assert_array_equal(first.labels_, second.labels_)
    order = np.random.default_rng(0).permutation(N)
    shuffled = clone(estimator).fit(X[order])
    np.testing.assert_array_equal(shuffled.labels_, first.labels_[order])
    np.testing.assert_array_equal(shuffled.poisoned_, first.poisoned_[order])
    np.testing.assert_allclose(
        shuffled.decision_function(X), first.decision_function(X), rtol=1e-7, atol=1e-9
    )


@by_name([*ESTIMATORS, HeatmapClustering("euclidean")])
def test_verdict_is_the_smaller_cluster_and_the_sign_of_the_score(estimator, inputs):
    X = data_of(estimator, inputs)
    fitted = clone(estimator).fit(X)
    assert fitted.poisoned_.dtype == bool
    assert fitted.poisoned_.shape == fitted.labels_.shape == (N,)
    assert 0 < fitted.poisoned_.sum() <= N / 2
    assert len(np.unique(fitted.labels_[fitted.poisoned_])) == 1
    if not isinstance(estimator, SpectralSignature):
        score = fitted.decision_function(X)
        np.testing.assert_array_equal(score > 0, fitted.poisoned_)
        np.testing.assert_allclose(fitted.decision_function(X[:3]), score[:3], rtol=1e-9)


@by_name([RawClustering(), ActivationClustering(), HeatmapClustering("mean-distance")])
def test_poison_is_found_when_it_is_easy(estimator, inputs):
    X = data_of(estimator, inputs)
    fitted = clone(estimator).fit(X)
    assert roc_auc_score(TRUTH, fitted.decision_function(X)) > 0.99
    assert fitted.poisoned_[TRUTH].mean() > 0.9
    assert (~fitted.poisoned_[~TRUTH]).all()
    assert fitted.inertia_ > 0
    assert fitted.n_iter_ >= 1
    assert len(fitted.cluster_centers_) == 2


@by_name([*ESTIMATORS, HeatmapClustering("euclidean"), ActivationClustering("FastICA")])
def test_one_cluster_flags_nothing(estimator, inputs):
    X = np.repeat(data_of(estimator, inputs)[:1], 9, axis=0)
    fitted = clone(estimator).fit(X)
    assert not fitted.poisoned_.any()
    assert (fitted.labels_ == 0).all()
    np.testing.assert_allclose(fitted.decision_function(X), 0, atol=1e-9)


@by_name([RawClustering(), ActivationClustering(), ActivationClustering("FastICA")])
def test_constant_features_flag_nothing(estimator):
    fitted = clone(estimator).fit(np.full((7, 12), 0.1))
    assert not fitted.poisoned_.any()
    assert np.isfinite(fitted.cluster_centers_).all()


@by_name([*ESTIMATORS, HeatmapClustering("euclidean")])
def test_nan_is_refused_by_name(estimator, inputs):
    X = np.array(data_of(estimator, inputs), dtype=float)[:20].reshape(20, -1)
    if isinstance(estimator, RawClustering):
        X = X[:, :256]
    X[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*"):
        clone(estimator).fit(X)


@pytest.mark.parametrize("reduce", ["PCA", "FastICA"])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_fewer_images_than_components(reduce, n, features):
    X = features[N_POISON - n // 2 : N_POISON + n - n // 2]
    with pytest.warns(UserWarning, match=f"only {n - 1} of the n_components=10"):
        fitted = ActivationClustering(reduce).fit(X)
    assert fitted.n_components_ == n - 1
    assert np.isfinite(fitted.decision_function(X)).all()


def test_reduction_is_pca_and_whitened_ica(features):
    pca = ActivationClustering().fit(features)
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(pca._transform(features)), np.abs(u * s)[:, :10], atol=1e-9)
    ica = ActivationClustering("FastICA").fit(features)
    sources = ica._transform(features)
    np.testing.assert_allclose(np.cov(sources.T, bias=True), np.eye(10), atol=1e-8)
    expected = KMeans(2, n_init=10, random_state=0).fit(u[:, :10] * s[:10])
    assert pca.inertia_ == pytest.approx(expected.inertia_, rel=1e-9)


@pytest.mark.parametrize("wrong", [{"reduce": "TSNE"}, {"cluster_analysis": "silhouette-scores"}])
def test_unknown_choices_show_the_allowed_ones(wrong, features):
    with pytest.raises(ValueError, match="choose one of"):
        ActivationClustering(**wrong).fit(features)


def test_report_agrees_with_labels_and_verdict(features):
    for rule in detection.CLUSTER_ANALYSES:
        fitted = ActivationClustering(cluster_analysis=rule).fit(features)
        report = fitted.report_
        assert report["sizes"] == np.bincount(fitted.labels_).tolist()
        assert report["n_poisoned"] == fitted.poisoned_.sum() == N_POISON
        assert report["n_clean"] + report["n_poisoned"] == N
        assert report["silhouette"] == pytest.approx(
            silhouette_score(fitted._transform(features), fitted.labels_)
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


def test_tie_goes_to_the_tighter_cluster():
    rng = np.random.default_rng(0)
    loose, tight = rng.normal(size=(10, 2)), 20 + 0.1 * rng.normal(size=(10, 2))
    for X in (np.vstack([loose, tight]), np.vstack([tight, loose])):
        assert (ActivationClustering().fit(X).poisoned_ == (X[:, 0] > 10)).all()


def test_more_clusters_than_two(features):
    X, y = make_blobs([40, 30, 8], n_features=6, centers=None, random_state=0)
    fitted = ActivationClustering(n_clusters=3).fit(X)
    np.testing.assert_array_equal(fitted.poisoned_, y == 2)
    np.testing.assert_array_equal(fitted.decision_function(X) > 0, fitted.poisoned_)


def test_grey_is_that_of_pil(images):
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16)).astype(np.uint8)
    for image, ours in zip(noise, detection.grey(noise), strict=True):
        theirs = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"))
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="uint8"):
        detection.grey(noise / 255.0)
    flat = detection.grey(images).reshape(N, -1)
    np.testing.assert_array_equal(
        RawClustering().fit(images).labels_, RawClustering().fit(flat).labels_
    )


def test_solver_of_the_paper_gives_the_closed_form():
    maps = disc_maps(10, 3, np.random.default_rng(4), side=24, bright=2.5)
    closed = HeatmapClustering("mean-distance").fit(maps)
    with pytest.warns(UserWarning, match=r"exceeds eps\* = .*collapse"):
        solved = HeatmapClustering("gw").fit(maps)
    np.testing.assert_array_equal(solved.poisoned_, closed.poisoned_)
    np.testing.assert_array_equal(closed.poisoned_, np.arange(10) < 3)
    assert solved.cluster_centers_.shape == (2, 10, 10)
    assert solved.cluster_centers_.std(axis=(1, 2)).max() < 1e-8
    constants = solved.cluster_centers_.mean(axis=(1, 2))
    np.testing.assert_allclose(
        np.sort(constants), np.sort(closed.cluster_centers_[:, 0]), atol=1e-9
    )
    assert solved.inertia_ == pytest.approx(closed.inertia_, abs=1e-9)
    np.testing.assert_allclose(
        solved.decision_function(maps), closed.decision_function(maps), atol=1e-9
    )


def test_closed_form_reaches_the_best_split(heatmaps):
    fitted = HeatmapClustering("mean-distance").fit(heatmaps)
    moments = gw.distance_moments(gw.grid_weights(heatmaps))
    m1 = np.sort(moments.mean)
    split = min(k * m1[:k].var() + (N - k) * m1[k:].var() for k in range(1, N))
    assert fitted.inertia_ == pytest.approx(split + (moments.second - moments.mean**2).sum())
    assert fitted.epsilon_star_ < 0.1


@pytest.mark.parametrize("metric", ["mean-distance", "euclidean"])
def test_released_start_is_one_map_against_all(heatmaps, metric):
    start = HeatmapClustering(metric, start="released", max_iter=1, n_init=1)
    assert start.fit(heatmaps).n_iter_ == 1
    run = clone(start).set_params(max_iter=50).fit(heatmaps)
    if metric == "mean-distance":
        best = HeatmapClustering(metric, max_iter=50).fit(heatmaps)
        np.testing.assert_array_equal(run.poisoned_, best.poisoned_)
    with pytest.raises(ValueError, match="two clusters"):
        clone(start).set_params(n_clusters=3).fit(heatmaps)


def test_many_maps_are_refused_with_an_estimate(heatmaps):
    with pytest.raises(ValueError, match=r"max_maps=50, would take about \d+ s .* eps\* = 0\.\d+"):
        HeatmapClustering("gw", max_maps=50).fit(heatmaps)


def test_all_negative_maps_are_taken_by_magnitude(heatmaps):
    flipped = heatmaps.copy()
    flipped[[2, 50]] *= -1
    with pytest.warns(UserWarning, match="2 of 120 heatmaps hold no positive"):
        fitted = HeatmapClustering("mean-distance").fit(flipped)
    expected = HeatmapClustering("mean-distance").fit(heatmaps)
    np.testing.assert_array_equal(fitted.labels_, expected.labels_)
    flipped[7] = 0
    with (
        pytest.warns(UserWarning, match="3 of 120"),
        pytest.raises(ValueError, match="look at the training"),
    ):
        HeatmapClustering("mean-distance").fit(flipped)


def test_heatmaps_of_another_size_are_refused(heatmaps):
    fitted = HeatmapClustering("mean-distance").fit(heatmaps)
    np.testing.assert_array_equal(
        fitted.labels_, HeatmapClustering("mean-distance").fit(heatmaps.reshape(N, -1)).labels_
    )
    with pytest.raises(ValueError, match="was fitted with"):
        fitted.decision_function(heatmaps[:, 1:, 1:])
    with pytest.raises(ValueError, match="shape"):
        fitted.fit(np.ones((4, 3, 8, 8)))
    with pytest.raises(ValueError, match="at least 2"):
        fitted.fit(heatmaps[:1])


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
    Z = fitted._transform(fitted._quantiles(maps))
    posterior = fitted.mixture_.predict_proba(Z)[:, fitted.suspect_]
    np.testing.assert_allclose(1 / (1 + np.exp(-np.clip(score, -500, 500))), posterior, atol=1e-9)


def test_spectral_signature_is_the_squared_projection(features):
    fitted = SpectralSignature().fit(features)
    _, _, v = np.linalg.svd(features - features.mean(axis=0))
    expected = ((features - features.mean(axis=0)) @ v[0]) ** 2
    np.testing.assert_allclose(fitted.decision_function(features), expected, rtol=1e-9)
    clean = np.random.default_rng(0).normal(size=(300, 24))
    assert SpectralSignature().fit(clean).poisoned_.mean() < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_detect_speaks_of_each_id(method, inputs):
    result = detect(method, inputs)
    assert result.score.shape == result.poisoned.shape == result.ids.shape == (N,)
    assert result.details["n_flagged"] == result.poisoned.sum()
    json.dumps(result.details)
    order = np.random.default_rng(1).permutation(N)
    shuffled = DetectionInputs(
        inputs.ids[order],
        inputs.images[order],
        inputs.activations[order],
        inputs.logits[order],
        {name: maps[order] for name, maps in inputs.heatmaps.items()},
    )
    again = detect(method, shuffled)
    verdict = dict(zip(again.ids.tolist(), again.poisoned.tolist(), strict=True))
    assert [verdict[i] for i in result.ids.tolist()] == result.poisoned.tolist()


def test_detect_takes_the_closed_form_only_above_the_threshold(inputs):
    details = detect("heatmap", inputs).details
    assert details["metric"] == "mean-distance"
    assert details["epsilon"] > details["epsilon_star"]
    with pytest.raises(ValueError, match="max_maps=10"):
        detect("heatmap", inputs, epsilon=0.01, max_maps=10)


def test_detect_says_what_is_missing(inputs):
    empty = DetectionInputs(np.arange(N))
    with pytest.raises(ValueError, match="needs images"):
        detect("raw_pca", empty)
    with pytest.raises(ValueError, match="composite 'released'"):
        detect("heatmap", empty)
    with pytest.raises(ValueError, match="composite 'flat'"):
        detect("mixture", inputs, composite="flat")
    with pytest.raises(ValueError, match="means nothing"):
        detect("activation", inputs, composite="gamma")
    with pytest.raises(ValueError, match="choose one of"):
        detect("heatmaps", inputs)
    with pytest.raises(ValueError, match="Invalid parameter"):
        detect("activation", inputs, nb_dims=3)
    with pytest.raises(ValueError, match="unique"):
        DetectionInputs(np.array([1, 1]))
    with pytest.raises(ValueError, match="3 rows for 2 ids"):
        DetectionInputs(np.array([1, 2]), activations=np.zeros((3, 2)))


def test_prototypes_are_never_fitted(inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detect("activation", inputs)
    assert not hasattr(METHODS["activation"].estimator, "labels_")
