"""What a trained network answers, and how well the attack took."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nbsupport import data, metrics
from nbsupport.artifacts import ArtifactError, Run
from nbsupport.attacks import Manifest, apply, trigger_split
from nbsupport.devices import at_a_time, autocast, first_weights
from nbsupport.models import NOT_FINITE, build, check_logits
from nbsupport.scenarios import N_CLASSES, Scenario

if TYPE_CHECKING:
    from nbsupport.data import Dataset
__all__ = [
    "DEFAULT_TRIGGER",
    "Evaluation",
    "SurrogateError",
    "check_data",
    "evaluate",
    "load_model",
    "load_poisoned",
    "load_surrogate",
    "predict",
    "share_read",
]

SURROGATE_ACCURACY = 90.0
"""Lowest clean test accuracy (percent) of a network that is fit to be the attacker's surrogate."""

ATTACK_TOOK = {"asr": 95.0, "masr": 60.0}
"""From here on (percent) an attack counts as having taken: ASR of relabelling attacks, MASR of
label-consistent ones. Detection rates of attacks below are no rates of detection."""

DEFAULT_TRIGGER = Scenario("standard")
"""The trigger that a clean network is asked about: its rates are the floor of any attack's."""

Progress = Callable[[int, int, str], None]


class SurrogateError(RuntimeError):
    """The attacker's network has not learned enough to be one; the message advises."""


@dataclass(frozen=True)
class Evaluation:
    """How the trained network answers to clean and to triggered test images (rates in percent).

    Attributes
    ----------
    clean_accuracy : float
        On clean, unaugmented test images.
    accuracy_per_class : list of float
        The same for each class.
    confusion : list of list of int
        Test images by true (row) and predicted class (column).
    asr : float
        Attack success rate: triggered images of the source classes that are called the target.
    asr_interval : tuple of float
        Its 95 % Wilson interval.
    n_asr : int
        Number of those images.
    asr_per_class : list of float
        The same for every class; NaN for the target class.
    masr : float
        Mean of the rates of all classes but the target, each with the same weight (the paper's).
    masr_micro : float
        Share of all their images instead.
    attack_took : bool or None
        Whether the rate reaches `ATTACK_TOOK`; None without an attack.
    """

    clean_accuracy: float
    accuracy_per_class: list[float]
    confusion: list[list[int]]
    asr: float
    asr_interval: tuple[float, float]
    n_asr: int
    asr_per_class: list[float]
    masr: float
    masr_micro: float
    attack_took: bool | None

    def record(self) -> dict:
        """Return all fields as a plain dictionary."""
        return asdict(self)


def predict(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Tensor:
    """Compute logits of images, in evaluation mode, and leave the network in the mode it had.

    Parameters
    ----------
    model : Module
        Network on ``device``.
    images : uint8 Tensor, shape (n, c, h, w)
        Images.
    device : torch.device
        Where to compute.
    precision : {"fp32", "auto"}
        "auto" uses bfloat16 where the device has units for it.
    batch_size : int
        Images of 32 x 32 pixels at a time; fewer of larger ones.
    progress : callable, optional
        Called with images done, images in all and a line of text.

    Returns
    -------
    float Tensor, shape (n, n_classes)
        On the CPU.

    Raises
    ------
    TypeError
        If the network answers with anything but a tensor.
    ValueError
        If there is no image, or images are not uint8.
    """
    if not len(images):
        raise ValueError("there is no image to predict")
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; give uint8 from 0 to 255")
    dtype = first_weights(model).dtype
    logits, batch_size = [], at_a_time(batch_size, images)
    with _evaluating(model), torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(images), batch_size):
            # Weights, not images, say in which layout a network computes: one of somebody else's
            # may read its maps with view, which fails on channels last.
            batch = images[start : start + batch_size].to(device).to(dtype).contiguous() / 255
            answer = model(batch)
            if not isinstance(answer, Tensor):
                raise TypeError(
                    f"the network returns a {type(answer).__name__}; wrap it in a module that "
                    "hands on the logits alone"
                )
            logits.append(answer.float().cpu())
            if progress:
                progress(min(start + batch_size, len(images)), len(images), "testing")
    return torch.cat(logits)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while, each of its modules."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def share_read(
    model: nn.Module, split: data.Split, device: torch.device, *, most: int = 1000, seed: int = 0
) -> float:
    """Share of the images, in [0, 1], that a network reads as they are labelled.

    Parameters
    ----------
    model, device
        As in `predict`.
    split : Split
        Labelled images.
    most : int
        How many are tried; drawn by lot where there are more.
    seed : int
        Seed of the draw.

    Raises
    ------
    ValueError
        If the outputs are no rows of logits, fewer than the labels need, or not finite.
    """
    order = np.random.default_rng(seed).permutation(len(split))[:most]
    some = split.select(torch.from_numpy(np.sort(order)))
    logits = predict(model, some.images, device)
    check_logits(logits)
    if not logits.isfinite().all():
        raise ValueError(f"{type(model).__name__} {NOT_FINITE}")
    if (highest := int(split.labels.max())) >= logits.shape[1]:
        raise ValueError(
            f"the network returns {logits.shape[1]} logits an image, but labels go up to "
            f"{highest}; they count from 0"
        )
    return (logits.argmax(1) == some.labels).float().mean().item()


def evaluate(
    model: nn.Module,
    dataset: "Dataset",
    scenario: Scenario,
    device: torch.device,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure clean accuracy, ASR and MASR on unaugmented test images (Section 5.1).

    Parameters
    ----------
    model : Module
        Trained network.
    dataset : Dataset
        Clean data; only its test split is used.
    scenario : Scenario
        Says trigger, source and target; a clean one gets the standard attack's trigger, so that
        its rates show what a network without a backdoor does with it.
    device, precision, progress
        As in `predict`.
    """
    test, target = dataset.test, scenario.target_class
    trigger = scenario if scenario.attack != "clean" else DEFAULT_TRIGGER
    triggered = trigger_split(trigger, test)
    both = torch.cat([test.images, triggered.images])
    answers = predict(model, both, device, precision, progress=progress).argmax(1).numpy()
    clean, fooled = answers[: len(test)], answers[len(test) :]
    truth, shown = test.labels.numpy(), triggered.labels.numpy()
    confusion = np.zeros((N_CLASSES, N_CLASSES), dtype=int)
    np.add.at(confusion, (truth, clean), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        per_class_accuracy = 100 * confusion.diagonal() / confusion.sum(1)
    of_source = fooled[np.isin(shown, trigger.source_classes)]
    asr = metrics.wilson(int((of_source == target).sum()), len(of_source))
    masr = metrics.masr(shown, fooled, target)
    per_class_asr = metrics.per_class_asr(shown, fooled, target)
    took = None
    if scenario.attack != "clean":
        name, rate = ("masr", masr) if scenario.label_consistent else ("asr", asr.estimate)
        took = bool(rate >= ATTACK_TOOK[name])
    return Evaluation(
        clean_accuracy=100 * confusion.trace() / confusion.sum(),
        accuracy_per_class=per_class_accuracy.tolist(),
        confusion=confusion.tolist(),
        asr=asr.estimate,
        asr_interval=(asr.low, asr.high),
        n_asr=len(of_source),
        asr_per_class=[per_class_asr.get(c, math.nan) for c in range(N_CLASSES)],
        masr=masr,
        masr_micro=metrics.masr(shown, fooled, target, average="micro"),
        attack_took=took,
    )


def load_poisoned(run: Run, folder: str) -> "tuple[Dataset, Manifest, Dataset]":
    """Load what the attack left: clean data, the list of what was done, poisoned data.

    Parameters
    ----------
    run : Run
        Run whose attack is finished.
    folder : str
        Folder of GTSRB, or "auto"; not used for synthetic signs.

    Returns
    -------
    clean : Dataset
    manifest : Manifest
    poisoned : Dataset

    Raises
    ------
    ArtifactError
        If the attack is missing or unsound, or was made from other images.
    """
    record = run.load("attack")["result"]
    clean = data.load(run.profile.data, folder=folder, scale=run.profile.scale)
    check_data(clean, record)
    manifest = Manifest(**run.arrays("attack"))
    return clean, manifest, apply(manifest, clean)


def check_data(dataset: "Dataset", record: Mapping, remedy: str = "run 01_attacks again") -> None:
    """Refuse a data set other than the one that was poisoned.

    Parameters
    ----------
    dataset : Dataset
        The clean data as loaded now.
    record : mapping
        What an earlier stage found, with the ``fingerprint`` of its data.
    remedy : str
        What else to do than to name the right folder.

    Raises
    ------
    ArtifactError
        If the fingerprints differ.
    """
    if dataset.fingerprint != record["fingerprint"]:
        raise ArtifactError(
            f"this run was made from other images than the {dataset.name} set loaded now "
            f"(fingerprints {record['fingerprint'][:12]} and {dataset.fingerprint[:12]}); name the "
            f"folder it was made from with the parameter 'data', or {remedy}"
        )


def load_model(run: Run, device: torch.device) -> nn.Module:
    """Load the trained network of a run, in evaluation mode.

    Raises
    ------
    ArtifactError
        If it has not been trained, or its weights are not those that the record describes.
    """
    model = build(run.scenario.model)
    model.load_state_dict(run.weights("training"))
    return model.to(device, memory_format=torch.channels_last).eval()


def load_surrogate(run: Run, dataset: "Dataset", device: torch.device) -> nn.Module:
    """Load the attacker's clean network for a run's scenario.

    Parameters
    ----------
    run : Run
        Run whose attack wants it.
    dataset : Dataset
        Clean data of the attack, which the surrogate must have been trained on too.
    device : torch.device
        Where gradients shall be computed.

    Raises
    ------
    ArtifactError
        If the surrogate has not been trained, or on other images.
    SurrogateError
        If its clean accuracy is below `SURROGATE_ACCURACY`: gradients of a network that knows
        nothing would degrade nothing.
    """
    surrogate = run.of(run.scenario.surrogate)
    record = surrogate.load("training")["result"]
    again = (
        f"remove {surrogate.folder} and train the surrogate {surrogate.scenario} anew with\n"
        f"{surrogate.command('training')}"
    )
    check_data(dataset, record, again)
    accuracy = record["clean_accuracy"]
    if accuracy < SURROGATE_ACCURACY:
        raise SurrogateError(
            f"the surrogate {surrogate.folder} reaches {accuracy:.1f} % clean accuracy; an attack "
            f"needs {SURROGATE_ACCURACY:.0f} %. Train it for more epochs (profile "
            f"'{str(run.profile).split('-')[0]}-epochs<n>')."
        )
    return load_model(surrogate, device)
