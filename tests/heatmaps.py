"""Heatmaps for tests: plausible relevance without a network."""

import numpy as np


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
