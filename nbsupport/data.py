"""GTSRB or the synthetic stand-in as tensors, with track-safe splits and a verified cache.

`load` reads a data set once (`nbsupport.layouts`, `nbsupport.synthetic`) and keeps it as arrays in
a cache that is verified on every later load.
"""

import contextlib
import json
import os
import secrets
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from nbsupport import ROOT, gtsrb, pictograms, synthetic
from nbsupport.gtsrb import CLASS_NAMES, COUNTS, SIDE, SPLITS
from nbsupport.layouts import (
    Arrays,
    DataError,
    Source,
    data_folder,
    fetch,
    locate,
    number_tracks,
    sha256,
)

__all__ = [
    "CLASS_NAMES",
    "COUNTS",
    "SPLITS",
    "DataError",
    "Dataset",
    "Split",
    "data_folder",
    "fetch",
    "load",
]

_READER = 1  # raise it when the same files would give other arrays


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels that stay together through selection.

    Attributes
    ----------
    images : uint8 Tensor, shape (n, c, h, w)
        Of one or three channels; those of GTSRB are (n, 3, 32, 32). NumPy arrays become tensors,
        here and below.
    labels : int64 Tensor, shape (n,)
        Class from 0; those of GTSRB are named by `CLASS_NAMES`.
    ids : int64 Tensor, shape (n,)
        Unique over the data set: position in the order train, validation, test.
    tracks : int64 Tensor, shape (n,)
        Number of the physical sign, unique over the data set; -1 where it is not known, as for
        all images if left out (GTSRB shuffles its test images).
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    tracks: Tensor | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                # In the byte order of this machine, too.
                array = np.require(value, value.dtype.newbyteorder("="), ("C", "W"))
                object.__setattr__(self, name, torch.from_numpy(array))
            elif value is not None and not isinstance(value, Tensor):
                kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise ValueError(f"{name} are {kind}; give a tensor or a NumPy array of numbers")
        n = len(self.labels)
        if self.tracks is None:
            object.__setattr__(self, "tracks", torch.full((n,), -1))
        shape = tuple(self.images.shape)
        fits = len(shape) == 4 and shape[0] == n and shape[1] in (1, 3) and min(shape[2:]) > 0
        if not fits or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images are {shape} {self.images.dtype}; expected ({n}, c, h, w) uint8, one per "
                "label, of c = 1 or 3 channels (channels first)"
            )
        for name in ("labels", "ids", "tracks"):
            value = getattr(self, name)
            if tuple(value.shape) != (n,) or value.dtype != torch.int64:
                raise ValueError(
                    f"{name} are {tuple(value.shape)} {value.dtype}; expected ({n},) int64"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index) -> "Split":
        """Keep some images.

        Parameters
        ----------
        index : Tensor, ndarray or sequence
            Positions (int, any order, repeats allowed) or a mask of n booleans.

        Returns
        -------
        Split
            A copy of the chosen rows.
        """
        if not isinstance(index, Tensor):
            index = np.asarray(index)
            if index.size and index.dtype.kind not in "biu":
                raise TypeError(
                    f"the index is of {index.dtype}; expected whole numbers (positions) or "
                    "booleans (a mask)"
                )
            # A copy: torch takes neither negative strides nor all kinds of integers.
            index = torch.from_numpy(np.array(index, bool if index.dtype == bool else np.int64))
        elif index.dtype == torch.uint8 or (not index.numel() and index.dtype != torch.bool):
            # Bytes would be a mask to torch; an empty list becomes a tensor of floats.
            index = index.to(torch.int64)
        return Split(self.images[index], self.labels[index], self.ids[index], self.tracks[index])

    def of_class(self, c: int) -> "Split":
        """Keep the images of class `c`, 0 to 42; the result may be empty."""
        if not 0 <= c < len(CLASS_NAMES):
            raise ValueError(f"class is {c!r}; the classes are 0 to {len(CLASS_NAMES) - 1}")
        return self.select(self.labels == c)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits that share no physical sign.

    Attributes
    ----------
    name : str
        "synthetic" or "gtsrb".
    train, validation, test : Split
    fingerprint : str
        sha256 (hex) over the bytes of images and labels of train, validation, test.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    fingerprint: str


def load(
    source: str,
    *,
    folder: str | os.PathLike | None = None,
    scale: float = 1.0,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
) -> Dataset:
    """Load a data set: from its cache if that is intact, else from the source.

    Parameters
    ----------
    source : {"synthetic", "gtsrb"}
        Procedural signs (`nbsupport.synthetic`), or the real images.
    folder : path, optional
        GTSRB only: the folder or the archive, as for `data_folder`. It is only read.
    scale : float, default 1.0
        Synthetic only: share of GTSRB's size.
    seed : int, default 0
        Synthetic: of the signs. GTSRB in the official layout: of the choice of validation tracks;
        the paper's split does not depend on it.
    cache : path, optional
        Folder of the cache (160 MB for the whole size), default ``data/cache`` in the repository.
        If it cannot be written, a warning says so and the data set is used from memory.

    Returns
    -------
    Dataset
        Sorted by class, track, frame within each split. The images are mapped from the cache
        copy-on-write: writing to them changes neither the file nor another process.

    Raises
    ------
    DataError
        If the images are missing, incomplete, unreadable or of another data set; the message
        names what was found and the next step.
    ValueError
        If `source`, `scale` or `seed` is outside its set.
    """
    if source == "synthetic":
        key, build = _synthetic(scale, seed)
    elif source == "gtsrb":
        if scale != 1:
            raise ValueError(f"scale is {scale!r}; GTSRB is loaded whole (scale=1)")
        if seed < 0:
            raise ValueError(f"seed is {seed!r}; give a whole number of at least 0")
        key, build = locate(data_folder("auto" if folder is None else folder), seed)
    else:
        raise ValueError(f"source is {source!r}; choose 'synthetic' or 'gtsrb'")
    # The decoder and the drawing library decide on the last bit of a pixel.
    key = sha256([f"{_READER} {PIL.__version__} {key}".encode()])
    place = (ROOT / "data" / "cache" if cache is None else Path(cache)) / f"{source}-{key[:16]}"
    arrays = _recall(place, key)
    if arrays is None:
        arrays = build()
        try:
            _store(place, key, arrays)
        except OSError as error:
            warnings.warn(
                f"the data set could not be cached in {place.parent} ({error}); the next load "
                f"starts over. Give load(cache=...) a folder that can be written.",
                stacklevel=2,
            )
        else:
            arrays = _recall(place, key) or arrays
    return _dataset(source, arrays)


def _synthetic(scale: float, seed: int) -> Source:
    for split in SPLITS:
        synthetic.tracks_per_class(split, scale)
    if seed < 0:
        raise ValueError(f"seed is {seed!r}; give a whole number of at least 0")
    code = sha256(Path(module.__file__).read_bytes() for module in (gtsrb, pictograms, synthetic))

    def build() -> Arrays:
        parts = [synthetic.generate(split, scale, seed) for split in SPLITS]
        images, labels, tracks = (
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("images", "labels", "tracks")
        )
        sizes = tuple(len(p.labels) for p in parts)
        return Arrays(
            images, labels, number_tracks(np.repeat(range(3), sizes), labels, tracks), sizes
        )

    return f"{float(scale)!r} {int(seed)} {code}", build


# ---- the cache: a folder that appears complete or not at all, verified whenever it is read


def _pieces(arrays: Arrays):
    """Images and labels of train, validation, test in turn: what the fingerprint covers."""
    ends = np.cumsum(arrays.sizes)
    for start, stop in zip(ends - arrays.sizes, ends, strict=True):
        yield np.ascontiguousarray(arrays.images[start:stop]).data
        yield np.ascontiguousarray(arrays.labels[start:stop]).data


def _manifest(key: str, arrays: Arrays) -> dict:
    return {
        "schema": 1,
        "key": key,
        "sizes": list(arrays.sizes),
        "fingerprint": sha256(_pieces(arrays)),
        "tracks_sha256": sha256([arrays.tracks.tobytes()]),
    }


def _store(place: Path, key: str, arrays: Arrays) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    work = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}")
    damaged = work.with_name(work.name + ".damaged")
    work.mkdir()
    try:
        for name in ("images", "labels", "tracks"):
            np.save(work / f"{name}.npy", getattr(arrays, name), allow_pickle=False)
        (work / "manifest.json").write_text(json.dumps(_manifest(key, arrays), indent=1) + "\n")
        for attempt in range(10):
            try:
                work.rename(place)
                return
            except OSError:
                # Either another process was faster (keep its work) or what lies there is damaged.
                if attempt == 9:
                    raise
                if _recall(place, key) is not None:
                    return
            with contextlib.suppress(OSError):
                place.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _recall(place: Path, key: str) -> Arrays | None:
    """Map a cached data set; None if it is not there, or not exactly what was stored."""
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        # "c": copy on write, so torch gets a writable array and the file stays as it is.
        images, labels, tracks = (
            np.load(place / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            for name in ("images", "labels", "tracks")
        )
        sizes = tuple(int(n) for n in manifest["sizes"])
        shapes_fit = images.shape == (sum(sizes), 3, SIDE, SIDE) and labels.shape == tracks.shape
        types_fit = images.dtype == np.uint8 and labels.dtype == tracks.dtype == np.int64
        arrays = Arrays(images, labels, tracks, sizes)
        if shapes_fit and types_fit and manifest == _manifest(key, arrays):
            return arrays
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    return None


def _dataset(name: str, arrays: Arrays) -> Dataset:
    ids = torch.arange(sum(arrays.sizes))
    whole = [torch.from_numpy(a) for a in (arrays.images, arrays.labels)]
    tracks = torch.from_numpy(arrays.tracks)
    parts = [t.split(arrays.sizes) for t in (*whole, ids, tracks)]
    splits = [Split(*columns) for columns in zip(*parts, strict=True)]
    return Dataset(name, *splits, fingerprint=sha256(_pieces(arrays)))
