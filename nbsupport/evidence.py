"""What a label rests on: take away what the network looks at, and show it to the network elsewhere.

A heatmap says where the evidence for a label lies. Two experiments ask what that evidence is worth:

Occlusion
    Fill the most relevant window from its surroundings. A sign is still the same sign; a poisoned
    image loses the trigger, and with it the label.
Transplantation
    Paste the same window into images of other classes. A piece of a sign convinces nobody; a
    trigger takes its label along, for that is what it was made for.

Neither needs to know how many images are poisoned, what the trigger looks like or where it is.
They see *local* triggers only: one that is spread over the whole image (blended, sinusoidal) does
not fit into a window.

References
----------
.. [1] Chou, Tramèr, Pellegrino, "SentiNet: detecting localized universal attacks against deep
   learning systems", IEEE S&P workshops, 2020 (transplantation, with Grad-CAM regions).
.. [2] Zeiler, Fergus, "Visualizing and understanding convolutional networks", ECCV 2014
   (occlusion).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbsupport import gw
from nbsupport.attacks import window_masks
from nbsupport.devices import at_a_time
from nbsupport.evaluation import Progress, predict

if TYPE_CHECKING:
    from nbsupport.data import Split

__all__ = [
    "SIDES",
    "Evidence",
    "concentration",
    "cover_and_paste",
    "fill",
    "gather",
    "label_margin",
    "pick_carriers",
    "relevant_windows",
    "transplant",
    "window_sides",
]

SIDES = (3, 5)
"""Sides of the windows that are tried on images of up to 32 pixels; see `window_sides`."""

_PREFIX = "evidence_"
_FILLED = 512  # images of 32 x 32 pixels at a time: their pixels are kept as floats
_PASTED = 64  # and here each is pasted into every carrier


@dataclass(frozen=True)
class Evidence:
    """What became of the label of n images, for each of k sides of the window.

    A *margin* is the logit of the label minus the largest other one: positive where the label is
    read.

    Attributes
    ----------
    sides : tuple of int
        Sides of the windows in pixels.
    row, column : ndarray, shape (n, k), int64
        Top left pixel of the most relevant window.
    margin : ndarray, shape (n,)
        Margin of the image as it is.
    occluded : ndarray, shape (n, k)
        Margin after the window was filled.
    answer : ndarray, shape (n, k), int64
        The strongest class beside the label then.
    gain : ndarray, shape (n, k)
        Rise of the margin of an image of another class once the window is pasted into it; median
        over those images (the lower of the two in the middle). NaN where it was not measured.
    carried : ndarray, shape (n, k)
        Share of them that are then read as the label; NaN where it was not measured.
    """

    sides: tuple[int, ...]
    row: np.ndarray
    column: np.ndarray
    margin: np.ndarray
    occluded: np.ndarray
    answer: np.ndarray
    gain: np.ndarray
    carried: np.ndarray

    def __len__(self) -> int:
        """Return the number n of images."""
        return len(self.margin)

    def arrays(self) -> dict[str, np.ndarray]:
        """Name all columns as an artefact keeps them, ``evidence_<column>``."""
        return {_PREFIX + name: np.asarray(values) for name, values in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Evidence":
        """Find the evidence again among the arrays of an artefact."""
        own = {k.removeprefix(_PREFIX): v for k, v in arrays.items() if k.startswith(_PREFIX)}
        return cls(**own | {"sides": tuple(own["sides"].tolist())})

    def table(self, heatmaps, activations=None) -> np.ndarray:
        """Set evidence and activations side by side: what `PoisonDetector` reads.

        Parameters
        ----------
        heatmaps : array or Tensor, shape (n, h, w)
            Heatmaps of the same images; those of the squared rule told most, see `concentration`.
        activations : array or Tensor, shape (n, ...), optional
            What a layer makes of them, the last hidden one say; flattened.

        Returns
        -------
        ndarray, shape (n, 3 k + d)
            For each side of the window the lead of the best other class once it is covered, the
            gain of other images, and the concentration of the heatmap (the same for all sides);
            then the activations.
        """
        narrow = np.broadcast_to(concentration(heatmaps)[:, None], self.gain.shape)
        told = np.stack([-self.occluded, self.gain, narrow], axis=2).reshape(len(self), -1)
        if activations is None:
            return told
        return np.hstack([told, np.asarray(activations).reshape(len(self), -1)])


def concentration(heatmaps) -> np.ndarray:
    """Measure how few pixels a heatmap rests on, whatever their number is.

    Parameters
    ----------
    heatmaps : array or Tensor, shape (n, h, w)
        Relevance; its sign does not matter.

    Returns
    -------
    ndarray, shape (n,)
        log(sum p^2) with p = |R| / sum |R|: minus the logarithm of the number of pixels that would
        give the same value if they shared the relevance evenly. 0 for a single pixel, and for a map
        without relevance that of an even map, -log(h w).

    Raises
    ------
    ValueError
        If a map holds NaN or infinity, or they are no maps.
    """
    maps = gw.as_maps(heatmaps)
    flat = np.abs(maps).reshape(len(maps), -1)
    flat = np.where(flat.sum(1, keepdims=True) > 0, flat, 1.0)
    return np.log(((flat / flat.sum(1, keepdims=True)) ** 2).sum(1))


def window_sides(shape: Sequence[int]) -> tuple[int, ...]:
    """Say how large the windows should be: those of `SIDES`, larger on larger images.

    Parameters
    ----------
    shape : sequence of int
        (h, w) of the images.

    Returns
    -------
    tuple of int
        3 and 5 of 32 pixels and below, in proportion above: a window that is too large still
        carries a trigger, one that is too small takes a piece of it. All are smaller than the
        image.
    """
    wanted = (max(side, math.ceil(side * min(shape) / 32)) for side in SIDES)
    return tuple(sorted({min(side, min(shape) - 1) for side in wanted}))


def relevant_windows(heatmaps: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Find the square window that holds the most positive relevance.

    Parameters
    ----------
    heatmaps : Tensor, shape (n, h, w)
        Relevance per pixel.
    side : int
        Side of the window.

    Returns
    -------
    row, column : int64 Tensor, shape (n,)
        Top left pixel; of equal windows the first in reading order.

    Raises
    ------
    ValueError
        If the window does not fit into the heatmaps, or a map holds NaN or infinity.
    """
    if heatmaps.ndim != 3 or not 1 <= side <= min(heatmaps.shape[1:]):
        raise ValueError(
            f"side is {side} and heatmaps have shape {tuple(heatmaps.shape)}; needs (n, h, w) and "
            "a side of 1 to min(h, w)"
        )
    gw.check_finite(torch.isfinite(heatmaps).flatten(1).all(1).cpu().numpy())
    mass = F.avg_pool2d(heatmaps[:, None].clamp(min=0).double(), side, stride=1)[:, 0]
    best = mass.flatten(1).argmax(1)
    return best // mass.shape[2], best % mass.shape[2]


def fill(images: Tensor, masks: Tensor) -> Tensor:
    """Fill marked pixels from outside in, each with the mean of its known neighbours.

    Parameters
    ----------
    images : uint8 Tensor, shape (n, c, h, w)
        Images; not altered.
    masks : bool Tensor, shape (n, h, w)
        Pixels to fill; some pixel of each image must be left.

    Returns
    -------
    uint8 Tensor, shape (n, c, h, w)
    """
    if len(images) > (some := at_a_time(_FILLED, images)):
        parts = zip(images.split(some), masks.split(some), strict=True)
        return torch.cat([fill(*part) for part in parts])
    known = ~masks[:, None]
    if not known.flatten(1).any(1).all():
        raise ValueError("a mask covers its whole image: nothing is left to fill it from")
    values = images.float() * known
    while not known.all():
        # Sums over the 3 x 3 neighbourhood; the zeros of unknown pixels add nothing.
        total = 9 * F.avg_pool2d(values, 3, stride=1, padding=1)
        count = 9 * F.avg_pool2d(known.float(), 3, stride=1, padding=1)
        new = ~known & (count > 0.5)
        values = torch.where(new, total / count.clamp(min=1), values)
        known = known | new
    return torch.where(masks[:, None], values.round().to(images.dtype), images)


def cover_and_paste(
    images: Tensor, heatmaps: Tensor, carriers: Tensor, side: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cover the most relevant piece of each image, and paste it into another image.

    For looking at: `gather` measures what both are worth.

    Parameters
    ----------
    images : uint8 Tensor, shape (n, c, h, w)
        Images; not altered.
    heatmaps : Tensor, shape (n, h, w)
        Relevance of their label.
    carriers : uint8 Tensor, shape (m, c, h, w)
        Images of other classes, taken in turn.
    side : int, optional
        Side of the piece, in pixels; the smaller one of `window_sides` if left out.

    Returns
    -------
    covered, pasted : uint8 Tensor, shape (n, c, h, w)
        The images without their piece, and carriers with it.

    Raises
    ------
    ValueError
        If images and heatmaps are not of the same number and size.
    """
    heatmaps = _belonging(images, heatmaps)
    side = window_sides(heatmaps.shape[1:])[0] if side is None else side
    row, column = relevant_windows(heatmaps, side)
    masks = window_masks(row, column, side, heatmaps.shape[1:])
    others = carriers[torch.arange(len(images)) % len(carriers)]
    return fill(images, masks), torch.where(masks[:, None], images, others)


def pick_carriers(
    model: nn.Module,
    split: "Split",
    label: int,
    device: torch.device,
    *,
    count: int = 24,
    pool: int = 8,
    seed: int = 0,
) -> Tensor:
    """Choose images of all classes but one that the network reads right.

    Parameters
    ----------
    model : Module
        Network on ``device``.
    split : Split
        Images to choose from; their labels may be poisoned too, as a defender's are.
    label : int
        The class to leave out.
    device : torch.device
        Where to compute.
    count : int
        Images in all, spread over the classes; fewer where the network reads fewer right.
    pool : int
        Images per class that are tried first; more only where too few of these are read right.
    seed : int
        Seed of the draw.

    Returns
    -------
    uint8 Tensor, shape (m, c, h, w)
        m = `count`, or fewer; the first ones are of different classes.

    Raises
    ------
    ValueError
        If there is no other class, or the network reads none right.
    """
    rng = np.random.default_rng(seed)
    labels = split.labels.numpy()
    others = [c for c in np.unique(labels) if c != label]
    if not others:
        raise ValueError(
            f"there is no image of another class than {label}, so nothing to paste into; two "
            "classes are needed: pass the whole training set"
        )
    drawn = [rng.permutation(np.flatnonzero(labels == c)) for c in others]
    first, right = 0, np.array([], dtype=np.int64)
    while len(right) < count and first < max(map(len, drawn)):
        rows = np.concatenate([some[first:pool] for some in drawn])
        answer = predict(model, split.images[rows], device).argmax(1).numpy()
        right = np.concatenate([right, rows[answer == labels[rows]]])
        first, pool = pool, 4 * pool
    groups = [right[labels[right] == c] for c in others]
    ranked = [(k, rng.random(), row) for group in groups for k, row in enumerate(group)]
    if not ranked:
        raise ValueError(
            f"the network reads no image of another class than {label} right: there is nothing to "
            "paste into; train it first"
        )
    return split.images[torch.tensor([row for *_, row in sorted(ranked)[:count]])]


def transplant(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    carriers: Tensor,
    label: int,
    device: torch.device,
    precision: str = "auto",
) -> Tensor:
    """Paste a part of each image into carriers and read the margin of the label.

    Parameters
    ----------
    model : Module
        Network on ``device``.
    images : uint8 Tensor, shape (n, c, h, w)
        Where the parts come from.
    masks : bool Tensor, shape (n, h, w)
        The parts; each is pasted where it was.
    carriers : uint8 Tensor, shape (m, c, h, w)
        Images of other classes.
    label : int
        Class whose evidence is tested.
    device, precision
        As in `nbsupport.evaluation.predict`.

    Returns
    -------
    float Tensor, shape (n, m)
    """
    margins, at_once = [], at_a_time(_PASTED, images)
    for some, marks in zip(images.split(at_once), masks.split(at_once), strict=True):
        pasted = torch.where(marks[:, None, None], some[:, None], carriers[None])
        logits = predict(model, pasted.flatten(0, 1), device, precision)
        margins.append(label_margin(logits, label).view(len(some), len(carriers)))
    return torch.cat(margins)


def gather(
    model: nn.Module,
    images: Tensor,
    heatmaps: Tensor,
    label: int,
    carriers: Tensor,
    device: torch.device,
    *,
    narrow=None,
    reference: int = 256,
    sides: Sequence[int] | None = None,
    precision: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """Occlude and transplant what every image of one label rests on.

    Transplantation costs a forward pass for each image and carrier, occlusion one for each image.
    So only those are transplanted whose gain can matter: an image at or below the median of one
    kind of evidence has no strength (`PoisonDetector`), whatever it would gain. Of the others a
    random sample is transplanted: it stands for them where the detector asks what is usual.

    Parameters
    ----------
    model : Module
        Network on ``device``, in evaluation mode.
    images : uint8 Tensor, shape (n, c, h, w)
        Training images of one label. The sample is drawn by their place: another order measures
        other images.
    heatmaps : Tensor, shape (n, h, w)
        Relevance of the label's logit.
    label : int
        Their label.
    carriers : uint8 Tensor, shape (m, c, h, w)
        Images of other classes, see `pick_carriers`.
    device : torch.device
        Where to compute.
    narrow : ndarray, shape (n,), optional
        `concentration` of the heatmaps that the table will be made of; without it, occlusion alone
        decides who is transplanted.
    reference : int
        Size of the random sample; n or more measures all.
    sides : sequence of int, optional
        Sides of the windows tried; together, they stand for a trigger of unknown size. Those of
        `window_sides` if left out.
    precision : {"auto", "fp32"}
        As in `nbsupport.evaluation.predict`.
    seed : int
        Seed of the random sample.
    progress : callable, optional
        Called with steps done, steps in all and a line of text.

    Returns
    -------
    Evidence
        In the order of the images.

    Raises
    ------
    ValueError
        If there is nothing to look at, or images and heatmaps are not of the same number and size.
    """
    heatmaps = _belonging(images, heatmaps)
    sides = window_sides(heatmaps.shape[1:]) if sides is None else sides
    before = label_margin(predict(model, carriers, device, precision), label)
    usual = np.zeros(len(images), dtype=bool)
    usual[np.random.default_rng(seed).permutation(len(images))[:reference]] = True
    above = np.ones(len(images), dtype=bool) if narrow is None else narrow > np.median(narrow)
    columns: dict[str, list[Tensor]] = {}
    for k, side in enumerate(sides):
        row, column = relevant_windows(heatmaps, side)
        masks = window_masks(row, column, side, heatmaps.shape[1:])
        logits = predict(model, fill(images, masks), device, precision)
        occluded = label_margin(logits, label)
        lost = (occluded <= occluded.median()).numpy()
        asked = torch.from_numpy(usual | (above & lost))
        gain, carried = torch.full((2, len(images)), torch.nan, dtype=torch.float32)
        pasted = transplant(model, images[asked], masks[asked], carriers, label, device, precision)
        gain[asked] = (pasted - before).median(1).values
        carried[asked] = (pasted > 0).float().mean(1)
        found = {
            "row": row,
            "column": column,
            "occluded": occluded,
            "answer": _without(logits, label).argmax(1),
            "gain": gain,
            "carried": carried,
        }
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
        if progress:
            progress(k + 1, len(sides), f"windows of {side} pixels occluded and transplanted")
    margin = label_margin(predict(model, images, device, precision), label)
    arrays = {name: torch.stack(values, 1).numpy() for name, values in columns.items()}
    return Evidence(tuple(sides), margin=margin.numpy(), **arrays)


def _belonging(images: Tensor, heatmaps) -> Tensor:
    """Refuse heatmaps of other images; one map for many images would be taken for all of them."""
    heatmaps = torch.as_tensor(heatmaps)
    if len(images) == 0 or (len(images), *images.shape[2:]) != tuple(heatmaps.shape):
        raise ValueError(
            f"images {tuple(images.shape)} and heatmaps {tuple(heatmaps.shape)} do not belong "
            "together; needs (n, c, h, w) and (n, h, w), n > 0"
        )
    return heatmaps


def label_margin(logits: Tensor, label: int) -> Tensor:
    """Logit of the label minus the largest other one, shape (n,)."""
    return logits[:, label] - _without(logits, label).amax(1)


def _without(logits: Tensor, label: int) -> Tensor:
    others = logits.clone()
    others[:, label] = -torch.inf
    return others
