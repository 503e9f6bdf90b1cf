"""Seconds of a whole Heatmap Clustering, and how they grow with the maps and with the grid.

    python benchmarks/heatmap_clustering.py [--run data/runs/fast/standard-s2-p15-r0]
        [--maps 100 1000 2463] [--closed 100 1000 10000 100000] [--grids 16 32 64]
        [--epsilon 0.01] [--max-iter 50] [--threads 1] [--device cpu] [--json FILE]

Heatmaps of a finished run, drawn with replacement where there are too few (drawn ones if there is
no such run).

- gw: `HeatmapClustering("gw")` below the collapse threshold; on larger grids, maps enlarged.
- closed: `HeatmapClustering("mean-distance")`, which is "gw" above the threshold.

The baseline is the published loop, which nobody can wait for: the seconds of one POT call, times
the calls of five rounds in which each map meets its barycentre ten times and both centres once.
For each row the largest memory of the process so far is printed; sizes ascend.
"""

import resource
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from gw import load_maps
from measure import Report, parser

from nbsupport import gw
from nbsupport.heatmap_clustering import HeatmapClustering

CALLS_PER_MAP = 5 * (10 + 2)


def seconds_of_pot(maps, epsilon, n=6):
    """Measure one call of POT between a map and a barycentre of ten points."""
    clouds = [gw.top_relevance(heatmap) for heatmap in maps[:n]]
    node = gw.PointCloud(
        gw.barycentre(clouds[:2], epsilon, rng=np.random.default_rng(0), max_iter=5).C,
        np.full(10, 0.1),
    )
    begin = time.perf_counter()
    for cloud in clouds:
        gw.entropic_gw(cloud, node, epsilon)
    return (time.perf_counter() - begin) / n


def enlarged(maps, side):
    maps = torch.as_tensor(maps)[:, None]
    return torch.nn.functional.interpolate(maps, (side, side), mode="bilinear").numpy()[:, 0]


def main():
    options = parser(__doc__)
    options.add_argument("--run", type=Path, default=Path("data/runs/fast/standard-s2-p15-r0"))
    options.add_argument("--maps", type=int, nargs="*", default=[100, 1000, 2463])
    options.add_argument("--closed", type=int, nargs="*", default=[100, 1000, 10_000, 100_000])
    options.add_argument("--grids", type=int, nargs="*", default=[16, 32, 64])
    options.add_argument("--epsilon", type=float, default=0.01)
    options.add_argument("--max-iter", type=int, default=50)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    real, source = load_maps(arguments.run, max([2, *arguments.maps, *arguments.closed]))
    report = Report(device=arguments.device, threads=arguments.threads, maps=source)

    def cluster(name, maps, pair, **parameters):
        begin = time.perf_counter()
        fitted = HeatmapClustering(**parameters).fit(maps)
        seconds = time.perf_counter() - begin
        n = len(maps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        report.row(
            name, "POT loop, extrapolated", n, seconds, pair * CALLS_PER_MAP * n,
            peak_gib=peak, rounds=fitted.n_iter_,
        )  # fmt: skip
        hours = pair * CALLS_PER_MAP * n / 3600
        print(
            f"{'':22} {seconds:.3g} s ({fitted.n_iter_} rounds) against {hours:.2g} h; "
            f"peak memory {peak:.1f} GiB"
        )

    def some(n):
        return real[np.arange(n) % len(real)]

    solver = {
        "metric": "gw", "epsilon": arguments.epsilon, "max_iter": arguments.max_iter,
        "device": arguments.device,
    }  # fmt: skip
    pair = seconds_of_pot(real, arguments.epsilon)
    print(f"one POT call at epsilon {arguments.epsilon:g}: {1000 * pair:.1f} ms")
    for n in sorted(arguments.maps):
        cluster(f"gw n={n}", some(n), pair, **solver)
    for side in sorted(arguments.grids):
        maps = enlarged(some(100), side)
        pair = seconds_of_pot(maps, arguments.epsilon, n=3)
        cluster(f"gw {side}x{side} n=100", maps, pair, **solver)
    pair = seconds_of_pot(real, 0.1)
    print(f"one POT call at epsilon 0.1: {1000 * pair:.1f} ms")
    for n in sorted(arguments.closed):
        cluster(f"closed n={n}", some(n), pair, metric="mean-distance", n_init=1)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
