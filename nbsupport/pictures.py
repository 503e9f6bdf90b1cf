"""Figures made of images: signs, heatmaps, and what a method sees in them."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from nbsupport.figures import (
    WIDTH,
    as_array,
    headline,
)

__all__ = [
    "contact_sheet", "coupling_lines", "evidence", "image_grid", "picture_rows", "pixel_maps",
]  # fmt: skip


def image_grid(
    images,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 8,
    title: str = "",
) -> Figure:
    """Show images side by side, each pixel a square.

    Parameters
    ----------
    images : array or Tensor, shape (n, c, H, W)
        uint8, or float in [0, 1].
    titles : sequence of str, optional
        One per image.
    columns : int
        Images per row, at most.
    title : str
        Finding of the whole figure.

    Raises
    ------
    ValueError
        If there is not one title for each image.
    """
    images = _rgb(images)
    fig, axes = _grid(len(images), columns, title, titles)
    for ax, image in zip(axes, images, strict=True):
        ax.imshow(image)
    return fig


def evidence(
    images, heatmaps, kept=None, *, titles: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """Show images, their heatmaps and the kept pixels, one column per image (Figs. 3 and 4).

    Parameters
    ----------
    images : array or Tensor, shape (n, c, H, W)
        uint8, or float in [0, 1].
    heatmaps : array or Tensor, shape (n, H, W)
        Relevance per pixel.
    kept : array or Tensor of bool, shape (n, H, W), optional
        Pixels that form the point clouds.
    titles : sequence of str, optional
        One per image.
    title : str
        Finding of the whole figure.

    Raises
    ------
    ValueError
        If there is not one title for each image.
    """
    images, heatmaps = _rgb(images), _scaled(heatmaps)
    n, names = len(images), ["image", "relevance", "pixels kept"][: 2 if kept is None else 3]
    _check_names(titles, n)
    side = min(2.0, (WIDTH - 1.2) / n)
    fig, axes = plt.subplots(
        len(names), n, squeeze=False,
        figsize=(n * side + 1.2, len(names) * side + 0.3 + 0.35 * bool(title)),
    )  # fmt: skip
    headline(fig, title)
    for i in range(n):
        axes[0, i].imshow(images[i])
        drawn = axes[1, i].imshow(heatmaps[i], cmap="RdBu_r", norm=CenteredNorm(halfrange=1))
        if kept is not None:
            mask = as_array(kept[i]).astype(bool)
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
        Name of the row -> images, shape (n, c, H, W), or heatmaps, shape (n, H, W); n is the same
        for all. Each heatmap is scaled by its own largest magnitude.
    columns : sequence of str, optional
        Names above the n columns.
    title : str
        Finding of the whole figure.

    Raises
    ------
    ValueError
        If the rows differ in length, or in number from the names above them.
    """
    lengths = {name: len(pictures) for name, pictures in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"rows have {lengths} pictures; all rows need the same number")
    n = next(iter(lengths.values()))
    _check_names(columns, n)
    side = min(1.5, (WIDTH - 1.4) / n)
    heads = max((str(head).count("\n") + 1 for head in columns or []), default=0)
    fig, axes = plt.subplots(
        len(rows), n, squeeze=False,
        figsize=(n * side + 1.4, len(rows) * (side + 0.06) + 0.2 * heads + 0.4 * bool(title)),
    )  # fmt: skip
    headline(fig, title)
    drawn = None
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        relevance = as_array(pictures).ndim == 3
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
    for ax, head in zip(axes[0], columns or [""] * n, strict=True):
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
    headline(fig, title)
    for ax, (name, values) in zip(axes[0], maps.items(), strict=True):
        values = as_array(values)
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
    images : array or Tensor, shape (n, c, H, W)
        One image per class.
    names : sequence of str
        Their names, in the order of the class numbers.

    Raises
    ------
    ValueError
        If there is not one name for each image.
    """
    _check_names(names, len(images))
    labels = [textwrap.fill(f"{i}  {name}", 17) for i, name in enumerate(names)]
    fig, axes = _grid(len(labels), columns, title, None, extra=0.42)
    for ax, image, label in zip(axes, _rgb(images), labels, strict=True):
        ax.imshow(image)
        ax.set_xlabel(label, fontsize=6.5, labelpad=2)
    return fig


def coupling_lines(
    images, clouds: Sequence[Any], T, *, names: Sequence[str] = ("", ""), title: str = ""
) -> Figure:
    """Draw which pixels of two images a coupling matches.

    Parameters
    ----------
    images : array or tensor, shape (2, c, height, width), uint8
        The images that the heatmaps are of.
    clouds : sequence of 2 gw.PointCloud
        Their relevant pixels; drawn as squares, fainter for less relevance.
    T : array, shape (pixels of the first, pixels of the second)
        The coupling; its 60 largest entries become lines, fainter for less mass.
    names : sequence of 2 str
        Written above the images.
    title : str
        Begins the title, which also says how many pixels of the second image one of the first
        meets: the exponential of the mean entropy of the rows.
    """
    T, left = as_array(T), images.shape[-1] + 10
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
    said = f"each pixel meets about {met:.1f} of {T.shape[1]}"
    ax.set_title(f"{title}: {said}" if title else said)
    return fig


def _rgb(images) -> np.ndarray:
    """Bring images to float in [0, 1], shape (n, H, W, 3)."""
    images = as_array(images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {images.shape}; expected (n, c, H, W), c = 1 or 3")
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1)
    return images / 255 if images.dtype == np.uint8 else images.clip(0, 1)


def _scaled(heatmaps) -> np.ndarray:
    """Divide each heatmap by its largest magnitude."""
    heatmaps = as_array(heatmaps)
    if heatmaps.ndim != 3:
        raise ValueError(
            f"heatmaps have shape {heatmaps.shape}; expected (n, H, W), summed over channels"
        )
    peak = np.abs(heatmaps).max((1, 2), keepdims=True)
    return heatmaps / np.where(peak > 0, peak, 1)


def _grid(n: int, columns: int, title: str, titles: Sequence[str] | None, extra: float = 0.0):
    """Make empty image axes, in reading order; the unused ones are gone."""
    _check_names(titles, n)
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    side = min(1.6, (WIDTH - 0.6) / columns)
    lines = max((str(t).count("\n") + 1 for t in titles or [] if t), default=0)
    fig, axes = plt.subplots(
        rows, columns, squeeze=False,
        figsize=(columns * side + 0.6, rows * (side + 0.16 * lines + extra) + 0.35 * bool(title)),
    )  # fmt: skip
    headline(fig, title)
    for i, ax in enumerate(axes.flat):
        ax.grid(False)
        ax.set(xticks=[], yticks=[])
        if i >= n:
            ax.remove()
        elif titles is not None:
            ax.set_title(titles[i], fontsize=8, loc="center", pad=3)
    return fig, list(axes.flat)[:n]


def _check_names(names: Sequence[str] | None, n: int) -> None:
    """Refuse to drop a picture or a name without a word."""
    if names is not None and len(names) != n:
        raise ValueError(f"there are {len(names)} names for {n} pictures; give one for each")


def _relevance_bar(fig: Figure, drawn, shrink: float = 0.9) -> None:
    bar = fig.colorbar(drawn, ax=fig.axes, shrink=shrink, aspect=20, pad=0.02)
    bar.set_label("scaled relevance", fontsize=8)
    bar.set_ticks([-1, 0, 1])
    bar.outline.set_visible(False)
