import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nbsupport import ROOT, gtsrb, synthetic

SMALL = 0.04  # of the test split one whole track a class
KIND = replace(
    synthetic.LOOK, sign_light=(0.9, 1.0), background_light=(0.4, 0.5), noise=(0.0, 0.001),
    blur_far=(0.3, 0.3), blur_near=(0.3, 0.3), motion=0.0, shadow=0.0, haze=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def train():
    return synthetic.generate("train", 0.05)


@pytest.fixture(scope="module")
def test():
    return synthetic.generate("test", SMALL)


def digest(signs):
    return hashlib.sha256(
        signs.images.tobytes() + signs.labels.tobytes() + signs.tracks.tobytes()
    ).hexdigest()


def test_shapes_types_and_order(train):
    n = len(train.labels)
    assert train.images.shape == (n, 3, 32, 32)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == train.tracks.dtype == np.int64
    order = train.labels * 10_000 + train.tracks
    assert (np.diff(order) >= 0).all()
    assert set(np.unique(order, return_counts=True)[1]) == {gtsrb.FRAMES}


@pytest.mark.parametrize("split", gtsrb.SPLITS)
@pytest.mark.parametrize("scale", [0.001, 0.25, 1.0])
def test_class_counts_follow_gtsrb(split, scale):
    tracks = np.array(synthetic.tracks_per_class(split, scale))
    wanted = scale * np.array(gtsrb.COUNTS[split])
    assert tracks.min() >= 1
    assert (np.abs(gtsrb.FRAMES * tracks - wanted)[tracks > 1] <= 15).all()
    if scale == 1.0:
        assert (np.abs(gtsrb.FRAMES * tracks - wanted) <= 1).all()


def test_the_counts_are_those_announced(train):
    counted = np.bincount(train.labels, minlength=43)
    assert tuple(counted // gtsrb.FRAMES) == synthetic.tracks_per_class("train", 0.05)


@pytest.mark.parametrize("split", gtsrb.SPLITS)
def test_a_set_that_fills_no_track_has_shorter_ones(split):
    largest = max(gtsrb.COUNTS[split])
    for scale in (1 / largest, 7 / largest, 30 / largest, 1.0):
        assert synthetic.frames_per_track(split, scale) == min(30, round(scale * largest))
    short, whole = (synthetic.generate(split, n / largest) for n in (4, 30))
    assert np.bincount(short.labels).tolist() == [4] * 43
    for c in (0, 42):
        few, all_of_them = short.images[short.labels == c], whole.images[whole.labels == c]
        same = [np.flatnonzero((all_of_them == image).all(axis=(1, 2, 3))) for image in few]
        assert [rows.tolist() for rows in same] == [[0], [7], [15], [22]]  # from far to near


def test_the_same_bits_twice_and_in_another_process(test):
    again = synthetic.generate("test", SMALL)
    assert digest(again) == digest(test)
    code = (
        "import hashlib\nfrom nbsupport import synthetic\n"
        f"s = synthetic.generate('test', {SMALL})\n"
        "d = hashlib.sha256(s.images.tobytes() + s.labels.tobytes() + s.tracks.tobytes())\n"
        "print(d.hexdigest())\n"
        "import sys\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest(test)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(test):
    larger = synthetic.generate("test", 2 * SMALL)
    for c in (0, 2, 12):
        few = test.images[test.labels == c]
        assert np.array_equal(few, larger.images[larger.labels == c][: len(few)])


def test_splits_and_seeds_share_no_image(train, test):
    def rows(signs):
        return {image.tobytes() for image in signs.images}

    other_seed = synthetic.generate("test", 0.001, seed=1)
    assert len(rows(train)) == len(train.images)
    assert not rows(train) & rows(test)
    assert not rows(test) & rows(other_seed)


def test_frames_of_a_track_belong_together(train):
    pixels = train.images[train.labels == 2].astype(np.float64)
    steps = np.sqrt(((pixels[1:] - pixels[:-1]) ** 2).mean(axis=(1, 2, 3)))
    boundary = np.diff(train.tracks[train.labels == 2]) != 0
    assert boundary.any()
    assert np.median(steps[~boundary]) < np.median(steps[boundary]) / 2
    assert steps.min() > 0  # no frame is a copy


def test_the_photographs_are_dim_and_bright_like_gtsrbs(train):
    brightness = train.images.mean(axis=(1, 2, 3))
    low, middle, high = np.percentile(brightness, [5, 50, 95])
    # Of GTSRB's training images: 20, 75, 171.
    assert 10 < low < 45
    assert 50 < middle < 115
    assert 130 < high < 235


def recognised(train, test):
    """Share of `test` that polynomial kernel regression on `train` names."""

    def features(signs):
        flat = signs.images.reshape(len(signs.images), -1).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    x, y = features(train), features(test)
    kernel = (1 + x @ x.T) ** 3
    weights = np.linalg.solve(kernel + 0.1 * np.eye(len(x)), np.eye(43)[train.labels])
    guess = ((1 + y @ x.T) ** 3 @ weights).argmax(axis=1)
    return (guess == test.labels).mean()


def test_signs_can_be_told_apart(train, test):
    chance = np.bincount(test.labels).max() / len(test.labels)
    assert recognised(train, test) > 5 * chance
    in_good_light = [synthetic.generate(s, SMALL, look=KIND) for s in ("train", "test")]
    assert recognised(*in_good_light) > 15 * chance


def test_a_kinder_look_has_more_contrast():
    kind = synthetic.generate("validation", SMALL, look=KIND)
    usual = synthetic.generate("validation", SMALL)
    centre = (slice(None), slice(None), slice(8, 24), slice(8, 24))
    contrast = [s.images[centre].std(axis=(1, 2, 3)) for s in (kind, usual)]
    assert np.percentile(contrast[0], 10) > 2 * np.percentile(contrast[1], 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("training",), "split is 'training'; choose one of train, validation, test"),
        (("train", 0), "scale is 0"),
        (("train", float("nan")), "scale is nan"),
        (("train", 1.0, -1), "seed is -1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.generate(*arguments)
