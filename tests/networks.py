"""Small networks, images and comparisons that the tests of relevance propagation share."""

import copy
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from nbsupport import lrp
from nbsupport.models import Add, Concat, build

N = 3
TINY = 1e-12


@cache
def images():
    return torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@cache
def trained(name="inception"):
    """A network after a few steps: BatchNorm and biases have moved from the start."""
    model = build(name, seed=0, dropout=0.0).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(6):
        loss = F.cross_entropy(model(images()), torch.arange(N) + 5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images())  # the statistics catch up with the weights
    return model.eval()


@cache
def exact(name="inception"):
    """The same in double precision, where only real differences remain."""
    return copy.deepcopy(trained(name)).double()


def unbiased(*, seed=0):
    """A ReLU network with branches and without any bias."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.pool = nn.MaxPool2d(3, stride=1, padding=1)
            self.two = nn.Conv2d(3, 5, 1, bias=False)
            self.concat = Concat()

        def forward(self, x):
            return self.concat(self.one(x), self.two(self.pool(x)))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            Branches(),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(9, 12, 3, stride=2, bias=False),
            nn.ReLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(588, 10, bias=False),
        ).double()


def unbiased_residual(*, seed=0):
    """The same with a shortcut and average poolings, one of them overlapping."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.shortcut, self.add = nn.Identity(), Add()

        def forward(self, x):
            return self.add(self.conv(x), self.shortcut(x))

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, padding=1),
            Block(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 10, bias=False),
        ).double()


def channels(model, images, composite, **settings):
    return lrp.explain(model, images, composite=composite, channels=True, **settings).relevance


def layer_names(model):
    return [n for n, m in model.named_modules() if not [*m.children()]]


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def cosine(ours, theirs):
    return float(F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min())
