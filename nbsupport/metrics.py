"""How good attacks and detections are, with intervals, and whether printed rates can be true.

Positive means poisoned. Rates and intervals are in percent; AUROC and average precision, which
are no rates of images, are in [0, 1]. What is not defined (the TPR of a class without poison) is
NaN, never 0 or 100.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

__all__ = [
    "Audit", "Confusion", "Interval", "asr", "audit", "auroc", "average_precision", "confusion",
    "confusion_by_id", "difference", "implied_share", "masr", "per_class_asr", "pooled",
    "recover_counts", "shuffled_auroc", "spread_range", "summarised", "wilson",
]  # fmt: skip

NAN = float("nan")

LAST_DIGIT = 0.01
"""A unit of the last digit that the paper prints, in percentage points."""


@dataclass(frozen=True)
class Confusion:
    """Confusion counts of a detection, and its rates in percent (Section 5.2).

    Parameters
    ----------
    tp, fn : int
        Poisoned images flagged, and missed.
    tn, fp : int
        Clean images kept, and flagged.
    """

    tp: int
    fn: int
    tn: int
    fp: int

    @property
    def n_positive(self) -> int:
        """Poisoned images."""
        return self.tp + self.fn

    @property
    def n_negative(self) -> int:
        """Clean images."""
        return self.tn + self.fp

    @property
    def acc(self) -> float:
        """Accuracy; NaN without images."""
        return _percent(self.tp + self.tn, self.n_positive + self.n_negative)

    @property
    def tpr(self) -> float:
        """Share of the poisoned images that is flagged; NaN where none is poisoned."""
        return _percent(self.tp, self.n_positive)

    @property
    def tnr(self) -> float:
        """Share of the clean images that is kept; NaN where all are poisoned."""
        return _percent(self.tn, self.n_negative)

    def record(self) -> dict[str, float]:
        """Return rates and counts under their names in figures/results.csv."""
        rates = {"acc": self.acc, "tpr": self.tpr, "tnr": self.tnr}
        return rates | {f"n_{name}": count for name, count in asdict(self).items()}


def hits(counts: Mapping[str, int], rate: str) -> tuple[int, int]:
    """Say how many images a rate counts, and of how many.

    Parameters
    ----------
    counts : mapping
        ``n_tp``, ``n_fn``, ``n_tn`` and ``n_fp``, as in `Confusion.record`.
    rate : {"acc", "tpr", "tnr"}
        Which rate.

    Returns
    -------
    tuple of int
        For a binomial interval, such as `wilson`.

    Raises
    ------
    ValueError
        If there is no such rate.
    """
    tp, fn, tn, fp = (int(counts[f"n_{name}"]) for name in ("tp", "fn", "tn", "fp"))
    found = {"acc": (tp + tn, tp + fn + tn + fp), "tpr": (tp, tp + fn), "tnr": (tn, tn + fp)}
    if rate not in found:
        raise ValueError(f"rate is {rate!r}; choose from 'acc', 'tpr' and 'tnr'")
    return found[rate]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, all three in the same unit."""

    estimate: float
    low: float
    high: float


def confusion(truth: ArrayLike, flagged: ArrayLike) -> Confusion:
    """Count hits and misses of a detection whose arrays are in the same order.

    Parameters
    ----------
    truth, flagged : array of bool (or 0 and 1), shape (n,)
        Whether each image is poisoned, and whether it was flagged. Use `confusion_by_id` wherever
        the two come from different places.

    Raises
    ------
    ValueError
        If the shapes differ or a value is neither 0 nor 1 (a score or a class, perhaps).
    """
    truth, flagged = _binary("truth", truth), _binary("flagged", flagged)
    if truth.shape != flagged.shape:
        raise ValueError(f"truth has {len(truth)} images, flagged {len(flagged)}; join them by id")
    return Confusion(
        tp=int(np.sum(truth & flagged)),
        fn=int(np.sum(truth & ~flagged)),
        tn=int(np.sum(~truth & ~flagged)),
        fp=int(np.sum(~truth & flagged)),
    )


def confusion_by_id(
    truth_ids: ArrayLike, truth: ArrayLike, result_ids: ArrayLike, flagged: ArrayLike
) -> Confusion:
    """Count hits and misses after joining truth and result by image id.

    Parameters
    ----------
    truth_ids, result_ids : int array, shape (n,)
        Image ids, in any order.
    truth, flagged : array of bool, shape (n,)
        Whether the image of that id is poisoned, and whether it was flagged.

    Raises
    ------
    ValueError
        If an id occurs twice, or the two hold different images.
    """
    sorted_truth = _by_id("truth", truth_ids, truth)
    sorted_result = _by_id("result", result_ids, flagged)
    if not np.array_equal(sorted_truth[0], sorted_result[0]):
        unjudged = np.setdiff1d(sorted_truth[0], sorted_result[0])
        unknown = np.setdiff1d(sorted_result[0], sorted_truth[0])
        raise ValueError(
            f"truth and result hold different images: {len(unjudged)} ids only in truth "
            f"{unjudged[:5].tolist()}, {len(unknown)} only in the result {unknown[:5].tolist()}; "
            "were both made from the same run?"
        )
    return confusion(sorted_truth[1], sorted_result[1])


def auroc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: chance that a poisoned image scores above a clean one.

    Parameters
    ----------
    truth : array of bool, shape (n,)
        Whether each image is poisoned.
    score : array, shape (n,)
        Higher is more suspicious; ties count half.

    Returns
    -------
    float
        In [0, 1]; NaN where only one kind of image is present.
    """
    from sklearn.metrics import roc_auc_score  # a second to import, wanted only here

    truth = _binary("truth", truth)
    return NAN if truth.all() or not truth.any() else float(roc_auc_score(truth, score))


def average_precision(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the precision-recall curve in [0, 1]; NaN as in `auroc`.

    Chance level is the share of poisoned images, not one half.
    """
    from sklearn.metrics import average_precision_score

    truth = _binary("truth", truth)
    return NAN if truth.all() or not truth.any() else float(average_precision_score(truth, score))


def asr(predictions: ArrayLike, target: int) -> float:
    """Attack success rate: share of triggered images predicted as ``target`` (Section 5.1).

    Parameters
    ----------
    predictions : int array, shape (n,)
        Predicted classes of test images that carry the trigger.
    target : int
        Class the attacker wants.
    """
    predictions = np.asarray(predictions)
    return _percent(np.sum(predictions == target), predictions.size)


def per_class_asr(labels: ArrayLike, predictions: ArrayLike, target: int) -> dict[int, float]:
    """Attack success rate of every class but the target (Fig. 6).

    Parameters
    ----------
    labels, predictions : int array, shape (n,)
        True and predicted classes of test images that carry the trigger.
    target : int
        Class the attacker wants; its own images are left out.

    Returns
    -------
    dict
        Class -> rate in percent, for the classes that occur in ``labels``.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(f"{len(labels)} labels for {len(predictions)} predictions")
    return {int(c): asr(predictions[labels == c], target) for c in np.unique(labels) if c != target}


def masr(labels: ArrayLike, predictions: ArrayLike, target: int, average: str = "macro") -> float:
    """Mean attack success rate over all classes but the target.

    Parameters
    ----------
    labels, predictions, target
        As in `per_class_asr`.
    average : {"macro", "micro"}
        Every class weighs the same (the paper's numbers), or every image.

    Returns
    -------
    float
        In percent; NaN without an image of another class.
    """
    if average == "macro":
        rates = list(per_class_asr(labels, predictions, target).values())
        return float(np.mean(rates)) if rates else NAN
    if average == "micro":
        return asr(np.asarray(predictions)[np.asarray(labels) != target], target)
    raise ValueError(f"average is {average!r}; choose 'macro' or 'micro'")


def wilson(k: int, n: int) -> Interval:
    """Wilson score interval of a rate, 95 %, in percent.

    It stays inside 0 to 100 and keeps a width at k = n: 34 of 34 only shows a rate above 89.8 %.
    All three are NaN for n = 0.

    Raises
    ------
    ValueError
        If k is not between 0 and n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} hits among {n}: expected 0 <= k <= n")
    if n == 0:
        return Interval(NAN, NAN, NAN)
    z = NormalDist().inv_cdf(0.975)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    rate = k / n
    # At k = 0 and k = n one end is the rate itself, which rounding may miss on the wrong side.
    return Interval(
        100 * rate,
        100 * min(rate, max(0.0, centre - half)),
        100 * max(rate, min(1.0, centre + half)),
    )


def pooled(rates, sizes) -> Interval:
    """Mean of the rates of several runs, with a 95 % interval.

    The images of all runs count together (Wilson). But images of one network are no independent
    witnesses: where runs differ by more than their images explain, what is left of their variance
    widens the interval, by Student's t, since a few runs tell little of how much networks differ.
    Every run counts alike.

    Parameters
    ----------
    rates : array, shape (n_runs,)
        Percent.
    sizes : array, shape (n_runs,)
        Images behind each rate.

    Returns
    -------
    Interval
        In percent; NaN without a run.

    Notes
    -----
    Of two to four networks that differ it holds the true mean in about 85 to 90 of 100 cases, of
    ten in 92: now and then a few agree by chance.
    """
    rates, sizes = np.asarray(rates, dtype=float), np.asarray(sizes, dtype=float)
    if not len(rates) or np.isnan(rates).any():
        return Interval(math.nan, math.nan, math.nan)
    variance = rates.var(ddof=1) if len(rates) > 1 else 0.0
    return summarised(rates.mean(), variance, sizes.mean(), len(rates))


def summarised(mean: float, variance: float, size: float, runs: int = 1) -> Interval:
    """The interval of `pooled`, for runs of which only mean and variance are known.

    Parameters
    ----------
    mean : float
        Mean of the rates, in percent.
    variance : float
        Their variance (with n - 1), in percent squared; 0 for a single run.
    size : float
        Images behind one rate, on average.
    runs : int
        Number of rates.

    Returns
    -------
    Interval
        In percent; its ends are NaN where the mean or the number of images is.
    """
    if math.isnan(mean) or math.isnan(size):
        return Interval(mean, NAN, NAN)
    mean = min(100.0, mean)  # of rates that are all 100 it may be a hair above
    share, n = mean / 100, size * runs
    images = wilson(share * n, n)
    between = 0.0
    if runs > 1:
        excess = variance - 100**2 * share * (1 - share) / size
        between = stdtrit(runs - 1, 0.975) * math.sqrt(max(0.0, excess) / runs)
    return Interval(
        mean,
        max(0.0, mean - math.hypot(mean - images.low, between)),
        min(100.0, mean + math.hypot(images.high - mean, between)),
    )


def difference(one: Interval, other: Interval) -> Interval:
    """Subtract ``other`` from ``one``, two independent rates, with a 95 % interval.

    Where it holds 0, the rates may be the same for all that their images (and repetitions) say.
    For two rates of the same images it is rather too wide.

    Notes
    -----
    Newcombe 1998, *Interval estimation for the difference between independent proportions*,
    method 10: each side is the root of the squared distances to the ends that lie apart.
    """
    apart = one.estimate - other.estimate
    return Interval(
        apart,
        apart - math.hypot(one.estimate - one.low, other.high - other.estimate),
        apart + math.hypot(one.high - one.estimate, other.estimate - other.low),
    )


def shuffled_auroc(
    truth: ArrayLike,
    score: ArrayLike,
    *,
    rng: np.random.Generator,
) -> Interval:
    """AUROC of scores against truth that was dealt out anew: what chance alone gives.

    Parameters
    ----------
    truth : array of bool, shape (n,)
        Whether each image is poisoned.
    score : array, shape (n,)
        Higher is more suspicious.
    rng : numpy.random.Generator
        Source of 200 shuffles.

    Returns
    -------
    Interval
        Mean over the shuffles, which is 0.5 up to sampling whatever the scores, and between which
        values 95 % of them lie; in [0, 1], NaN as in `auroc`. An AUROC of a method inside the
        interval shows nothing.
    """
    truth = _binary("truth", truth)
    values = [auroc(rng.permutation(truth), score) for _ in range(200)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high))


@dataclass(frozen=True)
class Audit:
    """What arithmetic says about printed rates.

    Parameters
    ----------
    consistent : bool
        Whether ACC = p TPR + (1 - p) TNR holds within the rounding of all three; with a rate that
        is not printed, whether some value of it from 0 to 100 would do.
    unattainable : tuple of str
        Those of "acc", "tpr", "tnr" that no whole number of images rounds to.
    implied_acc : float
        ACC that follows from TPR and TNR, in percent; NaN if one that counts is not printed.
    implied_share : float
        Poisoned share of the class that follows from all three, in percent (see `implied_share`);
        NaN if one is not printed.
    counts : tuple of Confusion
        All counts that give the printed rates.
    """

    consistent: bool
    unattainable: tuple[str, ...]
    implied_acc: float
    implied_share: float
    counts: tuple[Confusion, ...]

    @property
    def ok(self) -> bool:
        """Whether the rates can be true: consistent, and counts exist that give them."""
        return self.consistent and bool(self.counts)


def audit(acc: float, tpr: float, tnr: float, n_poisoned: int, n_class: int) -> Audit:
    """Check printed detection rates against each other and against whole numbers of images.

    Parameters
    ----------
    acc, tpr, tnr : float
        Rates in percent, printed with two decimals; a NaN rate is taken as not printed.
    n_poisoned, n_class : int
        Poisoned images, and all images that were clustered.

    Raises
    ------
    ValueError
        If there are no images, or more poisoned ones than images.
    """
    _check_sizes(n_poisoned, n_class)
    n_negative = n_class - n_poisoned
    rates = {"acc": (acc, n_class), "tpr": (tpr, n_poisoned), "tnr": (tnr, n_negative)}
    # A rate that is not printed may lie anywhere between its ends; where all are, both are equal.
    low, high = (
        sum(n * (end if math.isnan(rate) else rate) for rate, n in (rates["tpr"], rates["tnr"]))
        / n_class
        for end in (0, 100)
    )
    # ACC carries half a unit of rounding, and the weighted mean of TPR and TNR at most another.
    width = LAST_DIGIT + 1e-9
    return Audit(
        consistent=math.isnan(acc) or low - width <= acc <= high + width,
        unattainable=tuple(
            name for name, (rate, n) in rates.items() if not _candidates(rate, n, 0.5)
        ),
        implied_acc=low if low == high else NAN,
        implied_share=implied_share(acc, tpr, tnr),
        counts=recover_counts(acc, tpr, tnr, n_poisoned, n_class),
    )


def recover_counts(
    acc: float,
    tpr: float,
    tnr: float,
    n_poisoned: int,
    n_class: int,
    *,
    slack: float = 0.5,
) -> tuple[Confusion, ...]:
    """Find all confusion counts that give the printed rates.

    Parameters
    ----------
    acc, tpr, tnr, n_poisoned, n_class
        As in `audit`; a NaN rate is taken as not printed.
    slack : float
        Distance allowed between a rate and its print, in units of the last digit: 0.5 for
        rounding, 1 where the print may be cut off or rounded twice.

    Returns
    -------
    tuple of Confusion
        Empty where no counts fit; one where the print is as good as the counts.
    """
    n_negative = n_class - n_poisoned
    correct = _candidates(acc, n_class, slack)
    return tuple(
        Confusion(tp, n_poisoned - tp, tn, n_negative - tn)
        for tp in _candidates(tpr, n_poisoned, slack)
        for tn in _candidates(tnr, n_negative, slack)
        if tp + tn in correct
    )


def implied_share(acc: float, tpr: float, tnr: float) -> float:
    """Solve ACC = p TPR + (1 - p) TNR for the poisoned share p of the class.

    Returns
    -------
    float
        Percent; NaN where TPR equals TNR, for then ACC says nothing about p.
    """
    return NAN if tpr == tnr else 100 * (acc - tnr) / (tpr - tnr)


def spread_range(
    tpr_std: float, tnr_std: float, n_poisoned: int, n_class: int
) -> tuple[float, float]:
    """Bound the standard deviation of ACC over runs by those of TPR and TNR.

    ACC is their weighted mean, so its deviation lies between the difference and the sum of the
    weighted deviations, whatever the correlation.

    Parameters
    ----------
    tpr_std, tnr_std : float
        Standard deviations in percentage points.
    n_poisoned, n_class : int
        As in `audit`, the same in all runs.

    Raises
    ------
    ValueError
        As in `audit`.
    """
    _check_sizes(n_poisoned, n_class)
    p = n_poisoned / n_class
    return abs(p * tpr_std - (1 - p) * tnr_std), p * tpr_std + (1 - p) * tnr_std


def _check_sizes(n_poisoned: int, n_class: int) -> None:
    if not 0 <= n_poisoned <= n_class or n_class == 0:
        raise ValueError(
            f"{n_poisoned} poisoned images among {n_class}; expected 0 <= n_poisoned <= n_class, "
            "n_class > 0: count the images that were clustered"
        )


def _candidates(rate: float, n: int, slack: float) -> range:
    """Whole numbers k for which 100 k / n is within ``slack`` units of the last digit of a rate."""
    if math.isnan(rate):
        return range(n + 1)
    width = slack * LAST_DIGIT
    # Rates that lie exactly on a rounding boundary may have gone either way.
    low = max(0, math.ceil((rate - width) * n / 100 - 1e-9))
    high = min(n, math.floor((rate + width) * n / 100 + 1e-9))
    return range(low, high + 1)


def _percent(k: int, n: int) -> float:
    return 100 * float(k) / n if n else NAN


def _binary(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} must be of shape (n,) and hold True and False, or 0 and 1")
    return values.astype(bool)


def _by_id(name: str, ids: ArrayLike, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    ids, values = np.asarray(ids), np.asarray(values)
    if ids.shape != values.shape:
        raise ValueError(f"{name}: {len(ids)} ids for {len(values)} values")
    unique, first, count = np.unique(ids, return_index=True, return_counts=True)
    if (count > 1).any():
        twice = unique[count > 1]
        raise ValueError(f"{name}: {len(twice)} ids occur more than once {twice[:5].tolist()}")
    return unique, values[first]
