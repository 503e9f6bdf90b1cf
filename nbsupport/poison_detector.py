"""One detector for all rates, with two witnesses: each image alone, and the crowd.

What `fit` leaves behind is told in `nbsupport.detectors`.
"""

from contextlib import suppress

import numpy as np
from scipy.stats import hypergeom
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.utils.validation import check_is_fitted

from nbsupport.baselines import ActivationClustering
from nbsupport.detectors import Detector

__all__ = ["PoisonDetector"]

KINDS = 3  # what `evidence.Evidence.table` tells of each side of the window


class PoisonDetector(Detector):
    """Accuse what either of two witnesses accuses; believe neither unless it is sure.

    The first witness asks each image alone what its most relevant piece is worth
    (`nbsupport.evidence`). Each piece of evidence is measured in robust standard deviations from
    the median of the class. The *strength* of an image is the geometric mean of three of them: how
    clearly the label is lost once the piece is covered, how far the piece pushes other images
    towards the label, and how few pixels the relevance rests on. A clean image may stand out in
    one, hardly in all. Of several sides of the window the strongest counts. This finds rare
    poison, and triggers that decide alone.

    The second witness is the crowd: Activation Clustering, heard where its two clusters are far
    apart. A class without poison may fall into two groups as well, of two kinds of pictures say.
    So where they are less far apart, the strong candidates of the first witness must lie in the
    smaller cluster more often than chance would have it. This witness accuses the smaller cluster
    up to the surface where a quadratic discriminant of the two finds both equally likely: on real
    signs the poisoned group is the wider one, and k-means, which cuts in the middle, leaves its
    edge to the clean. This finds poison that is frequent, whatever the trigger looks like.

    Parameters
    ----------
    sides : int, default 2
        How many sides of the window the evidence has, ``len(evidence.sides)``: the first
        3 * sides columns of `X`.
    strong : float, default 3.0
        Strength from which on an image is a strong candidate.
    min_images : int, default 5
        Least number of strong candidates with which the first witness is heard; also the least
        size of the second one's smaller cluster, and the least number of candidates inside it.
    min_share : float, default 0.005
        Least share of the class that the strong candidates, or the smaller cluster, must have.
    relative : float, default 0.45
        The first witness accuses images of at least this share of the median strength of the
        strong candidates.
    silhouette_threshold : float, default 0.55
        Mean silhouette of the clusters above which the second witness is heard.
    agreed_threshold : float, default 0.45
        The same where both witnesses agree.
    chance : float, default 0.001
        They agree if, with no more than this probability, so many of the strong candidates would
        lie in the smaller cluster by chance.
    size_threshold : float, default 0.4
        Share of the class below which the smaller cluster must stay for its witness to be heard.
    min_class : int, default 50
        Least size of a class that is clustered: a handful falls into clusters by chance.
    random_state : int, default 0
        Seed of the clusters of activations.

    Attributes
    ----------
    labels_, poisoned_ : ndarray, shape (n,)
        1 (True) for accused images; maybe none.
    present_ : bool
        Whether the class is called poisoned: whether a witness was heard.
    witnesses_ : list of str
        Which ones: "evidence", "activations".
    n_strong_ : int
        Strong candidates.
    threshold_ : float
        Strength from which the first witness accuses; infinite unless he is heard.
    silhouette_ : float or None
        Of the clusters of activations.
    chance_ : float
        Probability that so many of the strong candidates lie in the smaller cluster by chance
        (hypergeometric); 1 where there are none.
    centre_, scale_ : ndarray, shape (sides, 3)
        Median and 1.4826 times the median absolute deviation of the evidence.

    Notes
    -----
    `X` has shape (n, 3 * sides + d), from `nbsupport.evidence.Evidence.table`: evidence, then d
    activations. Without activations (d = 0) the second witness is silent. A gain may be NaN where
    it was not measured; see `nbsupport.evidence.gather`.

    `decision_function` is 1 where an accusation begins and rises with it. In a class that is
    called clean it is the strength over `strong`. Images below the median in one kind of evidence
    have no strength; they rank behind all others, those whose deviations add up to less than
    nothing by that sum, the rest on one level before them.

    It is told neither the rate nor the size or place of the trigger, but presumes that less than
    half of the class is poisoned.
    """

    def __init__(
        self,
        sides=2,
        strong=3.0,
        min_images=5,
        min_share=0.005,
        relative=0.45,
        silhouette_threshold=0.55,
        agreed_threshold=0.45,
        chance=0.001,
        size_threshold=0.4,
        min_class=50,
        random_state=0,
    ):
        self.sides = sides
        self.strong = strong
        self.min_images = min_images
        self.min_share = min_share
        self.relative = relative
        self.silhouette_threshold = silhouette_threshold
        self.agreed_threshold = agreed_threshold
        self.chance = chance
        self.size_threshold = size_threshold
        self.min_class = min_class
        self.random_state = random_state

    def _validate(self, X, *, reset: bool) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        if self.sides < 1:
            raise ValueError(f"sides is {self.sides}; needs 1 or more")
        width = KINDS * self.sides
        if X.ndim != 2 or len(X) == 0 or X.shape[1] < width:
            raise ValueError(
                f"X must hold evidence of {self.sides} sides, then activations: shape (n, {width} "
                f"or more), got {X.shape}; make it with "
                "nbsupport.evidence.gather(...).table(heatmaps, activations)"
            )
        known = X.copy()
        known[:, 1:width:KINDS][np.isnan(known[:, 1:width:KINDS])] = 0.0
        if not np.isfinite(known).all():
            raise ValueError(
                "the evidence holds NaN or infinity: look at the network's logits, and pass "
                f"sides=len(evidence.sides), which is {self.sides} here"
            )
        if reset:
            self.n_features_in_ = X.shape[1]
        elif X.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {X.shape[1]} columns, was fitted with {self.n_features_in_}")
        return X

    def _parts(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = KINDS * self.sides
        return X[:, :width].reshape(len(X), self.sides, KINDS), X[:, width:]

    def _split(self, X: np.ndarray) -> np.ndarray:
        thresholds = ("silhouette_threshold", "agreed_threshold", "size_threshold")
        shares = ("min_share", "relative", *thresholds, "chance")
        for name, highest in (("strong", np.inf), *((share, 1) for share in shares)):
            value = getattr(self, name)
            if not 0 < value <= highest:
                raise ValueError(f"{name} is {value}; needs more than 0 and at most {highest}")
        evidence, activations = self._parts(X)
        weights = _weights(evidence)
        self.centre_ = _median(evidence, weights)
        scale = 1.4826 * _median(np.abs(evidence - self.centre_), weights)
        # Where more than half of a class answers alike, any deviation counts in logits.
        self.scale_ = np.where(scale > 1e-9 * (1 + np.abs(self.centre_)), scale, 1.0)
        strength = self._strength(evidence)
        strong = strength >= self.strong
        self.n_strong_ = int(strong.sum())
        heard = self.n_strong_ >= self.fewest(len(X))
        self.threshold_ = self.relative * float(np.median(strength[strong])) if heard else np.inf
        self.witnesses_ = ["evidence"] * bool(heard)
        self._clusters, self._border, self.silhouette_, self.chance_ = None, None, None, 1.0
        if activations.shape[1] and len(X) >= max(3, self.min_class):
            self.witnesses_ += ["activations"] * self._ask_the_crowd(activations, strong)
        self.present_ = bool(self.witnesses_)
        self.poison_clusters_ = np.array([1])
        return (self._score(X) >= 1).astype(np.int64) * self.present_

    def _ask_the_crowd(self, activations: np.ndarray, strong: np.ndarray) -> bool:
        """Split the activations; return whether the split is to be believed."""
        self._clusters = ActivationClustering(
            reduce="PCA",
            n_components=min(10, *activations.shape),
            random_state=self.random_state,
        ).fit(activations)
        self.silhouette_ = self._clusters.report_["silhouette"]
        if self.silhouette_ is None:
            return False
        smaller, n = self._clusters.poisoned_, len(strong)
        inside = (strong & smaller).sum()
        if inside:
            # Chance would fill the smaller cluster like an urn that the candidates are drawn from.
            self.chance_ = float(hypergeom.sf(inside - 1, n, smaller.sum(), strong.sum()))
        agreed = inside >= self.min_images and self.chance_ <= self.chance
        apart = self.silhouette_ > (self.agreed_threshold if agreed else self.silhouette_threshold)
        if not apart or not self.fewest(n) <= smaller.sum() < self.size_threshold * n:
            return False
        border = QuadraticDiscriminantAnalysis(solver="eigen", shrinkage="auto")
        with suppress(np.linalg.LinAlgError, ValueError):  # a group of one has no covariance
            self._border = border.fit(self._place(activations), smaller)
        return True

    def _odds(self, activations: np.ndarray) -> np.ndarray:
        """How much more likely an image is of the smaller group; positive from the border on."""
        if self._border is not None:
            return self._border.decision_function(self._place(activations))
        # A group has no Gaussian where some direction has no spread, or hardly any: scikit-learn
        # wants 1e-4 of the largest variance (the groups' distance counts in that).
        cost, suspect = self._clusters._cost(activations), self._clusters.suspect_
        return cost[:, 1 - suspect] - cost[:, suspect]

    def _place(self, activations: np.ndarray) -> np.ndarray:
        # In units of the largest spread, for what counts as no spread at all is absolute.
        clusters = self._clusters
        return clusters._transform(activations) / np.sqrt(clusters.pca_.explained_variance_[0])

    def _deviations(self, evidence: np.ndarray) -> np.ndarray:
        return np.nan_to_num((evidence - self.centre_) / self.scale_, nan=0.0)

    def _strength(self, evidence: np.ndarray) -> np.ndarray:
        return np.cbrt(self._deviations(evidence).clip(0).prod(axis=2)).max(axis=1)

    def _score(self, X: np.ndarray) -> np.ndarray:
        evidence, activations = self._parts(X)
        strength = self._strength(evidence)
        total = self._deviations(evidence).sum(axis=2).max(axis=1)
        score = np.where(strength > 0, strength, np.minimum(total, 0) - 1e-9)
        if "evidence" in self.witnesses_:
            score /= self.threshold_
        elif self.present_:
            # What the silent witness says must not count beside what the other one says; it
            # decides the order only where the other's odds are lower still.
            score = 1e-6 * score
        else:
            score /= self.strong
        if "activations" in self.witnesses_:
            odds = self._odds(activations)
            # Log odds, drawn together: from 0 for the other group to 2 for the accused one.
            score = np.maximum(score, 1 + odds / (1 + np.abs(odds)))
        return score

    def fewest(self, n):
        """Least number of suspect images in a class of `n` (or classes) to hear a witness."""
        return np.maximum(self.min_images, self.min_share * np.asarray(n))

    def strength(self, X) -> np.ndarray:
        """Strength of images, shape (n,): what the first witness goes by."""
        check_is_fitted(self)
        return self._strength(self._parts(self._validate(X, reset=False))[0])

    def decision_function(self, X) -> np.ndarray:
        """Score images, shape (n,): 1 where an accusation begins, higher for clearer ones."""
        check_is_fitted(self)
        return self._score(self._validate(X, reset=False))


def _weights(evidence: np.ndarray) -> np.ndarray:
    """How many images each number stands for, shape (n, sides, 3).

    Gains are measured of all images that can be strong but only of a sample of the others
    (`nbsupport.evidence.gather`). Where poison is frequent it would be most of what was measured,
    and its gain the median. So each gain counts for the unmeasured ones of images like it.
    """
    weights, known = np.ones_like(evidence), ~np.isnan(evidence[..., 1])
    others = evidence[..., ::2]  # known of every image
    lead, narrow = np.moveaxis(others > np.median(others, axis=0), 2, 0)
    for alike in (lead & narrow, lead & ~narrow, ~lead & narrow, ~lead & ~narrow):
        each = alike.sum(0) / np.maximum((alike & known).sum(0), 1)
        weights[..., 1] = np.where(alike, each, weights[..., 1])
    return weights


def _median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # Where nothing was measured there is nothing to deviate from: 0, so that nobody is strong.
    values = np.where(np.isnan(values).all(axis=0), 0.0, values)
    return np.nanquantile(values, 0.5, axis=0, weights=weights, method="inverted_cdf")
