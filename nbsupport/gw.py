r"""Heatmaps as metric measure spaces, and the distances and means between them.

A heatmap becomes a pair (C, p): `p` is the relevance carried by each kept pixel, normalised to
sum to 1, and `C` holds the Euclidean distances between those pixels, divided by the largest of
them (sections 5.4 and 5.5 of the paper). What is compared is the *shape* of the explanation:
moving or turning the heatmap changes neither `C` nor `p`.

`top_relevance` makes one cloud of one heatmap, `grid_weights` the weights of all at once; POT
solves Gromov-Wasserstein (GW) distances and barycentres of a few clouds. What can be said of a map
without any transport stands in `nbsupport.distances`, a solver for many maps in
`nbsupport.transport`.

References
----------
.. [1] Mémoli, "Gromov-Wasserstein distances and the metric approach to object matching",
   Foundations of Computational Mathematics 11, 2011.
.. [2] Peyré, Cuturi, Solomon, "Gromov-Wasserstein averaging of kernel and distance matrices",
   ICML 2016.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ot

__all__ = [
    "Coupling",
    "PointCloud",
    "barycentre",
    "entropic_gw",
    "exact_gw",
    "grid_distances",
    "grid_weights",
    "gw_value",
    "point_cloud",
    "random_structure",
    "top_relevance",
]

NEGATIVE = ("clip", "minmax", "absolute")
"""What may be done with negative relevance; see `grid_weights`."""


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
            f"no relevance left to keep with negative={negative!r} in maps {name_rows(empty)}: "
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
    grid = as_grid(np.asarray(weights)[None], shape)[0]
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

    Raises
    ------
    ValueError
        If epsilon is not positive, or so small that POT ends with something else than a plan.
    """
    check_epsilon(epsilon)
    value, log = ot.gromov.entropic_gromov_wasserstein2(
        a.C, b.C, a.p, b.p, "square_loss", epsilon=epsilon, symmetric=True, log=True, **options
    )
    # exp(-M / epsilon) underflows where epsilon is small: POT warns and returns zeros, of value 0.
    if not abs(log["T"].sum() - 1) <= 1e-5:
        raise ValueError(
            f"POT found no plan with epsilon={epsilon}: its masses add up to {log['T'].sum():g} "
            "instead of 1; raise epsilon, or take solver='batched' (nbsupport.transport)"
        )
    return Coupling(float(value), log["T"])


def check_epsilon(epsilon: float) -> None:
    """Refuse a weight of the entropy that is not positive."""
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon!r}; 0.01 is usual")


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
    return C / (C.max() or 1.0)  # a single node lies at no distance from itself


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
        Weight of the entropy. Above `distances.collapse_threshold` the result is a constant matrix.
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
    check_epsilon(epsilon)
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
    check_finite(np.isfinite(maps).all(axis=(1, 2)))
    return maps


def check_finite(finite: np.ndarray) -> None:
    """Raise a ValueError that names the maps, shape (n,), that are not finite."""
    if not finite.all():
        raise ValueError(
            f"NaN or infinite relevance in maps {name_rows(~finite)}: look at the rule that made "
            "them"
        )


def as_grid(weights, shape: tuple[int, int] | None) -> np.ndarray:
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
            f"weights of maps {name_rows(wrong)} are negative or do not sum to 1: make them with "
            "grid_weights"
        )
    return grid


def name_rows(mask: np.ndarray) -> str:
    """Name the first few true positions."""
    index = np.flatnonzero(mask)
    return f"{index[:5].tolist()}{' ...' if len(index) > 5 else ''} ({len(index)} of {len(mask)})"
