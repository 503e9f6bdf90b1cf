import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from runs import DETECTIONS, RESULTS, detected

from nbsupport import figures, metrics, paper, plots
from nbsupport.metrics import Confusion

RNG = np.random.default_rng(0)
SCANNED = pd.DataFrame(
    {
        "label": [5, 2, 9],
        "present": [True, False, False],
        "share": [15.0, 1.0, 0.0],
        "limit": [0.5, 2.5, 1.0],
        "first_share": [0.15, 0.45, np.nan],
        "n_class": [300, 500, 200],
    }
)

pytestmark = pytest.mark.usefixtures("theme")


def test_training_curves_mark_the_lowest_validation_loss():
    losses = [0.9, 0.4, 0.2, 0.3]
    history = [
        {"epoch": e, "loss": 1 / e, "validation_loss": v, "validation_accuracy": 90 + e}
        for e, v in enumerate(losses, start=1)
    ]
    left, right = plots.training_curves(history).axes
    assert left.lines[1].get_ydata().tolist() == losses
    assert set(left.lines[2].get_xdata()) == {3}
    assert right.lines[0].get_ydata().tolist() == [91, 92, 93, 94]
    assert "%" in right.get_ylabel()


def test_class_confusion_shows_shares_of_the_class_shown():
    counts = [[8, 2, 0], [0, 5, 5], [0, 0, 0]]
    ax = plots.class_confusion(counts, title="Most are right").axes[0]
    drawn = ax.images[0].get_array()
    assert np.array_equal(drawn.filled(0), [[80, 20, 0], [0, 50, 50], [0, 0, 0]])
    assert drawn.mask.sum() == 5, "what never happens stays white"
    assert ax.images[0].norm(1) > 0.3, "one in a hundred is seen beside the diagonal"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("read as class", "class shown")


def test_confusion_heatmap_prints_counts_and_shares():
    fig = plots.confusion_heatmap({**DETECTIONS, "raw_pca": Confusion(0, 0, 4, 1)})
    texts = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert texts[1] == ["1,650\n100.00 %", "0\n0.00 %", "1\n0.12 %", "812\n99.88 %"]
    # Without a poisoned image there is no share of them.
    assert texts[2] == ["4\n80.00 %", "1\n20.00 %", "0", "0"]


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_confusion_heatmap_has_room_for_every_method(n):
    from nbsupport.detection import METHODS

    assert len(METHODS) >= 11
    chosen = dict.fromkeys(list(METHODS)[:n], DETECTIONS["activation"])
    fig = plots.confusion_heatmap(chosen, title="Found, and accused")
    fig.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in fig.axes]
    assert len(boxes) == n
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for ax in fig.axes:
        panel = ax.get_window_extent()
        assert min(panel.width, panel.height) > 1.2 * fig.dpi
        for text in ax.texts:
            box = text.get_window_extent()
            assert box.width < panel.width / 2
            assert box.height < panel.height / 2
        assert [label.get_text() for label in ax.get_xticklabels()] == ["kept", "flagged"]
    assert fig.get_figwidth() <= figures.WIDTH


def test_confusion_heatmap_starts_a_row_after_four_methods():
    from nbsupport.detection import METHODS

    fig = plots.confusion_heatmap(dict.fromkeys(METHODS, DETECTIONS["heatmap"]))
    fig.canvas.draw()
    heights = [round(ax.get_position().y0, 3) for ax in fig.axes]
    rows = [heights[i : i + 4] for i in range(0, len(heights), 4)]
    assert all(len(set(row)) == 1 for row in rows)
    assert len({row[0] for row in rows}) == len(rows) == math.ceil(len(METHODS) / 4)


def test_rates_plot_pools_runs_and_keeps_method_styles():
    fig = plots.rates_plot(pd.concat([RESULTS, RESULTS]), rates=("tpr",), title="Both")
    drawn = zip(DETECTIONS.items(), fig.axes[0].containers, strict=True)
    for (method, counts), container in drawn:
        style = figures.METHOD_STYLE[method]
        marker, _, (whisker,) = container.lines
        assert marker.get_xdata()[0] == pytest.approx(counts.tpr)
        assert (to_hex(marker.get_color()), marker.get_marker()) == (style.color, style.marker)
        low, high = whisker.get_segments()[0][:, 0]
        once, twice = (metrics.wilson(k * counts.tp, k * 813) for k in (1, 2))
        assert (low, high) == pytest.approx((twice.low, twice.high))
        assert high - low < once.high - once.low
    with pytest.raises(ValueError, match="'acc', 'tpr' and 'tnr'"):
        plots.rates_plot(RESULTS, rates=("f1",))
    # Runs that differ by more than their images explain: the interval of the tables, not Wilson's.
    apart = pd.DataFrame([{"scenario": "s", "method": "heatmap", **detected(*n)}
                          for n in ((11, 76, 1650, 0), (73, 14, 1650, 0))])  # fmt: skip
    ((_, _, (whisker,)),) = (
        c.lines for c in plots.rates_plot(apart, rates=("tpr",)).axes[0].containers
    )
    wide = metrics.pooled([100 * 11 / 87, 100 * 73 / 87], [87, 87])
    assert tuple(whisker.get_segments()[0][:, 0]) == pytest.approx((wide.low, wide.high))
    assert wide.high - wide.low > 50


def test_rates_plot_names_every_method_even_those_missing_from_the_first_row():
    other = RESULTS[RESULTS.method == "heatmap"].assign(scenario="standard-s3-p15-r0")
    fig = plots.rates_plot(pd.concat([RESULTS[RESULTS.method == "activation"], other]))
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["Activation Clustering", "Heatmap Clustering"]


def test_rates_plot_keeps_the_order_that_is_asked_for():
    two = pd.concat([RESULTS, RESULTS.assign(scenario="standard-s3-p15-r0")])
    order = ["standard-s3-p02-r0", "standard-s3-p15-r0", "standard-s3-p33-r0"]
    for given, names in (((), order[::-1]), (order, order)):
        labels = plots.rates_plot(two, order=given).axes[0].get_yticklabels()
        assert [label.get_text() for label in labels] == [n for n in names if n != order[0]]


def test_rates_plot_draws_valid_printed_values_hollow():
    reference = pd.DataFrame(map(vars, paper.TABLES))
    fig = plots.rates_plot(RESULTS, rates=("acc",), reference=reference)
    ax = fig.axes[0]
    points = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    hollow = [tuple(p[0]) for p in points]
    # The printed marker stands on the line of its own method and run.
    lines = [container.lines[0].get_ydata()[0] for container in ax.containers]
    assert hollow == [(94.76, lines[0]), (99.96, lines[1])]
    assert ax.get_xlim()[0] > 80
    mislabelled = RESULTS.assign(scenario="label_consistent-s3-p15-r0")
    ax = plots.rates_plot(mislabelled, rates=("tnr",), reference=reference).axes[0]
    points = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    assert [len(p) for p in points] == [0, 0]


def test_per_class_bars_state_the_macro_mean_and_skip_the_target():
    rates = [
        None if math.isnan(rate) else rate for rate in paper.per_class_rates("amplitude-a32-p33-r0")
    ]
    fig = plots.per_class_bars({"amplitude 32": rates})
    assert fig.axes[0].get_title(loc="left") == "amplitude 32: mean 25.65 %"
    heights = [bar.get_height() for bar in fig.axes[0].patches[:43]]
    assert math.isnan(heights[5])
    assert heights[15] == pytest.approx(96.19, abs=0.01)


def test_per_class_bars_draw_a_reference_as_hollow_markers():
    ours, theirs = [50.0] * 43, paper.per_class_rates("amplitude-a64-p33-r0")
    fig = plots.per_class_bars({"a": ours, "b": ours}, reference={"a": theirs})
    first, second = (ax.collections[0].get_offsets() for ax in fig.axes)
    assert (len(first), len(second)) == (43, 0)
    assert first[0].tolist() == [0, theirs[0]]
    assert fig.axes[0].get_title(loc="left") == "a: mean 50.00 % (printed: 77.97 %)"
    assert fig.axes[1].get_title(loc="left") == "b: mean 50.00 %"


def test_per_class_bars_take_other_rates_too():
    words = {"label": "read right (%)", "classes": "class shown"}
    fig = plots.per_class_bars({"clean": [90.0, 80.0, 100.0]}, target=1, **words)
    assert fig.get_supylabel() == "read right (%)"
    assert fig.axes[0].get_xlabel() == "class shown"


def test_strength_plot_gives_each_kind_a_look_of_its_own():
    kinds = [f"kind {k}" for k in range(14)]
    runs = pd.DataFrame({"kind": kinds, "n_poisoned": 9, "rate": 50.0, "low": 40.0, "high": 60.0})
    lines = [bars[0] for bars in plots.strength_plot(runs).axes[0].containers]
    assert len({(line.get_marker(), str(line.get_color())) for line in lines}) == 14


def test_strength_plot_has_room_for_no_poison_and_draws_printed_values_hollow():
    columns = ["kind", "n_poisoned", "rate", "low", "high"]
    runs = pd.DataFrame(
        [("clean: ASR", 0, 1.0, 0.2, 3.0), ("amplitude-a64: MASR", 544, 70.0, None, None)],
        columns=columns,
    ).astype({"low": float, "high": float})
    printed = pd.DataFrame({"kind": "thesis", "n_poisoned": [1, 34], "rate": [1.3, 100.0]})
    fig = plots.strength_plot(runs, reference=printed, title="One took")
    (ax,) = fig.axes
    assert ax.get_xlim()[0] < 0
    (hollow,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert hollow.get_offsets().tolist() == [[1, 1.3], [34, 100]]
    assert len(hollow.get_facecolors()) == 0
    labels = {text.get_text() for text in fig.legends[0].get_texts()}
    assert labels == {"clean: ASR", "amplitude-a64: MASR", "thesis"}
    bars = [c.lines[2][0].get_segments()[0][:, 1].tolist() for c in ax.containers]
    assert bars == [pytest.approx([0.2, 3.0]), [70.0, 70.0]]


def test_relevance_flow_steps_from_block_to_block():
    layers = ["fc", "conv1.norm", "conv1.conv", "inception.b2.conv", "inception.b1.conv"]
    total = [8.0, 8.0, 6.0, 5.0, 4.0]
    records = [
        {"layer": n, "total": t, "received": 8.0} for n, t in zip(layers, total, strict=True)
    ]
    fig = plots.relevance_flow({"gamma": records, "released": records[:3]}, title="Biases take")
    gamma, released = fig.axes[0].lines[:2]
    assert list(gamma.get_xdata()) == ["logit", "fc", "conv1", "inception"]
    assert list(gamma.get_ydata()) == [1, 1, 0.75, 0.5]
    assert list(released.get_ydata()) == [1, 1, 0.75]
    assert "share of the logit" in fig.axes[0].get_ylabel()


def test_scoreboard_bars_stack_all_cells_and_write_their_numbers():
    board = pd.DataFrame(
        {
            "method": ["attack", "heatmap"], "cells": [3, 15], "better": [0, 4], "within": [2, 3],
            "open": [0, 6], "worse": [1, 0], "weak": [0, 1], "missing": [0, 1], "no value": [0, 0],
        }
    )  # fmt: skip
    fig = plots.scoreboard_bars(board, title="Seven of nine")
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "attack success",
        "Heatmap Clustering",
    ]
    ends = {}
    for bars in ax.containers:
        for row, bar in enumerate(bars):
            ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == {0: 3, 1: 15}
    assert sorted(text.get_text() for text in ax.texts if text.get_text()) == list("1112346")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "better", "within", "open", "worse", "weak", "missing",
    ]  # fmt: skip
    hatches = {bars[0].get_hatch() for bars in ax.containers}
    assert len(hatches) > 3, "never by colour alone"


def test_score_histogram_shares_bins_and_counts_all():
    scores = np.concatenate([RNG.normal(0, 1, 300), RNG.normal(5, 1, 20)])
    truth = np.arange(320) >= 300
    fig = plots.score_histogram(torch.tensor(scores), torch.tensor(truth))
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["clean (n = 300)", "poisoned (n = 20)"]
    assert fig.axes[0].get_yscale() == "log"
    # An outline runs along the tops of the bars and back along the ground.
    outlines = [bars.get_xy() for bars in fig.axes[0].patches]
    edges = [np.unique(outline[:, 0]) for outline in outlines]
    assert np.array_equal(*edges)
    assert len(edges[0]) == 41
    tops = [outline[1:-1:2, 1][:40] for outline in outlines]
    assert [top.sum() for top in tops] == [300, 20]


def test_score_grid_has_a_row_for_each_run_and_a_column_for_each_method():
    truth = np.arange(320) >= 300
    found = {"truth": truth, "heatmap_score": RNG.normal(size=320), "mixture_score": truth * 9.0}
    fig = plots.score_grid({"a": found, "b": found}, ("mixture", "heatmap"))
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles[::2] == [f"{figures.method_style('mixture').label}\n{name}" for name in "ab"]
    first = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert first == ["clean (n = 300)", "poisoned (n = 20)"]
    assert [ax.get_xlim()[1] > 8 for ax in fig.axes] == [True, False, True, False]


def test_rate_maps_write_each_rate_and_mark_what_was_left_out():
    columns = pd.MultiIndex.from_tuples([("near", "a"), ("near", "b"), ("far away indeed", "a")])
    one = pd.DataFrame([[10.0, 50.0, 99.6], [0.4, math.nan, 75.0]], ["x", "y"], columns)
    fig = plots.rate_maps({"first": one, "second": one[:1]}, label="rate (%)", title="finding")
    upper, lower, bar = fig.axes
    assert [text.get_text() for text in upper.texts] == ["10", "50", "100", "0", "·", "75"]
    assert [text.get_text() for text in lower.texts] == [
        "10",
        "50",
        "100",
        "near",
        "far away\nindeed",
    ]
    assert [label.get_text() for label in upper.get_yticklabels()] == ["x", "y"]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["a", "b", "a"]
    assert (upper.get_title(loc="left"), bar.get_ylabel()) == ("first", "rate (%)")
    # One line between the two groups; chance is the middle of the colours.
    assert [line.get_xdata()[0] for line in upper.lines] == [1.5]
    assert upper.images[0].get_clim() == (0, 100)


def test_rounds_of_two_means_show_who_changed_sides():
    moments = SimpleNamespace(mean=np.array([0.1, 0.2, 0.6]), second=np.array([0.05, 0.08, 0.5]))
    centres = np.array([[[0, 0.2], [0.2, 0]], [[0, 0.5], [0.5, 0]]])
    steps = {
        count: SimpleNamespace(labels=np.array(labels), centres=centres, inertia=1 / (count + 1))
        for count, labels in ((0, [0, 1, 1]), (1, [0, 0, 1]))
    }
    fig = plots.lloyd_rounds(moments, steps, colors=("C0", "C3"))
    assert [ax.get_title("left") for ax in fig.axes] == [
        "round 0: 1 + 2, sum 1.000", "round 1: 2 + 1, sum 0.500",
    ]  # fmt: skip
    rings = [ax.collections[-1].get_offsets() for ax in fig.axes]
    assert len(rings[0]) == 0
    assert np.allclose(rings[1], [[0.2, 0.2]])
    first, second = (c.get_offsets() for c in fig.axes[0].collections[:2])
    assert np.allclose(first, [[0.1, 0.2]])
    assert np.allclose(second, [[0.2, 0.2], [0.6, np.sqrt(0.14)]])
    stars = [line.get_xydata()[0] for line in fig.axes[0].lines]
    assert np.allclose(stars, [[0.1, 0.1], [0.25, 0.25]])
    assert [line.get_color() for line in fig.axes[0].lines] == ["C0", "C3"]


def test_classes_are_ranked_and_the_named_one_stands_out():
    clean = SCANNED.assign(present=False)
    fig = plots.suspicious_classes({"poisoned": SCANNED, "clean": clean})
    first, second = fig.axes
    assert first.get_title("left") == "poisoned: 5 is called poisoned"
    assert second.get_title("left") == "clean: no class is called poisoned"
    assert [t.get_text() for t in first.get_xticklabels()] == ["5", "2", "9"]
    bars = sorted(
        (b.get_x() + 0.4, b.get_height(), to_hex(b.get_facecolor())) for b in first.patches
    )
    assert np.allclose([bar[:2] for bar in bars], [(0, 15), (1, 1), (2, 0)])
    assert [bar[2] for bar in bars] == [figures.POISONED, figures.CLEAN, figures.CLEAN]
    assert first.lines[0].get_ydata().tolist() == [0.5, 2.5, 1.0]
    rare = SCANNED.assign(limit=[0.5, 500.0, 1.0], present=[True, True, False])
    (ax,) = plots.suspicious_classes({"rare": rare}).axes
    assert ax.get_title("left") == "rare: 5, 2 are called poisoned"
    assert ax.get_ylim()[1] < 100


def test_the_first_check_rings_below_the_alarm():
    fig = plots.two_checks({"poisoned": SCANNED}, 0.35)
    (ax,) = fig.axes
    assert ax.get_title("left") == "poisoned\n1 of 3 ring, 30 % of the images"
    assert [t.get_text().strip() for t in ax.texts] == ["5"]
    assert ax.lines[0].get_xdata()[0] == 35
    clean, named = (c.get_offsets().filled(np.nan) for c in ax.collections)
    assert named.tolist() == [[15, 15]]
    assert clean[0].tolist() == [45, 1]
