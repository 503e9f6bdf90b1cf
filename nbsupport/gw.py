r"""Heatmaps as metric measure spaces, and the distances and means between them.

A heatmap becomes a pair (C, p): `p` is the relevance carried by each kept pixel, normalised to
sum to 1, and `C` holds the Euclidean distances between those pixels, divided by the largest of
them (sections 5.4 and 5.5 of the paper). What is compared is the *shape* of the explanation:
moving or turning the heatmap changes neither `C` nor `p`.

The module has three parts.

1. From heatmaps to clouds, one (`top_relevance`) or all at once (`grid_weights`).
2. Gromov-Wasserstein (GW) distances and barycentres of a few clouds, solved by POT.
3. The distribution of pixel distances under p x p. All maps live on one pixel grid, so that it is
   an autocorrelation: one Fourier transform a map instead of an n x n matrix. Its mean and
   variance are all that remains of GW clustering once the entropic barycentre has collapsed
   (`collapse_threshold`, `closed_form_distance`).

References
----------
.. [1] Mémoli, "Gromov-Wasserstein distances and the metric approach to object matching",
   Foundations of Computational Mathematics 11, 2011.
.. [2] Peyré, Cuturi, Solomon, "Gromov-Wasserstein averaging of kernel and distance matrices",
   ICML 2016.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ot
from scipy import fft

__all__ = [
    "Coupling",
    "DistanceDistribution",
    "DistanceMoments",
    "PointCloud",
    "barycentre",
    "closed_form_distance",
    "collapse_threshold",
    "distance_distribution",
    "distance_moments",
    "distance_quantiles",
    "entropic_gw",
    "exact_gw",
    "grid_distances",
    "grid_weights",
    "gw_value",
    "mean_distance",
    "mean_quantiles",
    "point_cloud",
    "random_structure",
    "top_relevance",
]

NEGATIVE = ("clip", "minmax", "absolute")
"""What may be done with negative relevance; see `grid_weights`."""

_CHUNK = 256  # maps transformed at a time: keeps the padded spectra of 32 x 32 maps near 20 MB


@dataclass(frozen=True)
class PointCloud:
    """A finite metric measure space (C, p).

    Attributes
    ----------
    C : ndarray, shape (n, n), float64
        Pairwise distances: in units of the largest one, or in pixels if not normalised.
    p : ndarray, shape (n,), float64
        Weights, positive, summing to 1.
    pixels : ndarray or None, shape (n, 2), int64
        Row and column of each point on the pixel grid; None for a barycentre, which lives on none.
    """

    C: np.ndarray
    p: np.ndarray
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number n of points."""
        return len(self.p)


@dataclass(frozen=True)
class Coupling:
    """How one cloud is matched with another.

    Attributes
    ----------
    value : float
        Square-loss GW objective at `T`, without the entropy term: the square of a distance, in
        squared units of C.
    T : ndarray, shape (n, m)
        Transport plan: row sums are the weights of the first cloud, column sums of the second.
    """

    value: float
    T: np.ndarray


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
        Largest distance between kept pixels, in pixels. The other moments are in units of it
        (or in pixels, if they were asked for un-normalised).
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


def grid_weights(heatmaps, share: float = 0.99, negative: str = "clip") -> np.ndarray:
    """Keep, in every heatmap, the fewest pixels that carry more than `share` of the relevance.

    Parameters
    ----------
    heatmaps : array or Tensor, shape (n, H, W)
        Relevance per pixel, summed over colour channels (any unit; only ratios matter).
    share : float, in (0, 1]
        Share of the total relevance to keep; 1 keeps every pixel of positive weight.
    negative : {"clip", "minmax", "absolute"}
        What becomes of negative relevance. "clip" keeps the positive part: the evidence *for* the
        class. "minmax" is the released code: each map is rescaled to [0, 1], so that its lowest
        value gets weight 0 and a map of one negative sign is turned upside down. "absolute"
        takes |R|, which for maps of one sign does not depend on the sign.

    Returns
    -------
    ndarray, shape (n, H * W), float64
        Weights of all pixels, row by row, zero where nothing is kept; rows sum to 1.

    Raises
    ------
    ValueError
        If the maps differ in shape, or one holds NaN or infinity, or nothing to keep (no positive
        relevance for "clip", a constant map for "minmax").

    Notes
    -----
    Section 5.4 ("top 99 %"), in the order of the released code: scale, divide by the sum, sort
    descending, keep the shortest prefix whose mass exceeds `share`, renormalise. Among equal
    values the earlier pixel is kept.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share!r}; the paper keeps 0.99")
    weight = nonnegative(heatmaps, negative)
    weight /= weight.sum(axis=1, keepdims=True)
    order = np.argsort(-weight, axis=1, kind="stable")
    ranked = np.take_along_axis(weight, order, axis=1)
    # A pixel belongs to the prefix iff the mass before it does not exceed the share yet. At
    # share = 1 rounding could carry the running sum past 1, so there nothing is cut.
    before = np.cumsum(ranked, axis=1)[:, :-1]
    ranked[:, 1:][before > (share if share < 1 else np.inf)] = 0.0
    np.put_along_axis(weight, order, ranked, axis=1)
    return weight / weight.sum(axis=1, keepdims=True)


def nonnegative(heatmaps, negative: str = "clip") -> np.ndarray:
    """Relevance without negative values, not normalised yet, shape (n, H * W); see `grid_weights`.

    Raises
    ------
    ValueError
        As `grid_weights` does. The maps at fault are named by their place in `heatmaps`.
    """
    maps = as_maps(heatmaps)
    R = maps.reshape(len(maps), -1)
    if negative == "clip":
        weight = np.maximum(R, 0.0)
    elif negative == "minmax":
        weight = R - R.min(axis=1, keepdims=True)
    elif negative == "absolute":
        weight = np.abs(R)
    else:
        raise ValueError(f"negative={negative!r} is unknown; choose one of {NEGATIVE}")
    empty = ~(weight > 0).any(axis=1)
    if empty.any():
        raise ValueError(
            f"no relevance left to keep with negative={negative!r} in maps {_some(empty)}: "
            "look at the training of the network, or, for maps of one negative sign (a negative "
            "logit under a squared rule), pass negative='absolute'"
        )
    return weight


def top_relevance(
    heatmap, share: float = 0.99, negative: str = "clip", *, normalise: bool = True
) -> PointCloud:
    """Keep the fewest pixels of one heatmap that carry more than `share` of the relevance.

    Parameters
    ----------
    heatmap : array or Tensor, shape (H, W)
        Relevance per pixel, summed over colour channels (any unit; only ratios matter).
    share, negative
        As in `grid_weights`.
    normalise : bool, default True
        Divide C by its maximum, as the released code does; False leaves pixels.

    Returns
    -------
    PointCloud
        The kept pixels in row order, not in order of relevance.

    Raises
    ------
    ValueError
        If `heatmap` is not one finite map or holds nothing to keep.

    Notes
    -----
    Section 5.4 of the paper.
    """
    heatmap = np.asarray(heatmap)
    if heatmap.ndim != 2:
        raise ValueError(f"heatmap must have shape (H, W), got {heatmap.shape}; sum over channels")
    weights = grid_weights(heatmap[None], share, negative)[0]
    return point_cloud(weights, heatmap.shape, normalise=normalise)


def point_cloud(
    weights, shape: tuple[int, int] | None = None, *, normalise: bool = True
) -> PointCloud:
    """Turn one row of `grid_weights` into the pair (C, p) of its support.

    Parameters
    ----------
    weights : ndarray, shape (H * W,)
        Weights on the pixel grid.
    shape : (int, int), optional
        (H, W); a square grid when left out.
    normalise : bool, default True
        Divide C by its maximum. A cloud of a single pixel keeps C = 0.
    """
    grid = _as_grid(np.asarray(weights)[None], shape)[0]
    pixels = np.argwhere(grid > 0)
    C = np.sqrt(((pixels[:, None] - pixels[None]) ** 2).sum(axis=-1, dtype=np.float64))
    if normalise and C.max() > 0:
        C /= C.max()
    return PointCloud(C, grid[grid > 0], pixels)


def grid_distances(shape: tuple[int, int]) -> np.ndarray:
    """Euclidean distances in pixels between all pixels of an H x W grid, shape (H W, H W)."""
    pixels = np.indices(shape).reshape(2, -1)
    return np.hypot(*(pixels[:, :, None] - pixels[:, None, :]))


def gw_value(C1: np.ndarray, C2: np.ndarray, T: np.ndarray) -> float:
    r"""Square-loss GW objective of the plan `T`: sum of (C1_ik - C2_jl)^2 T_ij T_kl.

    The marginals are read off `T`, so that the value is exact for any non-negative `T`.

    Parameters
    ----------
    C1, C2 : ndarray, shapes (n, n) and (m, m)
        Distances within each space.
    T : ndarray, shape (n, m)
        Transport plan.
    """
    p, q = T.sum(axis=1), T.sum(axis=0)
    return float(p @ C1**2 @ p + q @ C2**2 @ q - 2.0 * np.sum((C1 @ T @ C2.T) * T))


def entropic_gw(a: PointCloud, b: PointCloud, epsilon: float = 0.1, **options) -> Coupling:
    """Match two clouds by entropic GW, the distance of the paper (section 6.2).

    Parameters
    ----------
    a, b : PointCloud
        Clouds of n and m points.
    epsilon : float, default 0.1
        Weight of the entropy, in squared units of C. The released code uses 0.1.
    **options
        Passed on to `ot.gromov.entropic_gromov_wasserstein`.

    Returns
    -------
    Coupling
        The plan and its value *without* the entropy term, as the released code uses it.

    Notes
    -----
    Projected gradient from the plan p q^T with Sinkhorn inside (Peyré, Cuturi, Solomon 2016).
    Not a distance: the value from a cloud to itself is not 0.

    Plan and value are reported as POT leaves them, not rounded onto the exact marginals as those
    of `nbsupport.transport` are. Where Sinkhorn's rounds reach their tolerance (1e-9), the sums of
    the plan miss the weights by about 1e-8 and rounding would change the value by less than
    1e-7 of it; where they do not, the value is no upper bound of GW^2.
    """
    value, log = ot.gromov.entropic_gromov_wasserstein2(
        a.C, b.C, a.p, b.p, "square_loss", epsilon=epsilon, symmetric=True, log=True, **options
    )
    return Coupling(float(value), log["T"])


def exact_gw(a: PointCloud, b: PointCloud, **options) -> Coupling:
    """Match two clouds by GW without entropy: conditional gradient, a local minimum.

    Parameters
    ----------
    a, b : PointCloud
        Clouds of n and m points.
    **options
        Passed on to `ot.gromov.gromov_wasserstein2`, for instance `G0`, the starting plan.

    Returns
    -------
    Coupling
        The plan and its value; an upper bound of GW^2, since the problem is not convex.
    """
    value, log = ot.gromov.gromov_wasserstein2(
        a.C, b.C, a.p, b.p, "square_loss", symmetric=True, log=True, **options
    )
    return Coupling(float(value), log["T"])


def random_structure(n_nodes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the start of a barycentre: squared distances of Gaussian points in the plane / max."""
    x = rng.standard_normal((n_nodes, 2))
    C = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
    return C / C.max()


def barycentre(
    clouds: Sequence[PointCloud],
    epsilon: float = 0.1,
    n_nodes: int = 10,
    *,
    rng: np.random.Generator,
    init: np.ndarray | None = None,
    **options,
) -> PointCloud:
    """Find the Fréchet mean of clouds under entropic GW, on `n_nodes` points of equal weight.

    Parameters
    ----------
    clouds : sequence of PointCloud
        The members, all with the same weight.
    epsilon : float, default 0.1
        Weight of the entropy. Above `collapse_threshold` the result is a constant matrix.
    n_nodes : int, default 10
        Number of points; 10 in the released code (the paper does not say).
    rng : numpy Generator
        Source of the random start.
    init : ndarray, shape (n_nodes, n_nodes), optional
        Start here instead.
    **options
        Passed on to `ot.gromov.entropic_gromov_barycenters`.

    Returns
    -------
    PointCloud
        Distances C and uniform weights; its points have no place on the pixel grid.

    Notes
    -----
    Peyré, Cuturi, Solomon 2016, algorithm 1, at most 1,000 rounds, tolerance 1e-9.
    """
    if len(clouds) == 0:
        raise ValueError("a barycentre needs at least one cloud, got none")
    start = random_structure(n_nodes, rng) if init is None else np.asarray(init, dtype=np.float64)
    q = np.full(n_nodes, 1.0 / n_nodes)
    C = ot.gromov.entropic_gromov_barycenters(
        n_nodes,
        [cloud.C for cloud in clouds],
        [cloud.p for cloud in clouds],
        q,
        loss_fun="square_loss",
        epsilon=epsilon,
        init_C=start,
        **options,
    )
    return PointCloud(C, q)


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
        Weights on the pixel grid, as `grid_weights` returns them; rows sum to 1.
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
    grid = _as_grid(weights, shape)
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


def distance_moments(
    weights, shape: tuple[int, int] | None = None, *, normalise: bool = True
) -> DistanceMoments:
    """Moments of the distance under p x p that a collapsed barycentre sees, for all maps at once.

    Parameters
    ----------
    weights : ndarray, shape (n, H * W) or (n, H, W)
        Weights on the pixel grid; rows sum to 1.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.
    normalise : bool, default True
        Divide each C by the diameter of its support, as the released code does.

    Returns
    -------
    DistanceMoments
        m1 = p^T C p, m2 = p^T C^2 p, Var_p(C p) and the diameters, each of shape (n,).
    """
    grid = _as_grid(weights, shape)
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
    unit = np.where(diameter > 0, diameter, 1.0) if normalise else 1.0
    return DistanceMoments(mean / unit, second / unit**2, spread / unit**2, diameter)


def mean_distance(
    weights, shape: tuple[int, int] | None = None, *, normalise: bool = True
) -> np.ndarray:
    """Relevance-weighted mean distance of two pixels, m1 = p^T C p, shape (n,).

    Parameters are those of `distance_moments`. This one number a map is what Heatmap Clustering
    at the settings of the released code divides into two groups.
    """
    return distance_moments(weights, shape, normalise=normalise).mean


def distance_quantiles(
    weights, n: int = 64, shape: tuple[int, int] | None = None, *, normalise: bool = False
) -> np.ndarray:
    """Quantile function of the distance under p x p, averaged over `n` slices of equal mass.

    Parameters
    ----------
    weights : ndarray, shape (maps, H * W) or (maps, H, W)
        Weights on the pixel grid; rows sum to 1.
    n : int, default 64
        Number of slices.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.
    normalise : bool, default False
        Divide by the diameter of each support; False leaves pixels.

    Returns
    -------
    ndarray, shape (maps, n)
        Entry k is the mean of the quantile function over [k/n, (k+1)/n], ascending in k; a row's
        mean is m1 = p^T C p. The mean squared difference of two rows is at most the squared
        2-Wasserstein distance of the two laws, hence at most GW^2.

    Notes
    -----
    Averages are taken rather than point values because the law lives on a few hundred distances:
    its quantile function is a staircase, and a point value jumps where the average moves smoothly.
    """
    if n < 1:
        raise ValueError(f"n must be a positive number of slices, got {n!r}; 64 is the default")
    law = distance_distribution(weights, shape)
    quantiles = mean_quantiles(law.distances, law.mass, n)
    unit = np.where(law.diameter > 0, law.diameter, 1.0) if normalise else np.ones(len(quantiles))
    return quantiles / unit[:, None]


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


def check_one_shape(maps) -> None:
    """Raise a ValueError that names the shapes unless there are maps, all of one shape."""
    shapes = {np.shape(row) for row in maps}
    if len(shapes) != 1:
        raise ValueError(
            f"maps must be at least one and of one shape, got shapes {sorted(shapes)}: pad "
            "them with zeros to one grid, position does not matter"
        )


def as_maps(heatmaps) -> np.ndarray:
    """Check heatmaps and bring them to shape (n, H, W), float64."""
    check_one_shape(heatmaps)
    maps = np.asarray(heatmaps, dtype=np.float64)
    if maps.ndim != 3 or 0 in maps.shape:
        raise ValueError(
            f"heatmaps must have shape (n, H, W), none of them 0, got {maps.shape}; "
            "sum the relevance over colour channels first"
        )
    finite = np.isfinite(maps).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(
            f"NaN or infinite relevance in maps {_some(~finite)}: look at the rule that made them"
        )
    return maps


def _as_grid(weights, shape: tuple[int, int] | None) -> np.ndarray:
    """Check weights and bring them to shape (n, H, W)."""
    grid = np.asarray(weights, dtype=np.float64)
    if grid.ndim == 2:
        side = int(np.sqrt(grid.shape[1]))
        shape = (side, side) if shape is None else tuple(shape)
        if shape[0] * shape[1] != grid.shape[1]:
            raise ValueError(
                f"{grid.shape[1]} weights a map do not fill a grid of shape {shape}: pass shape="
            )
        grid = grid.reshape(len(grid), *shape)
    if grid.ndim != 3:
        raise ValueError(f"weights must have shape (n, H * W) or (n, H, W), got {grid.shape}")
    wrong = ~np.isclose(grid.sum(axis=(1, 2)), 1.0, rtol=0, atol=1e-6) | (grid < 0).any(axis=(1, 2))
    if wrong.any():
        raise ValueError(
            f"weights of maps {_some(wrong)} are negative or do not sum to 1: make them with "
            "grid_weights"
        )
    return grid


def _some(mask: np.ndarray) -> str:
    """Name the first few true positions."""
    index = np.flatnonzero(mask)
    return f"{index[:5].tolist()}{' ...' if len(index) > 5 else ''} ({len(index)} of {len(mask)})"
