"""Detectors that the paper compares with: raw images, activations, spectral signatures.

What `fit` leaves behind is told in `nbsupport.detectors`.

References
----------
.. [1] Chen et al., "Detecting backdoor attacks on deep neural networks by activation clustering",
   SafeAI workshop at AAAI, 2019 (arXiv 1811.03728, 2018).
.. [2] Tran, Li, Madry, "Spectral signatures in backdoor attacks", NeurIPS 2018.
"""

import warnings

import numpy as np
from sklearn.decomposition import PCA, FastICA
from sklearn.metrics import silhouette_score
from sklearn.utils.validation import check_is_fitted

from nbsupport.clusterers import KMeansGroups
from nbsupport.detectors import Detector, at_least, one_of, pca_solver, suspect_cluster
from nbsupport.gw import name_rows

__all__ = ["CLUSTER_ANALYSES", "ActivationClustering", "RawClustering", "SpectralSignature", "grey"]


class _ReducedKMeans(Detector):
    """Dimension reduction, k-means, and a stated rule that picks the poison cluster."""

    def _split(self, X: np.ndarray) -> np.ndarray:
        one_of("reduce", self.reduce, ("PCA", "FastICA"))
        one_of("cluster_analysis", self.cluster_analysis, CLUSTER_ANALYSES)
        if len(X) < self.n_clusters:
            raise ValueError(f"n_samples={len(X)} is less than n_clusters={self.n_clusters}")
        self._fit_reduction(X)
        Z = self._transform(X)
        others = self._other_centres(X)
        self.groups_ = KMeansGroups(self.n_clusters, self.n_init, self.random_state)
        labels = self.groups_.fit(Z)
        self.cluster_centers_ = self.groups_.kmeans.cluster_centers_
        self.inertia_ = float(self.groups_.kmeans.inertia_)
        self.n_iter_ = self.groups_.n_iter
        self._judge(X, Z, labels, others)
        return labels

    def _other_centres(self, X: np.ndarray) -> np.ndarray | None:
        """Check the centres of the other classes, if the rule asks for them."""
        if self.cluster_analysis != "distance":
            return None
        if self.other_classes is None:
            raise ValueError(
                "cluster_analysis='distance' compares with other classes: pass other_classes=, "
                "an array of shape (classes, d) with the median activation of each"
            )
        others = np.asarray(self.other_classes, dtype=np.float64)
        if others.ndim != 2 or others.shape[1] != X.shape[1] or not len(others):
            raise ValueError(
                f"other_classes must have shape (classes, {X.shape[1]}), at least one of them, "
                f"got {others.shape}"
            )
        finite = np.isfinite(others).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"other_classes holds NaN or infinity in rows {name_rows(~finite)}: leave out "
                "classes without images"
            )
        return others

    def _fit_reduction(self, X: np.ndarray) -> None:
        at_least("n_components", self.n_components)
        wanted = min(self.n_components, *X.shape)
        with np.errstate(invalid="ignore"):  # shares of a total variance of 0
            self.pca_ = PCA(wanted, svd_solver=pca_solver(X)).fit(X)
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
        return self.groups_.cost(self._transform(X))

    def _judge(self, X, Z, labels: np.ndarray, others: np.ndarray | None) -> None:
        sizes = np.bincount(labels, minlength=self.n_clusters)
        self.suspect_ = suspect_cluster(labels, self.groups_.cost(Z))
        several = 1 < (sizes > 0).sum() < len(labels)
        silhouette = float(silhouette_score(Z, labels)) if several else None
        distances = {} if others is None else _class_distances(X, labels, others)
        if self.suspect_ is None:
            poison = []
        elif self.cluster_analysis == "smaller":
            poison = [self.suspect_]
        elif self.cluster_analysis == "distance":
            poison = distances["nearer_to_another"]
        else:
            small = np.flatnonzero((sizes > 0) & (sizes < self.size_threshold * len(labels)))
            real = silhouette is not None and silhouette > self.silhouette_threshold
            poison = small.tolist() if real or self.cluster_analysis == "relative-size" else []
        self.poison_clusters_ = np.asarray(poison, dtype=np.int64)
        self.report_ = {
            "cluster_analysis": self.cluster_analysis,
            "sizes": sizes.tolist(),
            "silhouette": silhouette,
            "poison_clusters": poison,
            "n_poisoned": int(sizes[poison].sum()),
            "n_clean": int(len(labels) - sizes[poison].sum()),
            **distances,
        }


def _class_distances(X, labels, others: np.ndarray) -> dict[str, list]:
    """Distances of the clusters' medians to that of their class and to those of other classes.

    A class to which *every* cluster is nearer than to its own says nothing about any of them.
    """
    present = np.unique(labels)
    medians = np.stack([np.median(X[labels == k], axis=0) for k in present])
    own = np.linalg.norm(medians - np.median(X, axis=0), axis=1)
    away = np.linalg.norm(medians[:, None] - others, axis=2)
    nearer = away < own[:, None]
    telling = ~nearer.all(axis=0)
    return {
        "clusters": present.tolist(),
        "distance_to_own_class": own.tolist(),
        "distance_to_nearest_class": away.min(axis=1).tolist(),
        "nearer_to_another": present[(nearer & telling).any(axis=1)].tolist(),
    }


CLUSTER_ANALYSES = ("smaller", "relative-size", "silhouette", "distance")
"""Rules that pick the poison cluster; see `ActivationClustering`."""


class RawClustering(_ReducedKMeans):
    """Cluster the images themselves: grey values, ten components, 2-means.

    The paper's first baseline (section 7, Table 3).

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
        See `nbsupport.detectors`.
    cluster_centers_ : ndarray, shape (n_clusters, n_components_)
        Centres in the reduced space.
    inertia_, n_iter_ : float, int
        Sum of squared distances to the nearest centre, and rounds of k-means.
    report_ : dict
        Sizes, mean silhouette, clusters held for poison, and the counts that follow.

    Notes
    -----
    `X` holds uint8 images (n, c, H, W), or grey values (n, d). The released code takes whatever
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

    ITU-R 601 luma, (299 R + 587 G + 114 B) / 1000, in PIL's 16-bit fixed point. Images of one
    channel are grey already.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 of shape (n, 3, H, W) or (n, 1, H, W), got {images.dtype} "
            f"{images.shape}"
        )
    if images.shape[1] == 1:
        return images[:, 0]
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
    cluster_analysis : str, default "smaller"
        "smaller": the smallest cluster is poison, always (the paper). "relative-size": clusters
        with a share below `size_threshold` are; maybe none. "silhouette": the same, but only if
        the mean silhouette exceeds `silhouette_threshold`. "distance": clusters whose median
        activation is nearer to the median of another class than to that of their own; maybe none,
        maybe the larger.
    size_threshold : float, default 0.35
        Largest share of a poisoned cluster.
    silhouette_threshold : float, default 0.1
        Least silhouette of a real split; Chen et al. see 0.1 and less on clean classes.
    other_classes : array, shape (classes, d), optional
        Median activation of each other class, of the same layer; needed by "distance" only.
    n_init : int, default 10
        Starts of k-means; the best is kept.
    random_state : int, default 0
        Seed of FastICA and k-means.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        See `nbsupport.detectors`.
    cluster_centers_ : ndarray, shape (n_clusters, n_components_)
        Centres in the reduced space.
    inertia_, n_iter_ : float, int
        Sum of squared distances to the nearest centre, and rounds of k-means.
    report_ : dict
        Sizes, mean silhouette, clusters held for poison, and the counts that follow; for
        "distance" also what it compared.

    Notes
    -----
    `X` has shape (n, d). `decision_function` always scores towards the smallest cluster, also
    where the rule acquits it.

    The four rules are those of the Adversarial Robustness Toolbox. "distance" compares in the
    space of all activations, where the toolbox takes each class in principal components of its
    own, although these have no axis in common.
    """

    def __init__(
        self,
        reduce="PCA",
        n_components=10,
        n_clusters=2,
        cluster_analysis="smaller",
        size_threshold=0.35,
        silhouette_threshold=0.1,
        other_classes=None,
        n_init=10,
        random_state=0,
    ):
        self.reduce = reduce
        self.n_components = n_components
        self.n_clusters = n_clusters
        self.cluster_analysis = cluster_analysis
        self.size_threshold = size_threshold
        self.silhouette_threshold = silhouette_threshold
        self.other_classes = other_classes
        self.n_init = n_init
        self.random_state = random_state


class SpectralSignature(Detector):
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
