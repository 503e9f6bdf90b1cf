"""One backward sweep of relevance through one network, by the rules of one composite.

Linear layers (additions and average pooling among them) share relevance by a rule of
:mod:`nbsupport.rules`, and a :class:`Composite` says which; activations, dropout and flatten pass
it on; max-pooling gives it to the winner; a gate gives it to its signal; a concatenation cuts it
into the pieces of its branches. All images of a batch are swept at once, and the forward pass is
shared with the logits and activations it leaves behind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from nbsupport.graph import Forward, Network, Target, target_weights
from nbsupport.models import Add, Concat, Gate
from nbsupport.rules import Epsilon, Gamma, Rule, Squared, affine
from nbsupport.tracing import INPUT, named_by

__all__ = ["COMPOSITES", "FIRST_FEATURES", "Attribution", "Attributor", "Composite"]

FIRST_FEATURES = "<first features>"
"""The end of a sweep at the layer that the model itself names by its `first_features`."""

BATCH_NORM = ("fold", "rule", "identity")


@dataclass(frozen=True)
class Composite:
    """Which rule each kind of layer follows, and where the sweep ends.

    Attributes
    ----------
    description : str
        One line for tables.
    convolution, dense : Rule
        Rules of the convolutions and of the dense layers.
    first : Rule, optional
        Rule of the layers that see the image before any other linear layer does (in an Inception
        module: the first convolution of every branch), instead of `convolution` or `dense`.
    addition : Rule
        Rule of the layers that add with fixed weights: additions and average pooling.
    batch_norm : {"fold", "rule", "identity"}
        Merge BatchNorm into the convolution before it, and pass relevance on where there is none;
        or share relevance between its input and its bias by the epsilon rule, with the epsilon of
        `convolution`; or pass relevance on.
    stop_at : str, optional
        Name of the layer whose *output* relevance is the result, or ``FIRST_FEATURES``; the
        images if not given. No relevance may flow past it on another way.

    Notes
    -----
    The default of `addition` is the epsilon rule: each summand a_k receives relevance in proportion
    to what it contributed, R_k = a_k / (z + epsilon sign z) R with z = sum_k a_k, unit by unit, as
    in zennit's composites. The squared composites square here too: their point is that no share is
    negative, which a residual branch that works against its shortcut would break.
    """

    description: str = "built by hand"
    convolution: Rule = field(default_factory=Epsilon)
    dense: Rule = field(default_factory=Epsilon)
    first: Rule | None = None
    addition: Rule = field(default_factory=Epsilon)
    batch_norm: str = "fold"
    stop_at: str | None = None

    def __post_init__(self):
        if self.batch_norm not in BATCH_NORM:
            raise ValueError(f"batch_norm={self.batch_norm!r}; choose one of {BATCH_NORM}")


COMPOSITES = MappingProxyType(
    {
        "paper": Composite(
            "epsilon rule, BatchNorm by its own rule, at the pixels (the text of the paper)",
            batch_norm="rule",
        ),
        "released": Composite(
            "squared rule, BatchNorm passed through, at the first features (the released code)",
            convolution=Squared(),
            dense=Squared(),
            addition=Squared(),
            batch_norm="identity",
            stop_at=FIRST_FEATURES,
        ),
        "squared": Composite(
            "the released code's squared rule carried on to the pixels",
            convolution=Squared(),
            dense=Squared(),
            addition=Squared(),
            batch_norm="identity",
        ),
        "gamma": Composite(
            "gamma 0.25 on convolutions, epsilon on dense layers, BatchNorm folded, at the pixels",
            convolution=Gamma(0.25),
        ),
    }
)


@dataclass(frozen=True)
class Attribution:
    """Relevance of one batch, on the device of the network.

    Attributes
    ----------
    relevance : Tensor, shape (n, c, h, w)
        Per channel, at the pixels or at the output of the composite's `stop_at`.
    start : Tensor, shape (n,)
        The explained value, which is the relevance the sweep starts from.
    bias : Tensor, shape (n,)
        Relevance drawn by the biases on the way.
    run : Forward
        The forward pass: logits and kept activations.
    """

    relevance: Tensor
    start: Tensor
    bias: Tensor
    run: Forward


class Attributor:
    """Relevance propagation through one model by one composite.

    Parameters
    ----------
    model : nn.Module
        Traced, checked and copied: see :class:`~nbsupport.graph.Network`.
    composite : Composite
        The rules.
    device : str or torch.device, optional
        Where to compute; the model's own device if not given.

    Raises
    ------
    UnsupportedLayerError
        If relevance cannot be propagated exactly; names the layer.
    ValueError
        If `stop_at` is no layer of the model, or relevance flows past it; if it is
        ``FIRST_FEATURES`` and the model does not name them.
    """

    def __init__(self, model: nn.Module, composite: Composite, device=None):
        self.network = Network(model, device, fold=composite.batch_norm == "fold")
        self._end = composite.stop_at or INPUT
        if self._end == FIRST_FEATURES:
            self._end = named_by(model, "first_features")
            if self._end is None:
                raise ValueError(
                    f"this composite ends at the first features, and {type(model).__name__} does "
                    "not name them: give it an attribute `first_features` with the name of a "
                    "layer, or choose a composite that goes on to the pixels"
                )
        if self._end != INPUT:
            self.network.check_names([self._end])
        # The layers behind the end, last one first.
        position = [INPUT, *self.network.names].index(self._end)
        self._sweep = self.network.layers[position:][::-1]
        if not self._sweep:
            raise ValueError(
                f"stop_at={self._end!r} is the last layer, whose output are the logits: there is "
                "nothing to propagate; choose an earlier one"
            )
        within = {layer.name for layer in self._sweep}
        sources = {name for layer in self._sweep for name in layer.inputs} - within
        if sources != {self._end}:
            raise ValueError(
                f"stop_at={self._end!r} does not see all relevance: some ends in "
                f"{sorted(sources - {self._end})}; choose a layer that all branches pass through"
            )
        self._rules = self._choose_rules(composite)
        self._keep = {
            name for layer in self._sweep if layer.name in self._rules for name in layer.inputs
        }
        self._keep |= {name for name, rule in self._rules.items() if rule.reads_output}

    def _choose_rules(self, composite):
        rules, linear = {}, set()
        for layer in self.network.layers:
            m, first = layer.module, linear.isdisjoint(layer.inputs)
            if isinstance(m, nn.BatchNorm2d) and composite.batch_norm == "rule":
                rules[layer.name] = Epsilon(composite.convolution.epsilon)
            elif isinstance(m, nn.Conv2d | nn.Linear):
                rule = composite.convolution if isinstance(m, nn.Conv2d) else composite.dense
                rules[layer.name] = composite.first if first and composite.first else rule
            elif isinstance(m, nn.AvgPool2d | nn.AdaptiveAvgPool2d | Add):
                rules[layer.name] = composite.addition
            if not first or isinstance(m, nn.Conv2d | nn.Linear):
                linear.add(layer.name)
        return {layer.name: rules[layer.name] for layer in self._sweep if layer.name in rules}

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        target: Target,
        layers: Sequence[str] = (),
        watch: Callable[[str, Tensor, list[Tensor], Tensor], None] | None = None,
    ) -> Attribution:
        """Explain one batch.

        Parameters
        ----------
        images : Tensor, shape (n, c, h, w)
            uint8 (divided by 255) or floats as the model takes them.
        target : int, Tensor of shape (n,), "predicted" or a pair of these
            What to explain: see :func:`~nbsupport.graph.target_weights`.
        layers : sequence of str
            Layers whose activations to keep in ``run.values``.
        watch : callable, optional
            Called after each layer with its name, the relevance of its output, those of its
            inputs, and what the bias drew.
        """
        with self.network.full_precision():
            run = self.network.forward(self.network.images(images), self._keep.union(layers))
            R = run.logits * target_weights(run.logits, target)
            start, bias = R.sum(1), R.new_zeros(len(R))
            relevance = {self.network.names[-1]: R}
            for layer in self._sweep:
                R = relevance.pop(layer.name)
                shares, drawn = self._propagate(layer, run, R)
                bias = bias + drawn
                for name, share in zip(layer.inputs, shares, strict=True):
                    relevance[name] = relevance[name] + share if name in relevance else share
                if watch:
                    watch(layer.name, R, shares, drawn)
        return Attribution(relevance[self._end], start, bias, run)

    def _propagate(self, layer, run, R):
        m, source, nothing = layer.module, layer.inputs[0], R.new_zeros(len(R))
        if layer.name in self._rules:
            a, z = [run.values[name] for name in layer.inputs], run.values.get(layer.name)
            a = torch.stack(a, 1) if isinstance(m, Add) else a[0]
            share, drawn = self._rules[layer.name](affine(m, a), a, z, R)
            return share.unbind(1) if isinstance(m, Add) else [share], drawn
        if isinstance(m, Concat):
            channels = [run.shapes[name][1] for name in layer.inputs]
            return R.split(channels, dim=1), nothing
        if isinstance(m, Gate):
            return [R, R.new_zeros(run.shapes[layer.inputs[1]])], nothing
        if isinstance(m, nn.MaxPool2d):
            return [_to_winners(m, R, run.winners[layer.name], run.shapes[source])], nothing
        return [R.reshape(run.shapes[source])], nothing


def _to_winners(pool, R, winners, shape):
    # The gradient of max-pooling: all to the winner; wins of overlapping windows add up.
    settings = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
    settings = [[one, one] if isinstance(one, int) else one for one in settings]
    like = torch.empty_like(R.new_empty(1).expand(shape), memory_format=torch.channels_last)
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    return backward(R, like, *settings, pool.ceil_mode, winners)
