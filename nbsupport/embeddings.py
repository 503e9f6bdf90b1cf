"""Heatmaps as vectors whose Euclidean distance is a distance between maps.

One more such embedding: `nbsupport.distances.distance_quantiles`.

References
----------
.. [1] Bonneel, Rabin, Peyré, Pfister, "Sliced and Radon Wasserstein barycenters of measures",
   Journal of Mathematical Imaging and Vision 51, 2015.
"""

import numpy as np

from nbsupport import distances, gw

__all__ = ["downsized", "sliced_quantiles"]


def sliced_quantiles(
    weights,
    shape: tuple[int, int] | None = None,
    *,
    n_directions: int = 8,
    n_quantiles: int = 128,
    centre: bool = True,
) -> np.ndarray:
    """Embed maps so that Euclidean distance is the sliced 2-Wasserstein distance.

    Each map, a measure on the pixel grid, is projected onto lines; on a line the Wasserstein
    distance is the distance of quantile functions.

    Parameters
    ----------
    weights : ndarray, shape (n, H * W) or (n, H, W)
        Weights on the pixel grid, as `gw.grid_weights` returns them; rows sum to 1.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.
    n_directions : int, default 8
        Lines, evenly spread over half a turn. For a multiple of 4 none lies along rows, columns
        or diagonals of the grid, where whole lines of pixels fall on one point. Nothing is drawn.
    n_quantiles : int, default 128
        Slices of equal mass over which each quantile function is averaged.
    centre : bool, default True
        Move the mean position of every map to the origin first, so that moving a map changes
        nothing. Turning it does, unlike with Gromov-Wasserstein.

    Returns
    -------
    ndarray, shape (n, n_directions * n_quantiles)
        In pixels, scaled so that the squared distance of two rows is SW_2^2 over these lines,
        approached from below as the slices become finer.

    Raises
    ------
    ValueError
        If flat weights do not fill the grid, or rows are no weights that sum to 1.

    Notes
    -----
    Optimal transport proper solves a linear programme for each map, centre and round of a
    clustering, and its means have no closed form. On a bounded grid the sliced distance is
    equivalent to it (Bonneel et al. 2015), and in the plane 2 SW_2^2 <= W_2^2. In this embedding
    k-means minimises sliced distances to means of quantile functions; these need not belong to
    any one measure, so that the means are a little freer than sliced barycentres.
    """
    grid = gw.as_grid(weights, shape)
    weights = grid.reshape(len(grid), -1)
    y, x = (places.ravel() for places in np.indices(grid.shape[1:]))
    angles = np.pi * (np.arange(n_directions) + 0.5) / n_directions
    parts = []
    for direction in np.column_stack([np.cos(angles), np.sin(angles)]):
        place = direction @ np.stack([x, y])
        order = np.argsort(place, kind="stable")
        parts.append(distances.mean_quantiles(place[order], weights[:, order], n_quantiles))
    quantiles = np.stack(parts, axis=1)
    if centre:
        quantiles -= quantiles.mean(axis=2, keepdims=True)
    return quantiles.reshape(len(weights), -1) / np.sqrt(n_directions * n_quantiles)


def downsized(heatmaps, side: int = 16) -> np.ndarray:
    """Sum relevance, with its sign, over the cells of a coarser grid.

    Parameters
    ----------
    heatmaps : array, shape (n, H, W)
        Relevance per pixel.
    side : int, default 16
        Cells along each side; no more than there are pixels.

    Returns
    -------
    ndarray, shape (n, cells)
        Each map divided by its summed magnitude, so that confident and hesitant predictions
        compare; a map of zeros stays one.

    Raises
    ------
    ValueError
        If a map holds NaN or infinity.
    """
    maps = gw.as_maps(heatmaps)
    total = np.abs(maps).sum(axis=(1, 2))
    for axis in (1, 2):
        cells = min(side, maps.shape[axis])
        maps = np.add.reduceat(maps, np.arange(cells) * maps.shape[axis] // cells, axis=axis)
    return maps.reshape(len(maps), -1) / np.where(total > 0, total, 1.0)[:, None]
