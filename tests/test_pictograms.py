import numpy as np
import pytest

from nbsupport import pictograms


def test_drawings_are_rgba_with_a_transparent_margin():
    for c in range(43):
        picture = pictograms.draw_sign(c, 64)
        assert picture.mode == "RGBA"
        assert picture.size == (64, 64)
        cover = np.asarray(picture)[..., 3]
        assert cover[0].max() == cover[-1].max() == cover[:, 0].max() == cover[:, -1].max() == 0
        assert cover[32, 32] == 255
        assert 0.3 < (cover > 127).mean() < 0.8


def test_no_two_drawings_look_alike():
    small = np.stack([np.asarray(pictograms.draw_sign(c, 32)).astype(float) for c in range(43)])
    for a in range(43):
        for b in range(a):
            assert np.abs(small[a] - small[b]).mean() > 2, (a, b)


@pytest.mark.parametrize(
    ("c", "channel"), [(14, 0), (17, 0), (33, 2), (38, 2)], ids=["stop", "no entry", "right", "kr"]
)
def test_the_colour_of_the_face(c, channel):
    pixels = np.asarray(pictograms.draw_sign(c, 64)).astype(int)
    face = pixels[pixels[..., 3] == 255][:, :3]
    strong = face[:, channel] - np.delete(face, channel, axis=1).max(axis=1) > 50
    assert strong.mean() > 0.5


def test_left_and_right_are_mirror_images():
    for left, right in ((19, 20), (34, 33), (37, 36), (39, 38)):
        a = np.asarray(pictograms.draw_sign(left, 64)).astype(int)
        b = np.asarray(pictograms.draw_sign(right, 64)).astype(int)
        assert np.abs(a - b[:, ::-1]).mean() < np.abs(a - b).mean() / 2


def test_wrong_drawings_are_refused():
    with pytest.raises(ValueError, match="class_index is 43; the classes are 0 to 42"):
        pictograms.draw_sign(43)
    with pytest.raises(ValueError, match="size is 0"):
        pictograms.draw_sign(2, 0)
