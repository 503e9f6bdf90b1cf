"""Gromov-Wasserstein in batches, against POT pair by pair."""

import numpy as np
import pytest
import torch
from heatmaps import disc_maps
from ot.batch import solve_gromov_batch

from nbsupport import barycentres, distances, gw, transport
from nbsupport.transport import HeatmapSpaces, match

SIDE = 16


def clouds_of(weights):
    return [gw.point_cloud(row, (SIDE, SIDE)) for row in weights]


@pytest.fixture(scope="module")
def weights():
    return gw.grid_weights(disc_maps(8, 3, np.random.default_rng(0), side=SIDE))


@pytest.fixture(scope="module")
def spaces(weights):
    return HeatmapSpaces(weights, (SIDE, SIDE), dtype=torch.float64)


@pytest.fixture(scope="module")
def centres():
    # Distances, not their squares: what a barycentre of heatmaps looks like.
    rng = np.random.default_rng(1)
    points = rng.random((2, 6, 2))
    C = np.sqrt(((points[:, :, None] - points[:, None]) ** 2).sum(-1))
    return 0.8 * C / C.max((1, 2), keepdims=True)


def as_cloud(centre):
    return gw.PointCloud(centre, np.full(len(centre), 1 / len(centre)))


@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_values_and_plans_are_those_of_pot(weights, spaces, centres, epsilon):
    found = match(spaces, centres, epsilon, tol=1e-5, max_iter=2000, plans=True)
    assert found.converged.all()
    for i, cloud in enumerate(clouds_of(weights)):
        for k, centre in enumerate(centres):
            theirs = gw.entropic_gw(cloud, as_cloud(centre), epsilon, tol=1e-10, max_iter=2000)
            assert found.value[i, k] == pytest.approx(theirs.value, rel=1e-4)
            plan = found.plans[i, k][weights[i] > 0]
            assert np.abs(plan - theirs.T).sum() < 1e-2


def test_reported_plans_are_feasible_and_give_the_reported_value(weights, spaces, centres):
    found = match(spaces, centres, 0.02, plans=True)
    for i, cloud in enumerate(clouds_of(weights)):
        plan = found.plans[i, 1]
        assert (plan >= 0).all()
        assert np.allclose(plan.sum(1), weights[i], atol=1e-12)
        assert np.allclose(plan.sum(0), 1 / 6, atol=1e-12)
        assert (plan[weights[i] == 0] == 0).all()
        value = gw.gw_value(cloud.C, centres[1], plan[weights[i] > 0])
        assert found.value[i, 1] == pytest.approx(value, rel=1e-9)


def test_proximal_steps_come_near_exact_gw(weights, spaces, centres):
    found = match(spaces, centres, 0.02, solver="PPA", tol=1e-4, max_iter=500)
    entropic = match(spaces, centres, 0.02)
    exact = np.array(
        [[gw.exact_gw(c, as_cloud(centre)).value for centre in centres] for c in clouds_of(weights)]
    )
    assert (found.value < entropic.value).all()
    # Either may end in another local minimum: compare what most pairs do.
    assert np.median(found.value / exact) < 1.02


def test_pots_batched_proximal_solver_ends_in_the_same_plan(centres):
    """One small pair: POT takes some hundred Sinkhorn rounds a step, or misses the marginals."""
    weights = gw.grid_weights(disc_maps(1, 1, np.random.default_rng(0), side=6))
    cloud = gw.point_cloud(weights[0], (6, 6))
    theirs = solve_gromov_batch(
        cloud.C[None], centres[:1], 0.05, cloud.p[None], np.full((1, 6), 1 / 6), symmetric=True,
        max_iter=1000, tol=1e-9, max_iter_inner=500, tol_inner=1e-9,
    )  # fmt: skip
    assert theirs.log["n_iter"] < 999  # stands still
    spaces = HeatmapSpaces(weights, (6, 6), dtype=torch.float64)
    ours = match(spaces, centres[0], 0.05, solver="PPA", tol=1e-8, max_iter=1000, plans=True)
    assert ours.converged.all()
    assert np.abs(ours.plans[0, 0][weights[0] > 0] - theirs.plan[0]).sum() < 1e-5
    value = gw.gw_value(cloud.C, centres[0], theirs.plan[0])
    assert ours.value[0, 0] == pytest.approx(value, rel=1e-6)


def test_a_pair_does_not_depend_on_its_batch(weights, spaces, centres):
    whole = match(spaces, centres, 0.02).value
    order = np.random.default_rng(0).permutation(len(weights))
    shuffled = HeatmapSpaces(weights[order], (SIDE, SIDE), dtype=torch.float64)
    assert np.allclose(match(shuffled, centres, 0.02).value, whole[order], rtol=1e-9)
    single = HeatmapSpaces(weights[3:4], (SIDE, SIDE), dtype=torch.float64)
    assert np.allclose(match(single, centres, 0.02).value, whole[3:4], rtol=1e-9)


def test_moving_and_mirroring_a_map_changes_nothing(centres):
    maps = np.zeros((3, SIDE, SIDE))
    piece = np.random.default_rng(2).random((6, 7))
    maps[0, 1:7, 2:9], maps[1, 8:14, 5:12], maps[2, 3:9, 4:11] = piece, piece, piece[:, ::-1]
    # Single precision, three places: equal up to rounding only.
    value = match(HeatmapSpaces(gw.grid_weights(maps), (SIDE, SIDE)), centres, 0.05).value
    assert np.allclose(value, value[0], rtol=1e-3)


def test_single_precision_is_near_double(weights, spaces, centres):
    single = HeatmapSpaces(weights, (SIDE, SIDE))
    one, two = (match(s, centres, 0.1, tol=1e-3) for s in (single, spaces))
    assert np.allclose(one.value, two.value, rtol=1e-3)


def test_any_grid_and_the_convolution_give_the_same(centres):
    maps = np.random.default_rng(3).random((4, 9, 14)) ** 4
    weights = gw.grid_weights(maps)
    folded = HeatmapSpaces(weights, (9, 14), dtype=torch.float64)
    convolved = HeatmapSpaces(weights, (9, 14), dtype=torch.float64, folding_limit=1)
    one, two = (match(s, centres, 0.1, tol=1e-4).value for s in (folded, convolved))
    assert np.allclose(one, two, rtol=1e-8)
    theirs = gw.entropic_gw(gw.point_cloud(weights[0], (9, 14)), as_cloud(centres[0]), 0.1)
    assert one[0, 0] == pytest.approx(theirs.value, rel=1e-3)


def test_pairs_that_have_not_settled_say_so(spaces, centres):
    found = match(spaces, centres, 0.02, tol=1e-6, max_iter=2)
    assert not found.converged.any()
    assert (found.n_iter == 2).all()


def test_couplings_shorten_the_next_call(spaces, centres):
    couplings = transport.Couplings()
    first = match(spaces, centres, 0.1, couplings=couplings)
    again = match(spaces, centres, 0.1, couplings=couplings)
    assert again.n_iter.sum() < first.n_iter.sum()
    assert np.allclose(again.value, first.value, rtol=1e-2)


def test_little_memory_changes_the_way_and_not_the_mean(spaces):
    start = np.stack([gw.random_structure(6, np.random.default_rng(i)) for i in range(2)])
    labels = np.arange(len(spaces)) % 2
    rich, poor = (
        barycentres.average(spaces, 0.02, labels=labels, start=start, **memory)
        for memory in ({}, {"n_bytes": 1000})
    )
    assert poor.objective[-1] == pytest.approx(rich.objective[-1], rel=5e-3)
    # Proximal steps start from plans: without room for these each call starts afresh.
    fresh, kept = transport.Couplings(n_bytes=1000), transport.Couplings()
    options = {"epsilon": 0.05, "solver": "PPA", "max_iter": 40}
    first = match(spaces, start, couplings=fresh, **options)
    again = match(spaces, start, couplings=fresh, **options)
    assert np.array_equal(first.value, again.value)
    match(spaces, start, couplings=kept, **options)
    warm = match(spaces, start, couplings=kept, **options)
    assert warm.n_iter.sum() < again.n_iter.sum()


@pytest.mark.parametrize("folding_limit", [2048, 0])
def test_a_lattice_is_interpolated_along_both_axes_without_their_product(folding_limit):
    weights = np.full((2, 11 * 17), 1 / (11 * 17))
    spaces = HeatmapSpaces(weights, (11, 17), dtype=torch.float64, folding_limit=folding_limit)
    pixels, axes = spaces.lattice([4, 5])
    assert [tuple(axis.shape) for axis in axes] == [(4, 11), (5, 17)]
    values = torch.rand(3, 2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = spaces.interpolate(values, axes)
    assert torch.equal(found[..., pixels], values)
    dense = torch.from_numpy(np.kron(*(axis.numpy() for axis in axes)))
    torch.testing.assert_close(found[..., spaces.where], values @ dense)
    outside = torch.ones(found.shape[-1], dtype=bool)
    outside[spaces.where] = False
    assert not found[..., outside].any()


@pytest.mark.parametrize(
    ("centre", "options", "words"),
    [
        (np.ones((2, 3)), {}, r"\(2, 3\)"),
        (np.triu(np.ones((3, 3))), {}, "symmetric"),
        (np.ones((3, 3)), {"solver": "CG"}, "solver='CG' is unknown"),
        (np.ones((3, 3)), {"epsilon": 0.0}, "epsilon must be positive, got 0.0"),
        (np.ones((3, 3)), {"max_iter": 0}, "max_iter must be at least 1"),
    ],
)
def test_bad_input_is_named(spaces, centre, options, words):
    with pytest.raises(ValueError, match=words):
        match(spaces, centre, **options)


def test_maps_of_another_shape_are_refused(weights):
    with pytest.raises(ValueError, match="grid of shape"):
        HeatmapSpaces(weights, (SIDE, SIDE + 1))
    square = weights[0].reshape(SIDE, SIDE)
    with pytest.raises(ValueError, match=r"one shape, got shapes \[\(15, 16\), \(16, 16\)\]: pad"):
        HeatmapSpaces([square, square[1:]])


def test_the_entropic_objective_of_a_mean_does_not_rise(spaces, centres):
    found = barycentres.average(spaces, 0.01, start=centres[:1])
    assert found.objective[-1] < found.objective[0]
    assert (np.diff(found.objective) < 1e-8).all()
    assert found.converged is True
    early = barycentres.average(spaces, 0.01, start=centres[:1], max_rounds=2)
    assert (early.converged, early.n_rounds) == (False, 2)


def test_groups_of_one_and_of_none(spaces, centres):
    labels = np.array([0, -1, -1, -1, -1, -1, -1, -1])
    found = barycentres.average(spaces, 0.02, labels=labels, start=centres)
    assert np.allclose(found.centres[1], centres[1])
    assert not np.allclose(found.centres[0], centres[0], atol=1e-3)
    with pytest.raises(ValueError, match="at least one map"):
        barycentres.average(spaces, 0.02, labels=labels * 0 - 1, start=centres)
    for wrong in (labels + 2, labels + 0.9):
        with pytest.raises(ValueError, match="labels must be 8 integers from -1 to 1"):
            barycentres.average(spaces, 0.02, labels=wrong, start=centres)
    for wrong in (labels * 1.0, labels[1:], labels - 2, labels.astype(str)):
        with pytest.raises(ValueError, match="labels must be 8 integers from -1 up, got shape"):
            barycentres.average(spaces, 0.02, labels=wrong, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="pass start=, or rng="):
        barycentres.average(spaces, 0.02)


def test_above_the_threshold_means_collapse_and_clusters_are_those_of_the_closed_form(weights):
    moments = distances.distance_moments(weights, (SIDE, SIDE))
    threshold = distances.collapse_threshold(moments)
    spaces = HeatmapSpaces(weights, (SIDE, SIDE), dtype=torch.float64)
    start = gw.random_structure(6, np.random.default_rng(0))
    mean = barycentres.average(spaces, 4 * threshold, start=start).centres[0]
    assert np.ptp(mean) < 1e-3
    assert mean[0, 0] == pytest.approx(moments.mean.mean(), abs=1e-3)
    geometry = barycentres.EntropicGeometry(
        spaces, 6 * threshold, 6, rng=np.random.default_rng(0), tol=1e-4
    )
    found = barycentres.kmeans(geometry, 2, n_init=4)
    m1 = moments.mean
    closed = min(
        (np.sum((m1[cut] - m1[cut].mean()) ** 2) + np.sum((m1[~cut] - m1[~cut].mean()) ** 2), cut)
        for cut in (m1 <= m1[i] for i in np.argsort(m1)[:-1])
    )[1]
    agree = (found.labels == closed.astype(int)).mean()
    assert max(agree, 1 - agree) == 1.0


def test_kmeans_finds_spots_and_reports_how_it_ended():
    maps = disc_maps(24, 8, np.random.default_rng(4), side=SIDE, bright=6.0)
    weights = gw.grid_weights(maps)
    spaces = HeatmapSpaces(weights, (SIDE, SIDE))
    geometry = barycentres.EntropicGeometry(spaces, 0.01, 8, rng=np.random.default_rng(0))
    found = barycentres.kmeans(geometry, 2, n_init=2)
    spots = np.arange(24) < 8
    assert max((found.labels == spots).mean(), (found.labels != spots).mean()) == 1
    assert (found.cost.shape, found.n_unsettled) == ((24, 2), 0)
    assert found.inertia == pytest.approx(found.cost[np.arange(24), found.labels].sum())
    assert found.centres.shape == (2, 8, 8)
    assert found.converged is True
    early = barycentres.kmeans(geometry, 2, max_rounds=2)
    assert (early.converged, early.n_rounds) == (False, 2)
    with pytest.raises(ValueError, match="n_clusters=25 must lie between 1 and the 24 maps"):
        barycentres.kmeans(geometry, 25)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA knows")
def test_a_gpu_answers_as_the_cpu_does(weights, centres):
    def answers(device):
        spaces = HeatmapSpaces(weights, (SIDE, SIDE), device=device, dtype=torch.float64)
        geometry = barycentres.EntropicGeometry(spaces, 0.01, 6, rng=np.random.default_rng(0))
        pairs = match(spaces, centres, 0.02, plans=True)
        mean = barycentres.average(spaces, 0.01, start=centres[:1])
        groups = barycentres.kmeans(geometry, 2)
        return pairs.value, pairs.plans, mean.centres, groups.centres, groups.labels

    for theirs, ours in zip(answers("cuda"), answers("cpu"), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-9)
