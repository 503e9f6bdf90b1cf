from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from nbsupport import pictures

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))
HEATMAPS = RNG.normal(size=(5, 32, 32))

pytestmark = pytest.mark.usefixtures("theme")


def drawn_images(fig):
    return [np.asarray(ax.images[-1].get_array()) for ax in fig.axes if ax.images]


def test_images_are_drawn_pixel_by_pixel():
    fig = pictures.image_grid(IMAGES, list("abcde"), columns=3)
    shown = drawn_images(fig)
    assert len(shown) == len(fig.axes) == 5
    np.testing.assert_allclose(shown[1], IMAGES[1].permute(1, 2, 0).numpy() / 255)
    assert fig.axes[0].images[0].get_interpolation() == "nearest"
    floats = drawn_images(pictures.image_grid(IMAGES.float() / 255))
    np.testing.assert_allclose(floats[1], shown[1], atol=1e-6)


def test_images_of_one_channel_are_drawn_in_grey():
    (shown,) = drawn_images(pictures.image_grid(IMAGES[:1, :1]))
    assert shown.shape == (32, 32, 3)
    np.testing.assert_allclose(shown, IMAGES[0, 0, :, :, None].expand(-1, -1, 3) / 255)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 32, 32\); expected \(n, c, H, W\), c = 1 or 3"):
        pictures.image_grid(IMAGES[0])
    with pytest.raises(ValueError, match="summed over channels"):
        pictures.evidence(IMAGES, IMAGES)


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda names: pictures.image_grid(IMAGES, names), 6),
        (lambda names: pictures.picture_rows({"image": IMAGES}, names), 4),
        (lambda names: pictures.evidence(IMAGES, HEATMAPS, titles=names), 4),
        (lambda names: pictures.evidence(IMAGES, HEATMAPS, titles=names), 6),
        (lambda names: pictures.contact_sheet(IMAGES, names), 4),
        (lambda names: pictures.contact_sheet(IMAGES, names), 6),
    ],
)
def test_no_picture_and_no_name_is_dropped_without_a_word(draw, names):
    with pytest.raises(ValueError, match=f"{names} names for 5 pictures"):
        draw(["stop"] * names)


def test_heatmaps_are_symmetric_about_zero():
    maps = np.stack([HEATMAPS[0], 100 * HEATMAPS[1] + 3, np.zeros((32, 32))])
    fig = pictures.picture_rows({"maps": torch.from_numpy(maps).to(torch.bfloat16)})
    for ax in fig.axes[:3]:
        norm = ax.images[0].norm
        assert (norm.vmin, norm.vmax) == (-1, 1)
        assert min(to_rgb(ax.images[0].cmap(norm(0.0))[:3])) > 0.95  # as good as white
    shown = drawn_images(fig)[:3]
    assert [np.abs(s).max() for s in shown] == [1, 1, 0]
    assert np.sign(shown[1]).tolist() == np.sign(maps[1]).tolist()


def test_evidence_counts_the_kept_pixels():
    kept = HEATMAPS > 1
    fig = pictures.evidence(IMAGES, HEATMAPS, kept, titles=list("abcde"))
    labels = [ax.get_xlabel() for ax in fig.axes if "pixels" in ax.get_xlabel()]
    assert labels == [f"{k.sum()} pixels" for k in kept]
    assert len(pictures.evidence(IMAGES, HEATMAPS).axes) == 2 * 5 + 1


def test_picture_rows_mix_images_and_relevance():
    rows = {"image": IMAGES, "gamma": HEATMAPS, "paper": torch.tensor(1000 * HEATMAPS)}
    fig = pictures.picture_rows(rows, [f"motif {i}" for i in range(5)], title="Three views")
    axes = fig.axes[:15]
    assert [axes[i].get_ylabel() for i in (0, 5, 10)] == ["image", "gamma", "paper"]
    assert [ax.get_title() for ax in axes[:5]] == [f"motif {i}" for i in range(5)]
    assert np.allclose(axes[0].images[0].get_array(), IMAGES[0].permute(1, 2, 0) / 255)
    for ax in axes[5:]:
        assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-1, 1)
    # Each map has its own scale, so a thousand times the relevance is the same picture.
    assert np.allclose(axes[5].images[0].get_array(), axes[10].images[0].get_array(), atol=1e-6)
    with pytest.raises(ValueError, match="'image': 5, 'gamma': 4"):
        pictures.picture_rows({"image": IMAGES, "gamma": HEATMAPS[:4]})


def test_pixel_maps_keep_the_pixels_of_the_image_on_their_axes():
    maps = {"every pixel": np.eye(32), "the corners": torch.zeros(32, 32)}
    fig = pictures.pixel_maps(maps, label="images (%)", limits=(0, 100))
    panels = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in panels] == list(maps)
    assert all(ax.images[0].get_clim() == (0, 100) for ax in panels)
    assert panels[0].get_xlabel() == "column (pixel)"
    assert panels[0].get_ylabel() == "row (pixel)"
    (ax, _) = pictures.pixel_maps({"coarse": np.eye(10)}, label="hits (%)", step=3).axes
    assert ax.images[0].get_extent() == [-0.5, 29.5, 29.5, -0.5]


def test_contact_sheet_numbers_every_class():
    fig = pictures.contact_sheet(IMAGES, ["stop"] * 5, columns=3)
    assert [ax.get_xlabel() for ax in fig.axes] == [f"{i}  stop" for i in range(5)]


def cloud(n):
    p = np.arange(1, n + 1) / (n * (n + 1) / 2)
    return SimpleNamespace(pixels=np.stack([np.arange(n), np.zeros(n, int)], axis=1), p=p)


@pytest.mark.parametrize(
    ("T", "met"), [(np.eye(5) / 5, "1.0 of 5"), (np.full((5, 5), 0.04), "5.0 of 5")]
)
def test_a_coupling_joins_the_pixels_that_it_matches(T, met):
    fig = pictures.coupling_lines(
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


def test_sixty_lines_are_enough():
    T = np.random.default_rng(0).random((9, 8))
    fig = pictures.coupling_lines(IMAGES[:2], (cloud(9), cloud(8)), T)
    (lines,) = [c for c in fig.axes[0].collections if isinstance(c, LineCollection)]
    rows = {(int(a[1]), int(b[1])) for a, b in lines.get_segments()}
    assert rows == {(i, j) for i, j in np.argwhere(np.sort(T, axis=None)[-60] <= T)}
    assert fig.axes[0].get_title("left").startswith("each pixel meets about ")
