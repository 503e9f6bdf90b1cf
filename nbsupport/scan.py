"""Which class is suspicious? The question that the paper assumes answered.

Every class in turn is taken for the target of an attack, and the detector says whether it is one.
"""

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from torch import nn

from nbsupport import evidence, graph, lrp, tracing
from nbsupport.artifacts import Run
from nbsupport.attacks import Manifest
from nbsupport.baselines import ActivationClustering
from nbsupport.detection import DetectionInputs
from nbsupport.devices import at_a_time, describe
from nbsupport.evaluation import Progress, load_model, load_poisoned, share_read
from nbsupport.poison_detector import PoisonDetector

if TYPE_CHECKING:
    from nbsupport.data import Split

__all__ = [
    "ClassVerdict",
    "arrays",
    "ask",
    "chosen_labels",
    "chosen_sides",
    "collect",
    "examine",
    "first_check",
    "scan",
    "two_rounds",
    "without_poison",
]


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
    silhouette : float or None
        How clearly the activations fall into two clusters; None if they were not looked at.
    witnesses : tuple of str
        On whose word the class is called poisoned.
    carried : float or None
        Share of the images of other classes that the piece of a strong candidate turns into the
        label, of its best window; median over the strong candidates. None where there are none.
    """

    label: int
    n: int
    present: bool
    accused: np.ndarray
    n_strong: int
    strongest: float
    silhouette: float | None = None
    witnesses: tuple[str, ...] = ()
    carried: float | None = None

    @property
    def share(self) -> float:
        """Share of images accused, or of strong candidates if that is larger."""
        return max(self.n_strong, len(self.accused)) / self.n


def scan(
    model: nn.Module,
    split: "Split",
    device: torch.device,
    *,
    labels: Sequence[int] | None = None,
    detector: PoisonDetector | None = None,
    per_class: int | None = None,
    carriers: int = 24,
    layer: str | None = None,
    sides: Sequence[int] | None = None,
    min_carried: float = 0.25,
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
    carriers : int
        Images that each piece is pasted into; most of the time goes into them.
    layer : str, optional
        Layer whose activations are clustered; if left out, `tracing.penultimate`.
        Without either, the evidence of single images decides alone.
    sides : sequence of int, optional
        Sides of the windows that are covered and pasted, in pixels; `evidence.window_sides` if
        left out. A trigger that is larger than the largest may be missed.
    min_carried : float, default 0.25
        Least `ClassVerdict.carried` with which the evidence of single images, by itself, names a
        class; a class that its activations name as well is not asked. The
        detector compares images of one class, whatever the network is, and some class has images
        that stand out; a trigger turns other images as well. On GTSRB the pieces of poisoned
        images carry the label to 9 or 10 of 10 images; those of clean trousers of Fashion-MNIST,
        which the detector alone named in two networks of three, to 0 or 1 of 10. A trigger that
        turns its source class and few others stays below as well (notebook 8, 8.5): 0 names it.
    seed : int
        Seed of samples and carriers.
    progress : callable, optional
        Called with classes done, classes in all and a line of text.

    Returns
    -------
    list of ClassVerdict
        Most suspicious first: poisoned classes, then by `ClassVerdict.share`, then by the
        strongest image.

    Raises
    ------
    ValueError
        If a class has no images, there is no second class, ``per_class`` or ``carriers`` is
        below 1, ``min_carried`` is no share, a window does not fit into the images, or the
        network's answers are no logits of these labels.

    Warns
    -----
    UserWarning
        If the network reads less than half of the images as they are labelled.
    """
    _check_count("per_class", per_class)
    _check_count("carriers", carriers)
    if not 0 <= min_carried <= 1:
        raise ValueError(f"min_carried is {min_carried}; expected a share, from 0 to 1")
    labels = _present(split, labels)
    sides = _fitting(sides, split.images.shape[2:])
    layer = layer or tracing.penultimate(model)
    _check_reading(model, split, device, seed)
    verdicts = []
    for done, label in enumerate(labels):
        rows = torch.nonzero(split.labels == label)[:, 0]
        if per_class is not None and len(rows) > per_class:
            # A generator of its own: the sample must not depend on the classes scanned before.
            order = np.random.default_rng([seed, label]).permutation(len(rows))
            rows = rows[torch.from_numpy(np.sort(order[:per_class]))]
        some = split.select(rows)
        # First, for it is soon done and refuses what cannot be scanned.
        others = evidence.pick_carriers(
            model, split, label, device, count=carriers, pool=max(4, carriers // 3), seed=seed
        )
        inputs, pieces = ask(
            model, some, label, others, device, layer=layer, sides=sides, seed=seed
        )
        judge = clone(detector or PoisonDetector()).set_params(sides=inputs.sides)
        verdict = _verdict(label, judge.fit(inputs.evidence), inputs, pieces, min_carried)
        verdicts.append(verdict)
        if progress:
            text = f"class {label}: {len(verdict.accused)} of {verdict.n} accused"
            progress(done + 1, len(labels), text)
    return _ranked(verdicts)


def ask(
    model: nn.Module,
    images: "Split",
    label: int,
    carriers: torch.Tensor,
    device: torch.device,
    *,
    layer: str | None = None,
    sides: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[DetectionInputs, evidence.Evidence]:
    """Ask a network all that detectors read about the images of one class.

    Parameters
    ----------
    model : Module
        The trained network, on ``device``.
    images : Split
        Training images that all carry ``label``.
    label : int
        The class.
    carriers : Tensor
        Images of other classes into which pieces are pasted, from `evidence.pick_carriers`.
    device : torch.device
        Where to compute.
    layer : str, optional
        Layer whose activations are read; `tracing.penultimate` if left out. Without either there
        are no activations.
    sides : sequence of int, optional
        Sides of the windows that are covered and pasted; `evidence.window_sides` if left out.
    seed : int
        Seed of the random sample of images whose piece is pasted anyway; see `evidence.gather`.

    Returns
    -------
    inputs : DetectionInputs
        With heatmaps of the composites "gamma" and "squared".
    pieces : Evidence
        What the most relevant pieces are worth, as measured.
    """
    layer = layer or tracing.penultimate(model)
    explain = partial(lrp.explain, model, images.images, target=label, device=device)
    gamma = explain(composite="gamma", layers=[layer] if layer else [])
    squared = explain(composite="squared")
    pieces = evidence.gather(
        model, images.images, gamma.heatmaps, label, carriers, device,
        narrow=evidence.concentration(squared.heatmaps), sides=sides, seed=seed,
    )  # fmt: skip
    activations = gamma.activations[layer].flatten(1) if layer else None
    inputs = DetectionInputs(
        images.ids.numpy(),
        images.images,
        activations=activations,
        logits=gamma.logits,
        heatmaps={"gamma": gamma.heatmaps, "squared": squared.heatmaps},
        evidence=pieces.table(squared.heatmaps, activations),
        sides=len(pieces.sides),
    )
    return inputs, pieces


def _verdict(label, judge, inputs, pieces, min_carried) -> ClassVerdict:
    """Say what the witnesses say; the first one alone must tell of pieces that do their work."""
    ids, strength = inputs.ids, judge.strength(inputs.evidence)
    strong = strength >= judge.strong
    carried = float(np.median(np.nanmax(pieces.carried[strong], axis=1))) if strong.any() else None
    witnesses = tuple(judge.witnesses_)
    if witnesses == ("evidence",) and carried is not None and carried < min_carried:
        witnesses = ()
    return ClassVerdict(
        label=label,
        n=len(ids),
        present=bool(witnesses),
        accused=ids[judge.poisoned_] if witnesses else ids[:0],
        n_strong=judge.n_strong_,
        strongest=float(strength.max()),
        silhouette=judge.silhouette_,
        witnesses=witnesses,
        carried=carried,
    )


def _fitting(sides: Sequence[int] | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Check that there are windows and that they fit, or choose some."""
    sides = evidence.window_sides(shape) if sides is None else tuple(sides)
    whole = all(isinstance(side, int | np.integer) for side in sides)
    if not sides or not whole or not all(1 <= side < min(shape) for side in sides):
        raise ValueError(
            f"windows have sides {sides}; on images of {shape[0]} x {shape[1]} expected one or "
            f"more of 1 to {min(shape) - 1} pixels"
        )
    return sides


def _check_count(name: str, images: int | None) -> None:
    if images is not None and images < 1:
        raise ValueError(f"{name} is {images}; expected 1 image or more")


def _check_reading(model, split, device, seed) -> None:
    """Warn of a network that does not know the images: a scan would say nothing about it."""
    share = share_read(model, split, device, seed=seed)
    if share < 0.5:
        warnings.warn(
            f"the network reads {100 * share:.0f} % of the images as they are labelled, so the "
            "scan says little. It is given values from 0 to 1: if it was trained on normalised "
            "images, put nbsupport.models.Normalise(mean, std) in front of it",
            stacklevel=3,
        )


def _present(split: "Split", labels: Sequence[int] | None) -> list[int]:
    """Check that there are images of some classes, or list all that have some."""
    present = np.unique(split.labels.numpy()).tolist()
    if missing := sorted(set(map(int, () if labels is None else labels)) - set(present)):
        raise ValueError(f"there are no images of classes {missing}; there are {present}")
    return present if labels is None else [int(label) for label in labels]


def _ranked(verdicts: list[ClassVerdict]) -> list[ClassVerdict]:
    return sorted(verdicts, key=lambda v: (v.present, v.share, v.strongest), reverse=True)


def two_rounds(
    model: nn.Module,
    split: "Split",
    device: torch.device,
    *,
    per_class: int,
    named_too: bool = False,
    **options,
) -> list[ClassVerdict]:
    """Scan a sample of each class, then the whole of those that are in doubt.

    In doubt is a class whose sample holds strong candidates, but too few to be called poisoned.

    Parameters
    ----------
    model, split, device
        As in `scan`.
    per_class : int
        Size of a sample.
    named_too : bool
        Look at classes that are called poisoned in whole as well, to find all their images.
    **options
        Further options of `scan`.

    Returns
    -------
    list of ClassVerdict
        As from `scan`; ``n`` tells who was looked at in whole.
    """
    verdicts = scan(model, split, device, per_class=per_class, **options)
    whole = np.bincount(split.labels)
    doubtful = [
        v.label
        for v in verdicts
        if v.n < whole[v.label] and (named_too if v.present else v.n_strong)
    ]
    if not doubtful:
        return verdicts
    again = scan(model, split, device, **(options | {"labels": sorted(doubtful)}))
    return _ranked(again + [v for v in verdicts if v.label not in doubtful])


def examine(
    run: Run,
    folder: str,
    device: torch.device,
    *,
    per_class: int,
    classes: str = "all",
    parameters: dict | None = None,
    progress: Progress | None = None,
) -> None:
    """Scan the network of a run and leave the stage "scan"; nothing is done if it is there.

    Parameters
    ----------
    run : Run
        Run whose training is finished.
    folder : str
        Folder of GTSRB, or "auto".
    device : torch.device
        Where to compute.
    per_class : int
        Size of the sample of each class, see `two_rounds`.
    classes : str
        "all", or labels such as "2 5 7". A scan of other classes or samples is made anew.
    parameters : dict, optional
        For the record.
    progress : callable, optional
        As in `scan`.

    Raises
    ------
    ArtifactError
        If there is no sound network.
    ValueError
        If ``classes`` is neither, ``per_class`` is below 1, or a class has no images.
    """
    _check_count("per_class", per_class)
    labels = chosen_labels(classes)
    asked = {"classes": " ".join(map(str, labels)) if labels else "all", "per_class": per_class}
    if run.has("scan") and asked.items() <= run.load("scan")["result"].items():
        return
    train, model = load_poisoned(run, folder)[2].train, load_model(run, device)
    begin = time.perf_counter()
    first_shares, middle = first_check(model, train, device, labels=labels), time.perf_counter()
    # The limits of the detector are from signs like these: its word is enough, as published.
    verdicts = two_rounds(
        model, train, device, per_class=per_class, labels=labels, carriers=8, min_carried=0,
        progress=progress,
    )  # fmt: skip
    spent = {"first check": middle - begin, "scan": time.perf_counter() - middle}
    run.save(
        "scan",
        arrays(verdicts, train, first_shares),
        {**asked, "named": {v.label: v.witnesses for v in verdicts if v.present}, "seconds": spent},
        made_from=((run, "attack"), (run, "training")),
        parameters=parameters or {},
        seconds=sum(spent.values()),
        device=describe(device),
    )


def chosen_labels(classes: str) -> list[int] | None:
    """Read which classes are asked for: labels such as "2 5 7", or None for "all".

    Raises
    ------
    ValueError
        If it is neither.
    """
    if classes == "all":
        return None
    return sorted(set(_numbers("classes", classes, "'all' or labels such as '2 5 7'")))


def chosen_sides(sides: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Read which windows are asked for: sides such as "3 5", or "auto".

    Parameters
    ----------
    sides : str
        In pixels; "auto" leaves the choice to `evidence.window_sides`.
    shape : sequence of int
        (h, w) of the images.

    Raises
    ------
    ValueError
        If it is neither, or a window does not fit into the images.
    """
    if sides == "auto":
        return _fitting(None, shape)
    return _fitting(_numbers("sides", sides, "'auto' or pixels such as '3 5'"), shape)


def _numbers(name: str, text: str, expected: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{name} is {text!r}; expected {expected}")
    return [int(word) for word in words]


def arrays(
    verdicts: Sequence[ClassVerdict], split: "Split", first_shares: dict[int, float]
) -> dict[str, np.ndarray]:
    """Put verdicts into the arrays that the stage "scan" keeps.

    Parameters
    ----------
    verdicts : sequence of ClassVerdict
        From `scan` or `two_rounds`.
    split : Split
        What was scanned.
    first_shares : dict
        From `first_check`.

    Returns
    -------
    dict
        One entry a class: ``label``, ``n``, ``n_class`` (images of the class), ``n_strong``,
        ``strongest``, ``present``, ``share``, ``silhouette`` (NaN where there is none) and
        ``first_share``; then the ids of all ``accused``.
    """
    names = ("label", "n", "n_strong", "strongest", "present", "share", "silhouette")
    columns = {name: [getattr(v, name) for v in verdicts] for name in names}
    columns["silhouette"] = np.array(columns["silhouette"], dtype=float)
    columns["first_share"] = [first_shares[v.label] for v in verdicts]
    columns["n_class"] = np.bincount(split.labels)[columns["label"]]
    columns["accused"] = np.concatenate([v.accused for v in verdicts])
    return {name: np.asarray(values) for name, values in columns.items()}


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """Say what the scans of some networks found.

    Parameters
    ----------
    runs : iterable of Run
        Runs with the stage "scan".

    Returns
    -------
    DataFrame
        One row a network: ``scenario``, ``classes`` and ``images`` (looked at), ``per_class`` (size
        of a sample), ``target`` (the attacked class, None if there is none or if it was not looked
        at), ``named`` (labels of the classes called poisoned, and who was heard), ``accused``
        images, ``accused_wrongly`` among them, and ``seconds``.
    """
    rows = []
    for run in runs:
        found, record = run.arrays("scan"), run.load("scan")
        poisoned = Manifest(**run.arrays("attack")).poisoned_ids
        attacked = run.scenario.target_class
        known = len(poisoned) and attacked in found["label"]
        named = record["result"]["named"].items()
        rows.append(
            {
                "scenario": str(run.scenario),
                "classes": len(found["label"]),
                "images": int(found["n"].sum()),
                "per_class": record["result"]["per_class"],
                "target": attacked if known else None,
                "named": ", ".join(f"{k} ({' and '.join(v)})" for k, v in named) or "none",
                "accused": len(found["accused"]),
                "accused_wrongly": int((~np.isin(found["accused"], poisoned)).sum()),
                "seconds": record["seconds"],
            }
        )
    # A column of labels and a None would become one of floating-point numbers.
    return pd.DataFrame(rows, dtype=object)


def without_poison(runs: Iterable[Run]) -> pd.DataFrame:
    """Ask the detector about the clean images of each attacked class: nobody should be accused.

    Parameters
    ----------
    runs : iterable of Run
        Runs with the stage "relevance".

    Returns
    -------
    DataFrame
        One row a run: ``scenario``, ``images`` (clean ones of the class), ``n_strong``,
        ``silhouette`` (NaN if it was not measured), ``called_poisoned`` and ``accused``.
    """
    rows = []
    for run in runs:
        found = run.arrays("relevance")
        clean = ~np.isin(found["ids"], Manifest(**run.arrays("attack")).poisoned_ids)
        pieces = evidence.Evidence.from_arrays(found)
        told = pieces.table(found["heatmaps_squared"], found["activations"])
        judge = PoisonDetector(sides=len(pieces.sides)).fit(told[clean])
        rows.append(
            {
                "scenario": str(run.scenario),
                "images": int(clean.sum()),
                "n_strong": judge.n_strong_,
                "silhouette": np.nan if judge.silhouette_ is None else judge.silhouette_,
                "called_poisoned": judge.present_,
                "accused": int(judge.poisoned_.sum()),
            }
        )
    return pd.DataFrame(rows)


def first_check(
    model: nn.Module,
    split: "Split",
    device: torch.device,
    *,
    labels: Sequence[int] | None = None,
    batch_size: int = 256,
) -> dict[int, float]:
    """Cut the activations of every class in two, as Activation Clustering does.

    It takes one look at each image and no explanation: the initial check that Section 8 of the
    paper has in mind.

    Parameters
    ----------
    model : Module
        The trained network; `tracing.penultimate` names the layer that is read.
    split : Split
        Its training images, with the labels it was trained on.
    device : torch.device
        Where to compute.
    labels : sequence of int, optional
        Classes to look at; all that occur if left out.
    batch_size : int
        Images of 32 x 32 pixels at a time; fewer of larger ones.

    Returns
    -------
    dict
        Share of the smaller group in [0, 0.5] by class; NaN for a class that cannot be cut, of one
        image or of equal activations. The poisoned
        group of a class is small, but a class without poison is cut in two as well, often into
        unequal parts.
    """
    labels, shares = _present(split, labels), {}
    network, layer = graph.Network(model, device), tracing.penultimate(model)
    size = at_a_time(batch_size, split.images)
    if layer is None:
        raise ValueError(
            f"{type(model).__name__} has no dense layer behind another one: name the layer to "
            "cluster by an attribute, model.penultimate = ..."
        )
    network.check_names([layer])
    for label in labels:
        with torch.inference_mode(), network.full_precision():
            batches = [
                network.forward(network.images(some), keep=(layer,)).values[layer].flatten(1).cpu()
                for some in split.images[split.labels == label].split(size)
            ]
        X = torch.cat(batches).numpy()
        several = np.ptp(X, axis=0).any()
        shares[label] = ActivationClustering().fit(X).poisoned_.mean() if several else np.nan
    return shares
