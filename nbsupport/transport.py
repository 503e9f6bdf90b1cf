r"""Gromov-Wasserstein (GW) between many heatmaps and a few small spaces, all pairs at once.

`gw.entropic_gw` matches one heatmap with one small space. Heatmap Clustering needs every heatmap
against every barycentre, again and again; here the pairs run together, on a CPU or a GPU. The
answers are those of POT's projected gradient [1]_: the same fixed points, reached faster.

1. All heatmaps live on one pixel grid, so that they share one matrix D of distances; weights of 0
   stand for the pixels outside a support. D T, the expensive product, is one matrix product for
   the whole batch. The two reflections of the grid split D into four blocks of a quarter of its
   size: a quarter of the operations. On large grids D T is a convolution by Fourier transform.
2. A step projects exp(4 D T C / eps) onto the plans with the right marginals. Whatever depends on
   a pixel alone or a node alone is absorbed there and never formed. The potentials of the pixels
   follow from those of the m nodes, so that the projection is a concave problem in m numbers:
   Newton's method needs two steps where Sinkhorn's would need dozens.
3. Potentials are carried from step to step, and pairs that have settled leave the batch.
4. Plans are rounded onto the exact marginals [2]_ before a value is reported. As the rows of a
   plan are exact already, D times the rounded plan follows from D T without another product.

References
----------
.. [1] Peyré, Cuturi, Solomon, "Gromov-Wasserstein averaging of kernel and distance matrices",
   ICML 2016.
.. [2] Altschuler, Weed, Rigollet, "Near-linear time approximation algorithms for optimal
   transport via Sinkhorn iteration", NeurIPS 2017.
.. [3] Xu, Luo, Carin, "Scalable Gromov-Wasserstein learning for graph partitioning and
   matching", NeurIPS 2019.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from nbsupport import distances, gw
from nbsupport.devices import tune_allocator

__all__ = ["Couplings", "HeatmapSpaces", "Matches", "Options", "match", "sweep"]

SOLVERS = ("PGD", "PPA")
"""Projected gradient (entropic GW) and proximal point (GW without entropy)."""

_LOG2E = 1.0 / np.log(2.0)
_DUAL_STEPS = 60  # most steps of a projection; two are usual
_FLOOR = {torch.float32: -40.0, torch.float64: -300.0}  # smallest exponent of 2 in a kernel


class _Folded:
    """Product with D through the reflections of the grid, whose sides are even."""

    def __init__(self, shape, **kind):
        rows, columns = (np.stack([np.arange(s // 2), s - 1 - np.arange(s // 2)]) for s in shape)
        quadrants = rows[:, None, :, None] * shape[1] + columns[None, :, None, :]
        self.order = quadrants.ravel()  # quadrant by quadrant, each the mirror image of the first
        quarter = self.order.reshape(4, -1)
        D = gw.grid_distances(shape)[quarter[0]][:, quarter]
        signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        self.blocks = torch.as_tensor(np.einsum("kl,ilj->kij", signs, D) / 4, **kind)

    def __call__(self, T: Tensor) -> Tensor:
        parts = _butterfly(T.reshape(-1, 4, T.shape[-1] // 4))
        parts = torch.bmm(parts.transpose(0, 1), self.blocks)
        return _butterfly(parts.transpose(0, 1)).view(T.shape)


def _butterfly(X: Tensor) -> Tensor:
    """Sums and differences over both reflections of maps cut into quadrants, (r, 4, n / 4)."""
    Y, Z = (torch.empty(X.shape, device=X.device, dtype=X.dtype) for _ in range(2))
    torch.add(X[:, :2], X[:, 2:], out=Y[:, :2])
    torch.sub(X[:, :2], X[:, 2:], out=Y[:, 2:])
    torch.add(Y[:, ::2], Y[:, 1::2], out=Z[:, ::2])
    torch.sub(Y[:, ::2], Y[:, 1::2], out=Z[:, 1::2])
    return Z


class _Convolved:
    """Product with D as a convolution on a padded grid: memory grows with the pixels only."""

    def __init__(self, shape, **kind):
        self.shape, self.order = shape, np.arange(shape[0] * shape[1])
        self.padded = [fft.next_fast_len(2 * side - 1, real=True) for side in shape]
        steps = [fft.fftfreq(side) * side for side in self.padded]
        spectrum = fft.rfft2(np.hypot(steps[0][:, None], steps[1]))
        self.spectrum = torch.as_tensor(spectrum.real, **kind)  # real, as D is even

    def __call__(self, T: Tensor) -> Tensor:
        (height, width), padded = self.shape, self.padded
        X = torch.fft.rfft(T.reshape(-1, height, width), n=padded[1], dim=2)
        X = torch.fft.ifft(torch.fft.fft(X, n=padded[0], dim=1) * self.spectrum, dim=1)
        X = torch.fft.irfft(X[:, :height], n=padded[1], dim=2)
        return X[:, :, :width].reshape(T.shape)


class HeatmapSpaces:
    """Heatmaps as metric measure spaces on one pixel grid, ready for the batched solver.

    Parameters
    ----------
    weights : ndarray, shape (n, H * W) or (n, H, W)
        Weights on the pixel grid, as `gw.grid_weights` returns them; rows sum to 1.
    shape : (int, int), optional
        (H, W) of flat weights; a square grid when left out.
    device : str or torch.device, default "cpu"
        Where to compute.
    dtype : torch.dtype, default torch.float32
        torch.float64 for tolerances below 1e-5.
    folding_limit : int, default 2048
        Largest number of pixels for which D is held; beyond it, D T is a convolution.

    Attributes
    ----------
    moments : distances.DistanceMoments
        Moments of the distances of each map; `distances.collapse_threshold` of them is eps*.

    Raises
    ------
    ValueError
        If the maps differ in shape, or weights are negative or do not sum to 1.
    """

    def __init__(
        self,
        weights,
        shape=None,
        *,
        device="cpu",
        dtype=torch.float32,
        folding_limit=2048,
    ):
        gw.check_one_shape(weights)
        weights = np.asarray(weights)
        if weights.ndim == 3:
            shape, weights = weights.shape[1:], weights.reshape(len(weights), -1)
        self.moments = distances.distance_moments(weights, shape)
        side = int(np.sqrt(weights.shape[1]))
        self.shape = (side, side) if shape is None else tuple(shape)
        kind = {"device": device, "dtype": dtype}
        folded = weights.shape[1] <= folding_limit
        grid = tuple(s + s % 2 for s in self.shape) if folded else self.shape
        self.product = (_Folded if folded else _Convolved)(grid, **kind)
        # Where each pixel of the maps lies in the order of the solver.
        where = np.argsort(self.product.order).reshape(grid)[: self.shape[0], : self.shape[1]]
        self.where = torch.as_tensor(where.ravel(), device=device)
        self.p = torch.zeros(len(weights), grid[0] * grid[1], **kind)
        self.p[:, self.where] = torch.as_tensor(weights).to(**kind)
        unit = np.where(self.moments.diameter > 0, self.moments.diameter, 1.0)
        self.unit = torch.as_tensor(unit, device=device)
        self.second = torch.as_tensor(self.moments.second, device=device)
        if self.p.device.type == "cpu":
            tune_allocator()  # every step takes and frees the same megabytes

    def __len__(self) -> int:
        """Return the number of maps."""
        return len(self.p)

    def lattice(self, sides) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Spread a lattice of `sides` pixels over the grid; tell how to interpolate from it.

        Returns the pixels in the order of the solver, and for each axis weights (lattice, side):
        their product over all pixels would be larger than what the lattice saves.
        """
        ticks = [
            np.unique(np.linspace(0, side - 1, n).round().astype(int))
            for side, n in zip(self.shape, sides, strict=True)
        ]
        weights = [
            np.stack([np.interp(np.arange(side), tick, row) for row in np.eye(len(tick))])
            for side, tick in zip(self.shape, ticks, strict=True)
        ]
        pixels = np.add.outer(ticks[0] * self.shape[1], ticks[1]).ravel()
        return (
            self.where[torch.as_tensor(pixels, device=self.where.device)],
            tuple(torch.as_tensor(w).to(self.p) for w in weights),
        )

    def interpolate(self, values: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
        """Fill the grid between the values (..., pixels) of a `lattice`, in the solver's order."""
        rows, columns = axes
        values = values.unflatten(-1, (len(rows), len(columns)))
        full = values.new_zeros(*values.shape[:-2], self.p.shape[1])
        full[..., self.where] = (rows.mT @ values @ columns).flatten(-2)
        return full


@dataclass(frozen=True)
class Options:
    """How to solve; see `match`."""

    epsilon: float
    solver: str = "PGD"
    tol: float = 1e-2
    max_iter: int = 50

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ValueError(f"solver={self.solver!r} is unknown; choose one of {SOLVERS}")
        gw.check_epsilon(self.epsilon)
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter!r}")

    def settled(self, moved, error):
        """Tell which pairs are done, from the mass moved and the marginal error."""
        return (moved <= self.tol) & (error <= 0.1 * self.tol)


@dataclass(frozen=True)
class Matches:
    """How heatmaps match small spaces, shape (n, k).

    Attributes
    ----------
    value : ndarray, float64
        Square-loss GW objective of the rounded plan, without entropy: the square of a distance,
        in squared units of C.
    n_iter : ndarray, int64
        Gradient steps.
    converged : ndarray, bool
        Whether the pair had settled; see `tol` in `match`.
    plans : ndarray or None, shape (n, k, H * W, m)
        Rounded plans, if asked for; rows of weight 0 are 0.
    """

    value: np.ndarray
    n_iter: np.ndarray
    converged: np.ndarray
    plans: np.ndarray | None = None


@dataclass
class _Found:
    """What is known of a chunk of b pairs once all have left the batch."""

    value: Tensor
    n_iter: Tensor
    moved: Tensor  # mass that the last step moved; infinite where the plan before is not known
    error: Tensor  # sum over the nodes of |column sum - weight| before rounding; rows are exact
    structure: Tensor  # (b, m, m): T^T C T / (q q^T), what a barycentre averages
    g: Tensor  # (b, m, 1): potentials
    T: Tensor | None  # (b, m, n): rounded plans
    A: Tensor | None  # (b, m, n): D T


def _ascend(K: Tensor, p: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Scale K to row sums `p` (exactly) and uniform column sums (up to `tol`).

    The concave dual problem in the m numbers log v is climbed by two steps at a time: Newton's
    with one Hessian, or Sinkhorn's where a pair is still far off. A pair takes the same steps
    whatever else is in its batch.

    Parameters
    ----------
    K : Tensor, shape (b, m, n)
        Kernel.
    p : Tensor, shape (b, 1, n)
        Weights of the pixels, maybe 0.
    tol : float
        Stop where the column sums miss 1 / m by no more than this, summed over the columns.

    Returns
    -------
    (Tensor, Tensor), shapes (b, m, 1) and (b, 1, n)
        log v and u: the plan is u K v.
    """
    b, m, _ = K.shape
    log_v, u = K.new_zeros(b, m, 1), torch.empty_like(p)
    at, x = torch.arange(b, device=K.device), log_v
    # The Hessian vanishes along constants, which change nothing: there it is given a value.
    ridge = K.new_full((m, m), m**-2.0) + 1e-6 / m * torch.eye(m).to(K)
    for step in range(_DUAL_STEPS + 1):
        v = x.exp()
        r = torch.bmm(v.mT, K)
        w = p / r
        c = v * torch.bmm(K, w.mT)
        if step % 2 == 0 and step:
            log_v[at], u[at] = x, w
            rest = (c - 1.0 / m).abs().sum((1, 2)) > tol
            if step == _DUAL_STEPS or not rest.any():
                break
            if not rest.all():
                at, K, p, x, v, r, w, c = (y[rest] for y in (at, K, p, x, v, r, w, c))
        ascent = -(m * c).log()
        far = ascent.abs().amax(1, keepdim=True)
        if step % 2 == 0:
            near = far < 1.0
            if near.any():
                H = torch.bmm(K * (w / r), K.mT) * (v * v.mT)
                factor, failed = torch.linalg.cholesky_ex(torch.diag_embed(c[..., 0]) + ridge - H)
                near &= (failed == 0)[:, None, None]
        else:
            near &= far < 0.1  # the old Hessian serves where its own step brought success
        if near.any():
            newton = torch.cholesky_solve(1.0 / m - c, factor)
            # Damped so far that it climbs from anywhere (generalised self-concordance).
            span = newton.amax(1, keepdim=True) - newton.amin(1, keepdim=True) + 1e-9
            ascent = torch.where(near, newton * (span.log1p() / span), ascent)
        x = x + ascent
        x = (x - x.amax(1, keepdim=True)).clamp(min=-30.0)
    return log_v, u


def _kernel(L: Tensor, g: Tensor) -> Tensor:
    """2^(L + g), scaled so that the largest entry of each row is 1; overwrites L."""
    L.add_(g)
    # Cut off far below any visible mass: no sum vanishes, and no product is denormal (slow).
    return L.sub_(L.amax(1, keepdim=True)).clamp_(min=_FLOOR[L.dtype]).exp2_()


def _project(L: Tensor, g: Tensor, p: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Scale 2^L to row sums `p` and uniform column sums, starting from the potentials g."""
    K = _kernel(L, g)
    log_v, u = _ascend(K, p, tol)
    return K.mul_(u).mul_(log_v.exp()), g + _LOG2E * log_v


def _first_potentials(slope: Tensor, h: Tensor, p: Tensor, n_bins: int = 64) -> Tensor:
    """Potentials of the first step from p q^T, in which a pixel enters by its h = D p only.

    A histogram of h stands for the pixels, so that many rounds cost next to nothing.
    """
    low = torch.where(p > 0, h, torch.inf).amin(2, keepdim=True)
    high = torch.where(p > 0, h, -torch.inf).amax(2, keepdim=True)
    bins = ((h - low) * ((n_bins - 1) / (high - low).clamp(min=1e-9))).clamp(0, n_bins - 1).long()
    empty = p.new_zeros(len(p), 1, n_bins)
    mass, moment = (empty.scatter_add(2, bins, x) for x in (p, p * h))
    L = slope.mean(2, keepdim=True) * (moment / mass.clamp(min=1e-30))
    g = -(L * mass).sum(2, keepdim=True)
    return g + _LOG2E * _ascend(_kernel(L, g), mass, 1e-3)[0]


def _round(T: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Round plans whose rows are exact onto uniform columns; give D times the rounded plans too.

    Altschuler et al. 2017, algorithm 2: shrink the columns that are too heavy, and give what the
    rows then lack to the columns that lack it. `A` is D T; the same sums turn it into D times the
    result. Shapes (b, m, n).
    """
    q = 1.0 / T.shape[1]
    c = T.sum(2, keepdim=True)
    keep = (q / c).clamp(max=1.0)
    lack = (q - c * keep).clamp(min=0.0)
    lack /= lack.sum(1, keepdim=True).clamp(min=1e-30)
    spare = (1.0 - keep).mT
    return T * keep + lack * torch.bmm(spare, T), A * keep + lack * torch.bmm(spare, A)


def _solve(spaces, maps, C, options: Options, start=None, keep=True) -> _Found:
    """Solve one chunk of pairs.

    Parameters
    ----------
    spaces : HeatmapSpaces
        All maps.
    maps : Tensor, shape (b,), int64
        The map of each pair.
    C : Tensor, shape (b, m, m), float64
        The small space of each pair.
    options : Options
        How to solve.
    start : (Tensor or None, Tensor, Tensor), optional
        Plans T (b, m, n), products D T and potentials (b, m, 1) to start from; p q^T when left
        out. Where T is not known, what the first step moves is not known either.
    keep : bool
        Return plans and products.
    """
    p, unit = spaces.p[maps][:, None], spaces.unit[maps][:, None, None]
    b, m, n = len(maps), C.shape[-1], p.shape[-1]
    slope = (4.0 * _LOG2E / options.epsilon / unit * C).to(p)
    if start is None:
        h = spaces.product(p)
        start = p.expand(b, m, n) / m, h.expand(b, m, n) / m, _first_potentials(slope, h, p)
    T, A, g = start
    proximal, alive = options.solver == "PPA", torch.arange(b, device=p.device)
    # A proximal step starts from the last plan, not from p q^T: its logarithm joins the kernel.
    L = T.clamp(min=1e-30).log2() if proximal else p
    found = _Found(
        *(C.new_empty(b) for _ in range(4)),
        torch.empty_like(C),
        p.new_empty(b, m, 1),
        *(p.new_empty(b, m, n) if keep else None for _ in range(2)),
    )
    for n_iter in range(1, options.max_iter + 1):
        kernel = torch.baddbmm(L, slope, A) if proximal else torch.bmm(slope, A)
        new, g = _project(kernel.clone() if proximal else kernel, g, p, 0.1 * options.tol)
        if proximal:
            L = kernel + g
            L -= L.amax(1, keepdim=True)
        moved = p.new_full((len(p),), torch.inf) if T is None else (T - new).abs_().sum((1, 2))
        T, A = new, spaces.product(new)
        error = (T.sum(2) - 1.0 / m).abs().sum(1)
        done = options.settled(moved, error) | (n_iter == options.max_iter)
        if not done.any():
            continue
        at, every = alive[done], bool(done.all())
        R, DR = _round(T, A) if every else _round(T[done], A[done])
        N = torch.bmm(R, DR.mT).double() / unit[done]
        cross = (C[at] * N).sum((1, 2))
        found.value[at] = spaces.second[maps[at]] + (C[at] ** 2).mean((1, 2)) - 2.0 * cross
        found.n_iter[at] = float(n_iter)
        found.moved[at], found.error[at] = moved[done].double(), error[done].double()
        found.structure[at] = (N + N.mT) * (m * m / 2.0)
        found.g[at] = g[done]
        if keep:
            found.T[at], found.A[at] = R, DR
        if every:
            break
        rest = ~done
        alive, T, A, g, p, unit, slope, L = (x[rest] for x in (alive, T, A, g, p, unit, slope, L))
    return found


COARSEST = 8
"""Fewest pixels along a side of the lattice of `Couplings`."""


class Couplings:
    """What successive calls on the same pairs carry over: plans, products and potentials.

    Where they do not fit into `n_bytes`, the products D T, smooth functions of the position, are
    kept on a lattice of pixels and interpolated, and the plans are not kept. Proximal steps need
    the plans; without them every call starts afresh.

    Parameters
    ----------
    n_bytes : int, default 2 GiB
        Most memory to use; more only for the coarsest lattice, of `COARSEST` x `COARSEST` pixels:
        coarser ones would lead to other minima.
    """

    def __init__(self, n_bytes: int = 2**31):
        self.n_bytes, self.filled, self.T, self.lattice, self.g = n_bytes, False, None, None, None
        self.fill = None

    def reserve(self, spaces: HeatmapSpaces, n_pairs: int, m: int) -> None:
        """Take the memory, once."""
        if self.g is not None:
            if self.g.shape[:2] != (n_pairs, m):
                raise ValueError(
                    f"couplings of {self.g.shape[0]} pairs with {self.g.shape[1]} nodes cannot "
                    f"start {n_pairs} pairs with {m} nodes: pass new Couplings()"
                )
            return
        width = spaces.p.shape[1]
        room = self.n_bytes // (n_pairs * m * spaces.p.element_size())
        if room >= 2 * width:
            self.T = spaces.p.new_empty(n_pairs, m, width)
        else:
            sides = [min(side, max(COARSEST, int(room**0.5))) for side in spaces.shape]
            self.lattice, axes = spaces.lattice(sides)
            self.fill = partial(spaces.interpolate, axes=axes)
            width = len(self.lattice)
        self.A, self.g = (spaces.p.new_empty(n_pairs, m, w) for w in (width, 1))

    def keep(self, part: slice, found: _Found) -> None:
        """Store what was found for some of the pairs."""
        self.A[part] = found.A if self.lattice is None else found.A[:, :, self.lattice]
        self.g[part] = found.g
        if self.T is not None:
            self.T[part] = found.T

    def start(self, part: slice):
        """Return where some of the pairs start, None the first time."""
        if not self.filled:
            return None
        A = self.A[part] if self.fill is None else self.fill(self.A[part])
        return None if self.T is None else self.T[part], A, self.g[part]


def sweep(spaces, maps, C, options: Options, *, labels=None, couplings=None, keep=False):
    """Solve chunk by chunk, so that memory stays bounded.

    Parameters
    ----------
    spaces : HeatmapSpaces
        All maps.
    maps : Tensor, shape (b,), int64
        Those to match.
    C : Tensor, shape (k, m, m), float64
        Small spaces.
    options : Options
        How to solve.
    labels : Tensor, shape (b,), int64, optional
        Match each of `maps` with this space only.
    couplings : Couplings, optional
        Start from what the last sweep found, and keep what this one finds.
    keep : bool, default False
        Return plans and products.

    Yields
    ------
    (slice, slice, _Found)
        Where the chunk lies in `maps`, where among the pairs (map by map), and what was found.
    """
    m, k = C.shape[-1], 1 if labels is not None else len(C)
    if couplings is not None:
        couplings.reserve(spaces, len(maps) * k, m)
    every = torch.arange(k, device=maps.device)
    # As much as a cache holds, or keeps a GPU busy.
    elements = 2**20 if spaces.p.device.type == "cpu" else 2**26
    width = max(1, elements // (k * m * spaces.p.shape[1]))
    for first in range(0, len(maps), width):
        chunk = slice(first, min(first + width, len(maps)))
        pairs = slice(chunk.start * k, chunk.stop * k)
        own = labels[chunk] if labels is not None else every.repeat(chunk.stop - first)
        start = couplings.start(pairs) if couplings is not None else None
        if start and start[0] is None and options.solver == "PPA":
            start = None
        which = maps[chunk].repeat_interleave(k)
        found = _solve(spaces, which, C[own], options, start, keep or couplings is not None)
        if couplings is not None:
            couplings.keep(pairs, found)
        yield chunk, pairs, found
    if couplings is not None:
        couplings.filled = True


def match(
    spaces: HeatmapSpaces,
    centres,
    epsilon: float = 0.01,
    *,
    plans: bool = False,
    couplings: Couplings | None = None,
    **options,
) -> Matches:
    """Match heatmaps with small spaces of uniform weights.

    Parameters
    ----------
    spaces : HeatmapSpaces
        n maps.
    centres : ndarray, shape (m, m) or (k, m, m)
        Distances within each small space, in units of the maps' diameters.
    epsilon : float, default 0.01
        Weight of the entropy ("PGD") or of the proximal term ("PPA"), in squared units of C.
    plans : bool, default False
        Return the plans: n k H W m numbers.
    couplings : Couplings, optional
        Start from what the last call with the same object found, and keep what this one finds.
    **options
        `solver`, default "PGD": entropic GW, the fixed points of `gw.entropic_gw`; "PPA" is GW
        without entropy by the proximal point method [3]_. `tol`, default 1e-2: a pair has settled
        when a step moves no more than this share of its mass and the columns miss their weights
        by no more than a tenth of it. With "PGD" each step moves about a tenth of the one before,
        so that values are then within about 1e-3 of the fixed point (1e-5 for a tolerance of
        1e-3). `max_iter`, default 50: most gradient steps.

    Returns
    -------
    Matches
        Values at plans that have the exact marginals, and how each pair converged.

    Raises
    ------
    ValueError
        If centres are not square and symmetric, or an option is out of range.
    """
    C = as_centres(centres, spaces)
    options = Options(epsilon, **options)
    maps = torch.arange(len(spaces), device=C.device)
    shape = (len(maps), len(C))
    numbers, kept = [], []
    for *_, found in sweep(spaces, maps, C, options, couplings=couplings, keep=plans):
        numbers.append(torch.stack([found.value, found.n_iter, found.moved, found.error]))
        if plans:
            kept.append(found.T[:, :, spaces.where].mT.cpu().numpy())
    value, n_iter, moved, error = torch.cat(numbers, 1).cpu().numpy().reshape(4, *shape)
    return Matches(
        value,
        n_iter.astype(np.int64),
        options.settled(moved, error),
        np.concatenate(kept).reshape(*shape, -1, C.shape[-1]) if plans else None,
    )


def as_centres(centres, spaces: HeatmapSpaces) -> Tensor:
    """Check small spaces and bring them to shape (k, m, m), float64, on the device of the maps."""
    C = np.asarray(centres, dtype=np.float64)
    C = C[None] if C.ndim == 2 else C
    if C.ndim != 3 or C.shape[1] != C.shape[2] or 0 in C.shape:
        raise ValueError(f"centres must have shape (k, m, m), got {np.shape(centres)}")
    if not np.isfinite(C).all() or not np.allclose(C, C.transpose(0, 2, 1)):
        raise ValueError("centres must be finite and symmetric matrices of distances")
    return torch.as_tensor(C, device=spaces.p.device)


def as_labels(labels, spaces: HeatmapSpaces, k: int | None = None) -> Tensor:
    """Check that each map has a label from -1, for none, to k - 1, or up where no k is given."""
    labels = np.asarray(labels)
    whole = labels.dtype.kind in "iu" and labels.shape == (len(spaces),)
    if not whole or labels.min() < -1 or (k is not None and labels.max() >= k):
        upto = "up" if k is None else f"to {k - 1}"
        raise ValueError(
            f"labels must be {len(spaces)} integers from -1 {upto}, got shape "
            f"{labels.shape} with {labels.dtype} values {np.unique(labels)[:9]}"
        )
    return torch.as_tensor(labels.astype(np.int64), device=spaces.p.device)
