"""A network as a list of layers, traced and checked, that runs forward and remembers.

Relevance propagation needs to know every operation between pixels and logits. Hooks see only
modules, and would miss a functional ReLU in silence; the trace sees everything, takes what is
written as a function for the layer that does the same, and refuses by name what has no exact
propagation.
"""

import copy
import operator
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nbsupport.models import Add, Concat, Normalise

__all__ = [
    "INPUT",
    "Layer",
    "Network",
    "Run",
    "Target",
    "UnsupportedLayerError",
    "fold_batch_norm",
    "penultimate",
    "target_weights",
    "trace",
]

INPUT = "<images>"
"""The name under which layers read the images."""

SUPPORTED = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.ReLU,
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
    Concat,
    Add,
    Normalise,
)

Target = int | str | Tensor | tuple["Target", "Target"]


class UnsupportedLayerError(ValueError):
    """A layer or operation through which relevance cannot be propagated exactly."""


@dataclass(frozen=True)
class Layer:
    """One layer of a network: its name, its module and the names of the layers it reads."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


def trace(model: nn.Module) -> tuple[Layer, ...]:
    """List the layers of a model in the order of computation, refusing what cannot be exact.

    Parameters
    ----------
    model : nn.Module
        Maps one batch of images to logits, by layers of the supported types or by functions that
        do the same: ReLU, pooling, dropout, flattening, sums and concatenation.

    Returns
    -------
    tuple of Layer
        The last one gives the logits. A function is named by its module and what it does
        (``layer1.0.add``), the second use of a module by a number (``layer1.0.relu:2``).

    Raises
    ------
    UnsupportedLayerError
        For another function, a layer of another type or with settings that have no rule, a result
        that is overwritten before all have read it, or a forward that branches on values; it names
        the place.
    """
    try:
        graph = _Tracer().trace(model)
    except fx.proxy.TraceError as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} decides by values what it computes ({error}): "
            "write its forward without branches on tensors"
        ) from error
    layers, names = {}, {}
    for node in graph.nodes:
        if node.op == "placeholder" and not names:
            names[node] = INPUT
        elif node.op == "output":
            if not layers or names.get(node.args[0]) != list(layers)[-1]:
                raise UnsupportedLayerError(
                    f"{type(model).__name__} must return the output of its last layer, the logits"
                )
        elif not _tells_batch_size(node):
            layer = _read(node, model, names, layers)
            layers[layer.name], names[node] = layer, layer.name
    read = {name for layer in layers.values() for name in layer.inputs}
    for name in list(layers)[:-1]:
        if name not in read:
            raise UnsupportedLayerError(f"layer {name!r} is computed but never reaches the logits")
    return tuple(layers.values())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, SUPPORTED) or super().is_leaf_module(module, name)


def _names(types):
    return ", ".join(kind.__name__ for kind in types)


def _read(node, model, names, layers) -> Layer:
    """Make a layer of a call, checked; its name is used by no other."""
    place = [*node.meta.get("nn_module_stack", {}), ""][0]
    if node.op == "call_module":
        called, module, sources = node.target, model.get_submodule(node.target), node.args
        if node.kwargs:
            raise UnsupportedLayerError(f"layer {called!r} must be called without keywords")
    else:
        called = f"{place}.{node.name}".lstrip(".")
        try:
            module, *sources = _FUNCTIONS[node.target](*node.args, **node.kwargs)
        except (KeyError, TypeError, ValueError):
            raise UnsupportedLayerError(
                f"{node.name!r} in {place or type(model).__name__!r} ({node.format_node()}) is a "
                f"function without a rule: write it with layers ({_names(SUPPORTED)})"
            ) from None
    name, use = called, 2
    while name in layers:
        name, use = f"{called}:{use}", use + 1
    problem = _problem(module, sources, names)
    if problem:
        raise UnsupportedLayerError(f"layer {name!r} {problem}")
    if getattr(module, "inplace", False) or node.target in _OVERWRITING:
        later = list(node.graph.nodes)
        later = later[later.index(node) + 1 :]
        if reader := next((user for user in sources[0].users if user in later), None):
            raise UnsupportedLayerError(
                f"layer {name!r} overwrites what {reader.name!r} reads after it: set "
                "inplace=False, and train again if that is not what was meant"
            )
    return Layer(name, module, tuple(names[source] for source in sources))


def _problem(module, sources, names) -> str | None:
    """Say what keeps relevance from passing a layer exactly, if anything does."""
    # Exact types: a subclass may compute something else.
    if type(module) not in SUPPORTED:
        return f"is of type {type(module).__name__}; supported: {_names(SUPPORTED)}"
    if any(not isinstance(source, fx.Node) or source not in names for source in sources):
        return "must be called with outputs of other layers only"
    if isinstance(module, nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return "must pad with zeros, by a number of pixels"
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        return "keeps no running statistics: relevance would depend on the batch"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return "must return the largest values alone, not where they are"
    if isinstance(module, nn.AvgPool2d) and (
        module.ceil_mode or module.divisor_override or not module.count_include_pad
    ):
        return "must divide the sum of each window by the number of its pixels, padding included"
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return "must keep the images apart and flatten all the rest (start_dim=1)"
    return None


# What a function is called with, and the layer that does the same on its sources. Another
# signature than these is refused.
def _relu(x, inplace=False):
    return nn.ReLU(inplace), x


def _sum(x, y):
    return Add(), x, y


def _concatenation(xs, dim=0):
    return (Concat(), *xs) if dim == 1 else ()


def _flat(x, start_dim=0, end_dim=-1):
    return nn.Flatten(start_dim, end_dim), x


def _rows(x, n, rest):
    """Reshape to one row an image: ``x.view(x.size(0), -1)``."""
    return (nn.Flatten(), x) if _tells_batch_size(n) and rest == -1 else ()


def _dropout(x, p=0.5, training=True, inplace=False):
    return nn.Dropout(p).eval(), x  # a network is explained in evaluation mode


def _max_pool(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):  # fmt: skip
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode), x


def _avg_pool(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    module = nn.AvgPool2d(
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return module, x


def _global_pool(x, output_size):
    return nn.AdaptiveAvgPool2d(output_size), x


# Functions by themselves, methods of a tensor by name.
_FUNCTIONS = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), _relu),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _sum),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenation),
    **dict.fromkeys((torch.flatten, "flatten"), _flat),
    **dict.fromkeys(("view", "reshape", torch.reshape), _rows),
    F.dropout: _dropout,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _global_pool,
}
_OVERWRITING = (operator.iadd, torch.relu_, F.relu_, "relu_", "add_")


def _tells_batch_size(node) -> bool:
    """Whether a node is only ``x.size(0)`` or ``x.shape[0]``, or a step towards it."""
    if not isinstance(node, fx.Node):
        return False
    if (node.op, node.target) == ("call_method", "size"):
        return node.args[1:] in ((), (0,)) and not node.kwargs
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target is operator.getitem and node.args[1] == 0 and _tells_batch_size(node.args[0])


def penultimate(model: nn.Module) -> str | None:
    """Name the layer whose activations stand for an image in Activation Clustering.

    Parameters
    ----------
    model : nn.Module
        See :func:`trace`.

    Returns
    -------
    str or None
        The attribute ``penultimate`` of the model, or of the only part that has one; otherwise the
        layer that the last dense layer reads. None without a dense layer behind another layer.
    """
    named = [
        f"{place}.{part.penultimate}".lstrip(".")
        for place, part in model.named_modules()
        if isinstance(getattr(part, "penultimate", None), str)
    ]
    if len(named) == 1:
        return named[0]
    dense = [layer for layer in trace(model) if isinstance(layer.module, nn.Linear)]
    return dense[-1].inputs[0] if dense and dense[-1].inputs[0] != INPUT else None


def fold_batch_norm(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Canonise: merge each BatchNorm at evaluation into a copy of the convolution before it.

    Parameters
    ----------
    layers : tuple of Layer
        From :func:`trace`, of a model in evaluation mode.

    Returns
    -------
    tuple of Layer
        The same names and outputs; each BatchNorm is now an identity.

    Raises
    ------
    UnsupportedLayerError
        If a BatchNorm does not read a convolution that nothing else reads.
    """
    folded = {layer.name: layer for layer in layers}
    read = [name for layer in layers for name in layer.inputs]
    for layer in layers:
        if not isinstance(layer.module, nn.BatchNorm2d):
            continue
        source = folded.get(layer.inputs[0])
        if not source or not isinstance(source.module, nn.Conv2d) or read.count(source.name) > 1:
            raise UnsupportedLayerError(
                f"layer {layer.name!r} does not follow a convolution of its own and cannot be "
                'folded: choose batch_norm="rule"'
            )
        merged = fuse_conv_bn_eval(source.module, layer.module)
        folded[source.name] = replace(source, module=merged)
        folded[layer.name] = replace(layer, module=nn.Identity())
    return tuple(folded.values())


@dataclass(frozen=True)
class Run:
    """What a forward pass leaves behind.

    Attributes
    ----------
    logits : Tensor, shape (n, classes)
        Output of the last layer.
    values : dict of str to Tensor
        Outputs of the layers that were to be kept.
    shapes : dict of str to torch.Size
        Shape of the output of every layer.
    winners : dict of str to Tensor
        For each max-pooling, the flat position of each winner in its feature map.
    """

    logits: Tensor
    values: dict[str, Tensor]
    shapes: dict[str, torch.Size]
    winners: dict[str, Tensor]


class Network:
    """A model as its layers, in evaluation mode, on a device; the model itself stays untouched.

    Parameters
    ----------
    model : nn.Module
        See :func:`trace`. Its weights are copied: build a new network after training on.
    device : str or torch.device, optional
        Where to compute; the model's own device if not given.
    fold : bool, default False
        Merge BatchNorm into the convolutions.
    """

    def __init__(self, model: nn.Module, device=None, *, fold: bool = False):
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, torch.device(device or parameter.device)
        model = copy.deepcopy(model).eval().requires_grad_(False).to(self.device)
        self._unproved = copy.deepcopy(model)
        # Channels last: pooling is 20 times and convolution 1.4 times faster on a CPU.
        model.to(self.device, memory_format=torch.channels_last)
        self.layers = trace(model)
        for layer in self.layers:
            if getattr(layer.module, "inplace", False):
                layer.module.inplace = False
        if fold:
            self.layers = fold_batch_norm(self.layers)
        self.names = tuple(layer.name for layer in self.layers)
        self._last_reader = {name: layer.name for layer in self.layers for name in layer.inputs}

    def check_names(self, names: Collection[str]) -> None:
        """Raise ValueError for a name that is no layer of this network."""
        for name in names:
            if name not in self.names:
                raise ValueError(f"no layer {name!r}; choose from {', '.join(self.names)}")

    def images(self, images: Tensor) -> Tensor:
        """Bring images to the device as floats; uint8 is divided by 255."""
        scale = 255 if images.dtype == torch.uint8 else 1
        images = images.to(self.device, self.dtype) / scale
        return images.contiguous(memory_format=torch.channels_last)

    def full_precision(self):
        """Context in which convolutions compute in the precision of their inputs.

        GPUs would otherwise round float32 to 10 bits of mantissa (TF32), which small denominators
        of the rules amplify.
        """
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)

    def forward(self, images: Tensor, keep: Collection[str] = ()) -> Run:
        """Compute the logits, keeping the outputs named in `keep` and dropping the others early.

        Parameters
        ----------
        images : Tensor, shape (n, c, h, w)
            On the network's device and of its dtype.
        keep : collection of str
            Names of layers, or ``INPUT``.

        Raises
        ------
        UnsupportedLayerError
            If the layers compute something else than the model, seen on the first two images.
        """
        if self._unproved and len(images):
            self._prove(images[:2])
        return self._forward(images, keep)

    def _prove(self, images: Tensor) -> None:
        """Compare with the model itself: a trace does not see what ``+=`` overwrites."""
        model, self._unproved = self._unproved, None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            expected, found = model(images.contiguous()), self._forward(images, ()).logits
        if not torch.allclose(found, expected, rtol=0, atol=1e-3 * expected.abs().max()):
            raise UnsupportedLayerError(
                f"{type(model).__name__} computes something else than its layers one by one: an "
                "operation in place (+=) may overwrite what another one reads; write y = y + x"
            )

    def _forward(self, images: Tensor, keep: Collection[str]) -> Run:
        values, shapes, winners = {INPUT: images}, {INPUT: images.shape}, {}
        for layer in self.layers:
            a, m = [values[name] for name in layer.inputs], layer.module
            if isinstance(m, nn.MaxPool2d):
                z, winners[layer.name] = F.max_pool2d(
                    *a, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, True
                )
            else:
                z = m(*a)
            values[layer.name], shapes[layer.name] = z, z.shape
            for name in layer.inputs:
                if name not in keep and self._last_reader[name] == layer.name:
                    values.pop(name, None)
        return Run(z, values, shapes, winners)


def target_weights(logits: Tensor, target: Target) -> Tensor:
    """Say what is explained: weights of the logits whose weighted sum is the explained value.

    Parameters
    ----------
    logits : Tensor, shape (n, classes)
        Outputs of the network.
    target : int, integer Tensor of shape (n,), "predicted", or a pair of these
        A class for all images; a class per image; the class with the largest logit. A pair
        (p, q) stands for the difference of the logits, p - q. Weights, a float Tensor of shape
        (n, classes), stay as they are.

    Returns
    -------
    Tensor, shape (n, classes)
        1 at the explained class, -1 at the class it is compared with, 0 elsewhere.

    Raises
    ------
    ValueError
        If a class does not exist or is no integer, or there is not one class per image.
    """
    if isinstance(target, Tensor) and target.is_floating_point() and target.ndim == 2:
        if target.shape != logits.shape:
            shapes = tuple(target.shape), tuple(logits.shape)
            raise ValueError("weights have shape {}, but logits {}".format(*shapes))
        return target
    if isinstance(target, tuple):
        first, second = target
        return target_weights(logits, first) - target_weights(logits, second)
    n, k = logits.shape
    if isinstance(target, str):
        if target != "predicted":
            raise ValueError(f'target {target!r}: give a class, one class per image or "predicted"')
        classes = logits.argmax(dim=1)
    else:
        classes = torch.as_tensor(target, device=logits.device)
        if classes.is_floating_point() or classes.dtype == torch.bool:
            raise ValueError(
                f"target {target!r} is no class: give an integer, one per image, or weights of "
                f"shape {tuple(logits.shape)}"
            )
        if classes.ndim and classes.shape != (n,):
            raise ValueError(f"target has shape {tuple(classes.shape)}, but there are {n} images")
        if n and not 0 <= classes.min() <= classes.max() < k:
            raise ValueError(f"target {target} names no class: choose from 0 to {k - 1}")
        classes = classes.expand(n)
    return F.one_hot(classes.long(), k).to(logits.dtype)
