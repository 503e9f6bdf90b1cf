"""One look for all figures: theme, method styles, saving, showing, and the recurring plots.

Every plot returns its figure, takes a title that states the finding, and leaves it to the caller
to `show` (with alternative text) and to `save`. Torch tensors and NumPy arrays are both welcome.
Rates are in percent.
"""

import base64
import io
import json
import math
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nbsupport import ROOT, metrics, paper
from nbsupport.artifacts import atomic, checksum, code_version

__all__ = [
    "CLEAN", "METHOD_STYLE", "POISONED", "RATES", "Style", "captioned", "class_confusion",
    "comparison", "confusion_heatmap", "contact_sheet", "coupling_lines", "evidence", "image_grid",
    "lloyd_rounds", "method_style", "per_class_bars", "picture_rows", "pixel_maps", "rate_maps",
    "rates_plot", "relevance_flow", "results_table", "save", "score_grid", "score_histogram",
    "scoreboard_bars", "show", "strength_plot", "suspicious_classes", "training_curves",
    "two_checks", "use_theme",
]  # fmt: skip

WIDTH = 8.5
"""Width of a notebook's column in inches."""

_PALETTE = sns.color_palette("colorblind").as_hex()
CLEAN, POISONED = _PALETTE[2], "#a3123a"
"""Colours of clean and poisoned images; no method has them."""

_LOOKS = (
    ("o", _PALETTE[4]), ("s", "0.25"), ("D", "#b58900"), ("^", "#1b7f8c"), ("v", "#7a3b00"),
    ("P", "0.55"),
)  # fmt: skip
"""Markers and colours of series that are no methods: rules of relevance, kinds of attacks."""

RATES = {
    "acc": "accuracy (%)",
    "tpr": "true positive rate (%)",
    "tnr": "true negative rate (%)",
    "asr": "attack success rate (%)",
    "masr": "mean attack success rate (%)",
}
"""Axis labels by column of figures/results.csv."""


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure: never by colour alone."""

    label: str
    color: str
    marker: str


METHOD_STYLE = {
    "raw": Style("raw images", _PALETTE[7], "X"),
    "raw_pca": Style("raw images, PCA", _PALETTE[7], "X"),
    "raw_fastica": Style("raw images, FastICA", "#5f5f5f", "P"),
    "activation": Style("Activation Clustering", _PALETTE[1], "s"),
    "activation_logits": Style("activations, logits", _PALETTE[5], "v"),
    "heatmap": Style("Heatmap Clustering", _PALETTE[0], "o"),
    "heatmap_euclidean": Style("heatmaps, Euclidean", _PALETTE[9], "D"),
    "mixture": Style("distance mixture", "#5b2a86", "*"),
    "heatmap_sliced": Style("heatmaps, sliced Wasserstein", "#805500", "h"),
    "spray": Style("SpRAy", _PALETTE[6], "p"),
    "spectral": Style("Spectral Signatures", _PALETTE[4], "^"),
    "poison_detector": Style("PoisonDetector", "#14532d", "d"),
}
"""The fixed style of each method; `method_style` also answers for others."""


def method_style(method: str) -> Style:
    """Look up a method's style; one without a fixed style gets one from its name, always the same.

    Two such methods may share a colour or a marker: give those that meet in a figure a fixed one.
    """
    if method in METHOD_STYLE:
        return METHOD_STYLE[method]
    spare = [
        (color, marker) for marker in "<>ph" for color in (_PALETTE[6], _PALETTE[8], "#805500")
    ]
    color, marker = spare[zlib.crc32(method.encode()) % len(spare)]
    return Style(method.replace("_", " "), color, marker)


def use_theme() -> None:
    """Set the look of all figures that follow."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.constrained_layout.use": True,
            "figure.figsize": (WIDTH, 4.0),
            "savefig.dpi": 200,
            "pdf.fonttype": 42,
            "svg.hashsalt": "nbsupport",
            # Ships with matplotlib, so that a figure has the same size on every machine.
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 10,
            "axes.labelsize": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "figure.titlesize": 12,
            "legend.fontsize": 9,
            "legend.title_fontsize": 9,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "image.interpolation": "nearest",
            "image.cmap": "viridis",
        },
    )


def save(
    fig: Figure,
    name: str,
    folder: str | Path = "figures",
    provenance: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a figure as PDF and PNG, and what it was made from beside them.

    The files carry no date: the same figure gives the same bytes.

    Parameters
    ----------
    fig : Figure
        Figure to write; it stays open.
    name : str
        Stem of the files, such as "fig4_heatmaps".
    folder : str or Path
        Where to; relative to the repository.
    provenance : mapping, optional
        What it was made from (JSON types): scenarios, checksums of artefacts, parameters.

    Returns
    -------
    list of Path
        The PDF, the PNG and, with a provenance, the JSON.

    Raises
    ------
    ValueError
        If the name is no plain file stem.
    """
    if not name or Path(name).name != name or "." in name:
        raise ValueError(f"{name!r} is no file stem; expected one such as 'fig4_heatmaps'")
    folder = ROOT / folder
    folder.mkdir(parents=True, exist_ok=True)
    undated = {"pdf": {"CreationDate": None, "ModDate": None}, "png": {"Software": None}}
    paths = []
    for kind, details in undated.items():
        paths.append(folder / f"{name}.{kind}")
        with atomic(paths[-1]) as temporary:
            fig.savefig(temporary, metadata=details, bbox_inches="tight")
    if provenance is not None:
        body = {
            "figure": name,
            "files": {path.name: checksum(path) for path in paths},
            "code": code_version(),
            **provenance,
        }
        paths.append(folder / f"{name}.json")
        with atomic(paths[-1]) as temporary:
            temporary.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
    return paths


def show(fig: Figure, alt: str) -> None:
    """Display a figure with its alternative text, repeat the text as caption, and close it.

    Parameters
    ----------
    fig : Figure
        Figure to show; closed afterwards, so that no notebook shows it twice.
    alt : str
        One or two sentences that say what is to be seen, for readers who cannot see it.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    alt = " ".join(alt.split())
    if not alt:
        raise ValueError("alt is empty; say in a sentence what the figure shows")
    if get_ipython() is not None:
        # Rendered here and not by the kernel's formatter, which not every back end installs.
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        png = buffer.getvalue()
        # Bytes 16 to 19 of a PNG hold its width; a page has 96 pixels an inch.
        details = {"alt": alt, "width": int.from_bytes(png[16:20], "big") * 96 // 150}
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
        display(data, metadata={"image/png": details}, raw=True)
        display({"text/markdown": f"*{alt}*", "text/plain": alt}, raw=True)
    plt.close(fig)


def image_grid(
    images,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    title: str = "",
    boxes: Sequence[tuple[int, int, int, int] | None] | None = None,
) -> Figure:
    """Show images side by side, each pixel a square.

    Parameters
    ----------
    images : array or Tensor, shape (n, 3, H, W)
        uint8, or float in [0, 1].
    titles : sequence of str, optional
        One per image.
    columns : int
        Images per row, at most.
    title : str
        Finding of the whole figure.
    boxes : sequence, optional
        (x, y, width, height) in pixels to outline on each image, or None: a sticker, say.
    """
    images = _rgb(images)
    fig, axes = _grid(len(images), columns, title, titles)
    for i, (ax, image) in enumerate(zip(axes, images, strict=False)):
        ax.imshow(image)
        if boxes is not None and boxes[i] is not None:
            _outline(ax, boxes[i])
    return fig


def evidence(
    images, heatmaps, kept=None, *, titles: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Show images, their heatmaps and the kept pixels, one column per image (Figs. 3 and 4).

    Parameters
    ----------
    images : array or Tensor, shape (n, 3, H, W)
        uint8, or float in [0, 1].
    heatmaps : array or Tensor, shape (n, H, W)
        Relevance per pixel.
    kept : array or Tensor of bool, shape (n, H, W), optional
        Pixels that form the point clouds.
    titles : sequence of str, optional
        One per image.
    title : str
        Finding of the whole figure.
    """
    images, heatmaps = _rgb(images), _scaled(heatmaps)
    n, names = len(images), ["image", "relevance", "pixels kept"][: 2 if kept is None else 3]
    side = min(2.0, (WIDTH - 1.2) / n)
    fig, axes = plt.subplots(
        len(names), n, squeeze=False,
        figsize=(n * side + 1.2, len(names) * side + 0.3 + 0.35 * bool(title)),
    )  # fmt: skip
    _suptitle(fig, title)
    for i in range(n):
        axes[0, i].imshow(images[i])
        drawn = axes[1, i].imshow(heatmaps[i], cmap="RdBu_r", norm=CenteredNorm(halfrange=1))
        if kept is not None:
            mask = _array(kept[i]).astype(bool)
            axes[2, i].imshow(np.where(mask, 1.0, np.nan), cmap="Blues_r", vmin=0.5, vmax=2)
            axes[2, i].set_xlabel(f"{mask.sum()} pixels", fontsize=8)
        axes[0, i].set_title(titles[i] if titles else "", fontsize=9, loc="center")
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(name)
        for ax in row:
            ax.grid(False)
            ax.set(xticks=[], yticks=[])
    _relevance_bar(fig, drawn, shrink=0.8 / len(names))
    return fig


def picture_rows(
    rows: Mapping[str, Any], columns: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """Set rows of images and of heatmaps below each other: one column a motif, one row a view.

    Parameters
    ----------
    rows : mapping
        Name of the row -> images, shape (n, 3, H, W), or heatmaps, shape (n, H, W); n is the same
        for all. Each heatmap is scaled by its own largest magnitude.
    columns : sequence of str, optional
        Names above the n columns.
    title : str
        Finding of the whole figure.

    Raises
    ------
    ValueError
        If the rows differ in length.
    """
    lengths = {name: len(pictures) for name, pictures in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"rows have {lengths} pictures; all rows need the same number")
    n = next(iter(lengths.values()))
    side = min(1.5, (WIDTH - 1.4) / n)
    heads = max((str(head).count("\n") + 1 for head in columns or []), default=0)
    fig, axes = plt.subplots(
        len(rows), n, squeeze=False,
        figsize=(n * side + 1.4, len(rows) * (side + 0.06) + 0.2 * heads + 0.4 * bool(title)),
    )  # fmt: skip
    _suptitle(fig, title)
    drawn = None
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        relevance = _array(pictures).ndim == 3
        shown = _scaled(pictures) if relevance else _rgb(pictures)
        for ax, picture in zip(line, shown, strict=True):
            if relevance:
                drawn = ax.imshow(picture, cmap="RdBu_r", norm=CenteredNorm(halfrange=1))
            else:
                ax.imshow(picture)
            ax.grid(False)
            ax.set(xticks=[], yticks=[])
        # Nine points of DejaVu Sans take about a fifteenth of an inch a letter.
        line[0].set_ylabel(textwrap.fill(name, max(8, int(side * 14))), fontsize=9)
    for ax, head in zip(axes[0], columns or [], strict=False):
        ax.set_title(head, fontsize=9, loc="center", pad=3)
    if drawn is not None:
        _relevance_bar(fig, drawn, shrink=min(0.9, 1.6 / len(rows)))
    return fig


def pixel_maps(
    maps: Mapping[str, Any],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    step: int = 1,
    title: str = "",
) -> Figure:
    """Draw a quantity per pixel on axes of rows and columns, one panel a map.

    Parameters
    ----------
    maps : mapping
        Name of the panel -> values, shape (h, w).
    label : str
        What the colours mean, with the unit.
    limits : tuple of float, optional
        Ends of the colour scale of all panels; otherwise each has its own.
    step : int
        Pixels of the image between neighbouring values.
    title : str
        Finding of the whole figure.
    """
    low, high = limits or (None, None)
    width = min(WIDTH, 4.6 * len(maps))
    fig, axes = plt.subplots(
        1, len(maps), squeeze=False, sharey=True,
        figsize=(width, 0.82 * width / len(maps) + 0.35 * bool(title)),
    )  # fmt: skip
    _suptitle(fig, title)
    for ax, (name, values) in zip(axes[0], maps.items(), strict=True):
        values = _array(values)
        h, w = values.shape
        drawn = ax.imshow(
            values, cmap="viridis", vmin=low, vmax=high,
            extent=(-0.5, w * step - 0.5, h * step - 0.5, -0.5),
        )  # fmt: skip
        ax.grid(False)
        ax.set(xlabel="column (pixel)", title=name)
        bar = fig.colorbar(drawn, ax=ax, shrink=0.85)
        bar.set_label(label, fontsize=9)
        bar.outline.set_visible(False)
    axes[0, 0].set_ylabel("row (pixel)")
    return fig


def contact_sheet(images, names: Sequence[str], *, columns: int = 9, title: str = "") -> Figure:
    """Show one image of every class with its number and name (Fig. 5).

    Parameters
    ----------
    images : array or Tensor, shape (n, 3, H, W)
        One image per class.
    names : sequence of str
        Their names, in the order of the class numbers.
    """
    labels = [textwrap.fill(f"{i}  {name}", 17) for i, name in enumerate(names)]
    fig, axes = _grid(len(labels), columns, title, None, extra=0.42)
    for ax, image, label in zip(axes, _rgb(images), labels, strict=False):
        ax.imshow(image)
        ax.set_xlabel(label, fontsize=6.5, labelpad=2)
    return fig


def training_curves(history: Sequence[Any], *, title: str = "") -> Figure:
    """Plot losses and validation accuracy by epoch.

    Parameters
    ----------
    history : sequence of dataclass or dict
        With ``epoch``, ``loss``, ``validation_loss`` and ``validation_accuracy`` (percent).
    """
    table = pd.DataFrame([asdict(e) if is_dataclass(e) else dict(e) for e in history])
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    _suptitle(fig, title)
    dots = {"marker": "o", "markersize": 4} if len(table) <= 30 else {}
    purple = _PALETTE[4]  # blue and orange belong to methods
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
    _suptitle(fig, title)
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
    """Draw which class is read as which, as a share of the images of the class shown.

    Parameters
    ----------
    confusion : array, shape (n_classes, n_classes)
        Images by true (row) and predicted class (column).
    """
    counts = _array(confusion)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fig, ax = plt.subplots(figsize=(6.4, 5.4))
    _suptitle(fig, title)
    drawn = ax.imshow(share, cmap="viridis", vmin=0, vmax=100)
    ax.grid(False)
    every = np.arange(0, len(counts), 3)
    ax.set(xlabel="read as class", ylabel="class shown", xticks=every, yticks=every)
    ax.tick_params(labelsize=8)
    bar = fig.colorbar(drawn, ax=ax, shrink=0.9)
    bar.set_label("test images of the class (%)", fontsize=9)
    bar.outline.set_visible(False)
    return fig


def rates_plot(
    results: pd.DataFrame,
    *,
    by: str = "scenario",
    rates: Sequence[str] = ("acc", "tpr", "tnr"),
    reference: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Plot detection rates of all methods with Wilson intervals, one panel per rate.

    Parameters
    ----------
    results : DataFrame
        Rows of figures/results.csv: ``method``, ``n_tp``, ``n_fn``, ``n_tn``, ``n_fp`` and the
        column ``by``. Runs of the same ``by`` and method are pooled.
    by : str
        Column whose values stand on the vertical axis, in their order.
    rates : sequence of str
        Of "acc", "tpr" and "tnr".
    reference : DataFrame, optional
        Printed rates by method and ``by`` (`paper.reference_rows`), drawn as hollow markers; rows
        that are not ``valid`` are left out.
    title : str
        Finding.
    """
    groups, methods = list(dict.fromkeys(results[by])), list(dict.fromkeys(results["method"]))
    if reference is not None and "valid" in reference:
        reference = reference[reference["valid"]]
    lowest, labelled = 100.0, {}
    step = 0.8 / len(methods)
    fig, axes = plt.subplots(
        1, len(rates), sharey=True, squeeze=False,
        figsize=(WIDTH, 1.5 + len(groups) * max(0.45, 0.2 * len(methods))),
    )  # fmt: skip
    _suptitle(fig, title)
    for ax, rate in zip(axes[0], rates, strict=True):
        for i, method in enumerate(methods):
            style, offset = method_style(method), (i - (len(methods) - 1) / 2) * step
            for y, group in enumerate(groups):
                chosen = results[(results[by] == group) & (results["method"] == method)]
                if len(chosen):
                    interval = metrics.wilson(*_hits(chosen.sum(numeric_only=True), rate))
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
        labelled["printed"] = plt.Line2D([], [], linestyle="", marker="o", mfc="none", mec="0.15")
    fig.legend(
        labelled.values(), labelled, loc="outside lower center", frameon=False,
        ncols=min(4, len(labelled)),
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
    _suptitle(fig, title)
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
    _suptitle(fig, title)
    for ax, (name, values) in zip(axes[:, 0], rates.items(), strict=True):
        values = np.array([np.nan if v is None else v for v in values], dtype=float)
        numbers = np.arange(len(values))
        ax.bar(numbers, values, color=_PALETTE[9], width=0.8)
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
    _suptitle(fig, title)
    for i, (kind, runs) in enumerate(results.groupby("kind", sort=False)):
        marker, color = _LOOKS[i % len(_LOOKS)]
        below, above = runs["rate"] - runs["low"], runs["high"] - runs["rate"]
        ax.errorbar(
            runs["n_poisoned"], runs["rate"], yerr=[below.fillna(0), above.fillna(0)], fmt=marker,
            color=color, markersize=7, capsize=2.5, elinewidth=1.2, label=kind,
        )  # fmt: skip
    for i, (kind, runs) in enumerate(() if reference is None else reference.groupby("kind")):
        ax.scatter(
            runs["n_poisoned"], runs["rate"], s=45, marker=_LOOKS[-1 - i][0], facecolors="none",
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
    _suptitle(fig, title)
    for i, (name, records) in enumerate(sums.items()):
        marker, color = _LOOKS[i % len(_LOOKS)]
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


def coupling_lines(
    images, clouds: Sequence[Any], T, *, names: Sequence[str] = ("", ""), title: str = ""
) -> Figure:
    """Draw which pixels of two images a coupling matches.

    Parameters
    ----------
    images : array or tensor, shape (2, 3, height, width), uint8
        The images that the heatmaps are of.
    clouds : sequence of 2 gw.PointCloud
        Their relevant pixels; drawn as squares, fainter for less relevance.
    T : array, shape (pixels of the first, pixels of the second)
        The coupling; its 60 largest entries become lines, fainter for less mass.
    names : sequence of 2 str
        Written above the images.
    title : str
        Begins the title, which then says how many pixels of the second image one of the first
        meets: the exponential of the mean entropy of the rows.
    """
    T, left = _array(T), images.shape[-1] + 10
    fig, ax = plt.subplots(figsize=(7.5, 3.8))
    spots = []
    for image, cloud, name, start in zip(_rgb(images), clouds, names, (0, left), strict=True):
        height, width = image.shape[:2]
        edges = (start - 0.5, start + width - 0.5, height - 0.5, -0.5)
        ax.imshow(image, extent=edges, alpha=0.45)
        ax.text(start, -1.5, name, fontsize=9)
        spots.append(cloud.pixels[:, ::-1] + (start, 0))
        alpha = 0.2 + 0.75 * cloud.p / cloud.p.max()
        ax.scatter(*spots[-1].T, marker="s", s=32, color="C0", lw=0, alpha=alpha, zorder=3)
    i, j = np.unravel_index(np.argsort(T, axis=None)[-60:], T.shape)
    shades = [(0.1, 0.1, 0.1, 0.8 * share) for share in T[i, j] / T.max()]
    ends = np.stack([spots[0][i], spots[1][j]], axis=1)
    ax.add_collection(LineCollection(ends, colors=shades, lw=1))
    rows = T / T.sum(1, keepdims=True)
    met = np.exp(-np.sum(T * np.log(np.maximum(rows, 1e-12))) / T.sum())
    ax.set(xlim=(-1, left + width), ylim=(height, -4), xticks=[], yticks=[])
    ax.set_title(f"{title}: each pixel meets about {met:.1f} of {T.shape[1]}")
    return fig


def lloyd_rounds(
    moments, steps: Mapping[int, Any], *, colors: Sequence[str] = ("C0", "C1")
) -> Figure:
    """Draw the rounds of 2-means over heatmaps, by mean and spread of their distances.

    Parameters
    ----------
    moments : transport.Moments
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
        ``limit`` (what the evidence of single images needs), in percent.
    """
    fig, axes = plt.subplots(
        len(scans), 1, squeeze=False, sharey=True, figsize=(WIDTH, 0.5 + 2.3 * len(scans))
    )
    for ax, (name, ranked) in zip(axes[:, 0], scans.items(), strict=True):
        spots, named = np.arange(len(ranked)), ranked["present"].to_numpy()
        for some, color, hatch in ((named, POISONED, "//"), (~named, CLEAN, "")):
            ax.bar(spots[some], ranked["share"][some], color=color, hatch=hatch)
        ax.plot(spots, ranked["limit"], "_", color="0.15", label="needed, evidence alone")
        said = ", ".join(map(str, ranked["label"][named])) or "no class"
        ax.set(title=f"{name}: {said} is called poisoned", ylabel="candidates (%)")
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
        "better": (_PALETTE[0], ""),
        "within": (_PALETTE[9], "//"),
        "worse": (_PALETTE[1], "xx"),
        "weak": ("0.6", ".."),
        "missing": ("0.85", ""),
        "no value": ("white", ""),
    }
    fig, ax = plt.subplots(figsize=(WIDTH, 1.3 + 0.42 * len(board)))
    _suptitle(fig, title)
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
    fig.legend(loc="outside lower center", ncols=6, frameon=False)
    return fig


def score_histogram(
    scores,
    truth,
    *,
    threshold: float | None = None,
    label: str = "suspicion score",
    bins: int = 40,
    title: str = "",
) -> Figure:
    """Draw the scores of clean and poisoned images on one axis, counts on a logarithmic one.

    Parameters
    ----------
    scores : array, shape (n,)
        Higher is more suspicious.
    truth : array of bool, shape (n,)
        Whether each image is poisoned.
    threshold : float, optional
        Images above it are flagged.
    label : str
        Name of the score, with its unit.
    bins : int
        Bins, shared by both kinds.
    title : str
        Finding.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2))
    _suptitle(fig, title)
    _draw_scores(ax, scores, truth, bins)
    if threshold is not None:
        ax.axvline(threshold, color="0.2", linestyle="--", linewidth=1.2, label="threshold")
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
    _suptitle(fig, title)
    for line, (name, found) in zip(axes, runs.items(), strict=True):
        for ax, method in zip(line, methods, strict=True):
            _draw_scores(ax, found[f"{method}_score"], found["truth"])
            ax.set(title=f"{method_style(method).label}\n{name}", xlabel="score")
            ax.legend(frameon=False, fontsize="small")
        line[0].set_ylabel("images")
    return fig


def _draw_scores(ax: Axes, scores, truth, bins: int = 40) -> None:
    """Histograms of clean and poisoned images over the same bins."""
    scores, truth = _array(scores), _array(truth).astype(bool)
    edges = np.histogram_bin_edges(scores, bins)
    kinds = (("clean", ~truth, CLEAN, None), ("poisoned", truth, POISONED, "///"))
    for name, chosen, color, hatch in kinds:
        ax.hist(
            scores[chosen], edges, label=f"{name} (n = {chosen.sum():,})", color=color, alpha=0.45,
            hatch=hatch, histtype="stepfilled", edgecolor=color, linewidth=1.3,
        )  # fmt: skip
    ax.set(yscale="log", ylim=(0.6, None))
    ax.yaxis.set_major_formatter(plt.FormatStrFormatter("%g"))


def comparison(
    results: pd.DataFrame, *, rates: Sequence[str] = ("acc", "tpr", "tnr")
) -> pd.DataFrame:
    """Set our detection rates beside the paper's.

    Parameters
    ----------
    results : DataFrame
        Rows of figures/results.csv.
    rates : sequence of str
        Of "acc", "tpr" and "tnr".

    Returns
    -------
    DataFrame
        One row per run, method and rate: ``profile`` (if ``results`` has it), ``scenario``,
        ``method``, ``rate``, ``paper`` (NaN without a valid published value), ``ours``,
        ``difference`` in percentage points, ``n`` (images behind our rate), ``low``, ``high``
        (95 % Wilson interval) and ``note`` (id of an erratum about the printed row).
    """
    rows = []
    for result in results.to_dict("records"):
        printed = paper.published(result["scenario"], result["method"])
        for rate in rates:
            k, n = _hits(result, rate)
            interval = metrics.wilson(k, n)
            theirs = printed.comparable(rate) if printed else math.nan
            rows.append(
                {key: result[key] for key in ("profile",) if key in result}
                | {
                    "scenario": result["scenario"],
                    "method": result["method"],
                    "rate": rate,
                    "paper": theirs,
                    "ours": interval.estimate,
                    "difference": interval.estimate - theirs,
                    "n": n,
                    "low": interval.low,
                    "high": interval.high,
                    "note": printed.erratum if printed else "",
                }
            )
    return pd.DataFrame(rows)


def results_table(table: pd.DataFrame, *, caption: str = "") -> "pd.io.formats.style.Styler":
    """Style a `comparison` for reading; ``.data`` of the result is what is shown, as numbers.

    Parameters
    ----------
    table : DataFrame
        From `comparison`; save it as CSV beside the figure.
    caption : str
        Finding.

    Raises
    ------
    ValueError
        If a run, method and rate occurs twice.
    """
    keys = [k for k in ("profile", "scenario", "method", "rate") if k in table]
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise ValueError(f"{len(twice)} rows occur twice, such as {twice.iloc[0][keys].to_dict()}")
    shown = table.assign(
        method=[method_style(m).label for m in table["method"]],
        rate=table["rate"].str.upper(),
    )
    interval = [
        "–" if math.isnan(low) else f"{low:.2f} – {high:.2f}"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    shown.insert(shown.columns.get_loc("low"), "95 % interval", interval)
    shown = shown.drop(columns=["low", "high"]).set_index(keys)

    def colour(value):
        if math.isnan(value) or abs(value) < 0.5:
            return ""
        return f"color: black; background-color: {'#d6e9f5' if value > 0 else '#fbe3d0'}"

    return (
        shown.style.format(
            {"paper": "{:.2f}", "ours": "{:.2f}", "difference": "{:+.2f}", "n": "{:,}"}, na_rep="–"
        )
        .map(colour, subset=["difference"])
        .pipe(captioned, caption)
    )


def captioned(table: "pd.io.formats.style.Styler", caption: str) -> "pd.io.formats.style.Styler":
    """Give a table of a page its caption, and the same marks in the page at every run."""
    text = caption + table.data.to_csv()
    return (
        table.set_caption(caption)
        # Else random: the same table would never give the same page.
        .set_uuid(f"{zlib.crc32(text.encode()):08x}")
        .set_table_styles(
            [
                {"selector": "caption", "props": "text-align: left; font-weight: bold;"},
                {"selector": "th.row_heading", "props": "text-align: left; font-weight: normal;"},
            ]
        )
    )


def _hits(counts: Mapping[str, int], rate: str) -> tuple[int, int]:
    """Hits and images behind a rate."""
    tp, fn, tn, fp = (int(counts[f"n_{name}"]) for name in ("tp", "fn", "tn", "fp"))
    hits = {"acc": (tp + tn, tp + fn + tn + fp), "tpr": (tp, tp + fn), "tnr": (tn, tn + fp)}
    if rate not in hits:
        raise ValueError(f"rate is {rate!r}; choose from 'acc', 'tpr' and 'tnr'")
    return hits[rate]


def _array(values) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def _rgb(images) -> np.ndarray:
    """Bring images to float in [0, 1], shape (n, H, W, 3)."""
    images = _array(images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {images.shape}; expected (n, 3, H, W)")
    images = images.transpose(0, 2, 3, 1)
    return images / 255 if images.dtype == np.uint8 else images.clip(0, 1)


def _scaled(heatmaps) -> np.ndarray:
    """Divide each heatmap by its largest magnitude."""
    heatmaps = _array(heatmaps)
    if heatmaps.ndim != 3:
        raise ValueError(
            f"heatmaps have shape {heatmaps.shape}; expected (n, H, W), summed over channels"
        )
    peak = np.abs(heatmaps).max((1, 2), keepdims=True)
    return heatmaps / np.where(peak > 0, peak, 1)


def _grid(n: int, columns: int, title: str, titles: Sequence[str] | None, extra: float = 0.0):
    """Make empty image axes, in reading order; the unused ones are gone."""
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    side = min(1.6, (WIDTH - 0.6) / columns)
    lines = max((str(t).count("\n") + 1 for t in titles or [] if t), default=0)
    fig, axes = plt.subplots(
        rows, columns, squeeze=False,
        figsize=(columns * side + 0.6, rows * (side + 0.16 * lines + extra) + 0.35 * bool(title)),
    )  # fmt: skip
    _suptitle(fig, title)
    for i, ax in enumerate(axes.flat):
        ax.grid(False)
        ax.set(xticks=[], yticks=[])
        if titles is not None and i < len(titles):
            ax.set_title(titles[i], fontsize=8, loc="center", pad=3)
        if i >= n:
            ax.remove()
    return fig, list(axes.flat)[:n]


def _suptitle(fig: Figure, title: str) -> None:
    """State the finding above a figure, as many lines as it takes."""
    if title:
        # Twelve points of DejaVu Sans bold take about a tenth of an inch a letter.
        lines = textwrap.fill(title, max(20, int(fig.get_figwidth() * 10)))
        fig.suptitle(lines, x=0.01, ha="left", fontweight="bold")


def _outline(ax, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    ax.add_patch(
        Rectangle((x - 1, y - 1), width + 1, height + 1, fill=False, color=_PALETTE[4], lw=1.5)
    )


def _relevance_bar(fig: Figure, drawn, shrink: float = 0.9) -> None:
    bar = fig.colorbar(drawn, ax=fig.axes, shrink=shrink, aspect=20, pad=0.02)
    bar.set_label("scaled relevance", fontsize=8)
    bar.set_ticks([-1, 0, 1])
    bar.outline.set_visible(False)
