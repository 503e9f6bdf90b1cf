"""Pairs per second of Gromov-Wasserstein: nbsupport.transport against POT, same run.

    python benchmarks/gw.py [--run data/runs/fast/standard-s2-p15-r0] [--maps 200] [--pairs 12]
                            [--nodes 10 32] [--epsilon 0.01 0.005] [--rounds 3] [--device cpu]
                            [--threads 1] [--json FILE]

Heatmaps of a finished run (drawn ones if there is no such run) against two barycentres.

- cold: `transport.match` of all maps, from nothing, against `gw.entropic_gw`, which is POT's
  projected gradient, on the first few maps. `max_rel_diff` is the largest difference of the
  objective on those, at plans rounded to the exact marginals.
- warm: after a step of the barycentres, with the couplings of the step before, as in k-means.
  POT starts again, as in the released code.
- proximal: GW without entropy, against `ot.batch.solve_gromov_batch` on the same device, both
  stopped by their own default rule; the difference is that of the mean objective, at rounded
  plans: negative where ours is lower.

Ratios compare the seconds of a pair, best of the rounds, which take turns so that a busy machine
slows both. Beside each difference stands how many pairs of POT's ended in another local minimum
(objectives more than 1 % apart).
"""

from pathlib import Path

import numpy as np
import ot
import torch
from measure import Report, parser, take_turns
from ot.batch import solve_gromov_batch

from nbsupport import barycentres, gw, transport


def drawn_maps(n, side=32):
    """Smooth maps with a support of about three quarters of the grid, one in seven a spot."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((n, 1, side, side)))
    maps = torch.nn.functional.avg_pool2d(noise, 5, 1, 2).numpy()[:, 0] ** 8
    maps[::7] *= 0.2
    y, x = rng.integers(4, side - 6, (2, n))
    for i in range(0, n, 7):
        maps[i, y[i] : y[i] + 3, x[i] : x[i] + 3] += maps.max()
    return maps


def load_maps(run, n):
    """Return maps of a finished run, or drawn ones; and where they come from, for the record."""
    path = run / "relevance.npz"
    if not path.exists():
        print(f"{path} is not there: drawn maps instead")
        return drawn_maps(n), "drawn"
    with np.load(path, allow_pickle=False) as arrays:
        maps = np.abs(arrays["heatmaps_released"])
    print(f"maps of {path}")
    return maps[np.random.default_rng(0).permutation(len(maps))[:n]], f"{len(maps)} of {run.name}"


def rounded_value(cloud, C, T):
    """Objective of a plan of POT's, rounded to the exact marginals (Altschuler et al. 2017)."""
    p, q = cloud.p, np.full(len(C), 1.0 / len(C))
    T = T * np.minimum(1.0, p / T.sum(1))[:, None]
    T = T * np.minimum(1.0, q / T.sum(0))
    lack = p - T.sum(1), q - T.sum(0)
    if lack[0].sum() > 0:
        T = T + np.outer(*lack) / lack[0].sum()
    return gw.gw_value(cloud.C, C, T)


def pot_batch(clouds, centres, epsilon, device):
    """Solve all pairs in one call: clouds padded with points of almost no weight."""
    size, m = max(map(len, clouds)), centres.shape[-1]
    C, p = np.zeros((len(clouds), size, size)), np.full((len(clouds), size), 1e-12)
    for i, cloud in enumerate(clouds):
        C[i, : len(cloud), : len(cloud)] = cloud.C
        p[i, : len(cloud)] = cloud.p
    p /= p.sum(1, keepdims=True)
    k = len(centres)
    arguments = (
        np.repeat(C, k, 0), np.tile(centres, (len(clouds), 1, 1)),
        np.repeat(p, k, 0), np.full((len(clouds) * k, m), 1.0 / m),
    )  # fmt: skip
    Ca, Cb, a, b = (torch.as_tensor(x, dtype=torch.float32, device=device) for x in arguments)
    return lambda: solve_gromov_batch(Ca, Cb, epsilon, a, b, symmetric=True).plan


def main():
    options = parser(__doc__)
    options.add_argument("--run", type=Path, default=Path("data/runs/fast/standard-s2-p15-r0"))
    options.add_argument("--maps", type=int, default=200)
    options.add_argument("--pairs", type=int, default=12)
    options.add_argument("--nodes", type=int, nargs="+", default=[10, 32])
    options.add_argument("--epsilon", type=float, nargs="+", default=[0.01, 0.005])
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rounds = arguments.device, arguments.rounds
    maps, source = load_maps(arguments.run, arguments.maps)
    weights = gw.grid_weights(maps)
    clouds = [gw.point_cloud(row) for row in weights[: arguments.pairs // 2]]
    spaces = transport.HeatmapSpaces(weights, device=device)
    n, few = 2 * len(weights), 2 * len(clouds)
    sizes = (weights > 0).sum(1)
    print(f"{len(weights)} maps, support {np.median(sizes):.0f} of {weights.shape[1]} pixels")
    report = Report(device=device, threads=arguments.threads, maps=source)
    for m in arguments.nodes:
        for epsilon in arguments.epsilon:
            start = [gw.random_structure(m, np.random.default_rng(i)) for i in range(2)]
            groups = np.arange(len(weights)) % 2
            # Two centres on their way, and the next step of each.
            old, new = (
                barycentres.average(
                    spaces, epsilon, labels=groups, start=np.stack(start), max_rounds=r
                ).centres
                for r in (3, 4)
            )

            def loop(epsilon=epsilon, centres=new, m=m):
                nodes = [gw.PointCloud(C, np.full(m, 1.0 / m)) for C in centres]
                return [[gw.entropic_gw(c, node, epsilon).T for node in nodes] for c in clouds]

            carried = transport.Couplings()
            transport.match(spaces, old, epsilon, couplings=carried)
            kept = [x if x is None else x.clone() for x in (carried.T, carried.A, carried.g)]

            def warm(epsilon=epsilon, centres=new, carried=carried, kept=kept):
                for target, source in zip((carried.T, carried.A, carried.g), kept, strict=True):
                    if target is not None:
                        target.copy_(source)  # this copy is timed too
                return transport.match(spaces, centres, epsilon, couplings=carried)

            functions = {
                "POT": loop,
                "cold": lambda epsilon=epsilon, new=new: transport.match(spaces, new, epsilon),
                "warm": warm,
            }
            seconds, results = take_turns(functions, rounds, device)
            theirs = np.array([
                [rounded_value(c, C, T) for C, T in zip(new, row, strict=True)]
                for c, row in zip(clouds, results["POT"], strict=True)
            ])  # fmt: skip
            for how in ("cold", "warm"):
                found = results[how]
                gap = np.abs(found.value[: len(clouds)] / theirs - 1)
                name = f"m={m} eps={epsilon:g} {how}"
                same = gap[gap <= 0.01]
                report.row(
                    name, "POT loop", n, seconds[how], seconds["POT"],
                    float(same.max()) if len(same) else None, baseline_n=few,
                    max_rel_diff_all_pairs=float(gap.max()), other_minimum=int((gap > 0.01).sum()),
                    not_converged=int((~found.converged).sum()), steps=float(found.n_iter.mean()),
                )  # fmt: skip
                told = report.rows[-1]
                print(
                    f"{'':22} {told['other_minimum']} of {few} pairs in another local minimum; "
                    f"{told['not_converged']} of {n} not converged, {told['steps']:.1f} steps each"
                )

            functions = {
                "batch": pot_batch(clouds, new, epsilon, device),
                "ours": lambda epsilon=epsilon, new=new: transport.match(
                    spaces, new, epsilon, solver="PPA"
                ),
            }
            seconds, results = take_turns(functions, rounds, device)
            plans = results["batch"].cpu().double().numpy().reshape(len(clouds), 2, -1, m)
            theirs = np.mean([
                [rounded_value(c, C, T[: len(c)]) for C, T in zip(new, row, strict=True)]
                for c, row in zip(clouds, plans, strict=True)
            ])  # fmt: skip
            difference = float(results["ours"].value[: len(clouds)].mean() / theirs - 1)
            report.row(
                f"m={m} eps={epsilon:g} proximal", f"ot.batch {ot.__version__}", n,
                seconds["ours"], seconds["batch"], difference, baseline_n=few,
            )  # fmt: skip
    report.write(arguments.json)


if __name__ == "__main__":
    main()
