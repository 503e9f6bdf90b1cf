import base64
import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from nbsupport import figures, pictures

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))

pytestmark = pytest.mark.usefixtures("theme")


def test_theme_is_the_projects():
    rc = mpl.rcParams
    assert rc["savefig.dpi"] == 200
    assert rc["pdf.fonttype"] == 42
    assert rc["svg.hashsalt"]
    assert rc["figure.constrained_layout.use"]
    assert rc["image.interpolation"] == "nearest"


def test_methods_differ_in_colour_and_in_marker():
    styles = figures.METHOD_STYLE.values()
    for field in ("color", "marker", "label"):
        assert len({getattr(style, field) for style in styles}) == len(styles)
    assert not {figures.CLEAN, figures.POISONED} & {style.color for style in styles}
    red, green, blue = to_rgb(figures.METHOD_STYLE["heatmap"].color)
    assert blue > max(red, green)
    red, green, blue = to_rgb(figures.METHOD_STYLE["raw_pca"].color)
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
        fig = pictures.image_grid(IMAGES[:2], title="Twice the same")
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
    fig = pictures.image_grid(IMAGES[:1])
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
    fig = pictures.image_grid(IMAGES[:1])
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


def test_a_saved_picture_is_shown_as_wide_as_it_was_made(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(figures, "get_ipython", lambda: object())
    monkeypatch.setattr(figures, "display", lambda *args, **kwargs: sent.append((args, kwargs)))
    figures.use_theme()
    _, picture = figures.save(pictures.image_grid(IMAGES[:1]), "one", tmp_path)
    figures.show_file(picture, alt="One image\nof noise.")
    figures.show(pictures.image_grid(IMAGES[:1]), alt="The same, drawn here.")
    (data,), kept = sent[0]
    assert base64.b64decode(data["image/png"]) == picture.read_bytes()
    assert kept["metadata"]["image/png"]["alt"] == "One image of noise."
    widths = [options["metadata"]["image/png"]["width"] for _, options in (sent[0], sent[2])]
    assert abs(widths[0] - widths[1]) <= 2
    with pytest.raises(FileNotFoundError):
        figures.show_file(tmp_path / "two.png", alt="Nothing.")


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_an_empty_alt(alt):
    with pytest.raises(ValueError, match="alt is empty"):
        figures.show(plt.figure(), alt=alt)
    with pytest.raises(ValueError, match="alt is empty"):
        figures.show_file("figures/scoreboard.png", alt=alt)
