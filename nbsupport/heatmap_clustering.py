"""Heatmap Clustering: the paper's method, and the geometries it can work in.

What `fit` leaves behind is told in `nbsupport.detectors`.
"""

import time
import warnings

import numpy as np

from nbsupport import gw
from nbsupport.detectors import HeatmapDetector, one_of, suspect_cluster
from nbsupport.embeddings import sliced_quantiles

__all__ = ["HeatmapClustering", "TooManyMapsError"]


class TooManyMapsError(ValueError):
    """The real solver would take hours for so many maps; the message estimates how many."""


class HeatmapClustering(HeatmapDetector):
    """Cluster where the network looks: the paper's method (sections 5.3-5.5).

    Lloyd's algorithm on heatmaps, with a choice of what "distance" and "mean" are.

    Parameters
    ----------
    metric : {"gw", "mean-distance", "euclidean", "sliced-wasserstein"}, default "gw"
        "gw": entropic Gromov-Wasserstein values and barycentres, solved by POT pair by pair, as
        published. "mean-distance": what "gw" becomes once the barycentre has collapsed to a
        constant, in closed form; exact for epsilon above `epsilon_star_`, and milliseconds
        instead of hours. "euclidean": pixel by pixel, not invariant under translation.
        "sliced-wasserstein": optimal transport between the maps themselves, moved to a common
        mean position; see `nbsupport.embeddings.sliced_quantiles` for why sliced.
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
        of the released code: its first assignment compares distances with rescaled copies of
        themselves, so that one drawn map forms a cluster and *all* others the second. Only for
        two clusters. The map is drawn uniformly (there, with probabilities so nearly equal that
        no difference can be seen).
    n_init : int or "auto", default "auto"
        Starts, of which the best is kept: "auto" is 1 for "gw" (as published) and 10 otherwise.
    max_iter : int, default 20
        Most rounds of Lloyd's algorithm.
    barycentre_iter : int, default 50
        Most rounds of one barycentre; used by "gw" only. The released code allows 1,000; one that
        collapses needs about ten, while one that does not may take POT minutes for a few maps.
    max_maps : int or None, default 60
        "gw" refuses more maps than this and says how long it would take; None never refuses.
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
        Sum over the maps of the distance to their centre (for "gw" and "mean-distance" the
        un-regularised GW value).
    n_iter_ : int
        Rounds of the best start.
    epsilon_star_ : float
        Largest eps* = 4 E[Var_p(C p)] over the clusters found. Above it, a barycentre of 10 points
        collapses to a constant.

    Notes
    -----
    `X` has shape (n, H, W): relevance summed over colour channels, any unit. A cluster that runs
    empty keeps its centre; the released code divides by zero there.
    """

    def __init__(
        self,
        metric="gw",
        epsilon=0.1,
        n_support=10,
        share=0.99,
        negative="clip",
        n_clusters=2,
        start="k-means++",
        n_init="auto",
        max_iter=20,
        barycentre_iter=50,
        max_maps=60,
        random_state=0,
    ):
        self.metric = metric
        self.epsilon = epsilon
        self.n_support = n_support
        self.share = share
        self.negative = negative
        self.n_clusters = n_clusters
        self.start = start
        self.n_init = n_init
        self.max_iter = max_iter
        self.barycentre_iter = barycentre_iter
        self.max_maps = max_maps
        self.random_state = random_state

    def _split(self, X: np.ndarray) -> np.ndarray:
        one_of("metric", self.metric, tuple(_GEOMETRIES))
        one_of("start", self.start, ("k-means++", "released"))
        if self.start == "released" and self.n_clusters != 2:
            raise ValueError(f"start='released' makes two clusters, got {self.n_clusters}")
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} is less than n_clusters={self.n_clusters}")
        weights = self._weights(X)
        moments = gw.distance_moments(weights, self.shape_)
        rng = np.random.default_rng(self.random_state)
        if self.metric == "gw":
            self._check_cost(weights, gw.collapse_threshold(moments))
        n_init = self.n_init
        if n_init == "auto":
            n_init = 1 if self.metric == "gw" else 10
        geometry = self._geometry(weights, moments, rng)
        runs = [_lloyd(geometry, self, rng) for _ in range(n_init)]
        labels, cost, centres, self.n_iter_ = min(runs, key=lambda run: run[1].min(axis=1).sum())
        self.cluster_centers_ = np.stack(centres)
        self.inertia_ = float(cost.min(axis=1).sum())
        self.suspect_ = suspect_cluster(labels, cost)
        self.poison_clusters_ = np.array([] if self.suspect_ is None else [self.suspect_], int)
        self.epsilon_star_ = max(
            4.0 * float(moments.spread[labels == k].mean()) for k in np.unique(labels)
        )
        return labels

    def _geometry(self, weights, moments, rng):
        return _GEOMETRIES[self.metric](weights, moments, self, rng)

    def _cost(self, X: np.ndarray) -> np.ndarray:
        weights = self._weights(X)
        moments = gw.distance_moments(weights, self.shape_)
        geometry = self._geometry(weights, moments, np.random.default_rng(self.random_state))
        return np.stack([geometry.cost(centre) for centre in self.cluster_centers_], axis=1)

    def _check_cost(self, weights: np.ndarray, threshold: float) -> None:
        if self.max_maps is not None and len(weights) > self.max_maps:
            middle = int(np.argsort((weights > 0).sum(axis=1))[len(weights) // 2])
            cloud = gw.point_cloud(weights[middle], self.shape_)
            node = gw.random_structure(self.n_support, np.random.default_rng(0))
            centre = gw.PointCloud(node, np.full(self.n_support, 1 / self.n_support))
            began = time.perf_counter()
            gw.entropic_gw(cloud, centre, self.epsilon)
            rounds = 10 if self.epsilon > threshold else self.barycentre_iter
            # In a round of Lloyd each map meets its barycentre `rounds` times, then all centres.
            pairs = 5 * len(weights) * (rounds + self.n_clusters)
            seconds = (time.perf_counter() - began) * pairs
            raise TooManyMapsError(
                f"metric='gw' on {len(weights)} maps, more than max_maps={self.max_maps}, would "
                f"take about {seconds:.0f} s for 5 rounds; pass max_maps=None to wait for it, or "
                f"metric='mean-distance', which gives the same labels above eps* = {threshold:.4f} "
                f"(epsilon is {self.epsilon})"
            )
        if self.epsilon > threshold:
            warnings.warn(
                f"epsilon={self.epsilon} exceeds eps* = {threshold:.4f}: the barycentres collapse "
                "to constants and the clusters are those of metric='mean-distance'",
                UserWarning,
                stacklevel=4,
            )


def _lloyd(geometry, options: HeatmapClustering, rng: np.random.Generator):
    """Run Lloyd's algorithm once; return labels, costs (n, k), centres and the rounds taken."""
    n, k = geometry.n, options.n_clusters
    if options.start == "released":
        lonely = int(rng.integers(n))
        labels = (np.arange(n) == lonely).astype(np.int64)
        centres = [geometry.mean(labels == j) for j in range(k)]
    else:
        centres = [geometry.mean(np.arange(n) == rng.integers(n))]
        for _ in range(1, k):
            excess = np.min([geometry.excess(centre) for centre in centres], axis=0)
            total = excess.sum()
            draw = rng.choice(n, p=excess / total) if total > 0 else rng.integers(n)
            centres.append(geometry.mean(np.arange(n) == draw))
        labels = np.full(n, -1)
    for n_iter in range(1, options.max_iter + 1):  # noqa: B007
        cost = np.stack([geometry.cost(centre) for centre in centres], axis=1)
        previous, labels = labels, cost.argmin(axis=1)
        if np.array_equal(labels, previous):
            break
        centres = [
            geometry.mean(labels == j) if (labels == j).any() else centres[j] for j in range(k)
        ]
    cost = np.stack([geometry.cost(centre) for centre in centres], axis=1)
    return cost.argmin(axis=1), cost, centres, n_iter


class _Collapsed:
    """Maps seen by constant barycentres: the closed form of entropic GW at large epsilon."""

    def __init__(self, weights, moments, options, rng):
        # Rounded, so that equal maps do not form clusters of rounding errors.
        self.n, self.m1, self.m2 = len(weights), moments.mean.round(12), moments.second

    def mean(self, members):
        return np.array([self.m1[members].mean()])

    def cost(self, centre):
        return gw.closed_form_distance(self.m1, self.m2, centre[0])

    def excess(self, centre):
        """Return the part of the cost that depends on the centre; the rest cannot be reduced."""
        return (self.m1 - centre[0]) ** 2


class _Entropic:
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

    def excess(self, centre):
        cost = self.cost(centre)
        return cost - cost.min()


class _Euclidean:
    """Maps compared pixel by pixel."""

    def __init__(self, weights, moments, options, rng):
        self.n, self.weights = len(weights), weights

    def mean(self, members):
        return self.weights[members].mean(axis=0)

    def cost(self, centre):
        return ((self.weights - centre) ** 2).sum(axis=1)

    excess = cost


class _Sliced(_Euclidean):
    """Maps compared by the sliced Wasserstein distance, which is Euclidean among quantiles."""

    def __init__(self, weights, moments, options, rng):
        super().__init__(sliced_quantiles(weights, options.shape_), moments, options, rng)


_GEOMETRIES = {
    "gw": _Entropic,
    "mean-distance": _Collapsed,
    "euclidean": _Euclidean,
    "sliced-wasserstein": _Sliced,
}
