"""A network read layer by layer: what it computes, in order, or the place that cannot be explained.

Hooks see only modules, and would miss a functional ReLU in silence. The trace sees everything: it
takes what is written as a function for the layer that does the same, and refuses by name what has
no exact propagation.
"""

import copy
import operator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from nbsupport.models import Add, Concat, Gate, Normalise

__all__ = ["INPUT", "Layer", "UnsupportedLayerError", "copied", "named_by", "penultimate", "trace"]

INPUT = "<images>"
"""The name under which layers read the images."""

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Tanh,
)
"""Functions of one unit that keep its sign: its relevance passes as it is."""

GATES = (nn.Sigmoid, nn.Hardsigmoid)
"""Functions whose values weigh what they are multiplied with, and say nothing themselves."""

RESHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
"""Layers behind which a gate is still a gate."""

SUPPORTED = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    *ACTIVATIONS,
    nn.Dropout,
    nn.Dropout2d,
    *RESHAPES,
    *GATES,
    Gate,
    Concat,
    Add,
    Normalise,
)


class UnsupportedLayerError(ValueError):
    """A layer or operation through which relevance cannot be propagated exactly."""


@dataclass(frozen=True)
class Layer:
    """One layer of a network: its name, its module and the names of the layers it reads."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]


def copied(model: nn.Module) -> nn.Module:
    """Copy a model for evaluation, without gradients.

    Raises
    ------
    UnsupportedLayerError
        If it holds a tensor with a history, as pruned layers do, or what Python cannot copy.
    """
    try:
        return copy.deepcopy(_uncompiled(model)).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedLayerError(
            f"{type(model).__name__} cannot be copied ({error}): make pruning and weight norm "
            "final (torch.nn.utils.prune.remove, remove_weight_norm), and keep no results of "
            "forward, open files, writers or locks in attributes"
        ) from None


def _uncompiled(model: nn.Module) -> nn.Module:
    """Take the network itself out of what torch.compile made of it."""
    return getattr(model, "_orig_mod", model)


def trace(model: nn.Module) -> tuple[Layer, ...]:
    """List the layers of a model in the order of computation, refusing what cannot be exact.

    Parameters
    ----------
    model : nn.Module
        Maps one batch of images to logits, by layers of the supported types or by functions that
        do the same: activations, pooling, dropout, flattening, sums, concatenation, and products
        with a sigmoid. Give a copy: its forward runs, on no real images.

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
    kind = type(model).__name__
    # Those of a container would run in here, on no real images, and keep what they are given.
    for name, module in model.named_modules():
        if name and _hooked(module):
            raise UnsupportedLayerError(f"layer {name!r} {_HOOKED}")
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever a forward does with something that is no tensor
        advice = (
            "write its forward without branches on tensors and without Python numbers made of "
            "their shapes"
        )
        if "required positional argument" in str(error):
            advice = "it is called with images alone: give its other arguments defaults"
        if "not installed as a submodule" in str(error):
            advice = "make each layer in __init__ and keep it as an attribute (or in a ModuleList)"
        raise UnsupportedLayerError(
            f"{kind} cannot be read layer by layer ({error}): {advice}"
        ) from error
    layers, names = {}, {}
    for node in nodes:
        if node.op == "placeholder":  # there is one, the images
            names[node] = INPUT
        elif node.op == "output":
            if not layers or names.get(node.args[0]) != list(layers)[-1]:
                raise UnsupportedLayerError(
                    f"{kind} must return the output of its last layer, the logits"
                )
        elif not _lengths(node):
            for layer in _read(node, model, names, layers, nodes):
                layers[layer.name], names[node] = layer, layer.name
    if layers and _is_gate(last := list(layers)[-1], layers):
        raise UnsupportedLayerError(f"layer {last!r} {_PROBABILITIES}")
    read = {name for layer in layers.values() for name in layer.inputs}
    for name in list(layers)[:-1]:
        if name not in read:
            raise UnsupportedLayerError(f"layer {name!r} is computed but never reaches the logits")
    return tuple(layers.values())


def named_by(model: nn.Module, attribute: str) -> str | None:
    """Return the layer that a model, or the only part of it that does so, names by an attribute."""
    named = [
        f"{place}.{name}".lstrip(".")
        for place, part in _uncompiled(model).named_modules()
        if isinstance(name := getattr(part, attribute, None), str)
    ]
    return named[0] if len(named) == 1 else None


def penultimate(model: nn.Module) -> str | None:
    """Name the layer whose activations stand for an image in Activation Clustering.

    Parameters
    ----------
    model : nn.Module
        See :func:`trace`.

    Returns
    -------
    str or None
        What the model's attribute ``penultimate`` names; otherwise the layer that the last dense
        layer reads. None without a dense layer behind another layer. What only makes a gate does
        not count.
    """
    if named := named_by(model, "penultimate"):
        return named
    layers = trace(copied(model))
    signal = {layers[-1].name}
    for layer in reversed(layers):
        if layer.name in signal:
            signal.update(layer.inputs[:1] if isinstance(layer.module, Gate) else layer.inputs)
    dense = [each for each in layers if isinstance(each.module, nn.Linear) and each.name in signal]
    return dense[-1].inputs[0] if dense and dense[-1].inputs[0] != INPUT else None


class _Proxy(fx.Proxy):
    # Without these a traced += would look like a + that makes a new tensor.
    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        known = isinstance(module, SUPPORTED) or _of_torchvision(module)
        return bool(known) or super().is_leaf_module(module, name)

    def proxy(self, node):
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        # As the network will be called, with images alone: other arguments keep their defaults.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


def _of_torchvision(module) -> nn.Module | None:
    """Give the layer that does the same, where torchvision has one of its own."""
    kind = f"{type(module).__module__.split('.')[0]}.{type(module).__name__}"
    if kind == "torchvision.Normalize":
        return Normalise(module.mean, module.std)
    if kind == "torchvision.StochasticDepth":
        return nn.Identity()  # but for training
    return None


def _is_gate(name: str, layers) -> bool:
    """Whether a layer gives numbers from 0 to 1, reshaped perhaps."""
    layer = layers.get(name)
    if layer and isinstance(layer.module, RESHAPES):
        return _is_gate(layer.inputs[0], layers)
    return bool(layer) and isinstance(layer.module, GATES)


def _names(types):
    return ", ".join(kind.__name__ for kind in types)


def _read(node, model, names, layers, nodes) -> list[Layer]:
    """Make layers of a call, checked; their names are used by no other."""
    place = ["", *node.meta.get("nn_module_stack", {})][-1]
    inside = f"in {place or type(model).__name__!r}"
    if node.op == "get_attr":
        raise UnsupportedLayerError(
            f"{node.name!r} {inside} is a tensor beside the images; only layers may compute with "
            "it (models.Normalise takes a mean away)"
        )
    if node.op == "call_module":
        called, modules, sources = node.target, model.get_submodule(node.target), node.args
        if node.kwargs:
            raise UnsupportedLayerError(f"layer {called!r} must be called without keywords")
        modules = _of_torchvision(modules) or modules
    else:
        called = f"{place}.{node.name}".lstrip(".")
        try:
            if node.target not in _SIZED and any(map(_lengths, node.all_input_nodes)):
                raise ValueError  # a size where only numbers are understood
            if node.target == "expand_as" and not _is_gate(names.get(node.args[0]), layers):
                raise ValueError  # only a product stretches by itself
            modules, *sources = _FUNCTIONS[node.target](*node.args, **node.kwargs)
        except (KeyError, TypeError, ValueError):
            raise UnsupportedLayerError(
                f"{node.name!r} {inside} ({node.format_node()}) is a function without a rule: "
                f"write it with layers ({_names(SUPPORTED)})"
            ) from None
    found = []
    for module in modules if isinstance(modules, tuple) else (modules,):
        taken = {*layers, *(layer.name for layer in found)}
        name, use = called, 2
        while name in taken:
            name, use = f"{called}:{use}", use + 1
        problem = None if found else _unreadable(sources, names)
        if problem := problem or _problem(module):
            raise UnsupportedLayerError(f"layer {name!r} {problem}")
        inputs = [found[-1].name] if found else [names[source] for source in sources]
        if problem := _misplaced(module, [_is_gate(each, layers) for each in inputs]):
            raise UnsupportedLayerError(f"layer {name!r} {problem}")
        if isinstance(module, Gate):
            inputs.sort(key=lambda each: _is_gate(each, layers))  # the signal, then the gate
        found.append(Layer(name, module, tuple(inputs)))
    if getattr(modules, "inplace", False) or node.target in _OVERWRITING:
        later = nodes[nodes.index(node) + 1 :]
        if reader := next((user for user in sources[0].users if user in later), None):
            raise UnsupportedLayerError(
                f"layer {found[0].name!r} overwrites what {reader.name!r} reads after it: set "
                "inplace=False, or write y = y + x, and train again if that is not what was meant"
            )
    return found


def _unreadable(sources, names) -> str | None:
    if any(not isinstance(source, fx.Node) or source not in names for source in sources):
        return "must be called with outputs of other layers only"
    return None


def _misplaced(module, gated) -> str | None:
    """Say what is wrong with a gate; `gated` tells which inputs come from a sigmoid."""
    if isinstance(module, Gate):
        if sum(gated) != 1:
            return "multiplies: one factor, and one alone, must come straight from a sigmoid"
    elif any(gated) and not isinstance(module, RESHAPES):
        return "reads a sigmoid, which may only weigh what it is multiplied with"
    return None


def _hooked(module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


_HOOKED = "has a hook or a forward of its own, which may change what it computes: remove it"
_PROBABILITIES = (
    "makes probabilities: at the end leave it out, for the logits before it are explained; "
    "inside a network it has no rule"
)


def _problem(module) -> str | None:
    """Say what keeps relevance from passing a layer exactly, if anything does."""
    # Exact types: a subclass may compute something else.
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        return _PROBABILITIES
    if type(module) not in SUPPORTED:
        return f"is of type {type(module).__name__}; supported: {_names(SUPPORTED)}"
    if "forward" in vars(module):
        return _HOOKED
    if isinstance(module, nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return "must pad with zeros, by a number of pixels"
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        return "keeps no running statistics: relevance would depend on the batch"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return "must return the largest values alone, not where they are"
    if isinstance(module, nn.AvgPool2d) and (
        module.ceil_mode
        or module.divisor_override
        or not (module.count_include_pad or module.padding in (0, (0, 0)))
    ):
        return "must divide the sum of each window by the number of its pixels, padding included"
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return "must keep the images apart and flatten all the rest (start_dim=1)"
    if isinstance(module, nn.Unflatten) and module.dim != 1:
        return "must keep the images apart (dim=1)"
    return None


# What a function is called with, and the layer (or layers, one behind the other) that does the same
# on its sources. A call that does not fit here is refused.
def _activation(kind):
    return lambda x, *settings, **named: (kind(*settings, **named), x)


def _product(x, y):
    return Gate(), x, y


def _sum(x, y):
    return Add(), x, y


def _concatenation(xs, dim=0):
    return (Concat(), *xs) if dim == 1 else ()


def _flat(x, start_dim=0, end_dim=-1):
    return nn.Flatten(start_dim, end_dim), x


def _rows(x, *shape):
    """Reshape to one row an image: ``x.view(x.size(0), -1)`` or ``x.view(-1, 400)``.

    Or to maps of one pixel, as a gate of dense layers is made: ``x.view(n, c, 1, 1)``.
    """
    n, rest, *sides = shape if len(shape) > 1 else shape[0]
    if sides not in ([], [1, 1]):
        return ()
    # That 400, or x.size(1), is all an image has is seen when the network is tried on images.
    if of := _lengths(n):
        one_each = of[1] == (0,) and (isinstance(rest, int) or _lengths(rest))
    else:
        one_each = n == -1 and (isinstance(rest, int) or _lengths(rest))
    spread = (nn.Unflatten(1, (-1, 1, 1)),) if sides else ()
    return ((nn.Flatten(), *spread), x) if one_each else ()


def _mean(x, dim=None, keepdim=False):
    places = sorted(axis % 4 for axis in dim) if isinstance(dim, list | tuple) else None
    if places != [2, 3]:
        return ()
    pool = nn.AdaptiveAvgPool2d(1)
    return (pool if keepdim else (pool, nn.Flatten())), x


def _dropout(x, p=0.5, training=True, inplace=False):
    # Without training=self.training it is always on; that is seen when the network is tried.
    return nn.Dropout(p).eval(), x


def _nothing(x, *_):
    return nn.Identity(), x


def _probabilities(x, *_, **__):
    return nn.Softmax(1), x  # refused, and it is said why


def _max_pool(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):  # fmt: skip
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode), x


def _avg_pool(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
):  # fmt: skip
    sides = _each(kernel_size)
    if any(_lengths(side) for side in sides):
        once = stride is None or [*map(_lengths, _each(stride))] == [*map(_lengths, sides)]
        plain = padding in (0, (0, 0), [0, 0]) and divisor_override is None
        return _whole_map_pool(x, sides) if once and plain else ()
    if any(_lengths(part) for part in (*_each(stride), *_each(padding), divisor_override)):
        return ()
    settings = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return nn.AvgPool2d(*settings), x


def _each(sides):
    return sides if isinstance(sides, list | tuple) else (sides,)


def _whole_map_pool(x, sides):
    """Average over all of a map: ``F.avg_pool2d(x, x.size(3))`` or ``(x, x.shape[2:])``."""
    # That a single side is both height and width is seen when the network is tried on images.
    told = [of for side in sides if (of := _lengths(side)) and of[0] is x]
    axes = [axis for _, some in told for axis in some]
    whole = len(told) == len(sides) and axes in ([2], [3], [2, 3])
    return (nn.AdaptiveAvgPool2d(1), x) if whole else ()


def _global_pool(x, output_size):
    return nn.AdaptiveAvgPool2d(output_size), x


# Functions by themselves, methods of a tensor by name.
_FUNCTIONS = {
    **dict.fromkeys(
        (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), _activation(nn.ReLU)
    ),
    **dict.fromkeys((torch.tanh, "tanh"), _activation(nn.Tanh)),
    **dict.fromkeys((torch.sigmoid, "sigmoid"), _activation(nn.Sigmoid)),
    F.relu6: _activation(nn.ReLU6),
    F.leaky_relu: _activation(nn.LeakyReLU),
    F.elu: _activation(nn.ELU),
    F.silu: _activation(nn.SiLU),
    F.gelu: _activation(nn.GELU),
    F.hardswish: _activation(nn.Hardswish),
    F.hardsigmoid: _activation(nn.Hardsigmoid),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _product),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _sum),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenation),
    **dict.fromkeys((torch.flatten, "flatten"), _flat),
    **dict.fromkeys(("view", "reshape", torch.reshape), _rows),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((F.dropout, F.dropout2d), _dropout),
    **dict.fromkeys(("contiguous", "expand_as"), _nothing),
    **dict.fromkeys(
        (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"),
        _probabilities,
    ),
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _global_pool,
}
_SIZED = ("view", "reshape", torch.reshape, F.avg_pool2d)
_OVERWRITING = (operator.iadd, operator.imul, torch.relu_, F.relu_, "relu_", "add_", "mul_")


def _lengths(node) -> tuple[fx.Node, tuple[int, ...]] | None:
    """Say of which tensor (n, c, h, w), and of which of its axes, a node tells the lengths.

    ``x.size(0)``, ``x.size()[0]`` and ``x.shape[0]`` tell (x, (0,)), ``x.shape`` tells all four
    axes; None for a node that tells none.
    """
    if not isinstance(node, fx.Node):
        return None
    if (node.op, node.target) == ("call_method", "size"):
        source, which = node.args[0], [*node.args[1:], *node.kwargs.values()]
        axes = (0, 1, 2, 3)
    elif node.target is getattr and node.args[1] == "shape":
        source, which, axes = node.args[0], [], (0, 1, 2, 3)
    elif node.target is operator.getitem and (of := _lengths(node.args[0])):
        (source, axes), which = of, [node.args[1]]
    else:
        return None
    for part in which:
        try:
            axes = axes[part] if isinstance(part, slice) else (axes[part],)
        except (IndexError, TypeError):
            return None
    return source, axes
