import json
import math
from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb

from nbsupport import figures, metrics, paper
from nbsupport.metrics import Confusion

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))
HEATMAPS = RNG.normal(size=(5, 32, 32))
DETECTIONS = {
    "activation": Confusion(738, 75, 1596, 54),
    "heatmap": Confusion(812, 1, 1650, 0),
}
RESULTS = pd.DataFrame(
    [
        {"profile": "demo", "scenario": "standard-s3-p33-r0", "method": method, **counts.record()}
        for method, counts in DETECTIONS.items()
    ]
)


@pytest.fixture(autouse=True)
def _theme():
    with mpl.rc_context():
        figures.use_theme()
        yield
        plt.close("all")


def drawn_images(fig):
    return [np.asarray(ax.images[-1].get_array()) for ax in fig.axes if ax.images]


def test_theme_is_the_projects():
    rc = mpl.rcParams
    assert rc["savefig.dpi"] == 200
    assert rc["pdf.fonttype"] == 42
    assert rc["svg.hashsalt"]
    assert rc["figure.constrained_layout.use"]
    assert rc["image.interpolation"] == "nearest"


def test_methods_differ_in_colour_and_in_marker():
    styles = [s for name, s in figures.METHOD_STYLE.items() if name != "raw"]
    for field in ("color", "marker", "label"):
        assert len({getattr(style, field) for style in styles}) == len(styles)
    assert not {figures.CLEAN, figures.POISONED} & {style.color for style in styles}
    red, green, blue = to_rgb(figures.METHOD_STYLE["heatmap"].color)
    assert blue > max(red, green)
    red, green, blue = to_rgb(figures.METHOD_STYLE["raw"].color)
    assert red == green == blue


def test_every_detector_has_a_fixed_style():
    from nbsupport.detection import METHODS

    assert set(METHODS) <= set(figures.METHOD_STYLE)


def test_unknown_methods_keep_one_style():
    style = figures.method_style("isolation_forest")
    assert style == figures.method_style("isolation_forest")
    assert style.label == "isolation forest"
    assert style.color not in {figures.METHOD_STYLE[m].color for m in ("activation", "heatmap")}


def test_save_writes_the_same_bytes_again(tmp_path):
    provenance = {"scenario": "standard-s3-p33-r0", "n": 3}
    contents = []
    for _ in range(2):
        fig = figures.image_grid(IMAGES[:2], title="Twice the same")
        paths = figures.save(fig, "fig1_images", tmp_path, provenance)
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert [path.name for path in paths] == [
        "fig1_images.pdf", "fig1_images.png", "fig1_images.json",
    ]  # fmt: skip
    assert contents[0][0].startswith(b"%PDF")
    assert contents[0][1].startswith(b"\x89PNG")
    note = json.loads(contents[0][2])
    assert note["scenario"] == "standard-s3-p33-r0"
    assert set(note["files"]) == {"fig1_images.pdf", "fig1_images.png"}
    # Nothing half-written stays behind.
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    assert len(figures.save(fig, "fig1_images", tmp_path)) == 2


def test_a_failed_save_leaves_the_old_figure(tmp_path, monkeypatch):
    fig = figures.image_grid(IMAGES[:1])
    pdf, _ = figures.save(fig, "kept", tmp_path)
    before = pdf.read_bytes()

    def interrupted(path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fig, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        figures.save(fig, "kept", tmp_path)
    assert pdf.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["", "../out", "fig.pdf", "a/b"])
def test_names_are_plain_stems(name, tmp_path):
    with pytest.raises(ValueError, match="file stem"):
        figures.save(plt.figure(), name, tmp_path)


def test_show_attaches_alt_text_repeats_it_as_caption_and_closes(monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(figures, "get_ipython", lambda: object())
    monkeypatch.setattr(figures, "display", lambda *args, **kwargs: sent.append((args, kwargs)))
    fig = figures.image_grid(IMAGES[:1])
    figures.show(fig, alt="One image\n   of noise.")
    (data,), options = sent[0]
    details = options["metadata"]["image/png"]
    assert details["alt"] == "One image of noise."
    assert 150 < details["width"] < 816
    assert options["raw"]
    assert data["image/png"].startswith("iVBOR")
    (caption,), _ = sent[1]
    assert caption["text/markdown"] == "*One image of noise.*"
    assert capsys.readouterr().out == ""  # printed lines are the progress of batch runs
    assert not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_an_empty_alt(alt):
    with pytest.raises(ValueError, match="alt is empty"):
        figures.show(plt.figure(), alt=alt)


def test_images_are_drawn_pixel_by_pixel():
    fig = figures.image_grid(IMAGES, list("abcde"), columns=3, boxes=[(4, 6, 3, 3)] + [None] * 4)
    shown = drawn_images(fig)
    assert len(shown) == len(fig.axes) == 5
    np.testing.assert_allclose(shown[1], IMAGES[1].permute(1, 2, 0).numpy() / 255)
    assert fig.axes[0].images[0].get_interpolation() == "nearest"
    (box,) = fig.axes[0].patches
    # Pixel i reaches from i - 0.5 to i + 0.5: the frame encloses pixels 4 to 6.
    assert box.get_x() < 3.5
    assert box.get_x() + box.get_width() > 6.5
    floats = drawn_images(figures.image_grid(IMAGES.float() / 255))
    np.testing.assert_allclose(floats[1], shown[1], atol=1e-6)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 32, 32\); expected \(n, 3, H, W\)"):
        figures.image_grid(IMAGES[0])
    with pytest.raises(ValueError, match="summed over channels"):
        figures.evidence(IMAGES, IMAGES)


def test_heatmaps_are_symmetric_about_zero():
    maps = np.stack([HEATMAPS[0], 100 * HEATMAPS[1] + 3, np.zeros((32, 32))])
    fig = figures.picture_rows({"maps": torch.from_numpy(maps).to(torch.bfloat16)})
    for ax in fig.axes[:3]:
        norm = ax.images[0].norm
        assert (norm.vmin, norm.vmax) == (-1, 1)
        assert min(to_rgb(ax.images[0].cmap(norm(0.0))[:3])) > 0.95  # as good as white
    shown = drawn_images(fig)[:3]
    assert [np.abs(s).max() for s in shown] == [1, 1, 0]
    assert np.sign(shown[1]).tolist() == np.sign(maps[1]).tolist()


def test_evidence_counts_the_kept_pixels():
    kept = HEATMAPS > 1
    fig = figures.evidence(IMAGES, HEATMAPS, kept, titles=list("abcde"))
    labels = [ax.get_xlabel() for ax in fig.axes if "pixels" in ax.get_xlabel()]
    assert labels == [f"{k.sum()} pixels" for k in kept]
    assert len(figures.evidence(IMAGES, HEATMAPS).axes) == 2 * 5 + 1


def test_picture_rows_mix_images_and_relevance():
    rows = {"image": IMAGES, "gamma": HEATMAPS, "paper": torch.tensor(1000 * HEATMAPS)}
    fig = figures.picture_rows(rows, [f"motif {i}" for i in range(5)], title="Three views")
    axes = fig.axes[:15]
    assert [axes[i].get_ylabel() for i in (0, 5, 10)] == ["image", "gamma", "paper"]
    assert [ax.get_title() for ax in axes[:5]] == [f"motif {i}" for i in range(5)]
    assert np.allclose(axes[0].images[0].get_array(), IMAGES[0].permute(1, 2, 0) / 255)
    for ax in axes[5:]:
        assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1)
    # Each map has its own scale, so a thousand times the relevance is the same picture.
    assert np.allclose(axes[5].images[0].get_array(), axes[10].images[0].get_array(), atol=1e-6)
    with pytest.raises(ValueError, match="'image': 5, 'gamma': 4"):
        figures.picture_rows({"image": IMAGES, "gamma": HEATMAPS[:4]})


def test_pixel_maps_keep_the_pixels_of_the_image_on_their_axes():
    maps = {"every pixel": np.eye(32), "the corners": torch.zeros(32, 32)}
    fig = figures.pixel_maps(maps, label="images (%)", limits=(0, 100))
    panels = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in panels] == list(maps)
    assert all(ax.images[0].get_clim() == (0, 100) for ax in panels)
    assert panels[0].get_xlabel() == "column (pixel)"
    assert panels[0].get_ylabel() == "row (pixel)"
    (ax, _) = figures.pixel_maps({"coarse": np.eye(10)}, label="hits (%)", step=3).axes
    assert ax.images[0].get_extent() == [-0.5, 29.5, 29.5, -0.5]


def test_contact_sheet_numbers_every_class():
    fig = figures.contact_sheet(IMAGES, ["stop"] * 5, columns=3)
    assert [ax.get_xlabel() for ax in fig.axes] == [f"{i}  stop" for i in range(5)]


def test_training_curves_mark_the_lowest_validation_loss():
    losses = [0.9, 0.4, 0.2, 0.3]
    history = [
        {"epoch": e, "loss": 1 / e, "validation_loss": v, "validation_accuracy": 90 + e}
        for e, v in enumerate(losses, start=1)
    ]
    left, right = figures.training_curves(history).axes
    assert left.lines[1].get_ydata().tolist() == losses
    assert set(left.lines[2].get_xdata()) == {3}
    assert right.lines[0].get_ydata().tolist() == [91, 92, 93, 94]
    assert "%" in right.get_ylabel()


def test_class_confusion_shows_shares_of_the_class_shown():
    counts = [[8, 2, 0], [0, 5, 5], [0, 0, 0]]
    ax = figures.class_confusion(counts, title="Most are right").axes[0]
    assert np.array_equal(ax.images[0].get_array(), [[80, 20, 0], [0, 50, 50], [0, 0, 0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("read as class", "class shown")


def test_confusion_heatmap_prints_counts_and_shares():
    fig = figures.confusion_heatmap({**DETECTIONS, "raw_pca": Confusion(0, 0, 4, 1)})
    texts = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert texts[1] == ["1,650\n100.00 %", "0\n0.00 %", "1\n0.12 %", "812\n99.88 %"]
    # Without a poisoned image there is no share of them.
    assert texts[2] == ["4\n80.00 %", "1\n20.00 %", "0", "0"]


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_confusion_heatmap_has_room_for_every_method(n):
    from nbsupport.detection import METHODS

    assert len(METHODS) >= 11
    chosen = dict.fromkeys(list(METHODS)[:n], DETECTIONS["activation"])
    fig = figures.confusion_heatmap(chosen, title="Found, and accused")
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

    fig = figures.confusion_heatmap(dict.fromkeys(METHODS, DETECTIONS["heatmap"]))
    fig.canvas.draw()
    heights = [round(ax.get_position().y0, 3) for ax in fig.axes]
    rows = [heights[i : i + 4] for i in range(0, len(heights), 4)]
    assert all(len(set(row)) == 1 for row in rows)
    assert len({row[0] for row in rows}) == len(rows) == math.ceil(len(METHODS) / 4)


def test_rates_plot_pools_runs_and_keeps_method_styles():
    fig = figures.rates_plot(pd.concat([RESULTS, RESULTS]), rates=("tpr",), title="Both")
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
        figures.rates_plot(RESULTS, rates=("f1",))


def test_rates_plot_names_every_method_even_those_missing_from_the_first_row():
    other = RESULTS[RESULTS.method == "heatmap"].assign(scenario="standard-s3-p15-r0")
    fig = figures.rates_plot(pd.concat([RESULTS[RESULTS.method == "activation"], other]))
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["Activation Clustering", "Heatmap Clustering"]


def test_rates_plot_draws_valid_printed_values_hollow():
    reference = pd.DataFrame(paper.reference_rows())
    fig = figures.rates_plot(RESULTS, rates=("acc",), reference=reference)
    ax = fig.axes[0]
    points = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    hollow = [tuple(p[0]) for p in points]
    # The printed marker stands on the line of its own method and run.
    lines = [container.lines[0].get_ydata()[0] for container in ax.containers]
    assert hollow == [(94.76, lines[0]), (99.96, lines[1])]
    assert ax.get_xlim()[0] > 80
    mislabelled = RESULTS.assign(scenario="label_consistent-s3-p15-r0")
    ax = figures.rates_plot(mislabelled, rates=("tnr",), reference=reference).axes[0]
    points = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    assert [len(p) for p in points] == [0, 0]


def test_per_class_bars_state_the_macro_mean_and_skip_the_target():
    hits = paper.PER_CLASS_HITS["amplitude-a32-p33-r0"]
    rates = [
        None if hit is None else 100 * hit / n
        for hit, n in zip(hits, paper.TEST_CLASS_SIZES, strict=True)
    ]
    fig = figures.per_class_bars({"amplitude 32": rates})
    assert fig.axes[0].get_title(loc="left") == "amplitude 32: mean 25.65 %"
    heights = [bar.get_height() for bar in fig.axes[0].patches[:43]]
    assert math.isnan(heights[5])
    assert heights[15] == pytest.approx(96.19, abs=0.01)


def test_per_class_bars_draw_a_reference_as_hollow_markers():
    ours, theirs = [50.0] * 43, paper.per_class_rates("amplitude-a64-p33-r0")
    fig = figures.per_class_bars({"a": ours, "b": ours}, reference={"a": theirs})
    first, second = (ax.collections[0].get_offsets() for ax in fig.axes)
    assert (len(first), len(second)) == (43, 0)
    assert first[0].tolist() == [0, theirs[0]]
    assert fig.axes[0].get_title(loc="left") == "a: mean 50.00 % (printed: 77.97 %)"
    assert fig.axes[1].get_title(loc="left") == "b: mean 50.00 %"


def test_per_class_bars_take_other_rates_too():
    words = {"label": "read right (%)", "classes": "class shown"}
    fig = figures.per_class_bars({"clean": [90.0, 80.0, 100.0]}, target=1, **words)
    assert fig.get_supylabel() == "read right (%)"
    assert fig.axes[0].get_xlabel() == "class shown"


def test_strength_plot_has_room_for_no_poison_and_draws_printed_values_hollow():
    columns = ["kind", "n_poisoned", "rate", "low", "high"]
    runs = pd.DataFrame(
        [("clean: ASR", 0, 1.0, 0.2, 3.0), ("amplitude-a64: MASR", 544, 70.0, None, None)],
        columns=columns,
    ).astype({"low": float, "high": float})
    printed = pd.DataFrame({"kind": "thesis", "n_poisoned": [1, 34], "rate": [1.3, 100.0]})
    fig = figures.strength_plot(runs, reference=printed, title="One took")
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
    fig = figures.relevance_flow({"gamma": records, "released": records[:3]}, title="Biases take")
    gamma, released = fig.axes[0].lines[:2]
    assert list(gamma.get_xdata()) == ["logit", "fc", "conv1", "inception"]
    assert list(gamma.get_ydata()) == [1, 1, 0.75, 0.5]
    assert list(released.get_ydata()) == [1, 1, 0.75]
    assert "share of the logit" in fig.axes[0].get_ylabel()


def test_scoreboard_bars_stack_all_cells_and_write_their_numbers():
    board = pd.DataFrame(
        {
            "method": ["attack", "heatmap"], "cells": [3, 9], "better": [0, 4], "within": [2, 3],
            "worse": [1, 0], "weak": [0, 1], "missing": [0, 1], "no value": [0, 0],
        }
    )  # fmt: skip
    fig = figures.scoreboard_bars(board, title="Seven of nine")
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "attack success",
        "Heatmap Clustering",
    ]
    ends = {}
    for bars in ax.containers:
        for row, bar in enumerate(bars):
            ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == {0: 3, 1: 9}
    assert sorted(text.get_text() for text in ax.texts if text.get_text()) == list("111234")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "better", "within", "worse", "weak", "missing",
    ]  # fmt: skip
    hatches = {bars[0].get_hatch() for bars in ax.containers}
    assert len(hatches) > 3, "never by colour alone"


def test_score_histogram_shares_bins_and_counts_all():
    scores = np.concatenate([RNG.normal(0, 1, 300), RNG.normal(5, 1, 20)])
    truth = np.arange(320) >= 300
    fig = figures.score_histogram(torch.tensor(scores), torch.tensor(truth), threshold=2.5)
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["clean (n = 300)", "poisoned (n = 20)", "threshold"]
    assert fig.axes[0].get_yscale() == "log"


def test_score_grid_has_a_row_for_each_run_and_a_column_for_each_method():
    truth = np.arange(320) >= 300
    found = {"truth": truth, "heatmap_score": RNG.normal(size=320), "mixture_score": truth * 9.0}
    fig = figures.score_grid({"a": found, "b": found}, ("mixture", "heatmap"))
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles[::2] == [f"{figures.method_style('mixture').label}\n{name}" for name in "ab"]
    first = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert first == ["clean (n = 300)", "poisoned (n = 20)"]
    assert [ax.get_xlim()[1] > 8 for ax in fig.axes] == [True, False, True, False]


def test_comparison_sets_ours_beside_the_paper():
    table = figures.comparison(RESULTS)
    row = table[(table.method == "heatmap") & (table.rate == "tpr")].iloc[0]
    assert (row.paper, row.n, row.note) == (99.88, 813, "")
    assert row.ours == pytest.approx(100 * 812 / 813)
    assert row.difference == pytest.approx(row.ours - 99.88)
    assert row.low < row.ours < row.high


def test_comparison_has_no_value_for_the_mislabelled_row():
    other = RESULTS.assign(scenario="label_consistent-s3-p15-r0")
    table = figures.comparison(other)
    assert table.paper.isna().all()
    assert table.difference.isna().all()
    assert set(table.note) == {"table2-p15"}


def test_results_table_reads_well():
    table = figures.comparison(RESULTS)
    html = figures.results_table(table, caption="As printed").to_html()
    for text in ("As printed", "Heatmap Clustering", "99.88", "2,463", "99.31 – 99.98"):
        assert text in html
    assert html == figures.results_table(table, caption="As printed").to_html()
    with pytest.raises(ValueError, match="occur twice"):
        figures.results_table(pd.concat([table, table]))


def test_rate_maps_write_each_rate_and_mark_what_was_left_out():
    columns = pd.MultiIndex.from_tuples([("near", "a"), ("near", "b"), ("far away indeed", "a")])
    one = pd.DataFrame([[10.0, 50.0, 99.6], [0.4, math.nan, 75.0]], ["x", "y"], columns)
    fig = figures.rate_maps({"first": one, "second": one[:1]}, label="rate (%)", title="finding")
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


def cloud(n):
    p = np.arange(1, n + 1) / (n * (n + 1) / 2)
    return SimpleNamespace(pixels=np.stack([np.arange(n), np.zeros(n, int)], axis=1), p=p)


@pytest.mark.parametrize(
    ("T", "met"), [(np.eye(5) / 5, "1.0 of 5"), (np.full((5, 5), 0.04), "5.0 of 5")]
)
def test_a_coupling_joins_the_pixels_that_it_matches(T, met):
    fig = figures.coupling_lines(
        IMAGES[:2], (cloud(5), cloud(5)), T, names=("left", "right"), title="Best"
    )
    (ax,) = fig.axes
    assert ax.get_title("left") == f"Best: each pixel meets about {met}"
    assert [text.get_text() for text in ax.texts] == ["left", "right"]
    images = IMAGES[:2].permute(0, 2, 3, 1).numpy() / 255
    assert np.allclose([drawn.get_array() for drawn in ax.images], images)
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    strong = np.array(lines.get_segments())[lines.get_colors()[:, 3] > 0.5]
    assert len(strong) == np.count_nonzero(T)
    # The right image begins 42 pixels further on.
    assert {(int(a[1]), int(b[1])) for a, b in strong} == set(map(tuple, np.argwhere(T)))
    assert {(a[0], b[0]) for a, b in strong} == {(0, 42)}


def test_rounds_of_two_means_show_who_changed_sides():
    moments = SimpleNamespace(mean=np.array([0.1, 0.2, 0.6]), second=np.array([0.05, 0.08, 0.5]))
    centres = np.array([[[0, 0.2], [0.2, 0]], [[0, 0.5], [0.5, 0]]])
    steps = {
        count: SimpleNamespace(labels=np.array(labels), centres=centres, inertia=1 / (count + 1))
        for count, labels in ((0, [0, 1, 1]), (1, [0, 0, 1]))
    }
    fig = figures.lloyd_rounds(moments, steps, colors=("C0", "C3"))
    assert [ax.get_title("left") for ax in fig.axes] == [
        "round 0: 1 + 2, sum 1.000", "round 1: 2 + 1, sum 0.500",
    ]  # fmt: skip
    rings = [ax.collections[-1].get_offsets() for ax in fig.axes]
    assert len(rings[0]) == 0
    assert np.allclose(rings[1], [[0.2, 0.2]])
    stars = [line.get_xydata()[0] for line in fig.axes[0].lines]
    assert np.allclose(stars, [[0.1, 0.1], [0.25, 0.25]])
    assert [line.get_color() for line in fig.axes[0].lines] == ["C0", "C3"]


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


def test_classes_are_ranked_and_the_named_one_stands_out():
    clean = SCANNED.assign(present=False)
    fig = figures.suspicious_classes({"poisoned": SCANNED, "clean": clean})
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


def test_the_first_check_rings_below_the_alarm():
    fig = figures.two_checks({"poisoned": SCANNED}, 0.35)
    (ax,) = fig.axes
    assert ax.get_title("left") == "poisoned\n1 of 3 ring, 30 % of the images"
    assert [t.get_text().strip() for t in ax.texts] == ["5"]
    assert ax.lines[0].get_xdata()[0] == 35
    clean, named = (c.get_offsets().filled(np.nan) for c in ax.collections)
    assert named.tolist() == [[15, 15]]
    assert clean[0].tolist() == [45, 1]
