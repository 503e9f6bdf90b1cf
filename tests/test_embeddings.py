import numpy as np
import ot
import pytest
from suspects import HEATMAPS

from nbsupport import gw
from nbsupport.embeddings import downsized, sliced_quantiles

WEIGHTS = gw.grid_weights(HEATMAPS[[0, 1, 30, 31, 32]])
PIXELS = np.argwhere(np.ones((32, 32))).astype(float)
PAIRS = [(0, 1), (0, 2), (2, 3), (1, 4)]


def squared(rows, i, j):
    return ((rows[i] - rows[j]) ** 2).sum()


def directions(n):
    angles = np.pi * (np.arange(n) + 0.5) / n
    return np.stack([np.sin(angles), np.cos(angles)])  # rows (y, x), as in PIXELS


def test_distances_are_those_of_pot_on_the_same_lines():
    rows = sliced_quantiles(WEIGHTS, n_quantiles=2000, centre=False)
    for i, j in PAIRS:
        expected = ot.sliced_wasserstein_distance(
            PIXELS, PIXELS, WEIGHTS[i], WEIGHTS[j], projections=directions(8)
        )
        assert np.sqrt(squared(rows, i, j)) == pytest.approx(expected, rel=1e-3)


def test_default_slices_and_lines_are_enough():
    fine = sliced_quantiles(WEIGHTS, n_directions=90, n_quantiles=1000)
    ours = sliced_quantiles(WEIGHTS)
    for i, j in PAIRS:
        assert squared(ours, i, j) == pytest.approx(squared(fine, i, j), rel=0.05)


def test_the_sliced_distance_bounds_optimal_transport_from_below():
    centred = PIXELS - np.einsum("np,pd->nd", WEIGHTS, PIXELS)[:, None]
    rows = sliced_quantiles(WEIGHTS, n_directions=64)
    for i, j in PAIRS:
        keep_i, keep_j = WEIGHTS[i] > 0, WEIGHTS[j] > 0
        cost = ot.dist(centred[i][keep_i], centred[j][keep_j])
        exact = ot.emd2(WEIGHTS[i][keep_i], WEIGHTS[j][keep_j], cost, numItermax=10**6)
        assert 0.2 * exact < 2 * squared(rows, i, j) <= exact * (1 + 1e-6)


def test_moving_a_map_changes_nothing_and_turning_it_does():
    maps = np.zeros((4, 20, 20))
    maps[0, 2:5, 2:9] = maps[1, 12:15, 11:18] = 1
    maps[2, 2:9, 2:5] = 1
    maps[3, 12:15, 11:17] = 1
    weights = gw.grid_weights(maps, share=1)
    rows = sliced_quantiles(weights, (20, 20))
    assert squared(rows, 0, 1) < 1e-20
    assert squared(rows, 0, 2) > 0.1
    assert squared(rows, 0, 3) > 1e-3
    moved = sliced_quantiles(weights, centre=False)
    step = np.array([10, 9])
    assert squared(moved, 0, 1) == pytest.approx((step**2).sum() / 2, rel=1e-9)


def test_flat_weights_need_their_shape():
    grid = np.full((2, 4, 8), 1 / 32)
    expected = sliced_quantiles(grid)
    np.testing.assert_array_equal(sliced_quantiles(grid.reshape(2, -1), (4, 8)), expected)
    with pytest.raises(ValueError, match="pass shape="):
        sliced_quantiles(grid.reshape(2, -1))


def test_weights_that_are_none_are_refused():
    weights = np.full((3, 16), 1 / 16)
    weights[1] *= 3
    with pytest.raises(ValueError, match=r"maps \[1\] \(1 of 3\) are negative or do not sum to 1"):
        sliced_quantiles(weights)


def test_downsized_sums_cells_and_keeps_the_sign():
    maps = np.arange(2 * 6 * 4, dtype=float).reshape(2, 6, 4) - 20
    cells = downsized(maps, side=2).reshape(2, 2, 2)
    expected = maps.reshape(2, 2, 3, 2, 2).sum(axis=(2, 4))
    np.testing.assert_allclose(cells * np.abs(maps).sum(axis=(1, 2))[:, None, None], expected)
    np.testing.assert_allclose(downsized(maps * 7), downsized(maps))
    assert downsized(maps, side=99).shape == (2, 24)
    assert not downsized(np.zeros((1, 6, 4))).any()
    uneven = downsized(np.ones((1, 7, 5)), side=3)
    assert uneven.sum() == pytest.approx(1)
    maps[1, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"NaN or infinite relevance in maps \[1\]"):
        downsized(maps)
