"""Which class is suspicious? The question that the paper assumes answered.

Every class in turn is taken for the target of an attack, and the detector says whether it is one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from nbsupport import evidence, lrp
from nbsupport.poison_detector import PoisonDetector

if TYPE_CHECKING:
    from nbsupport.data import Split

__all__ = ["ClassVerdict", "scan"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ClassVerdict:
    """What the detector says about one class.

    Attributes
    ----------
    label : int
        The class.
    n : int
        Images examined.
    present : bool
        Whether the class is called poisoned.
    accused : ndarray, int64
        Ids of the images accused; empty unless ``present``.
    n_strong : int
        Strong candidates; see `PoisonDetector`.
    strongest : float
        Largest strength of an image.
    """

    label: int
    n: int
    present: bool
    accused: np.ndarray
    n_strong: int
    strongest: float

    @property
    def share(self) -> float:
        """Share of strong candidates: what classes are ranked by."""
        return self.n_strong / self.n


def scan(
    model: nn.Module,
    split: "Split",
    device: torch.device,
    *,
    labels: Sequence[int] | None = None,
    detector: PoisonDetector | None = None,
    per_class: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[ClassVerdict]:
    """Examine every class as if it were the target of an attack.

    Parameters
    ----------
    model : Module
        The trained network, on ``device``.
    split : Split
        Its training images, with the labels it was trained on.
    device : torch.device
        Where to compute.
    labels : sequence of int, optional
        Classes to examine; all that occur if left out.
    detector : PoisonDetector, optional
        Prototype, cloned for each class.
    per_class : int, optional
        Examine a sample of so many images a class; all of them if left out.
    seed : int
        Seed of samples and carriers.
    progress : callable, optional
        Called with classes done, classes in all and a line of text.

    Returns
    -------
    list of ClassVerdict
        Most suspicious first: by the share of strong candidates, then by the strongest image.

    Raises
    ------
    ValueError
        If a class has no images.
    """
    present = np.unique(split.labels.numpy())
    labels = present if labels is None else np.asarray(labels)
    if missing := sorted(set(labels.tolist()) - set(present.tolist())):
        raise ValueError(f"there are no images of classes {missing}; there are {present.tolist()}")
    rng, verdicts = np.random.default_rng(seed), []
    for done, label in enumerate(map(int, labels)):
        rows = torch.nonzero(split.labels == label)[:, 0]
        if per_class is not None and len(rows) > per_class:
            rows = rows[torch.from_numpy(np.sort(rng.permutation(len(rows))[:per_class]))]
        some = split.select(rows)
        where, what = (
            lrp.explain(
                model, some.images, target=label, composite=composite, device=device
            ).heatmaps
            for composite in ("gamma", "squared")
        )
        carriers = evidence.pick_carriers(model, split, label, device, seed=seed)
        found = evidence.gather(model, some.images, where, label, carriers, device).table(what)
        judge = clone(detector or PoisonDetector()).fit(found)
        verdict = ClassVerdict(
            label=label,
            n=len(some),
            present=judge.present_,
            accused=some.ids.numpy()[judge.poisoned_],
            n_strong=judge.n_strong_,
            strongest=float(judge.decision_function(found).max()),
        )
        verdicts.append(verdict)
        if progress:
            text = f"class {label}: {verdict.n_strong} of {verdict.n} are strong candidates"
            progress(done + 1, len(labels), text)
    return sorted(verdicts, key=lambda v: (v.share, v.strongest), reverse=True)
