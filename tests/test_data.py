import hashlib
import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nbsupport import data

TINY = 0.004  # one short track for each class and split
FRAMES = {"train": 8, "validation": 1, "test": 3}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A cache that holds the tiny synthetic signs; tests that damage it take a copy."""
    cache = tmp_path_factory.mktemp("made")
    data.load("synthetic", scale=TINY, cache=cache)
    return cache


def same(a, b):
    return a.fingerprint == b.fingerprint and all(
        torch.equal(getattr(getattr(a, split), name), getattr(getattr(b, split), name))
        for split in data.SPLITS
        for name in ("images", "labels", "ids", "tracks")
    )


# ---- types


def test_select_keeps_the_columns_together(made):
    train = data.load("synthetic", scale=TINY, cache=made).train
    some = train.select([5, 3, 3])
    assert some.ids.tolist() == [5, 3, 3]
    assert torch.equal(some.images[0], train.images[5])
    assert len(train.select([])) == 0
    assert torch.equal(train.select(train.labels == 7).ids, train.of_class(7).ids)
    assert set(train.of_class(7).labels.tolist()) == {7}
    with pytest.raises(ValueError, match="class is 43; the classes are 0 to 42"):
        train.of_class(43)
    order = np.array([5, 3, 0])
    for kind in (np.uint8, np.int16, np.uint64, ">i4"):
        assert train.select(order.astype(kind)).ids.tolist() == [5, 3, 0]
    assert len(train.select(torch.tensor([]))) == 0
    assert train.select(order[::-1]).ids.tolist() == [0, 3, 5]
    assert train.select(torch.tensor([1, 0], dtype=torch.uint8)).ids.tolist() == [1, 0]
    mask = np.arange(len(train)) > len(train) - 3
    assert train.select(mask[::-1]).ids.tolist() == [0, 1]
    assert train.select(mask.tolist()).ids.tolist() == [len(train) - 2, len(train) - 1]
    with pytest.raises(TypeError, match="the index is of float64; expected whole numbers"):
        train.select(np.array([0.0, 1.0]))


def test_a_split_of_unequal_columns_is_refused():
    images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    data.Split(images, labels, labels, labels)
    assert data.Split(images, labels, labels).tracks.tolist() == [-1, -1]
    assert len(data.Split(images[:, :1, :28, :20], labels, labels)) == 2
    others = images.float(), images[0], images[:1], images[:, :2], images.permute(0, 2, 3, 1)
    for wrong in others:
        with pytest.raises(ValueError, match=r"images are .* expected \(2, c, h, w\) uint8"):
            data.Split(wrong, labels, labels, labels)
    with pytest.raises(ValueError, match="ids are"):
        data.Split(images, labels, labels[:1], labels)


def test_a_split_takes_arrays():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3).transpose(0, 3, 1, 2)[::-1]
    images.flags.writeable = False  # as of a file that is mapped
    split = data.Split(images, np.array([1, 2]), np.arange(2))
    assert torch.equal(split.images, torch.from_numpy(images.copy()))
    assert split.select(split.labels == 2).ids.tolist() == [1]
    with pytest.raises(ValueError, match=r"labels are \(2,\) torch.int32; expected \(2,\) int64"):
        data.Split(images, np.array([1, 2], dtype=np.int32), np.arange(2))


# ---- synthetic


def test_synthetic_signs(made):
    d = data.load("synthetic", scale=TINY, cache=made)
    assert d.name == "synthetic"
    position = 0
    tracks = []
    for name in data.SPLITS:
        split = getattr(d, name)
        assert split.images.shape == (43 * FRAMES[name], 3, 32, 32)
        assert split.images.dtype == torch.uint8
        assert split.labels.bincount().tolist() == [FRAMES[name]] * 43
        assert split.ids.tolist() == list(range(position, position + len(split)))
        position += len(split)
        tracks.append(set(split.tracks.tolist()))
        assert split.tracks.bincount()[split.tracks].unique().tolist() == [FRAMES[name]]
    assert sum(len(t) for t in tracks) == len(set.union(*tracks)) == 3 * 43
    digest = hashlib.sha256()
    for name in data.SPLITS:
        digest.update(getattr(d, name).images.numpy().tobytes())
        digest.update(getattr(d, name).labels.numpy().tobytes())
    assert d.fingerprint == digest.hexdigest()


def test_a_cached_load_is_the_same_and_generates_nothing(made, monkeypatch):
    first = data.load("synthetic", scale=TINY, cache=made)
    monkeypatch.setattr(data.synthetic, "generate", lambda *a: pytest.fail("generated again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(first, data.load("synthetic", scale=TINY, cache=made))


def test_writing_to_the_tensors_leaves_the_cache_alone(made):
    first = data.load("synthetic", scale=TINY, cache=made)
    first.train.images[0] = 0
    again = data.load("synthetic", scale=TINY, cache=made)
    assert again.fingerprint == first.fingerprint
    assert again.train.images[0].any()


def test_seed_scale_and_source_make_another_key(monkeypatch):
    keys = {data._synthetic(*arguments)[0] for arguments in ((1.0, 0), (1.0, 1), (0.5, 0))}
    assert len(keys) == 3
    assert data._synthetic(1, 0)[0] in keys
    for module in (data.gtsrb, data.pictograms, data.synthetic):  # whatever the pixels depend on
        with monkeypatch.context() as other:
            other.setattr(module, "__file__", data.__file__)
            assert data._synthetic(1.0, 0)[0] not in keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "mnist"}, "source is 'mnist'; choose 'synthetic' or 'gtsrb'"),
        ({"source": "synthetic", "scale": 0}, "scale is 0"),
        ({"source": "synthetic", "seed": -1}, "seed is -1"),
        ({"source": "gtsrb", "seed": -1}, "seed is -1"),
        ({"source": "gtsrb", "scale": 0.5}, "GTSRB is loaded whole"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---- cache


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "tracks.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "gone"])
def test_a_damaged_cache_is_built_again(name, damage, tmp_path):
    key, arrays = "k" * 64, data.Arrays(
        np.arange(4 * 3072, dtype=np.uint8).reshape(4, 3, 32, 32),
        np.arange(4),
        np.arange(4),
        (2, 1, 1),
    )  # fmt: skip
    place = tmp_path / "cache" / "x"
    data._store(place, key, arrays)
    assert data._recall(place, key) is not None
    assert data._recall(place, "another") is None
    blob = bytearray((place / name).read_bytes())
    if damage == "gone":
        (place / name).unlink()
    elif damage == "truncated":
        (place / name).write_bytes(blob[:-2])
    else:
        blob[-6] ^= 1
        (place / name).write_bytes(blob)
    assert data._recall(place, key) is None
    data._store(place, key, arrays)
    back = data._recall(place, key)
    assert np.array_equal(back.images, arrays.images)
    assert [p.name for p in place.parent.iterdir()] == ["x"]


def test_a_tampered_image_never_reaches_the_user(made, tmp_path):
    shutil.copytree(made, tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    images = np.load(place / "images.npy", mmap_mode="r+")
    images[100, 0, 5, 5] ^= 255
    images.flush()
    first = data.load("synthetic", scale=TINY, cache=made)
    assert same(data.load("synthetic", scale=TINY, cache=tmp_path / "cache"), first)


def test_builders_of_one_cache_at_once_do_no_harm(tmp_path):
    place = tmp_path / "x"
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32), dtype=np.uint8)
    arrays = data.Arrays(images, np.arange(30), np.arange(30), (10, 10, 10))

    def build(start):
        for k in range(start, start + 25):
            data._store(place, f"key {k % 4}", arrays)  # another key: the other's work gives way
            found = data._recall(place, f"key {k % 4}")
            assert found is None or np.array_equal(found.images, images)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(build, range(3)))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert sorted(p.name for p in place.iterdir()) == [
        "images.npy", "labels.npy", "manifest.json", "tracks.npy",
    ]  # fmt: skip
    key = json.loads((place / "manifest.json").read_text())["key"]
    assert data._recall(place, key) is not None


def test_without_a_writable_cache_the_data_come_from_memory(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be cached"):
        d = data.load("synthetic", scale=TINY, cache=tmp_path / "cache")
    assert len(d.test) == FRAMES["test"] * 43


def test_a_split_takes_arrays_of_numbers_and_names_everything_else():
    images, numbers = np.zeros((2, 3, 4, 4), np.uint8), np.arange(2)
    swapped = numbers.astype(numbers.dtype.newbyteorder())
    assert data.Split(images, swapped, numbers).labels.tolist() == [0, 1]
    for name, wrong, kind in (
        ("labels", [0, 1], "list"),
        ("ids", range(2), "range"),
        ("images", [images[0]], "list"),
        ("labels", np.array(["0", "1"]), "<U1"),
        ("labels", np.array([0, 1], object), "object"),
    ):
        told = {"images": images, "labels": numbers, "ids": numbers} | {name: wrong}
        with pytest.raises(ValueError, match=f"{name} are {kind}; give a tensor or a NumPy array"):
            data.Split(**told)
