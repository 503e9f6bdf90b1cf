"""The networks under attack: the one-module Inception of the paper.

Every ReLU and pooling layer is an ``nn.Module`` used once, so that hooks see the whole
computation: relevance propagation depends on it.
"""

import torch
from torch import Tensor, nn

__all__ = ["Concat", "ConvBlock", "Inception", "InceptionModule", "build", "count_parameters"]


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


def build(
    name: str = "inception", *, n_classes: int = 43, dropout: float = 0.5, seed: int = 0
) -> nn.Module:
    """Build a network with weights drawn from ``seed``, leaving torch's global state untouched.

    Parameters
    ----------
    name : {"inception"}
        Architecture.
    n_classes : int
        Number of logits.
    dropout : float, in [0, 1)
        Dropout of the dense layers.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    ValueError
        If the architecture is unknown.
    """
    architectures = {"inception": Inception}
    if name not in architectures:
        raise ValueError(f"unknown model {name!r}; choose one of {sorted(architectures)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architectures[name](n_classes=n_classes, dropout=dropout)


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
