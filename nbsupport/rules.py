"""Rules of layer-wise relevance propagation: how one layer shares relevance among its inputs.

A convolution, a dense layer and a BatchNorm at evaluation all compute

    z_j = sum_i a_i w_ij + b_j,

and so do an addition, with weights of one, and an average pooling, with equal weights.

A rule takes the relevance R_j of the outputs and returns the relevance R_i of the inputs. Every
rule below says which terms a_i w_ij it counts; the rest is the same four steps for all of them
(Montavon et al. 2019, Section 10.3.2):

    z_j = sum of the counted terms      forward
    s_j = R_j / z_j                     divide, stabilised by epsilon
    c_i = sum_j w_ij s_j                backward
    R_i = a_i c_i                       weigh

The bias is one more input, with a = 1 and w = b_j. What it draws belongs to no pixel and is
returned beside the relevance of the inputs, so that nothing goes missing unseen.

References
----------
Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions by LRP.
Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor decomposition.
Montavon et al. 2019, Layer-wise relevance propagation: an overview.
Lapuschkin 2019, Opening the machine learning black box with layer-wise relevance propagation.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbsupport.models import Add

__all__ = [
    "Affine",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Rule",
    "Squared",
    "WSquared",
    "ZBox",
    "ZPlus",
    "affine",
]


@dataclass(frozen=True)
class Affine:
    """The map z_j = sum_i a_i w_ij + b_j of one layer, open to the changed weights of a rule.

    Attributes
    ----------
    weight : Tensor
        w, in the layout of the layer.
    bias : Tensor or None
        b, shape (channels or units of the output,).
    """

    weight: Tensor
    bias: Tensor | None

    def forward(self, a: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Compute sum_i a_i w_ij + b_j."""
        return F.linear(a, w, b)

    def backward(self, s: Tensor, w: Tensor, shape: torch.Size) -> Tensor:
        """Compute sum_j w_ij s_j, in the shape of the input."""
        return s @ w

    def ones(self) -> Tensor:
        """Weights of one from every input that an output reads."""
        return torch.ones_like(self.weight)


@dataclass(frozen=True)
class _Convolution(Affine):
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def forward(self, a, w, b=None):
        return F.conv2d(a, w, b, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, s, w, shape):
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return nn.grad.conv2d_input(shape, w, s, *geometry)


@dataclass(frozen=True)
class _Scale(Affine):
    # One weight per channel: every output has a single input.
    def forward(self, a, w, b=None):
        z = a * w[:, None, None]
        return z if b is None else z + b[:, None, None]

    def backward(self, s, w, shape):
        return s * w[:, None, None]


class _Addition(Affine):
    # The summands are stacked: a has shape (n, summands, ...), and w is one number.
    def forward(self, a, w, b=None):
        return (a * w).sum(1)

    def backward(self, s, w, shape):
        return (s * w).unsqueeze(1).expand(shape)


@dataclass(frozen=True)
class _Pooling(Affine):
    # One matrix for all channels, from the pixels of a map to those of a map of this size.
    size: tuple[int, int]

    def forward(self, a, w, b=None):
        return (a.flatten(2) @ w.T).unflatten(2, self.size)

    def backward(self, s, w, shape):
        return (s.flatten(2) @ w).view(shape)

    def ones(self):
        return (self.weight > 0).to(self.weight)


def affine(module: nn.Module, a: Tensor | None = None) -> Affine | None:
    """View a layer as z_j = sum_i a_i w_ij + b_j; None if it is no such layer.

    BatchNorm at evaluation is the scale w = gamma / sqrt(var + eps) and the bias
    b = beta - mean w. Average pooling convolves each feature map with equal weights; adaptive
    pooling has windows of different sizes, and so a matrix. An addition takes its summands stacked
    along the second dimension.

    Parameters
    ----------
    module : nn.Module
        The layer.
    a : Tensor, optional
        Its input; needed by average pooling, whose module knows neither the number of channels
        nor, if it is adaptive, the size of the map.
    """
    if isinstance(module, nn.Linear):
        return Affine(_detached(module.weight), _detached(module.bias))
    if isinstance(module, nn.Conv2d):
        parameters = _detached(module.weight), _detached(module.bias)
        geometry = module.stride, module.padding, module.dilation, module.groups
        return _Convolution(*parameters, *geometry)
    if isinstance(module, nn.BatchNorm2d):
        scale = torch.rsqrt(module.running_var + module.eps)
        shift = torch.zeros_like(scale)
        if module.affine:
            scale, shift = scale * _detached(module.weight), _detached(module.bias)
        return _Scale(scale, shift - module.running_mean * scale)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size = a.shape[2:]
        if module.output_size in (1, (1, 1), [1, 1]):
            mean = a.new_full((1, math.prod(size)), 1 / math.prod(size))
            return _Pooling(mean, None, (1, 1))
        # Rows and columns by themselves: the square of all pixels would be larger than the images.
        wanted = (s or side for s, side in zip(_pair(module.output_size), size, strict=True))
        axes = [
            F.adaptive_avg_pool1d(torch.eye(side, dtype=a.dtype, device=a.device)[None], n)[0].T
            for side, n in zip(size, wanted, strict=True)
        ]
        return _Pooling(torch.kron(*axes), None, tuple(len(axis) for axis in axes))
    if isinstance(module, nn.AvgPool2d):
        channels, size = a.shape[1], _pair(module.kernel_size)
        weight = a.new_full((channels, 1, *size), 1 / math.prod(size))
        geometry = _pair(module.stride), _pair(module.padding), (1, 1)
        return _Convolution(weight, None, *geometry, channels)
    if isinstance(module, Add):
        return _Addition(torch.ones(()), None)
    return None


def _pair(number):
    return (number, number) if isinstance(number, int) else tuple(number)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


@dataclass(frozen=True)
class Rule:
    """How the relevance R_j of a layer's outputs is shared among its inputs.

    Calling a rule with ``(layer, a, z, R)``, that is the :class:`Affine` layer, its input, its
    output and the relevance of its output, returns ``(R_i, R_bias)``: the relevance of the
    input, in its shape, and the relevance the bias draws, shape (n,).

    Attributes
    ----------
    epsilon : float, default 1e-6
        Added to every denominator z_j, with the sign of z_j (+ at zero).
    """

    reads_output: ClassVar[bool] = False
    """Whether the rule needs z; the sweep drops it otherwise."""

    epsilon: float = field(default=1e-6, kw_only=True)

    def __call__(
        self, layer: Affine, a: Tensor, z: Tensor | None, R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Share R among the inputs and the bias."""
        raise NotImplementedError

    def _share(self, layer, R, terms, bias=None, z=None):
        # `terms` are the pairs (a, w) whose products the rule counts; z saves a forward pass.
        if z is None:
            z = sum(layer.forward(a, w) for a, w in terms)
            if bias is not None:
                z = z + (bias if z.ndim == 2 else bias[:, None, None])
        s = R / torch.copysign(z.new_tensor(self.epsilon), z).add_(z)
        shares = sum(a * layer.backward(s, w, a.shape) for a, w in terms)
        if bias is None:
            return shares, R.new_zeros(len(R))
        return shares, (s if s.ndim == 2 else s.sum((2, 3))) @ bias


@dataclass(frozen=True)
class Epsilon(Rule):
    """R_i = sum_j a_i w_ij / (z_j + epsilon sign z_j) R_j (Bach et al. 2015, equation 58).

    For epsilon -> 0 in a ReLU network this is gradient x input. On a BatchNorm it is
    R_i = a_i w_i / z_i R_i, the rule of Lapuschkin 2019, Section 2.3.1.
    """

    reads_output = True

    epsilon: float = 1e-6

    def __call__(self, layer, a, z, R):
        """Share R in proportion to the terms of z, the bias included."""
        return self._share(layer, R, [(a, layer.weight)], layer.bias, z)


@dataclass(frozen=True)
class Gamma(Rule):
    """R_i = sum_j a_i (w_ij + gamma w_ij^+) / sum_i a_i (w_ij + gamma w_ij^+) R_j.

    Montavon et al. 2019, Section 10.2.3, for a_i >= 0 and z_j > 0. Other signs follow the
    generalised rule of Andeol et al. 2021: terms with the sign of z_j are raised by 1 + gamma.

    Attributes
    ----------
    gamma : float, default 0.25
        Preference for terms that agree with the output.
    """

    reads_output = True

    gamma: float = 0.25

    def __call__(self, layer, a, z, R):
        """Share R with a preference for the terms that agree with z."""
        w, b = layer.weight, layer.bias
        raised = w + self.gamma * w.clamp(min=0)
        lowered = w + self.gamma * w.clamp(max=0)
        bias = None if b is None else b + self.gamma * b.clamp(min=0)
        # Before a ReLU, outputs below zero have no relevance, and the first share is all.
        if not z.clamp(max=0).mul_(R).any():
            return self._share(layer, R, _terms_by_sign(a, raised, lowered), bias)
        # As above, what is exactly 0 goes with the positive ones.
        shares, drawn = self._share(layer, R * (z >= 0), _terms_by_sign(a, raised, lowered), bias)
        bias = None if b is None else b + self.gamma * b.clamp(max=0)
        more, more_drawn = self._share(layer, R * (z < 0), _terms_by_sign(a, lowered, raised), bias)
        return shares + more, drawn + more_drawn


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """R_i = sum_j (alpha z_ij^+ / z_j^+ - beta z_ij^- / z_j^-) R_j, with z_ij = a_i w_ij.

    Bach et al. 2015, equation 60. A unit without negative terms passes on alpha R_j instead of
    R_j, so that the sum is kept only where both kinds of terms occur.

    Attributes
    ----------
    alpha, beta : float, default 2 and 1
        Weights of the positive and negative terms; alpha - beta = 1.

    Raises
    ------
    ValueError
        If alpha - beta is not 1 or beta is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self):
        if self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(
                f"alpha={self.alpha}, beta={self.beta}: needs beta >= 0 and alpha - beta = 1"
            )

    def __call__(self, layer, a, z, R):
        """Share alpha R among the positive terms and -beta R among the negative ones."""
        w, b = layer.weight, layer.bias
        up, down = w.clamp(min=0), w.clamp(max=0)
        bias = None if b is None else b.clamp(min=0)
        shares, drawn = self._share(layer, self.alpha * R, _terms_by_sign(a, up, down), bias)
        if self.beta:
            bias = None if b is None else b.clamp(max=0)
            less, less_drawn = self._share(layer, self.beta * R, _terms_by_sign(a, down, up), bias)
            shares, drawn = shares - less, drawn - less_drawn
        return shares, drawn


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """R_i = sum_j z_ij^+ / z_j^+ R_j: alpha-beta with alpha 1 and beta 0 (Montavon et al. 2017)."""

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True)
class WSquared(Rule):
    """R_i = sum_j w_ij^2 / sum_i w_ij^2 R_j, without the bias (Montavon et al. 2017).

    For the first layer, where a_i = 0 (black) must not mean "no relevance".
    """

    def __call__(self, layer, a, z, R):
        """Share R in proportion to the squared weights."""
        return self._share(layer, R, [(torch.ones_like(a), layer.weight.square())])


@dataclass(frozen=True)
class Flat(Rule):
    """R_i = sum_j 1 / (number of inputs of j) R_j: the same for every input (Lapuschkin 2019)."""

    def __call__(self, layer, a, z, R):
        """Share R evenly."""
        return self._share(layer, R, [(torch.ones_like(a), layer.ones())])


@dataclass(frozen=True)
class ZBox(Rule):
    """R_i = sum_j q_ij / sum_i q_ij R_j, with q_ij = a_i w_ij - l w_ij^+ - h w_ij^-.

    For a first layer whose inputs lie in [l, h], without the bias (Montavon et al. 2017).

    Attributes
    ----------
    low, high : float, default 0 and 1
        Smallest and largest value a pixel can take. Behind a layer that normalises they are
        others than 0 and 1.
    """

    low: float = 0.0
    high: float = 1.0

    def __call__(self, layer, a, z, R):
        """Share R in proportion to q_ij, which is never negative."""
        lowest, highest = a.min().item(), a.max().item()
        if lowest < self.low - 1e-6 or highest > self.high + 1e-6:
            raise ValueError(
                f"the layer under ZBox reads values from {lowest:.3g} to {highest:.3g}, and its "
                f"box is {self.low:g} to {self.high:g}; give ZBox(low, high) the bounds of its "
                "inputs"
            )
        w = layer.weight
        corners = [
            (torch.full_like(a, -self.low), w.clamp(min=0)),
            (torch.full_like(a, -self.high), w.clamp(max=0)),
        ]
        return self._share(layer, R, [(a, w), *corners])


@dataclass(frozen=True)
class Squared(Rule):
    """R_i = sum_j a_i^2 w_ij^2 / (sum_i a_i^2 w_ij^2 + epsilon) R_j, without the bias.

    The rule the released code of the paper runs under the name "e-rule": its ``lrp_exponent`` is
    2. No term is negative, so all relevance has the sign of the explained logit.
    """

    def __call__(self, layer, a, z, R):
        """Share R in proportion to the squared terms."""
        return self._share(layer, R, [(a.square(), layer.weight.square())])


def _terms_by_sign(a, w_positive, w_negative):
    # Behind a ReLU no input is negative: one convolution instead of two.
    if a.min() >= 0:
        return [(a, w_positive)]
    return [(a.clamp(min=0), w_positive), (a.clamp(max=0), w_negative)]
