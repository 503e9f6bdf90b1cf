"""All detectors behind one call: what they may look at, their names, and what they answer.

The estimators themselves live in `nbsupport.baselines`, `nbsupport.heatmap_clustering`,
`nbsupport.embedding_clustering` and `nbsupport.poison_detector`, and can be had from here;
`nbsupport.detectors` tells what they have in common.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone

from nbsupport import metrics
from nbsupport.baselines import ActivationClustering, RawClustering, SpectralSignature, grey
from nbsupport.embedding_clustering import DistanceMixture, SpRAy
from nbsupport.evidence import Evidence
from nbsupport.heatmap_clustering import HeatmapClustering
from nbsupport.poison_detector import PoisonDetector

if TYPE_CHECKING:
    from nbsupport.data import Split

__all__ = [
    "METHODS",
    "ActivationClustering",
    "DetectionInputs",
    "DetectionResult",
    "DistanceMixture",
    "HeatmapClustering",
    "Method",
    "PoisonDetector",
    "RawClustering",
    "SpRAy",
    "SpectralSignature",
    "chosen",
    "controls",
    "detect",
    "grey",
    "judge",
]


_ARRAYS = ("images", "activations", "logits", "evidence")


@dataclass(frozen=True)
class DetectionInputs:
    """All that a detector may look at: the images that carry one training label.

    Attributes
    ----------
    ids : ndarray, shape (n,), int64
        Unique image ids; the truth is joined by them, never by position.
    images : uint8 array or Tensor, shape (n, c, H, W), optional
    activations : array or Tensor, shape (n, d), optional
        Last hidden layer.
    logits : array or Tensor, shape (n, classes), optional
    heatmaps : mapping from composite name to array or Tensor, shape (n, H, W), optional
        Relevance of the label's logit, summed over colour channels.
    evidence : array, shape (n, 3 k + d), optional
        What occlusion and transplantation found, and activations:
        `nbsupport.evidence.Evidence.table`.
    sides : int, default 2
        How many sides k of the window the evidence has, which nothing in its shape tells.
    """

    ids: np.ndarray
    images: object = None
    activations: object = None
    logits: object = None
    heatmaps: Mapping[str, object] = field(default_factory=dict)
    evidence: object = None
    sides: int = 2

    def __post_init__(self):
        ids = np.asarray(self.ids)
        if ids.ndim != 1 or len(np.unique(ids)) != len(ids):
            raise ValueError(f"ids must be unique and of shape (n,), got shape {ids.shape}")
        named = {name: getattr(self, name) for name in _ARRAYS}
        named |= {f"heatmaps[{name!r}]": maps for name, maps in self.heatmaps.items()}
        for name, value in named.items():
            if value is not None and len(value) != len(ids):
                raise ValueError(f"{name} has {len(value)} rows for {len(ids)} ids")

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], images: "Split | None" = None
    ) -> "DetectionInputs":
        """Take all that the artefact ``relevance.npz`` holds, in ascending order of ids.

        Parameters
        ----------
        arrays : mapping
            Its arrays by name, one row an image in any order: ``ids``, ``activations``, ``logits``,
            ``heatmaps_<composite>`` and ``evidence_<column>``.
        images : Split, optional
            The same images, in any order.

        Returns
        -------
        DetectionInputs

        Raises
        ------
        ValueError
            If ``images`` are others than those that were explained.
        """
        order = np.argsort(arrays["ids"])
        ids = arrays["ids"][order]
        pixels = None
        if images is not None:
            by_id = np.argsort(images.ids.numpy())
            if not np.array_equal(images.ids.numpy()[by_id], ids):
                raise ValueError(
                    f"relevance is of {len(ids)} other images than the {len(images)} given; pass "
                    "the training images of the attacked class that notebook 3 explained"
                )
            pixels = images.images[by_id]
        maps = {
            name.removeprefix("heatmaps_"): values[order]
            for name, values in arrays.items()
            if name.startswith("heatmaps_")
        }
        pieces = Evidence.from_arrays(arrays)
        told = pieces.table(arrays["heatmaps_squared"], arrays["activations"])
        return cls(
            ids,
            pixels,
            activations=arrays["activations"][order],
            logits=arrays["logits"][order],
            heatmaps=maps,
            evidence=told[order],
            sides=len(pieces.sides),
        )

    def select(self, rows) -> "DetectionInputs":
        """Keep some of the images, by a mask or by row numbers, in that order."""
        some = {name: value[rows] for name in _ARRAYS if (value := getattr(self, name)) is not None}
        maps = {name: maps[rows] for name, maps in self.heatmaps.items()}
        ids = np.asarray(self.ids)[rows]
        return DetectionInputs(ids, heatmaps=maps, sides=self.sides, **some)


@dataclass(frozen=True)
class DetectionResult:
    """What one method says about each image.

    Attributes
    ----------
    ids : ndarray, shape (n,)
        Image ids, in the order of the inputs.
    score : ndarray, shape (n,), float64
        Higher means more likely poisoned.
    poisoned : ndarray, shape (n,), bool
        The verdict.
    seconds : float
        Wall-clock time of fit and score.
    details : dict
        Parameters and by-products, fit for JSON.
    """

    ids: np.ndarray
    score: np.ndarray
    poisoned: np.ndarray
    seconds: float
    details: dict


@dataclass(frozen=True)
class Method:
    """A detector by a short name.

    Attributes
    ----------
    name : str
        Key in `METHODS`; `nbsupport.figures.METHOD_STYLE` has its label.
    needs : str
        The field of `DetectionInputs` it reads.
    estimator : estimator
        Prototype, cloned before use.
    composite : str
        Which heatmaps it reads when there are several and none is named.
    """

    name: str
    needs: str
    estimator: BaseEstimator
    composite: str = ""


METHODS = {
    method.name: method
    for method in (
        Method("raw_pca", "images", RawClustering("PCA")),
        Method("raw_fastica", "images", RawClustering("FastICA")),
        Method("activation", "activations", ActivationClustering()),
        Method("activation_logits", "logits", ActivationClustering()),
        Method(
            "heatmap",
            "heatmaps",
            # As released: from one map against all others, once, 20 rounds at most.
            HeatmapClustering(start="released", n_init=1, max_iter=20),
            "released",
        ),
        Method("heatmap_restarts", "heatmaps", HeatmapClustering(n_init=10), "released"),
        Method("heatmap_euclidean", "heatmaps", HeatmapClustering("euclidean"), "released"),
        Method("heatmap_sliced", "heatmaps", HeatmapClustering("sliced-wasserstein"), "released"),
        Method("spray", "heatmaps", SpRAy(), "gamma"),
        Method("mixture", "heatmaps", DistanceMixture(), "gamma"),
        Method("spectral", "activations", SpectralSignature()),
        Method("poison_detector", "evidence", PoisonDetector()),
    )
}
"""Methods by short name. "activation_logits" is what the released code clusters."""


SURELY_COLLAPSED = 1.5
"""Multiple of eps* from which on GW clustering is answered in closed form. Just above eps* a mean
that starts far from constant may keep its shape (notebook 4, section 4.3: up to 1.3 times)."""


def detect(
    method: str, inputs: DetectionInputs, *, composite: str | None = None, **parameters
) -> DetectionResult:
    """Let one method judge every image of a class.

    Parameters
    ----------
    method : str
        A key of `METHODS`.
    inputs : DetectionInputs
        The images of one class, and what the network makes of them.
    composite : str, optional
        Which heatmaps to read; the method's own choice, or the only ones there are, if left out.
    **parameters
        Set on the estimator; an unknown name raises.

    Returns
    -------
    DetectionResult
        Score and verdict for each id.

    Raises
    ------
    ValueError
        If the method is unknown, or its inputs are missing.

    Notes
    -----
    "heatmap" takes the settings of the released code: one start, which `random_state` draws, and
    20 rounds at most. "heatmap_restarts" keeps the best of ten starts (k-means++), and lets each
    come to rest. If epsilon exceeds `SURELY_COLLAPSED` times `epsilon_star_`, measured on the
    clusters found, the answer in closed form is given in place of the solver's
    (`details["metric"]` says "mean-distance"); otherwise the solver runs.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {tuple(METHODS)}")
    chosen = METHODS[method]
    X = getattr(inputs, chosen.needs)
    details = {}
    if chosen.needs == "heatmaps":
        if composite is None:
            composite = next(iter(X)) if len(X) == 1 else chosen.composite
        if composite not in X:
            raise ValueError(
                f"{method!r} needs heatmaps of composite {composite!r}, there are {tuple(X)}: "
                "pass composite=, or compute them first"
            )
        X = X[composite]
        details["composite"] = composite
    elif composite is not None:
        raise ValueError(
            f"{method!r} reads {chosen.needs}, so composite={composite!r} means nothing"
        )
    if chosen.needs == "evidence":
        parameters = {"sides": inputs.sides} | parameters
    if X is None:
        raise ValueError(f"{method!r} needs {chosen.needs}, which the inputs do not hold")
    X = np.asarray(X)
    began = time.perf_counter()
    estimator = clone(chosen.estimator).set_params(**parameters)
    if isinstance(estimator, HeatmapClustering) and estimator.metric == "gw":
        closed = clone(estimator).set_params(metric="mean-distance").fit(X)
        collapsed = estimator.epsilon > SURELY_COLLAPSED * closed.epsilon_star_
        estimator = closed if collapsed else estimator.fit(X)
        details["epsilon_star"] = closed.epsilon_star_
    else:
        estimator.fit(X)
    score = estimator.decision_function(X)
    seconds = time.perf_counter() - began
    details |= {
        **{name: _for_json(value) for name, value in estimator.get_params().items()},
        "estimator": type(estimator).__name__,
        "n": len(score),
        "n_flagged": int(estimator.poisoned_.sum()),
    }
    for name in (
        "inertia_",
        "n_iter_",
        "converged_",
        "gap_",
        "present_",
        "witnesses_",
        "n_strong_",
        "silhouette_",
        "chance_",
    ):
        if hasattr(estimator, name):
            details[name.rstrip("_")] = getattr(estimator, name)
    if hasattr(estimator, "n_clusters_"):
        details["n_clusters_found"] = estimator.n_clusters_
    if hasattr(estimator, "report_"):
        details["report"] = estimator.report_
    return DetectionResult(np.asarray(inputs.ids), score, estimator.poisoned_, seconds, details)


def chosen(record: Mapping) -> dict:
    """Give the settings of Heatmap Clustering that notebook 4 leaves to the reader.

    Parameters
    ----------
    record : mapping
        What the record of the stage says of the method, ``result["methods"]["heatmap"]``.

    Returns
    -------
    dict
        For `detect`, to ask in the same way again.
    """
    told = record.get("details", {})
    return {name: told[name] for name in ("epsilon", "share") if name in told}


def _for_json(value):
    """Stand in for an array, which would swell the record, by its shape; name a device.

    JSON knows no numbers of NumPy.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device):
        return str(value)
    return value if np.ndim(value) == 0 else f"array of shape {np.shape(value)}"


def judge(result: DetectionResult, ids, truth) -> dict:
    """Compare what a method, or a control, says with the truth: one row of a table of results.

    Parameters
    ----------
    result : DetectionResult
        From `detect` or `controls`.
    ids : int array, shape (n,)
        Image ids of the truth, in any order.
    truth : bool array, shape (n,)
        Whether each of them is poisoned.

    Returns
    -------
    dict
        "acc", "tpr", "tnr", "auroc" in percent (NaN where not defined), "n_tp", "n_fn", "n_tn",
        "n_fp", "seconds" and "details".

    Raises
    ------
    ValueError
        If truth and result hold different images.
    """
    counts = metrics.confusion_by_id(ids, truth, result.ids, result.poisoned)
    by_id, truth_by_id = np.argsort(result.ids), np.asarray(truth)[np.argsort(ids)]
    return counts.record() | {
        "auroc": 100 * metrics.auroc(truth_by_id, result.score[by_id]),
        "seconds": result.seconds,
        "details": result.details,
    }


def controls(ids, truth, *, rng: np.random.Generator) -> dict[str, DetectionResult]:
    """Filters that frame any method, to be shown beside the methods.

    Parameters
    ----------
    ids : int array, shape (n,)
        Image ids.
    truth : bool array, shape (n,)
        Whether each of them is poisoned: the one place where a verdict is made from it.
    rng : numpy.random.Generator
        Source of the random filter.

    Returns
    -------
    dict
        "perfect" flags the poisoned images, "random" as many images drawn blindly, "none" nothing;
        the score is the verdict.
        `nbsupport.metrics.shuffled_auroc` is the fourth control, for the scores of a method.
    """
    truth = np.asarray(truth, dtype=bool)
    filters = {"perfect": truth, "random": rng.permutation(truth), "none": np.zeros_like(truth)}
    return {
        name: DetectionResult(
            np.asarray(ids), flags.astype(float), flags, 0.0, {"control": name, "n": len(flags)}
        )
        for name, flags in filters.items()
    }
