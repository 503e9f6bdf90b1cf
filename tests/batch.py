"""The workflow and papermill as commands, on the profile ``tiny``."""

import subprocess
import sys
from pathlib import Path

from nbsupport import ROOT, workflow

SCENARIO = "standard-s3-p15-r0"


def snakemake(runs: Path, *options: str, **config: str) -> list[str]:
    """Command line of the workflow on the tiny profile, as `make run` has it."""
    asked = {"scenarios": SCENARIO, "profile": "tiny", "runs": str(runs), "device": "cpu"} | config
    # One job, and so one thread: other tests keep the other cores busy.
    return workflow.command(asked.pop("scenarios").split(), jobs=1, options=options, **asked)


def call(
    command: list[str], timeout: float = 1800, cwd: Path = ROOT
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
    )


def papermill(
    name: str, out: Path, engine: str | None, **parameters
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", f"{ROOT}/notebooks/{name}.ipynb", str(out)]
    command += ["--engine", engine] if engine else []
    for key, value in parameters.items():
        command += ["-p", key, str(value)]
    # Another folder than the repository: no notebook may depend on where it is started.
    return subprocess.run(
        command, cwd=out.parent, capture_output=True, text=True, timeout=600, check=False
    )
