"""The distance of two pixels drawn from a heatmap: its law, moments and quantiles under p x p.

All maps live on one pixel grid, so that the law is an autocorrelation: one Fourier transform a map
instead of an n x n matrix of distances. Its mean and variance are all that remains of GW clustering
once the entropic barycentre has collapsed (`collapse_threshold`, `closed_form_distance`).

`nbsupport.gw` makes the weights (`grid_weights`) and defines C and p.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

from nbsupport.gw import as_grid

__all__ = [
    "DistanceDistribution",
    "DistanceMoments",
    "closed_form_distance",
    "collapse_threshold",
    "distance_distribution",
    "distance_moments",
    "distance_quantiles",
    "mean_quantiles",
]

_CHUNK = 256  # maps transformed at a time: keeps the padded spectra of 32 x 32 maps near 20 MB


@dataclass(frozen=True)
class DistanceMoments:
    """What a collapsed barycentre sees of each map: moments of the distance under p x p.

    Attributes
    ----------
    mean : ndarray, shape (n,)
        m1 = p^T C p, the relevance-weighted mean distance of two pixels.
    second : ndarray, shape (n,)
        m2 = p^T C^2 p, with the square taken entry by entry.
    spread : ndarray, shape (n,)
        Var_p(C p): how much the mean distance to the others differs from pixel to pixel.
    diameter : ndarray, shape (n,)
        Largest distance between kept pixels, in pixels. The other moments are in units of it.
    """

    mean: np.ndarray
    second: np.ndarray
    spread: np.ndarray
    diameter: np.ndarray


@dataclass(frozen=True)
class DistanceDistribution:
    """Distribution of the distance of two pixels drawn independently from each map.

    Attributes
    ----------
    distances : ndarray, shape (r,)
        The distances that occur on the grid, in pixels, ascending from 0.
    mass : ndarray, shape (n, r)
        Probability of each distance under p x p; rows sum to 1.
    diameter : ndarray, shape (n,)
        Largest distance between kept pixels, in pixels.
    """

    distances: np.ndarray
    mass: np.ndarray
    diameter: np.ndarray


@lru_cache(maxsize=8)
def _lattice(shape: tuple[int, int]):
    """Tables of the padded grid on which displacements between pixels wrap around safely.

    Returns the padded shape, the length of each displacement (padded shape), the distances that
    occur (r,), and the flat displacement indices sorted by distance with the start of each group.
    """
    padded = tuple(fft.next_fast_len(2 * side - 1, real=True) for side in shape)
    steps = [np.rint(fft.fftfreq(side) * side).astype(np.int64) for side in padded]
    squared = steps[0][:, None] ** 2 + steps[1][None] ** 2
    real = (np.abs(steps[0])[:, None] < shape[0]) & (np.abs(steps[1])[None] < shape[1])
    index = np.flatnonzero(real)
    index = index[np.argsort(squared.ravel()[index], kind="stable")]
    distinct, start = np.unique(squared.ravel()[index], return_index=True)
    return padded, np.sqrt(squared), np.sqrt(distinct), index, start


def _by_distance(grid: np.ndarray) -> np.ndarray:
    """Sum the autocorrelation of maps (n, H, W) over displacements of equal length: (n, r)."""
    padded, _, _, index, start = _lattice(grid.shape[1:])
    power = np.abs(fft.rfft2(grid, s=padded)) ** 2
    overlap = fft.irfft2(power, s=padded).reshape(len(grid), -1)
    return np.add.reduceat(overlap[:, index], start, axis=1)


def distance_distribution(weights, shape: tuple[int, int] | None = None) -> DistanceDistribution:
    """Distribution of the distance between two pixels drawn from each map, by autocorrelation.

    Parameters
    ----------
    weights : ndarray, shape (n, H * W) or (n, H, W)
        Weights on the pixel grid, as `gw.grid_weights` returns them; rows sum to 1.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.

    Returns
    -------
    DistanceDistribution
        Distances in pixels, their mass under p x p, and the diameter of each support.

    Notes
    -----
    The law that Mémoli (2011, section 6) compares in the second of his lower bounds. Invariant
    under moving, mirroring and quarter turns of a map.
    """
    grid = as_grid(weights, shape)
    distances = _lattice(grid.shape[1:])[2]
    mass = np.empty((len(grid), len(distances)))
    for first in range(0, len(grid), _CHUNK):
        mass[first : first + _CHUNK] = _by_distance(grid[first : first + _CHUNK])
    diameter = _diameter(grid)
    # The transform leaves noise of the order 1e-18 where no pair of pixels exists.
    mass[(mass < 0) | (distances > diameter[:, None])] = 0.0
    return DistanceDistribution(distances, mass / mass.sum(axis=1, keepdims=True), diameter)


def _diameter(grid: np.ndarray) -> np.ndarray:
    """Compute the diameters in pixels of the supports of maps (n, H, W): the maximum of each C.

    Two pixels at the largest distance are each the first or the last of their row, so that H
    pairs (first, last) stand for all pixels.
    """
    kept = grid > 0
    height, width = grid.shape[1:]
    empty = ~kept.any(axis=2)
    first = np.where(empty, np.inf, kept.argmax(axis=2))
    last = np.where(empty, -np.inf, width - 1 - kept[:, :, ::-1].argmax(axis=2))
    across = last[:, None, :] - first[:, :, None]  # from one row's first to another row's last
    down = np.subtract.outer(np.arange(height), np.arange(height))
    # Where the last lies left of the first, the same two rows taken the other way round are
    # farther apart; where a row is empty, there is no pair.
    squared = np.where(across >= 0, across, 0.0) ** 2 + np.where(across > -np.inf, down**2, 0)
    return np.sqrt(squared.max(axis=(1, 2)))


def distance_moments(weights, shape: tuple[int, int] | None = None) -> DistanceMoments:
    """Moments of the distance under p x p that a collapsed barycentre sees, for all maps at once.

    Parameters
    ----------
    weights : ndarray, shape (n, H * W) or (n, H, W)
        Weights on the pixel grid; rows sum to 1.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.

    Returns
    -------
    DistanceMoments
        m1 = p^T C p, m2 = p^T C^2 p, Var_p(C p) and the diameters, each of shape (n,); each C is
        divided by the diameter of its support, as in the released code.
    """
    grid = as_grid(weights, shape)
    padded, length, *_ = _lattice(grid.shape[1:])
    kernel = fft.rfft2(length)
    mean, spread = np.empty((2, len(grid)))
    for first in range(0, len(grid), _CHUNK):
        part = slice(first, first + _CHUNK)
        p = grid[part]
        # C p is the convolution of the weights with the length of the displacement.
        Cp = fft.irfft2(fft.rfft2(p, s=padded) * kernel, s=padded)[:, : p.shape[1], : p.shape[2]]
        mean[part] = np.einsum("nij,nij->n", p, Cp)
        spread[part] = np.einsum("nij,nij->n", p, (Cp - mean[part, None, None]) ** 2)
    # The mean squared distance of two points is twice the variance of one.
    second = 2.0 * sum(
        np.einsum("nij,nij->n", grid, (x - np.einsum("nij,ij->n", grid, x)[:, None, None]) ** 2)
        for x in np.indices(grid.shape[1:]).astype(np.float64)
    )
    diameter = _diameter(grid)
    unit = np.where(diameter > 0, diameter, 1.0)
    return DistanceMoments(mean / unit, second / unit**2, spread / unit**2, diameter)


def distance_quantiles(weights, n: int = 64, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Quantile function of the distance under p x p, averaged over `n` slices of equal mass.

    Parameters
    ----------
    weights : ndarray, shape (maps, H * W) or (maps, H, W)
        Weights on the pixel grid; rows sum to 1.
    n : int, default 64
        Number of slices.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.

    Returns
    -------
    ndarray, shape (maps, n)
        In pixels. Entry k is the mean of the quantile function over [k/n, (k+1)/n], ascending in
        k; a row's mean is m1 = p^T C p. The mean squared difference of two rows is at most the
        squared 2-Wasserstein distance of the two laws, hence at most GW^2.

    Notes
    -----
    Averages are taken rather than point values because the law lives on a few hundred distances:
    its quantile function is a staircase, and a point value jumps where the average moves smoothly.
    """
    if n < 1:
        raise ValueError(f"n must be a positive number of slices, got {n!r}; 64 is the default")
    law = distance_distribution(weights, shape)
    return mean_quantiles(law.distances, law.mass, n)


def mean_quantiles(places: np.ndarray, mass: np.ndarray, n: int) -> np.ndarray:
    """Average quantile functions of laws on the same places over n slices each.

    Parameters
    ----------
    places : ndarray, shape (k,)
        Ascending.
    mass : ndarray, shape (laws, k)
        Each row sums to 1.
    n : int
        Slices.

    Returns
    -------
    ndarray, shape (laws, n)
    """
    zero = np.zeros((len(mass), 1))
    reached = np.hstack([zero, np.cumsum(mass, axis=1)])
    area = np.hstack([zero, np.cumsum(mass * places, axis=1)])
    reached[:, -1] = 1.0
    levels = np.arange(n + 1) / n
    integral = np.stack([np.interp(levels, u, a) for u, a in zip(reached, area, strict=True)])
    return n * np.diff(integral, axis=1)


def collapse_threshold(moments: DistanceMoments) -> float:
    r"""Entropy weight above which the barycentre collapses to a constant: 4 E[Var_p(C p)].

    Parameters
    ----------
    moments : DistanceMoments
        Moments of the members of one cluster, in the units in which epsilon is meant.

    Returns
    -------
    float
        eps* = 4 E[Var_p(C p)], in squared units of C.

    Notes
    -----
    Let the barycentre be a constant plus a small symmetric D, and u = D q its centred row means.
    To first order the plan against (C, p) is
    T_ai = q_a p_i (1 + 4 u_a ((C p)_i - m1) / eps), and the barycentre it gives has centred row
    means 4 Var_p(C p) / eps times u. A step multiplies the perturbation by
    kappa = 4 E[Var_p(C p)] / eps: it dies out iff eps > eps*. A statement about *small*
    perturbations: near eps*, a start far from constant may still escape.
    """
    return 4.0 * float(np.mean(moments.spread))


def closed_form_distance(m1, m2, c):
    """GW value between a cloud and a space all of whose distances equal `c`.

    Parameters
    ----------
    m1, m2 : float or ndarray
        Moments p^T C p and p^T C^2 p of the cloud.
    c : float or ndarray
        The constant, also on the diagonal.

    Returns
    -------
    float or ndarray
        (m1 - c)^2 + (m2 - m1^2), for *every* coupling: the plan has nothing left to decide. Only
        the first term depends on c, so that the nearest of several constants is the nearest to m1.
    """
    return (m1 - c) ** 2 + (m2 - m1**2)
