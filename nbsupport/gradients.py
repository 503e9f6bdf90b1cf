"""Explanations by plain gradients, for comparison with relevance propagation.

Each method is a frozen record of its settings. Called with ``(network, images, target, layers)``
it returns the attribution and the forward pass, so that :func:`nbsupport.lrp.explain` takes it
like a composite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from nbsupport.graph import Forward, Network, Target, target_weights
from nbsupport.tracing import INPUT

__all__ = ["BASELINES", "GradCam", "GradientTimesInput", "IntegratedGradients"]


def _gradient(network, images, target, at, layers=()):
    # Gradient of the explained value with respect to what leaves the layer `at`.
    with torch.enable_grad():
        run = network.forward(images.detach().requires_grad_(), {at, *layers})
        value = run.logits * target_weights(run.logits.detach(), target)
        (gradient,) = torch.autograd.grad(value.sum(), run.values[at])
    return gradient, run


@dataclass(frozen=True)
class GradientTimesInput:
    """R_i = x_i df/dx_i (Shrikumar et al. 2016)."""

    description: str = "gradient x input"

    def __call__(
        self, network: Network, images: Tensor, target: Target, layers: Sequence[str] = ()
    ) -> tuple[Tensor, Forward]:
        """Attribute to the pixels, shape (n, c, h, w)."""
        gradient, run = _gradient(network, images, target, INPUT, layers)
        return images * gradient, run


@dataclass(frozen=True)
class IntegratedGradients:
    """R_i = x_i times the mean of df/dx_i on the line from black to x (Sundararajan et al. 2017).

    The sum is f(x) - f(black). The mean is taken at the middles of `steps` equal pieces.

    Attributes
    ----------
    steps : int, default 32
        Forward and backward passes per image.
    """

    steps: int = 32
    description: str = "integrated gradients from a black image"

    def __call__(
        self, network: Network, images: Tensor, target: Target, layers: Sequence[str] = ()
    ) -> tuple[Tensor, Forward]:
        """Attribute to the pixels, shape (n, c, h, w)."""
        with torch.no_grad():
            run = network.forward(images, layers)
        # One target all along the line, also where the prediction changes.
        weights = target_weights(run.logits, target)
        mean = torch.zeros_like(images)
        for step in range(self.steps):
            point = images * ((step + 0.5) / self.steps)
            mean += _gradient(network, point, weights, INPUT)[0] / self.steps
        return images * mean, run


@dataclass(frozen=True)
class GradCam:
    """ReLU(sum_k w_k A_k), w_k the mean gradient of feature map A_k (Selvaraju et al. 2017).

    Stretched bilinearly to the size of the image; one channel; not negative; its sum has no
    relation to the logit.

    Attributes
    ----------
    layer : str, optional
        Layer whose output holds the feature maps A; if not given, the last one with more than one
        pixel.
    """

    layer: str | None = None
    description: str = "Grad-CAM"

    def __call__(
        self, network: Network, images: Tensor, target: Target, layers: Sequence[str] = ()
    ) -> tuple[Tensor, Forward]:
        """Attribute to the pixels, shape (n, 1, h, w)."""
        at = self.layer or self._last_map(network, images)
        network.check_names([at])
        gradient, run = _gradient(network, images, target, at, layers)
        maps = run.values[at]
        if maps.ndim != 4:
            raise ValueError(
                f"layer {at!r} gives values of shape {tuple(maps.shape)}, which are no map; choose "
                f"a layer before the flattening, such as {self._last_map(network, images)!r}"
            )
        cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp(min=0)
        return F.interpolate(cam, images.shape[2:], mode="bilinear").detach(), run

    @staticmethod
    def _last_map(network, images):
        with torch.no_grad():
            shapes = network.forward(images[:1]).shapes
        maps = [n for n, s in shapes.items() if n != INPUT and len(s) == 4 and s[2] * s[3] > 1]
        if not maps:
            raise ValueError(
                "Grad-CAM needs a layer whose output is a map of more than one pixel, and this "
                "network has none; choose 'gradient_x_input' or 'integrated_gradients'"
            )
        return maps[-1]


BASELINES = MappingProxyType(
    {
        "gradient_x_input": GradientTimesInput(),
        "integrated_gradients": IntegratedGradients(),
        "grad_cam": GradCam(),
    }
)
