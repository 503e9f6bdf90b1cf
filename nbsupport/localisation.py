"""Does a heatmap find the sticker? Heatmaps against the known mask of what was pasted.

Names and definitions are those of Quantus (Hedström et al. 2023). Only positive relevance is
evidence *for* the explained class; what becomes of negative relevance is stated at each metric.
"""

import torch
from torch import Tensor

__all__ = ["pointing_game", "relevance_mass_accuracy", "relevance_rank_accuracy"]


def relevance_mass_accuracy(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Measure the share of the positive relevance that lies inside the mask (Arras et al. 2022).

    Parameters
    ----------
    heatmaps : Tensor, shape (n, h, w)
        Relevance per pixel; any scale.
    masks : bool Tensor, shape (n, h, w)
        True on the sticker; none may be empty.

    Returns
    -------
    Tensor, shape (n,)
        In [0, 1]; nan for a heatmap without positive relevance. A heatmap spread evenly scores
        the area of the mask over the area of the image.

    Raises
    ------
    ValueError
        If shapes differ, or masks are not boolean or empty.

    Notes
    -----
    Signed sums, which Quantus forms unless told otherwise, can vanish or leave [0, 1].
    """
    _check(heatmaps, masks)
    mass = heatmaps.clamp(min=0)
    return (mass * masks).sum((1, 2)) / mass.sum((1, 2))


def relevance_rank_accuracy(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Measure how many of the k most relevant pixels lie inside a mask of k pixels.

    Arras et al. 2022. Pixels are ranked by their signed relevance: negative relevance ranks last.
    Where pixels of one value stand on either side of place k, they are drawn by lot: each counts
    by its chance to be among the k.

    Parameters
    ----------
    heatmaps : Tensor, shape (n, h, w)
        Relevance per pixel; only the order matters.
    masks : bool Tensor, shape (n, h, w)
        True on the sticker; none may be empty.

    Returns
    -------
    Tensor, shape (n,)
        In [0, 1]; nan for a heatmap of one value, which ranks nothing.

    Raises
    ------
    ValueError
        If shapes differ or masks are not boolean or empty.
    """
    _check(heatmaps, masks)
    flat = (heatmaps == heatmaps[:, :1, :1]).flatten(1).all(1)
    values, inside = heatmaps.flatten(1), masks.flatten(1)
    sizes = inside.sum(1)
    last = values.sort(dim=1, descending=True).values.gather(1, sizes[:, None] - 1)
    above, tied = values > last, values == last
    chance = (sizes - above.sum(1)) / tied.sum(1)
    hits = (inside & above).sum(1) + (inside & tied).sum(1) * chance
    return (hits / sizes).masked_fill(flat, torch.nan)


def pointing_game(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Tell whether a pixel of largest relevance lies inside the mask (Zhang et al. 2018).

    Relevance keeps its sign: a heatmap that is negative everywhere points to where it is least so.

    Parameters
    ----------
    heatmaps : Tensor, shape (n, h, w)
        Relevance per pixel; only the largest value matters.
    masks : bool Tensor, shape (n, h, w)
        True on the sticker; none may be empty.

    Returns
    -------
    bool Tensor, shape (n,)
        True where the heatmap hits; its mean is the score of the game. A heatmap of one value
        points nowhere and hits nothing.

    Raises
    ------
    ValueError
        If shapes differ or masks are not boolean or empty.
    """
    _check(heatmaps, masks)
    hits = ((heatmaps == heatmaps.amax((1, 2), keepdim=True)) & masks).flatten(1).any(1)
    return hits & (heatmaps != heatmaps[:, :1, :1]).flatten(1).any(1)


def _check(heatmaps, masks):
    if heatmaps.ndim != 3 or heatmaps.shape != masks.shape:
        raise ValueError(
            f"heatmaps {tuple(heatmaps.shape)} and masks {tuple(masks.shape)}: both need (n, h, w)"
        )
    if masks.dtype != torch.bool:
        raise ValueError(f"masks are {masks.dtype}; compare them with 0 to get torch.bool")
    empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"masks {empty[:10]} are empty: keep only images with a sticker")
