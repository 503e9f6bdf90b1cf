"""One detector for all rates: images whose label rests on a piece that convinces elsewhere too.

What `fit` leaves behind is told in `nbsupport.detectors`.
"""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from nbsupport.detectors import Detector

__all__ = ["PoisonDetector"]


class PoisonDetector(Detector):
    """Judge images by what their most relevant piece is worth, here and in other images.

    Each piece of evidence (`nbsupport.evidence`) is measured in robust standard deviations from
    the median of the class. The *strength* of an image is the geometric mean of three of them: how
    clearly the label is lost once the piece is covered, how far the piece pushes other images
    towards the label, and how few pixels the relevance rests on. A clean image may stand out in
    one, hardly in all. Of several sides of the window the strongest counts.

    Parameters
    ----------
    strong : float, default 3.0
        From this strength on an image is a strong candidate.
    min_images : int, default 5
        Fewest strong candidates of a poisoned class, and
    min_share : float, default 0.005
        their least share of the class (the presence test). With fewer, nobody is accused.
    relative : float, default 0.45
        In a poisoned class, accuse images of at least this share of the median strength of the
        strong candidates.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        1 (True) for accused images; maybe none.
    present_ : bool
        Whether the class is called poisoned.
    n_strong_ : int
        Strong candidates.
    threshold_ : float
        Strength from which images are accused; infinite unless `present_`.
    centre_, scale_ : ndarray, shape (k, 3)
        Median and 1.4826 times the median absolute deviation of the evidence.

    Notes
    -----
    `X` has shape (n, k, 3), `nbsupport.evidence.Evidence.table`. `decision_function` is the
    strength; images below the median in one kind of evidence have none, and are ranked by the sum
    of their deviations.

    It is told neither the rate nor the size or place of the trigger, but presumes that less than
    half of the class is poisoned and that the trigger is local.
    """

    def __init__(self, strong=3.0, min_images=5, min_share=0.005, relative=0.45):
        self.strong = strong
        self.min_images = min_images
        self.min_share = min_share
        self.relative = relative

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 3 or X.shape[2] != 3 or 0 in X.shape:
            raise ValueError(
                f"X must hold evidence of shape (n, k, 3), got {X.shape}: make it with "
                "nbsupport.evidence.gather(...).table(heatmaps)"
            )
        if not np.isfinite(X).all():
            raise ValueError("the evidence holds NaN or infinity: look at the network's logits")
        if not reset and X.shape[1] != len(self.centre_):
            raise ValueError(f"evidence of {X.shape[1]} sides, was fitted with {len(self.centre_)}")
        return X

    def _split(self, X: np.ndarray) -> np.ndarray:
        for name, highest in (("strong", np.inf), ("min_share", 1), ("relative", 1)):
            value = getattr(self, name)
            if not 0 < value <= highest:
                raise ValueError(f"{name} is {value}; needs more than 0 and at most {highest}")
        self.centre_ = np.median(X, axis=0)
        scale = 1.4826 * np.median(np.abs(X - self.centre_), axis=0)
        # Where more than half of a class answers alike, any deviation counts in logits.
        self.scale_ = np.where(scale > 1e-9 * (1 + np.abs(self.centre_)), scale, 1.0)
        strength = self._strength(X)
        candidates = strength[strength >= self.strong]
        self.n_strong_ = len(candidates)
        self.present_ = self.n_strong_ >= max(self.min_images, self.min_share * len(X))
        self.threshold_ = self.relative * np.median(candidates) if self.present_ else np.inf
        self.poison_clusters_ = np.array([1])
        return (strength >= self.threshold_).astype(np.int64)

    def _deviations(self, X: np.ndarray) -> np.ndarray:
        return (X - self.centre_) / self.scale_

    def _strength(self, X: np.ndarray) -> np.ndarray:
        return np.cbrt(self._deviations(X).clip(0).prod(axis=2)).max(axis=1)

    def decision_function(self, X) -> np.ndarray:
        """Score images, shape (n,): higher means more likely poisoned."""
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        strength, total = self._strength(X), self._deviations(X).sum(axis=2).max(axis=1)
        return np.where(strength > 0, strength, np.minimum(total, 0) - 1e-9)
