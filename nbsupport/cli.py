"""The command line: ``nbsupport scenarios | data | status | summary``."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from nbsupport import paper
from nbsupport.artifacts import STAGES, ArtifactError, Run, finished_runs
from nbsupport.execution import anchored
from nbsupport.scenarios import GRAMMAR, PAPER, PROFILES, Profile, expand

__all__ = ["main"]


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="nbsupport", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("scenarios", help="the paper's experiments and the grammar of their names")
    images = commands.add_parser("data", help="load, check and cache the images of a profile")
    images.add_argument("--profile", default="demo", help=f"one of {', '.join(PROFILES)}")
    images.add_argument("--data", default="auto", help="folder of GTSRB")
    for name, text in (
        ("status", "what is finished, and what is missing"),
        ("summary", "the rates of finished runs beside the paper's"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--runs", default="data/runs", help="folder of all runs")
        command.add_argument("--profile", default="demo", help=f"one of {', '.join(PROFILES)}")
        command.add_argument("--scenarios", nargs="*", help="ids; default: all finished runs")
    options = parser.parse_args(arguments)
    try:
        if options.command == "scenarios":
            print("\n".join((*PAPER, "", GRAMMAR)))
        elif options.command == "data":
            _print_data(Profile.parse(options.profile), options.data)
        elif options.command == "status":
            _print_status(_chosen(options))
        else:
            _print_summary(_chosen(options), anchored(options.runs) / options.profile)
    except (ArtifactError, ValueError) as error:
        print(f"nbsupport: {error}", file=sys.stderr)
        return 2
    return 0


def _chosen(options: argparse.Namespace) -> list[Run]:
    profile, runs = Profile.parse(options.profile), anchored(options.runs)
    if not options.scenarios:
        return finished_runs(runs, "training", str(profile))
    return [Run(runs, profile, each) for each in expand(" ".join(options.scenarios))]


def _print_data(profile: Profile, folder: str) -> None:
    from nbsupport import data

    images = data.load(profile.data, folder=folder, scale=profile.scale)
    sizes = ", ".join(f"{len(getattr(images, name)):,} {name}" for name in data.SPLITS)
    print(f"images: {images.name}, {sizes}")


def _print_status(runs: list[Run]) -> None:
    for run in runs:
        missing = [stage for stage in _wanted(run) if not run.has(stage)]
        print(f"{run.scenario}: {'complete' if not missing else 'missing ' + ', '.join(missing)}")


def _wanted(run: Run) -> list[str]:
    """Stages of a run; a clean one serves as surrogate and holds no poison to detect."""
    return list(STAGES)[: 2 if run.scenario.attack == "clean" else None]


def _print_summary(runs: list[Run], folder: Path) -> None:
    """Print the rates of each run and method beside the paper's, then the same as JSON."""
    summary: dict[str, dict] = {}
    if any(run.profile.data == "synthetic" for run in runs):
        print("drawn signs: the paper's values, on GTSRB, are shown and no target")
    for run in runs:
        training = run.load("training")["result"]
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
            continue
        print(f"  {'method':<22}{'ACC':>8}{'TPR':>8}{'TNR':>8}   paper: ACC / TPR / TNR")
        rates["methods"] = {}
        for method, found in run.load("detection")["result"]["methods"].items():
            rates["methods"][method] = {key: found[key] for key in ("acc", "tpr", "tnr", "auroc")}
            row = paper.published(str(run.scenario), method)
            printed = f"{row.acc} / {row.tpr} / {row.tnr}" if row and row.valid else "-"
            ours = "".join(f"{_percent(found[key]):>8}" for key in ("acc", "tpr", "tnr"))
            print(f"  {method:<22}{ours}   {printed}")
    print(f"\nfigures and tables: {folder / 'figures'}")
    print(f"executed notebooks and artefacts: {folder / '<scenario>'}")
    print("summary: " + json.dumps(summary))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
