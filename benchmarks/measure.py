"""What the benchmarks share: rounds that take turns, and rows of one shape."""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

from nbsupport.artifacts import code_version, library_versions


def machine():
    """Name processor, cores, libraries and code: what a time is worth without."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return {
        "processor": (models or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "gpu": gpu,
        "libraries": library_versions(),
        "code": code_version(),
    }


def parser(doc):
    """Begin a command line with what all benchmarks of speed are told."""
    begun = argparse.ArgumentParser(description=doc.splitlines()[0])
    begun.add_argument("--device", default="cpu")
    begun.add_argument("--threads", type=int, default=1)
    begun.add_argument("--json", type=Path)
    return begun


def take_turns(functions, rounds, device="cpu"):
    """Run functions in turns after a warm-up; return best seconds and last results by name."""
    seconds, results = {name: [] for name in functions}, {}
    for name in [*functions] * (rounds + 1):
        begin = time.perf_counter()
        results[name] = functions[name]()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - begin)
    return {name: min(times[1:]) for name, times in seconds.items()}, results


class Report:
    """Rows of measurements, printed as they come.

    `seconds` and `baseline_seconds` of a row are for `n` and `baseline_n` items; the ratio
    compares the seconds of one item.
    """

    def __init__(self, **shared):
        self.shared, self.rows = shared, []
        print(f"{'':22} {'baseline':31} {'ratio':>8} {'ours/s':>9} {'theirs/s':>9} {'diff':>8}")

    def row(
        self,
        name,
        baseline,
        n,
        seconds,
        baseline_seconds,
        difference=None,
        *,
        baseline_n=None,
        **more,
    ):
        ours, theirs = n / seconds, (baseline_n or n) / baseline_seconds
        self.rows.append({
            "name": name,
            "baseline": baseline,
            "ratio": ours / theirs,
            "seconds": seconds,
            "baseline_seconds": baseline_seconds,
            "max_rel_diff": difference,
            "n": n,
            "baseline_n": baseline_n or n,
        } | more | self.shared)  # fmt: skip
        shown = "" if difference is None else f"{difference:8.1e}"
        print(
            f"{name:22} {baseline:31} {ours / theirs:8.2f} {ours:9.4g} {theirs:9.4g} {shown}",
            flush=True,
        )

    def write(self, path):
        if path:
            path.write_text(json.dumps({"machine": machine(), "rows": self.rows}, indent=1) + "\n")
