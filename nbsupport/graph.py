"""A network as a list of layers that runs forward and remembers what relevance needs."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nbsupport.devices import first_weights
from nbsupport.models import NOT_FINITE, Add, Gate, check_logits
from nbsupport.tracing import INPUT, Layer, UnsupportedLayerError, copied, trace

__all__ = ["Forward", "Network", "Target", "fold_batch_norm", "target_weights"]

Target = int | str | Tensor | tuple["Target", "Target"]


def fold_batch_norm(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Canonise: merge each BatchNorm at evaluation into a copy of the convolution before it.

    Parameters
    ----------
    layers : tuple of Layer
        From :func:`~nbsupport.tracing.trace`, of a model in evaluation mode.

    Returns
    -------
    tuple of Layer
        The same names. Each BatchNorm is now an identity, but for those that do not read a
        convolution which nothing else reads. All outputs are the same but those of the merged
        convolutions, which are now those of the BatchNorm behind.
    """
    folded = {layer.name: layer for layer in layers}
    read = [name for layer in layers for name in layer.inputs]
    for layer in layers:
        if not isinstance(layer.module, nn.BatchNorm2d):
            continue
        source = folded.get(layer.inputs[0])
        if not source or not isinstance(source.module, nn.Conv2d) or read.count(source.name) > 1:
            continue
        merged = fuse_conv_bn_eval(source.module, layer.module)
        folded[source.name] = replace(source, module=merged)
        folded[layer.name] = replace(layer, module=nn.Identity())
    return tuple(folded.values())


@dataclass(frozen=True)
class Forward:
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
        See :func:`~nbsupport.tracing.trace`. Its weights are copied: build a new network after
        training on.
    device : str or torch.device, optional
        Where to compute; the model's own device if not given.
    fold : bool, default False
        Merge BatchNorm into the convolutions.
    """

    def __init__(self, model: nn.Module, device=None, *, fold: bool = False):
        parameter = first_weights(model)
        # Shares of half precision would be rounding errors, and could be proved by nothing.
        self.dtype = torch.promote_types(parameter.dtype, torch.float32)
        self.device = torch.device(device or parameter.device)
        model = copied(model).to(self.device, self.dtype)
        self._unproved: nn.Module | None = copy.deepcopy(model)
        # Channels last: pooling is 20 times and convolution 1.4 times faster on a CPU.
        model.to(memory_format=torch.channels_last)
        self.layers = trace(model)
        for layer in self.layers:
            layer.module.to(self.device, self.dtype)  # some are made by `trace`, on the CPU
            if getattr(layer.module, "inplace", False):
                layer.module.inplace = False
        traced = self.layers
        if fold:
            self.layers = fold_batch_norm(traced)
        # Convolutions that took up a BatchNorm, and its name.
        self._merged = {
            after.inputs[0]: after.name
            for before, after in zip(traced, self.layers, strict=True)
            if isinstance(before.module, nn.BatchNorm2d) and after.module is not before.module
        }
        self.names = tuple(layer.name for layer in self.layers)
        self._last_reader = {name: layer.name for layer in self.layers for name in layer.inputs}

    def check_names(self, names: Collection[str]) -> None:
        """Raise ValueError for a name that is no layer of this network, or has no output here."""
        for name in names:
            if name not in self.names:
                raise ValueError(f"no layer {name!r}; choose from {', '.join(self.names)}")
            if name in self._merged:
                raise ValueError(
                    f"BatchNorm is merged into layer {name!r}, whose own output is not computed: "
                    f"take {self._merged[name]!r}, or a composite that does not fold"
                )

    def images(self, images: Tensor) -> Tensor:
        """Bring images to the device as floats; uint8 is divided by 255.

        Raises
        ------
        ValueError
            If the images are other integers, whose unit nobody can know.
        """
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype}; give uint8 from 0 to 255, or floats from 0 to 1"
            )
        scale = 255 if images.dtype == torch.uint8 else 1
        images = images.to(self.device, self.dtype) / scale
        return images.contiguous(memory_format=torch.channels_last)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Context in which layers compute in the precision of their inputs.

        GPUs would otherwise round float32 to 10 bits of mantissa (TF32), and autocast to 7, which
        small denominators of the rules amplify.
        """
        with torch.autocast(self.device.type, enabled=False), _unrounded():
            yield

    def forward(self, images: Tensor, keep: Collection[str] = ()) -> Forward:
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
            If the layers, tried on a few images, compute something else than the model.
        """
        if self._unproved is not None and len(images):
            self._prove(self._unproved, images[:2])
            self._unproved = None
        return self._forward(images, keep)

    def _prove(self, model: nn.Module, images: Tensor) -> None:
        """Compare with the model itself, on images and on noise, which leaves no layer at rest."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(images.shape, generator=generator, device="cpu")
        images = torch.cat([images, noise.to(images)]).contiguous()
        kind = type(model).__name__
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            expected, again = model(images.clone()), model(images.clone())  # it may overwrite them
            found = self._forward(images, ()).logits
        if not torch.isfinite(expected).all():
            raise UnsupportedLayerError(f"{kind} {NOT_FINITE}")
        # Each logit by its own range: a large bias on one must not hide an error of another.
        spread = expected.amax(0) - expected.amin(0)
        allowed = 1e-3 * spread + 1e-5 * expected.abs() + 1e-6 * expected.abs().max()
        if ((again - expected).abs() > allowed).any():
            raise UnsupportedLayerError(
                f"{kind} answers the same images differently each time: give functional dropout "
                "training=self.training"
            )
        if found.shape != expected.shape or ((found - expected).abs() > allowed).any():
            raise UnsupportedLayerError(
                f"{kind} computes something else than its layers one by one: it may change a "
                "tensor in place that another layer reads, mix images in a reshape, or take the "
                "width of an oblong map for its height"
            )

    def _forward(self, images: Tensor, keep: Collection[str]) -> Forward:
        values, shapes, winners = {INPUT: images}, {INPUT: images.shape}, {}
        for layer in self.layers:
            a, m = [values[name] for name in layer.inputs], layer.module
            _check_shapes(layer, a)
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
        return Forward(z, values, shapes, winners)


@contextmanager
def _unrounded() -> Iterator[None]:
    """No rounding of float32, by the switches that torch always had and those since version 2.9.

    The older ones bear no look where the newer ones say something else, and then are left alone;
    where they can be read both must say the same, or products of matrices fail on a GPU.
    """
    backends, matmul, tf32 = torch.backends, None, None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        tf32 = backends.cudnn.allow_tf32
    places = []
    if hasattr(backends, "fp32_precision"):
        places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        places += [backends.mkldnn.matmul, backends.mkldnn.conv]
    before = [place.fp32_precision for place in places]
    try:
        _set_older("highest" if matmul else None, None if tf32 is None else False)
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        _set_older(matmul, tf32)
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def _set_older(matmul: str | None, tf32: bool | None) -> None:
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32


def _check_shapes(layer: Layer, inputs: list[Tensor]) -> None:
    if isinstance(layer.module, nn.Linear) and inputs[0].ndim != 2:
        raise UnsupportedLayerError(
            f"layer {layer.name!r} is dense and reads {tuple(inputs[0].shape)}; flatten before it"
        )
    if isinstance(layer.module, Add) and inputs[0].shape != inputs[1].shape:
        shapes = " and ".join(str(tuple(each.shape)) for each in inputs)
        raise UnsupportedLayerError(f"layer {layer.name!r} adds {shapes}; they must be alike")
    if isinstance(layer.module, Gate):
        signal, gate = (tuple(each.shape) for each in inputs)
        if len(gate) != len(signal) or any(map(lambda s, g: g not in (1, s), signal, gate)):
            raise UnsupportedLayerError(
                f"layer {layer.name!r} weighs {signal} by {gate}; a gate must stretch to its signal"
            )


def target_weights(logits: Tensor, target: Target) -> Tensor:
    """Say what is explained: weights of the logits whose weighted sum is the explained value.

    Parameters
    ----------
    logits : Tensor, shape (n, classes)
        Outputs of the network.
    target : int, integer Tensor of shape (n,), "predicted", or a pair of these
        A class for all images; a class per image; the class with the largest logit. A pair
        (p, q) stands for the difference of the logits, p - q. Weights, a float Tensor of shape
        (n, classes), stay as they are, in the precision of the logits.

    Returns
    -------
    Tensor, shape (n, classes)
        1 at the explained class, -1 at the class it is compared with, 0 elsewhere.

    Raises
    ------
    ValueError
        If a class does not exist or is no integer, there is not one class per image, or the
        outputs are no rows of logits.
    """
    check_logits(logits)
    if isinstance(target, Tensor) and target.is_floating_point() and target.ndim == 2:
        if target.shape != logits.shape:
            shapes = tuple(target.shape), tuple(logits.shape)
            raise ValueError("weights have shape {}, but logits {}".format(*shapes))
        return target.to(logits)
    if isinstance(target, tuple):
        if len(target) != 2:
            raise ValueError(
                f"target {target!r} has {len(target)} parts; a pair (p, q) is the difference of "
                "two logits, a Tensor or a list holds one class per image"
            )
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
