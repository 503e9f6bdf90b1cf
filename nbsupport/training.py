"""Training on poisoned data.

Every draw of an epoch (order, augmentation, dropout) is seeded by the run and the number of the
epoch, so that training resumed after an interruption ends in the same weights as without it: bit by
bit on a CPU; on a GPU as far as sums are formed in a fixed order, for which cuDNN is asked.
"""

import copy
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from nbsupport.artifacts import STAGES, Run, atomic, checksum
from nbsupport.augmentation import augment
from nbsupport.devices import autocast, tune_allocator
from nbsupport.evaluation import Progress, predict
from nbsupport.scenarios import Profile

if TYPE_CHECKING:
    from nbsupport.data import Split

__all__ = ["Epoch", "TrainingError", "fit", "identity"]


class TrainingError(RuntimeError):
    """Training cannot go on; the message advises."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training showed.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    loss : float
        Mean training loss, on augmented images.
    validation_loss : float
        Mean loss on the (poisoned) validation set.
    validation_accuracy : float
        Accuracy there in percent.
    learning_rate : float
        At the end of the epoch.
    seconds : float
        Time for training and validation.
    """

    epoch: int
    loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float


def fit(
    model: nn.Module,
    train: "Split",
    validation: "Split",
    profile: Profile,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train until the validation loss has not fallen for ``profile.patience`` epochs.

    The weights of the epoch with the lowest validation loss are restored at the end (the released
    code means to do so and keeps the last ones).

    Parameters
    ----------
    model : Module
        Network, changed in place.
    train, validation : Split
        Poisoned data.
    profile : Profile
        Optimiser, schedule, batch size, epochs, patience, precision.
    seed : int
        Seeds order, augmentation and dropout.
    device : torch.device
        Where to compute; data and augmentation live there too.
    checkpoint : Path, optional
        File that holds the state after each epoch; training goes on from it.
    identity : str
        What is being trained; a checkpoint of anything else is left aside.
    progress : callable, optional
        Called with steps done, steps in all and a line of text.

    Returns
    -------
    list of Epoch
        One record an epoch.

    Raises
    ------
    TrainingError
        If a loss is not a number any more.
    """
    tune_allocator()
    model.to(device, memory_format=torch.channels_last)
    images, labels = train.images.to(device), train.labels.to(device)
    steps = math.ceil(len(images) / profile.batch_size)
    optimizer, scheduler = _optimizer(model, profile, steps)
    history: list[Epoch] = []
    best: dict = {}
    if checkpoint and (state := _load_checkpoint(checkpoint, identity)):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        history, best = [Epoch(**epoch) for epoch in state["history"]], state["best"]
    for number in range(len(history), profile.epochs):
        if _stalled(history, profile.patience):
            break
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        order = torch.randperm(len(images), generator=generator).to(device)
        model.train()
        total = torch.zeros((), device=device)
        # Dropout draws from torch's global generator: seed it for the epoch, then give it back.
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            _deterministic(),
        ):
            torch.manual_seed(seed * 1000 + number)
            for step, batch in enumerate(order.split(profile.batch_size)):
                inputs = augment(images[batch], generator)
                with autocast(device, profile.precision):
                    logits = model(inputs.contiguous(memory_format=torch.channels_last))
                loss = nn.functional.cross_entropy(logits.float(), labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                learning_rate = optimizer.param_groups[0]["lr"]
                scheduler.step()
                total += loss.detach() * len(batch)
                if progress and step % 8 == 7:
                    done, all_steps = number * steps + step + 1, profile.epochs * steps
                    text = f"epoch {number + 1} of {profile.epochs}, loss {loss.item():.3f}"
                    progress(done, all_steps, text)
        mean = total.item() / len(images)
        logits = predict(model, validation.images, device, profile.precision)
        answer = logits.argmax(1) == validation.labels
        validation_loss = nn.functional.cross_entropy(logits, validation.labels).item()
        for name, value in (("training", mean), ("validation", validation_loss)):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} loss became {value} in epoch {number + 1}; lower the learning "
                    f"rate ({profile.learning_rate:g}) or compute with precision 'fp32'"
                )
        history.append(
            Epoch(
                epoch=number + 1,
                loss=mean,
                validation_loss=validation_loss,
                validation_accuracy=100 * answer.float().mean().item(),
                learning_rate=learning_rate,
                seconds=time.perf_counter() - started,
            )
        )
        if history[-1].validation_loss <= min(e.validation_loss for e in history):
            best = copy.deepcopy(model.state_dict())
        if checkpoint:
            _save_checkpoint(checkpoint, identity, model, optimizer, scheduler, history, best)
        if progress:
            last = history[-1]
            progress(
                (number + 1) * steps,
                profile.epochs * steps,
                f"epoch {last.epoch}: loss {last.loss:.3f}, validation loss "
                f"{last.validation_loss:.3f}, accuracy {last.validation_accuracy:.2f} %, "
                f"{last.seconds:.0f} s",
            )
    model.load_state_dict(best)
    model.eval()
    return history


def identity(run: Run) -> str:
    """Name what is being trained: a checkpoint of anything else must not be resumed."""
    images = run.load("attack")["result"]["fingerprint"]  # a clean run's payload tells none
    recipe = f"{run.profile!r} version {STAGES['training'].version}"
    return f"{recipe} {run.scenario} {images} {checksum(run.payload('attack'))}"


def _optimizer(model: nn.Module, profile: Profile, steps: int):
    """Build the optimiser and its schedule, stepped once a batch."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[profile.optimizer]
    optimizer = kind(
        model.parameters(), lr=profile.learning_rate, weight_decay=profile.weight_decay
    )
    if profile.schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, profile.learning_rate, total_steps=steps * profile.epochs
        )
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return optimizer, scheduler


def _stalled(history: list[Epoch], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought no lower validation loss."""
    losses = [epoch.validation_loss for epoch in history]
    return len(losses) > patience and min(losses[-patience:]) > min(losses[:-patience])


@contextmanager
def _deterministic() -> Iterator[None]:
    """Convolutions that sum in the same order each time; other settings of cuDNN stay."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _load_checkpoint(path: Path, identity: str) -> dict | None:
    """Read where an interrupted training stood; nothing of another one, or of what is damaged."""
    if not path.exists():
        return None
    try:
        # To the CPU: the optimiser's counters stay there, and the rest is copied from there.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state if state["identity"] == identity else None
    except Exception as error:  # torch raises all kinds of what is no checkpoint
        warnings.warn(
            f"{path} cannot be read ({type(error).__name__}: {error}): training begins anew",
            stacklevel=3,
        )
        return None


def _save_checkpoint(path, identity, model, optimizer, scheduler, history, best) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        torch.save(
            {
                "identity": identity,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "history": [asdict(epoch) for epoch in history],
                "best": best,
            },
            temporary,
        )
