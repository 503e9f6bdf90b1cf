"""Augmentation of whole batches: the paper's transforms as one resampling and one colour matrix."""

import math

import torch
from torch import Tensor, nn

__all__ = ["augment"]

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R 601 luma, as Pillow and torchvision use them."""


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Distort a batch as the paper's transforms do, in one resampling and one colour matrix.

    RandomResizedCrop(32, scale .6-1), RandomRotation(15), ColorJitter(.1, .1, .1, .1),
    RandomAffine(15) and RandomGrayscale(.1), in this order (Section 5.6; parameters from the
    released code, which leaves the announced normalisation out).

    Parameters
    ----------
    images : uint8 or float Tensor, shape (n, 3, h, h)
        Images, float with values in [0, 1]; on any device.
    generator : torch.Generator
        Of the CPU, so that all devices draw the same distortions.

    Returns
    -------
    float Tensor, shape (n, 3, h, h)
        Values in [0, 1].

    Raises
    ------
    ValueError
        If the images are not square or not in colour.

    Notes
    -----
    Resampling once instead of three times is sharper than the transforms in a row. Pixels that
    either rotation moves out of the frame are black before the colours jitter, which lifts them a
    little. In a row, the second rotation comes after the jitter, and its pixels stay black. Hue
    turns in the YIQ plane, which makes all jitters linear maps that commute up to clipping, so
    their order is immaterial.
    """
    n, channels, height, width = images.shape
    if channels != 3 or height != width:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; the paper's transforms need (n, 3, h, h): "
            "three channels, whose colours jitter, and a square, which is turned"
        )
    images = images.float() / (255 if images.dtype == torch.uint8 else 1)
    device = images.device

    def uniform(low: float, high: float, *tries: int) -> Tensor:
        return torch.empty(n, *tries).uniform_(low, high, generator=generator).to(device)

    # Crop: centre and half sides of the window on the scale [-1, 1]. A third of all windows are
    # larger than the image: as torchvision does, take the first of ten that fits.
    area = uniform(0.6, 1.0, 10)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3), 10).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 2)
    first_fit = (sides <= 1).all(2).float().argmax(1)
    half = sides[torch.arange(n, device=device), first_fit].clamp(max=1)
    centre = torch.stack([uniform(-1, 1), uniform(-1, 1)], 1) * (1 - half)
    first, second = (_rotation(uniform(-15, 15)) for _ in range(2))

    theta = torch.eye(2, 3, device=device).expand(n, -1, -1)
    frame = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    after_second = frame.flatten(1, 2) @ second
    after_first = after_second @ first
    inside = (after_second.abs().amax(-1) <= 1) & (after_first.abs().amax(-1) <= 1)
    grid = (after_first * half[:, None] + centre[:, None]).view_as(frame)
    warped = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    warped = warped * inside.view(n, 1, *images.shape[-2:])

    brightness, contrast, saturation = (uniform(0.9, 1.1)[:, None, None] for _ in range(3))
    hue = uniform(-0.1, 0.1) * 2 * math.pi
    grey = torch.tensor(GREY, device=device).expand(n, 3, 3)
    matrix = saturation * torch.eye(3, device=device) + (1 - saturation) * grey
    matrix = brightness * contrast * (_hue_rotation(hue) @ matrix)
    decolour = (uniform(0, 1) < 0.1)[:, None, None]
    matrix = torch.where(decolour, grey @ matrix, matrix)
    mean = (warped.mean((2, 3)) * grey[:, 0]).sum(1)[:, None, None]
    coloured = torch.baddbmm(brightness * (1 - contrast) * mean, matrix, warped.flatten(2))
    return coloured.view_as(warped).clamp_(0, 1)


def _rotation(degrees: Tensor) -> Tensor:
    """Rotation matrices (n, 2, 2) of angles (n,)."""
    radians = degrees * math.pi / 180
    cosine, sine = radians.cos(), radians.sin()
    return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)


def _hue_rotation(angle: Tensor) -> Tensor:
    """RGB matrices (n, 3, 3) that turn the chroma plane of YIQ by angles (n,)."""
    to_yiq = torch.tensor(
        [GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], device=angle.device
    )
    turn = torch.zeros(len(angle), 3, 3, device=angle.device)
    turn[:, 0, 0] = 1
    turn[:, 1:, 1:] = _rotation(angle * 180 / math.pi)
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
