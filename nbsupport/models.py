"""The networks under attack: the one-module Inception of the paper and a residual network.

Every ReLU, pooling and addition is an ``nn.Module`` used once, so that every step of relevance
propagation has a name (`nbsupport.tracing` reads networks that are written with functions, too). A
network names two of its layers:
``first_features``, the output of its first building block, and ``penultimate``, the layer whose
activations Activation Clustering reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "NOT_FINITE",
    "Add",
    "Concat",
    "ConvBlock",
    "ConvNorm",
    "Gate",
    "Inception",
    "InceptionModule",
    "Normalise",
    "ResNet",
    "Residual",
    "build",
    "check_logits",
    "count_parameters",
]

NOT_FINITE = "returns logits that are not finite numbers; look for NaN or infinity in its weights"
"""What is wrong with a network, behind its name."""


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, ReLU: the paper's building block.

    Parameters
    ----------
    channels_in, channels_out : int
        Number of feature maps.
    kernel : int
        Side of the square kernel.
    padding : int, default 0
        Zero padding on each side.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=padding)
        self.norm = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()


class Concat(nn.Module):
    """Concatenate feature maps along the channels, as a module so that hooks can name it."""

    def forward(self, *maps: Tensor) -> Tensor:
        """Join maps of shape (n, c_k, h, w) to (n, sum of c_k, h, w)."""
        return torch.cat(maps, dim=1)


class InceptionModule(nn.Module):
    """Four parallel branches on the image, joined to 256 feature maps of the same size.

    Szegedy et al. 2015, in the variant of the released code: the pooling branch takes the
    maximum, and the module sits directly on the three colour channels.
    """

    def __init__(self):
        super().__init__()
        self.b1 = ConvBlock(3, 64, 1)
        self.b2 = nn.Sequential(ConvBlock(3, 48, 1), ConvBlock(48, 64, 5, padding=2))
        self.b3 = nn.Sequential(
            ConvBlock(3, 64, 1), ConvBlock(64, 96, 3, padding=1), ConvBlock(96, 96, 3, padding=1)
        )
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBlock(3, 32, 1))
        self.concat = Concat()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, h, w) to features (n, 256, h, w)."""
        return self.concat(self.b1(x), self.b2(x), self.b3(x), self.b4(x))


class Inception(nn.Module):
    """The paper's network: one Inception module, three convolutions, three dense layers.

    1,110,027 trainable parameters for 43 classes ("about one million", Section 5.6).

    Parameters
    ----------
    n_classes : int, default 43
        Number of output logits.
    dropout : float, default 0.5
        Probability of dropping a unit after each hidden dense layer.

    Notes
    -----
    Layer sizes come from the released code, which the text does not give. ``relu2`` is the
    penultimate layer (128 values) that Activation Clustering reads.
    """

    penultimate = "relu2"
    first_features = "inception.concat"

    def __init__(self, n_classes: int = 43, dropout: float = 0.5):
        super().__init__()
        self.inception = InceptionModule()
        self.pool1 = nn.MaxPool2d(2)
        self.conv1 = ConvBlock(256, 256, 2)
        self.pool2 = nn.MaxPool2d(2)
        self.conv2 = ConvBlock(256, 256, 2)
        self.pool3 = nn.MaxPool2d(2)
        self.conv3 = ConvBlock(256, 256, 2)
        self.pool4 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(256, 256)
        self.relu1 = nn.ReLU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(256, 128)
        self.relu2 = nn.ReLU()
        self.drop2 = nn.Dropout(dropout)
        self.fc3 = nn.Linear(128, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) with values in [0, 1] to logits (n, n_classes)."""
        x = self.pool1(self.inception(x))
        x = self.pool2(self.conv1(x))
        x = self.pool3(self.conv2(x))
        x = self.flatten(self.pool4(self.conv3(x)))
        x = self.drop1(self.relu1(self.fc1(x)))
        x = self.drop2(self.relu2(self.fc2(x)))
        return self.fc3(x)


class Add(nn.Module):
    """Add feature maps of the same shape, as a module so that hooks can name it."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Add two maps of shape (n, c, h, w)."""
        return one + other


class Gate(nn.Module):
    """Weigh feature maps by numbers from 0 to 1, as squeeze and excitation does.

    All relevance goes to the signal: the gate says how much passes, and not what (Arras et al.
    2017, Explaining recurrent neural network predictions in sentiment analysis).
    """

    def forward(self, signal: Tensor, gate: Tensor) -> Tensor:
        """Multiply maps of shape (n, c, h, w) by a gate that stretches to it, (n, c, 1, 1) say."""
        return signal * gate


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation, channel by channel, inside the network.

    Everything here hands images to a network with values from 0 to 1. For one that was trained on
    normalised images, ``nn.Sequential(Normalise(mean, std), network)`` takes such values.
    Relevance passes unchanged, from each normalised pixel to the pixel it was made from.

    Parameters
    ----------
    mean, std : sequence of float
        One number per channel, or one for all, for values from 0 to 1.

    Raises
    ------
    ValueError
        If there are not as many deviations as means, a mean is not between 0 and 1, or a deviation
        is not above 0 and up to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        mean, std = torch.tensor([*mean]).float(), torch.tensor([*std]).float()
        within = ((mean >= 0) & (mean <= 1)).all() and ((std > 0) & (std <= 1)).all()
        if not 0 < len(mean) == len(std) or not within:
            raise ValueError(
                f"mean {[*map(float, mean)]} and std {[*map(float, std)]}: give one number per "
                "channel, for values from 0 to 1 (of 0 to 255: divide by 255), and positive "
                "deviations"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images of shape (n, c, h, w), c as many as there are means, or any for one."""
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(
                f"mean and std have {len(self.mean)} numbers for images of {images.shape[1]} "
                "channels; give one number per channel, or one for all"
            )
        # In half precision it must not make floats of the images again.
        mean, std = (each.to(images.dtype)[:, None, None] for each in (self.mean, self.std))
        return (images - mean) / std


class ConvNorm(nn.Sequential):
    """Convolution and batch normalisation, whose shift makes a bias of the convolution idle.

    Parameters
    ----------
    channels_in, channels_out : int
        Number of feature maps.
    kernel : int
        Side of the square kernel, odd; zero padding keeps the size of the map.
    stride : int, default 1
        Step of the kernel.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out)


class Residual(nn.Module):
    """Two convolutions whose result is added to their input (He et al. 2016, Figure 2).

    Where the shape changes, the input passes a 1x1 convolution of the same stride (their
    "option B"), a layer like any other to relevance propagation.

    Parameters
    ----------
    channels_in, channels_out : int
        Number of feature maps.
    stride : int, default 1
        Step of the first convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1):
        super().__init__()
        self.one = ConvNorm(channels_in, channels_out, 3, stride)
        self.relu1 = nn.ReLU()
        self.two = ConvNorm(channels_out, channels_out, 3)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else ConvNorm(channels_in, channels_out, 1, stride)
        self.add = Add()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map features (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        return self.relu2(self.add(self.two(self.relu1(self.one(x))), self.shortcut(x)))


class ResNet(nn.Module):
    """A residual network of 20 layers for small images, as large as the paper's Inception.

    1,088,843 trainable parameters for 43 classes. The paper leaves other architectures to
    future work; with the same number of parameters, what differs is the architecture.

    Parameters
    ----------
    n_classes : int, default 43
        Number of output logits.
    dropout : float, default 0.5
        Probability of dropping a unit of the pooled features.

    Notes
    -----
    ResNet-20 of He et al. 2016, Section 4.2 (three stages of three blocks at 32, 16 and 8 pixels,
    global average pooling, one dense layer), with twice the feature maps: 32, 64 and 128. The
    pooled features (128 values) are the penultimate layer, as in the paper's network.
    """

    penultimate = "flatten"
    first_features = "relu"

    def __init__(self, n_classes: int = 43, dropout: float = 0.5):
        super().__init__()
        self.stem = ConvNorm(3, 32, 3)
        self.relu = nn.ReLU()
        self.stage1 = self._stage(32, 32, stride=1)
        self.stage2 = self._stage(32, 64, stride=2)
        self.stage3 = self._stage(64, 128, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(128, n_classes)

    @staticmethod
    def _stage(channels_in, channels_out, stride):
        first = Residual(channels_in, channels_out, stride)
        return nn.Sequential(first, *(Residual(channels_out, channels_out) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) with values in [0, 1] to logits (n, n_classes)."""
        x = self.relu(self.stem(x))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.drop(self.flatten(self.pool(x))))


def build(
    name: str = "inception", *, n_classes: int = 43, dropout: float = 0.5, seed: int = 0
) -> nn.Module:
    """Build a network with weights drawn from ``seed``, leaving torch's global state untouched.

    Parameters
    ----------
    name : {"inception", "resnet"}
        Architecture.
    n_classes : int
        Number of logits.
    dropout : float, in [0, 1)
        Probability of dropping a unit, where the network says.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    ValueError
        If the architecture is unknown.
    """
    architectures = {"inception": Inception, "resnet": ResNet}
    if name not in architectures:
        raise ValueError(f"unknown model {name!r}; choose one of {sorted(architectures)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU as well
        return architectures[name](n_classes=n_classes, dropout=dropout)


def check_logits(logits: Tensor) -> None:
    """Raise ValueError unless a network's outputs are rows of logits, shape (n, classes)."""
    if logits.ndim != 2:
        raise ValueError(
            f"the network returns shape {tuple(logits.shape)}; needs (n, classes): flatten its "
            "output"
        )


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
