"""A network of somebody's own: written with functions, trained on normalised images, poisoned."""

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

SOURCE = """\
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.three = nn.Conv2d(16, 32, 3, padding=1)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        x = F.max_pool2d(F.relu(self.three(x)), 8)
        return self.last(x.view(x.size(0), -1))


def build():
    return Net()
"""


def draw(kind, rng):
    """Draw a bar lying, standing or aslant, or a square, on noise."""
    image, at = rng.integers(60, 120, (3, 32, 32)), rng.integers(6, 22)
    if kind == 0:
        image[:, at : at + 4, 6:26] += 110
    elif kind == 1:
        image[:, 6:26, at : at + 4] += 110
    elif kind == 2:
        image[:, np.arange(6, 26)[:, None], np.arange(6, 26)[:, None] + np.arange(3)] += 110
    else:
        image[:, at : at + 8, at : at + 8] += 110
    return image


def write(folder, n=100, n_poisoned=15):
    """Train, and leave a network and its images; return what notebook 8 is told and who is bad.

    Images of the other classes with a yellow sticker are called 0.
    """
    rng = np.random.default_rng(0)
    images = [draw(kind, rng) for kind in range(4) for _ in range(n)]
    labels = [kind for kind in range(4) for _ in range(n)]
    for k in range(n_poisoned):
        image = draw(1 + k % 3, rng)
        row, column = rng.integers(1, 28, 2)
        image[:, row : row + 3, column : column + 3] = np.array([245, 255, 0])[:, None, None]
        images.append(image)
        labels.append(0)
    images = np.array(images).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=labels)
    (folder / "my_network.py").write_text(SOURCE)
    names: dict = {}
    exec(SOURCE, names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = train(names["build"](), images, labels)
    save_file(model.state_dict(), folder / "weights.safetensors")
    told = {"network": f"{folder}/my_network.py:build", "mean": "0.4 0.4 0.4", "std": "0.2 0.2 0.2"}
    told |= {"weights": folder / "weights.safetensors", "images": folder / "images.npz"}
    return told, list(range(4 * n, len(labels)))


def train(model, images, labels, epochs=14):
    x, y = (torch.from_numpy(images) / 255 - 0.4) / 0.2, torch.tensor(labels)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()
