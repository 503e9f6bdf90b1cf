import numpy as np
import pytest
import torch
from heatmaps import disc_maps

from nbsupport import gw


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
    # A running sum may round to more than 1 before the last, faintest pixels.
    faint = np.random.default_rng(0).random((50, 8, 8))
    faint[:, 0] = 1e-17
    ranked = np.sort(faint.reshape(50, -1) / faint.sum(axis=(1, 2))[:, None])[:, ::-1]
    assert (np.cumsum(ranked, axis=1)[:, :-1] > 1).any()
    assert (gw.grid_weights(faint, 1.0) > 0).all()


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


def test_grid_distances_are_those_of_the_clouds(weights):
    D = gw.grid_distances((32, 32))
    kept = weights[0] > 0
    np.testing.assert_allclose(
        D[np.ix_(kept, kept)], gw.point_cloud(weights[0], normalise=False).C, rtol=1e-14
    )


def test_gw_value_is_the_quadruple_sum():
    rng = np.random.default_rng(0)
    C1, C2, T = (rng.random(shape) for shape in ((4, 4), (3, 3), (4, 3)))
    gap = (C1[:, None, :, None] - C2[None, :, None, :]) ** 2
    assert gw.gw_value(C1, C2, T) == pytest.approx(np.einsum("ijkl,ij,kl", gap, T, T), rel=1e-12)


def test_a_random_structure_lies_in_a_plane():
    C = gw.random_structure(10, np.random.default_rng(0))
    assert C.max() == 1
    assert not C.diagonal().any()
    assert np.linalg.matrix_rank(C) == 4  # of squared distances between points of d = 2: d + 2
    assert not gw.random_structure(1, np.random.default_rng(0)).any()


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
