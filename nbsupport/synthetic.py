"""Synthetic signs: a procedural stand-in for GTSRB that needs no download.

Forty-three German signs are drawn once each (`nbsupport.pictograms`) and then seen through a
simulated car camera (`generate`): tracks of 30 frames of one physical sign, small, blurred, dim,
backlit and off-centre as in GTSRB, with GTSRB's class frequencies.

What is guaranteed: the same bits for the same seed, scale and `Look` with one version of Pillow.
Between machines, the draws use only `Generator.random` and `Generator.integers`, the images only
elementwise float32 additions, multiplications and divisions (exactly rounded by IEEE 754), and
the drawings only polygons with integer corners; there is no matrix product, no transcendental
function and no thread on the way. Another release of Pillow may rasterise a polygon differently.
"""

import math
from dataclasses import dataclass

import numpy as np

from nbsupport.gtsrb import COUNTS, FRAMES, SPLITS
from nbsupport.pictograms import EXTENT, draw_sign

__all__ = ["LOOK", "Look", "Signs", "frames_per_track", "generate", "tracks_per_class"]


@dataclass(frozen=True)
class Look:
    """How hard the camera makes it: every knob of the simulated photographs.

    Lengths are in half image sides (1 = 16 pixels) unless they say pixels; light is relative to
    a white that just saturates. A pair is the range of a draw, (low, high).
    """

    radius_far: tuple[float, float] = (0.56, 0.70)
    """Radius of the sign in the first frame of a track."""
    radius_near: tuple[float, float] = (0.68, 0.86)
    """Radius of the sign in the last frame."""
    offset: float = 0.08
    """Largest displacement of the whole track from the centre."""
    jitter: float = 0.05
    """Largest further displacement of a single frame."""
    tilt: float = 0.06
    """Largest rotation in the image plane (tangent of half the angle: 0.06 is 7 degrees)."""
    squeeze: float = 0.18
    """Largest foreshortening of the width (a sign seen from the side)."""
    perspective: float = 0.08
    """Largest projective distortion across the sign."""
    sign_light: tuple[float, float] = (0.22, 1.50)
    """Light on the sign; low values are more frequent than high ones."""
    background_light: tuple[float, float] = (0.08, 1.30)
    """Light on what is behind the sign."""
    flicker: float = 0.12
    """Relative change of light from frame to frame."""
    haze: float = 0.08
    """Largest share of stray light, which is added in proportion to the light on the sign (plus
    0.4): lowers the contrast."""
    fading: float = 0.35
    """Largest loss of colour of a weathered sign."""
    dirt: float = 0.35
    """Largest darkening of the sign's face by dirt."""
    shadow: float = 0.45
    """Largest darkening of a part of the sign by a cast shadow (every third track has one)."""
    blur_far: tuple[float, float] = (0.45, 1.00)
    """Standard deviation of the blur in the first frame, in pixels."""
    blur_near: tuple[float, float] = (0.25, 0.60)
    """Standard deviation of the blur in the last frame, in pixels."""
    motion: float = 0.70
    """Largest additional blur along one axis, in pixels (every third track)."""
    noise: tuple[float, float] = (0.005, 0.025)
    """Standard deviation of the sensor noise, relative to white, before the frame's blur."""


LOOK = Look()
"""The look behind ``load("synthetic")``."""


@dataclass(frozen=True)
class Signs:
    """One split of synthetic signs.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, 3, 32, 32)
    labels : ndarray of int64, shape (n,)
        Class, ascending.
    tracks : ndarray of int64, shape (n,)
        Number of the physical sign, counted from 0 within its class and split.
    """

    images: np.ndarray
    labels: np.ndarray
    tracks: np.ndarray


# ---- the camera: every operation from here to the pixels is exactly rounded and in fixed order
_TEXTURE = 128  # side of the drawing that is sampled
_SUB = 3  # samples per pixel side


def tracks_per_class(split: str, scale: float = 1.0) -> tuple[int, ...]:
    """Number of tracks of each class: GTSRB's, times `scale`, at least one.

    Parameters
    ----------
    split : str
        One of `SPLITS`.
    scale : float, default 1.0
        Share of GTSRB's size, in (0, 10].

    Returns
    -------
    tuple of int, length 43

    Raises
    ------
    ValueError
        If `split` or `scale` is outside its set.
    """
    _check(split, scale)
    return tuple(max(1, math.floor(scale * n / FRAMES + 0.5)) for n in COUNTS[split])


def frames_per_track(split: str, scale: float = 1.0) -> int:
    """Number of frames of a track: GTSRB's 30, unless even the largest class fills no track.

    Then it is what that class should have, so that a small `scale` makes a small set.

    Parameters
    ----------
    split, scale
        As in `tracks_per_class`.

    Raises
    ------
    ValueError
        As in `tracks_per_class`.
    """
    _check(split, scale)
    return min(FRAMES, max(1, math.floor(scale * max(COUNTS[split]) + 0.5)))


def _check(split: str, scale: float) -> None:
    if split not in COUNTS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if not 0 < scale <= 10:
        raise ValueError(f"scale is {scale!r}; give a share of GTSRB's size in (0, 10], e.g. 0.25")


def generate(split: str, scale: float = 1.0, seed: int = 0, look: Look = LOOK) -> Signs:
    """Photograph synthetic signs for one split.

    Every track has its own random stream, made from (seed, split, class, number): splits share
    no physical sign, and a smaller `scale` gives the first tracks of a larger one. (Of shortened
    tracks, see `frames_per_track`, frames from far to near.)

    Parameters
    ----------
    split : str
        One of `SPLITS`.
    scale : float, default 1.0
        Share of GTSRB's size; class counts are whole tracks, at least one.
    seed : int, default 0
        Not negative.
    look : Look, default `LOOK`
        How hard the camera makes it.

    Returns
    -------
    Signs
        Sorted by class, track, frame.

    Raises
    ------
    ValueError
        If `split`, `scale` or `seed` is outside its set.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed!r}; give a whole number of at least 0")
    counts, frames = tracks_per_class(split, scale), frames_per_track(split, scale)
    images = np.empty((frames * sum(counts), 3, 32, 32), np.uint8)
    kept = np.arange(frames) * FRAMES // frames
    row = 0
    for c, n_tracks in enumerate(counts):
        drawing = np.asarray(draw_sign(c, _TEXTURE)).astype(np.float32) / np.float32(255)
        for track in range(n_tracks):
            stream = np.random.SeedSequence((seed, SPLITS.index(split), c, track))
            rng = np.random.Generator(np.random.PCG64(stream))
            whole = _photograph(_weathered(drawing, rng, look), rng, look)
            images[row : row + frames] = whole[kept]
            row += frames
    labels = np.repeat(np.arange(len(counts)), [frames * n for n in counts])
    tracks = np.concatenate([np.repeat(np.arange(n), frames) for n in counts])
    return Signs(images, labels.astype(np.int64), tracks.astype(np.int64))


def _draw(rng, low, high, shape=()):
    """Uniform float32; `Generator.uniform` may fuse its multiply and add on some machines."""
    unit = rng.random(shape).astype(np.float32)
    return np.float32(low) + np.float32(high - low) * unit


def _enlarge(grid, side):
    """Bilinear enlargement of (g, g, channels) to (side, side, channels)."""
    g = grid.shape[0]
    at = np.arange(side, dtype=np.float32) * np.float32((g - 1) / (side - 1))
    left = np.minimum(at.astype(np.int64), g - 2)
    part = (at - left.astype(np.float32))[:, None]
    rows = grid[left] + part[..., None] * (grid[left + 1] - grid[left])
    return rows[:, left] + part * (rows[:, left + 1] - rows[:, left])


def _weathered(drawing, rng, look):
    """One physical sign: faded, dirty, perhaps in a shadow; premultiplied RGBA."""
    colour, cover = drawing[..., :3], drawing[..., 3:]
    fading = _draw(rng, 0, look.fading)
    fading = fading * fading / np.float32(max(look.fading, 1e-6))
    grey = (colour[..., :1] + colour[..., 1:2] + colour[..., 2:]) / np.float32(3)
    pale = np.float32(0.6) * grey + np.float32(0.25)
    colour = colour + fading * (pale - colour)
    dirt = _draw(rng, 0, look.dirt)
    stain = _enlarge(_draw(rng, 0, 1, (7, 7, 1)), _TEXTURE)
    colour = colour * (1 - dirt * stain * stain)
    slope, where, depth, lit = _draw(rng, -1, 1, 4)
    if lit > np.float32(1 / 3):
        line = np.arange(_TEXTURE, dtype=np.float32) / np.float32(_TEXTURE / 2) - 1
        dark = (line[:, None] + slope * line[None, :]) > np.float32(0.8) * where
        depth = np.float32(look.shadow / 2) * (1 + depth)
        colour = colour * (1 - depth * dark.astype(np.float32)[..., None])
    return np.concatenate([colour * cover, cover], axis=2)


def _background(rng):
    """What is behind the sign, (48, 48, 3): mottled, with a horizon, perhaps a bright sky."""
    fine, coarse = _draw(rng, 0, 1, (24, 24, 1)), _draw(rng, 0, 1, (6, 6, 1))
    tint = np.array([(0.36, 0.40, 0.26), (0.46, 0.38, 0.28), (0.46, 0.48, 0.50)], np.float32)
    ground = tint[rng.integers(3)] + _enlarge(_draw(rng, -0.1, 0.1, (4, 4, 3)), 48)
    ground = ground * (np.float32(0.25) + np.float32(1.5) * _enlarge(coarse, 48))
    ground = ground * (np.float32(0.4) + np.float32(1.2) * _enlarge(fine, 48))
    sky = np.array((0.88, 0.94, 1.0), np.float32) * _draw(rng, 0.7, 1.6)
    height = np.arange(48, dtype=np.float32)[:, None, None] / np.float32(24) - 1
    edge = _draw(rng, -2.6, 1.2) + _enlarge(_draw(rng, -0.5, 0.5, (9, 9, 1)), 48)
    return np.where(height < edge, sky, ground)


def _path(rng, start, stop, flutter):
    """A quantity over a track, shape (30,): from start to stop, with a little flutter."""
    t = np.arange(FRAMES, dtype=np.float32) / np.float32(FRAMES - 1)
    return start + (stop - start) * t + _draw(rng, -flutter, flutter, FRAMES)


def _soften(images, weight, axis):
    """One pass of [w, 1 - 2 w, w] along an axis, `weight` per image (variance 2 w pixels^2)."""
    n = images.shape[axis]
    index = np.arange(n)
    before = np.take(images, np.maximum(index - 1, 0), axis)
    after = np.take(images, np.minimum(index + 1, n - 1), axis)
    return images + weight[:, None, None, None] * (before + after - 2 * images)


def _photograph(sign, rng, look):
    """Frames of one sign as a car drives up to it, uint8, shape (30, 3, 32, 32)."""
    one = np.float32(1)
    radius = _path(rng, _draw(rng, *look.radius_far), _draw(rng, *look.radius_near), 0.02)
    off_x, off_y = (
        _path(rng, a, a / 2, look.jitter) for a in _draw(rng, -look.offset, look.offset, 2)
    )
    tilt, lean, skew = (
        _path(rng, _draw(rng, -m, m), _draw(rng, -m, m), 0.15 * m)
        for m in (look.tilt, look.perspective, look.perspective)
    )
    narrow = one - _path(rng, 0, _draw(rng, 0, look.squeeze), 0.0)
    # Rotation without sine and cosine, which differ between machines in the last bit.
    cosine, sine = (one - tilt * tilt) / (one + tilt * tilt), 2 * tilt / (one + tilt * tilt)

    side = 32 * _SUB
    grid = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side / 2) - one
    per_frame = (slice(None), None, None)
    x = (grid[None, None, :] - off_x[per_frame]) / radius[per_frame]
    y = (grid[None, :, None] - off_y[per_frame]) / radius[per_frame]
    depth = one / (one + lean[per_frame] * x + skew[per_frame] * y)
    u = (cosine[per_frame] * x + sine[per_frame] * y) * depth / narrow[per_frame]
    v = (cosine[per_frame] * y - sine[per_frame] * x) * depth
    to_texel = np.float32(_TEXTURE / 2 / EXTENT)
    columns = np.clip(u * to_texel + _TEXTURE // 2, 0, _TEXTURE - 1).astype(np.int32)
    rows = np.clip(v * to_texel + _TEXTURE // 2, 0, _TEXTURE - 1).astype(np.int32)
    samples = np.take(sign.reshape(-1, 4), rows * _TEXTURE + columns, axis=0)
    pixels = sum(
        samples[:, a::_SUB, b::_SUB] for a in range(_SUB) for b in range(_SUB)
    ) / np.float32(_SUB**2)

    zoom = _path(rng, 1.0, _draw(rng, 0.55, 0.85), 0.0)
    drift_x, drift_y = (_path(rng, 0, a, 0.01) for a in _draw(rng, -0.4, 0.4, 2))
    centre = (np.arange(32, dtype=np.float32) + np.float32(0.5)) / 16 - one
    scenes = np.stack([_background(rng), _background(rng)])
    at_x = np.clip((centre * zoom[:, None] + drift_x[:, None]) * 24 + 24, 0, 47).astype(np.int32)
    at_y = np.clip((centre * zoom[:, None] + drift_y[:, None]) * 24 + 24, 0, 47).astype(np.int32)
    first, last = scenes[:, at_y[:, :, None], at_x[:, None, :]]
    behind = first + _path(rng, 0, 1, 0.0)[:, None, None, None] * (last - first)
    if rng.random() < 0.5:  # the post
        post = np.abs(centre[None, None, :] - off_x[per_frame]) < np.float32(0.08)
        post = post & (centre[None, :, None] > off_y[per_frame])
        behind = np.where(post[..., None], np.float32(0.35), behind)

    # Light: squares of uniform draws, because most GTSRB images are dim.
    sign_light, back_light = (
        np.float32(low) + np.float32(high - low) * _path(rng, q[0] * q[0], q[1] * q[1], 0.0)
        for (low, high), q in zip(
            (look.sign_light, look.background_light), _draw(rng, 0, 1, (2, 2)), strict=True
        )
    )
    sign_light, back_light = sign_light[:, None, None, None], back_light[:, None, None, None]
    flicker = one + _path(rng, 0, _draw(rng, -0.3, 0.3), look.flicker)
    warmth = one + np.array((1, 0, -1), np.float32) * _draw(rng, -0.15, 0.15)
    glow = _draw(rng, -0.35, 0.35, 2)
    shade = one + glow[0] * centre[None, :, None, None] + glow[1] * centre[None, None, :, None]
    cover = pixels[..., 3:]
    image = pixels[..., :3] * sign_light * shade + (one - cover) * behind * back_light
    image = image * flicker[:, None, None, None] * warmth
    image = image + _draw(rng, 0, look.haze) * (np.float32(0.4) + sign_light)

    sigma = _path(rng, _draw(rng, *look.blur_far), _draw(rng, *look.blur_near), 0.08)
    motion = _draw(rng, 0, look.motion) if rng.random() < 1 / 3 else np.float32(0)
    along = int(rng.integers(1, 3))
    noise = _draw(rng, *look.noise)
    # A sum of four bytes is close enough to a Gaussian, and exact.
    bytes_ = rng.integers(0, 256, (4, *image.shape), dtype=np.uint8).astype(np.float32)
    grain = (bytes_[0] + bytes_[1] + bytes_[2] + bytes_[3] - np.float32(510)) / np.float32(147.8)
    image = image + noise * grain
    for axis in (1, 2):
        variance = sigma * sigma + (motion * motion if axis == along else np.float32(0))
        for _ in range(3):
            image = _soften(image, np.minimum(variance / 6, np.float32(0.3)), axis)
    again = np.roll(grain, 7, axis=2)
    image = image + np.float32(0.4) * noise * again
    levels = np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 3, 1, 2))
