"""A network and its training images from anywhere: read, held against each other, and reported on.

Notebook 8 is made of these. Weights come as safetensors and images as npz, neither of which can
carry code; the file that builds the network is code, and is run: take it from nobody else.
"""

import importlib.util
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from nbsupport import lrp
from nbsupport.artifacts import checksum, code_version, write_json
from nbsupport.data import Split
from nbsupport.evaluation import predict, share_read
from nbsupport.models import Normalise
from nbsupport.scan import ClassVerdict

__all__ = [
    "check", "fingerprints", "load_images", "load_network", "normalised", "report_folder",
    "write_report",
]  # fmt: skip


def load_network(builder: str, weights: str | Path) -> nn.Module:
    """Build a network by a function of yours and give it its weights.

    Parameters
    ----------
    builder : str
        ``path/to/file.py:function``; the function takes no argument and returns the network.
    weights : str or Path
        The network's ``state_dict`` as safetensors.

    Returns
    -------
    nn.Module
        In evaluation mode, in single precision, on the CPU.

    Raises
    ------
    ValueError
        If the file has no such function, it returns no network, or the weights are not those of
        this network.
    FileNotFoundError
        If one of the files is not there.
    """
    file, _, name = builder.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"network is {builder!r}; expected path/to/file.py:function")
    path, weights = (Path(each).expanduser().resolve() for each in (file, weights))
    for needed in (path, weights):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed} is not there; give the path of a file")
    with _importable(path) as module:
        make = getattr(module, name, None)
        if not callable(make):
            raise ValueError(f"{path} has no function {name!r}")
        model = make()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}() of {path} returns {type(model).__name__}, not an nn.Module")
    try:
        model.cpu().load_state_dict(load_file(weights))
    except SafetensorError as error:
        raise ValueError(
            f"{weights} is no safetensors file ({error}); write one by "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from None
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {name}(): {error}") from None
    return model.float().eval()


_LAST: dict[str, Any] = {"folder": None, "before": set(), "appended": False}
"""Where the last network came from, and the modules that were there before it."""


@contextmanager
def _importable(path: Path) -> Iterator[Any]:
    """Run a file as a module; meanwhile its neighbours can be imported, as from its own folder.

    They stay for as long as the network may ask for them (its folder then is the last place to look
    in, so that it hides nothing), and are forgotten before the next one is loaded, which may have
    others of the same names.
    """
    _forget_the_last()
    before, folder = set(sys.modules), str(path.parent)
    spec = importlib.util.spec_from_file_location(f"network_of_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(folder)
        appended = folder not in sys.path
        sys.path.extend([folder] * appended)
        _LAST.update(folder=path.parent, before=before, appended=appended)


def _forget_the_last() -> None:
    """Forget the last network's modules and folder, and what Python remembers of folders."""
    importlib.invalidate_caches()
    folder = _LAST["folder"]
    if folder is None:
        return
    for name in set(sys.modules) - _LAST["before"]:
        if name.partition(".")[0] in _LAST["before"]:
            continue  # a later part of what was there, of this package in its own folder say
        # A folder without __init__.py is a module without a file.
        told = sys.modules[name]
        places = [getattr(told, "__file__", None), *getattr(told, "__path__", ())]
        files = [Path(place) for place in places if place]
        if any(f.is_relative_to(folder) and "site-packages" not in f.parts for f in files):
            del sys.modules[name]
    if _LAST["appended"] and str(folder) in sys.path:
        sys.path.remove(str(folder))
    _LAST.update(folder=None)


def load_images(path: str | Path) -> Split:
    """Read labelled images.

    Parameters
    ----------
    path : str or Path
        An npz file with ``images``, uint8 of shape (n, c, h, w) with one or three channels, and
        ``labels``, integers of shape (n,) from 0; optionally ``ids``, integers of shape (n,),
        else 0 to n - 1.

    Raises
    ------
    ValueError
        If the file is no npz file without pickles, an array is missing or of another kind, an id
        occurs twice, or there are not two classes.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path).expanduser().resolve()
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with file:
            # Not by what is "in" the file, which may be something else than an array.
            names = {f"{name}.npy": name for name in ("images", "labels", "ids")}
            found = {names[n]: file[n] for n in file.zip.namelist() if n in names}
    except (ValueError, EOFError, IsADirectoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); write it by np.savez(path, images=..., labels=...)"
        ) from None
    if missing := {"images", "labels"} - set(found):
        raise ValueError(f"{path} has no array {' and no '.join(sorted(missing))}")
    for name in set(found) - {"images"}:
        if found[name].dtype.kind not in "iu":
            raise ValueError(f"{name} of {path} are {found[name].dtype}; expected integers")
        if found[name].ndim != 1:
            raise ValueError(f"{name} of {path} have shape {found[name].shape}; expected (n,)")
    if found["images"].dtype != np.uint8:
        raise ValueError(f"images of {path} are {found['images'].dtype}; expected uint8, 0 to 255")
    labels = torch.from_numpy(found["labels"].astype(np.int64))
    ids = torch.from_numpy(found.get("ids", np.arange(len(labels))).astype(np.int64))
    shape = found["images"].shape
    if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)):
        how = "images[:, None]" if len(shape) == 3 else "images.transpose(0, 3, 1, 2)"
        raise ValueError(
            f"images of {path} are {shape}; expected (n, c, h, w), channels first: write {how}"
        )
    split = Split(torch.from_numpy(found["images"]), labels, ids)
    if len(labels) == 0 or labels.min() < 0 or labels.min() == labels.max():
        raise ValueError(f"labels of {path} hold {labels.unique().tolist()}; expected 0, 1, ...")
    if len(ids.unique()) < len(ids):
        raise ValueError(f"ids of {path} name an image twice")
    return split


def normalised(model: nn.Module, mean: str, std: str) -> nn.Module:
    """Put a layer that normalises before a network that was trained on normalised images.

    Parameters
    ----------
    model : nn.Module
        Takes normalised images.
    mean, std : str
        Numbers with spaces or commas between them, one for each channel and for values from 0 to
        1; both empty for a network that takes such values itself.

    Returns
    -------
    nn.Module
        Takes values from 0 to 1.
    """
    if not mean and not std:
        return model
    numbers = []
    for name, text in (("mean", mean), ("std", std)):
        try:
            numbers.append([float(word) for word in re.findall(r"[^\s,]+", text) or [""]])
        except ValueError:
            raise ValueError(
                f"{name} is {text!r}; expected numbers such as '0.5 0.5 0.5'"
            ) from None
    return nn.Sequential(Normalise(*numbers), model).eval()


def check(model: nn.Module, split: Split, device: torch.device, most: int = 2000) -> float:
    """Try whether a network can be explained and knows these classes, before hours are spent.

    Parameters
    ----------
    model : nn.Module
        On ``device``; takes values from 0 to 1.
    split : Split
        Labelled images.
    device : torch.device
        Where to compute.
    most : int
        Images that are tried at most, drawn by lot.

    Returns
    -------
    float
        Percent of these that are read as they are labelled.

    Raises
    ------
    UnsupportedLayerError
        If relevance cannot be propagated through a layer.
    ValueError
        If the network does not take these images, answers with anything but a tensor of logits, or
        has too few of them for the labels.
    """
    few, classes = split.images[:2], int(split.labels.max()) + 1
    try:
        logits = predict(model, few, device)
    except TypeError as error:
        raise ValueError(str(error)) from None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = tuple(few.shape[1:])
        raise ValueError(f"the network does not take images of {shape}: {error}") from None
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise ValueError(
            f"the network returns {tuple(logits.shape)} for {len(few)} images; labels go up to "
            f"{classes - 1}, which takes ({len(few)}, {classes}) or more"
        )
    known = 100 * share_read(model, split, device, most=most)
    for composite in ("gamma", "squared"):
        lrp.explain(model, few, target=0, composite=composite, device=device)
    return known


def fingerprints(files: Mapping[str, str | Path]) -> dict[str, dict[str, str]]:
    """Take down which files are read, at the time when they are read.

    Parameters
    ----------
    files : mapping
        Paths by what they hold.

    Returns
    -------
    dict
        By the same names, ``path`` (absolute) and ``sha256``.
    """
    found = {name: Path(each).expanduser().resolve() for name, each in files.items()}
    return {name: {"path": os.fspath(p), "sha256": checksum(p)} for name, p in found.items()}


def report_folder(folder: str | Path) -> Path:
    """Make the folder of a report and try it, before anything takes long.

    Parameters
    ----------
    folder : str or Path
        Where to; made if it is missing.

    Returns
    -------
    Path
        The same, absolute.

    Raises
    ------
    ValueError
        If nothing can be written there.
    """
    place = Path(folder).expanduser().resolve()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {place} ({error.strerror or error}); name another folder "
            "for the report with the parameter 'folder'"
        ) from None


def write_report(
    path: Path,
    verdicts: Sequence[ClassVerdict],
    split: Split,
    *,
    files: Mapping[str, Mapping[str, str]],
    **more: Any,
) -> dict[str, Any]:
    """Write what a scan found, and of which files, as JSON.

    Parameters
    ----------
    path : Path
        Where to.
    verdicts : sequence of ClassVerdict
        From `scan.two_rounds`.
    split : Split
        What was scanned.
    files : mapping
        Files that were read, from `fingerprints`.
    **more
        JSON values to add, such as parameters and seconds.

    Returns
    -------
    dict
        The report: ``named`` (classes called poisoned), ``accused`` (ids of images), ``classes``
        (one entry each), ``files``, ``code`` and what was added.
    """
    sizes = np.bincount(split.labels)
    report = {
        "named": [v.label for v in verdicts if v.present],
        "accused": sorted(int(i) for v in verdicts for i in v.accused),
        "classes": [
            {
                "label": v.label,
                "images": int(sizes[v.label]),
                "images_looked_at": v.n,
                "called_poisoned": bool(v.present),
                "by": list(v.witnesses),
                "strong_candidates": int(v.n_strong),
                "carried": None if v.carried is None else round(float(v.carried), 4),
                "accused": len(v.accused),
                "silhouette": None if v.silhouette is None else round(float(v.silhouette), 4),
            }
            for v in verdicts
        ],
        "files": {name: dict(about) for name, about in files.items()},
        "code": code_version(),
        **more,
    }
    write_json(path, report)
    return report
