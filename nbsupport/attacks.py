"""Poisoning attacks: triggers, the choice of images, projected gradient descent, the manifest.

An attack never touches files or the data set it is given. It yields a `Manifest`, the list of
poisoned images, and `apply` puts that list into a copy of the data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor, nn

from nbsupport.scenarios import GRAMMAR, IMAGE_SIDE, RELEASED_POSITIONS, Scenario

if TYPE_CHECKING:
    from nbsupport.data import Dataset, Split

__all__ = [
    "AMPLITUDE_SIGNS",
    "Manifest",
    "amplitude_pattern",
    "apply",
    "blend_pattern",
    "check",
    "pgd",
    "poison",
    "sinusoid",
    "stamp",
    "trigger_mask",
    "trigger_split",
    "window_masks",
]

AMPLITUDE_SIGNS = torch.tensor([[-1, -1, 1], [-1, 1, -1], [1, -1, 1]], dtype=torch.int16)
"""Signs of the reduced-amplitude sticker, the same on the three channels (Turner et al. 2019)."""

EDGE_DISTANCE = 10
"""Pixels between the amplitude sticker and the right and bottom edges (Section 6.1.3)."""

SINUSOID_FREQUENCY = 6
"""Periods across the image, as in Barni et al. 2019."""

POISONED_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Manifest:
    """Every image that the attacker changed, one row each, in the order of `ids`.

    Attributes
    ----------
    ids : int64 array, shape (n,)
        Ids in the clean data set.
    split : int64 array, shape (n,)
        0 for training, 1 for validation.
    source, label : int64 array, shape (n,)
        Class shown on the image, and label given to it.
    cover : bool array, shape (n,)
        Whether the image is a cover sample: it wears the trigger and keeps its right label.
        Everything else is poison.
    row, column : int64 array, shape (n,)
        Top left pixel of the trigger; -1 where it covers the whole image.
    amplitude : int64 array, shape (n,)
        Amplitude or opacity of the trigger; 0 for stickers.
    linf, l2 : float32 array, shape (n,)
        Distance that projected gradient descent moved the image, on the scale [0, 1], before the
        trigger was put on.
    images : uint8 array, shape (n, c, h, w)
        The changed images themselves, so that the poisoned set can be rebuilt bit for bit.
    """

    ids: np.ndarray
    split: np.ndarray
    source: np.ndarray
    label: np.ndarray
    cover: np.ndarray
    row: np.ndarray
    column: np.ndarray
    amplitude: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    images: np.ndarray

    def __len__(self):
        return len(self.ids)

    @property
    def poisoned_ids(self) -> np.ndarray:
        """Ids of the poisoned images (without cover samples): the truth for any detector."""
        return self.ids[~self.cover]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all columns by name, as `Manifest(**arrays)` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def counts(self, dataset: "Dataset", target_class: int) -> dict[str, dict[str, float]]:
        """Count the poison per split: n, and its share of the class and of the split in percent.

        Parameters
        ----------
        dataset : Dataset
            The clean data.
        target_class : int
            Class whose share is wanted.
        """
        poisoned = apply(self, dataset)
        table = {}
        for number, name in enumerate(POISONED_SPLITS):
            n = int(((self.split == number) & ~self.cover).sum())
            split = getattr(poisoned, name)
            n_class = int((split.labels == target_class).sum())
            table[name] = {
                "n_poisoned": n,
                "n_cover": int(((self.split == number) & self.cover).sum()),
                "n_class": n_class,
                "poison_rate_class": 100 * n / n_class if n_class else 0.0,
                "poison_rate_dataset": 100 * n / len(split),
            }
        return table


def poison(
    scenario: Scenario,
    dataset: "Dataset",
    surrogate: nn.Module | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Carry out an attack on training and validation data, at the same rate in both.

    Parameters
    ----------
    scenario : Scenario
        The attack.
    dataset : Dataset
        Clean data.
    surrogate : Module, optional
        The attacker's clean network, on the device where gradients shall be computed; needed by
        label-consistent and amplitude attacks.
    progress : callable, optional
        Called with images done and images in all during projected gradient descent.

    Returns
    -------
    Manifest
        Rows sorted by id; empty for a clean scenario.

    Raises
    ------
    ValueError
        If the rate asks for more images than the attacked classes have, for none at all, or if a
        surrogate is needed and missing.
    """
    if scenario.needs_surrogate and surrogate is None:
        raise ValueError(
            f"{scenario} needs the attacker's clean network: train {scenario.surrogate} first "
            "and pass it as 'surrogate'"
        )
    parts = [
        _poison_split(scenario, getattr(dataset, name), number, surrogate, progress)
        for number, name in enumerate(POISONED_SPLITS)
    ]
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Manifest)
    }
    order = np.argsort(columns["ids"], kind="stable")
    return Manifest(**{name: column[order] for name, column in columns.items()})


def check(scenario: Scenario, dataset: "Dataset") -> None:
    """Refuse an attack that these images are too few for, before anything is computed.

    Parameters
    ----------
    scenario : Scenario
        The attack.
    dataset : Dataset
        Clean data.

    Raises
    ------
    ValueError
        If the rate asks for more images than the attacked classes have, or for none at all.
    """
    for number, name in enumerate(POISONED_SPLITS):
        _victims(scenario, getattr(dataset, name), number, scenario.rng(name))


def apply(manifest: Manifest, dataset: "Dataset") -> "Dataset":
    """Return a copy of the data with the images and labels of the manifest in place.

    Ids stay what they were; a relabelled image keeps its place in the split.

    Raises
    ------
    ValueError
        If an id is unknown or shows another class: the manifest belongs to other data.
    """
    splits = {}
    for number, name in enumerate(POISONED_SPLITS):
        split = getattr(dataset, name)
        rows = np.flatnonzero(manifest.split == number)
        where = _positions(split.ids.numpy(), manifest.ids[rows])
        labels, images = split.labels.clone(), split.images.clone()
        if (labels.numpy()[where] != manifest.source[rows]).any():
            raise ValueError(
                f"the manifest names {name} images that show other classes here: it was made for "
                "other data than this; run 01_attacks again on it"
            )
        images[where] = torch.from_numpy(manifest.images[rows])
        labels[where] = torch.from_numpy(manifest.label[rows])
        splits[name] = replace(split, images=images, labels=labels)
    return replace(dataset, **splits)


def stamp(
    images: Tensor,
    scenario: Scenario,
    rng: np.random.Generator,
    *,
    full_amplitude: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Put the scenario's trigger on images, each at a position of its own.

    Parameters
    ----------
    images : uint8 Tensor, shape (n, c, h, w)
        Images; left as they are. Grey ones (c = 1) get the luminance of a coloured sticker.
    scenario : Scenario
        Says which trigger; its places and sizes are pixels.
    rng : Generator
        Draws the positions.
    full_amplitude : bool
        Use amplitude 255, as the evaluation of reduced-amplitude attacks does (Section 5.1).

    Returns
    -------
    images : uint8 Tensor, shape (n, c, h, w)
        Stamped copies.
    row, column : int64 array, shape (n,)
        Top left pixel of each trigger; -1 where it covers the whole image.

    Raises
    ------
    ValueError
        If the scenario is a clean one, or its trigger does not fit into the images.
    """
    n, channels, *shape = images.shape
    whole = np.full(n, -1)
    if scenario.attack in ("standard", "label_consistent"):
        row, column = _sticker_positions(scenario, n, rng, shape)
        mask = window_masks(row, column, scenario.side, shape)
        drawn = ImageColor.getcolor(f"#{scenario.colour}", "L" if channels == 1 else "RGB")
        colour = torch.tensor(drawn, dtype=torch.uint8).view(-1)
        return torch.where(mask[:, None], colour[:, None, None], images), row, column
    if scenario.attack == "amplitude":
        amplitude = 255 if full_amplitude else scenario.amplitude
        stamped = images.to(torch.int16) + amplitude * amplitude_pattern(scenario.corners, shape)
        row, column = (np.full(n, length - EDGE_DISTANCE - 3) for length in shape)
        return stamped.clamp(0, 255).to(torch.uint8), row, column
    if scenario.attack == "blended":
        opacity = scenario.amplitude / 100
        mixed = (1 - opacity) * images.float() + opacity * blend_pattern(images.shape[1:]).float()
        return mixed.round().to(torch.uint8), whole, whole
    if scenario.attack == "sinusoidal":
        signal = images.float() + sinusoid(scenario.amplitude, shape)
        return signal.round().clamp(0, 255).to(torch.uint8), whole, whole
    raise ValueError(f"{scenario} has no trigger; name a poisoned scenario\n{GRAMMAR}")


def trigger_split(scenario: Scenario, split: "Split") -> "Split":
    """Stamp every image that does not show the target class: the test set of ASR and MASR.

    Positions come from the scenario's own stream and go to images in the order of their ids, which
    is the order returned, so the same images are asked every time.
    """
    others = split.select(split.labels != scenario.target_class)
    others = others.select(others.ids.argsort())
    images, _, _ = stamp(others.images, scenario, scenario.rng("test"), full_amplitude=True)
    return replace(others, images=images)


def trigger_mask(
    scenario: Scenario,
    row: np.ndarray,
    column: np.ndarray,
    shape: tuple[int, int] = (IMAGE_SIDE, IMAGE_SIDE),
) -> Tensor:
    """Mark the pixels that the trigger covers: the ground truth for any heatmap.

    Parameters
    ----------
    scenario : Scenario
        Says which trigger.
    row, column : int array, shape (n,)
        Top left pixels, as in the manifest.
    shape : (int, int)
        (h, w) of the images.

    Returns
    -------
    bool Tensor, shape (n, h, w)
    """
    if scenario.attack in ("standard", "label_consistent"):
        return window_masks(row, column, scenario.side, shape)
    if scenario.attack == "amplitude":
        return (amplitude_pattern(scenario.corners, shape) != 0).expand(len(row), -1, -1)
    return torch.ones(len(row), *shape, dtype=torch.bool)


def window_masks(
    row, column, side: int, shape: tuple[int, int] = (IMAGE_SIDE, IMAGE_SIDE)
) -> Tensor:
    """Mark square windows on the pixel grid, bool, shape (n, h, w).

    Parameters
    ----------
    row, column : int array or Tensor, shape (n,)
        Top left pixels.
    side : int
        Pixels along a side.
    shape : (int, int)
        (h, w).
    """
    row, column = (torch.as_tensor(corner)[:, None] for corner in (row, column))
    y, x = (torch.arange(length) for length in shape)
    rows = (y >= row) & (y < row + side)
    columns = (x >= column) & (x < column + side)
    return rows[:, :, None] & columns[:, None, :]


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    step: float,
    norm: str = "linf",
    radius: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Move images uphill on the loss of a model: :math:`\arg\max_{\|x'-x\|\le\varepsilon} L`.

    Parameters
    ----------
    model : Module
        Network in evaluation mode, giving logits.
    images : float Tensor, shape (n, c, h, w)
        Images with values in [0, 1].
    labels : int Tensor, shape (n,)
        Their classes.
    steps : int
        Number of steps (the paper: 5).
    step : float
        Length of a step in the norm: per pixel for "linf" (the paper: 0.015), of the whole image
        for "l2".
    norm : {"linf", "l2"}
        Norm of the ball around each image, and of the steepest direction inside it.
    radius : float
        Radius of the ball.
    generator : torch.Generator, optional
        Start at a random point of the ball instead of its centre.

    Returns
    -------
    float Tensor, shape (n, c, h, w)
        Images in [0, 1] within ``radius`` of the originals.

    Notes
    -----
    Madry et al. 2018; Section 3.1, Eq. 2. The *perturbation* is projected. The released code
    projects the image, with a radius that is never reached, so that its effective constraint is
    the linf ball of steps * step.
    """
    if model.training:
        raise ValueError("the surrogate is in training mode; call model.eval() first")
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm is {norm!r}; choose 'linf' or 'l2'")
    delta = torch.zeros_like(images)
    if generator is not None:
        delta = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        delta = _project(delta * radius, norm, radius)
    for _ in range(steps):
        moved = (images + delta).clamp(0, 1).requires_grad_()
        loss = nn.functional.cross_entropy(model(moved), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        if norm == "linf":
            uphill = gradient.sign()
        else:
            lengths = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
            uphill = gradient / lengths[:, None, None, None]
        delta = _project(moved.detach() - images + step * uphill, norm, radius)
    return (images + delta).clamp(0, 1)


def amplitude_pattern(
    corners: int = 1, shape: tuple[int, int] = (IMAGE_SIDE, IMAGE_SIDE)
) -> Tensor:
    """Return the signs of the amplitude sticker on the whole image: int16, shape (h, w).

    Its lower right pixel is 10 pixels from the right and the bottom edge. With four corners the
    pattern is mirrored into the others, as in the released code.
    """
    needed = (3 + EDGE_DISTANCE) * (2 if corners == 4 else 1)
    _check_fit(needed, shape, "the amplitude sticker with its distance from the edges")
    pattern = torch.zeros(*shape, dtype=torch.int16)
    bottom, right = (length - EDGE_DISTANCE for length in shape)
    pattern[bottom - 3 : bottom, right - 3 : right] = AMPLITUDE_SIGNS
    if corners == 4:
        pattern = pattern + pattern.flip(0) + pattern.flip(1) + pattern.flip(0, 1)
    return pattern


def blend_pattern(shape: tuple[int, int, int] = (3, IMAGE_SIDE, IMAGE_SIDE)) -> Tensor:
    """Return the random image of the blended attack: uint8, shape (c, h, w), always the same.

    Chen et al. 2017 blend in a fixed image or noise; noise needs no file.
    """
    draws = np.random.default_rng(2017).integers(0, 256, tuple(shape))
    return torch.from_numpy(draws.astype(np.uint8))


def sinusoid(amplitude: float, shape: tuple[int, int] = (IMAGE_SIDE, IMAGE_SIDE)) -> Tensor:
    """Return the signal of Barni et al. 2019: horizontal waves, float, shape (h, w)."""
    height, width = shape
    # Two pixels a period would be sampled where the sine is zero.
    _check_fit(3 * SINUSOID_FREQUENCY, (width,), f"a wave of {SINUSOID_FREQUENCY} periods")
    columns = torch.arange(width, dtype=torch.float64)
    wave = amplitude * torch.sin(2 * torch.pi * SINUSOID_FREQUENCY * columns / width)
    return wave.float().expand(height, -1)


def _victims(
    scenario: Scenario, split: "Split", number: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images of a split that are changed: their rows, and which are cover samples."""
    labels = split.labels.numpy()
    class_size = int((labels == scenario.target_class).sum())
    attacked = (scenario.target_class,) if scenario.label_consistent else scenario.source_classes
    # In the order of ids, so that the order of rows changes no draw.
    by_id = np.argsort(split.ids.numpy())
    candidates = rng.permutation(by_id[np.isin(labels[by_id], attacked)])
    n = scenario.n_poisoned(class_size)
    n_cover = round(Fraction(scenario.cover) / 100 * class_size)
    if n + n_cover > len(candidates):
        raise ValueError(
            f"{scenario}: {n + n_cover} images of the classes {attacked} are wanted in "
            f"{POISONED_SPLITS[number]}, which has {len(candidates)}; lower the rate or name more "
            "source classes"
        )
    if n == 0 and number == 0 and scenario.attack != "clean":
        raise ValueError(
            f"{scenario}: {scenario.percent} % of {class_size} images is not one image; raise it"
        )
    return candidates[: n + n_cover], np.arange(n + n_cover) >= n


def _poison_split(
    scenario: Scenario,
    split: "Split",
    number: int,
    surrogate: nn.Module | None,
    progress: Callable[[int, int], None] | None,
) -> Manifest:
    """Poison one split; the manifest's rows are in the order of the draw."""
    rng, labels = scenario.rng(POISONED_SPLITS[number]), split.labels.numpy()
    chosen, cover = _victims(scenario, split, number, rng)
    images, linf, l2 = split.images[chosen], np.zeros(len(chosen)), np.zeros(len(chosen))
    if scenario.needs_surrogate and len(chosen):
        images, linf, l2 = _degrade(scenario, images, split.labels[chosen], surrogate, progress)
    row = column = np.full(len(chosen), -1)
    if len(chosen):
        images, row, column = stamp(images, scenario, rng)
    return Manifest(
        ids=split.ids.numpy()[chosen],
        split=np.full(len(chosen), number),
        source=labels[chosen],
        label=np.where(cover, labels[chosen], scenario.target_class),
        cover=cover,
        row=row,
        column=column,
        amplitude=np.full(len(chosen), scenario.amplitude),
        linf=linf.astype(np.float32),
        l2=l2.astype(np.float32),
        images=images.numpy(),
    )


def _degrade(
    scenario: Scenario,
    images: Tensor,
    labels: Tensor,
    surrogate: nn.Module,
    progress: Callable[[int, int], None] | None,
    batch_size: int = 128,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Run `pgd` in batches; return uint8 images and how far each was moved (linf, l2)."""
    device = next(surrogate.parameters()).device
    generator = torch.Generator(device).manual_seed(scenario.seed("pgd"))
    moved = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        moved.append(
            pgd(
                surrogate,
                images[part].to(device).float() / 255,
                labels[part].to(device),
                steps=scenario.pgd_steps,
                step=scenario.pgd_step,
                norm=scenario.pgd_norm,
                radius=scenario.pgd_radius or scenario.pgd_steps * scenario.pgd_step,
                generator=generator if scenario.pgd_random_start else None,
            ).cpu()
        )
        if progress:
            progress(min(start + batch_size, len(images)), len(images))
    degraded = (torch.cat(moved) * 255).round().to(torch.uint8)
    distance = (degraded.float() - images.float()).flatten(1) / 255
    return degraded, distance.abs().amax(1).numpy(), distance.norm(dim=1).numpy()


def _project(delta: Tensor, norm: str, radius: float) -> Tensor:
    """Put perturbations (n, ...) back into the ball of the norm around 0."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    lengths = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    return delta * (radius / lengths).clamp(max=1)[:, None, None, None]


def _sticker_positions(
    scenario: Scenario, n: int, rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the top left pixels of n stickers on images of shape (h, w)."""
    if scenario.positions == "released":
        rows, columns = RELEASED_POSITIONS[scenario.attack]
        _check_fit(max(*rows, *columns) + scenario.side, shape, "the released positions", "others")
        return rng.choice(rows, n), rng.choice(columns, n)
    corners = []
    for length, whole in zip(scenario.window, shape, strict=True):
        _check_fit(length, (whole,), "the window", "a smaller one (win<rows>x<columns>)")
        first = (whole - length) // 2
        corners.append(rng.integers(first, first + length - scenario.side + 1, n))
    return corners[0], corners[1]


def _check_fit(
    length: int, shape: Sequence[int], what: str, instead: str = "another attack"
) -> None:
    """Refuse images that are too small for a trigger."""
    if min(shape) < length:
        raise ValueError(
            f"{what} takes {length} pixels of a side that has {min(shape)}; choose {instead}, or "
            "larger images"
        )


def _positions(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Find ids in a split; an unknown one is an error."""
    order = np.argsort(ids)
    where = order[np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)]
    unknown = wanted[ids[where] != wanted]
    if len(unknown):
        raise ValueError(
            f"the manifest names {len(unknown)} images that are not in this data, "
            f"such as id {unknown[0]}; run 01_attacks again on this data"
        )
    return where
