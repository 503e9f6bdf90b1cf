"""Images per second of augmentation and training: nbsupport against a plain torchvision loop.

    python benchmarks/training.py [--images 512] [--rounds 3] [--device cpu] [--threads 1]
                                  [--workers 0] [--model inception] [--json FILE]

- augment: our whole batches, against the paper's list of torchvision transforms image by image:
  with PIL from files, as an ImageFolder runs it, and with transforms.v2 on tensors.
- train: one epoch of `training.fit` by the profile fast, against a loop with a DataLoader,
  float32, NCHW, in a process of its own: there the allocator is not the one that `fit` has tuned.
- share of peak: the time that matrix products at their measured peak rate would need for the
  operations of that training; `ratio` is the share reached. Where training computes in bfloat16
  or TF32, the share of the float32 peak may exceed 1.

Ratios are baseline seconds over ours, best of the rounds, which take turns so that a busy machine
slows both. `max_rel_diff` compares the mean brightness of the augmented images, whose draws
differ, or the logits of one batch without augmentation and dropout; null for the peak.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from measure import Report, parser, take_turns
from PIL import Image
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms
from torchvision.transforms import v2

from nbsupport import training
from nbsupport.augmentation import augment
from nbsupport.data import Split
from nbsupport.devices import autocast, pick_device
from nbsupport.models import build
from nbsupport.scenarios import N_CLASSES, PROFILES

FAST = replace(PROFILES["fast"], epochs=1)


def paper_transforms(kind):
    """The paper's list, from torchvision's `transforms` or `transforms.v2`."""
    return [
        kind.RandomResizedCrop(32, scale=(0.6, 1.0)),
        kind.RandomRotation(15),
        kind.ColorJitter(0.1, 0.1, 0.1, 0.1),
        kind.RandomAffine(15),
        kind.RandomGrayscale(0.1),
    ]


class Tensors(Dataset):
    """Images in memory, distorted one by one with transforms.v2."""

    def __init__(self, split):
        self.images, self.labels = split.images, split.labels.tolist()
        self.distort = v2.Compose([*paper_transforms(v2), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.distort(self.images[i]), self.labels[i]


def random_split(n):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n) % N_CLASSES, torch.arange(n), torch.arange(n))


def write_images(split, folder):
    """Write the images as GTSRB has them, PPM files in one folder a class."""
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = Path(folder, f"{label:05d}", f"{i:05d}.ppm")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def image_folder(folder):
    distort = transforms.Compose([*paper_transforms(transforms), transforms.ToTensor()])
    return datasets.ImageFolder(folder, distort)


def augment_ours(split, device):
    generator = torch.Generator().manual_seed(0)
    batches = split.images.to(device).split(FAST.batch_size)
    return sum(augment(batch, generator).mean() * len(batch) for batch in batches)


def augment_theirs(batches, device):
    return sum(images.to(device).mean() * len(images) for images, _ in batches)


def train_ours(name, split, device):
    model, one = build(name, dropout=FAST.dropout), split.select(torch.arange(1))
    training.fit(model, split, one, FAST, seed=0, device=device)


def train_theirs(name, folder, options, device):
    batches = DataLoader(image_folder(folder), FAST.batch_size, shuffle=True, **options)
    model = build(name, dropout=FAST.dropout).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=FAST.weight_decay)
    scheduler = OneCycleLR(optimizer, FAST.learning_rate, total_steps=len(batches))
    for images, labels in batches:
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def difference_of_logits(name, split, device):
    """Largest difference between the two layouts and precisions, over the largest logit."""
    images, logits = split.images[: FAST.batch_size].to(device) / 255, []
    ways = {torch.channels_last: FAST.precision, torch.contiguous_format: "fp32"}
    for layout, precision in ways.items():
        model = build(name, dropout=0.0).to(device, memory_format=layout).train()
        with autocast(device, precision), torch.no_grad():
            logits.append(model(images.contiguous(memory_format=layout)).float())
    return float((logits[0] - logits[1]).abs().max() / logits[1].abs().max())


def operations(name):
    """Floating point operations of a forward and a backward pass, an image."""
    model = build(name)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2


def main():
    options = parser(__doc__)
    for option, number in {"images": 512, "rounds": 3, "workers": 0}.items():
        options.add_argument(f"--{option}", type=int, default=number)
    options.add_argument("--model", default="inception")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    n, name, rounds = arguments.images, arguments.model, arguments.rounds
    split, device = random_split(n), pick_device(arguments.device)
    side = 8192 if device.type == "cuda" else 1024
    report = Report(device=device.type, threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        workers = {"num_workers": arguments.workers, "persistent_workers": arguments.workers > 0}
        write_images(split, folder)
        files, tensors = (
            DataLoader(dataset, FAST.batch_size, shuffle=True, **workers)
            for dataset in (image_folder(folder), Tensors(split))
        )
        functions = {
            "ours": lambda: augment_ours(split, device),
            "torchvision PIL from files": lambda: augment_theirs(files, device),
            "torchvision v2 on tensors": lambda: augment_theirs(tensors, device),
        }
        seconds, sums = take_turns(functions, rounds, device)
        for label in [*functions][1:]:
            difference = float(abs(sums["ours"] / sums[label] - 1))
            report.row("augment", label, n, seconds["ours"], seconds[label], difference)
        label = "DataLoader, PIL, float32 NCHW"
        plain = (name, folder, {"num_workers": arguments.workers}, device)
        start = {"initializer": torch.set_num_threads, "initargs": (arguments.threads,)}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **start) as elsewhere:
            functions = {
                "ours": lambda: train_ours(name, split, device),
                label: lambda: elsewhere.submit(train_theirs, *plain).result(),
            }
            ours, theirs = take_turns(functions, rounds, device)[0].values()
    report.row(f"train {name}", label, n, ours, theirs, difference_of_logits(name, split, device))
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(side, side, device=device).to(dtype)
        seconds, _ = take_turns({"matmul": lambda m=matrix: m @ m}, 3 * rounds, device)
        peak = 2 * side**3 / seconds["matmul"]
        label = f"peak {str(dtype).removeprefix('torch.')}, {peak / 1e9:.0f} GFLOP/s"
        report.row("share of peak", label, n, ours, n * operations(name) / peak)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
