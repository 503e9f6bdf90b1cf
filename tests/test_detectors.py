import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.utils import estimator_checks
from suspects import INPUTS, TRUTH, N, by_name

from nbsupport.baselines import ActivationClustering, RawClustering, SpectralSignature
from nbsupport.detectors import HeatmapDetector, suspect_cluster
from nbsupport.embedding_clustering import DistanceMixture, SpRAy, VectorClustering
from nbsupport.heatmap_clustering import HeatmapClustering
from nbsupport.poison_detector import PoisonDetector

MAPS, VECTORS = INPUTS.heatmaps["gamma"], INPUTS.activations
ESTIMATORS = [
    RawClustering(),
    ActivationClustering(),
    HeatmapClustering("mean-distance"),
    HeatmapClustering("sliced-wasserstein"),
    DistanceMixture(),
    SpectralSignature(),
    SpRAy(n_clusters=2, size_threshold=1.0),
]
# Not collapsed, so that the solver has something to do; fewer maps, as it takes its time.
GW = HeatmapClustering("gw", epsilon=0.01, n_support=5)
PARAMETER_ESTIMATORS = [
    HeatmapClustering("gw"),
    HeatmapClustering("mean-distance"),
    HeatmapClustering("euclidean"),
    DistanceMixture(),
    SpRAy(),
    PoisonDetector(),
]
VECTOR_ESTIMATORS = [
    VectorClustering(),
    VectorClustering("mixture", n_components=4),
    VectorClustering("spectral"),
]


# Heatmaps and evidence are no tables of random features, such as scikit-learn's checks bring along:
# for those who read them only the checks of parameters apply (below).
@estimator_checks.parametrize_with_checks(
    [ActivationClustering(), RawClustering(), SpectralSignature(), *VECTOR_ESTIMATORS]
)
@pytest.mark.filterwarnings("ignore:.*directions asked for")
def test_scikit_learn_accepts_feature_estimators(estimator, check):
    check(estimator)


@by_name(PARAMETER_ESTIMATORS)
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
def test_scikit_learn_accepts_parameters_of_all_others(estimator, check):
    check(type(estimator).__name__, estimator)


@by_name(ESTIMATORS)
def test_unknown_parameters_raise(estimator):
    with pytest.raises(ValueError, match="Invalid parameter"):
        clone(estimator).set_params(nb_dims=3)


def data_of(estimator):
    if isinstance(estimator, RawClustering):
        return INPUTS.images
    if getattr(estimator, "metric", "") == "gw":
        return MAPS[::6]
    return MAPS if isinstance(estimator, HeatmapDetector) else VECTORS


@by_name(
    [
        *ESTIMATORS,
        *VECTOR_ESTIMATORS,
        RawClustering("FastICA"),
        ActivationClustering("FastICA"),
        SpRAy(),
        GW,
    ]
)
def test_same_answer_twice_and_in_any_order(estimator):
    X = data_of(estimator)
    first, second = clone(estimator).fit(X), clone(estimator).fit(X)
    np.testing.assert_array_equal(first.labels_, second.labels_)
    order = np.random.default_rng(0).permutation(len(X))
    shuffled = clone(estimator).fit(X[order])
    np.testing.assert_array_equal(shuffled.labels_, first.labels_[order])
    np.testing.assert_array_equal(shuffled.poisoned_, first.poisoned_[order])
    np.testing.assert_allclose(
        shuffled.decision_function(X), first.decision_function(X), rtol=1e-7, atol=1e-9
    )


@by_name([*ESTIMATORS, *VECTOR_ESTIMATORS, HeatmapClustering("euclidean")])
def test_verdict_is_the_smaller_cluster_and_the_sign_of_the_score(estimator):
    X = data_of(estimator)
    fitted = clone(estimator).fit(X)
    assert fitted.poisoned_.dtype == bool
    assert fitted.poisoned_.shape == fitted.labels_.shape == (N,)
    assert 0 < fitted.poisoned_.sum() <= N / 2
    assert len(np.unique(fitted.labels_[fitted.poisoned_])) == 1
    if not isinstance(estimator, SpectralSignature):
        score = fitted.decision_function(X)
        np.testing.assert_array_equal(score > 0, fitted.poisoned_)
        np.testing.assert_allclose(fitted.decision_function(X[:3]), score[:3], rtol=1e-9)


@by_name(
    [
        RawClustering(),
        ActivationClustering(),
        HeatmapClustering("mean-distance"),
        HeatmapClustering("sliced-wasserstein"),
    ]
)
def test_poison_is_found_when_it_is_easy(estimator):
    X = data_of(estimator)
    fitted = clone(estimator).fit(X)
    assert roc_auc_score(TRUTH, fitted.decision_function(X)) > 0.99
    assert fitted.poisoned_[TRUTH].mean() > 0.9
    assert (~fitted.poisoned_[~TRUTH]).all()
    assert fitted.inertia_ > 0
    assert fitted.n_iter_ >= 1
    assert len(fitted.cluster_centers_) == 2


@by_name(
    [
        *ESTIMATORS,
        *VECTOR_ESTIMATORS,
        HeatmapClustering("euclidean"),
        ActivationClustering("FastICA"),
        SpRAy(),
        GW,
    ]
)
def test_one_cluster_flags_nothing(estimator):
    X = np.repeat(data_of(estimator)[:1], 9, axis=0)
    fitted = clone(estimator).fit(X)
    assert not fitted.poisoned_.any()
    # Which of the barycentres of equal maps is nearest is chance.
    assert (fitted.labels_ == (fitted.labels_[0] if estimator is GW else 0)).all()
    np.testing.assert_allclose(fitted.decision_function(X), 0, atol=1e-9)


@by_name([*ESTIMATORS, *VECTOR_ESTIMATORS, HeatmapClustering("euclidean"), GW])
def test_nan_is_refused_by_name(estimator):
    X = np.array(data_of(estimator), dtype=float)[:20].reshape(20, -1)
    if isinstance(estimator, RawClustering):
        X = X[:, :256]
    X[3, 5] = np.nan
    # The rows are sorted before they are split: the place is that in X nevertheless.
    where = r"maps \[3\] \(1 of 20\)" if isinstance(estimator, HeatmapDetector) else ""
    with pytest.raises(ValueError, match=f"NaN.*{where}"):
        clone(estimator).fit(X)


def test_the_suspect_is_the_smallest_cluster_then_the_tightest():
    cost = np.array([[0.0, 9], [0, 9], [9, 1], [9, 1], [9, 0]])
    assert suspect_cluster(np.array([0, 0, 1, 1, 1]), cost) == 0
    assert suspect_cluster(np.array([0, 0, 1, 1]), cost[:4]) == 0
    assert suspect_cluster(np.array([1, 1]), cost[2:4]) is None
