"""Where and how precisely to compute."""

import ctypes
import ctypes.util
import math
import platform
from contextlib import nullcontext
from functools import cache
from itertools import chain

import torch

__all__ = [
    "at_a_time", "autocast", "describe", "first_weights", "pick_device", "tune_allocator",
]  # fmt: skip


def pick_device(name: str = "auto") -> torch.device:
    """Choose the device: "cuda" where there is one, unless "cpu" is asked for.

    Raises
    ------
    ValueError
        If the name is unknown, or "cuda" is wanted where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}; choose 'auto', 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def first_weights(model: torch.nn.Module) -> torch.Tensor:
    """Return weights that tell precision and device of a model; buffers if it has no parameters."""
    tensors = (t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point())
    return next(tensors, torch.empty(0))


def at_a_time(batch_size: int, images: torch.Tensor) -> int:
    """Say how many images fit where ``batch_size`` of 32 x 32 pixels do: fewer larger ones."""
    return max(1, batch_size * 1024 // max(1024, math.prod(images.shape[-2:])))


def autocast(device: torch.device, precision: str):
    """Compute in bfloat16 where the device has units for it; emulated it would be slower."""
    device = torch.device(device)
    if precision == "auto" and _has_bf16(device.type):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def describe(device: torch.device, precision: str | None = None) -> str:
    """Say what computed, for a record: "cpu, 1 threads, bfloat16".

    Parameters
    ----------
    device : torch.device
        What computed.
    precision : str, optional
        That of a profile: which number format it came to on this device is told too, since the same
        training rounds differently elsewhere.
    """
    device = torch.device(device)
    text = f"{device.type}, {torch.get_num_threads()} threads"
    if precision is None:
        return text
    with autocast(device, precision):
        half = torch.is_autocast_enabled(device.type)
    return f"{text}, {'bfloat16' if half else 'float32'}"


@cache
def _has_bf16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)  # not there before torch 2.11
    return device_type == "cpu" and known().get("avx512_bf16", False)


@cache
def tune_allocator() -> bool:
    """Ask glibc to keep large blocks instead of returning them to the system after each step.

    Training frees and takes the same hundreds of megabytes every step; page faults cost about a
    fifth of the time. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**28}
    answers = [mallopt(name, value) for name, value in settings.items()]
    return all(answers)
