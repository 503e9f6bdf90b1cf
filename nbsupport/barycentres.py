r"""Barycentres of heatmaps under entropic Gromov-Wasserstein, and k-means around them.

Everything runs on the batched solver of `nbsupport.transport`. One sweep over the maps gives the
values, hence the nearest centres, and the sums T^T C T that the next centres are averages of, so
that a round of Lloyd's algorithm costs one sweep. Between rounds the centres move little: with
the couplings carried over, one gradient step a pair and round is enough.

References
----------
.. [1] Peyré, Cuturi, Solomon, "Gromov-Wasserstein averaging of kernel and distance matrices",
   ICML 2016.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nbsupport import gw
from nbsupport.transport import (
    Couplings,
    HeatmapSpaces,
    Options,
    as_centres,
    as_labels,
    match,
    sweep,
)

__all__ = ["Barycentres", "Clustering", "EntropicGeometry", "average", "draw_centres", "kmeans"]

CENTRE_TOL = 1e-3
"""Centres stand still when no entry changes by more than this share of the largest."""


@dataclass(frozen=True)
class Barycentres:
    """Fréchet means of groups of heatmaps.

    Attributes
    ----------
    centres : ndarray, shape (k, m, m)
        Distances within each barycentre, in the units of the maps'; its weights are uniform.
    objective : ndarray, shape (n_rounds,)
        Mean over the members of the entropic objective, value - epsilon * entropy of the plan,
        with the centres that a round starts from.
    n_rounds : int
        Rounds.
    converged : bool
        Whether the last round changed no entry by more than `CENTRE_TOL` of the largest.
    """

    centres: np.ndarray
    objective: np.ndarray
    n_rounds: int
    converged: bool


@dataclass(frozen=True)
class Clustering:
    """Heatmaps in k groups around centres.

    Attributes
    ----------
    labels : ndarray, shape (n,), int64
        Group of each map: the centre of smallest cost.
    cost : ndarray, shape (n, k)
        What each centre costs each map, such as a GW value.
    centres : ndarray, shape (k, ...)
        Means, such as barycentres (k, m, m).
    n_rounds : int
        Rounds of the best start.
    converged : bool
        Whether in its last round no map changed its group and the centres stood still.
    n_unsettled : int
        Pairs of a map and a centre on which the solver gave up.
    """

    labels: np.ndarray
    cost: np.ndarray
    centres: np.ndarray
    n_rounds: int
    converged: bool
    n_unsettled: int = 0

    @property
    def inertia(self) -> float:
        """Sum of the smallest costs."""
        return float(self.cost.min(axis=1).sum())


class _Sums:
    """Collects what a sweep finds into the next centres."""

    def __init__(self, C: Tensor):
        self.C, self.total, self.count = C, torch.zeros_like(C), C.new_zeros(len(C))

    def add(self, labels: Tensor, structure: Tensor) -> None:
        self.total.index_add_(0, labels, structure)
        self.count += torch.bincount(labels, minlength=len(self.C))

    def centres(self) -> tuple[Tensor, float]:
        """Return the means, an old centre where nothing came, and the largest relative change."""
        n = self.count[:, None, None]
        C = torch.where(n > 0, self.total / n.clamp(min=1.0), self.C)
        return C, float((C - self.C).abs().max() / C.abs().max())


def _entropy(T: Tensor) -> Tensor:
    return -(T * T.clamp(min=1e-37).log()).sum((1, 2)).double()


def _later(options: Options) -> Options:
    """After the first round a gradient step is enough; a proximal step would be no solution."""
    return replace(options, max_iter=1) if options.solver == "PGD" else options


def average(
    spaces: HeatmapSpaces,
    epsilon: float = 0.01,
    n_nodes: int = 10,
    *,
    labels=None,
    start=None,
    rng: np.random.Generator | None = None,
    max_rounds: int = 100,
    n_bytes: int = 2**31,
    **options,
) -> Barycentres:
    """Find the mean of each group of maps, on `n_nodes` points of equal weight.

    Parameters
    ----------
    spaces : HeatmapSpaces
        n maps, all with the same weight.
    epsilon : float, default 0.01
        Weight of the entropy, in squared units of C. Above `distances.collapse_threshold` the
        result is a constant matrix.
    n_nodes : int, default 10
        Number m of points; used only where no start is given.
    labels : ndarray of int, shape (n,), optional
        Group of each map, -1 for none; all in one group when left out. A group without a map
        keeps its start.
    start : ndarray, shape (m, m) or (k, m, m), optional
        Where to start; one `gw.random_structure` a group when left out, which needs `rng`.
    rng : numpy Generator, optional
        Source of the random start.
    max_rounds : int, default 100
        Most rounds; `CENTRE_TOL` says when to stop before.
    n_bytes : int, default 2 GiB
        Most memory for `transport.Couplings`.
    **options
        `solver`, `tol` and `max_iter` of `transport.match`.

    Returns
    -------
    Barycentres

    Raises
    ------
    ValueError
        If no map is in any group, or there is neither a start nor a generator.

    Notes
    -----
    Peyré, Cuturi, Solomon 2016, algorithm 1, with couplings carried from round to round.

    The entropic `objective` does not increase, up to the precision of the sums, where the start
    holds distances or squared distances between points and the couplings fit in memory: on such
    matrices the objective is concave in the plan, so that a gradient step never climbs, and the
    average is its exact minimum over C. The value *without* entropy may rise.
    """
    if start is None and rng is None:
        raise ValueError("a barycentre needs a start: pass start=, or rng= to draw one")
    C = None if start is None else as_centres(start, spaces)
    labels = np.zeros(len(spaces), np.int64) if labels is None else labels
    own = as_labels(labels, spaces, None if C is None else len(C))
    if not (own >= 0).any():
        raise ValueError("a barycentre needs at least one map, got none: all labels are -1")
    if C is None:
        drawn = [gw.random_structure(n_nodes, rng) for _ in range(int(own.max()) + 1)]
        C = as_centres(np.stack(drawn), spaces)
    maps = torch.nonzero(own >= 0)[:, 0]
    own, couplings, objective, shift = own[maps], Couplings(n_bytes), [], np.inf
    options = Options(epsilon, **options)
    while len(objective) < max_rounds and shift > CENTRE_TOL:
        total, sums = 0.0, _Sums(C)
        for chunk, _, found in sweep(spaces, maps, C, options, labels=own, couplings=couplings):
            total += float((found.value - epsilon * _entropy(found.T)).sum())
            sums.add(own[chunk], found.structure)
        objective.append(total / len(maps))
        options, (C, shift) = _later(options), sums.centres()
    return Barycentres(C.cpu().numpy(), np.array(objective), len(objective), shift <= CENTRE_TOL)


class EntropicGeometry:
    """What Lloyd's algorithm has to know of heatmaps under entropic GW.

    Parameters
    ----------
    spaces : HeatmapSpaces
        n maps.
    epsilon : float, default 0.01
        Weight of the entropy, in squared units of C.
    n_nodes : int, default 10
        Points of a barycentre.
    rng : numpy Generator
        Source of the random starts.
    max_rounds : int, default 100
        Most rounds of a barycentre.
    n_bytes : int, default 2 GiB
        Most memory for `transport.Couplings`.
    **options
        `solver`, `tol` and `max_iter` of `transport.match`.
    """

    def __init__(
        self,
        spaces,
        epsilon=0.01,
        n_nodes=10,
        *,
        rng,
        max_rounds=100,
        n_bytes=2**31,
        **options,
    ):
        self.n, self.spaces, self.rng, self.n_bytes = len(spaces), spaces, rng, n_bytes
        self.epsilon, self.n_nodes, self.options = epsilon, n_nodes, options
        self.max_rounds = max_rounds

    def mean(self, members) -> np.ndarray:
        """Barycentre (m, m) of the maps where `members` (n,) is true, from a random start."""
        found = average(
            self.spaces,
            self.epsilon,
            self.n_nodes,
            labels=np.where(members, 0, -1),
            rng=self.rng,
            max_rounds=self.max_rounds,
            n_bytes=self.n_bytes,
            **self.options,
        )
        return found.centres[0]

    def cost(self, centre) -> np.ndarray:
        """GW value (n,) of each map against one centre."""
        return match(self.spaces, centre, self.epsilon, **self.options).value[:, 0]

    def excess(self, centre) -> np.ndarray:
        """Cost (n,) beyond that of the nearest map."""
        cost = self.cost(centre)
        return cost - cost.min()

    def lloyd(self, centres, max_rounds: int = 50) -> Clustering:
        """Run Lloyd's algorithm from centres (k, m, m).

        A round is a gradient step of all couplings (the first round: until they settle), then a
        step of the barycentres. The final centres are matched until all pairs settle.
        """
        C, couplings = as_centres(centres, self.spaces), Couplings(self.n_bytes)
        options, maps = Options(self.epsilon, **self.options), torch.arange(self.n, device=C.device)
        labels, n_rounds, converged = torch.full_like(maps, -1), 0, False
        while n_rounds < max_rounds and not converged:
            nearest, sums = torch.empty_like(maps), _Sums(C)
            for chunk, _, found in sweep(self.spaces, maps, C, options, couplings=couplings):
                best = found.value.view(-1, len(C)).min(1).indices
                structure = found.structure.view(-1, *C.shape)
                sums.add(best, structure[torch.arange(len(best)).to(best), best])
                nearest[chunk] = best
            n_rounds, options, (C, shift) = n_rounds + 1, _later(options), sums.centres()
            converged = bool((nearest == labels).all()) and shift <= CENTRE_TOL
            labels = nearest
        centres = C.cpu().numpy()
        final = match(self.spaces, centres, self.epsilon, couplings=couplings, **self.options)
        return Clustering(
            labels=final.value.argmin(axis=1),
            cost=final.value,
            centres=centres,
            n_rounds=n_rounds,
            converged=converged,
            n_unsettled=int((~final.converged).sum()),
        )


def draw_centres(geometry, n_clusters: int) -> np.ndarray:
    """Draw the first centres among means of single maps, far apart (k-means++).

    Parameters
    ----------
    geometry : EntropicGeometry, or anything with its `n`, `rng`, `mean` and `excess`
        The maps and the source of the draws. `excess(centre)` stands for a squared distance: 0
        for the nearest map.
    n_clusters : int
        Number k of centres.

    Returns
    -------
    ndarray, shape (k, ...)
        The means, for instance (k, m, m) distances.
    """
    centres, excess = [], np.full(geometry.n, np.inf)
    while len(centres) < n_clusters:
        if centres:
            excess = np.minimum(excess, geometry.excess(centres[-1]))
        share = excess / excess.sum() if centres and excess.sum() > 0 else None
        drawn = geometry.rng.choice(geometry.n, p=share)
        centres.append(geometry.mean(np.arange(geometry.n) == drawn))
    return np.stack(centres)


def kmeans(
    geometry: EntropicGeometry,
    n_clusters: int = 2,
    *,
    n_init: int = 1,
    max_rounds: int = 50,
    draw: Callable[..., np.ndarray] = draw_centres,
) -> Clustering:
    """Cluster heatmaps around means such as barycentres; no map is compared with another map.

    Parameters
    ----------
    geometry : EntropicGeometry, or anything with its `n`, `lloyd` and what `draw` asks for
        The maps, how to compare them, and the source of all draws.
    n_clusters : int, default 2
        Number k of groups.
    n_init : int, default 1
        Starts, of which the one of least inertia is kept.
    max_rounds : int, default 50
        Most rounds of Lloyd's algorithm.
    draw : callable, default `draw_centres`
        Called with geometry and number, gives the first centres: far apart (k-means++), if nothing
        else is said.
    """
    if not 1 <= n_clusters <= geometry.n:
        raise ValueError(f"n_clusters={n_clusters} must lie between 1 and the {geometry.n} maps")
    if n_init < 1:
        raise ValueError(f"n_init is {n_init}; needs 1 or more")
    runs = [geometry.lloyd(draw(geometry, n_clusters), max_rounds) for _ in range(n_init)]
    return min(runs, key=lambda run: run.inertia)
