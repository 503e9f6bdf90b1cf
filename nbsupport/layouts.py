"""GTSRB on a disk, in any of its layouts: found, checked against the known counts, and read.

Accepted layouts, found on their own below a folder:

- the paper's split: ``Training/000CC/*``, ``Validation/000CC/*``, ``Testing/000CC/*`` (34,799 /
  4,440 / 12,630 images), or an archive ``gtsrb32.tar.xz`` of them, which is never unpacked;
- the official archives unpacked: ``Final_Training/Images/000CC/TTTTT_FFFFF.ppm``,
  ``Final_Test/Images/*.ppm`` and ``GT-final_test.csv`` (39,209 / 12,630 images).

Images of another size are resized to 32x32 with Pillow's bilinear filter (which averages when it
shrinks). The whole image is kept, not the region of interest of the CSV files, as in the paper.

In the paper's split, 30 files of validation class 0 (``waka*.jpeg``) are exact copies of the other
30. They are kept, because the paper's 4,440 counts them, and share their track.
"""

import csv
import hashlib
import io
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from os.path import isdir, isfile  # those of Path raise where one may not look
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from nbsupport import ROOT
from nbsupport.gtsrb import ARCHIVES, CLASS_NAMES, EXPECTED, FOLDERS, FRAMES, SIDE, URL

__all__ = [
    "Arrays",
    "DataError",
    "Source",
    "data_folder",
    "fetch",
    "locate",
    "number_tracks",
    "sha256",
]

_SHORT_TRACK = {("Training", 33): 119}  # GTSRB lacks one frame here: later tracks start 1 earlier
_VALIDATION_SHARE = 4440 / 39239
_MAX_IMAGE_BYTES, _MAX_IMAGE_SIDE = 4 << 20, 2048
_MAX_ARCHIVE_BYTES, _MAX_ARCHIVE_MEMBERS = 2 << 30, 200_000
_ENDINGS = ("tar", "tar.xz", "tar.gz", "tar.bz2", "txz", "tgz")
_IMAGE = re.compile(r"(?P<prefix>.*?)(?P<number>\d{1,9})\.(?:jpe?g|png|ppm)", re.IGNORECASE)
_ADVICE = (
    "Accepted are Training/, Validation/ and Testing/ with folders 00000 to 00042 (or an archive "
    "gtsrb32.tar.xz of them), or the official Final_Training/Images, Final_Test/Images and "
    "GT-final_test.csv. Set NBSUPPORT_DATA to the folder that holds them, or get the official "
    "archives with nbsupport.data.fetch(); see data/README.md."
)


class DataError(ValueError):
    """The images are missing, incomplete or of another data set."""


class Arrays(NamedTuple):
    """All images in the order train, validation, test; `sizes` says where a split ends."""

    images: np.ndarray
    labels: np.ndarray
    tracks: np.ndarray
    sizes: tuple[int, int, int]


Source = tuple[str, Callable[[], Arrays]]
"""A key that changes with the images, and the function that reads them."""


def data_folder(setting: str | os.PathLike = "auto") -> Path:
    """Resolve where GTSRB lies.

    Parameters
    ----------
    setting : str or path, default "auto"
        "auto" means the environment variable NBSUPPORT_DATA or else ``data/gtsrb``; a relative
        path starts at the repository, whatever the working folder is.

    Returns
    -------
    Path
        Absolute; it need not exist.
    """
    if str(setting) == "auto":
        setting = os.environ.get("NBSUPPORT_DATA") or Path("data", "gtsrb")
    return ROOT / Path(setting).expanduser()


def fetch(folder: str | os.PathLike = "auto") -> Path:
    """Download the official GTSRB archives (about 350 MB), check their md5 and unpack them.

    Does nothing if the folder already holds the official layout with the right counts. Archives
    that are there already and intact are not downloaded again.

    Parameters
    ----------
    folder : path, default "auto"
        Where to put the archives and ``GTSRB/``, as for `data_folder`.

    Returns
    -------
    Path
        The folder, ready for ``load("gtsrb", folder=...)``.

    Raises
    ------
    DataError
        If there is no connection, an archive has another checksum, or the counts are wrong.

    Notes
    -----
    Not torchvision's GTSRB class: its training archive ``GTSRB-Training_fixed.zip`` holds 26,640
    of the 39,209 images.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    folder = data_folder(folder)
    try:
        if _official_entries(_official_root(folder), seed=0):
            return folder
    except DataError:
        pass  # nothing there yet, or an unpacking that was cut short
    for name, md5 in ARCHIVES.items():
        try:
            download_and_extract_archive(URL + name, str(folder), filename=name, md5=md5)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{URL + name} (md5 {md5}) could not be fetched into {folder}: {error}. If this "
                f"machine has no internet, download {', '.join(ARCHIVES)} elsewhere, put them "
                f"into that folder and call fetch() again; synthetic signs need no download."
            ) from error
    _official_entries(_official_root(folder), seed=0)
    return folder


# ---- the layouts


class _Entry(NamedTuple):
    """One image file, in the order in which images are sorted."""

    split: int
    label: int
    track: int  # within its split and class; -1: not known
    order: tuple
    where: Path | str


def locate(folder: Path, seed: int) -> Source:
    """Find out which layout of GTSRB lies at a folder, or up to two levels below it.

    Parameters
    ----------
    folder : Path
        The folder, or an archive of the paper's split.
    seed : int
        Of the choice of validation tracks in the official layout.

    Returns
    -------
    Source
        The key goes by the names, sizes and times of the files, or the checksum of an archive.

    Raises
    ------
    DataError
        If there is no layout, or its counts are wrong; says what was found instead.
    """
    if isfile(folder):
        return _archive(folder)
    if not isdir(folder):
        raise DataError(f"there is no folder {folder} that can be looked into. {_ADVICE}")
    bases = _below(folder)
    training = [b for b in bases if isdir(b / "Training")]
    for base in training:
        if all(isdir(base / name) for name in FOLDERS):
            entries = _paper_entries(base)
            return _stamp(folder, entries), partial(_assemble, entries, _read)
    for base in bases:
        # Not its checksum, nor the half of a download.
        named = [base / f"gtsrb32.{ending}" for ending in _ENDINGS]
        if archive := next(filter(isfile, named), None):
            return _archive(archive)
    root = _official_root(folder)
    if root:
        entries, stamped = _official_entries(root, seed)
        return f"{seed} " + _stamp(folder, stamped), partial(_assemble, entries, _read)
    for base in training:
        missing = [name for name in FOLDERS if not isdir(base / name)]
        n = sum(1 for _ in (base / "Training").glob("*/*.ppm"))
        hint = ""
        if n == 26640 or (n and list((base / "Training").glob("*/GT-*.csv"))):
            hint = (
                f" It looks like torchvision's copy ({n} images of GTSRB-Training_fixed.zip, where "
                f"the whole set has 39209): that one cannot be compared with the paper."
            )
        raise DataError(f"{base} has Training but not {' and '.join(missing)}.{hint} {_ADVICE}")
    found = [p.name + "/" * isdir(p) for p in _listed(folder)]
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    what = f"holds no layout of GTSRB, only: {shown}" if found else "is empty"
    raise DataError(f"the folder {folder} {what}. {_ADVICE}")


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, in order of names."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:  # one that may be entered but not listed
        raise _unreadable(folder, error) from None


def _below(folder: Path) -> list[Path]:
    """The folder and those below it, two levels deep, in a fixed order."""
    found, level = [folder], [folder]
    for _ in range(2):
        deeper = []
        for base in level:
            try:
                with os.scandir(base) as items:
                    deeper += sorted(Path(item.path) for item in items if isdir(item.path))
            except PermissionError:
                continue
        found, level = found + deeper, deeper
    return found


def _official_root(folder: Path) -> Path | None:
    bases = _below(folder) if isdir(folder) else []
    return next((b for b in bases if isdir(b / "Final_Training")), None)


def _stamp(folder: Path, entries: Iterable[_Entry]) -> str:
    """Hash of the names, sizes and times of the files: cheap, and changes when a file does."""
    lines = []
    for path in sorted(Path(e.where) for e in entries):
        try:
            stat = path.stat()
        except OSError as error:  # a link to what was never fetched, for instance
            raise _unreadable(path, error) from None
        lines.append(f"{os.path.relpath(path, folder)} {stat.st_size} {stat.st_mtime_ns}\n")
    return sha256(["".join(lines).encode()])


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}). {_ADVICE}")


def _class_of(name: str, where) -> int:
    if not name.isdecimal() or int(name) >= len(CLASS_NAMES):
        raise DataError(
            f"{where}: the class folder {name!r} is not one of 00000 to 00042; remove it, or "
            f"check whether this is GTSRB"
        )
    return int(name)


def _paper_entry(folder: str, class_name: str, name: str, where) -> _Entry | None:
    """Describe one file of the paper's split; None if it is not an image."""
    match = _IMAGE.fullmatch(name)
    if match is None or name.startswith("."):  # macOS lays ._<name> beside what it unpacks
        return None
    label, number = _class_of(class_name, where), int(match["number"])
    split = list(FOLDERS).index(folder)
    # Training and validation keep the 30 frames of a sign together; the test set is shuffled.
    shift = number >= _SHORT_TRACK.get((folder, label), number + 1)
    track = -1 if folder == "Testing" else (number + shift) // FRAMES
    return _Entry(split, label, track, (match["prefix"], number), where)


def _paper_entries(base: Path) -> list[_Entry]:
    entries = []
    for folder in FOLDERS:
        for class_folder in filter(isdir, _listed(base / folder)):
            _class_of(class_folder.name, class_folder)
            files = _listed(class_folder)
            found = (_paper_entry(folder, class_folder.name, f.name, f) for f in files)
            entries += [e for e in found if e]
    _check_counts(base, "paper", entries)
    return sorted(entries)


def _archive(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None
    return key, partial(_read_archive, path)


def _read_archive(path: Path) -> Arrays:
    """Decode the images straight from the archive; nothing is ever unpacked to disk.

    Members that are not plain image files in ``Training|Validation|Testing/<class>/`` (links,
    devices, names that leave the archive) are passed over.
    """
    entries, images, total = [], {}, 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for count, member in enumerate(archive):
                total += member.size
                if count >= _MAX_ARCHIVE_MEMBERS or total > _MAX_ARCHIVE_BYTES:
                    raise DataError(f"{path} unpacks to far more than GTSRB does; not read further")
                parts = member.name.split("/")
                if not member.isreg() or ".." in parts or len(parts) < 3 or not parts[-3]:
                    continue
                folder, class_name, name = parts[-3:]
                if folder not in FOLDERS:
                    continue
                entry = _paper_entry(folder, class_name, name, f"{path}:{member.name}")
                if entry is None:
                    continue
                if member.size > _MAX_IMAGE_BYTES:
                    raise DataError(f"{entry.where} has {member.size} bytes: not an image of GTSRB")
                images[entry.where] = _decode(archive.extractfile(member).read(), entry.where)
                entries.append(entry)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{path} is not a readable archive ({error}); copy or fetch it again. {_ADVICE}"
        ) from error
    _check_counts(path, "paper", entries)
    return _assemble(sorted(entries), images.__getitem__)


def _official_entries(root: Path | None, seed: int) -> tuple[list[_Entry], list[_Entry]]:
    """List the official layout, split, and the files that the split was made from.

    Validation is split off by track, so that no physical sign is in both.
    """
    for name in ("Final_Training", "Final_Test"):
        if root is None or not isdir(root / name / "Images"):
            raise DataError(f"there is no {name}/Images in {root}. {_ADVICE}")
    entries = []
    training = root / "Final_Training" / "Images"
    for class_folder in filter(isdir, _listed(training)):
        label = _class_of(class_folder.name, class_folder)
        for path in class_folder.glob("[!.]*.ppm"):  # macOS lays ._<name> beside what it unpacks
            match = re.fullmatch(r"(\d+)_(\d+)", path.stem)
            if match is None:
                raise DataError(f"{path}: training images are named TTTTT_FFFFF.ppm (track, frame)")
            entries.append(_Entry(0, label, int(match[1]), ("", int(match[2])), path))
    pictures = root / "Final_Test" / "Images"
    places = (pictures, pictures.parent, root, root.parent)
    truths = [p / "GT-final_test.csv" for p in places if isfile(p / "GT-final_test.csv")]
    if not truths:
        raise DataError(
            f"GT-final_test.csv is neither in {pictures} nor in {root}: the labels of the test "
            f"images are missing; unpack GTSRB_Final_Test_GT.zip there, or call fetch()"
        )
    truth = truths[0]
    try:
        rows = list(csv.DictReader(truth.read_text("utf-8-sig").splitlines(), delimiter=";"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{truth} is no table in UTF-8 ({error}); unpack it anew") from None
    for row in rows:
        if not row.get("Filename") or not row.get("ClassId"):
            raise DataError(f"{truth}: the columns Filename and ClassId are missing")
        path = pictures / Path(row["Filename"]).name
        label = _class_of(row["ClassId"].strip(), truth)
        if not path.is_file():
            raise DataError(f"{truth} names {path.name}, which is not in {pictures}")
        if not path.stem.isdecimal():
            raise DataError(f"{truth} names {path.name}; test images are named by a number")
        entries.append(_Entry(2, label, -1, ("", int(path.stem)), path))
    _check_counts(root, "official", entries)
    chosen = set()
    for c in range(len(CLASS_NAMES)):
        tracks = sorted({e.track for e in entries if e.split == 0 and e.label == c})
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, c))))
        n = max(1, round(_VALIDATION_SHARE * len(tracks)))
        chosen |= {(c, tracks[i]) for i in rng.permutation(len(tracks))[:n]}
    split = sorted(
        e._replace(split=1) if e.split == 0 and (e.label, e.track) in chosen else e for e in entries
    )
    return split, [*entries, _Entry(2, 0, -1, ("", 0), truth)]


def _check_counts(where, layout: str, entries: list[_Entry]) -> None:
    """Compare the images of every class with the known counts."""
    folders = EXPECTED[layout]
    # Which folder a split was read from: the official training folder is split up only later.
    names = list(folders) if layout == "paper" else ["Final_Training", "", "Final_Test"]
    found = Counter((names[e.split], e.label) for e in entries)
    for folder, expected in folders.items():
        absent = [c for c in range(len(CLASS_NAMES)) if not found[folder, c]]
        if absent:
            listed = ", ".join(f"{c} ({CLASS_NAMES[c]})" for c in absent[:4])
            listed += f" and {len(absent) - 4} more" if len(absent) > 4 else ""
            raise DataError(f"{where}: {folder} has no images of class {listed}. {_ADVICE}")
        wrong = [
            f"class {c} has {found[folder, c]} images, expected {n}"
            for c, n in enumerate(expected)
            if found[folder, c] != n
        ]
        if wrong:
            n = sum(found[folder, c] for c in range(len(CLASS_NAMES)))
            hint = (
                " 26640 is torchvision's copy (GTSRB-Training_fixed.zip), not the whole set."
                if n == 26640
                else ""
            )
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise DataError(
                f"{where}: {folder} has {n} images, expected {sum(expected)}: "
                f"{'; '.join(wrong[:3])}{more}.{hint} Copy it again, or call fetch()."
            )


def _read(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes: not an image of GTSRB")
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    return _decode(blob, path)


def _decode(blob: bytes, where) -> np.ndarray:
    """Decode one image to uint8 (3, 32, 32)."""
    try:
        with Image.open(io.BytesIO(blob), formats=("JPEG", "PNG", "PPM")) as image:
            if max(image.size) > _MAX_IMAGE_SIDE:
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels")
            image = image.convert("RGB")
            if image.size != (SIDE, SIDE):
                image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            return np.asarray(image).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is not a readable image ({error}); copy it again") from error


def _assemble(entries: list[_Entry], pixels: Callable) -> Arrays:
    """Put sorted images into arrays."""
    images = np.empty((len(entries), 3, SIDE, SIDE), np.uint8)
    for row, entry in enumerate(entries):
        images[row] = pixels(entry.where)
    splits, labels, tracks = (
        np.array([getattr(e, name) for e in entries], np.int64)
        for name in ("split", "label", "track")
    )
    sizes = tuple(int(n) for n in np.bincount(splits, minlength=3))
    return Arrays(images, labels, number_tracks(splits, labels, tracks), sizes)


def number_tracks(splits, labels, tracks) -> np.ndarray:
    """Turn track numbers within (split, class) into numbers unique over the data set."""
    known = np.asarray(tracks) >= 0
    numbers = np.full(len(known), -1, np.int64)
    numbers[known] = pd.MultiIndex.from_arrays([splits, labels, tracks])[known].factorize()[0]
    return numbers


def sha256(chunks: Iterable[bytes]) -> str:
    """Hash pieces of data one after another, as if they were one; gives 64 hex digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
