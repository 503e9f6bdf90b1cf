import numpy as np
import ot
import pytest
import torch

from nbsupport import gw


def disc_maps(n, n_spot, rng, side=32, bright=1.0):
    """Make plausible heatmaps: grainy relevance over a disc, the first `n_spot` with a 3x3 spot."""
    y, x = np.mgrid[:side, :side]
    maps = np.empty((n, side, side))
    for k in range(n):
        cy, cx = (side - 1) / 2 + rng.normal(0, side / 32, 2)
        radius = side * rng.uniform(0.31, 0.44)
        far = (y - cy) ** 2 + (x - cx) ** 2
        maps[k] = np.exp(-far / (0.8 * radius**2)) * (far < radius**2) * rng.gamma(2, 1, far.shape)
        maps[k] /= maps[k].sum()
        if k < n_spot:
            i, j = rng.integers(side * 5 // 16, side * 5 // 8, 2)
            maps[k, i : i + 3, j : j + 3] += bright * rng.uniform(0.05, 0.1)
    return maps


@pytest.fixture(scope="module")
def maps():
    return disc_maps(12, 4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def weights(maps):
    return gw.grid_weights(maps)


def released_cloud(heatmap, share=0.99):
    """Transcribe the released code's loop: the oracle for the kept pixels and their weights."""
    im = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    im = im / im.sum()
    ranked = sorted(
        ((im[i, j], i, j) for i in range(len(im)) for j in range(len(im))), reverse=True
    )
    kept, mass = [], 0.0
    while mass <= share:
        kept.append(ranked[len(kept)])
        mass += kept[-1][0]
    return {(i, j): value / mass for value, i, j in kept}


def test_top_relevance_minmax_is_the_released_loop(maps):
    signed = maps[0] - 0.3 * np.random.default_rng(1).random(maps[0].shape) * maps[0].max()
    cloud = gw.top_relevance(signed, negative="minmax")
    expected = released_cloud(signed)
    assert {tuple(pixel) for pixel in cloud.pixels} == set(expected)
    np.testing.assert_allclose(cloud.p, [expected[tuple(x)] for x in cloud.pixels], rtol=1e-12)


def test_top_relevance_clips_by_default_and_scales_by_the_diameter():
    heatmap = torch.zeros(8, 8)
    heatmap[1, 1], heatmap[1, 4], heatmap[5, 1], heatmap[7, 7] = 2.0, 1.0, 1.0, -9.0
    cloud = gw.top_relevance(heatmap)
    np.testing.assert_array_equal(cloud.pixels, [[1, 1], [1, 4], [5, 1]])
    np.testing.assert_allclose(cloud.p, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(cloud.C * 5, [[0, 3, 4], [3, 0, 5], [4, 5, 0]], atol=1e-15)
    assert gw.top_relevance(heatmap, normalise=False).C.max() == 5
    assert (7, 7) in set(map(tuple, gw.top_relevance(heatmap, negative="absolute").pixels))


def test_share_keeps_the_shortest_prefix_that_exceeds_it():
    heatmap = np.array([[4.0, 3.0], [2.0, 1.0]])
    for share, n in ((0.39, 1), (0.41, 2), (0.71, 3), (0.91, 4), (1.0, 4)):
        assert len(gw.top_relevance(heatmap, share)) == n
    assert (gw.grid_weights(np.random.default_rng(0).random((5, 8, 8)), 1.0) > 0).all()


@pytest.mark.parametrize("negative", gw.NEGATIVE)
def test_grid_weights_agrees_with_single_maps(maps, negative):
    signed = maps - 0.1 * maps.max()
    batch = gw.grid_weights(signed, 0.9, negative)
    np.testing.assert_allclose(batch.sum(axis=1), 1, rtol=1e-12)
    for row, heatmap in zip(batch, signed, strict=True):
        cloud = gw.top_relevance(heatmap, 0.9, negative)
        again = gw.point_cloud(row)
        np.testing.assert_array_equal(cloud.pixels, again.pixels)
        np.testing.assert_array_equal(cloud.p, again.p)
    np.testing.assert_allclose(gw.grid_weights(7 * signed, 0.9, negative), batch, rtol=1e-9)


def test_magnitude_does_not_see_the_sign_of_a_one_signed_map(maps):
    np.testing.assert_array_equal(
        gw.grid_weights(-maps, negative="absolute"), gw.grid_weights(maps)
    )


@pytest.mark.parametrize(
    ("heatmaps", "options", "message"),
    [
        (np.full((2, 4, 4), -1.0), {}, r"maps \[0, 1\]"),
        (np.ones((1, 4, 4)), {"negative": "minmax"}, "no relevance left"),
        (np.stack([np.ones((4, 4)), -np.ones((4, 4))]), {}, r"no relevance .* maps \[1\] \(1 of 2"),
        (np.full((1, 4, 4), np.nan), {}, "NaN or infinite"),
        (np.stack([np.ones((4, 4)), np.full((4, 4), np.inf)]), {}, r"maps \[1\] \(1 of 2\)"),
        ([np.ones((4, 4)), np.ones((4, 5))], {}, r"got shapes \[\(4, 4\), \(4, 5\)\]: pad"),
        (np.ones((4, 4)), {}, "shape"),
        (np.ones((1, 3, 4, 4)), {}, "channels"),
        (np.ones((1, 4, 4)), {"share": 0.0}, "share"),
        (np.ones((1, 4, 4)), {"share": 99}, "share"),
        (np.ones((1, 4, 4)), {"negative": "abs"}, "choose one of"),
    ],
)
def test_unusable_heatmaps_are_named(heatmaps, options, message):
    with pytest.raises(ValueError, match=message):
        gw.grid_weights(heatmaps, **options)


def test_weights_that_are_no_distribution_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        gw.mean_distance(np.ones((2, 16)))
    with pytest.raises(ValueError, match="pass shape="):
        gw.mean_distance(np.full((2, 6), 1 / 6))
    assert gw.mean_distance(np.full((2, 6), 1 / 6), (2, 3)).shape == (2,)


def test_grid_distances_are_those_of_the_clouds(weights):
    D = gw.grid_distances((32, 32))
    kept = weights[0] > 0
    np.testing.assert_allclose(
        D[np.ix_(kept, kept)], gw.point_cloud(weights[0], normalise=False).C, rtol=1e-14
    )


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", [(32, 32), (5, 9)])
def test_moments_and_law_equal_the_naive_sums(maps, normalise, shape):
    first, second = (16 - side // 2 for side in shape)
    cut = maps[:, first : first + shape[0], second : second + shape[1]]
    grid = gw.grid_weights(cut, 0.95)
    moments = gw.distance_moments(grid, shape, normalise=normalise)
    law = gw.distance_distribution(grid, shape)
    quantiles = gw.distance_quantiles(grid, 16, shape, normalise=normalise)
    for k, row in enumerate(grid):
        cloud = gw.point_cloud(row, shape, normalise=normalise)
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
    np.testing.assert_allclose(
        gw.mean_distance(grid, shape, normalise=normalise), moments.mean, rtol=1e-13
    )
    np.testing.assert_allclose(quantiles.mean(axis=1), moments.mean, rtol=1e-12)
    assert (np.diff(quantiles, axis=1) >= -1e-9).all()


def test_quantiles_of_two_pixels():
    heatmap = np.zeros((1, 8, 8))
    heatmap[0, 0, 0] = heatmap[0, 3, 4] = 1.0
    quantiles = gw.distance_quantiles(gw.grid_weights(heatmap), 4)
    np.testing.assert_allclose(quantiles, [[0, 0, 5, 5]], atol=1e-14)


def test_law_does_not_see_where_or_how_turned(maps):
    heatmap = np.zeros((32, 32))
    heatmap[4:20, 6:22] = maps[0, 8:24, 8:24]
    moved = [heatmap, np.roll(heatmap, (9, -5), (0, 1)), np.rot90(heatmap), heatmap[:, ::-1]]
    quantiles = gw.distance_quantiles(gw.grid_weights(np.stack(moved)))
    np.testing.assert_allclose(quantiles, np.broadcast_to(quantiles[0], quantiles.shape), atol=1e-9)


@pytest.mark.parametrize("kept", [2, 4, 9, 40])
def test_diameter_of_scattered_supports(kept):
    rng = np.random.default_rng(kept)
    grid = np.zeros((50, 7 * 11))
    for row in grid:
        row[rng.choice(77, kept, replace=False)] = 1 / kept
    naive = [gw.point_cloud(row, (7, 11), normalise=False).C.max() for row in grid]
    np.testing.assert_array_equal(gw.distance_moments(grid, (7, 11)).diameter, naive)


def test_one_pixel_has_no_diameter():
    weights = np.eye(16)[:2]
    moments = gw.distance_moments(weights)
    np.testing.assert_allclose(moments.mean, 0, atol=1e-15)
    assert (moments.diameter == 0).all()
    assert gw.point_cloud(weights[0]).C.tolist() == [[0.0]]
    assert np.isfinite(gw.distance_quantiles(weights, normalise=True)).all()


def test_laws_of_distances_differ_by_less_than_gw():
    maps = disc_maps(4, 2, np.random.default_rng(3), side=12)
    weights = gw.grid_weights(maps)
    clouds = [gw.point_cloud(row) for row in weights]
    quantiles = gw.distance_quantiles(weights, normalise=True)
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


def test_gw_value_is_the_quadruple_sum():
    rng = np.random.default_rng(0)
    C1, C2, T = (rng.random(shape) for shape in ((4, 4), (3, 3), (4, 3)))
    gap = (C1[:, None, :, None] - C2[None, :, None, :]) ** 2
    assert gw.gw_value(C1, C2, T) == pytest.approx(np.einsum("ijkl,ij,kl", gap, T, T), rel=1e-12)


def test_closed_form_holds_for_any_coupling_and_for_the_solver(weights):
    moments = gw.distance_moments(weights)
    rng = np.random.default_rng(0)
    for k in (0, 5):
        cloud, c = gw.point_cloud(weights[k]), rng.uniform(0.2, 0.6)
        constant = gw.PointCloud(np.full((10, 10), c), np.full(10, 0.1))
        expected = gw.closed_form_distance(moments.mean[k], moments.second[k], c)
        random_plan = ot.sinkhorn(constant.p, cloud.p, rng.random((10, len(cloud))), 0.05)
        assert gw.gw_value(constant.C, cloud.C, random_plan) == pytest.approx(expected, abs=1e-9)
        corner = ot.emd(constant.p, cloud.p, rng.random((10, len(cloud))))
        assert gw.gw_value(constant.C, cloud.C, corner) == pytest.approx(expected, abs=1e-10)
        assert gw.entropic_gw(constant, cloud).value == pytest.approx(expected, abs=1e-10)


def test_barycentre_collapses_above_the_threshold_only(weights):
    members = weights[[0, 1, 6, 7]]
    moments = gw.distance_moments(members)
    clouds = [gw.point_cloud(row) for row in members]
    threshold = gw.collapse_threshold(moments)
    assert 0.005 < threshold < 0.05
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
    moments = gw.distance_moments(weights)
    epsilon = ratio * gw.collapse_threshold(moments)
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


def test_barycentre_is_seeded_and_needs_members(weights):
    cloud = [gw.point_cloud(weights[0])]
    a, b = (gw.barycentre(cloud, 0.1, 4, rng=np.random.default_rng(7), max_iter=1) for _ in "ab")
    np.testing.assert_array_equal(a.C, b.C)
    assert a.pixels is None
    start = gw.random_structure(10, np.random.default_rng(0))
    assert start.max() == 1
    assert (np.diag(start) == 0).all()
    with pytest.raises(ValueError, match="at least one"):
        gw.barycentre([], rng=np.random.default_rng(0))
