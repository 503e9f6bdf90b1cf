"""The contract of all detectors of poisoned images within one class.

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
"""

import warnings

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nbsupport import gw

__all__ = [
    "Detector", "HeatmapDetector", "at_least", "canonical_order", "one_of", "pca_solver",
    "suspect_cluster",
]  # fmt: skip


class Detector(ClusterMixin, BaseEstimator):
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
        order = canonical_order(X)
        labels = self._split(X[order])
        self.labels_ = np.empty(len(X), dtype=np.int64)
        self.labels_[order] = labels
        self.poisoned_ = np.isin(self.labels_, self.poison_clusters_)
        return self

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        """Check rows of numbers, shape (n, d)."""
        return validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_min_samples=2 if reset else 1
        )

    def decision_function(self, X) -> np.ndarray:
        """Score images, shape (n,): higher means more likely poisoned."""
        check_is_fitted(self)
        cost = self._cost(self._validate(X, reset=False))
        if self.suspect_ is None:
            return np.zeros(len(cost))
        suspects = np.atleast_1d(self.suspect_)
        return np.delete(cost, suspects, axis=1).min(axis=1) - cost[:, suspects].min(axis=1)


class HeatmapDetector(Detector):
    """Detectors whose rows are heatmaps (n, H, W), or squares flattened to (n, H * W)."""

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        gw.check_one_shape(X)
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
        # Before `fit` sorts the maps: an error names those at fault by their place in X.
        X = gw.as_maps(X)
        if hasattr(self, "negative"):
            gw.nonnegative(np.abs(X) if self.negative == "clip" else X, self.negative)
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


def canonical_order(X: np.ndarray) -> np.ndarray:
    """Sort rows by their bytes: any order will do, as long as it depends on the rows alone."""
    rows = np.ascontiguousarray(X.reshape(len(X), -1) + 0.0)  # + 0.0 turns -0.0 into 0.0
    width = np.dtype((np.void, rows.shape[1] * rows.itemsize))
    return np.argsort(rows.view(width).ravel(), kind="stable")


def suspect_cluster(labels: np.ndarray, cost: np.ndarray) -> int | None:
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


def pca_solver(X: np.ndarray) -> str:
    """Choose how PCA is solved: by d x d covariances, unless they are larger than X, and large."""
    return "covariance_eigh" if X.shape[1] <= max(4096, len(X)) else "full"


def at_least(name: str, value, least: int = 1) -> None:
    """Raise a ValueError that names the value unless it reaches the least one that makes sense."""
    if not value >= least:
        raise ValueError(f"{name} is {value!r}; needs {least} or more")


def one_of(name: str, value, allowed: tuple) -> None:
    """Raise a ValueError that shows the allowed values unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {allowed}")
