import numpy as np
import ot
import pytest
from heatmaps import disc_maps

from nbsupport import distances, gw


@pytest.fixture(scope="module")
def maps():
    return disc_maps(12, 4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def weights(maps):
    return gw.grid_weights(maps)


def test_weights_that_are_no_distribution_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        distances.distance_moments(np.ones((2, 16)))
    with pytest.raises(ValueError, match="pass shape="):
        distances.distance_moments(np.full((2, 6), 1 / 6))
    assert distances.distance_moments(np.full((2, 6), 1 / 6), (2, 3)).mean.shape == (2,)


@pytest.mark.parametrize("shape", [(32, 32), (5, 9)])
def test_moments_and_law_equal_the_naive_sums(maps, shape):
    first, second = (16 - side // 2 for side in shape)
    cut = maps[:, first : first + shape[0], second : second + shape[1]]
    grid = gw.grid_weights(cut, 0.95)
    moments = distances.distance_moments(grid, shape)
    law = distances.distance_distribution(grid, shape)
    quantiles = distances.distance_quantiles(grid, 16, shape)
    whole = gw.grid_distances(shape)
    np.testing.assert_allclose(law.distances, np.unique(whole.round(12)), rtol=1e-11)
    assert (law.mass >= 0).all()
    assert not law.mass[law.distances > law.diameter[:, None]].any()
    for k, row in enumerate(grid):
        cloud = gw.point_cloud(row, shape)
        C, p = cloud.C, cloud.p
        assert moments.mean[k] == pytest.approx(p @ C @ p, abs=1e-12)
        assert moments.second[k] == pytest.approx(p @ C**2 @ p, abs=1e-10)
        assert moments.spread[k] == pytest.approx(p @ (C @ p) ** 2 - (p @ C @ p) ** 2, abs=1e-11)
        pixels = gw.point_cloud(row, shape, normalise=False).C
        assert moments.diameter[k] == law.diameter[k] == pixels.max()
        naive = np.zeros(len(law.distances))
        np.add.at(
            naive, np.searchsorted(law.distances, pixels.ravel() - 1e-9), np.outer(p, p).ravel()
        )
        np.testing.assert_allclose(law.mass[k], naive, atol=1e-14)
    np.testing.assert_allclose(quantiles.mean(axis=1), moments.mean * moments.diameter, rtol=1e-12)
    assert (np.diff(quantiles, axis=1) >= -1e-9).all()


def test_quantiles_of_two_pixels():
    heatmap = np.zeros((1, 8, 8))
    heatmap[0, 0, 0] = heatmap[0, 3, 4] = 1.0
    quantiles = distances.distance_quantiles(gw.grid_weights(heatmap), 4)
    np.testing.assert_allclose(quantiles, [[0, 0, 5, 5]], atol=1e-14)


def test_law_does_not_see_where_or_how_turned(maps):
    heatmap = np.zeros((32, 32))
    heatmap[4:20, 6:22] = maps[0, 8:24, 8:24]
    moved = [heatmap, np.roll(heatmap, (9, -5), (0, 1)), np.rot90(heatmap), heatmap[:, ::-1]]
    quantiles = distances.distance_quantiles(gw.grid_weights(np.stack(moved)))
    np.testing.assert_allclose(quantiles, np.broadcast_to(quantiles[0], quantiles.shape), atol=1e-9)


@pytest.mark.parametrize("kept", [2, 4, 9, 40])
def test_diameter_of_scattered_supports(kept):
    rng = np.random.default_rng(kept)
    grid = np.zeros((50, 7 * 11))
    for row in grid:
        row[rng.choice(77, kept, replace=False)] = 1 / kept
    naive = [gw.point_cloud(row, (7, 11), normalise=False).C.max() for row in grid]
    np.testing.assert_array_equal(distances.distance_moments(grid, (7, 11)).diameter, naive)


def test_one_pixel_has_no_diameter():
    weights = np.eye(16)[:2]
    moments = distances.distance_moments(weights)
    np.testing.assert_allclose(moments.mean, 0, atol=1e-15)
    assert (moments.diameter == 0).all()
    assert gw.point_cloud(weights[0]).C.tolist() == [[0.0]]
    np.testing.assert_allclose(distances.distance_quantiles(weights), 0, atol=1e-14)


def test_laws_of_distances_differ_by_less_than_gw():
    maps = disc_maps(4, 2, np.random.default_rng(3), side=12)
    weights = gw.grid_weights(maps)
    clouds = [gw.point_cloud(row) for row in weights]
    quantiles = distances.distance_quantiles(weights)
    quantiles /= distances.distance_moments(weights).diameter[:, None]
    for i, j in ((0, 1), (0, 2), (2, 3)):
        exact = gw.exact_gw(clouds[i], clouds[j])
        entropic = gw.entropic_gw(clouds[i], clouds[j])
        # Mémoli's second bound, and quantiles that are means over intervals lie below it.
        assert 0 < np.mean((quantiles[i] - quantiles[j]) ** 2) <= exact.value + 1e-12
        assert exact.value <= entropic.value
        for plan in (exact, entropic):
            np.testing.assert_allclose(plan.T.sum(axis=1), clouds[i].p, atol=1e-7)
            assert gw.gw_value(clouds[i].C, clouds[j].C, plan.T) == pytest.approx(
                plan.value, rel=1e-6
            )


def test_closed_form_holds_for_any_coupling_and_for_the_solver(weights):
    moments = distances.distance_moments(weights)
    rng = np.random.default_rng(0)
    for k in (0, 5):
        cloud, c = gw.point_cloud(weights[k]), rng.uniform(0.2, 0.6)
        constant = gw.PointCloud(np.full((10, 10), c), np.full(10, 0.1))
        expected = distances.closed_form_distance(moments.mean[k], moments.second[k], c)
        random_plan = ot.sinkhorn(constant.p, cloud.p, rng.random((10, len(cloud))), 0.05)
        assert gw.gw_value(constant.C, cloud.C, random_plan) == pytest.approx(expected, abs=1e-9)
        corner = ot.emd(constant.p, cloud.p, rng.random((10, len(cloud))))
        assert gw.gw_value(constant.C, cloud.C, corner) == pytest.approx(expected, abs=1e-10)
        assert gw.entropic_gw(constant, cloud).value == pytest.approx(expected, abs=1e-10)


def test_barycentre_collapses_above_the_threshold_only(weights):
    members = weights[[0, 1, 6, 7]]
    moments = distances.distance_moments(members)
    clouds = [gw.point_cloud(row) for row in members]
    threshold = distances.collapse_threshold(moments)
    collapsed = gw.barycentre(clouds, 0.1, rng=np.random.default_rng(0))
    np.testing.assert_allclose(collapsed.C, moments.mean.mean(), atol=1e-8)
    # POT takes minutes to converge down here; a few rounds show that nothing dies out.
    alive = gw.barycentre(
        clouds,
        0.6 * threshold,
        rng=np.random.default_rng(0),
        max_iter=15,
        numItermax=50,
        warn=False,
    )
    assert alive.C.std() > 0.03


@pytest.mark.parametrize("ratio", [1.5, 0.8])
def test_threshold_predicts_how_fast_a_small_perturbation_dies_or_grows(ratio):
    """One barycentre step multiplies the centred row means by eps* / eps."""
    weights = gw.grid_weights(disc_maps(3, 1, np.random.default_rng(5), side=14))
    moments = distances.distance_moments(weights)
    epsilon = ratio * distances.collapse_threshold(moments)
    u = np.random.default_rng(0).normal(size=6)
    u -= u.mean()
    start = moments.mean.mean() + 1e-5 * (u[:, None] + u[None])
    step = gw.barycentre(
        [gw.point_cloud(row) for row in weights],
        epsilon,
        6,
        rng=np.random.default_rng(0),
        init=start,
        max_iter=1,
        stopThr=1e-14,
    )
    rows = step.C.mean(axis=1) - step.C.mean()
    np.testing.assert_allclose(rows / (1e-5 * u), 1 / ratio, rtol=1e-3)
