import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from networks import channels, cosine, exact
from networks import images as noise
from runs import finish

from nbsupport import ROOT, ablation
from nbsupport.artifacts import ArtifactError, Run, checksum
from nbsupport.scenarios import Profile, Scenario

SIDE = 16


def blob(row, column, width):
    y, x = np.indices((SIDE, SIDE))
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2))


@pytest.fixture(scope="module")
def maps():
    """Forty lines near the middle and eight squares anywhere: signs and stickers, of a kind."""
    rng = np.random.default_rng(0)
    found = np.zeros((48, SIDE, SIDE))
    for one in found[:40]:
        row, column = rng.integers(5, 10), rng.integers(2, 5)
        one[row, column : column + 10] = rng.uniform(0.9, 1, 10)
    for one in found[40:]:
        row, column = rng.integers(0, SIDE - 3, 2)
        one[row : row + 3, column : column + 3] = rng.uniform(0.9, 1, (3, 3))
    return found, np.arange(48) >= 40


@pytest.fixture(scope="module")
def found(maps):
    heatmaps, _ = maps
    rng = np.random.default_rng(1)
    values = {
        "pixels": rng.integers(0, 256, (48, 3, SIDE, SIDE), dtype=np.uint8),
        "activations": rng.normal(size=(48, 12)),
        "gamma": heatmaps,
    }
    return ablation.grid(values, np.arange(100, 148))


@pytest.fixture(scope="module")
def table(found, maps):
    return ablation.judge(found, np.arange(100, 148), maps[1])


def test_each_cell_is_there_or_has_a_reason(found):
    for name in ("pixels", "activations", "gamma"):
        for distance in ablation.DISTANCES:
            for clusterer in ablation.CLUSTERERS:
                cell = (name, distance, clusterer)
                assert (cell in found) == (ablation.why_not(*cell) == "")
    assert len(found) == 18 + 5 + 18
    assert all(np.isfinite(result.score).all() for result in found.values())


def test_unknown_levels_are_refused_by_name():
    with pytest.raises(ValueError, match=r"distance='cosine'.*euclidean-pca"):
        ablation.why_not("gamma", "cosine", "kmeans")
    with pytest.raises(ValueError, match=r"clusterer='forest'.*spectral"):
        ablation.why_not("gamma", "gw", "forest")


def test_maps_that_move_are_found_by_distances_blind_to_place_only(table):
    auroc = table.set_index(list(ablation.KEYS))["auroc"]
    for distance in ablation.BLIND:
        assert auroc["gamma", distance, "kmeans"] > 95, distance
    assert auroc["gamma", "euclidean", "kmeans"] < 90
    # Noise that asks no network tells nothing.
    assert auroc["activations", "euclidean", "kmeans"] < 90


@pytest.mark.parametrize("distance", [d for d in ablation.BLIND if d != "gw"])
def test_moving_a_map_changes_nothing_for_a_blind_distance(distance):
    still = np.stack([blob(7, 7, 1.0), blob(7, 7, 1.5)])
    moved = np.roll(still, (2, -3), (1, 2))
    one, other = (
        ablation._embed(distance, ablation.prepare("gamma", m, share=0.9)) for m in (still, moved)
    )
    np.testing.assert_allclose(one, other, atol=1e-3)
    in_place = [
        ablation._embed("wasserstein-in-place", ablation.prepare("gamma", m, share=0.9))
        for m in (still, moved)
    ]
    assert np.linalg.norm(in_place[0] - in_place[1], axis=1).min() > 1


def test_prepare_gives_vectors_and_measures():
    image = np.zeros((3, 3, 4, 4), dtype=np.uint8)
    image[:, :, 1, 2] = 255
    given = ablation.prepare("pixels", image)
    assert given.vectors.shape == (3, 16)
    assert given.vectors.max() == 1.0
    assert given.measures[0, 1, 2] == 1.0
    values = np.stack([blob(3, 3, 1.0), -blob(3, 3, 1.0), np.zeros((SIDE, SIDE))])
    relevance = ablation.prepare("gamma", values)
    np.testing.assert_allclose(relevance.measures.sum((1, 2)), 1.0)
    np.testing.assert_array_equal(relevance.measures[0], relevance.measures[1])
    assert np.ptp(relevance.measures[2][relevance.measures[2] > 0]) < 1e-12
    np.testing.assert_array_equal(relevance.vectors, relevance.measures.reshape(3, -1))
    assert ablation.prepare("activations", np.ones((3, 2, 2))).measures is None
    with pytest.raises(ValueError, match=r"'gamma' must hold maps.*\(3, 7\)"):
        ablation.prepare("gamma", np.ones((3, 7)))


def test_rows_and_ids_must_agree():
    with pytest.raises(ValueError, match="'activations' has 4 rows for 3 ids"):
        ablation.grid({"activations": np.ones((4, 2))}, np.arange(3))


def test_the_order_of_images_changes_no_verdict(maps):
    heatmaps, truth = maps
    order, ids = np.random.default_rng(3).permutation(48), np.arange(48)
    reports = []
    straight, shuffled = (
        ablation.grid({"gamma": heatmaps[rows]}, ids[rows], progress=lambda *r: reports.append(r))
        for rows in (ids, order)
    )
    for cell, result in shuffled.items():
        np.testing.assert_array_equal(result.poisoned, straight[cell].poisoned[order])
    one, other = (ablation.judge(r, ids, truth) for r in (straight, shuffled))
    pd.testing.assert_frame_equal(
        one.drop(columns="seconds"), other.drop(columns="seconds"), atol=0.1
    )
    assert reports[:2] == [(0, 1, "gamma"), (1, 1, "done")]


def test_balanced_is_the_mean_of_both_rates(table):
    np.testing.assert_allclose(table["balanced"], (table["tpr"] + table["tnr"]) / 2)
    assert not table.duplicated(list(ablation.KEYS)).any()


def cells(rows, **more):
    """Build a table from (representation, distance, clusterer, rate)."""
    frame = pd.DataFrame(rows, columns=[*ablation.KEYS, "auroc"])
    return frame.assign(balanced=frame["auroc"] / 2, **more)


GRID = cells(
    [
        ("released", "mean-distance", "kmeans", 60.0),
        ("released", "mean-distance", "mixture", 70.0),
        ("released", "gw", "kmeans", 65.0),
        ("gamma", "mean-distance", "kmeans", 80.0),
        ("pixels", "mean-distance", "kmeans", 50.0),
        ("activations", "euclidean", "kmeans", 40.0),
    ],
    scenario="standard-s3-p15-r0",
)


def test_matrix_keeps_the_order_of_the_names_and_leaves_gaps():
    wide = ablation.matrix(GRID)
    assert list(wide.index) == ["grey values", "penultimate layer", "LRP, released", "LRP, gamma"]
    assert list(wide.columns) == [
        ("Euclid", "k-means"), ("GW, collapsed", "k-means"), ("GW, collapsed", "mixture"),
        ("GW, entropic", "k-means"),
    ]  # fmt: skip
    assert wide.loc["LRP, released", ("GW, collapsed", "mixture")] == 70
    assert int(wide.isna().sum().sum()) == 16 - 6


def test_a_composite_that_nobody_listed_is_relevance():
    wide = ablation.matrix(cells([("alpha", "gw", "kmeans", 1.0)]))
    assert list(wide.index) == ["LRP, alpha"]


def test_families_are_means_over_their_cells():
    wide = ablation.families(GRID)
    assert wide.loc["LRP", "distances within"] == pytest.approx((60 + 70 + 65 + 80) / 4)
    assert wide.loc["image", "distances within"] == 50
    assert np.isnan(wide.loc["activations", "distances within"])
    assert list(wide.columns) == ["entry by entry", "distances within"]


def test_one_part_at_a_time_leaves_the_two_others():
    change = ablation.one_at_a_time(GRID)["change"]
    assert change.to_dict() == {
        ("start", "released / mean-distance / kmeans"): 0,
        ("representation", "gamma"): 20,
        ("representation", "pixels"): -10,
        ("distance", "gw"): 5,
        ("clusterer", "mixture"): 10,
    }
    with pytest.raises(ValueError, match=r"no cell .*'released'"):
        ablation.one_at_a_time(GRID[GRID["representation"] != "released"])


def test_contrasts_compare_pairs_that_differ_in_one_part_only():
    found = ablation.contrasts(GRID).set_index(["before", "after"])
    # Of released relevance only: gamma has no "gw" to compare with.
    assert found.loc[("mean-distance", "gw"), ["separation", "pairs"]].tolist() == [5, 1]
    assert found.loc[("kmeans", "mixture"), ["separation", "pairs"]].tolist() == [10, 1]
    # Mean of both composites against brightness.
    assert found.loc[("image", "LRP"), ["separation", "pairs"]].tolist() == [20, 1]
    assert ("gradients", "LRP") not in found.index
    twice = pd.concat([GRID, GRID.assign(scenario="other", auroc=GRID["auroc"] * 0.9)])
    row = ablation.contrasts(twice).set_index(["before", "after"]).loc[("image", "LRP")]
    # 0.9 * 50 = 45 separates as well as 55.
    assert (row["lowest"], row["highest"], row["pairs"]) == (pytest.approx(8), 20, 2)


def test_a_group_on_the_other_side_is_set_apart_as_well():
    assert ablation.separation(np.array([50.0, 3.0, 97.0])).tolist() == [50, 97, 97]
    cell = ("gamma", "distance-distribution")
    table = cells([(*cell, "kmeans", 4.0), (*cell, "mixture", 98.0)])
    row = ablation.contrasts(table.assign(balanced=[5.0, 99.0])).iloc[0]
    assert (row["separation"], row["balanced"]) == (2, 94)


def test_the_title_names_the_large_changes_and_counts_the_others():
    published = pd.read_csv(ROOT / "figures" / "ablation.csv")
    points = ablation.contrasts(published).set_index("change")["separation"]
    short = {question: words for question, words, *_ in ablation.QUESTIONS}
    told, rest = ablation.finding(published).split(";")
    for change, value in points.items():
        assert (f"{short[change]} {round(value):+d}" in told) == (abs(value) >= 10)
    assert told.index("LRP for brightness") < told.index("transport for Euclid")
    small = points[points.abs() < 10].abs()
    assert rest == f" any other change: {math.ceil(small.max())} or less"
    # Where nothing is large, the largest is named; where there is nothing else, nothing is.
    cell = ("gamma", "distance-distribution")
    one = cells([(*cell, "kmeans", 60.0), (*cell, "mixture", 53.6)])
    (words,) = (w for q, w, *_ in ablation.QUESTIONS if q in set(ablation.contrasts(one)["change"]))
    assert ablation.finding(one) == f"Points of AUROC won: {words} -6"
    two = pd.concat([one, cells([("gamma", "mean-distance", "kmeans", 61.0)]),
                     cells([("gamma", "gw", "kmeans", 63.0)])])  # fmt: skip
    assert ablation.finding(two) == f"Points of AUROC won: {words} -6; any other change: 2 or less"


def test_few_scenarios_get_a_panel_each_and_many_their_mean_and_worst():
    many = pd.concat([GRID.assign(scenario=str(i), auroc=GRID["auroc"] - i) for i in range(5)])
    assert list(ablation.panels(many[many["scenario"] < "4"])) == ["0", "1", "2", "3"]
    mean, worst = ablation.panels(many).values()
    cell = ("LRP, gamma", ("GW, collapsed", "k-means"))
    assert (mean.loc[cell], worst.loc[cell]) == (78, 76)


def test_publish_writes_numbers_picture_and_where_they_come_from(tmp_path):
    fig = ablation.publish(GRID, tmp_path / "new", {"runs": {"tiny/x": {}}})
    assert " ".join(fig.get_suptitle().split()) == (
        "Points of AUROC won: LRP for brightness +20, mixture for k-means +10; any other change: 5 "
        "or less"
    )
    told = json.loads((tmp_path / "new" / "ablation.json").read_text())
    assert told["runs"] == {"tiny/x": {}}
    for name, digest in {**told["files"], **told["csv"]}.items():
        assert checksum(tmp_path / "new" / name) == digest
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "new" / "ablation.csv"), GRID, check_dtype=False
    )
    plt.close(fig)


def test_collect_reads_finished_grids_only(tmp_path):
    run = Run(tmp_path, Profile.parse("tiny"), Scenario.parse("standard-s3-p15-r0"))
    finish(run)
    with pytest.raises(ArtifactError, match="make ablation PROFILE=tiny"):
        ablation.collect([run])
    record = {"n_class": 60, "n_poisoned": 20, "attack_took": True}
    saved = GRID.drop(columns="scenario").to_dict("records")
    run.save("ablation", {"ids": np.arange(3)}, record | {"cells": saved})
    with pytest.raises(ValueError, match="no run is given"):
        ablation.collect([])
    table = ablation.collect([run, run])
    assert len(table) == 2 * len(GRID)
    assert list(table.columns[:2]) == ["profile", "scenario"]
    assert table["n_poisoned"].eq(20).all()
    assert table["auroc"].tolist()[:3] == [60, 70, 65]


@pytest.mark.parametrize("name", ["inception", "resnet"])
def test_the_papers_rule_and_gradient_times_input_are_one_representation(name):
    assert {"paper", "gradient_x_input"} <= set(ablation.REPRESENTATIONS)
    # Trained networks: biases and BatchNorm do not part them.
    both = [channels(exact(name), noise(), rule) for rule in ("paper", "gradient_x_input")]
    assert cosine(*both) > 0.9999
