"""A trigger without a place has a mean: find a spread pattern in a group, and try it elsewhere.

A blended picture or a wave lies over the whole image, and no window holds it (`evidence` misses
it). But it lies on every poisoned image in the same way. So the mean of a group of images minus
the mean of the others shows it, if the group is mostly poison; and added to images of other
classes it takes its label along, which the difference of two groups of clean signs does not.
What is smooth, the light of the photographs above all, is left out.

References
----------
.. [1] Chen, Liu, Li, Lu, Song, "Targeted backdoor attacks on deep learning systems using data
   poisoning", 2017 (the blended trigger).
.. [2] Barni, Kallas, Tondi, "A new backdoor attack in CNNs by training set corruption without
   label poisoning", ICIP 2019 (the sinusoidal one).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from nbsupport.evaluation import predict

__all__ = [
    "Found",
    "best_component",
    "carried",
    "components",
    "details",
    "group_pattern",
    "likeness",
    "look_again",
    "refine",
]


@dataclass(frozen=True)
class Found:
    """What became of a first guess.

    Attributes
    ----------
    group : bool ndarray, shape (n,)
        The images that hold the pattern.
    pattern : float32 ndarray, shape (c, h, w)
        Grey levels.
    carried : float
        Share of the images of other classes that the pattern turns into the label.
    """

    group: np.ndarray
    pattern: np.ndarray
    carried: float


BLUR = 2.0
"""What is smooth is what a Gaussian of this standard deviation (pixels) leaves."""


def details(images) -> np.ndarray:
    """Leave out what is smooth: images minus their blurred selves.

    Parameters
    ----------
    images : array or Tensor, shape (..., h, w)
        Images, on any scale.

    Returns
    -------
    float32 ndarray, shape (..., h, w)
    """
    images = np.asarray(images, dtype=np.float32)
    sigma = (0,) * (images.ndim - 2) + (BLUR, BLUR)
    return images - gaussian_filter(images, sigma, mode="nearest")


def components(images, n_components: int = 20, random_state: int = 0) -> dict[str, np.ndarray]:
    """Cut a class in two in several ways, each along an independent component of its details.

    Images either hold a spread trigger or do not, whatever else they show: a component of its own.
    So are frames of one physical sign, and other honest kinds; `look_again` tells them apart.

    Parameters
    ----------
    images : array or Tensor, shape (n, c, h, w)
        Images of one class, from 0 to 255.
    n_components : int
        Number of components; fewer where the images do not span so many.
    random_state : int
        Seed.

    Returns
    -------
    dict of str to bool array, shape (n,)
        The smaller part of the class for each component; no component of images that are alike.
    """
    if len(images) < 2:
        return {}
    X = details(images).reshape(len(images), -1).astype(np.float64)
    reduced = PCA(min(n_components, *X.shape), svd_solver="randomized", random_state=random_state)
    with np.errstate(invalid="ignore"):  # shares of a total variance of 0
        scores = reduced.fit_transform(X)
    # What is left by rounding is no component; whitening would blow it up to one.
    reach = np.ptp(scores, axis=0)
    scores = scores[:, reach > max(1e-6 * reach.max(), 1e-3)]
    if not scores.shape[1]:
        return {}
    with warnings.catch_warnings():
        # A component that has not come to rest is a guess as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica = FastICA(whiten="unit-variance", max_iter=1000, random_state=random_state)
        sources = ica.fit_transform(scores)
    groups = {}
    for k, source in enumerate(sources.T):
        labels = KMeans(2, n_init=3, random_state=random_state).fit_predict(source[:, None])
        groups[f"component {k + 1}"] = labels == np.bincount(labels, minlength=2).argmin()
    return groups


def group_pattern(images, group) -> np.ndarray:
    """Estimate the trigger of a group: its mean minus that of the others, without what is smooth.

    Parameters
    ----------
    images : array or Tensor, shape (n, c, h, w)
        Images of one class, from 0 to 255.
    group : bool array, shape (n,)
        Those that may be poisoned, by any detector.

    Returns
    -------
    float32 ndarray, shape (c, h, w)
        Grey levels.

    Raises
    ------
    ValueError
        If all images are in the group, or none is.
    """
    images, group = np.asarray(images), np.asarray(group, dtype=bool)
    if group.shape != (len(images),) or not 0 < group.sum() < len(group):
        raise ValueError(
            f"the group (shape {group.shape}) names {group.sum()} of {len(images)} images; pass a "
            "bool for each, true for some and not for all: a verdict that accuses somebody"
        )
    return details(images[group].mean(0) - images[~group].mean(0))


def carried(
    model: nn.Module,
    pattern,
    carriers: Tensor,
    label: int,
    device: torch.device,
    strength: float = 1.0,
) -> np.ndarray:
    """Add a pattern to images of other classes: are they read as the label then?

    Parameters
    ----------
    model : Module
        Network on ``device``.
    pattern : array, shape (c, h, w)
        Grey levels, see `group_pattern`.
    carriers : uint8 Tensor, shape (m, c, h, w)
        Images of other classes, see `nbsupport.evidence.pick_carriers`.
    label : int
        Class that the pattern may stand for.
    device : torch.device
        Where to compute.
    strength : float
        The pattern is multiplied with it.

    Returns
    -------
    bool ndarray, shape (m,)
    """
    shifted = carriers.float() + strength * torch.as_tensor(pattern)
    shifted = shifted.round().clamp(0, 255).to(torch.uint8)
    return (predict(model, shifted, device).argmax(1) == label).numpy()


def likeness(images, pattern) -> np.ndarray:
    """Measure how much of a pattern each image holds.

    Parameters
    ----------
    images : array or Tensor, shape (n, c, h, w)
        Images, from 0 to 255.
    pattern : array, shape (c, h, w)
        Grey levels, see `group_pattern`.

    Returns
    -------
    float32 ndarray, shape (n,)
        Coefficient of the pattern in each image's details: about 1 with it, 0 without it; 0 for
        all where there is no pattern.
    """
    return _likeness(details(images), pattern)


def _likeness(sharp: np.ndarray, pattern) -> np.ndarray:
    pattern = np.asarray(pattern, dtype=np.float32)
    inner = np.tensordot(sharp, pattern, 3)
    return inner / max(float((pattern**2).sum()), np.finfo(np.float32).tiny)


def refine(images, group, rounds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Let a pattern gather its own group: those that hold it, instead of those first named.

    Parameters
    ----------
    images : array or Tensor, shape (n, c, h, w)
        Images of one class, from 0 to 255.
    group : bool array, shape (n,)
        A first guess, by any detector; some of them, not all.
    rounds : int
        Times that the group is cut anew: 2-means of `likeness`, from its values 0 and 1.

    Returns
    -------
    group : bool ndarray, shape (n,)
        The group of the last round.
    pattern : float32 ndarray, shape (c, h, w)
        Its pattern, see `group_pattern`.

    Raises
    ------
    ValueError
        If the first group is empty, or all images are in it.
    """
    return _refine(images, details(images), group, rounds)


def _refine(images, sharp: np.ndarray, group, rounds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    pattern = group_pattern(images, group)
    for _ in range(rounds):
        held = _likeness(sharp, pattern)[:, None]
        if np.ptp(held) == 0:  # nothing but smooth differences
            break
        cut = KMeans(2, init=np.array([[0.0], [1.0]]), n_init=1).fit(held)
        group = cut.labels_ == cut.cluster_centers_[:, 0].argmax()
        pattern = group_pattern(images, group)
    return np.asarray(group, dtype=bool), pattern


def look_again(
    model: nn.Module,
    images,
    guesses: Mapping[str, np.ndarray],
    carriers: Tensor,
    label: int,
    device: torch.device,
) -> dict[str, Found]:
    """Refine what several detectors say of a class, and ask what their patterns are worth.

    Parameters
    ----------
    model, carriers, label, device
        As in `carried`.
    images : array or Tensor, shape (n, c, h, w)
        Images of one class, from 0 to 255.
    guesses : mapping of str to bool array, shape (n,)
        Verdicts by the name of the detector; who accuses nobody, or everybody, is passed over.

    Returns
    -------
    dict of str to Found
    """
    found, sharp = {}, details(images)
    for name, guess in guesses.items():
        if np.any(guess) and not np.all(guess):
            group, pattern = _refine(images, sharp, guess)
            share = carried(model, pattern, carriers, label, device).mean()
            found[name] = Found(group, pattern, float(share))
    return found


def best_component(
    model: nn.Module, images, carriers: Tensor, label: int, device: torch.device, **options
) -> np.ndarray:
    """Choose, of the cuts of `components`, the one whose pattern carries the label best.

    Of several that do so equally well, it is the one whose images hold clearly more of its pattern
    than the others, measured in their standard deviations.

    Parameters
    ----------
    model, images, carriers, label, device
        As in `look_again`.
    **options
        Of `components`.

    Returns
    -------
    bool array, shape (n,)
        A first guess for `look_again`; nobody where the images have no components.
    """
    cuts = components(images, **options)
    found = look_again(model, images, cuts, carriers, label, device)
    if not found:
        return np.zeros(len(images), dtype=bool)
    most = max(one.carried for one in found.values())
    best = [name for name, one in found.items() if one.carried == most]
    if len(best) > 1:
        sharp = details(images)
        best.sort(key=lambda name: _gap(sharp, found[name]), reverse=True)
    return cuts[best[0]]


def _gap(sharp: np.ndarray, found: Found) -> float:
    held = _likeness(sharp, found.pattern)
    inside, outside = held[found.group], held[~found.group]
    spread = np.sqrt((inside.var() + outside.var()) / 2)
    return float((inside.mean() - outside.mean()) / max(spread, np.finfo(np.float32).tiny))
