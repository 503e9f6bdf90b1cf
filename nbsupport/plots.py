"""Figures made of numbers: trainings, attacks, scores and rates."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple

from nbsupport import metrics
from nbsupport.figures import (
    CLEAN,
    LOOKS,
    PALETTE,
    POISONED,
    RATES,
    WIDTH,
    as_array,
    headline,
    method_style,
)

__all__ = [
    "class_confusion", "confusion_heatmap", "lloyd_rounds", "per_class_bars", "rate_maps",
    "rates_plot", "relevance_flow", "score_grid", "score_histogram", "scoreboard_bars",
    "strength_plot", "suspicious_classes", "training_curves", "two_checks",
]  # fmt: skip


def training_curves(history: Sequence[Any], *, title: str = "") -> Figure:
    """Plot losses and validation accuracy by epoch.

    Parameters
    ----------
    history : sequence of dataclass or dict
        With ``epoch``, ``loss``, ``validation_loss`` and ``validation_accuracy`` (percent).
    """
    table = pd.DataFrame([asdict(e) if is_dataclass(e) else dict(e) for e in history])
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    headline(fig, title)
    dots = {"marker": "o", "markersize": 4} if len(table) <= 30 else {}
    purple = PALETTE[4]  # blue and orange belong to methods
    left.plot(table["epoch"], table["loss"], color="0.4", label="training (augmented)", **dots)
    left.plot(
        table["epoch"], table["validation_loss"], "--", color=purple, label="validation", **dots
    )
    best = table["validation_loss"].idxmin()
    left.axvline(table["epoch"][best], color="0.6", linewidth=1, zorder=0)
    left.annotate(
        "lowest", (table["epoch"][best], 1), xycoords=("data", "axes fraction"), fontsize=8,
        color="0.4", xytext=(-3, -3), textcoords="offset points", ha="right", va="top",
    )  # fmt: skip
    left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    left.yaxis.set_major_formatter(plt.FormatStrFormatter("%g"))
    left.legend()
    right.plot(table["epoch"], table["validation_accuracy"], color=purple, **dots)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def confusion_heatmap(detections: Mapping[str, Any], *, title: str = "") -> Figure:
    """Draw the confusion counts of methods side by side, coloured by share of the true kind.

    Four methods stand in a row, so that their counts stay readable.

    Parameters
    ----------
    detections : mapping
        Method -> counts with ``tp``, ``fn``, ``tn`` and ``fp`` (`metrics.Confusion`).
    title : str
        Finding.
    """
    n = len(detections)
    columns = min(4, n)
    rows = math.ceil(n / columns)
    fig, axes = plt.subplots(
        rows, columns, squeeze=False, sharex=True, sharey=True,
        figsize=(min(WIDTH, 2.1 * columns + 0.8), 2.3 * rows + 0.2 + 0.3 * bool(title)),
    )  # fmt: skip
    headline(fig, title)
    for ax in axes.flat[n:]:
        ax.remove()
    for ax, (method, counts) in zip(axes.flat, detections.items(), strict=False):
        table = np.array([[counts.tn, counts.fp], [counts.fn, counts.tp]])
        total = table.sum(1, keepdims=True)
        share = np.divide(100 * table, total, out=np.full(table.shape, np.nan), where=total > 0)
        text = np.array(
            [
                f"{k:,}" if math.isnan(p) else f"{k:,}\n{p:.2f} %"
                for k, p in zip(table.flat, share.flat, strict=True)
            ]
        )
        sns.heatmap(
            np.nan_to_num(share), ax=ax, annot=text.reshape(2, 2), fmt="", cmap="Blues",
            vmin=0, vmax=100, cbar=False, square=True, linewidths=1, annot_kws={"fontsize": 9},
            xticklabels=["kept", "flagged"], yticklabels=["clean", "poisoned"],
        )  # fmt: skip
        ax.set_title(textwrap.fill(method_style(method).label, 20), fontsize=10, loc="center")
        # Shared axes name the columns below the last row only, where a short row has none.
        ax.tick_params(length=0, labelbottom=True)
    return fig


def class_confusion(confusion, *, title: str = "") -> Figure:
    """Draw which class is read as which, as a share of the class shown, on a logarithmic scale.

    Parameters
    ----------
    confusion : array, shape (n_classes, n_classes)
        Images by true (row) and predicted class (column).
    """
    counts = as_array(confusion)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fig, ax = plt.subplots(figsize=(6.4, 5.4))
    headline(fig, title)
    # One image in a thousand shall be seen beside the diagonal; white is none at all.
    shown = np.where(share > 0, share, np.nan)
    drawn = ax.imshow(shown, cmap="viridis_r", norm=LogNorm(0.1, 100, clip=True))
    ax.grid(False)
    every = np.arange(0, len(counts), 3)
    ax.set(xlabel="read as class", ylabel="class shown", xticks=every, yticks=every)
    ax.tick_params(labelsize=8)
    bar = fig.colorbar(drawn, ax=ax, shrink=0.9, ticks=[0.1, 1, 10, 100], format="%g")
    bar.set_label("test images of the class (%)", fontsize=9)
    bar.outline.set_visible(False)
    return fig


def rates_plot(
    results: pd.DataFrame,
    *,
    by: str = "scenario",
    order: Iterable[str] = (),
    rates: Sequence[str] = ("acc", "tpr", "tnr"),
    reference: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Plot detection rates of all methods with Wilson intervals, one panel per rate.

    Parameters
    ----------
    results : DataFrame
        Rows of figures/results.csv: ``method``, ``n_tp``, ``n_fn``, ``n_tn``, ``n_fp`` and the
        column ``by``. Runs of the same ``by`` and method are taken
        together (`metrics.pooled`).
    by : str
        Column whose values stand on the vertical axis, in their order.
    order : iterable of str, optional
        Another order of these values; it may hold more.
    rates : sequence of str
        Of "acc", "tpr" and "tnr".
    reference : DataFrame, optional
        Printed rates by method and ``by`` (`paper.TABLES`), drawn as hollow markers; rows
        that are not ``valid`` are left out.
    title : str
        Finding.
    """
    groups, methods = list(dict.fromkeys(results[by])), list(dict.fromkeys(results["method"]))
    groups = [group for group in order if group in groups] or groups
    if reference is not None and "valid" in reference:
        reference = reference[reference["valid"]]
    lowest, labelled = 100.0, {}
    step = 0.8 / len(methods)
    fig, axes = plt.subplots(
        1, len(rates), sharey=True, squeeze=False,
        figsize=(WIDTH, 1.5 + len(groups) * max(0.45, 0.2 * len(methods))),
    )  # fmt: skip
    headline(fig, title)
    for ax, rate in zip(axes[0], rates, strict=True):
        for i, method in enumerate(methods):
            style, offset = method_style(method), (i - (len(methods) - 1) / 2) * step
            for y, group in enumerate(groups):
                chosen = results[(results[by] == group) & (results["method"] == method)]
                if len(chosen):
                    sizes = [metrics.hits(run, rate)[1] for run in chosen.to_dict("records")]
                    interval = metrics.pooled(chosen[rate], sizes)
                    lowest = np.nanmin([lowest, interval.low])
                    labelled[style.label] = ax.errorbar(
                        interval.estimate, y + offset, fmt=style.marker, color=style.color,
                        xerr=[[interval.estimate - interval.low],
                              [interval.high - interval.estimate]],
                        markersize=6, capsize=2.5, elinewidth=1.5,
                    )  # fmt: skip
                if reference is not None:
                    printed = reference[(reference[by] == group) & (reference["method"] == method)]
                    lowest = np.nanmin([lowest, *printed[rate]])
                    ax.scatter(
                        printed[rate], [y + offset] * len(printed), s=60, marker=style.marker,
                        facecolors="none", edgecolors="0.15", linewidths=1, zorder=3,
                    )  # fmt: skip
        ax.set(xlabel=RATES[rate])
        ax.grid(axis="y", visible=False)
        for y in range(1, len(groups)):
            ax.axhline(y - 0.5, color="0.9", linewidth=0.8, zorder=0)
    axes[0, 0].set(yticks=range(len(groups)), yticklabels=groups, ylim=(len(groups) - 0.5, -0.5))
    # One scale for all panels; it starts where the data do, for most of the interest is near 100.
    start = 10 * math.floor(lowest / 10)
    for ax in axes[0]:
        ax.set_xlim(start - 0.04 * (100 - start), 100 + 0.04 * (100 - start))
    if reference is not None:
        # Of whatever shape: one empty marker of each kind.
        empty = [plt.Line2D([], [], ls="", marker=m, mfc="none", mec="0.15") for m in "so"]
        labelled["hollow: printed"] = tuple(empty)
    fig.legend(
        labelled.values(), labelled, loc="outside lower center", frameon=False,
        ncols=min(3, len(labelled)), handler_map={tuple: HandlerTuple(None)},
    )  # fmt: skip
    return fig


def rate_maps(
    panels: Mapping[str, pd.DataFrame], *, label: str = "AUROC (%)", title: str = ""
) -> Figure:
    """Draw tables of rates as coloured cells, one panel a table; 50 %, which is chance, is white.

    Parameters
    ----------
    panels : mapping
        Title of a panel -> rates in percent, a row each, with columns of two levels: groups, drawn
        apart from each other, and what is in them. NaN is a cell that was left out. All tables
        have the same columns.
    label : str
        Name of the rate, with its unit.
    title : str
        Finding.
    """
    rows = [len(table) for table in panels.values()]
    columns = next(iter(panels.values())).columns
    groups = columns.get_level_values(0)
    starts = [i for i in range(len(groups)) if i == 0 or groups[i] != groups[i - 1]]
    fig, axes = plt.subplots(
        len(panels), 1, figsize=(WIDTH, 1.9 + sum(0.24 * n + 0.25 for n in rows)), sharex=True,
        squeeze=False, height_ratios=rows,
    )  # fmt: skip
    headline(fig, title)
    for ax, (name, table) in zip(axes[:, 0], panels.items(), strict=True):
        rates = table.to_numpy(dtype=float)
        ax.set_facecolor("0.9")
        drawn = ax.imshow(rates, cmap="PuOr", vmin=0, vmax=100, aspect="auto")
        for (y, x), rate in np.ndenumerate(rates):
            text, dark = ("·", False) if math.isnan(rate) else (f"{rate:.0f}", abs(rate - 50) > 35)
            ax.text(x, y, text, ha="center", va="center", fontsize=7, color="w" if dark else "0.1")
        ax.set_title(name, fontsize=9)
        ax.set(yticks=range(len(table)), yticklabels=table.index)
        ax.tick_params(labelsize=8, length=0)
        ax.grid(False)
        for start in starts[1:]:
            ax.axvline(start - 0.5, color="0.2", linewidth=1.2)
    last = axes[-1, 0]
    last.set_xticks(range(len(columns)), columns.get_level_values(1), rotation=90, fontsize=8)
    ends = [*starts[1:], len(groups)]
    for start, end in zip(starts, ends, strict=True):
        name = textwrap.fill(groups[start], max(9, 5 * (end - start)))
        last.annotate(
            name, ((start + end - 1) / 2, 0), (0, -52), ha="center", va="top",
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    bar = fig.colorbar(drawn, ax=axes[:, 0], shrink=0.6, pad=0.01, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return fig


def per_class_bars(
    rates: Mapping[str, Sequence[float]],
    *,
    reference: Mapping[str, Sequence[float]] | None = None,
    target: int = 5,
    title: str = "",
    label: str = "sent to the target class (%)",
    classes: str = "class of the image that carries the trigger",
) -> Figure:
    """Draw a rate of every class, one panel per attack: its success (Fig. 6) unless said otherwise.

    Parameters
    ----------
    rates : mapping
        Name of the attack -> rate in percent of each class (NaN or None for the target).
    reference : mapping, optional
        The same from elsewhere, for some of the attacks: drawn as hollow markers.
    target : int
        Target class, marked on the axis.
    title : str
        Finding of the whole figure.
    label, classes : str
        What the rate and the classes are.
    """
    fig, axes = plt.subplots(
        len(rates), 1, sharex=True, sharey=True, squeeze=False,
        figsize=(WIDTH, 1.0 + 1.5 * len(rates)),
    )  # fmt: skip
    headline(fig, title)
    for ax, (name, values) in zip(axes[:, 0], rates.items(), strict=True):
        values = np.array([np.nan if v is None else v for v in values], dtype=float)
        numbers = np.arange(len(values))
        ax.bar(numbers, values, color=PALETTE[9], width=0.8)
        ax.axhline(np.nanmean(values), color="0.25", linewidth=1.2, linestyle="--")
        theirs = np.array((reference or {}).get(name, []), dtype=float)
        printed = f" (printed: {np.nanmean(theirs):.2f} %)" if len(theirs) else ""
        ax.scatter(
            np.arange(len(theirs)), theirs, s=18, facecolors="none", edgecolors="0.15", zorder=3
        )
        ax.set_title(f"{name}: mean {np.nanmean(values):.2f} %{printed}", fontsize=10)
        ax.text(
            target, 4, "target", rotation=90, ha="center", va="bottom", fontsize=7, color="0.4",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
        ax.grid(axis="x", visible=False)
        ax.set(ylim=(0, 104), yticks=(0, 50, 100), xlim=(-0.8, len(values) - 0.2))
    axes[-1, 0].set(xlabel=classes, xticks=numbers)
    axes[-1, 0].tick_params(axis="x", labelsize=7)
    fig.supylabel(textwrap.fill(label, 24 * len(rates)), fontsize=10)
    return fig


def strength_plot(
    results: pd.DataFrame, *, reference: pd.DataFrame | None = None, title: str = ""
) -> Figure:
    """Plot how well attacks work against the number of poisoned images.

    Parameters
    ----------
    results : DataFrame
        One row a run: ``kind`` (name in the legend), ``n_poisoned``, ``rate`` in percent, and the
        interval ``low`` to ``high`` (NaN where there is none).
    reference : DataFrame, optional
        Printed results with ``kind``, ``n_poisoned`` and ``rate``, drawn as hollow markers.
    title : str
        Finding.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.6))
    headline(fig, title)
    for i, (kind, runs) in enumerate(results.groupby("kind", sort=False)):
        # Once all are used, markers meet other colours: 36 kinds can be told apart.
        marker, color = LOOKS[i % len(LOOKS)][0], LOOKS[(i + i // len(LOOKS)) % len(LOOKS)][1]
        below, above = runs["rate"] - runs["low"], runs["high"] - runs["rate"]
        ax.errorbar(
            runs["n_poisoned"], runs["rate"], yerr=[below.fillna(0), above.fillna(0)], fmt=marker,
            color=color, markersize=7, capsize=2.5, elinewidth=1.2, label=kind,
        )  # fmt: skip
    for i, (kind, runs) in enumerate(() if reference is None else reference.groupby("kind")):
        ax.scatter(
            runs["n_poisoned"], runs["rate"], s=45, marker=LOOKS[-1 - i][0], facecolors="none",
            edgecolors="0.35", label=kind,
        )  # fmt: skip
    # Linear up to one image, so that an attack with none has a place on the axis.
    ax.set_xscale("symlog", linthresh=1)
    ax.xaxis.set_major_formatter(plt.FormatStrFormatter("%g"))
    ax.set(
        xlabel="poisoned training images", ylabel="triggered images\nread as the target (%)",
        xlim=(-0.3, None), ylim=(-3, 104),
    )  # fmt: skip
    fig.legend(loc="outside lower center", frameon=False, ncols=2)
    return fig


def relevance_flow(sums: Mapping[str, Sequence[Any]], *, title: str = "") -> Figure:
    """Plot how much relevance is left behind each block of the network, from the logit down.

    Parameters
    ----------
    sums : mapping
        Name of the composite -> records of `lrp.per_layer_conservation` or dicts of them.
    title : str
        Finding.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.8))
    headline(fig, title)
    for i, (name, records) in enumerate(sums.items()):
        marker, color = LOOKS[i % len(LOOKS)]
        table = pd.DataFrame([asdict(r) if is_dataclass(r) else dict(r) for r in records])
        block = table["layer"].str.partition(".")[0]
        # The branches of a block are one step: their sum is what is on its way.
        left = table["total"].groupby(block, sort=False).last() / table["received"].iloc[0]
        ax.plot(
            ["logit", *left.index], [1, *left], marker=marker, color=color, label=name,
            # Thick below, thin above: composites that agree stay visible.
            markersize=8 - i, linewidth=max(1, 3.2 - 0.6 * i),
        )  # fmt: skip
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    ax.set(
        xlabel="blocks of the network, passed from left to right",
        ylabel="relevance left (share of the logit)",
    )
    ax.tick_params(axis="x", labelrotation=45, labelsize=8)
    ax.margins(x=0.02)
    fig.legend(loc="outside right upper", frameon=False)
    return fig


def score_histogram(
    scores,
    truth,
    *,
    label: str = "suspicion score",
    title: str = "",
) -> Figure:
    """Draw the scores of clean and poisoned images on one axis, counts on a logarithmic one.

    Parameters
    ----------
    scores : array, shape (n,)
        Higher is more suspicious.
    truth : array of bool, shape (n,)
        Whether each image is poisoned.
    label : str
        Name of the score, with its unit.
    title : str
        Finding.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2))
    headline(fig, title)
    _draw_scores(ax, scores, truth)
    ax.set(xlabel=label, ylabel="images")
    fig.legend(loc="outside right upper", frameon=False)
    return fig


def score_grid(
    runs: Mapping[str, Mapping[str, Any]], methods: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw the scores of some methods on some runs, each on an axis of its own.

    Parameters
    ----------
    runs : mapping
        By name of the run: arrays ``truth`` and ``<method>_score``, shape (n,), as in the payload
        of its detection.
    methods : sequence of str
        The columns of the grid.
    title : str
        Finding.
    """
    fig, axes = plt.subplots(
        len(runs), len(methods), squeeze=False, figsize=(WIDTH, 2.2 * len(runs) + 0.4)
    )
    headline(fig, title)
    for line, (name, found) in zip(axes, runs.items(), strict=True):
        for ax, method in zip(line, methods, strict=True):
            _draw_scores(ax, found[f"{method}_score"], found["truth"])
            ax.set(title=f"{method_style(method).label}\n{name}", xlabel="score")
            ax.legend(frameon=False, fontsize="small")
        line[0].set_ylabel("images")
    return fig


def _draw_scores(ax: Axes, scores, truth) -> None:
    """Histograms of clean and poisoned images over the same bins."""
    scores, truth = as_array(scores), as_array(truth).astype(bool)
    edges = np.histogram_bin_edges(scores, 40)
    kinds = (("clean", ~truth, CLEAN, None), ("poisoned", truth, POISONED, "///"))
    for name, chosen, color, hatch in kinds:
        ax.hist(
            scores[chosen], edges, label=f"{name} (n = {chosen.sum():,})", color=color, alpha=0.45,
            hatch=hatch, histtype="stepfilled", edgecolor=color, linewidth=1.3,
        )  # fmt: skip
    ax.set(yscale="log", ylim=(0.6, None))
    ax.yaxis.set_major_formatter(plt.FormatStrFormatter("%g"))


def lloyd_rounds(
    moments, steps: Mapping[int, Any], *, colors: Sequence[str] = ("C0", "C1")
) -> Figure:
    """Draw the rounds of 2-means over heatmaps, by mean and spread of their distances.

    Parameters
    ----------
    moments : distances.DistanceMoments
        Mean and mean square of the distances between relevant pixels of each map.
    steps : mapping
        By number of rounds, in order and from 0: what `barycentres` found until then, with
        ``labels``, ``centres`` and ``inertia``.
    colors : sequence of 2 colours
        Of the groups.
    """
    places = np.stack([moments.mean, np.sqrt(moments.second - moments.mean**2)])
    rows = math.ceil(len(steps) / 3)
    fig, axes = plt.subplots(
        rows, 3, figsize=(WIDTH, 2.5 * rows), sharex=True, sharey=True, squeeze=False
    )
    before = next(iter(steps.values())).labels
    for ax, (count, step) in zip(axes.flat, steps.items(), strict=False):
        for k, centre in enumerate(step.centres):
            ax.scatter(*places[:, step.labels == k], s=10, color=colors[k])
            ax.plot(centre.mean(), centre.std(), "*", ms=14, color=colors[k], mec="black")
        ax.scatter(*places[:, step.labels != before], s=40, fc="none", ec="0.2", lw=0.8)
        sizes, before = np.bincount(step.labels, minlength=2), step.labels
        ax.set_title(f"round {count}: {sizes[0]} + {sizes[1]}, sum {step.inertia:.3f}")
    for ax in axes.flat[len(steps) :]:
        ax.remove()
    fig.supxlabel("mean distance of two relevant pixels / diameter", fontsize=10)
    fig.supylabel("standard deviation", fontsize=10)
    return fig


def suspicious_classes(scans: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the candidates of each class, most suspicious first, a row of bars a network.

    Parameters
    ----------
    scans : mapping
        By name of the network: one row a class with ``label``, ``present``, ``share`` and
        ``limit`` (what the evidence of single images needs), in percent. Limits above 100 are not
        drawn: so few images cannot be called poisoned by evidence.
    """
    fig, axes = plt.subplots(
        len(scans), 1, squeeze=False, sharey=True, figsize=(WIDTH, 0.5 + 2.3 * len(scans))
    )
    for ax, (name, ranked) in zip(axes[:, 0], scans.items(), strict=True):
        spots, named = np.arange(len(ranked)), ranked["present"].to_numpy()
        for some, color, hatch in ((named, POISONED, "//"), (~named, CLEAN, "")):
            ax.bar(spots[some], ranked["share"][some], color=color, hatch=hatch)
        limit = ranked["limit"].where(ranked["limit"] <= 100)
        ax.plot(spots, limit, "_", color="0.15", label="needed, evidence alone")
        said = ", ".join(map(str, ranked["label"][named])) or "no class"
        verb = "are" if named.sum() > 1 else "is"
        ax.set(title=f"{name}: {said} {verb} called poisoned", ylabel="candidates (%)")
        ax.set_xticks(spots, ranked["label"], fontsize=7, rotation=90)
        ax.margins(x=0.01)
        ax.grid(axis="x", visible=False)
    axes[0, 0].legend(frameon=False)
    axes[-1, 0].set_xlabel("class, most suspicious first")
    return fig


def two_checks(scans: Mapping[str, pd.DataFrame], alarm: float) -> Figure:
    """Set the first check of each class, Activation Clustering, against the second.

    Parameters
    ----------
    scans : mapping
        By name of the network: one row a class with ``label``, ``present``, ``share`` (percent),
        ``n_class`` and ``first_share`` (smaller group of Activation Clustering, in [0, 0.5]).
    alarm : float
        The first check rings where the smaller group is below this share.
    """
    fig, axes = plt.subplots(1, len(scans), squeeze=False, sharey=True, figsize=(WIDTH, 3.4))
    for ax, (name, ranked) in zip(axes[0], scans.items(), strict=True):
        x, named = 100 * ranked["first_share"], ranked["present"]
        for some, color, marker in ((~named, CLEAN, "o"), (named, POISONED, "D")):
            ax.scatter(x[some], ranked["share"][some], color=color, marker=marker, s=26)
        for k in np.flatnonzero(named):
            ax.annotate(f" {ranked['label'].iloc[k]}", (x.iloc[k], ranked["share"].iloc[k]))
        ax.axvline(100 * alarm, color="0.3", ls="--")
        rung = ranked["first_share"] < alarm
        work = 100 * ranked["n_class"][rung].sum() / ranked["n_class"].sum()
        ax.set_title(f"{name}\n{rung.sum()} of {len(ranked)} ring, {work:.0f} % of the images")
        ax.set(xlabel="smaller group of Activation Clustering (%)", xlim=(-2, 52))
    axes[0, 0].set(ylabel="candidates (%)", ylim=(-1, None))
    return fig


def scoreboard_bars(board: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw how many printed cells each method meets, one bar per method.

    Parameters
    ----------
    board : DataFrame
        From `tables.scoreboard`: ``method``, ``cells`` and a column per verdict.
    title : str
        Finding.
    """
    looks = {
        "better": (PALETTE[0], ""),
        "within": (PALETTE[9], "//"),
        "open": (PALETTE[8], "\\\\"),
        "worse": (PALETTE[1], "xx"),
        "weak": ("0.6", ".."),
        "missing": ("0.85", ""),
        "no value": ("white", ""),
    }
    fig, ax = plt.subplots(figsize=(WIDTH, 1.3 + 0.42 * len(board)))
    headline(fig, title)
    labels = [
        "attack success" if name == "attack" else method_style(name).label
        for name in board["method"]
    ]
    start = np.zeros(len(board))
    for verdict, (color, hatch) in looks.items():
        counts = board[verdict].to_numpy()
        if counts.any():
            bars = ax.barh(
                labels, counts, left=start, color=color, hatch=hatch, edgecolor="0.25",
                linewidth=0.6, label=verdict,
            )  # fmt: skip
            ax.bar_label(
                bars, [str(n) if n else "" for n in counts], label_type="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )  # fmt: skip
        start = start + counts
    for patch in ax.texts:
        patch.get_bbox_patch().set_visible(bool(patch.get_text()))
    ax.set(xlabel="printed cells")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside lower center", ncols=7, frameon=False)
    return fig
