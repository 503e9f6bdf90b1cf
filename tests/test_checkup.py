"""A network and images from files: read, held against each other, reported on."""

import json
import sys
import zipfile

import numpy as np
import owned
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nbsupport import checkup, scan
from nbsupport.artifacts import checksum
from nbsupport.scan import ClassVerdict
from nbsupport.tracing import UnsupportedLayerError

CPU = torch.device("cpu")
BUILDER = """\
from torch import nn

from neighbour import UNITS


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, UNITS))


def number():
    return 7


THING = 3
"""


@pytest.fixture
def own(tmp_path):
    """Leave a network and images in files; return their paths."""
    (tmp_path / "mine.py").write_text(BUILDER)
    (tmp_path / "neighbour.py").write_text("UNITS = 4\n")
    torch.manual_seed(0)
    save_file(linear().state_dict(), tmp_path / "weights.safetensors")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(12) % 3)
    return tmp_path


def linear(units=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, units))


def test_a_network_comes_from_a_function_and_its_weights(own):
    model = checkup.load_network(f"{own}/mine.py:make", own / "weights.safetensors")
    assert not model.training
    torch.manual_seed(0)
    assert torch.equal(model[1].weight, linear()[1].weight)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("make", r"network is 'make'; expected path/to/file.py:function"),
        ("mine.py", "expected path/to/file.py:function"),
        ("mine.pkl:make", "expected path/to/file.py:function"),
        ("mine.py:1", "expected path/to/file.py:function"),
        ("mine.py:build", "has no function 'build'"),
        ("mine.py:THING", "has no function 'THING'"),
        ("mine.py:number", r"number\(\) of .*mine.py returns int, not an nn.Module"),
    ],
)
def test_functions_that_build_no_network_are_named(own, builder, message, monkeypatch):
    monkeypatch.chdir(own)
    with pytest.raises(ValueError, match=message):
        checkup.load_network(builder, "weights.safetensors")


def test_the_next_network_has_neighbours_of_its_own(own, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(BUILDER)
    (other / "neighbour.py").write_text("UNITS = 5\n")
    save_file(linear(5).state_dict(), other / "weights.safetensors")
    for folder, units in ((own, 4), (other, 5)):
        model = checkup.load_network(f"{folder}/mine.py:make", folder / "weights.safetensors")
        assert model[1].out_features == units
    # A folder without __init__.py, and then a file of the same name.
    (own / "neighbour.py").unlink()
    (own / "neighbour").mkdir()
    (own / "neighbour" / "blocks.py").write_text("UNITS = 4\n")
    (own / "mine.py").write_text(BUILDER.replace("from neighbour", "from neighbour.blocks"))
    for folder, units in ((own, 4), (other, 5)):
        model = checkup.load_network(f"{folder}/mine.py:make", folder / "weights.safetensors")
        assert model[1].out_features == units


def test_a_network_may_import_its_neighbours_when_it_runs(own):
    late = (
        BUILDER.replace("nn.Flatten()", "Late()")
        + """

class Late(nn.Flatten):
    def forward(self, x):
        import neighbour
        return super().forward(x) * (neighbour.UNITS / 4)
"""
    )
    (own / "mine.py").write_text(late)
    model = checkup.load_network(f"{own}/mine.py:make", own / "weights.safetensors")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_a_neighbour_may_be_asked_for_first_when_the_network_runs(own):
    (own / "later.py").write_text("SCALE = 2\n")
    builder = """
from torch import nn

class Late(nn.Flatten):
    def forward(self, x):
        import later
        return super().forward(x) * later.SCALE

def make():
    return nn.Sequential(Late(), nn.Linear(3072, 4))
"""
    (own / "mine.py").write_text(builder)
    checkup._forget_the_last()  # of another test
    before = list(sys.path)
    for scale in (2, 3):
        (own / "later.py").write_text(f"SCALE = {scale}\n# {'another' * scale}\n")
        model = checkup.load_network(f"{own}/mine.py:make", own / "weights.safetensors")
        x = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(model(x), model[1](scale * x.flatten(1)))
        assert sys.path == [*before, str(own)]
    assert "later" in sys.modules
    checkup._forget_the_last()
    assert "later" not in sys.modules
    assert sys.path == before


def test_files_that_are_not_there_are_named(own):
    with pytest.raises(FileNotFoundError, match=r"yours.py is not there"):
        checkup.load_network(f"{own}/yours.py:make", own / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"w.safetensors is not there"):
        checkup.load_network(f"{own}/mine.py:make", own / "w.safetensors")
    with pytest.raises(FileNotFoundError, match=r"photographs.npz"):
        checkup.load_images(own / "photographs.npz")
    with pytest.raises(ValueError, match=r"cannot be read .*Is a directory"):
        checkup.load_images(own)


def test_weights_of_another_kind_or_network_are_refused(own):
    builder = f"{own}/mine.py:make"
    torch.save(linear().state_dict(), own / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt is no safetensors file .*save_file"):
        checkup.load_network(builder, own / "weights.pt")
    save_file(linear(5).state_dict(), own / "larger.safetensors")
    with pytest.raises(
        ValueError, match=r"larger.safetensors does not fit make\(\): (?s:.*)1\.weight"
    ):
        checkup.load_network(builder, own / "larger.safetensors")


def test_images_come_with_labels_and_perhaps_with_ids(own):
    split = checkup.load_images(own / "images.npz")
    assert split.images.shape == (12, 3, 32, 32)
    assert split.ids.tolist() == [*range(12)]
    arrays = dict(np.load(own / "images.npz"))
    np.savez(own / "kept.npz", ids=np.arange(12, dtype=np.uint16) + 5, **arrays)
    assert checkup.load_images(own / "kept.npz").ids.tolist() == [*range(5, 17)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "has no array labels"),
        ({"labels": np.zeros(12)}, "labels of .* are float64; expected integers"),
        ({"labels": np.zeros(12, int)}, r"labels of .* hold \[0\]; expected 0, 1"),
        ({"labels": np.arange(12) - 1}, r"hold \[-1, 0"),
        ({"labels": np.arange(11)}, r"images are \(12, 3, 32, 32\)"),
        ({"labels": np.array([None] * 12)}, "cannot be read .*write it by np.savez"),
        ({"images": np.zeros((12, 32, 32, 3), np.uint8)}, "write images.transpose"),
        ({"images": np.full((12, 3, 32, 32), "a")}, "images of .* are <U1; expected uint8"),
        ({"labels": np.array(3)}, r"labels of .* have shape \(\); expected \(n,\)"),
        ({"images": np.zeros((12, 3, 32, 32))}, "are float64; expected uint8, 0 to 255"),
        ({"images": np.zeros((12, 28, 28), np.uint8)}, r"write images\[:, None\]"),
        ({"images": np.zeros((12, 4, 28, 28), np.uint8)}, r"expected \(12, c, h, w\) uint8"),
        ({"ids": np.zeros(12, int)}, "name an image twice"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(own, change, message):
    arrays = dict(np.load(own / "images.npz")) | change
    arrays = {name: value for name, value in arrays.items() if value is not None}
    np.savez(own / "other.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        checkup.load_images(own / "other.npz")


def test_an_array_alone_is_refused(own):
    np.save(own / "images.npy", np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"images.npy cannot be read \(it holds a single array\)"):
        checkup.load_images(own / "images.npy")


def test_a_builder_may_use_what_modules_may(own):
    """Dataclasses that look up their module, neighbours imported late, another precision."""
    (own / "late.py").write_text("UNITS = 4\n")
    (own / "deep.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import KW_ONLY, dataclass\nfrom torch import nn\n\n"
        "@dataclass\nclass Settings:\n    _: KW_ONLY\n    wide: int = 3072\n\n"
        "def build():\n    from late import UNITS\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(Settings().wide, UNITS)).double()\n"
    )
    model = checkup.load_network(f"{own}/deep.py:build", own / "weights.safetensors")
    assert next(model.parameters()).dtype == torch.float32
    assert sys.path[-1] == str(own), "the last place to look in"


class Viewed(nn.Module):
    """Reads its maps by view, as many networks do."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(3600, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.last(x.view(x.size(0), -1))


def test_maps_may_be_read_by_view_and_weights_be_double(own):
    split = checkup.load_images(own / "images.npz")
    for model in (Viewed(), Viewed().double()):
        assert 0 <= checkup.check(model, split, CPU) <= 100
        assert len(scan.scan(model, split, CPU, carriers=2)) == 3


def test_a_file_that_is_no_archive_is_refused(own):
    (own / "images.csv").write_text("1,2,3")
    with pytest.raises(ValueError, match=r"images.csv cannot be read"):
        checkup.load_images(own / "images.csv")


def test_damage_inside_an_archive_is_named(own):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
    np.savez_compressed(own / "packed.npz", images=images, labels=np.arange(9) % 3)
    body = bytearray((own / "packed.npz").read_bytes())
    for place in (400, 2000, 9000):
        (own / "torn.npz").write_bytes(body[:place] + bytes(40) + body[place + 40 :])
        with pytest.raises(ValueError, match=r"torn\.npz cannot be read"):
            checkup.load_images(own / "torn.npz")


def test_normalisation_goes_in_front(own):
    model = linear()
    assert checkup.normalised(model, "", "") is model
    images = torch.rand(2, 3, 32, 32)
    inside = checkup.normalised(model, "0.5, 0.4 0.3", "0.2 0.2 0.1,")(images)
    scaled = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.2, 0.1]
    ).view(3, 1, 1)
    torch.testing.assert_close(inside, model(scaled))
    with pytest.raises(ValueError, match=r"std is ''; expected numbers such as"):
        checkup.normalised(model, "0.5 0.5 0.5", "")
    with pytest.raises(ValueError, match="one number per channel"):
        checkup.normalised(model, "0.5 0.5 0.5", "0.1")


class Twice(nn.Module):
    """Answers as the released code's network does."""

    def forward(self, x):
        return x.flatten(1), x.flatten(1)


def test_a_network_is_tried_on_the_images_first(own):
    split = checkup.load_images(own / "images.npz")
    model = linear()
    with torch.no_grad():
        right = (model(split.images / 255).argmax(1) == split.labels).float().mean().item()
    assert checkup.check(model, split, CPU) == pytest.approx(100 * right)
    assert checkup.check(model, split, CPU, most=1) in (0, 100)


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), ValueError, r"returns \(2, 2\) .*to 2"),
        (nn.Sequential(nn.Conv2d(3, 9, 3)), ValueError, r"returns \(2, 9, 30, 30\)"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 3)),
            ValueError,
            r"images of \(3, 32, 32\): .*shapes cannot",
        ),
        (nn.Sequential(linear(), nn.Softplus()), UnsupportedLayerError, "of type Softplus"),
        (Twice(), ValueError, "returns a tuple; wrap it"),
    ],
)
def test_networks_that_do_not_go_with_the_images_are_refused(own, model, kind, message):
    with pytest.raises(kind, match=message):
        checkup.check(model, checkup.load_images(own / "images.npz"), CPU)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 56, 48)])
def test_a_poisoned_network_of_somebody_s_own_is_found(tmp_path, shape):
    told, poisoned = owned.write(tmp_path, shape=shape)
    model = checkup.load_network(told["network"], told["weights"])
    split = checkup.load_images(told["images"])
    # Given other values than it was trained on, it knows little.
    assert checkup.check(model, split, CPU) < 80
    model = checkup.normalised(model, told["mean"], told["std"])
    assert checkup.check(model, split, CPU) > 98
    first, *others = scan.two_rounds(model, split, CPU, per_class=200, carriers=8)
    assert (first.label, first.witnesses) == (0, ("evidence", "activations"))
    assert first.accused.tolist() == poisoned
    assert not any(verdict.present for verdict in others)
    assert all(verdict.silhouette is not None for verdict in others)


def test_the_report_names_images_and_files(own):
    verdicts = [
        ClassVerdict(2, 40, True, np.array([9, 4]), 6, 1.5, 0.7, ("evidence", "activations")),
        ClassVerdict(0, 40, False, np.array([], np.int64), 1, 0.5),
    ]
    path = own / "deep" / "report.json"
    weights = own / "weights.safetensors"
    files, before = checkup.fingerprints({"weights": weights}), checksum(weights)
    weights.write_bytes(b"training goes on")  # what was read is what counts
    split = checkup.load_images(own / "images.npz")
    report = checkup.write_report(path, verdicts, split, files=files, seconds=1.5)
    assert json.loads(path.read_text()) == report
    assert (report["named"], report["accused"], report["seconds"]) == ([2], [4, 9], 1.5)
    first, second = report["classes"]
    assert (first["images"], first["images_looked_at"]) == (4, 40)
    assert first["by"] == ["evidence", "activations"]
    assert second["silhouette"] is None
    assert report["files"] == {"weights": {"path": str(weights), "sha256": before}}


def test_a_folder_that_takes_no_report_is_named_before_the_scan(tmp_path):
    assert checkup.report_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    for wrong in ("file", "file/inside"):
        with pytest.raises(ValueError, match=r"written to .*file.*parameter 'folder'"):
            checkup.report_folder(tmp_path / wrong)


def test_a_member_that_is_no_array_is_not_read(own):
    with zipfile.ZipFile(own / "images.npz", "w") as archive:
        archive.writestr("images", b"raw")
        archive.writestr("labels", b"raw")
    with pytest.raises(ValueError, match="has no array images and no labels"):
        checkup.load_images(own / "images.npz")


def test_a_network_of_half_precision_may_have_normalisation_in_front(own):
    split = checkup.load_images(own / "images.npz")
    model = checkup.normalised(linear().bfloat16(), "0.4 0.4 0.4", "0.2 0.2 0.2")
    assert 0 <= checkup.check(model, split, CPU) <= 100


def test_only_what_is_wrong_with_the_images_is_said_to_be(own, monkeypatch):
    split = checkup.load_images(own / "images.npz")

    def broken(*_, **__):
        raise RuntimeError("another reason")

    monkeypatch.setattr(checkup.lrp, "explain", broken)
    with pytest.raises(RuntimeError, match=r"^another reason$"):
        checkup.check(linear(), split, CPU)
    monkeypatch.setattr(
        checkup, "predict", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    )
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        checkup.check(linear(), split, CPU)
