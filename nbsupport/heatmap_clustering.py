"""Heatmap Clustering: the paper's method, and the geometries it can work in.

What `fit` leaves behind is told in `nbsupport.detectors`.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from nbsupport import distances, gw
from nbsupport.barycentres import Clustering, EntropicGeometry, draw_centres, kmeans
from nbsupport.detectors import HeatmapDetector, at_least, one_of, suspect_cluster
from nbsupport.embeddings import sliced_quantiles
from nbsupport.transport import HeatmapSpaces, Options

__all__ = ["HeatmapClustering"]


class HeatmapClustering(HeatmapDetector):
    """Cluster where the network looks: the paper's method (sections 5.3-5.5).

    Lloyd's algorithm on heatmaps, with a choice of what "distance" and "mean" are.

    Parameters
    ----------
    metric : {"gw", "mean-distance", "euclidean", "sliced-wasserstein"}, default "gw"
        "gw": entropic Gromov-Wasserstein values and barycentres. "mean-distance": what "gw"
        becomes once the barycentre has collapsed to a constant, in closed form; exact for epsilon
        well above `epsilon_star_`. "euclidean": pixel by pixel, not invariant under translation.
        "sliced-wasserstein": optimal transport between the maps themselves, moved to a common
        mean position; see `nbsupport.embeddings.sliced_quantiles` for why sliced.
    solver : {"batched", "POT"}, default "batched"
        Who solves "gw". "batched": all pairs at once (`nbsupport.transport`), a minute for a
        class. "POT": pair by pair, as published; a minute for a handful of maps, hours for a
        class. Below eps* the two may end in different local minima.
    epsilon : float, default 0.1
        Weight of the entropy; used by "gw" only.
    n_support : int, default 10
        Points of a barycentre; used by "gw" only.
    share, negative
        Which pixels are kept; see `nbsupport.gw.grid_weights`.
    n_clusters : int, default 2
        Number of clusters.
    start : {"k-means++", "released"}, default "k-means++"
        "k-means++" draws the first centres among single maps, far apart. "released" repeats a slip
        of the released code: in its first assignment the distances to one centre are rescaled, so
        that the other drawn map forms a cluster and *all* others the second. Only for
        two clusters. The map is drawn uniformly (there, with probabilities so nearly equal that
        no difference can be seen).
    n_init : int or "auto", default "auto"
        Starts, of which the best is kept: "auto" is 1 for "gw" (as published) and 10 otherwise.
    max_iter : int, default 50
        Most rounds of Lloyd's algorithm.
    barycentre_iter : int, default 50
        Most rounds of one barycentre; used by "gw" only. The released code allows 1,000; one that
        collapses needs about ten, while one that does not may take POT minutes for a few maps.
    device : str or torch.device, default "cpu"
        Where the batched solver computes.
    random_state : int, default 0
        Seed of every draw.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See `nbsupport.detectors`.
    cluster_centers_ : ndarray
        "gw": distance matrices (n_clusters, n_support, n_support). "mean-distance": the constants
        (n_clusters, 1). "euclidean": mean weights (n_clusters, H * W). "sliced-wasserstein": mean
        quantiles (n_clusters, 1024).
    inertia_ : float
        Sum over the maps of what their centre costs them: the un-regularised GW value ("gw" and
        "mean-distance"), or the squared distance ("euclidean" and "sliced-wasserstein").
    n_iter_ : int
        Rounds of the best start.
    converged_ : bool
        Whether no map changed its cluster in the last of them and, for "gw" with the batched
        solver, the centres stood still and every pair of a map and a centre had settled; with a
        `ConvergenceWarning` where it is False. What POT does within a pair it does not tell.
    epsilon_star_ : float
        Largest eps* = 4 E[Var_p(C p)] over the clusters found. Above it, small deviations of a
        barycentre from a constant die out; just above it, a large one may stay.

    Notes
    -----
    `X` has shape (n, H, W): relevance summed over colour channels, any unit. A cluster that runs
    empty keeps its centre; the released code divides by zero there.
    """

    def __init__(
        self,
        metric="gw",
        solver="batched",
        epsilon=0.1,
        n_support=10,
        share=0.99,
        negative="clip",
        n_clusters=2,
        start="k-means++",
        n_init="auto",
        max_iter=50,
        barycentre_iter=50,
        device="cpu",
        random_state=0,
    ):
        self.metric = metric
        self.solver = solver
        self.epsilon = epsilon
        self.n_support = n_support
        self.share = share
        self.negative = negative
        self.n_clusters = n_clusters
        self.start = start
        self.n_init = n_init
        self.max_iter = max_iter
        self.barycentre_iter = barycentre_iter
        self.device = device
        self.random_state = random_state

    def _split(self, X: np.ndarray) -> np.ndarray:
        one_of("metric", self.metric, tuple(_GEOMETRIES))
        one_of("solver", self.solver, ("batched", "POT"))
        one_of("start", self.start, ("k-means++", "released"))
        if self.start == "released" and self.n_clusters != 2:
            raise ValueError(f"start='released' makes two clusters, got {self.n_clusters}")
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} is less than n_clusters={self.n_clusters}")
        for name in ("max_iter", "barycentre_iter", "n_support"):
            at_least(name, getattr(self, name))
        if self.n_init != "auto":
            at_least("n_init", self.n_init)
        weights = self._weights(X)
        moments = distances.distance_moments(weights, self.shape_)
        if self.metric == "gw":
            self._warn_of_collapse(distances.collapse_threshold(moments))
        n_init = self.n_init
        if n_init == "auto":
            n_init = 1 if self.metric == "gw" else 10
        best = kmeans(
            self._geometry(weights, moments),
            self.n_clusters,
            n_init=n_init,
            max_rounds=self.max_iter,
            draw=_one_against_all if self.start == "released" else draw_centres,
        )
        self.cluster_centers_, self.n_iter_ = best.centres, best.n_rounds
        self.converged_ = best.converged and not best.n_unsettled
        if not self.converged_:
            self._warn_of_unrest(best)
        self.inertia_ = best.inertia
        self.suspect_ = suspect_cluster(best.labels, best.cost)
        self.poison_clusters_ = np.array([] if self.suspect_ is None else [self.suspect_], int)
        self.epsilon_star_ = max(
            4.0 * float(moments.spread[best.labels == k].mean()) for k in np.unique(best.labels)
        )
        return best.labels

    def _geometry(self, weights, moments):
        kind = (
            _Entropic if (self.metric, self.solver) == ("gw", "POT") else _GEOMETRIES[self.metric]
        )
        return kind(weights, moments, self, np.random.default_rng(self.random_state))

    def _cost(self, X: np.ndarray) -> np.ndarray:
        weights = self._weights(X)
        geometry = self._geometry(weights, distances.distance_moments(weights, self.shape_))
        return np.stack([geometry.cost(centre) for centre in self.cluster_centers_], axis=1)

    def _warn_of_collapse(self, threshold: float) -> None:
        if self.epsilon > threshold:
            warnings.warn(
                f"epsilon={self.epsilon} exceeds eps* = {threshold:.4f} of all maps together: "
                "well above it the barycentres collapse to constants, and the clusters are those "
                "of metric='mean-distance'; epsilon_star_ will tell eps* of the clusters found",
                UserWarning,
                stacklevel=4,
            )

    def _warn_of_unrest(self, run) -> None:
        if run.converged:
            what = (
                f"{run.n_unsettled} pairs of a map and a centre had not settled after "
                f"{Options.max_iter} steps: raise epsilon={self.epsilon}, with which they settle "
                "sooner"
            )
        else:
            what = (
                f"clusters or centres still changed in round {run.n_rounds}: raise "
                f"max_iter={self.max_iter}"
            )
        warnings.warn(what, ConvergenceWarning, stacklevel=4)


def _one_against_all(geometry, n_clusters: int) -> np.ndarray:
    """Return the means of one drawn map and of all others: the start of the released code."""
    lonely = np.arange(geometry.n) == geometry.rng.integers(geometry.n)
    return np.stack([geometry.mean(~lonely), geometry.mean(lonely)])


class _Geometry:
    """What Lloyd's algorithm has to know: how to average maps and what a centre costs a map."""

    def excess(self, centre):
        cost = self.cost(centre)
        return cost - cost.min()

    def lloyd(self, centres, max_rounds: int) -> Clustering:
        centres, labels = list(centres), np.full(self.n, -1)
        for n_rounds in range(1, max_rounds + 1):  # noqa: B007
            cost = np.stack([self.cost(centre) for centre in centres], axis=1)
            previous, labels = labels, cost.argmin(axis=1)
            if converged := np.array_equal(labels, previous):
                break
            centres = [
                self.mean(labels == j) if (labels == j).any() else centre
                for j, centre in enumerate(centres)
            ]
        else:  # the centres have moved once more
            cost = np.stack([self.cost(centre) for centre in centres], axis=1)
        return Clustering(cost.argmin(axis=1), cost, np.stack(centres), n_rounds, converged)


class _Collapsed(_Geometry):
    """Maps seen by constant barycentres: the closed form of entropic GW at large epsilon."""

    def __init__(self, weights, moments, options, rng):
        # Rounded, so that equal maps do not form clusters of rounding errors.
        self.n, self.rng = len(weights), rng
        self.m1, self.m2 = moments.mean.round(12), moments.second

    def mean(self, members):
        return np.array([self.m1[members].mean()])

    def cost(self, centre):
        return distances.closed_form_distance(self.m1, self.m2, centre[0])

    def excess(self, centre):
        """Return the part of the cost that depends on the centre; the rest cannot be reduced."""
        return (self.m1 - centre[0]) ** 2


class _Entropic(_Geometry):
    """Maps compared by POT, pair by pair."""

    def __init__(self, weights, moments, options, rng):
        self.n, self.options, self.rng = len(weights), options, rng
        self.clouds = [gw.point_cloud(row, options.shape_) for row in weights]

    def mean(self, members):
        clouds = [self.clouds[i] for i in np.flatnonzero(members)]
        o = self.options
        return gw.barycentre(
            clouds, o.epsilon, o.n_support, rng=self.rng, max_iter=o.barycentre_iter
        ).C

    def cost(self, centre):
        node = gw.PointCloud(centre, np.full(len(centre), 1.0 / len(centre)))
        epsilon = self.options.epsilon
        return np.array([gw.entropic_gw(node, cloud, epsilon).value for cloud in self.clouds])


class _Euclidean(_Geometry):
    """Maps compared pixel by pixel."""

    def __init__(self, weights, moments, options, rng):
        self.n, self.rng, self.weights = len(weights), rng, weights
        # Equal maps must not form clusters of rounding errors here, either.
        self.nothing = 1e-18 * (weights**2).sum(axis=1).max()

    def mean(self, members):
        return self.weights[members].mean(axis=0)

    def cost(self, centre):
        cost = ((self.weights - centre) ** 2).sum(axis=1)
        return np.where(cost > self.nothing, cost, 0.0)

    excess = cost


class _Sliced(_Euclidean):
    """Maps compared by the sliced Wasserstein distance, which is Euclidean among quantiles."""

    def __init__(self, weights, moments, options, rng):
        super().__init__(sliced_quantiles(weights, options.shape_), moments, options, rng)


class _Batched(EntropicGeometry):
    """Maps compared by the batched solver, all at once."""

    def __init__(self, weights, moments, options, rng):
        super().__init__(
            HeatmapSpaces(weights, options.shape_, device=options.device),
            options.epsilon,
            options.n_support,
            rng=rng,
            max_rounds=options.barycentre_iter,
        )


_GEOMETRIES = {
    "gw": _Batched,
    "mean-distance": _Collapsed,
    "euclidean": _Euclidean,
    "sliced-wasserstein": _Sliced,
}
