"""The workflow seen from outside: grids of scenarios, the command that runs them, what is left.

Snakemake decides what runs (see the Snakefile); nothing here imports it.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean

import psutil

from nbsupport import ROOT
from nbsupport.artifacts import CHAIN, STAGES, USUAL_FILTERS, Run, wanted
from nbsupport.scenarios import ATTACKS, Profile, Scenario, canonical_percent

__all__ = [
    "Progress", "alive", "claimed", "command", "execute", "forget", "grid", "outdated", "progress",
]  # fmt: skip

SIGN = ROOT / ".snakemake" / "alive"
"""File that is locked while a workflow of this checkout is at work."""

PUBLISHED = ROOT / "figures"
"""Folder whose tables tell what published runs took."""

STICKERS = ("standard", "label_consistent")
"""Attacks whose trigger has a side; the others have an amplitude."""

STARTUP = 10.0
"""Seconds from the start of a job to the first line of its notebook: Snakemake, kernel, torch."""


def grid(
    attacks: Iterable[str],
    percents: Iterable[str],
    repetitions: int = 1,
    *,
    sides: Iterable[int] = (),
    amplitudes: Iterable[int] = (),
    variants: Iterable[str] = (),
) -> tuple[Scenario, ...]:
    """Name every combination of attack, size, rate, variant and repetition.

    Parameters
    ----------
    attacks : iterable of str
        Families, such as "standard" or "amplitude".
    percents : iterable of str
        Poisoned shares of the target class in percent.
    repetitions : int
        How often each is run: repetitions 0 to ``repetitions - 1``.
    sides : iterable of int
        Sides of the sticker in pixels, for attacks with one; default 3.
    amplitudes : iterable of int
        Amplitudes (or opacities in percent), for attacks with one.
    variants : iterable of str
        Options of a scenario, as its id writes them ("resnet", "win20x20-resnet"), or "plain"
        for none; default: plain alone.

    Raises
    ------
    ValueError
        If an attack is unknown, clean or without its sizes, a combination is no scenario, or sizes
        are given that none of the attacks has.
    """
    if repetitions < 1:
        raise ValueError(f"{repetitions} repetitions; expected at least 1")
    attacks, percents, amplitudes = tuple(attacks), tuple(percents), tuple(amplitudes)
    sides, variants = tuple(sides), tuple(variants) or ("plain",)
    if not (attacks and percents):
        raise ValueError("a grid needs an attack and a rate: --attack standard --p 5,15")
    found = []
    for attack in attacks:
        if attack not in ATTACKS[1:]:
            hint = " (no rate, no size: 'nbsupport run --scenarios clean-r0' makes that network)"
            raise ValueError(
                f"attack is {attack!r}{hint if attack == 'clean' else ''}; a grid is made of "
                f"{', '.join(ATTACKS[1:])}"
            )
        letter, sizes = ("s", sides or (3,)) if attack in STICKERS else ("a", amplitudes)
        if not sizes:
            raise ValueError(f"{attack} attacks need amplitudes: --a 128,64,32")
        for size, percent, variant in product(sizes, percents, variants):
            words = [attack, f"{letter}{int(size)}", f"p{canonical_percent(percent)}"]
            words += [variant] * (variant != "plain")
            ids = ("-".join([*words, f"r{number}"]) for number in range(repetitions))
            found += map(Scenario.parse, ids)
    for option, given, having in (
        ("--s", sides, STICKERS),
        ("--a", amplitudes, [attack for attack in ATTACKS[1:] if attack not in STICKERS]),
    ):
        if given and not set(attacks) & set(having):
            raise ValueError(
                f"{option} {','.join(map(str, given))} is of no use to {', '.join(attacks)}; leave "
                f"it out, or add one of the attacks that have it: {', '.join(having)}"
            )
    return tuple(dict.fromkeys(found))


def command(
    scenarios: Iterable[Scenario | str],
    profile: Profile | str,
    *,
    jobs: int = 2,
    gpus: int = 1,
    options: Sequence[str] = (),
    **config: str | int | None,
) -> list[str]:
    """Build the command that runs scenarios, as ``make run`` does.

    Parameters
    ----------
    scenarios, profile
        What is run.
    jobs : int
        Jobs, and so cores, at a time.
    gpus : int
        Jobs on the GPU at a time.
    options : sequence of str
        Further options of Snakemake, such as "--dry-run".
    **config
        Settings of the Snakefile: runs, data, device, minutes, filters; None leaves its default.

    Raises
    ------
    ValueError
        If a setting would not reach the Snakefile as it is.
    """
    settings = {"profile": profile, "scenarios": " ".join(map(str, scenarios)), **config}
    for name, value in settings.items():
        # Snakemake reads values as YAML, to which the folder "runs #2" is the folder "runs", and
        # takes braces for wildcards.
        if re.search(r"[{}'\"\n]|\s#|:\s|:$|^\s|\s$", str(value)):
            raise ValueError(
                f"{name} is {str(value)!r}; the workflow takes names without quotes, braces, ' #', "
                "': ' and spaces at an end: rename the folder"
            )
    return [
        sys.executable, "-m", "snakemake", "--cores", str(jobs), "--keep-going",
        "--rerun-incomplete", "--resources", f"gpu={gpus}",
        # Not by the wording of a command either: slow stages go by their version, a parameter.
        "--rerun-triggers", "mtime", "params", "input",
        # Compared by content up to here: a payload that is written anew with the same bytes makes
        # nothing old.
        "--max-checksum-file-size", "1000000000", "--quiet", "rules", "host", "reason", "--nocolor",
        *options, "--config", *(f"{k}={v}" for k, v in settings.items() if v is not None),
    ]  # fmt: skip


@contextmanager
def alive(*, alone: bool = False) -> Iterator[int | None]:
    """Hold the sign that a workflow or a notebook of this checkout is at work.

    It goes with the processes that hold it, however they end; Snakemake's own locks outlive a
    killed one, and `--unlock` takes them from a living one, too. Held by `execute` and by each
    notebook that runs under our engine, but not by a Snakemake that is called by hand. Where the
    file system has no locks, nothing is held.

    Parameters
    ----------
    alone : bool
        Ask that nobody else holds it: whoever takes away locks must know that they are nobody's.

    Yields
    ------
    int or None
        The file descriptor to hand on to the process that shall hold it as well.

    Raises
    ------
    ValueError
        If another one is at work and ``alone`` is asked for.
    """
    with _held(SIGN, alone, f"{ROOT}, whose locks would be taken away") as held:
        yield held


@contextmanager
def claimed(runs: Path, profile: Profile) -> Iterator[int | None]:
    """Hold a folder of runs and a profile: two workflows there would undo each other's work.

    Snakemake has locks for that, which go when any other workflow of this checkout ends.

    Yields
    ------
    int or None
        As `alive` does.

    Raises
    ------
    ValueError
        If another one holds them.
    """
    folder = Path(runs) / str(profile)
    place = f"{folder}, where two would undo each other's work"
    with _held(folder / ".alive", True, place) as held:
        yield held


@contextmanager
def _held(path: Path, alone: bool, place: str) -> Iterator[int | None]:
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            held = file.fileno()
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in {place}: wait until it ends, or stop it (Ctrl-C); name "
                "all scenarios in one command, or give what shall run beside it another folder "
                "(make run RUNS=...)"
            ) from None
        except OSError:
            held = None
        yield held


def execute(
    words: Sequence[str],
    watch: Callable[[], str | None] | None = None,
    every: float = 5.0,
    *,
    hold: Sequence[int | None] = (),
) -> int:
    """Run a command in the repository and say now and then how far it is.

    Parameters
    ----------
    words : sequence of str
        From `command`.
    watch : callable, optional
        Asked every few seconds; returns a line, or None. What was printed last is not repeated.
    every : float
        Seconds between two questions.
    hold : sequence of int or None
        Descriptors from `alive` and `claimed`, which the command shall hold as long as it lives.

    Returns
    -------
    int
        Exit status of the command.
    """
    kept = [descriptor for descriptor in hold if descriptor is not None]
    process = subprocess.Popen(words, cwd=ROOT, pass_fds=kept)
    told = None
    before = signal.signal(signal.SIGTERM, lambda *_: _end(process))
    try:
        while True:
            # The terminal has told it of Ctrl-C as well: wait until it has tidied up.
            with suppress(KeyboardInterrupt):
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(every)
                line = watch and _asked(watch)
                if line and line != told:
                    print(f"[{line}]", file=sys.stderr, flush=True)
                    told = line
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen) -> None:
    """End a workflow and its jobs: Snakemake alone would let them finish first, for hours."""
    with suppress(psutil.NoSuchProcess):
        jobs = psutil.Process(process.pid).children(recursive=True)
        process.terminate()  # first, so that no other job is begun
        for job in jobs:
            # Kernels have groups of their own, and papermill ends them.
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getpgid(job.pid) == os.getpgid(process.pid):
                    job.terminate()


def _asked(watch: Callable[[], str | None]) -> str | None:
    """Ask how far the command is; an answer that fails is no reason to end it."""
    try:
        return watch()
    except Exception as error:
        return f"no word on progress: {type(error).__name__}: {error}"


def forget(run: Run, stages: Iterable[str]) -> None:
    """Let Snakemake forget how files were made that are now others, put there by a copy.

    Its notes on an interrupted or an older job would have them made anew.
    """
    files = [str(path) for stage in stages for path in (run.payload(stage), run.path(stage))]
    options = ("--cleanup-metadata", *files)
    line = command([run.scenario], run.profile, options=options, runs=run.runs)
    # It fails where there is no such note, which is as good.
    subprocess.run(line, cwd=ROOT, capture_output=True, check=False)


def outdated(
    runs: Sequence[Run], stage: str | None = None, filters: Sequence[str] = USUAL_FILTERS
) -> list[Path]:
    """List the records that are there and not sound, so that they are made anew.

    Of each run the first of the chain, which brings the others with it, and those that ``stage``,
    the word of ``--stage``, makes; of those that belong to a filter, the chosen ones. Snakemake
    sees a risen version of a stage only in its own notes (``.snakemake``), which are not there for
    runs that were copied or made by hand.
    """
    asked = [
        each.name
        for each in STAGES.values()
        if stage and each.make == stage and not _left_out(each.name, filters)
    ]
    # The side road shows every attacked network beside the one that nobody attacked.
    clean = [run.of(run.scenario.surrogate) for run in runs] if stage == "beyond" else []
    found = []
    for run in {run.folder: run for run in (*_surrogates(runs), *clean, *runs)}.values():
        # The ablation reads no verdicts.
        chain = [s for s in wanted(run.scenario) if (stage, s) != ("ablation", "detection")]
        found += _unsound(run, chain)[:1] + _unsound(run, asked)
    return found


def _left_out(stage: str, filters: Sequence[str]) -> bool:
    """Whether a stage belongs to a filter, ``retrained/<filter>/...``, that nobody chose."""
    return stage.startswith("retrained/") and stage.split("/")[1] not in filters


def _surrogates(runs: Iterable[Run]) -> list[Run]:
    return [run.of(run.scenario.surrogate) for run in runs if run.scenario.needs_surrogate]


def _unsound(run: Run, stages: Iterable[str]) -> list[Path]:
    there = [stage for stage in stages if run.path(stage).exists()]
    return [run.path(stage) for stage in there if not run.has(stage)]


@dataclass(frozen=True)
class Progress:
    """How far a list of runs is.

    Parameters
    ----------
    finished, total : int
        Runs.
    steps : int
        Stages that are finished, surrogates included.
    seconds : float or None
        Estimate of the time left; None before every kind of stage has finished once, here or among
        the published runs.
    jobs : int
        Jobs at a time, which the estimate counts on.
    elsewhere : bool
        Whether the estimate counts on what stages took on the machines of the published runs.
    """

    finished: int
    total: int
    steps: int
    seconds: float | None
    jobs: int
    elsewhere: bool = False

    def __str__(self):
        line = f"{self.finished} of {self.total} runs finished"
        if self.finished == self.total:
            return line
        if self.seconds is None:
            return f"{line}, no estimate before each kind of step has been done once"
        minutes = self.seconds / 60
        left = f"{minutes / 60:.1f} h" if minutes > 90 else f"{max(1, round(minutes))} min"
        line += f", about {left} left on {self.jobs} job{'s' * (self.jobs > 1)}"
        return line + ", if it takes as long as the published runs did" * self.elsewhere


def progress(runs: Sequence[Run], *, jobs: int = 2, gpus: int = 1, prove: bool = False) -> Progress:
    """Count finished runs and estimate the time left from what finished records say.

    Each missing stage is expected to take the mean of the finished ones of the same profile, those
    of the same attack family if there are any, or else what published ones took. The longest chain
    of stages, the jobs and the GPU each set a lower bound; the highest one counts.

    Parameters
    ----------
    runs : sequence of Run
        Runs that were asked for, all of one profile; their surrogates are added.
    jobs, gpus : int
        Jobs at a time, and jobs on a GPU at a time.
    prove : bool
        Count only what is sound, payloads included, as the next run will; without, records are
        taken at their word, for it is asked every few seconds.
    """
    if not runs:
        return Progress(0, 0, 0, 0.0, jobs)
    every = {run.scenario: run for run in (*runs, *_surrogates(runs))}
    missing = {
        scenario: [
            stage
            for stage in wanted(scenario)
            if not (run.has(stage) if prove else _told(run.path(stage), run.profile))
        ]
        for scenario, run in every.items()
    }
    here, published = _known(runs[0]), _published(str(runs[0].profile))
    chains, gpu, blind, elsewhere = {}, 0.0, False, False
    for scenario, stages in missing.items():
        chains[scenario] = 0.0
        for stage in stages:
            own, others = (
                known.get((stage, scenario.attack)) or known.get((stage, ""), [])
                for known in (here, published)
            )
            alike = own or others
            blind, elsewhere = blind or not alike, elsewhere or not own
            seconds = STARTUP + mean([seconds for seconds, _ in alike] or [0.0])
            chains[scenario] += seconds
            gpu += seconds if any(cuda for _, cuda in alike) else 0.0
    # Whoever needs a surrogate waits for it.
    longest = max(chains[s] + (chains[s.surrogate] if s.needs_surrogate else 0.0) for s in chains)
    return Progress(
        finished=sum(not missing[run.scenario] for run in runs),
        total=len(runs),
        steps=sum(len(wanted(s)) - len(stages) for s, stages in missing.items()),
        seconds=None if blind else max(sum(chains.values()) / jobs, gpu / gpus, longest),
        jobs=jobs,
        elsewhere=elsewhere,
    )


Seconds = dict[tuple[str, str], list[tuple[float, bool]]]
"""Seconds of finished stages, and whether a GPU was used; by the stage and the attack family, and
by the stage alone (an empty family)."""


def _known(run: Run) -> Seconds:
    """Take down what all finished stages of a profile took here."""
    known: Seconds = {}
    for stage in CHAIN:
        for path in Path(run.runs).glob(f"{run.profile}/*/{stage}.json"):
            record = _told(path, run.profile)
            if record and not record.get("copied"):  # seconds of this machine
                _take_down(known, stage, path.parent.name, record)
    return known


@cache
def _published(profile: str) -> Seconds:
    """Take down what the stages of published runs took, each on the machine that made it."""
    known: Seconds = {}
    runs: dict[str, dict] = {}
    for name in ("networks", "results"):  # the first has networks that nobody attacked as well
        with suppress(OSError, ValueError, KeyError, TypeError):
            runs |= json.loads((PUBLISHED / f"{name}.json").read_text())["runs"]
    for name, stages in runs.items():
        of, _, scenario = name.partition("/")
        for stage in CHAIN if of == profile else ():
            record = stages.get(stage, {})
            if record.get("version") == STAGES[stage].version:
                _take_down(known, stage, scenario, record)
    return known


def _take_down(known: Seconds, stage: str, scenario: str, record: Mapping) -> None:
    found = record["seconds"], str(record["device"]).startswith("cuda")
    for family in (scenario.split("-")[0], ""):
        known.setdefault((stage, family), []).append(found)


def _told(path: Path, profile: Profile) -> dict | None:
    """Read a record without proving its payload: progress is asked for every few seconds."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    # What was made by an older recipe or an older profile will be made anew.
    recipe = record.get("version"), record.get("settings")
    return record if recipe == (STAGES[path.stem].version, asdict(profile)) else None
