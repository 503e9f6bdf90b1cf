"""Heatmaps: how much each pixel contributed to a logit, by layer-wise relevance propagation.

The logit is the relevance of the output; a backward sweep hands it from layer to layer down to
the pixels (Section 5.4). This module is the front door, for composites of LRP rules and for the
gradient methods they are compared with::

    explanation = explain(model, images, target=5, composite="gamma", layers=("relu2",))
    explain(model, images, composite=Composite(convolution=Gamma(0.1), first=ZBox(0, 1)))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport.attribution import COMPOSITES, FIRST_FEATURES, Attribution, Attributor, Composite
from nbsupport.devices import at_a_time
from nbsupport.gradients import BASELINES, GradCam, GradientTimesInput, IntegratedGradients
from nbsupport.graph import Network, Target, target_weights
from nbsupport.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, Squared, WSquared, ZBox, ZPlus
from nbsupport.tracing import UnsupportedLayerError

__all__ = [
    "BASELINES",
    "COMPOSITES",
    "FIRST_FEATURES",
    "AlphaBeta",
    "Attribution",
    "Attributor",
    "Composite",
    "Epsilon",
    "Explanation",
    "Flat",
    "Gamma",
    "GradCam",
    "GradientTimesInput",
    "IntegratedGradients",
    "LayerConservation",
    "Rule",
    "Squared",
    "UnsupportedLayerError",
    "WSquared",
    "ZBox",
    "ZPlus",
    "explain",
    "per_layer_conservation",
]


@dataclass(frozen=True)
class Explanation:
    """Heatmaps of n images and what came out of the same passes; CPU tensors in image order.

    Attributes
    ----------
    heatmaps : Tensor, shape (n, h, w)
        Relevance, signed, summed over channels.
    logits : Tensor, shape (n, classes)
        Outputs of the network.
    activations : dict of str to Tensor of shape (n, ...)
        Outputs of the layers asked for.
    start : Tensor, shape (n,)
        The explained value.
    gap : Tensor, shape (n,)
        Relative conservation gap (start - sum of the heatmap) / |start|: the share of the
        explained value that no pixel received.
    bias_share : Tensor, shape (n,)
        The part of the gap that the biases drew. ``gap - bias_share`` is what the rules lost.
    relevance : Tensor, shape (n, c, h, w), or None
        Relevance per channel, if asked for.
    """

    heatmaps: Tensor
    logits: Tensor
    activations: dict[str, Tensor]
    start: Tensor
    gap: Tensor
    bias_share: Tensor
    relevance: Tensor | None = None


def explain(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = 5,
    composite: str | Composite | GradientTimesInput | IntegratedGradients | GradCam = "released",
    layers: Sequence[str] = (),
    batch_size: int = 32,
    device: str | torch.device | None = None,
    channels: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Compute heatmaps, logits and activations of many images, batch by batch.

    Parameters
    ----------
    model : nn.Module
        Network of layers that :func:`nbsupport.tracing.trace` accepts. It is copied, not altered,
        and always explained in evaluation mode.
    images : Tensor, shape (n, c, h, w)
        uint8 (divided by 255) or floats as the model takes them.
    target : int, int64 Tensor of shape (n,), "predicted", or a pair of these; default 5
        The logit to explain: one class, a class per image, the predicted class; a pair (p, q)
        explains the difference of the logits, p - q.
    composite : str, Composite or gradient method, default "released"
        A name in ``COMPOSITES`` or ``BASELINES``, or a record built by hand.
    layers : sequence of str
        Layers whose activations to return.
    batch_size : int, default 32
        Images of 32 x 32 pixels per pass; fewer of larger ones. Changes memory and speed, not the
        result.
    device : str or torch.device, optional
        Where to compute; the model's own device if not given.
    channels : bool, default False
        Also return the relevance per channel: 1 MB per image at the 256 maps of the concat.
    progress : callable, optional
        Called with (images done, images in all) after each batch.

    Returns
    -------
    Explanation
        On the CPU.

    Raises
    ------
    ValueError
        If a name (composite, layer, class) does not exist, or the images have the wrong shape.
    UnsupportedLayerError
        If relevance cannot be propagated exactly through the model.
    """
    target = _checked(target, images)
    attribute, network = _attributor(model, composite, device)
    network.check_names(layers)
    batches, batch_size = [], at_a_time(batch_size, images)
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        result = attribute(images[part], _part(target, part), layers)
        if result.relevance.ndim != 4:
            raise ValueError(
                f"relevance of shape {tuple(result.relevance.shape)} is no map: stop at a layer "
                "before the flattening"
            )
        batches.append(_columns(result, layers, channels))
        if progress:
            progress(min(first + batch_size, len(images)), len(images))
    columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    activations = {name: columns["activation", name] for name in layers}
    told = {key: column for key, column in columns.items() if isinstance(key, str)}
    return Explanation(activations=activations, **told)


def _attributor(model, composite, device):
    known = {**COMPOSITES, **BASELINES}
    if isinstance(composite, str):
        if composite not in known:
            raise ValueError(f"no composite {composite!r}; choose one of {', '.join(known)}")
        composite = known[composite]
    if isinstance(composite, Composite):
        attributor = Attributor(model, composite, device)
        return attributor, attributor.network
    network = Network(model, device)

    def attribute(images, target, layers):
        with network.full_precision():
            relevance, run = composite(network, network.images(images), target, layers)
        logits = run.logits.detach()
        start = (logits * target_weights(logits, target)).sum(1)
        return Attribution(relevance, start, torch.zeros_like(start), run)

    return attribute, network


def _checked(target, images):
    """Check that there are images; bring targets to tensors, of one class each or one an image."""
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}; needs (n > 0, c, h, w)")
    if isinstance(target, tuple):
        return tuple(_checked(one, images) for one in target)
    if isinstance(target, int | str):
        return target
    target = torch.as_tensor(target)
    if target.ndim and len(target) != len(images):
        raise ValueError(
            f"target has shape {tuple(target.shape)}, but there are {len(images)} images"
        )
    return target


def _part(target, part):
    if isinstance(target, tuple):
        return tuple(_part(one, part) for one in target)
    return target[part] if isinstance(target, Tensor) and target.ndim else target


def _columns(result, layers, channels):
    heatmaps = result.relevance.sum(1)
    scale = result.start.abs().clamp(min=torch.finfo(result.start.dtype).tiny)
    columns = {
        "heatmaps": heatmaps,
        "logits": result.run.logits,
        "start": result.start,
        "gap": (result.start - heatmaps.sum((1, 2))) / scale,
        "bias_share": result.bias / scale,
    }
    columns |= {("activation", name): result.run.values[name] for name in layers}
    if channels:
        columns["relevance"] = result.relevance
    return {key: value.detach().cpu().contiguous() for key, value in columns.items()}


@dataclass(frozen=True)
class LayerConservation:
    """What one layer did with the relevance it received; means over images of sums over units.

    Attributes
    ----------
    layer : str
        Name of the layer.
    received, passed, bias : float
        Relevance of its output, of its inputs together, and drawn by its bias.
    total : float
        Relevance on its way to the pixels, over all branches, behind this layer.
    gap : float
        Largest |received - passed - bias| / |explained value| of any image: lost by the rule.
    """

    layer: str
    received: float
    passed: float
    bias: float
    total: float
    gap: float


def per_layer_conservation(
    model: nn.Module,
    images: Tensor,
    composite: str | Composite,
    *,
    target: Target = 5,
    device: str | torch.device | None = None,
) -> list[LayerConservation]:
    """Follow the sum of relevance from the logits down, one record a layer.

    Parameters
    ----------
    model, images, composite, target, device
        As in :func:`explain`; the images make one batch.

    Returns
    -------
    list of LayerConservation
        In the order of the sweep, last layer first. ``pandas.DataFrame`` takes it as it is.
    """
    target = _checked(target, images)
    attributor, _ = _attributor(model, composite, device)
    if not isinstance(attributor, Attributor):
        raise ValueError(f"{composite!r} has no layers to follow; choose one of {[*COMPOSITES]}")
    sums = {}

    def watch(name, R, shares, drawn):
        received = R.flatten(1).sum(1)
        sums[name] = received, sum(share.flatten(1).sum(1) for share in shares), drawn

    start = attributor(images, target, watch=watch).start
    records, total = [], start
    for name, (received, passed, bias) in sums.items():
        total = total - received + passed
        # As `explain` does: a value of exactly 0 has no share to compare with.
        least = torch.finfo(start.dtype).tiny
        gap = ((received - passed - bias) / start.abs().clamp(min=least)).abs().max()
        means = (float(column.mean()) for column in (received, passed, bias, total))
        records.append(LayerConservation(name, *means, gap=float(gap)))
    return records
