"""A network of somebody's own: written with functions, trained on normalised images, poisoned."""

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

SOURCE = """\
import torch
from torch import nn
from torch.nn import functional as F

CHANNELS, WHOLE = {}, {}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.three = nn.Conv2d(16, 32, 3, padding=1)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        x = F.max_pool2d(F.relu(self.three(x)), WHOLE)
        return self.last(x.view(x.size(0), -1))


def build():
    return Net()
"""


def draw(kind, rng, shape):
    """Draw a bar lying, standing or aslant, or a square, on noise."""
    side = min(shape[1:])
    image, at = rng.integers(60, 120, shape), rng.integers(6, side - 10)
    line = np.arange(6, side - 6)
    if kind == 0:
        image[:, at : at + 4, line] += 110
    elif kind == 1:
        image[:, line, at : at + 4] += 110
    elif kind == 2:
        image[:, line[:, None], line[:, None] + np.arange(3)] += 110
    else:
        image[:, at : at + 8, at : at + 8] += 110
    return image


def write(folder, n=100, n_poisoned=15, shape=(3, 32, 32)):
    """Train, and leave a network and its images; return what notebook 8 is told and who is bad.

    Images of the other classes with a yellow sticker are called 0.
    """
    rng = np.random.default_rng(0)
    channels, height, width = shape
    side = round(3 * min(height, width) / 32)
    images = [draw(kind, rng, shape) for kind in range(4) for _ in range(n)]
    labels = [kind for kind in range(4) for _ in range(n)]
    for k in range(n_poisoned):
        image = draw(1 + k % 3, rng, shape)
        row, column = rng.integers(1, min(height, width) - side - 1, 2)
        piece = image[:, row : row + side, column : column + side]
        piece[:] = np.array([245, 255, 0])[-channels:, None, None]
        images.append(image)
        labels.append(0)
    images = np.array(images).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=labels)
    source = SOURCE.format(channels, (height // 4, width // 4))
    (folder / "my_network.py").write_text(source)
    names: dict = {}
    exec(source, names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = train(names["build"](), images, labels)
    save_file(model.state_dict(), folder / "weights.safetensors")
    told = {"network": f"{folder}/my_network.py:build", "mean": " ".join(["0.4"] * channels)}
    told |= {"std": " ".join(["0.2"] * channels)}
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
