"""Representation x distance x clusterer: which part of Heatmap Clustering does the work?

Whatever the network says about the images of a class is compared by several distances and divided
in two by several clusterers. The verdict is the same in every cell of the grid, the smaller
cluster is poison, so that cells differ in little else: Gromov-Wasserstein divides each map by its
diameter, as released, where the other distances count in pixels, and its solver starts once.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbsupport import detection, distances, figures, gw, plots
from nbsupport.artifacts import Run, checksum, write_text
from nbsupport.detectors import one_of
from nbsupport.embedding_clustering import VectorClustering
from nbsupport.embeddings import sliced_quantiles
from nbsupport.results import VERDICT, csv_text

__all__ = [
    "BLIND", "CLUSTERERS", "DISTANCES", "KEYS", "PUBLISHED", "QUESTIONS", "REPRESENTATIONS",
    "Name", "Representation", "collect", "contrasts", "families", "finding", "grid",
    "judge", "matrix", "one_at_a_time", "panels", "pick", "prepare", "publish", "separation",
    "why_not",
]  # fmt: skip

KEYS = ("representation", "distance", "clusterer")
"""What names a cell of the grid."""

PUBLISHED = ("released", "mean-distance", "kmeans")
"""The paper's method at the settings of the released code, as a cell of the grid."""


@dataclass(frozen=True)
class Name:
    """A level of the grid: its label in figures, and the family that it stands for."""

    label: str
    family: str = ""


REPRESENTATIONS = {
    "pixels": Name("grey values", "image"),
    "activations": Name("penultimate layer", "activations"),
    "gradient_x_input": Name("gradient x input", "gradients"),
    "grad_cam": Name("Grad-CAM", "gradients"),
    "paper": Name("LRP, paper", "LRP"),
    "released": Name("LRP, released", "LRP"),
    "squared": Name("LRP, squared", "LRP"),
    "gamma": Name("LRP, gamma", "LRP"),
}
"""What is compared. Of the heatmaps, any composite may be given; others are LRP by their name.

"paper", the epsilon rule with the bias in its denominator, is "gradient_x_input" up to epsilon: one
representation that stands in two families.
"""

DISTANCES = {
    "euclidean": Name("Euclid", "entry by entry"),
    "euclidean-pca": Name("Euclid, PCA", "entry by entry"),
    "wasserstein-in-place": Name("sliced W, in place", "transport in place"),
    "sliced-wasserstein": Name("sliced W, centred", "transport, centred"),
    "mean-distance": Name("GW, collapsed", "distances within"),
    "distance-distribution": Name("distance distribution", "distances within"),
    "gw": Name("GW, entropic", "distances within"),
}
"""How it is compared.

"euclidean-pca": ten principal components, as in the paper (four for the mixture).
"wasserstein-in-place" and "sliced-wasserstein": `nbsupport.embeddings.sliced_quantiles`, without
and with all maps moved to one mean position; only the latter is blind to place. "mean-distance":
the one number that is left of GW where the barycentre collapses. "distance-distribution": all
distances within a map, what Mémoli's second bound of GW compares. "gw": entropic
Gromov-Wasserstein k-means with barycentres that have not collapsed.
"""

BLIND = ("sliced-wasserstein", "mean-distance", "distance-distribution", "gw")
"""Distances to which a map that is moved remains the same map."""

CLUSTERERS = {
    "kmeans": Name("k-means"),
    "mixture": Name("mixture"),
    "spectral": Name("spectral"),
}
"""How it is divided in two; see `nbsupport.clusterers`."""


def why_not(representation: str, distance: str, clusterer: str) -> str:
    """Tell why a cell of the grid is left out; empty where it is not.

    The one place that decides it.
    """
    one_of("distance", distance, tuple(DISTANCES))
    one_of("clusterer", clusterer, tuple(CLUSTERERS))
    if representation == "activations" and "euclidean" not in distance:
        return "activations have no place in the image, so that no distance lies within them"
    if distance == "euclidean" and clusterer == "mixture":
        return "the covariance of so many entries cannot be learned from so few images: see PCA"
    if distance == "gw" and clusterer == "mixture":
        return "GW is Euclidean in no space, so that there is nothing to be Gaussian in"
    if distance == "gw" and clusterer == "spectral":
        return "needs GW between all pairs of maps; k-means needs 2 n values a round"
    return ""


@dataclass(frozen=True)
class Representation:
    """What is known of the images of a class in one form.

    Attributes
    ----------
    vectors : ndarray, shape (n, d)
        Compared entry by entry.
    measures : ndarray or None, shape (n, H, W)
        Weights on the pixel grid, each map summing to 1; None for what has no place.
    """

    vectors: np.ndarray
    measures: np.ndarray | None


def prepare(name: str, values, share: float = 0.99) -> Representation:
    """Bring images, activations or heatmaps into the forms that distances compare.

    Parameters
    ----------
    name : str
        "pixels", "activations", or any other name for heatmaps.
    values : array
        uint8 images (n, c, H, W), activations (n, d), or heatmaps (n, H, W).
    share : float, default 0.99
        Share of the relevance, or brightness, to keep in a measure; see `gw.grid_weights`.

    Returns
    -------
    Representation
        Of an image: grey values in [0, 1], and brightness as a measure. Of a heatmap: its positive
        relevance as a measure, which is also the vector. A map without positive relevance
        explains a negative logit and is taken by its magnitude; a map of zeros points nowhere and
        is spread evenly.
    """
    values = np.asarray(values)
    if name == "activations":
        return Representation(values.reshape(len(values), -1).astype(np.float64), None)
    maps = detection.grey(values) / 255.0 if name == "pixels" else values.astype(np.float64)
    if maps.ndim != 3:
        raise ValueError(f"{name!r} must hold maps of shape (n, H, W), got {maps.shape}")
    dark = ~(maps > 0).any(axis=(1, 2))
    mass = np.where(dark[:, None, None], np.abs(maps), maps)
    mass[~mass.any(axis=(1, 2))] = 1.0
    weights = gw.grid_weights(mass, share)
    vectors = maps.reshape(len(maps), -1) if name == "pixels" else weights
    return Representation(vectors, weights.reshape(maps.shape))


def _embed(distance: str, given: Representation) -> np.ndarray:
    """Vectors whose Euclidean distance is the distance."""
    if distance in ("euclidean", "euclidean-pca"):
        return given.vectors
    if distance == "wasserstein-in-place":
        return sliced_quantiles(given.measures, centre=False)
    if distance == "sliced-wasserstein":
        return sliced_quantiles(given.measures)
    flat, shape = given.measures.reshape(len(given.measures), -1), given.measures.shape[1:]
    if distance == "mean-distance":
        return distances.distance_moments(flat, shape).mean[:, None]
    return distances.distance_quantiles(flat, shape=shape)


def _split(estimator, X: np.ndarray, ids, before: float = 0.0) -> detection.DetectionResult:
    began = time.perf_counter()
    score = estimator.fit(X).decision_function(X)
    seconds = before + time.perf_counter() - began
    return detection.DetectionResult(ids, score, estimator.poisoned_, seconds, {})


def grid(
    values: Mapping[str, object],
    ids,
    *,
    epsilon: float = 0.01,
    share: float = 0.99,
    device="cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[tuple[str, str, str], detection.DetectionResult]:
    """Let every cell of the grid judge every image of a class; no truth is asked.

    Parameters
    ----------
    values : mapping
        Images ("pixels"), activations and heatmaps by name; see `prepare`.
    ids : int array, shape (n,)
        Image ids, in the order of all values.
    epsilon : float, default 0.01
        Weight of the entropy in "gw", below the threshold of the collapse.
    share : float, default 0.99
        Relevance kept in a map.
    device : str or torch.device
        Where "gw" is solved.
    progress : callable, optional
        Called with (representations done, representations in all, name of the next).

    Returns
    -------
    dict
        A result for each (representation, distance, clusterer) that is not left out.
    """
    ids, found = np.asarray(ids), {}
    for done, (name, array) in enumerate(values.items()):
        if len(array) != len(ids):
            raise ValueError(f"{name!r} has {len(array)} rows for {len(ids)} ids")
        if progress:
            progress(done, len(values), name)
        given = prepare(name, array, share)
        for distance in DISTANCES:
            allowed = [c for c in CLUSTERERS if not why_not(name, distance, c)]
            if distance == "gw" and allowed:
                estimator = detection.HeatmapClustering(epsilon=epsilon, share=1.0, device=device)
                found[name, distance, "kmeans"] = _split(estimator, given.measures, ids)
            elif allowed:
                began = time.perf_counter()
                vectors = _embed(distance, given)
                spent = time.perf_counter() - began
                for clusterer in allowed:
                    # The covariance of more cannot be learned from so few images.
                    kept = 4 if clusterer == "mixture" else 10 if "pca" in distance else None
                    estimator = VectorClustering(clusterer, n_components=kept)
                    found[name, distance, clusterer] = _split(estimator, vectors, ids, spent)
    if progress:
        progress(len(values), len(values), "done")
    return found


def judge(results: Mapping[tuple, detection.DetectionResult], ids, truth) -> pd.DataFrame:
    """Score all cells against the truth, joined by image id.

    Returns
    -------
    DataFrame
        One row per cell: `KEYS`, "balanced" (mean of TPR and TNR, which no method can raise by
        flagging everybody or nobody) and the rates and counts of `detection.judge`, in percent.
    """
    rows = []
    for cell, result in results.items():
        rates = detection.judge(result, ids, truth)
        rates["balanced"] = (rates["tpr"] + rates["tnr"]) / 2
        names = dict(zip(KEYS, cell, strict=True))
        rows.append(names | {name: rates[name] for name in ("balanced", *VERDICT)})
    return pd.DataFrame(rows)


def collect(runs: Iterable[Run]) -> pd.DataFrame:
    """Read the finished grids of runs: one row per run and cell.

    Raises
    ------
    ArtifactError
        If a record is missing or unsound.
    ValueError
        If there is no run.
    """
    frames = []
    for one in runs:
        result = one.load("ablation")["result"]
        names = {"profile": str(one.profile), "scenario": str(one.scenario)}
        counts = {name: result[name] for name in ("n_poisoned", "n_class", "attack_took")}
        frames.append(pd.DataFrame(result["cells"]).assign(**names, **counts))
    if not frames:
        raise ValueError("no run is given: a table of grids needs one at least")
    table = pd.concat(frames, ignore_index=True)
    first = ["profile", "scenario", "n_poisoned", "n_class", "attack_took"]
    return table[first + [name for name in table if name not in first]]


def _labels(names: Mapping[str, Name], values: Iterable[str], part: str = "label") -> list[str]:
    """Look names up; heatmaps by a composite that is not listed are LRP."""
    return [getattr(names.get(value, Name(f"LRP, {value}", "LRP")), part) for value in values]


def _ordered(names: Mapping[str, Name], values: pd.Series) -> list[str]:
    present = list(dict.fromkeys(values))
    return [name for name in names if name in present] + [v for v in present if v not in names]


def matrix(table: pd.DataFrame, rate: str = "auroc", how: str = "mean") -> pd.DataFrame:
    """Arrange cells for a picture: representations by (distance, clusterer), in percent.

    Several runs are taken together by ``how``; cells that are left out are NaN.
    """
    wide = table.pivot_table(
        index="representation", columns=["distance", "clusterer"], values=rate, aggfunc=how
    )
    wide = wide.reindex(
        index=_ordered(REPRESENTATIONS, table["representation"]),
        columns=[
            (distance, clusterer)
            for distance in _ordered(DISTANCES, table["distance"])
            for clusterer in _ordered(CLUSTERERS, table["clusterer"])
            if (distance, clusterer) in wide.columns
        ],
    )
    wide.columns = pd.MultiIndex.from_arrays(
        [
            _labels(DISTANCES, wide.columns.get_level_values(0)),
            _labels(CLUSTERERS, wide.columns.get_level_values(1)),
        ]
    )
    wide.index = _labels(REPRESENTATIONS, wide.index)
    return wide


def panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Arrange finished grids for one picture.

    A panel of AUROC for each scenario; of more than four, their mean and the worst of them.
    """
    scenarios = list(dict.fromkeys(table["scenario"]))
    if len(scenarios) <= 4:
        return {name: matrix(table[table["scenario"] == name]) for name in scenarios}
    return {
        f"{word} of {len(scenarios)} scenarios": matrix(table, how=how)
        for word, how in (("mean", "mean"), ("worst", "min"))
    }


def separation(auroc):
    """AUROC in percent whichever group is called poison, from 50 up: 3 separates as well as 97.

    Which half is the smaller one is left aside here: where two means cut the clean images in half,
    chance decides it, and a mean of AUROCs far above and far below 50 says nothing about how well
    poison was set apart. (At chance it lies above 50 by about the AUROC's standard error.)
    """
    return np.maximum(auroc, 100 - auroc)


def families(table: pd.DataFrame) -> pd.DataFrame:
    """Average the `separation` over the cells of each family of representations and of distances.

    Parameters
    ----------
    table : DataFrame
        From `judge` or `collect`.

    Returns
    -------
    DataFrame
        One row per family of representations, one column per family of distances, in percent.
    """
    kinds = {
        "representation": _labels(REPRESENTATIONS, table["representation"], "family"),
        "distance": _labels(DISTANCES, table["distance"], "family"),
    }
    kinds["separation"] = separation(table["auroc"])
    wide = table.assign(**kinds).pivot_table(
        index="representation", columns="distance", values="separation", sort=False
    )
    rows = dict.fromkeys(name.family for name in REPRESENTATIONS.values())
    columns = dict.fromkeys(name.family for name in DISTANCES.values())
    return wide.reindex(
        index=[name for name in rows if name in wide.index],
        columns=[name for name in columns if name in wide.columns],
    )


def pick(table: pd.DataFrame, cell: Sequence[str]) -> pd.DataFrame:
    """Rows of one cell of the grid, a row per run."""
    same = np.all([table[key] == value for key, value in zip(KEYS, cell, strict=True)], axis=0)
    return table[same]


def one_at_a_time(table: pd.DataFrame) -> pd.DataFrame:
    """Replace one part of the `PUBLISHED` method at a time, leaving the two others.

    Parameters
    ----------
    table : DataFrame
        From `judge` or `collect`; several runs are averaged.

    Returns
    -------
    DataFrame
        Index (part, replacement), the start first; "auroc" and "balanced" in percent, and the
        change of AUROC against the start in points.

    Raises
    ------
    ValueError
        If the table does not hold that method.
    """
    rates = ["auroc", "balanced"]
    begin = pick(table, PUBLISHED)[rates].mean()
    if begin.isna().all():
        raise ValueError(f"the grid has no cell {PUBLISHED}; its cells are named by {KEYS}")
    rows = {("start", " / ".join(PUBLISHED)): begin}
    for place, key in enumerate(KEYS):
        for other in dict.fromkeys(table[key]):
            cell = [*PUBLISHED[:place], other, *PUBLISHED[place + 1 :]]
            if other != PUBLISHED[place] and len(found := pick(table, cell)):
                rows[key, other] = found[rates].mean()
    result = pd.DataFrame(rows).T.rename_axis(index=["part", "replacement"])
    return result.assign(change=result["auroc"] - begin["auroc"])


LARGE = 10
"""Points of AUROC from which on a change stands in the title."""

QUESTIONS = (
    ("move mass, do not compare pixels", "transport for Euclid",
     "distance", "euclidean", "wasserstein-in-place"),
    ("move all maps to one place", "blind to place",
     "distance", "wasserstein-in-place", "sliced-wasserstein"),
    ("compare distances within, not maps", "GW on top",
     "distance", "sliced-wasserstein", "mean-distance"),
    ("keep all distances, not their mean", "the whole law",
     "distance", "mean-distance", "distance-distribution"),
    ("a barycentre that did not collapse", "no collapse", "distance", "mean-distance", "gw"),
    ("explain the network, not the image", "LRP for brightness", "representation", "image", "LRP"),
    ("explain by LRP, not by gradients", "LRP for gradients",
     "representation", "gradients", "LRP"),
    ("two Gaussians for two means", "mixture for k-means", "clusterer", "kmeans", "mixture"),
    ("neighbourhoods for two means", "spectral for k-means", "clusterer", "kmeans", "spectral"),
)  # fmt: skip
"""Changes of one part: what is done, the same in the words of a title, the part, and its values
before and after."""


def contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """Change one part of the method and nothing else, in every cell where that is possible.

    Parameters
    ----------
    table : DataFrame
        From `judge` or `collect`.

    Returns
    -------
    DataFrame
        One row for each of `QUESTIONS` that the table can answer: mean, "lowest" and "highest"
        change of the `separation` in points, the mean change of the "balanced" accuracy, which is
        that of the verdict, and "pairs", the cells compared. Distances and clusterers are
        compared on heatmaps by LRP, representations (means of their family) and clusterers under
        distances that are blind to place.
    """
    names = _labels(REPRESENTATIONS, table["representation"], "family")
    table = table.assign(family=names, separation=separation(table["auroc"]))
    if "scenario" not in table:
        table = table.assign(scenario="")
    rows = []
    for question, _, key, before, after in QUESTIONS:
        chosen = table if key == "distance" else table[table["distance"].isin(BLIND)]
        chosen = chosen if key == "representation" else chosen[chosen["family"] == "LRP"]
        column = "family" if key == "representation" else key
        others = ["scenario", *(other for other in KEYS if other != key)]
        if not {before, after} <= set(chosen[column]):
            continue
        wide = (
            chosen.pivot_table(index=others, columns=column, values=rate)
            for rate in ("separation", "balanced")
        )
        ranks, verdicts = ((cells[after] - cells[before]).dropna() for cells in wide)
        rows.append(
            {"change": question, "before": before, "after": after, "separation": ranks.mean()}
            | {"lowest": ranks.min(), "highest": ranks.max()}
            | {"balanced": verdicts.mean(), "pairs": len(ranks)}
        )
    return pd.DataFrame(rows)


def finding(table: pd.DataFrame) -> str:
    """Say in one line how much better poison is set apart when one part is changed."""
    changes = (
        contrasts(table)
        .set_index("change")["separation"]
        .rename({question: words for question, words, *_ in QUESTIONS})
    )
    changes = changes.sort_values(key=abs, ascending=False, kind="stable")
    large = changes[changes.abs() >= LARGE] if (changes.abs() >= LARGE).any() else changes[:1]
    told = ", ".join(f"{words} {round(points):+d}" for words, points in large.items())
    rest = changes.drop(large.index).abs()
    least = f"; any other change: {math.ceil(rest.max())} or less" if len(rest) else ""
    return f"Points of AUROC won: {told}{least}"


def publish(table: pd.DataFrame, folder: Path, provenance: Mapping[str, Any]):
    """Write grids as ``ablation.{csv,pdf,png,json}``.

    Parameters
    ----------
    table : DataFrame
        From `collect`.
    folder : Path
        Where to.
    provenance : mapping
        From `results.provenance`, with the stage "ablation".

    Returns
    -------
    Figure
        AUROC of all cells, still open.
    """
    path = Path(folder) / "ablation.csv"
    write_text(path, csv_text(table))
    fig = plots.rate_maps(panels(table), title=finding(table))
    told = {**provenance, "csv": {path.name: checksum(path)}}
    figures.save(fig, "ablation", folder, told)
    return fig
