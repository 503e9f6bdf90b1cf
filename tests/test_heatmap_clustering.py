import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from heatmaps import disc_maps
from scipy.special import entr
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from suspects import HEATMAPS, N

from nbsupport import barycentres, distances, gw
from nbsupport.embeddings import sliced_quantiles
from nbsupport.heatmap_clustering import HeatmapClustering, _one_against_all
from nbsupport.transport import HeatmapSpaces, match


@pytest.mark.parametrize(("solver", "atol"), [("POT", 1e-9), ("batched", 1e-4)])
def test_real_solver_gives_the_closed_form_above_the_threshold(solver, atol):
    maps = disc_maps(10, 3, np.random.default_rng(4), side=24, bright=2.5)
    closed = HeatmapClustering("mean-distance").fit(maps)
    with pytest.warns(UserWarning, match=r"exceeds eps\* = .*collapse"):
        solved = HeatmapClustering("gw", solver=solver).fit(maps)
    np.testing.assert_array_equal(solved.poisoned_, closed.poisoned_)
    np.testing.assert_array_equal(closed.poisoned_, np.arange(10) < 3)
    assert solved.cluster_centers_.shape == (2, 10, 10)
    assert solved.cluster_centers_.std(axis=(1, 2)).max() < 10 * atol
    constants = solved.cluster_centers_.mean(axis=(1, 2))
    np.testing.assert_allclose(
        np.sort(constants), np.sort(closed.cluster_centers_[:, 0]), atol=atol
    )
    assert solved.inertia_ == pytest.approx(closed.inertia_, abs=10 * atol)
    np.testing.assert_allclose(
        solved.decision_function(maps), closed.decision_function(maps), atol=atol
    )


def test_closed_form_reaches_the_best_split():
    fitted = HeatmapClustering("mean-distance").fit(HEATMAPS)
    moments = distances.distance_moments(gw.grid_weights(HEATMAPS))
    m1 = np.sort(moments.mean)
    split = min(k * m1[:k].var() + (N - k) * m1[k:].var() for k in range(1, N))
    assert fitted.inertia_ == pytest.approx(split + (moments.second - moments.mean**2).sum())
    clusters = [distances.distance_moments(gw.grid_weights(HEATMAPS[fitted.labels_ == k]))
                for k in range(2)]  # fmt: skip
    thresholds = [distances.collapse_threshold(moments) for moments in clusters]
    assert fitted.epsilon_star_ == pytest.approx(max(thresholds))
    assert max(thresholds) > 1.01 * min(thresholds), "or the test could not tell"


def test_released_start_is_one_map_against_all():
    geometry = SimpleNamespace(n=5, rng=np.random.default_rng(0), mean=lambda mask: mask)
    others, one = _one_against_all(geometry, 2)
    assert one.sum() == 1
    assert np.array_equal(others, ~one)
    drawn = {_one_against_all(geometry, 2)[1].argmax() for _ in range(50)}
    assert drawn == set(range(5))


@pytest.mark.parametrize("metric", ["gw", "mean-distance", "euclidean", "sliced-wasserstein"])
def test_released_start_serves_every_metric(metric):
    with pytest.raises(ValueError, match="max_iter is 0; needs 1 or more"):
        HeatmapClustering(metric, max_iter=0).fit(HEATMAPS)
    start = HeatmapClustering(metric, epsilon=0.01, start="released", max_iter=1, n_init=1)
    with pytest.warns(ConvergenceWarning, match=r"changed in round 1: raise max_iter=1"):
        assert start.fit(HEATMAPS).n_iter_ == 1
    assert start.converged_ is False
    run = clone(start).set_params(max_iter=50).fit(HEATMAPS)
    if metric == "mean-distance":
        best = HeatmapClustering(metric, max_iter=50).fit(HEATMAPS)
        np.testing.assert_array_equal(run.poisoned_, best.poisoned_)
    with pytest.raises(ValueError, match="two clusters"):
        clone(start).set_params(n_clusters=3).fit(HEATMAPS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_init": 0}, "n_init is 0; needs 1 or more"),
        ({"n_support": 0}, "n_support is 0; needs 1 or more"),
        ({"barycentre_iter": 0}, "barycentre_iter is 0; needs 1 or more"),
        ({"epsilon": 0.0}, "epsilon must be positive, got 0.0"),
        ({"epsilon": -0.1, "solver": "POT"}, "epsilon must be positive, got -0.1"),
        ({"epsilon": 1e-5, "solver": "POT"}, "no plan with epsilon=1e-05.*raise epsilon"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_what_no_solver_can_work_with_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        HeatmapClustering("gw", **{"barycentre_iter": 2, "max_iter": 2} | options).fit(HEATMAPS[:8])


def test_a_barycentre_of_one_point_is_a_legal_space():
    found = HeatmapClustering("gw", n_support=1, epsilon=0.1).fit(HEATMAPS)
    assert found.cluster_centers_.shape == (2, 1, 1)
    assert np.isfinite(found.inertia_)


def test_batched_solver_finds_the_groups_of_pot_below_the_threshold():
    maps = disc_maps(8, 3, np.random.default_rng(0), side=16)
    options = {"epsilon": 0.012, "n_support": 6, "share": 1.0, "barycentre_iter": 5}
    loop, batched = (HeatmapClustering("gw", s, **options).fit(maps) for s in ("POT", "batched"))
    assert batched.epsilon < batched.epsilon_star_
    assert batched.cluster_centers_.std(axis=(1, 2)).min() > 0.1
    np.testing.assert_array_equal(batched.labels_, loop.labels_)

    def minimised(fitted):
        """Sum of value - epsilon * entropy: the value alone may well be higher where this falls."""
        spaces = HeatmapSpaces(gw.grid_weights(maps, 1.0), dtype=torch.float64)
        found = match(spaces, fitted.cluster_centers_, 0.012, tol=1e-4, plans=True)
        T = found.plans.reshape(8, 2, -1)
        return (found.value - 0.012 * entr(T).sum(axis=2)).min(axis=1).sum()

    # Another local minimum is allowed, a worse one is not.
    assert minimised(batched) <= minimised(loop) + 1e-4
    np.testing.assert_array_equal(batched.decision_function(maps) > 0, batched.poisoned_)


def test_convergence_is_reported(monkeypatch):
    maps = disc_maps(8, 3, np.random.default_rng(0), side=16)
    estimator = HeatmapClustering("gw", epsilon=0.01, n_support=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimator.fit(maps).converged_ is True
        assert HeatmapClustering("mean-distance").fit(maps).converged_ is True

    def impatient(*arguments, **options):
        found = match(*arguments, **options)
        return replace(found, converged=found.value > found.value.min())

    monkeypatch.setattr(barycentres, "match", impatient)
    with pytest.warns(ConvergenceWarning, match=r"1 pairs .* 50 steps: raise epsilon=0\.01"):
        assert estimator.fit(maps).converged_ is False


@pytest.mark.parametrize("noise", [1e-12, 1e-9])
def test_nearly_equal_maps_are_one_group(noise):
    """POT once failed there (its issue 82): nothing is left to improve."""
    rng = np.random.default_rng(0)
    maps = HEATMAPS[:1] * (1 + noise * rng.random((9, *HEATMAPS.shape[1:])))
    fitted = HeatmapClustering("gw", epsilon=0.01, n_support=5).fit(maps)
    assert len(set(fitted.labels_)) == 1
    assert not fitted.poisoned_.any()
    assert fitted.converged_
    cost = fitted._cost(maps)
    np.testing.assert_allclose(cost, cost[[0] * 9], rtol=1e-5)


@pytest.mark.parametrize("metric", ["mean-distance", "euclidean", "sliced-wasserstein"])
def test_maps_that_differ_by_rounding_form_no_clusters(metric):
    rng = np.random.default_rng(0)
    maps = HEATMAPS[:1] * (1 + 1e-13 * rng.random((60, *HEATMAPS.shape[1:])))
    assert not HeatmapClustering(metric).fit(maps).poisoned_.any()


def test_all_negative_maps_are_taken_by_magnitude():
    flipped = HEATMAPS.copy()
    flipped[[2, 50]] *= -1
    with pytest.warns(UserWarning, match="2 of 120 heatmaps hold no positive"):
        fitted = HeatmapClustering("mean-distance").fit(flipped)
    expected = HeatmapClustering("mean-distance").fit(HEATMAPS)
    np.testing.assert_array_equal(fitted.labels_, expected.labels_)
    flipped[7] = 0
    with pytest.raises(ValueError, match=r"maps \[7\] \(1 of 120\): look at the training"):
        HeatmapClustering("mean-distance").fit(flipped)
    with pytest.raises(ValueError, match=r"maps \[7\] \(1 of 120\): look at the training"):
        HeatmapClustering("mean-distance", negative="minmax").fit(flipped)
    with pytest.raises(ValueError, match=r"maps \[1\] \(1 of 3\)"):
        expected.decision_function(flipped[6:9])


def test_heatmaps_of_another_size_are_refused():
    fitted = HeatmapClustering("mean-distance").fit(HEATMAPS)
    np.testing.assert_array_equal(
        fitted.labels_, HeatmapClustering("mean-distance").fit(HEATMAPS.reshape(N, -1)).labels_
    )
    with pytest.raises(ValueError, match="was fitted with"):
        fitted.decision_function(HEATMAPS[:, 1:, 1:])
    with pytest.raises(ValueError, match="shape"):
        fitted.fit(np.ones((4, 3, 8, 8)))
    with pytest.raises(ValueError, match="at least 2"):
        fitted.fit(HEATMAPS[:1])
    with pytest.raises(ValueError, match=r"one shape, got shapes \[\(31, 32\), \(32, 32\)\]: pad"):
        fitted.fit([*HEATMAPS[:3], HEATMAPS[3, 1:]])


def test_sliced_wasserstein_sees_shapes_wherever_they_lie():
    """Two blobs of different width at random places: the width decides, not the place."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    wide = np.arange(40) < 12
    maps = np.stack([
        np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * (2.4 if w else 1.2) ** 2))
        for w, a, b in zip(wide, *rng.uniform(7, 16, (2, 40)), strict=True)
    ])  # fmt: skip
    sliced = HeatmapClustering("sliced-wasserstein").fit(maps)
    np.testing.assert_array_equal(sliced.poisoned_, wide)
    euclidean = HeatmapClustering("euclidean").fit(maps)
    assert (euclidean.poisoned_ != wide).mean() > 0.2


def test_sliced_wasserstein_reaches_the_optimum_of_scikit_learn():
    fitted = HeatmapClustering("sliced-wasserstein", max_iter=100).fit(HEATMAPS)
    vectors = sliced_quantiles(gw.grid_weights(HEATMAPS))
    expected = KMeans(2, n_init=20, random_state=0).fit(vectors)
    assert fitted.inertia_ == pytest.approx(expected.inertia_, rel=1e-6)
    assert fitted.cluster_centers_.shape == expected.cluster_centers_.shape
