"""The command line: ``nbsupport scenarios | data | surrogate | run | sweep | status | summary``."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nbsupport import paper, workflow
from nbsupport.artifacts import (
    FILTERS,
    NETWORKS,
    STAGES,
    ArtifactError,
    Run,
    begun_runs,
    wanted,
)
from nbsupport.execution import anchored
from nbsupport.scenarios import (
    ATTACKS,
    DEVICES,
    EXTENDED,
    GRAMMAR,
    PAPER,
    PROFILES,
    Profile,
    Scenario,
    expand,
)

if TYPE_CHECKING:
    from nbsupport.data import Dataset

__all__ = ["main"]

SWEEP = """\
Run every combination of attack, size, rate and repetition; what is finished is not run again.
Results: <runs>/<profile>/results.csv, one row per run and method.

  nbsupport sweep --attack standard --p 1,2,5,10 --s 1,2,3 --repetitions 5 --profile fast
  nbsupport sweep --attack amplitude --p 33 --a 128,64,32 --dry-run
  nbsupport sweep --attack standard --p 15 --options plain,resnet,win20x20,from1+2-to7
"""


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.act(options) or 0
    except (ArtifactError, ValueError) as error:
        print(f"nbsupport: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--profile", default="demo", help=f"one of {', '.join(PROFILES)}")
    place.add_argument("--runs", type=_folder, default="data/runs", help="folder of all runs")
    images = argparse.ArgumentParser(add_help=False)
    images.add_argument("--data", type=_image_folder, default="auto", help="folder of GTSRB")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--scenarios", nargs="*", help="ids, 'paper', 'extended'; default: all here")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--jobs", type=_count(1), default=2, help="jobs (cores) at a time")
    machine.add_argument("--gpus", type=_count(1), default=1, help="jobs on the GPU at a time")
    batch = argparse.ArgumentParser(add_help=False)
    batch.add_argument("--device", default="auto", choices=DEVICES)
    batch.add_argument("--minutes", type=_count(1), help="time limit of each step")
    aside = sorted({stage.make for stage in STAGES.values()} - {"run"})
    batch.add_argument("--stage", choices=aside, help="make this, and only what it needs")
    batch.add_argument("--filters", nargs="*", choices=FILTERS, help="for --stage beyond")
    batch.add_argument("--dry-run", action="store_true", help="say what would be run")
    batch.add_argument("--unlock", action="store_true", help="after an interruption: unlock first")

    parser = argparse.ArgumentParser(prog="nbsupport", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def add(name, act, text, *parents, **more):
        command = commands.add_parser(name, help=text, parents=parents, **more)
        command.set_defaults(act=act)
        return command

    add("scenarios", _print_scenarios, "the paper's experiments and the grammar of their names")
    add("data", _print_data, "load, check and cache the images of a profile", place, images)
    surrogate = add(
        "surrogate", _surrogate, "take the published clean network instead of training it",
        place, images,
    )  # fmt: skip
    surrogate.add_argument("--publish", action="store_true", help="the other way: publish yours")
    add("status", _print_status, "what is finished, and what is missing", place, named, machine)
    add("summary", _print_summary, "rates of finished runs beside the paper's", place, named)
    add("run", _run, "run scenarios", place, images, named, machine, batch)
    sweep = add(
        "sweep", _sweep, "run a grid of scenarios", place, images, machine, batch,
        description=SWEEP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sweep.add_argument("--attack", type=_list, required=True, help=f"of {', '.join(ATTACKS[1:])}")
    sweep.add_argument("--p", type=_list, required=True, help="percent of the class: 1,2,5,10")
    sweep.add_argument("--s", type=_numbers, default=(), help="sides of the sticker; default 3")
    sweep.add_argument("--a", type=_numbers, default=(), help="amplitudes, or opacities")
    words = "variants in the words of `nbsupport scenarios`: plain,resnet,win20x20"
    sweep.add_argument("--options", type=_list, default=(), dest="variants", help=words)
    sweep.add_argument("--repetitions", type=_count(1), default=1, help="of each combination")
    return parser


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _folder(text: str) -> Path:
    folder = _place(text)
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{folder} cannot be looked at: {error}") from None
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file; name a folder, new or there already")
    return folder


def _image_folder(text: str) -> str:
    # As one absolute path the workflow reads it as it is; "auto" asks the environment.
    return text if text == "auto" else str(_place(text))


def _place(text: str) -> Path:
    try:
        return anchored(text)
    except (OSError, RuntimeError) as error:  # a loop of links, or ~ of a user who is not there
        raise argparse.ArgumentTypeError(f"{text} is no folder: {error}") from None


def _count(least: int):
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _list(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers; write 1,2,3") from None


def _chosen(options: argparse.Namespace) -> list[Run]:
    """List the runs that are named, or all that were begun."""
    if options.scenarios:
        return _runs(options, expand(" ".join(options.scenarios)))
    profile = _profile(options)
    if not (runs := begun_runs(options.runs, profile)):
        others = sorted({run.parent.parent.name for run in options.runs.glob("*/*/attack.json")})
        raise ValueError(
            f"no run of profile {profile} in {options.runs} (profiles with runs there: "
            f"{', '.join(others) or 'none'}); name another with --profile or --runs, or run one: "
            f"nbsupport run --profile {profile} --scenarios standard-s3-p15-r0"
        )
    return runs


def _runs(options: argparse.Namespace, scenarios: Iterable[Scenario]) -> list[Run]:
    return [Run(options.runs, _profile(options), each) for each in scenarios]


def _profile(options: argparse.Namespace) -> Profile:
    return Profile.parse(options.profile)


def _print_scenarios(_options: argparse.Namespace) -> None:
    print("\n".join((*PAPER, "", GRAMMAR)))
    print(f"sets: paper (the {len(PAPER)} above), extended ({len(EXTENDED)} more beside them)")


def _print_data(options: argparse.Namespace) -> None:
    _images(options)


def _images(options: argparse.Namespace) -> "Dataset":
    """Load the images of a profile, and say how many there are."""
    from nbsupport import data

    profile = _profile(options)
    images = data.load(profile.data, folder=options.data, scale=profile.scale)
    sizes = ", ".join(f"{len(getattr(images, name)):,} {name}" for name in data.SPLITS)
    print(f"images: {images.name}, {sizes}")
    return images


def _check_images(runs: list[Run], images: "Dataset") -> None:
    """Refuse attacks that the images are too few for, and a folder that holds runs of others."""
    from nbsupport import attacks
    from nbsupport.evaluation import check_data

    wrong = []
    for run in runs:
        try:
            attacks.check(run.scenario, images)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(runs)} scenarios cannot be carried out on these images, and "
            "none was started:\n" + "\n".join(wrong)
        )
    # All that is in the folder goes into the same tables.
    for run in begun_runs(runs[0].runs, runs[0].profile):
        record = run.load("attack")["result"] if run.has("attack") else {}
        if "fingerprint" in record:
            try:
                check_data(images, record, "keep runs of these in another folder (RUNS=)")
            except ArtifactError as error:
                raise ArtifactError(f"{run.folder}: {error}") from None


def _surrogate(options: argparse.Namespace) -> None:
    """Copy the attacker's network of a profile from the repository to the runs, or back."""
    mine = Run(options.runs, _profile(options), Scenario().surrogate)
    if options.publish:
        copy = mine.copy_to(NETWORKS, ("attack", "training"))
    elif mine.has("training"):
        print(f"{mine.folder} is there already and stays as it is")
        return
    else:
        published = _published(mine, options.data)
        with workflow.claimed(mine.runs, mine.profile):
            copy = published.copy_to(mine.runs, ("attack", "training"))
            workflow.forget(copy, ("attack", "training"))
    record = copy.load("training")
    print(
        f"{copy.folder}: trained in {record['seconds'] / 60:.0f} minutes on {record['device']}, "
        f"clean accuracy {record['result']['clean_accuracy']:.2f} %"
    )


def _published(run: Run, folder: str) -> Run:
    """Find the published network of a clean run, trained on the images that are here."""
    from nbsupport import data
    from nbsupport.evaluation import check_data

    published = Run(NETWORKS, run.profile, run.scenario)
    train = f"train it: make run SCENARIOS={run.scenario} {_words(run, folder)}"
    if not published.path("training").exists():
        there = [path.parent.name for path in NETWORKS.glob(f"*/{run.scenario}")]
        raise ValueError(
            f"{run.scenario} of profile {run.profile} is not published (there are those of: "
            f"{', '.join(sorted(there)) or 'none'}); {train}"
        )
    try:
        record = published.load("training")["result"]
    except ArtifactError as error:
        raise ValueError(f"{str(error).partition(';')[0]}; {train}") from None
    images = data.load(run.profile.data, folder=folder, scale=run.profile.scale)
    check_data(images, record, train)
    return published


def _words(run: Run, data: str) -> str:
    """Settings of make that name the place of a run, and the images if they were named."""
    place = f"PROFILE={run.profile} RUNS={shlex.quote(str(run.runs))}"
    return place + (f" DATA={shlex.quote(data)}" if data != "auto" else "")


def _hint(runs: list[Run], data: str, resume: str) -> str | None:
    """Say that a published network would spare a training, where one would."""
    for run in runs:
        clean = run.of(run.scenario.surrogate)
        published = Run(NETWORKS, run.profile, clean.scenario).path("training").exists()
        if run.scenario.needs_surrogate and published and not clean.path("training").exists():
            return (
                f"{run.scenario} needs {clean.scenario}, which is trained first. The published "
                f"one spares that: stop here, call\n  make surrogate {_words(run, data)}\n"
                f"and go on with {resume}"
            )
    return None


def _run(options: argparse.Namespace) -> int:
    if not options.scenarios:
        raise ValueError("name scenarios: --scenarios standard-s3-p15-r0, or 'paper'")
    return _execute(options, expand(" ".join(options.scenarios)))


def _sweep(options: argparse.Namespace) -> int:
    scenarios = workflow.grid(
        options.attack,
        options.p,
        options.repetitions,
        sides=options.s,
        amplitudes=options.a,
        variants=options.variants,
    )
    print(f"{len(scenarios)} run{'s' * (len(scenarios) > 1)}: {' '.join(map(str, scenarios))}")
    status = _execute(options, scenarios)
    if status == 0 and not options.dry_run and not options.stage:
        print(f"results: {options.runs / str(_profile(options)) / 'results.csv'}")
    return status


def _execute(options: argparse.Namespace, scenarios: tuple[Scenario, ...]) -> int:
    """Run scenarios by the workflow, with a line whenever a step is done."""
    if options.filters and options.stage != "beyond":
        raise ValueError(
            f"--filters {' '.join(options.filters)} are read by --stage beyond alone, and the "
            f"stage is {options.stage or 'not given'}; add --stage beyond"
        )
    if options.stage == "ablation" and all(each.attack == "clean" for each in scenarios):
        raise ValueError(
            "--stage ablation looks for poison, and nobody attacked "
            f"{' '.join(map(str, scenarios))}; name an attack"
        )
    runs = _runs(options, scenarios)
    said = workflow.progress(runs, jobs=options.jobs, gpus=options.gpus, prove=True)

    def call(*words: str, watch=None, hold=()) -> int:
        config = {"runs": options.runs}
        config |= {name: getattr(options, name) for name in ("data", "device", "minutes")}
        config["filters"] = ",".join(options.filters or ()) or None
        machine = {"jobs": options.jobs, "gpus": options.gpus}
        line = workflow.command(scenarios, options.profile, **machine, options=words, **config)
        return workflow.execute(line, watch, hold=hold)

    def watch() -> str | None:
        nonlocal said
        now = workflow.progress(runs, jobs=options.jobs, gpus=options.gpus)
        changed, said = now.steps != said.steps, now
        return str(now) if changed else None

    if options.unlock:
        with workflow.alive(alone=True) as sign:
            if status := call("--unlock", hold=[sign]):
                return status
    way = "sweep" if options.act is _sweep else options.stage
    if hint := _hint(runs, options.data, f"make resume-{way}" if way else "make resume"):
        print(hint, file=sys.stderr)
    target = [f"every_{options.stage}"] if options.stage else []
    chosen = {"filters": options.filters} if options.filters else {}
    if old := workflow.outdated(runs, options.stage, **chosen):
        target += ["--forcerun", *map(str, old)]
    if options.dry_run:
        return call(*target, "--dry-run")
    # One job alone shall fill the cache of images, not all of them at once.
    _check_images(runs, _images(options))
    with workflow.alive() as sign, workflow.claimed(options.runs, _profile(options)) as claim:
        if options.stage:  # its own steps are not among those that are counted
            return call(*target, hold=[sign, claim])
        print(said, file=sys.stderr)
        status = call(*target, watch=watch, hold=[sign, claim])
    done = [run.scenario for run in runs if status and run.has("detection")]
    if 0 < len(done) < len(runs):
        names = " ".join(map(str, done))
        print(
            f"tables of what is finished: make run {_words(runs[0], options.data)} "
            f'SCENARIOS="{names}"',
            file=sys.stderr,
        )
    return status


def _print_status(options: argparse.Namespace) -> None:
    runs = _chosen(options)
    for run in runs:
        missing = [stage for stage in wanted(run.scenario) if not run.has(stage)]
        print(f"{run.scenario}: {'complete' if not missing else 'missing ' + ', '.join(missing)}")
    print(workflow.progress(runs, jobs=options.jobs, gpus=options.gpus, prove=True))


def _print_summary(options: argparse.Namespace) -> None:
    """Print the rates of each run and method beside the paper's, then the same as JSON."""
    runs, folder = _chosen(options), options.runs / str(_profile(options))
    shown = ("acc", "tpr", "tnr")
    summary: dict[str, dict] = {}
    if any(run.profile.data == "synthetic" for run in runs):
        print("drawn signs: the paper's values, on GTSRB, are shown and no target")
    unread: list[ArtifactError] = []
    for run in runs:
        try:
            training = run.load("training")["result"]
        except ArtifactError as error:
            unread.append(error)
            said = error if run.path("training").exists() else "no network to speak of yet"
            print(f"\n{run.scenario} (profile {run.profile}): {said}")
            continue
        rates = summary[str(run.scenario)] = {
            name: training[name] for name in ("clean_accuracy", "asr", "masr", "attack_took")
        }
        print(
            f"\n{run.scenario} (profile {run.profile}): clean accuracy "
            f"{rates['clean_accuracy']:.2f} %, ASR {rates['asr']:.2f} %, "
            f"MASR {rates['masr']:.2f} %"
        )
        if training["attack_took"] is False:
            print("  the attack did not take: detection rates below are rates of nothing")
        if not run.has("detection"):
            if run.scenario.attack != "clean":
                print("  detection: missing")
            continue
        print(f"  {'method':<22}{'ACC':>8}{'TPR':>8}{'TNR':>8}   paper: ACC / TPR / TNR")
        rates["methods"] = {}
        for method, found in run.load("detection")["result"]["methods"].items():
            rates["methods"][method] = {key: found[key] for key in (*shown, "auroc")}
            row = paper.published(str(run.scenario), method)
            printed = [_percent(row.comparable(key)) for key in shown] if row else ["-"]
            ours = "".join(f"{_percent(found[key]):>8}" for key in shown)
            print(f"  {method:<22}{ours}   {' / '.join(printed)}")
    if not summary:
        raise unread[0]
    print(f"\nfigures and tables: {folder / 'figures'}")
    print(f"executed notebooks and artefacts: {folder / '<scenario>'}")
    print("summary: " + json.dumps(summary))


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
