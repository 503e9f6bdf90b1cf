"""Run folders: what one notebook leaves for the next, checked on every reading.

A run is one scenario computed under one profile; its folder is ``<runs>/<profile>/<scenario>``.
Each stage leaves one record (JSON) and at most one payload (arrays or weights). The record is
renamed into place last and names the checksums of its payload, of itself and of everything it was
made from, so that a truncated, edited, foreign or stale artefact is refused by name.
"""

import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nbsupport import ROOT, __version__
from nbsupport.scenarios import Profile, Scenario

__all__ = [
    "CHAIN", "FILTERS", "NETWORKS", "PLACE", "STAGES", "USUAL_FILTERS", "ArtifactError", "Run",
    "Stage", "atomic", "begun_runs", "checksum", "finished_runs", "wanted", "write_json",
    "write_text",
]  # fmt: skip

SCHEMA = 1
"""Version of the artefact layout; raise it when a reader of the old one would be misled."""


class ArtifactError(RuntimeError):
    """An artefact is missing, truncated, edited, foreign or stale; the message says what to run."""


@dataclass(frozen=True)
class Stage:
    """One step from attack to detection, or a side road that is taken when asked for.

    Parameters
    ----------
    name : str
        Stem of the record, ``<name>.json``.
    payload : str
        File of arrays or weights beside it.
    notebook : str
        Notebook that makes both.
    version : int
        Counts the changes after which the same scenario gives another result; raise it with such
        a change, and what was made before is stale. Edits of prose, figures or names leave it, so
        that they cost nobody a training.
    make : str
        Target of make that runs it, with all that it needs.
    option : str
        What a notebook that makes several stages must be told (its parameter ``make``).
    needs_attack : bool
        Whether a network that nobody attacked has no such stage.
    """

    name: str
    payload: str
    notebook: str
    version: int = 1
    make: str = "run"
    option: str = ""
    needs_attack: bool = False


FILTERS = ("poison_detector", "heatmap", "perfect", "random")
"""Ways to choose the images that a network is trained again without (`nbsupport.retraining`)."""


USUAL_FILTERS = ("poison_detector", "perfect", "random")
"""Those that are used unless others are asked for."""


def _retrained(name: str) -> tuple[Stage, Stage]:
    """Choose the images that a filter takes away; train without them."""
    place = f"retrained/{name}"
    kind = {"notebook": "06_beyond", "make": "beyond", "needs_attack": True}
    return (
        Stage(f"{place}/filter", f"{place}/removed.npz", option="filters", **kind),
        Stage(f"{place}/training", f"{place}/model.safetensors", option=name, **kind),
    )


STAGES = {
    stage.name: stage
    for stage in (
        Stage("attack", "attack.npz", "01_attacks"),
        Stage("training", "model.safetensors", "02_training"),
        Stage("relevance", "relevance.npz", "03_lrp", version=2, needs_attack=True),
        Stage("detection", "detection.npz", "04_gw_clustering", version=5, needs_attack=True),
        Stage("ablation", "ablation.npz", "07_ablation", make="ablation", needs_attack=True),
        Stage("scan", "scan.npz", "06_beyond", version=3, make="beyond", option="scan"),
        *(stage for name in FILTERS for stage in _retrained(name)),
    )
}

PLACE = ("scenario", "profile", "device", "runs", "data", "interactive")
"""Parameters of notebooks, where they have them, that say what is run and where, not how."""

NETWORKS = ROOT / "data" / "networks"
"""Runs of clean networks that come with the repository: weights and rates, no image."""

CHAIN = tuple(name for name, stage in STAGES.items() if stage.make == "run")
"""The stages that results are made of, in their order."""


def wanted(scenario: Scenario) -> tuple[str, ...]:
    """List the stages of a run; a clean one serves as surrogate and holds no poison to detect."""
    return tuple(name for name in CHAIN if _possible(scenario, name))


def _possible(scenario: Scenario, stage: str) -> bool:
    return scenario.attack != "clean" or not STAGES[stage].needs_attack


@dataclass(frozen=True)
class Run:
    """The artefacts of one scenario under one profile.

    Parameters
    ----------
    runs : Path
        Folder of all runs.
    profile : Profile
        How much is computed.
    scenario : Scenario
        What is attacked.
    """

    runs: Path
    profile: Profile
    scenario: Scenario

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return Path(self.runs) / str(self.profile) / str(self.scenario)

    def of(self, scenario: Scenario) -> "Run":
        """Return the run of another scenario in the same profile, such as the surrogate."""
        return Run(self.runs, self.profile, scenario)

    def path(self, stage: str) -> Path:
        """Path of a stage's record."""
        return self.folder / f"{STAGES[stage].name}.json"

    def payload(self, stage: str) -> Path:
        """Path of a stage's arrays or weights."""
        return self.folder / STAGES[stage].payload

    def command(self, stage: str) -> str:
        """Commands that make a stage, for error messages: with all it needs, or alone.

        Where nothing makes it (the relevance of a network that nobody attacked), the reason and
        what to ask for instead.
        """
        if not _possible(self.scenario, stage):
            made = ", ".join(name for name in STAGES if _possible(self.scenario, name))
            return (
                f"{self.scenario} is a network that nobody attacked and has no stage {stage!r}, "
                f"only {made}; name an attacked scenario, such as {Scenario()}"
            )
        name, target, option = (getattr(STAGES[stage], k) for k in ("notebook", "make", "option"))
        runs = shlex.quote(str(self.runs))
        out = shlex.quote(str(self.folder / f"{name}.ipynb"))
        return (
            f"  make {target} PROFILE={self.profile} SCENARIOS={self.scenario} RUNS={runs}"
            + (f" FILTERS={option}" if option in FILTERS else "")
            + "\n"
            "or, if all that comes before it is there, with\n"
            f"  papermill --engine nbsupport notebooks/{name}.ipynb {out} "
            f"-p scenario {self.scenario} -p profile {self.profile} -p runs {runs}"
            + (f" -p make {option}" if option else "")
        )

    def save(
        self,
        stage: str,
        payload: Mapping[str, Any],
        record: Mapping[str, Any],
        *,
        made_from: tuple[tuple["Run", str], ...] = (),
        parameters: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
        device: str = "cpu",
    ) -> Path:
        """Write a stage: payload first, record last, each complete or not at all.

        Parameters
        ----------
        stage : str
            Name in `STAGES`.
        payload : mapping
            NumPy arrays by name, or torch tensors where the stage's payload is safetensors.
        record : mapping
            What the stage found; JSON types and NumPy scalars.
        made_from : tuple of (Run, str)
            Stages that were read, this run's or another's.
        parameters : mapping
            Parameters of the notebook.
        seconds : float
            Time the stage took.
        device : str
            Device it ran on.

        Returns
        -------
        Path
            Path of the record.

        Raises
        ------
        ArtifactError
            If it cannot be written (a full disk, a folder without permission); the artefacts that
            were there before stay as they were.
        """
        try:
            self.path(stage).parent.mkdir(parents=True, exist_ok=True)
            with _beside(self.path(stage)) as note, _beside(self.payload(stage)) as temporary:
                _write_payload(temporary, self.payload(stage).suffix, payload)
                body = {
                    "schema": SCHEMA,
                    "stage": stage,
                    "version": STAGES[stage].version,
                    "scenario": str(self.scenario),
                    "profile": str(self.profile),
                    "settings": asdict(self.profile),
                    "parameters": dict(parameters or {}),
                    "result": dict(record),
                    # Payloads only: a record also tells seconds, which change without the content.
                    "made_from": {
                        _input_key(self, run, name): _as_read(run.payload(name))
                        for run, name in made_from
                    },
                    "payload": {STAGES[stage].payload: checksum(temporary)},
                    "code": code_version(),
                    "libraries": library_versions(),
                    "device": device,
                    "seconds": round(seconds, 3),
                }
                body = _plain(body)
                body["checksum"] = _digest(body)
                note.write_text(json.dumps(body, indent=1) + "\n")
                # Whatever can fail for want of space has happened before the first one is renamed;
                # and the payload is in place before the record names it.
                for file in (temporary, note):
                    _to_disk(file)
                os.replace(temporary, self.payload(stage))
                os.replace(note, self.path(stage))
                self._remember(body)
        except OSError as error:
            raise ArtifactError(
                f"{self.folder}: {stage} could not be written ({error.strerror or error}); free "
                "space or name another folder with the parameter 'runs'. What was there is intact."
            ) from error
        return self.path(stage)

    def load(self, stage: str) -> dict[str, Any]:
        """Read a stage's record after checking it, its payload and what it was made from.

        Returns
        -------
        dict
            The record; what the stage found is under ``"result"``.

        Raises
        ------
        ArtifactError
            If it is missing, truncated, edited by hand, of another run, or older than its inputs.
        """
        path, remedy = self.path(stage), self.command(stage)
        if _possible(self.scenario, stage):
            remedy = f"make it with\n{remedy}"
        try:
            body = json.loads(path.read_text())
            stated = body.pop("checksum")
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{path} is missing; {remedy}") from None
        except (ValueError, KeyError, AttributeError, TypeError, UnicodeDecodeError):
            raise ArtifactError(f"{path} is truncated or no record; {remedy}") from None
        if body.get("schema") != SCHEMA:
            raise ArtifactError(
                f"{path} has schema {body.get('schema')}, this edition reads {SCHEMA}; {remedy}"
            )
        if stated != _digest(body):
            raise ArtifactError(f"{path} was edited after it was written; {remedy}")
        for key, mine in (
            ("stage", stage),
            ("scenario", str(self.scenario)),
            ("profile", str(self.profile)),
        ):
            if body.get(key) != mine:
                other = body.get(key)
                raise ArtifactError(f"{path} belongs to {key} {other}, not {mine}; {remedy}")
        if body.get("settings") != asdict(self.profile):
            raise ArtifactError(
                f"{path} is stale: profile {self.profile} has changed since it was made; {remedy}"
            )
        if body.get("version") != STAGES[stage].version:
            raise ArtifactError(
                f"{path} is stale: it was made by version {body.get('version')} of the stage, "
                f"this edition has version {STAGES[stage].version}; {remedy}"
            )
        for name, digest in body["payload"].items():
            file = self.folder / name
            if _checksum_if_there(file) != digest:
                raise ArtifactError(
                    f"{file} is missing, truncated or not what {path.name} describes; {remedy}"
                )
        for key, digest in body["made_from"].items():
            # By its name: behind a folder that is a link, ".." is another one to the system.
            file = Path(os.path.normpath(self.folder / key))
            there = _checksum_if_there(file)
            if there is None:
                raise ArtifactError(
                    f"{path} was made from {file.resolve()}, which is missing; {remedy}"
                )
            if there != digest:
                raise ArtifactError(
                    f"{path} is stale: {file.resolve()} has changed since it was made; {remedy}"
                )
        if stage != "attack" and not self._of_these_images(body):
            raise ArtifactError(
                f"{path} is stale: it was made from other images than {self.path('attack').name} "
                f"beside it names now; {remedy}"
            )
        return body

    def _of_these_images(self, body: Mapping[str, Any]) -> bool:
        """Whether a stage was made from the images of the attack, where both tell theirs.

        The attack's payload holds no image but those that were changed, none for a clean run: its
        checksum says nothing of the others.
        """
        try:
            mine = json.loads(self.path("attack").read_text())["result"]["fingerprint"]
            return body["result"]["fingerprint"] == mine
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def copy_to(self, runs: Path, stages: Iterable[str]) -> "Run":
        """Copy finished stages into another folder of runs, in the order given.

        What they were made from must be there or be copied before them. Where and on which folders
        they were made (`PLACE`) is left out of the copies.

        Parameters
        ----------
        runs : Path
            The other folder.
        stages : iterable of str
            Names in `STAGES`.

        Returns
        -------
        Run
            The copy.

        Raises
        ------
        ArtifactError
            If one is not sound, or cannot be written.
        """
        copy = Run(Path(runs), self.profile, self.scenario)
        bodies = {stage: self.load(stage) for stage in stages}  # all are sound before one is copied
        try:
            for stage, body in bodies.items():
                told = body["parameters"].items()
                body["parameters"] = {name: value for name, value in told if name not in PLACE}
                copy.path(stage).parent.mkdir(parents=True, exist_ok=True)
                with atomic(copy.payload(stage)) as temporary:
                    shutil.copyfile(self.payload(stage), temporary)
                body["copied"] = True  # its seconds are those of another machine
                write_json(copy.path(stage), body | {"checksum": _digest(body)})
        except OSError as error:
            raise ArtifactError(
                f"{copy.folder}: {stage} could not be copied ({error.strerror or error}); free "
                "space or name another folder of runs"
            ) from error
        return copy

    def arrays(self, stage: str) -> dict[str, np.ndarray]:
        """Read a stage's arrays, checked as in `load`."""
        self._remember(self.load(stage))
        with np.load(self.payload(stage), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def weights(self, stage: str = "training") -> dict:
        """Read a stage's weights as torch tensors, checked as in `load`."""
        from safetensors.torch import load_file

        self._remember(self.load(stage))
        return load_file(self.payload(stage))

    def _remember(self, record: Mapping[str, Any]) -> None:
        """Keep the checksums of what is read now, for the records of what is made from it."""
        _READ.update({(self.folder / name).resolve(): d for name, d in record["payload"].items()})

    def has(self, stage: str) -> bool:
        """Whether a stage is finished and sound."""
        try:
            self.load(stage)
        except ArtifactError:
            return False
        return True


def begun_runs(runs: Path, profile: Profile) -> list[Run]:
    """List the runs of a profile that have a record, sound or not, in the order of their ids."""
    found = []
    for folder in sorted(Path(runs).glob(f"{profile}/*")):
        with suppress(ValueError):
            run = Run(Path(runs), profile, Scenario.parse(folder.name))
            if run.folder == folder and any(run.path(stage).exists() for stage in STAGES):
                found.append(run)
    return found


def finished_runs(runs: Path, stage: str = "detection", profile: str | None = None) -> list[Run]:
    """List the runs in which ``stage`` and all before it are sound, in the order of their ids.

    Before a side road lies all that is `wanted` of the scenario.

    Folders that are no run (another profile's figures, say) are passed over.
    """
    found = []
    for path in sorted(Path(runs).glob(f"{profile or '*'}/*/{stage}.json")):
        with suppress(ValueError):
            first, second = path.relative_to(runs).parts[:2]
            run = Run(Path(runs), Profile.parse(first), Scenario.parse(second))
            before = CHAIN[: CHAIN.index(stage)] if stage in CHAIN else wanted(run.scenario)
            if run.path(stage) == path and all(run.has(each) for each in (*before, stage)):
                found.append(run)
    return found


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that is renamed to it once all is well.

    On an error the temporary file goes and the old one stays.
    """
    with _beside(Path(path)) as temporary:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all, into a folder that is made where it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Write JSON that any reader takes (no NaN), as `write_text` does."""
    write_text(path, json.dumps(body, indent=1, allow_nan=False) + "\n")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_if_there(path: Path) -> str | None:
    """Checksum of a file, or None: another job may take it away between two looks."""
    try:
        return checksum(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@cache
def code_version() -> str:
    """Version of the package, with the commit where it runs from a checkout.

    A trailing "+" marks a package or notebooks that differ from that commit. Asked first when a
    notebook begins (`execution.resolve`): what is committed while it runs is not what ran.
    """
    changed = ["status", "--porcelain", "nbsupport", "notebooks"]
    commands = (["describe", "--always", "--exclude=*"], changed)
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", ROOT, *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}-{commit}{'+' if changes else ''}"


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers."""
    names = ("torch", "torchvision", "numpy", "scikit-learn", "POT")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


_READ: dict[Path, str] = {}
"""Checksum of each payload as this process last read or wrote its content."""


def _as_read(payload: Path) -> str:
    """Checksum of an input as it was used, whatever may lie there by now."""
    return _READ.get(payload.resolve()) or checksum(payload)


def _input_key(run: Run, other: Run, stage: str) -> str:
    """Name an input relative to the run's folder, so that the folder of runs may be moved."""
    if other.folder == run.folder:
        return STAGES[stage].payload
    return f"../{other.folder.name}/{STAGES[stage].payload}"


def _write_payload(path: Path, suffix: str, payload: Mapping[str, Any]) -> None:
    if suffix == ".safetensors":
        from safetensors.torch import save

        # Its own save_file hides a full disk in an error that is no OSError.
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in payload.items()}))
    else:
        arrays = {name: np.asarray(array) for name, array in payload.items()}
        pickled = [name for name, array in arrays.items() if array.dtype.hasobject]
        if pickled:
            raise TypeError(f"arrays {pickled} hold Python objects; store numbers or fixed text")
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Turn NumPy values, paths and ids into JSON types; a rate that is not defined into null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Path | Scenario | Profile):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} does not fit into a JSON record")
