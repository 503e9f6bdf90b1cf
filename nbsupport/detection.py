"""Detectors of poisoned images within one class, as scikit-learn estimators.

Each estimator looks at one suspicious class (all images that carry one *training label*) and
splits it. Positive always means poisoned. After `fit`:

`labels_`
    Cluster of each image, shape (n,), in 0 .. n_clusters - 1.
`poisoned_`
    Verdict for each image, shape (n,), bool. Unless an estimator says otherwise, the *smaller
    cluster is poison* (Chen et al. 2018; the released code). Of two clusters of equal size the
    tighter one (smaller mean squared distance to its centre) is poison, since poison shares one
    trigger. A split that leaves one cluster empty flags nothing.
`decision_function(X)`
    How much nearer an image is to the poison cluster than to the nearest other one; higher means
    more likely poisoned, so that an AUROC exists. All zero if there is no second cluster.

The order of the images does not matter: they are brought into a canonical order before anything
random is drawn, so that shuffled rows give the same answer, shuffled.

References
----------
.. [1] Chen et al., "Detecting backdoor attacks on deep neural networks by activation clustering",
   SafeAI workshop at AAAI, 2019 (arXiv 1811.03728, 2018).
.. [2] Tran, Li, Madry, "Spectral signatures in backdoor attacks", NeurIPS 2018.
.. [3] Mémoli, "Gromov-Wasserstein distances and the metric approach to object matching",
   Foundations of Computational Mathematics 11, 2011.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted, validate_data

from nbsupport import gw

__all__ = [
    "METHODS",
    "ActivationClustering",
    "DetectionInputs",
    "DetectionResult",
    "DistanceMixture",
    "HeatmapClustering",
    "Method",
    "RawClustering",
    "SpectralSignature",
    "TooManyMapsError",
    "detect",
    "grey",
]


class TooManyMapsError(ValueError):
    """The real solver would take hours for so many maps; the message estimates how many."""


class _Detector(ClusterMixin, BaseEstimator):
    """What all detectors share: canonical order, the verdict, and the shape of the results."""

    def fit(self, X, y=None):
        """Split the images of one class.

        Parameters
        ----------
        X : array, one row (or image, or heatmap) per image
            See the class for the shape.
        y : ignored
            No truth is ever used; present for scikit-learn.

        Returns
        -------
        self
        """
        X = self._validate(X, reset=True)
        order = _canonical_order(X)
        labels = self._split(X[order])
        self.labels_ = np.empty(len(X), dtype=np.int64)
        self.labels_[order] = labels
        self.poisoned_ = np.isin(self.labels_, self.poison_clusters_)
        return self

    def decision_function(self, X) -> np.ndarray:
        """Score images, shape (n,): higher means more likely poisoned."""
        check_is_fitted(self)
        cost = self._cost(self._validate(X, reset=False))
        suspect = self.suspect_
        if suspect is None:
            return np.zeros(len(cost))
        return np.delete(cost, suspect, axis=1).min(axis=1) - cost[:, suspect]


def _canonical_order(X: np.ndarray) -> np.ndarray:
    """Sort rows by their bytes: any order will do, as long as it depends on the rows alone."""
    rows = np.ascontiguousarray(X.reshape(len(X), -1) + 0.0)  # + 0.0 turns -0.0 into 0.0
    width = np.dtype((np.void, rows.shape[1] * rows.itemsize))
    return np.argsort(rows.view(width).ravel(), kind="stable")


def _suspect(labels: np.ndarray, cost: np.ndarray) -> int | None:
    """Name the smallest cluster; of equal ones the tighter; None if there is only one.

    Parameters
    ----------
    labels : ndarray, shape (n,)
        Cluster of each image.
    cost : ndarray, shape (n, k)
        Squared distance of each image to each centre.
    """
    sizes = np.bincount(labels, minlength=cost.shape[1])
    present = np.flatnonzero(sizes)
    if len(present) < 2:
        return None
    own = np.take_along_axis(cost, labels[:, None], axis=1)[:, 0]
    inertia = np.bincount(labels, weights=own, minlength=len(sizes))
    return int(min(present, key=lambda k: (sizes[k], inertia[k])))


class _ReducedKMeans(_Detector):
    """Dimension reduction, k-means, and a stated rule that picks the poison cluster."""

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        return validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_min_samples=2 if reset else 1
        )

    def _split(self, X: np.ndarray) -> np.ndarray:
        _one_of("reduce", self.reduce, ("PCA", "FastICA"))
        _one_of("cluster_analysis", self.cluster_analysis, CLUSTER_ANALYSES)
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} is less than n_clusters={self.n_clusters}")
        self._fit_reduction(X)
        Z = self._transform(X)
        self.kmeans_ = KMeans(self.n_clusters, n_init=self.n_init, random_state=self.random_state)
        with warnings.catch_warnings():
            # Fewer distinct images than clusters: reported by the sizes, not by a warning.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = self.kmeans_.fit_predict(Z).astype(np.int64)
        self.cluster_centers_ = self.kmeans_.cluster_centers_
        self.inertia_ = float(self.kmeans_.inertia_)
        self.n_iter_ = int(self.kmeans_.n_iter_)
        self._judge(Z, labels)
        return labels

    def _fit_reduction(self, X: np.ndarray) -> None:
        wanted = min(self.n_components, *X.shape)
        with np.errstate(invalid="ignore"):  # shares of a total variance of 0
            self.pca_ = PCA(wanted, svd_solver="covariance_eigh").fit(X)
        # What is left of the mean by rounding is no variance; whitening would blow it up to 1.
        variance = self.pca_.explained_variance_
        kept = int((variance > 1e-12 * (variance[0] + np.sum(self.pca_.mean_**2))).sum())
        self.n_components_ = kept
        if 0 < kept < self.n_components:
            warnings.warn(
                f"{X.shape[0]} images with {X.shape[1]} features carry only {kept} of the "
                f"n_components={self.n_components} directions asked for; using those",
                UserWarning,
                stacklevel=4,
            )
        self.ica_ = None
        if self.reduce == "FastICA" and kept:
            # Whitening keeps the leading principal components anyway, so ICA starts from them;
            # max_iter and tol are those of the released code.
            self.ica_ = FastICA(
                whiten="unit-variance", max_iter=1000, tol=0.005, random_state=self.random_state
            ).fit(self._scores(X))

    def _scores(self, X: np.ndarray) -> np.ndarray:
        if self.n_components_ == 0:  # equal images: nothing but rounding errors to look at
            return np.zeros((len(X), 1))
        return self.pca_.transform(X)[:, : self.n_components_]

    def _transform(self, X: np.ndarray) -> np.ndarray:
        scores = self._scores(X)
        return scores if self.ica_ is None else self.ica_.transform(scores)

    def _cost(self, X: np.ndarray) -> np.ndarray:
        return self.kmeans_.transform(self._transform(X)) ** 2

    def _judge(self, Z: np.ndarray, labels: np.ndarray) -> None:
        sizes = np.bincount(labels, minlength=self.n_clusters)
        self.suspect_ = _suspect(labels, self.kmeans_.transform(Z) ** 2)
        several = 1 < (sizes > 0).sum() < len(labels)
        silhouette = float(silhouette_score(Z, labels)) if several else None
        if self.suspect_ is None:
            poison = []
        elif self.cluster_analysis == "smaller":
            poison = [self.suspect_]
        else:
            small = np.flatnonzero((sizes > 0) & (sizes < self.size_threshold * len(labels)))
            poison = small.tolist()
            if self.cluster_analysis == "silhouette" and not (
                silhouette is not None and silhouette > self.silhouette_threshold
            ):
                poison = []
        self.poison_clusters_ = np.asarray(poison, dtype=np.int64)
        self.report_ = {
            "cluster_analysis": self.cluster_analysis,
            "sizes": sizes.tolist(),
            "silhouette": silhouette,
            "poison_clusters": poison,
            "n_poisoned": int(sizes[poison].sum()),
            "n_clean": int(len(labels) - sizes[poison].sum()),
        }


CLUSTER_ANALYSES = ("smaller", "relative-size", "silhouette")
"""Rules that pick the poison cluster; see `ActivationClustering`."""


class RawClustering(_ReducedKMeans):
    """Cluster the images themselves: grey values, ten components, 2-means.

    The paper's first baseline (section 7.4, Table 3).

    Parameters
    ----------
    reduce : {"PCA", "FastICA"}, default "PCA"
        How the grey values are reduced.
    n_components : int, default 10
        Dimensions kept; fewer, with a warning, where the images do not span so many.
    n_clusters : int, default 2
        Number of clusters.
    n_init : int, default 10
        Starts of k-means; the best is kept.
    random_state : int, default 0
        Seed of FastICA and k-means.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See the head of this module.
    cluster_centers_ : ndarray, shape (n_clusters, n_components_)
        Centres in the reduced space.
    inertia_, n_iter_ : float, int
        Sum of squared distances to the nearest centre, and rounds of k-means.
    report_ : dict
        Sizes, mean silhouette, clusters held for poison, and the counts that follow.

    Notes
    -----
    `X` holds uint8 images (n, 3, H, W), or grey values (n, d). The released code takes whatever
    scikit-learn calls cluster 1 for poison; here the smaller cluster is.
    """

    def __init__(self, reduce="PCA", n_components=10, n_clusters=2, n_init=10, random_state=0):
        self.reduce = reduce
        self.n_components = n_components
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.random_state = random_state

    cluster_analysis = "smaller"

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        if np.ndim(X) == 4:
            X = grey(X).reshape(len(X), -1)
        return super()._validate(X, reset=reset)


def grey(images) -> np.ndarray:
    """Turn uint8 images (n, 3, H, W) into grey values (n, H, W), exactly as PIL's mode "L".

    ITU-R 601 luma, (299 R + 587 G + 114 B) / 1000, in PIL's 16-bit fixed point.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 of shape (n, 3, H, W), got {images.dtype} {images.shape}"
        )
    r, g, b = np.moveaxis(images.astype(np.uint32), 1, 0)
    return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(np.uint8)


class ActivationClustering(_ReducedKMeans):
    """Cluster what the network makes of the images: Activation Clustering (Chen et al. 2018).

    Section 6.2 of the paper: the last hidden layer, ten components, 2-means.

    Parameters
    ----------
    reduce : {"PCA", "FastICA"}, default "PCA"
        PCA in the paper; Chen et al. use FastICA.
    n_components : int, default 10
        Dimensions kept; fewer, with a warning, where the activations do not span so many.
    n_clusters : int, default 2
        Number of clusters.
    cluster_analysis : {"smaller", "relative-size", "silhouette"}, default "smaller"
        "smaller": the smallest cluster is poison, always (the paper). "relative-size": clusters
        with a share below `size_threshold` are; maybe none. "silhouette": the same, but only if
        the mean silhouette exceeds `silhouette_threshold`.
    size_threshold : float, default 0.35
        Largest share of a poisoned cluster.
    silhouette_threshold : float, default 0.1
        Least silhouette of a real split; Chen et al. see 0.1 and less on clean classes.
    n_init : int, default 10
        Starts of k-means; the best is kept.
    random_state : int, default 0
        Seed of FastICA and k-means.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See the head of this module.
    cluster_centers_ : ndarray, shape (n_clusters, n_components_)
        Centres in the reduced space.
    inertia_, n_iter_ : float, int
        Sum of squared distances to the nearest centre, and rounds of k-means.
    report_ : dict
        Sizes, mean silhouette, clusters held for poison, and the counts that follow.

    Notes
    -----
    `X` has shape (n, d). `decision_function` always scores towards the smallest cluster, also
    where the rule acquits it.
    """

    def __init__(
        self,
        reduce="PCA",
        n_components=10,
        n_clusters=2,
        cluster_analysis="smaller",
        size_threshold=0.35,
        silhouette_threshold=0.1,
        n_init=10,
        random_state=0,
    ):
        self.reduce = reduce
        self.n_components = n_components
        self.n_clusters = n_clusters
        self.cluster_analysis = cluster_analysis
        self.size_threshold = size_threshold
        self.silhouette_threshold = silhouette_threshold
        self.n_init = n_init
        self.random_state = random_state


class _HeatmapDetector(_Detector):
    """Detectors whose rows are heatmaps (n, H, W), or squares flattened to (n, H * W)."""

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        if X.ndim == 2 and np.sqrt(X.shape[1]).is_integer():
            side = int(np.sqrt(X.shape[1]))
            X = X.reshape(-1, side, side)
        if X.ndim != 3:
            raise ValueError(
                f"X must hold heatmaps of shape (n, H, W), or flattened squares, got {X.shape}"
            )
        if reset:
            if len(X) < 2:
                raise ValueError(f"found {len(X)} heatmaps, a split needs at least 2")
            self.shape_ = X.shape[1:]
        elif X.shape[1:] != self.shape_:
            raise ValueError(f"heatmaps have shape {X.shape[1:]}, was fitted with {self.shape_}")
        return X

    def _weights(self, X: np.ndarray) -> np.ndarray:
        """Weights of all maps; a map without positive relevance is taken by its magnitude.

        Under a one-signed rule such a map explains a negative logit: same shape, other sign.
        """
        dark = ~(X > 0).any(axis=(1, 2)) & np.isfinite(X).all(axis=(1, 2))
        if self.negative == "clip" and dark.any():
            warnings.warn(
                f"{dark.sum()} of {len(X)} heatmaps hold no positive relevance (the explained "
                "logit is negative); their magnitude |R| is used",
                UserWarning,
                stacklevel=4,
            )
            X = np.where(dark[:, None, None], -X, X)
        return gw.grid_weights(X, self.share, self.negative)


class HeatmapClustering(_HeatmapDetector):
    """Cluster where the network looks: the paper's method (sections 5.3-5.5).

    Lloyd's algorithm on heatmaps, with a choice of what "distance" and "mean" are.

    Parameters
    ----------
    metric : {"gw", "mean-distance", "euclidean"}, default "gw"
        "gw": entropic Gromov-Wasserstein values and barycentres, solved by POT pair by pair, as
        published. "mean-distance": what "gw" becomes once the barycentre has collapsed to a
        constant, in closed form; exact for epsilon above `epsilon_star_`, and milliseconds
        instead of hours. "euclidean": pixel by pixel, not invariant under translation.
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
        See the head of this module.
    cluster_centers_ : ndarray
        "gw": distance matrices (n_clusters, n_support, n_support). "mean-distance": the constants
        (n_clusters, 1). "euclidean": mean weights (n_clusters, H * W).
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
        _one_of("metric", self.metric, tuple(_GEOMETRIES))
        _one_of("start", self.start, ("k-means++", "released"))
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
        self.suspect_ = _suspect(labels, cost)
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


_GEOMETRIES = {"gw": _Entropic, "mean-distance": _Collapsed, "euclidean": _Euclidean}


class DistanceMixture(_HeatmapDetector):
    """Two Gaussians on the shape of each heatmap: what 2-means on one number cannot see.

    Each map is described by the quantiles of its pixel distances under p x p: what Mémoli's
    second lower bound of GW compares. After standardising and PCA, a mixture of two Gaussians of
    *different* covariance is fitted, so that a small tight group need not cost as much as half
    of the bulk.

    Parameters
    ----------
    n_quantiles : int, default 64
        Quantiles a map.
    n_components : int, default 4
        Principal components kept; fewer where the maps do not span so many. Directions of hardly
        any variance are far from Gaussian, and with more of them the likelihood prefers two
        halves of the clean maps to a small group of poisoned ones.
    share, negative
        Which pixels are kept; see `nbsupport.gw.grid_weights`.
    normalise : bool, default False
        Measure distances in diameters of the support instead of pixels.
    reg_covar : float, default 1e-3
        Added to the variances of the components, in units of the variance of the whole class
        along the first of them; keeps a component from shrinking onto a few maps.
    n_init : int, default 10
        Starts of the mixture; the best likelihood is kept.
    max_iter : int, default 200
        Most rounds of expectation maximisation.
    random_state : int, default 0
        Seed.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See the head of this module.
    gap_ : float
        Mahalanobis distance of the two means under the covariance of the larger component: how
        many of its standard deviations the smaller one lies away.
    mixture_ : sklearn.mixture.GaussianMixture
        The fitted mixture.
    n_iter_ : int
        Rounds of expectation maximisation of the best start.

    Notes
    -----
    `decision_function` is the logarithm of the posterior odds of the smaller component.

    At 0 % poison the mixture *still splits*, and up to half of a clean class is flagged. The
    verdict presumes that there is poison; `gap_` is what a test of that presumption can use.
    """

    def __init__(
        self,
        n_quantiles=64,
        n_components=4,
        share=0.99,
        negative="clip",
        normalise=False,
        reg_covar=1e-3,
        n_init=10,
        max_iter=200,
        random_state=0,
    ):
        self.n_quantiles = n_quantiles
        self.n_components = n_components
        self.share = share
        self.negative = negative
        self.normalise = normalise
        self.reg_covar = reg_covar
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def _quantiles(self, X: np.ndarray) -> np.ndarray:
        return gw.distance_quantiles(
            self._weights(X), self.n_quantiles, self.shape_, normalise=self.normalise
        )

    def _transform(self, quantiles: np.ndarray) -> np.ndarray:
        scores = self.pca_.transform((quantiles - self.centre_) / self.scale_)
        return scores[:, : self.n_components_] / self.unit_

    def _split(self, X: np.ndarray) -> np.ndarray:
        quantiles = self._quantiles(X)
        self.centre_ = quantiles.mean(axis=0)
        scale = quantiles.std(axis=0)
        # A quantile that varies by rounding only must not be scaled up to unit variance.
        varies = scale > 1e-9 * max(quantiles.max(), 1.0)
        self.scale_ = np.where(varies, scale, 1.0)
        self.mixture_, self.suspect_, self.gap_, self.n_iter_ = None, None, 0.0, 0
        self.poison_clusters_ = np.array([], dtype=np.int64)
        if not varies.any():
            return np.zeros(len(X), dtype=np.int64)
        standard = (quantiles - self.centre_) / self.scale_
        self.pca_ = PCA(min(self.n_components, *standard.shape)).fit(standard)
        variance = self.pca_.explained_variance_
        self.n_components_ = int((variance > 1e-9 * variance[0]).sum())
        self.unit_ = float(np.sqrt(variance[0]))
        Z = self._transform(quantiles)
        self.mixture_ = GaussianMixture(
            2,
            reg_covar=self.reg_covar,
            n_init=self.n_init,
            max_iter=self.max_iter,
            init_params="k-means++",
            random_state=self.random_state,
        ).fit(Z)
        self.n_iter_ = int(self.mixture_.n_iter_)
        labels = self.mixture_.predict(Z).astype(np.int64)
        means, covariances = self.mixture_.means_, self.mixture_.covariances_
        self.suspect_ = _suspect(labels, ((Z[:, None] - means) ** 2).sum(axis=2))
        if self.suspect_ is not None:
            self.poison_clusters_ = np.array([self.suspect_])
            step = means[0] - means[1]
            self.gap_ = float(np.sqrt(step @ np.linalg.solve(covariances[1 - self.suspect_], step)))
        return labels

    def _cost(self, X: np.ndarray) -> np.ndarray:
        quantiles = self._quantiles(X)
        if self.mixture_ is None:
            return np.zeros((len(X), 2))
        Z = self._transform(quantiles)
        precision = self.mixture_.precisions_cholesky_
        whitened = np.einsum("nkd,kde->nke", Z[:, None] - self.mixture_.means_, precision)
        log_det = np.log(np.diagonal(precision, axis1=1, axis2=2)).sum(axis=1)
        return 0.5 * (whitened**2).sum(axis=2) - log_det - np.log(self.mixture_.weights_)


class SpectralSignature(_Detector):
    """Outliers along the direction of largest variance (Tran, Li, Madry 2018).

    Parameters
    ----------
    threshold : float, default 3.5
        An image is poisoned if its projection lies more than this many robust standard deviations
        (1.4826 times the median absolute deviation) from the median projection.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        1 (True) for images beyond the threshold; maybe none.
    direction_ : ndarray, shape (d,)
        The top right singular vector of the centred features.

    Notes
    -----
    `X` has shape (n, d). `decision_function` is the paper's score, the squared projection of the
    centred features. Tran et al. remove 1.5 times the true number of poisoned images; that number
    is not known to a defender, hence the robust rule (Iglewicz and Hoaglin 1993). It can find
    only a minority.
    """

    def __init__(self, threshold=3.5):
        self.threshold = threshold

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        return validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_min_samples=2 if reset else 1
        )

    def _split(self, X: np.ndarray) -> np.ndarray:
        self.mean_ = X.mean(axis=0)
        self.direction_ = np.linalg.svd(X - self.mean_, full_matrices=False)[2][0]
        projection = (X - self.mean_) @ self.direction_
        away = np.abs(projection - np.median(projection))
        self.scale_ = 1.4826 * float(np.median(away))
        self.poison_clusters_ = np.array([1])
        return (away > self.threshold * max(self.scale_, 1e-12 * (1 + away.max()))).astype(np.int64)

    def decision_function(self, X) -> np.ndarray:
        """Score images, shape (n,): squared projection on the top singular vector."""
        check_is_fitted(self)
        return ((self._validate(X, reset=False) - self.mean_) @ self.direction_) ** 2


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {allowed}")


@dataclass(frozen=True)
class DetectionInputs:
    """All that a detector may look at: the images that carry one training label.

    Attributes
    ----------
    ids : ndarray, shape (n,), int64
        Unique image ids; the truth is joined by them, never by position.
    images : uint8 array or Tensor, shape (n, 3, H, W), optional
    activations : array or Tensor, shape (n, d), optional
        Last hidden layer.
    logits : array or Tensor, shape (n, classes), optional
    heatmaps : mapping from composite name to array or Tensor, shape (n, H, W), optional
        Relevance of the label's logit, summed over colour channels.
    """

    ids: np.ndarray
    images: object = None
    activations: object = None
    logits: object = None
    heatmaps: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        ids = np.asarray(self.ids)
        if ids.ndim != 1 or len(np.unique(ids)) != len(ids):
            raise ValueError(f"ids must be unique and of shape (n,), got shape {ids.shape}")
        named = {name: getattr(self, name) for name in ("images", "activations", "logits")}
        named |= {f"heatmaps[{name!r}]": maps for name, maps in self.heatmaps.items()}
        for name, value in named.items():
            if value is not None and len(value) != len(ids):
                raise ValueError(f"{name} has {len(value)} rows for {len(ids)} ids")


@dataclass(frozen=True)
class DetectionResult:
    """What one method says about each image.

    Attributes
    ----------
    ids : ndarray, shape (n,)
        Image ids, in the order of the inputs.
    score : ndarray, shape (n,), float64
        Higher means more likely poisoned.
    poisoned : ndarray, shape (n,), bool
        The verdict.
    seconds : float
        Wall-clock time of fit and score.
    details : dict
        Parameters and by-products, fit for JSON.
    """

    ids: np.ndarray
    score: np.ndarray
    poisoned: np.ndarray
    seconds: float
    details: dict


@dataclass(frozen=True)
class Method:
    """A detector by a short name.

    Attributes
    ----------
    name : str
        Key in `METHODS`.
    label : str
        For axes and legends.
    paper_name : str
        What the paper calls it, or "" where it does not have it.
    needs : str
        The field of `DetectionInputs` it reads.
    estimator : estimator
        Prototype, cloned before use.
    composite : str
        Which heatmaps it reads when there are several and none is named.
    """

    name: str
    label: str
    paper_name: str
    needs: str
    estimator: BaseEstimator
    composite: str = ""


METHODS = {
    method.name: method
    for method in (
        Method("raw_pca", "raw, PCA", "k-means on raw data (PCA)", "images", RawClustering("PCA")),
        Method(
            "raw_fastica",
            "raw, FastICA",
            "k-means on raw data (FastICA)",
            "images",
            RawClustering("FastICA"),
        ),
        Method(
            "activation",
            "activation",
            "Activation Clustering",
            "activations",
            ActivationClustering(),
        ),
        Method("activation_logits", "activation (logits)", "", "logits", ActivationClustering()),
        Method(
            "heatmap", "heatmap", "Heatmap Clustering", "heatmaps", HeatmapClustering(), "released"
        ),
        Method("mixture", "distance mixture", "", "heatmaps", DistanceMixture(), "gamma"),
        Method("spectral", "spectral signature", "", "activations", SpectralSignature()),
    )
}
"""Methods by short name. "activation_logits" is what the released code clusters."""


def detect(
    method: str, inputs: DetectionInputs, *, composite: str | None = None, **parameters
) -> DetectionResult:
    """Let one method judge every image of a class.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    inputs : DetectionInputs
        The images of one class, and what the network makes of them.
    composite : str, optional
        Which heatmaps to read; the method's own choice, or the only ones there are, if left out.
    **parameters
        Set on the estimator; an unknown name raises.

    Returns
    -------
    DetectionResult
        Score and verdict for each id.

    Raises
    ------
    ValueError
        If the method is unknown, or its inputs are missing.

    Notes
    -----
    "heatmap" takes the paper's settings. If epsilon exceeds `epsilon_star_`, measured on the
    clusters found, the answer in closed form *is* the paper's and is given (`details["metric"]`
    says "mean-distance"); otherwise the solver runs.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {tuple(METHODS)}")
    chosen = METHODS[method]
    X = getattr(inputs, chosen.needs)
    details = {}
    if chosen.needs == "heatmaps":
        if composite is None:
            composite = next(iter(X)) if len(X) == 1 else chosen.composite
        if composite not in X:
            raise ValueError(
                f"{method!r} needs heatmaps of composite {composite!r}, there are {tuple(X)}: "
                "pass composite=, or compute them first"
            )
        X = X[composite]
        details["composite"] = composite
    elif composite is not None:
        raise ValueError(
            f"{method!r} reads {chosen.needs}, so composite={composite!r} means nothing"
        )
    if X is None:
        raise ValueError(f"{method!r} needs {chosen.needs}, which the inputs do not hold")
    X = np.asarray(X)
    began = time.perf_counter()
    estimator = clone(chosen.estimator).set_params(**parameters)
    if method == "heatmap" and estimator.metric == "gw":
        closed = clone(estimator).set_params(metric="mean-distance").fit(X)
        collapsed = estimator.epsilon > closed.epsilon_star_
        estimator = closed if collapsed else estimator.fit(X)
        details["epsilon_star"] = closed.epsilon_star_
    else:
        estimator.fit(X)
    score = estimator.decision_function(X)
    seconds = time.perf_counter() - began
    details |= {
        **estimator.get_params(),
        "estimator": type(estimator).__name__,
        "n": len(score),
        "n_flagged": int(estimator.poisoned_.sum()),
    }
    for name in ("inertia_", "n_iter_", "gap_"):
        if hasattr(estimator, name):
            details[name.rstrip("_")] = getattr(estimator, name)
    if hasattr(estimator, "report_"):
        details["report"] = estimator.report_
    return DetectionResult(np.asarray(inputs.ids), score, estimator.poisoned_, seconds, details)
