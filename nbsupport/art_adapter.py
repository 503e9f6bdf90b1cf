"""Any detector in the shape of the Adversarial Robustness Toolbox (ART), over all classes.

ART is no dependency; what is kept is the contract of its `PoisonFilteringDefence`:
`detect_poison() -> (report, is_clean)` and `evaluate_defence(is_clean) -> JSON`. In the two lists
1 means clean, while in the rates *positive means poisoned*, both as in ART.
"""

import json

import numpy as np
from sklearn.base import clone

from nbsupport.metrics import Confusion, confusion

__all__ = ["ArtPoisonDetector"]


class ArtPoisonDetector:
    """Let one of our detectors judge a whole data set, class by class, behind ART's interface.

    Parameters
    ----------
    estimator : estimator
        Any detector of this package, fitted or not; it is cloned for each class.
    x_train : array, shape (n, ...)
        What the estimator reads, a row per image: activations, heatmaps, or the images.
    y_train : int array, shape (n,), or one-hot, shape (n, classes)
        Training labels.

    Attributes
    ----------
    score : ndarray, shape (n,)
        After `detect_poison`: higher means more likely poisoned, among images of one class. Zero
        in a class that was skipped.

    Raises
    ------
    ValueError
        If there are not as many labels as rows, or labels of shape (n, k) are not one-hot.

    Notes
    -----
    Where ART errs, this differs: an unknown parameter raises (there it is dropped), draws are
    seeded, and a class too small to be split is called clean and named in the report (there it
    is a crash).
    """

    def __init__(self, estimator, x_train, y_train):
        self.estimator = clone(estimator)
        self.x_train = np.asarray(x_train)
        labels = np.asarray(y_train)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]  # a column of labels, as Keras has them, is no one-hot row
        if labels.ndim == 2:
            if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
                raise ValueError("rows of y_train are no one-hot vectors: give labels, shape (n,)")
            labels = labels.argmax(axis=1)
        self.y_train = labels
        if len(self.x_train) != len(self.y_train):
            raise ValueError(f"{len(self.x_train)} rows in x_train for {len(self.y_train)} labels")

    def get_params(self) -> dict:
        """Return the parameters of the estimator."""
        return self.estimator.get_params()

    def set_params(self, **parameters) -> None:
        """Set parameters of the estimator; an unknown name raises a ValueError."""
        self.estimator.set_params(**parameters)

    def detect_poison(self, **parameters) -> tuple[dict, list[int]]:
        """Judge every image.

        Parameters
        ----------
        **parameters
            Set on the estimator first, and kept.

        Returns
        -------
        report : dict
            "suspicious_clusters", their number; "Class_k" for each label k, with share and verdict
            of each cluster ("ptc_data_in_cluster", "suspicious_cluster"), or "skipped" with the
            reason; and the parameters of the estimator.
        is_clean : list of int
            1 for clean, 0 for poisoned, in the order of `x_train`.
        """
        self.set_params(**parameters)
        is_clean = np.ones(len(self.y_train), dtype=int)
        self.score = np.zeros(len(self.y_train))
        report = {"suspicious_clusters": 0}
        for label in np.unique(self.y_train):
            rows = np.flatnonzero(self.y_train == label)
            if len(rows) < self._fewest():
                report[f"Class_{label}"] = {"skipped": f"{len(rows)} images cannot be split"}
                continue
            fitted = self._prepared(label).fit(self.x_train[rows])
            is_clean[rows[fitted.poisoned_]] = 0
            self.score[rows] = fitted.decision_function(self.x_train[rows])
            clusters = {
                f"cluster_{k}": {
                    "ptc_data_in_cluster": round(float(np.mean(fitted.labels_ == k)), 2),
                    "suspicious_cluster": bool(fitted.poisoned_[fitted.labels_ == k].any()),
                }
                for k in np.unique(fitted.labels_)
            }
            report[f"Class_{label}"] = clusters
            report["suspicious_clusters"] += sum(c["suspicious_cluster"] for c in clusters.values())
        return report | self.get_params(), is_clean.tolist()

    def evaluate_defence(self, is_clean, **parameters) -> str:
        """Judge every image and compare with the truth.

        Parameters
        ----------
        is_clean : array of 0 and 1, shape (n,)
            The truth, in the order of `x_train`: 1 for clean, 0 for poisoned.
        **parameters
            As in `detect_poison`.

        Returns
        -------
        str
            JSON: "class_k" -> "TruePositive", "TrueNegative", "FalsePositive", "FalseNegative" ->
            "rate" in percent (-1, as in ART 1.20, if there is nothing to divide by), "numerator",
            "denominator".

        Raises
        ------
        ValueError
            If the truth does not fit the images.
        """
        truth = 1 - np.asarray(is_clean)
        if truth.shape != self.y_train.shape:
            raise ValueError(f"is_clean has shape {truth.shape} for {len(self.y_train)} images")
        flagged = 1 - np.array(self.detect_poison(**parameters)[1])
        return json.dumps(
            {
                f"class_{label}": _matrix(confusion(truth[rows], flagged[rows]))
                for label in np.unique(self.y_train)
                for rows in [self.y_train == label]
            }
        )

    def _fewest(self) -> int:
        """Images below which the estimator cannot split a class."""
        n_clusters = getattr(self.estimator, "n_clusters", 2)
        return max(2, n_clusters) if isinstance(n_clusters, int) else 2

    def _prepared(self, label):
        """Clone the estimator; one that compares with other classes is told their medians."""
        estimator = clone(self.estimator)
        if getattr(estimator, "cluster_analysis", "") == "distance":
            others = [k for k in np.unique(self.y_train) if k != label]
            estimator.set_params(
                other_classes=[np.median(self.x_train[self.y_train == k], axis=0) for k in others]
            )
        return estimator


def _matrix(counts: Confusion) -> dict[str, dict]:
    positive, negative = counts.n_positive, counts.n_negative
    return {
        name: {
            "rate": round(100 * k / n, 2) if n else -1,
            "numerator": k,
            "denominator": n,
        }
        for name, k, n in (
            ("TruePositive", counts.tp, positive),
            ("TrueNegative", counts.tn, negative),
            ("FalsePositive", counts.fp, negative),
            ("FalseNegative", counts.fn, positive),
        )
    }
