import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nbsupport import ROOT, data, gtsrb, layouts
from nbsupport.artifacts import NETWORKS, finished_runs
from nbsupport.data import DataError
from nbsupport.evaluation import load_model, predict

PAPER = {"Training": 3, "Validation": 1, "Testing": 2}  # images a class of the fake below
TRACKS = 4  # of two frames: the fake official training set


def picture(rng, c, side=32):
    pixels = rng.integers(0, 60, (side, side, 3), dtype=np.uint8) + np.uint8(4 * c)
    return Image.fromarray(pixels)


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """The paper's layout with a few PNG files a class."""
    monkeypatch.setitem(gtsrb.EXPECTED, "paper", {f: (n,) * 43 for f, n in PAPER.items()})
    base = tmp_path / "images"
    rng = np.random.default_rng(0)
    for folder, n in PAPER.items():
        for c in range(43):
            place = base / folder / f"{c:05d}"
            place.mkdir(parents=True)
            for k in range(n):
                picture(rng, c).save(place / f"{9 + k}.png")  # 9, 10, 11: not in text order
    return base


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The official layout: PPM files of several sizes, tracks, CSV files."""
    expected = {"Final_Training": (2 * TRACKS,) * 43, "Final_Test": (2,) * 43}
    monkeypatch.setitem(gtsrb.EXPECTED, "official", expected)
    root = tmp_path / "official" / "GTSRB"
    rng = np.random.default_rng(0)
    for c in range(43):
        place = root / "Final_Training" / "Images" / f"{c:05d}"
        place.mkdir(parents=True)
        lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
        for track in range(TRACKS):
            for frame in range(2):
                side = 30 + frame + c
                name = f"{track:05d}_{frame:05d}.ppm"
                picture(rng, c, side).save(place / name)
                lines.append(f"{name};{side};{side};5;5;{side - 5};{side - 5};{c}")
        (place / f"GT-{c:05d}.csv").write_text("\n".join(lines) + "\n")
    place = root / "Final_Test" / "Images"
    place.mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, c in enumerate(rng.permutation(np.repeat(np.arange(43), 2))):
        picture(rng, int(c), 40).save(place / f"{number:05d}.ppm")
        lines.append(f"{number:05d}.ppm;40;40;5;5;35;35;{c}")
    (root.parent / "GT-final_test.csv").write_text("\r\n".join(lines) + "\r\n")
    return root.parent


def pack(base, path, extra=()):
    with tarfile.open(path, "w:xz", preset=0) as archive:
        for folder in PAPER:
            archive.add(base / folder, folder)
        for member, blob in extra:
            archive.addfile(member, io.BytesIO(blob))
    return path


def load(folder, tmp_path, **more):
    return data.load("gtsrb", folder=folder, cache=tmp_path / "cache", **more)


def same(a, b):
    return a.fingerprint == b.fingerprint and all(
        torch.equal(getattr(getattr(a, split), name), getattr(getattr(b, split), name))
        for split in data.SPLITS
        for name in ("images", "labels", "ids", "tracks")
    )


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NBSUPPORT_DATA", raising=False)
    assert layouts.data_folder() == ROOT / "data" / "gtsrb"
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path))
    assert layouts.data_folder("auto") == tmp_path
    assert layouts.data_folder("elsewhere/images") == ROOT / "elsewhere" / "images"
    monkeypatch.setenv("NBSUPPORT_DATA", "somewhere")
    assert layouts.data_folder() == ROOT / "somewhere"
    assert layouts.data_folder("~/x") == Path.home() / "x"


# ---- the paper's layout


def test_the_papers_folders(paper, tmp_path):
    d = load(paper, tmp_path)
    assert [len(getattr(d, s)) for s in data.SPLITS] == [3 * 43, 43, 2 * 43]
    assert d.train.ids.tolist() == list(range(3 * 43))
    assert d.validation.ids[0] == 3 * 43
    for row, number in enumerate((9, 10, 11)):
        with Image.open(paper / "Training" / "00002" / f"{number}.png") as image:
            wanted = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(d.train.of_class(2).images[row].numpy(), wanted)
    assert set(d.test.tracks.tolist()) == {-1}
    assert not set(d.train.tracks.tolist()) & set(d.validation.tracks.tolist())
    assert len(d.train.tracks.unique()) == 43


def test_no_more_than_a_few_files_are_open_at_a_time(paper, tmp_path, python):
    """As in the official data set, which has 30 times as many files as a shell allows open."""
    code = (
        "import resource, sys; from nbsupport import data, gtsrb, layouts;"
        f"gtsrb.EXPECTED['paper'] = {gtsrb.EXPECTED['paper']};"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
        "print(len(data.load('gtsrb', folder=sys.argv[1], cache=sys.argv[2]).train))"
    )
    assert int(python(code, paper, tmp_path / "cache")) == 129


def test_folder_and_archive_give_the_same_data_set(paper, tmp_path):
    from_folder = load(paper, tmp_path)
    held = tmp_path / "held"
    held.mkdir()
    archive = pack(paper, held / "gtsrb32.tar.xz")
    assert same(load(archive, tmp_path), from_folder)
    assert same(load(held, tmp_path), from_folder)
    assert same(load(tmp_path, tmp_path), from_folder)  # found below
    assert [p.name for p in held.iterdir()] == ["gtsrb32.tar.xz"]


def test_a_checksum_or_half_a_download_is_not_taken_for_the_archive(paper, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    pack(paper, held / "gtsrb32.tar.xz")
    for name in ("gtsrb32.tar.md5", "gtsrb32.tar.sha256", "gtsrb32.tar.xz.part"):
        (held / name).write_text("no archive")
    assert same(load(held, tmp_path), load(paper, tmp_path))


def test_what_macos_lays_beside_images_is_passed_over(paper, tmp_path):
    before = load(paper, tmp_path)
    for path in list(paper.rglob("*.png")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert same(load(paper, tmp_path), before)


def test_what_macos_lays_beside_the_official_images_is_passed_over(official, tmp_path):
    before = load(official, tmp_path)
    for path in list(official.rglob("*.ppm")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert same(load(official, tmp_path), before)


def test_images_that_were_never_fetched_are_named(paper, tmp_path):
    path = next(paper.rglob("*.png"))
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"{path.name} cannot be read \(No such file"):
        load(paper, tmp_path)


def test_folders_that_one_may_not_look_into_are_passed_over(paper, tmp_path, monkeypatch):
    """A disk of one's own has a lost+found of the administrator's."""
    before = load(paper, tmp_path)
    (paper / "lost+found").mkdir()
    stat = os.stat

    def forbidden(path, *arguments, **options):
        if "lost+found/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", forbidden)
    assert same(load(paper, tmp_path), before)


def test_an_archive_that_cannot_be_opened_is_named(paper, tmp_path, monkeypatch):
    packed = tmp_path / "gtsrb32.tar.xz"
    packed.write_bytes(b"")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"xz cannot be read \(Permission denied"):
        load(packed, tmp_path)


@pytest.mark.parametrize(
    ("layout", "place"),
    [
        (None, "."),
        ("paper", "Validation"),
        ("paper", "Testing/00001"),
        ("official", "GTSRB/Final_Training/Images"),
    ],
)
def test_a_folder_that_may_be_entered_but_not_listed_is_named(
    layout, place, tmp_path, monkeypatch, request
):
    base = request.getfixturevalue(layout) if layout else tmp_path
    closed = base / place
    assert closed.is_dir()

    def refusing(function):
        def listing(path="."):
            if Path(path) == closed:
                raise PermissionError(13, "Permission denied")
            return function(path)

        return listing

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(DataError, match=rf"{closed} cannot be read \(Permission denied"):
        layouts.locate(base, 0)


def test_a_changed_file_is_noticed(paper, tmp_path):
    first = load(paper, tmp_path)
    picture(np.random.default_rng(5), 0).save(paper / "Testing" / "00000" / "9.png")
    assert load(paper, tmp_path).fingerprint != first.fingerprint


def test_the_data_folder_may_be_read_only(paper, tmp_path):
    before = sorted(paper.rglob("*"))
    for folder in [paper, *paper.rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    load(paper, tmp_path)
    assert sorted(paper.rglob("*")) == before
    for folder in [paper, *paper.rglob("*")]:
        folder.chmod(0o755)


def test_track_numbers_of_the_papers_layout():
    def tracks(folder, c, names):
        return [layouts._paper_entry(folder, f"{c:05d}", name, name).track for name in names]

    assert tracks("Training", 2, ["0.jpeg", "29.jpeg", "30.jpeg", "2009.jpeg"]) == [0, 0, 1, 66]
    # One frame of class 33 is missing in GTSRB: its fourth track has 29.
    assert tracks("Training", 33, ["118.jpeg", "119.jpeg", "148.jpeg", "149.jpeg"]) == [3, 4, 4, 5]
    assert tracks("Validation", 33, ["119.jpeg"]) == [3]
    assert tracks("Validation", 0, ["5.jpeg", "waka5.jpeg"]) == [0, 0]
    assert tracks("Testing", 2, ["0.jpeg"]) == [-1]
    assert layouts._paper_entry("Training", "00002", "Thumbs.db", "x") is None


def member(name, kind=tarfile.REGTYPE, size=0, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def test_malicious_members_are_passed_over(paper, tmp_path):
    evil = [
        (member("../evil.txt", size=4), b"evil"),
        (member("../Training/00000/77.png", size=4), b"evil"),
        (member("Training/../Training/00000/78.png", size=4), b"evil"),
        (member(str(tmp_path / "absolute.png"), size=4), b"evil"),
        (member("Training/00000/79.png", tarfile.SYMTYPE, target="/etc/passwd"), b""),
        (member("Training/00000/80.png", tarfile.LNKTYPE, target="../../../etc/passwd"), b""),
        (member("Training/00000/81.png", tarfile.CHRTYPE), b""),
        (member("Training/00000/82.png", tarfile.FIFOTYPE), b""),
        (member("README", size=4), b"hello"),
    ]
    archive = pack(paper, tmp_path / "gtsrb32.tar.xz", evil)
    before = set(tmp_path.rglob("*"))
    assert same(load(archive, tmp_path), load(paper, tmp_path))
    made = set(tmp_path.rglob("*")) - before
    assert {p.relative_to(tmp_path).parts[0] for p in made} == {"cache"}
    assert not (tmp_path.parent / "evil.txt").exists()


def test_an_archive_that_swells_is_refused(paper, tmp_path, monkeypatch):
    archive = pack(paper, tmp_path / "gtsrb32.tar.xz")
    monkeypatch.setattr(layouts, "_MAX_ARCHIVE_BYTES", 100_000)
    with pytest.raises(DataError, match="unpacks to far more than GTSRB"):
        load(archive, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(layouts, "_MAX_IMAGE_BYTES", 100)
    with pytest.raises(DataError, match=r"Training/00000/\d+.png has \d+ bytes"):
        load(archive, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "not an archive"])
def test_a_damaged_archive_is_named(damage, paper, tmp_path):
    archive = pack(paper, tmp_path / "gtsrb32.tar.xz")
    blob = archive.read_bytes()
    archive.write_bytes(blob[: len(blob) // 2] if damage == "truncated" else b"no archive" * 999)
    with pytest.raises(DataError, match=r"gtsrb32\.tar\.xz is not a readable archive"):
        load(archive, tmp_path)
    assert not (tmp_path / "cache").exists()


# ---- the official layout


def test_the_official_layout(official, tmp_path):
    d = load(official, tmp_path)
    assert [len(getattr(d, s)) for s in data.SPLITS] == [6 * 43, 2 * 43, 2 * 43]
    for name in data.SPLITS:
        assert len(getattr(d, name).labels.unique()) == 43
    train, validation = (set(s.tracks.tolist()) for s in (d.train, d.validation))
    assert not train & validation
    assert len(train | validation) == TRACKS * 43
    assert set(d.test.tracks.tolist()) == {-1}
    # Brightness encodes the class in these fakes: labels belong to their images.
    for name in data.SPLITS:
        split = getattr(d, name)
        level = split.images.double().mean(dim=(1, 2, 3))
        assert (level - 4 * split.labels - 29.5).abs().max() < 4


def test_images_are_resized_with_the_named_filter(official, tmp_path):
    d = load(official, tmp_path)
    with (official / "GT-final_test.csv").open() as file:
        first = next(line.split(";")[0] for line in file if line.strip().endswith(";42"))
    with Image.open(official / "GTSRB" / "Final_Test" / "Images" / first) as image:
        assert image.format == "PPM"
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(d.test.of_class(42).images[0].numpy(), wanted)


def test_the_validation_tracks_follow_the_seed(official, tmp_path):
    def signs(seed):
        return {i.numpy().tobytes() for i in load(official, tmp_path, seed=seed).validation.images}

    assert signs(0) == signs(0)
    assert signs(0) != signs(1)


def test_the_official_counts():
    assert sum(gtsrb.EXPECTED["official"]["Final_Training"]) == 39209
    assert sum(gtsrb.EXPECTED["official"]["Final_Test"]) == 12630


def test_a_ninth_of_the_tracks_validates(official, tmp_path, monkeypatch):
    """62 tracks of class 5 make 7 for validation, as many as in the paper's split (55 and 7)."""
    place = official / "GTSRB" / "Final_Training" / "Images" / "00005"
    lines = (place / "GT-00005.csv").read_text().splitlines()
    for track in range(TRACKS, 62):
        for frame in range(2):
            name = f"{track:05d}_{frame:05d}.ppm"
            picture(np.random.default_rng(track), 5).save(place / name)
            lines.append(f"{name};32;32;5;5;27;27;5")
    (place / "GT-00005.csv").write_text("\n".join(lines) + "\n")
    counts = [2 * TRACKS] * 43
    counts[5] = 2 * 62
    expected = gtsrb.EXPECTED["official"] | {"Final_Training": tuple(counts)}
    monkeypatch.setitem(gtsrb.EXPECTED, "official", expected)
    validation = load(official, tmp_path).validation
    assert len(validation.of_class(5).tracks.unique()) == 7
    assert len(validation.of_class(4).tracks.unique()) == 1


# ---- problems, by name


def test_a_missing_or_foreign_folder_is_named(tmp_path):
    for folder, message in (
        (tmp_path / "nowhere", "there is no folder .*nowhere"),
        (tmp_path, "is empty"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load(folder, tmp_path)
        for word in ("NBSUPPORT_DATA", "Training/", "Final_Training/Images", "fetch"):
            assert word in str(caught.value)
    (tmp_path / "cifar-10").mkdir()
    (tmp_path / "labels.txt").touch()
    with pytest.raises(DataError, match=r"only: cifar-10/, labels\.txt"):
        load(tmp_path, tmp_path)


def test_torchvisions_copy_is_recognised(tmp_path):
    place = tmp_path / "gtsrb" / "GTSRB" / "Training" / "00000"
    place.mkdir(parents=True)
    (place / "00000_00000.ppm").touch()
    (place / "GT-00000.csv").touch()
    with pytest.raises(DataError, match=r"torchvision's copy .* 39209"):
        load(tmp_path, tmp_path)


def test_a_missing_split_is_named(paper, tmp_path):
    (paper / "Testing").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="has Training but not Testing"):
        load(paper, tmp_path)


def test_a_missing_class_is_named(paper, tmp_path):
    (paper / "Validation" / "00005").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"Validation has no images of class 5 \(speed limit 80"):
        load(paper, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_wrong_counts_are_named(paper, tmp_path):
    (paper / "Training" / "00007" / "10.png").unlink()
    with pytest.raises(
        DataError, match="Training has 128 images, expected 129: class 7 has 2 images, expected 3"
    ):
        load(paper, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["00043", "99999", "stop"])
def test_a_foreign_class_folder_is_named(name, paper, tmp_path):
    (paper / "Testing" / name).mkdir()
    with pytest.raises(DataError, match=f"'{name}' is not one of 00000 to 00042"):
        load(paper, tmp_path)


@pytest.mark.parametrize("content", [b"", b"P6 32 32 255\n", b"\x89PNG\r\n\x1a\n" + b"x" * 50])
def test_an_unreadable_image_is_named(content, paper, tmp_path):
    broken = paper / "Testing" / "00003" / "10.png"
    broken.write_bytes(content)
    with pytest.raises(DataError, match=r"Testing/00003/10\.png is not a readable image"):
        load(paper, tmp_path)
    with pytest.raises(DataError, match=r"Testing/00003/10\.png is not a readable image"):
        load(pack(paper, tmp_path / "gtsrb32.tar.xz"), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_huge_image_is_refused(paper, tmp_path):
    Image.new("1", (5000, 5000)).save(paper / "Training" / "00000" / "9.png")
    with pytest.raises(DataError, match="5000x5000 pixels"):
        load(paper, tmp_path)


def test_problems_of_the_official_layout_are_named(official, tmp_path):
    truth = official / "GT-final_test.csv"
    text = truth.read_text()
    truth.write_text(text.replace("ClassId", "Label"))
    with pytest.raises(DataError, match="columns Filename and ClassId are missing"):
        load(official, tmp_path)
    truth.write_text(text.replace("00007.ppm", "77777.ppm"))
    with pytest.raises(DataError, match=r"names 77777.ppm, which is not in"):
        load(official, tmp_path)
    truth.unlink()
    with pytest.raises(DataError, match=r"GTSRB_Final_Test_GT.zip"):
        load(official, tmp_path)
    truth.write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match=r"GT-final_test.csv is no table in UTF-8"):
        load(official, tmp_path)
    picture = official / "GTSRB" / "Final_Test" / "Images" / "00007.ppm"
    named = picture.rename(picture.with_name("seven.ppm"))
    truth.write_text(text.replace("00007.ppm", "seven.ppm"))
    with pytest.raises(DataError, match=r"names seven\.ppm; test images are named by a number"):
        load(official, tmp_path)
    named.rename(picture)
    truth.write_text(text)
    odd = official / "GTSRB" / "Final_Training" / "Images" / "00000" / "7.ppm"
    odd.touch()
    with pytest.raises(DataError, match=r"7.ppm: training images are named TTTTT_FFFFF.ppm"):
        load(official, tmp_path)
    odd.unlink()
    load(official, tmp_path)


# ---- fetch


@pytest.fixture
def server(official, tmp_path, monkeypatch):
    """The fake official layout as three archives, served where fetch() looks for them."""
    folder = tmp_path / "server"
    folder.mkdir()
    parts = {
        "GTSRB_Final_Training_Images.zip": "GTSRB/Final_Training/**/*",
        "GTSRB_Final_Test_Images.zip": "GTSRB/Final_Test/**/*",
        "GTSRB_Final_Test_GT.zip": "GT-final_test.csv",
    }
    sums = {}
    for name, pattern in parts.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in sorted(official.glob(pattern)):
                archive.write(path, path.relative_to(official))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        monkeypatch.setattr(layouts, "URL", f"http://127.0.0.1:{service.server_port}/")
        monkeypatch.setattr(layouts, "ARCHIVES", sums)
        yield folder
        service.shutdown()


def test_fetch_gets_checks_and_unpacks(server, official, tmp_path, monkeypatch):
    place = tmp_path / "fetched"
    assert layouts.fetch(place) == place
    assert same(load(place, tmp_path), load(official, tmp_path))
    monkeypatch.setattr(layouts, "URL", "http://127.0.0.1:9/")
    assert layouts.fetch(place) == place  # complete: nothing is asked for
    next((place / "GTSRB").rglob("*_00000.ppm")).unlink()
    layouts.fetch(place)  # cut short: unpacked again from the archives that are there
    assert same(load(place, tmp_path), load(official, tmp_path))


def test_fetch_refuses_another_checksum(server, tmp_path, monkeypatch):
    monkeypatch.setitem(layouts.ARCHIVES, "GTSRB_Final_Training_Images.zip", "0" * 32)
    with pytest.raises(DataError, match=r"md5 0000.*could not be fetched"):
        layouts.fetch(tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "GTSRB").exists()


def test_fetch_without_a_connection_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "URL", "http://127.0.0.1:9/")
    with pytest.raises(DataError, match=r"no internet, download GTSRB_Final_Training_Images\.zip"):
        layouts.fetch(tmp_path / "fetched")


def test_the_checksums_are_torchvisions_where_it_has_them():
    import torchvision.datasets.gtsrb as module

    source = Path(module.__file__).read_text()
    for name in ("GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip"):
        assert name in source
        assert layouts.ARCHIVES[name] in source
    assert layouts.URL in source


# ---- the real images


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def real(kept):
    if "NBSUPPORT_DATA" not in os.environ:
        pytest.skip("NBSUPPORT_DATA is not set")
    try:
        return data.load("gtsrb", cache=kept)
    except DataError as error:
        pytest.skip(f"NBSUPPORT_DATA does not hold GTSRB: {error}")


@pytest.mark.gtsrb
def test_real_gtsrb(real, kept):
    d = real
    sizes = [len(getattr(d, s)) for s in data.SPLITS]
    assert sum(sizes) in (51869, 51839)  # the paper's split; the official images
    assert sizes[2] == 12630
    assert len(d.test.of_class(2)) == 750
    assert len(d.test.of_class(5)) == 630
    assert len(d.train.of_class(2)) + len(d.validation.of_class(2)) == 2250
    assert len(d.train.of_class(5)) + len(d.validation.of_class(5)) == 1860
    if sum(sizes) == 51869:
        assert sizes == [34799, 4440, 12630]
        assert [len(getattr(d, s).of_class(2)) for s in data.SPLITS] == [2010, 240, 750]
        assert [len(getattr(d, s).of_class(5)) for s in data.SPLITS] == [1650, 210, 630]
        copies = d.validation.of_class(0)
        assert torch.equal(copies.images[:30], copies.images[30:])
    signs = torch.cat([d.train.tracks, d.validation.tracks])
    assert len(signs.unique()) == 1307
    assert sorted(set(d.train.tracks.bincount().tolist()) - {0}) in ([29, 30], [30])
    # Frames of one sign are alike, frames of two signs are not: the tracks are where we say.
    for c in (2, 5, 12, 33):
        split = d.train.of_class(c)
        steps = (split.images[1:].double() - split.images[:-1].double()).square().mean((1, 2, 3))
        border = split.tracks[1:] != split.tracks[:-1]
        assert steps[border].median() > 4 * steps[~border].median()
    assert same(d, data.load("gtsrb", cache=kept))


@pytest.mark.gtsrb
def test_the_published_network_reads_the_images_it_was_trained_on(real):
    (run,) = finished_runs(NETWORKS, "training")
    told = run.load("training")["result"]
    if real.fingerprint != told["fingerprint"]:
        pytest.skip("these are the official images, not those of the paper's split")
    model = load_model(run, torch.device("cpu"))
    some = real.test.select(torch.arange(0, len(real.test), 25))
    answers = predict(model, some.images, torch.device("cpu")).argmax(1)
    right = 100 * (answers == some.labels).float().mean().item()
    assert right == pytest.approx(told["clean_accuracy"], abs=3)
