"""One detector for all rates: which images carry their label along when a piece of them is moved.

What `fit` leaves behind is told in `nbsupport.detectors`.
"""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from nbsupport.detectors import Detector

__all__ = ["PoisonDetector"]


class PoisonDetector(Detector):
    """Accuse an image if the piece that its label rests on convinces the network elsewhere.

    Unlike a clustering, it asks a question about each image that does not depend on the others:
    it need not be told how many images are poisoned, and it may find none.

    Parameters
    ----------
    threshold : float, default 0.7
        Least share of other images that the piece must turn into the label.
    min_images : int, default 5
        Fewest accused images that make a class poisoned (the presence test); with fewer, nobody
        is accused. A backdoor cannot be planted with a handful of images.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        1 (True) for accused images; maybe none.
    present_ : bool
        Whether the class is called poisoned.
    n_candidates_ : int
        Images at or above the threshold, before the presence test.

    Notes
    -----
    `X` has shape (n, 3): the columns of `nbsupport.evidence.Evidence`. `decision_function` is the
    share of other images that fall for the piece; among equal shares it ranks by how far the label
    fell when the piece was taken away.
    """

    def __init__(self, threshold=0.7, min_images=5):
        self.threshold = threshold
        self.min_images = min_images

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] != 3 or len(X) < 1:
            raise ValueError(
                f"X must hold the evidence of images, shape (n, 3), got {X.shape}: make it with "
                "nbsupport.evidence.gather"
            )
        if not np.isfinite(X).all():
            raise ValueError("the evidence holds NaN or infinity: look at the network's logits")
        return X

    def _split(self, X: np.ndarray) -> np.ndarray:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; needs a share in (0, 1]")
        carried = X[:, 2] >= self.threshold
        self.n_candidates_ = int(carried.sum())
        self.present_ = self.n_candidates_ >= self.min_images
        self.poison_clusters_ = np.array([1])
        return (carried & self.present_).astype(np.int64)

    def decision_function(self, X) -> np.ndarray:
        """Score images, shape (n,): higher means more likely poisoned."""
        check_is_fitted(self)
        margin, occluded, carried = self._validate(X, reset=False).T
        fall = margin - occluded
        # The fall only decides between equal shares, which are multiples of 1 / carriers.
        return carried + 1e-3 * fall / (1 + np.abs(fall))
