"""Kill the workflow at random moments, resume it, and compare with a run that nobody disturbed.

    python benchmarks/kill_resume.py [--profile demo] [--scenarios standard-s3-p15-r0]
                                     [--kills 20] [--seed 0] [--jobs 2] [--device cpu]
                                     [--minutes 60] [--json FILE]

Each kill is SIGKILL to the whole process group, at a moment drawn evenly from the duration of the
undisturbed run. A run that finishes before its kill is compared, and the next kill meets a new one.
Compared byte for byte: results.csv without the column `seconds`, all tables, and the payload of
every stage. What differs is shown, line by line where it is text, and the verdict so far is written
after each run. Exit status 1 if anything differs.
"""

import argparse
import difflib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from measure import machine

from nbsupport import ROOT, workflow
from nbsupport.artifacts import STAGES, Run, checksum, wanted
from nbsupport.scenarios import Profile, expand

CODE = ("Snakefile", "notebooks", "nbsupport")


class Chain:
    """The workflow on a folder of its own, with locks of its own."""

    def __init__(self, folder: Path, code: Path, options: argparse.Namespace):
        self.folder, self.runs, self.options = folder, folder / "runs", options
        folder.mkdir()
        for name in CODE:
            (folder / name).symlink_to(code / name)
        self.place = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(code)}}

    def words(self, *more: str) -> list[str]:
        scenarios = expand(self.options.scenarios)
        config = {name: getattr(self.options, name) for name in ("device", "minutes")}
        return workflow.command(
            scenarios,
            self.options.profile,
            jobs=self.options.jobs,
            options=more,
            runs=self.runs,
            **config,
        )

    def run(self, limit: float | None = None) -> bool:
        """Run until done, or kill everything after `limit` seconds; return whether it is done."""
        with open(self.folder / "log.txt", "a") as log:
            process = subprocess.Popen(
                self.words(), **self.place, start_new_session=True, stdout=log, stderr=log
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return False
        if status:
            raise SystemExit(
                f"the workflow failed:\n{(self.folder / 'log.txt').read_text()[-4000:]}"
            )
        return True

    def unlock(self) -> None:
        subprocess.run(self.words("--unlock"), **self.place, check=True, capture_output=True)

    def there(self) -> list[str]:
        """Stages that are recorded."""
        return [s for run in self.all() for s in STAGES if run.path(s).exists()]

    def all(self) -> list[Run]:
        scenarios = expand(self.options.scenarios)
        every = dict.fromkeys([*scenarios, *(s.surrogate for s in scenarios if s.needs_surrogate)])
        return [Run(self.runs, Profile.parse(self.options.profile), s) for s in every]

    def facts(self) -> dict[str, str]:
        """What must be the same: tables as text, payloads as checksums."""
        base = self.runs / self.options.profile
        table = pd.read_csv(base / "results.csv", dtype=str)
        found = {"results.csv": table.drop(columns="seconds").to_csv(index=False)}
        for path in sorted(base.glob("figures/*")):
            if path.suffix in (".md", ".tex") or (path.suffix == ".csv" and path.stem != "results"):
                found[path.name] = path.read_text()
        for run in self.all():
            for stage in wanted(run.scenario):
                run.load(stage)
                found[f"{run.scenario}/{STAGES[stage].payload}"] = checksum(run.payload(stage))
        return found


def differences(expected: dict[str, str], found: dict[str, str]) -> dict[str, list[str]]:
    """Lines that were expected (-) and lines that came instead (+), of each thing that differs."""
    told = {}
    for name in sorted({*expected, *found}):
        pair = [side.get(name, "nothing").splitlines() for side in (expected, found)]
        if pair[0] != pair[1]:
            told[name] = list(difflib.unified_diff(*pair, n=0, lineterm=""))[2:]
    return told


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--scenarios", default="standard-s3-p15-r0")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--minutes", type=int, default=60, help="time limit of each step")
    parser.add_argument("--json", help="write the kills and the verdict")
    options = parser.parse_args()
    rng, kills, differing = random.Random(options.seed), [], {}
    made_by = machine()  # of the code as it is now: it is copied below
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        # A copy, so that whoever edits the repository meanwhile does not change the experiment.
        code = Path(folder) / "code"
        code.mkdir()
        shutil.copy2(ROOT / "Snakefile", code)
        for name in CODE[1:]:
            shutil.copytree(ROOT / name, code / name)
        quiet = Chain(Path(folder) / "undisturbed", code, options)
        started = time.monotonic()
        quiet.run()
        duration = time.monotonic() - started
        expected = quiet.facts()
        print(f"undisturbed: {duration:.0f} s, {len(expected)} things to compare", flush=True)
        rounds = 0
        while len(kills) < options.kills:
            chain = Chain(Path(folder) / f"round{rounds}", code, options)
            rounds += 1
            before, started, done = len(kills), time.monotonic(), False
            while not done:
                moment = rng.uniform(0, duration) if len(kills) < options.kills else None
                done = chain.run(moment)
                if done and len(kills) == before:
                    # The machine is less busy than it was: draw the next moments from this time.
                    duration = time.monotonic() - started
                if not done:
                    kills.append({"round": rounds, "seconds": moment, "there": chain.there()})
                    print(f"kill {len(kills)} after {moment:.1f} s: {chain.there()}", flush=True)
                    chain.unlock()
            found = differences(expected, chain.facts())
            shutil.rmtree(chain.folder)
            for name, lines in found.items():
                print(f"{name} differs:", *lines, sep="\n")
            differing |= found
            verdict = f"{len(differing)} differ" if differing else "all the same"
            things = f"{len(kills)} kills in {rounds} runs, {len(expected)} things compared"
            print(f"{things}: {verdict}", flush=True)
            if options.json:  # after each run, so that who stops it keeps what was seen
                report = {"machine": made_by, "profile": options.profile, "jobs": options.jobs}
                report |= {"kills": kills, "runs": rounds, "compared": sorted(expected)}
                report |= {"differing": differing, "seconds": duration}
                Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
