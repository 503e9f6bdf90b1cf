import errno
import json
import math
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nbsupport import artifacts
from nbsupport.artifacts import (
    STAGES,
    ArtifactError,
    Run,
    atomic,
    checksum,
    finished_runs,
    write_json,
)
from nbsupport.scenarios import PROFILES, Profile, Scenario

ARRAYS = {"ids": np.arange(5), "scores": np.linspace(0, 1, 5), "names": np.array(["a", "bc"])}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "runs", PROFILES["tiny"], Scenario())


@pytest.fixture
def saved(run):
    run.save("attack", ARRAYS, {"n": 3})
    return run


def test_a_record_names_its_inputs_as_they_were_read(saved, monkeypatch):
    """Another process may make them anew while this one computes."""
    monkeypatch.setattr(artifacts, "_READ", {})
    saved.arrays("attack")
    payload, record = saved.payload("attack"), saved.path("attack")
    kept, before = {path: path.read_bytes() for path in (payload, record)}, checksum(payload)

    def made_anew():
        with monkeypatch.context() as there:
            there.setattr(artifacts, "_READ", {})
            saved.save("attack", ARRAYS | {"ids": np.arange(9)}, {})
        assert saved.load("attack"), "to look at the record is not to read the arrays"

    for change in (made_anew, payload.unlink):
        change()
        saved.save("training", {"w": torch.ones(2)}, {}, made_from=((saved, "attack"),))
        with pytest.raises(ArtifactError, match=r"stale|which is missing"):
            saved.load("training")
        for path, content in kept.items():
            path.write_bytes(content)
        assert saved.load("training")["made_from"] == {"attack.npz": before}


def leftovers(folder):
    return sorted(path.name for path in folder.rglob(".*"))


def test_arrays_and_record_come_back(run):
    path = run.save(
        "attack", ARRAYS, {"n": 3}, parameters={"profile": "tiny"}, seconds=1.23456, device="cuda"
    )
    assert path == run.runs / "tiny" / "standard-s3-p15-r0" / "attack.json"
    record = run.load("attack")
    assert record["result"] == {"n": 3}
    assert record["parameters"] == {"profile": "tiny"}
    assert (record["seconds"], record["device"]) == (1.235, "cuda")
    assert record["libraries"]["numpy"] == np.__version__
    assert record["payload"] == {"attack.npz": checksum(run.payload("attack"))}
    arrays = run.arrays("attack")
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    assert leftovers(run.folder) == []


def test_weights_come_back(run):
    weights = {"a": torch.randn(3, 4).T, "steps": torch.tensor(7), "half": torch.ones(2).bfloat16()}
    run.save("training", weights, {})
    found = run.weights()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_record_holds_plain_json(run):
    record = {
        "rate": np.float32("nan"),
        "rates": [math.inf, np.array([1.5, math.nan])],
        "n": np.int64(3),
        "took": np.bool_(True),
        "scenario": Scenario(),
        "profile": PROFILES["demo"],
        "folder": Path("data"),
        5: ("a", None),
    }
    run.save("attack", {}, record)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = run.path("attack").read_text()
    assert json.loads(text, parse_constant=refuse)["result"] == run.load("attack")["result"]
    assert run.load("attack")["result"] == {
        "rate": None,
        "rates": [None, [1.5, None]],
        "n": 3,
        "took": True,
        "scenario": "standard-s3-p15-r0",
        "profile": "demo",
        "folder": "data",
        "5": ["a", None],
    }


def test_record_of_other_types_is_refused_without_a_trace(saved):
    before = saved.path("attack").read_bytes(), saved.payload("attack").read_bytes()
    with pytest.raises(TypeError, match=r"set.*does not fit"):
        saved.save("attack", {"ids": np.arange(9)}, {"classes": {1, 2}})
    assert (saved.path("attack").read_bytes(), saved.payload("attack").read_bytes()) == before
    assert leftovers(saved.folder) == []


def test_objects_are_refused_because_they_would_be_pickled(run):
    with pytest.raises(TypeError, match=r"'bad'.*Python objects"):
        run.save("attack", {"good": np.arange(3), "bad": np.array([None, "x"], dtype=object)}, {})
    assert [p.name for p in run.folder.iterdir()] == []


def test_pickles_are_not_read(saved):
    with open(saved.payload("attack"), "wb") as file:
        np.savez(file, ids=np.array([print], dtype=object))
    body = json.loads(saved.path("attack").read_text())
    body.pop("checksum")
    body["payload"]["attack.npz"] = checksum(saved.payload("attack"))
    body["checksum"] = artifacts._digest(body)
    saved.path("attack").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        saved.arrays("attack")


def edit_number(run):
    text = run.path("attack").read_text()
    assert text.count('"n": 3') == 1
    run.path("attack").write_text(text.replace('"n": 3', '"n": 4'))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "record missing": (lambda run: run.path("attack").unlink(), "attack.json is missing"),
    "record truncated": (lambda run: halve(run.path("attack")), "attack.json is truncated"),
    "record empty": (lambda run: run.path("attack").write_text(""), "attack.json is truncated"),
    "record a list": (lambda run: run.path("attack").write_text("[1]"), "attack.json.* no record"),
    "record null": (lambda run: run.path("attack").write_text("null"), "attack.json.* no record"),
    "record binary": (
        lambda run: run.path("attack").write_bytes(b"\xff\xfe"),
        "attack.json is truncated",
    ),
    "record edited": (edit_number, "attack.json was edited"),
    "arrays missing": (lambda run: run.payload("attack").unlink(), "attack.npz is missing"),
    "arrays truncated": (lambda run: halve(run.payload("attack")), "attack.npz is .*truncated"),
    "arrays empty": (
        lambda run: run.payload("attack").write_bytes(b""),
        "attack.npz is .*truncated",
    ),
    "arrays edited": (
        lambda run: flip_byte(run.payload("attack")),
        "attack.npz is .*not what attack.json describes",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_the_command_that_mends_it(saved, kind):
    assert saved.has("attack")
    damage, complaint = DAMAGES[kind]
    damage(saved)
    for read in (saved.load, saved.arrays):
        with pytest.raises(ArtifactError, match=complaint) as error:
            read("attack")
        assert str(saved.folder) in str(error.value)
        assert saved.command("attack") in str(error.value)
    assert not saved.has("attack")


@pytest.mark.parametrize("stage", STAGES)
def test_command_makes_the_stage(run, stage):
    whole, _, alone = run.command(stage).splitlines()
    assert whole.split() == [
        "make", STAGES[stage].make, "PROFILE=tiny", "SCENARIOS=standard-s3-p15-r0",
        f"RUNS={run.runs}",
        *([f"FILTERS={STAGES[stage].option}"] if "/training" in stage else []),
    ]  # fmt: skip
    words = alone.split()
    assert words[:3] == ["papermill", "--engine", "nbsupport"]
    assert words[3] == f"notebooks/{STAGES[stage].notebook}.ipynb"
    assert "-p scenario standard-s3-p15-r0 -p profile tiny" in alone
    assert f"-p runs {run.runs}" in alone


@pytest.mark.parametrize("stage", STAGES)
def test_stages_of_a_network_that_nobody_attacked(run, stage):
    clean = run.of(Scenario("clean", model="resnet"))
    with pytest.raises(ArtifactError, match=f"{stage}.json is missing") as error:
        clean.load(stage)
    told = str(error.value)
    if stage in ("attack", "training", "scan"):
        assert told.endswith(f"make it with\n{clean.command(stage)}")
        assert f"make {STAGES[stage].make} PROFILE=tiny SCENARIOS=clean-resnet-r0" in told
    else:
        # No command makes it: the workflow stops after training.
        assert "make it with" not in told
        assert f"is a network that nobody attacked and has no stage '{stage}'" in told
        assert "only attack, training, scan; name an attacked scenario" in told
    assert artifacts.wanted(clean.scenario) == ("attack", "training")
    assert artifacts.wanted(run.scenario) == artifacts.CHAIN


def test_changed_profile_makes_its_runs_stale(saved):
    changed = replace(saved, profile=replace(saved.profile, epochs=9))
    with pytest.raises(ArtifactError, match="stale: profile tiny has changed"):
        changed.load("attack")


def test_foreign_artefacts_are_refused(saved):
    other = saved.of(Scenario(repetition=1))
    shutil.copytree(saved.folder, other.folder)
    with pytest.raises(ArtifactError, match=r"belongs to scenario standard-s3-p15-r0, not \S+-r1"):
        other.load("attack")
    longer = Run(saved.runs, Profile.parse("tiny-epochs2"), saved.scenario)
    shutil.copytree(saved.folder, longer.folder)
    with pytest.raises(ArtifactError, match="belongs to profile tiny, not tiny-epochs2"):
        longer.load("attack")
    shutil.copy(saved.path("attack"), saved.path("relevance"))
    with pytest.raises(ArtifactError, match="belongs to stage attack, not relevance"):
        saved.load("relevance")


def test_foreign_arrays_are_refused(saved):
    other = saved.of(Scenario(repetition=1))
    other.save("attack", {"ids": np.arange(6)}, {"n": 3})
    shutil.copy(saved.payload("attack"), other.payload("attack"))
    with pytest.raises(ArtifactError, match=r"r1/attack\.npz is .*not what attack\.json describes"):
        other.arrays("attack")


def test_artefact_of_another_schema_is_refused(saved, monkeypatch):
    monkeypatch.setattr(artifacts, "SCHEMA", artifacts.SCHEMA + 1)
    with pytest.raises(ArtifactError, match="has schema 1, this edition reads 2") as error:
        saved.load("attack")
    assert saved.command("attack") in str(error.value)


def test_artefact_of_an_older_recipe_is_refused(saved, monkeypatch):
    newer = replace(artifacts.STAGES["attack"], version=7)
    monkeypatch.setitem(artifacts.STAGES, "attack", newer)
    with pytest.raises(ArtifactError, match=r"stale: it was made by version 1 .* has version 7"):
        saved.load("attack")


def test_stale_artefact_is_refused(saved):
    saved.save("training", {"w": torch.ones(2)}, {}, made_from=((saved, "attack"),))
    assert saved.has("training")
    saved.save("attack", {"ids": np.arange(4)}, {"n": 3})
    with pytest.raises(ArtifactError, match=r"training\.json is stale.*attack\.npz") as error:
        saved.weights()
    assert saved.command("training") in str(error.value)
    assert saved.has("attack")
    saved.payload("attack").unlink()
    with pytest.raises(
        ArtifactError, match=r"training.json was made from .*attack.npz, which is m"
    ):
        saved.load("training")


def test_what_was_made_from_other_images_is_stale(run):
    """The payload of a clean run holds no image, whatever it was made from."""
    run.save("attack", ARRAYS, {"fingerprint": "a" * 64})
    run.save(
        "training", {"w": torch.ones(2)}, {"fingerprint": "a" * 64}, made_from=((run, "attack"),)
    )
    assert run.has("training")
    run.save("attack", ARRAYS, {"fingerprint": "b" * 64})
    assert run.has("attack")
    with pytest.raises(ArtifactError, match=r"training\.json is stale: .*other images") as error:
        run.weights()
    assert run.command("training") in str(error.value)
    run.save("attack", ARRAYS, {"fingerprint": "a" * 64})
    assert run.has("training")


def test_rerun_with_the_same_arrays_makes_nothing_stale(saved):
    saved.save("training", {"w": torch.ones(2)}, {}, made_from=((saved, "attack"),))
    before = saved.path("attack").read_text()
    saved.save("attack", ARRAYS, {"n": 3}, seconds=99, device="cuda")
    assert saved.path("attack").read_text() != before
    assert torch.equal(saved.weights()["w"], torch.ones(2))


def test_folder_of_runs_can_be_moved(saved, tmp_path):
    clean = saved.of(saved.scenario.surrogate)
    clean.save("training", {"w": torch.ones(2)}, {})
    saved.save("attack", ARRAYS, {}, made_from=((clean, "training"),))
    saved.save("training", {"w": torch.zeros(2)}, {}, made_from=((saved, "attack"),))
    moved = tmp_path / "elsewhere" / "results"
    moved.parent.mkdir()
    shutil.move(saved.runs, moved)
    there = Run(moved, saved.profile, saved.scenario)
    assert there.has("training")
    assert there.arrays("attack").keys() == ARRAYS.keys()
    # One run may lie on another disk; what it was made from stays where it is by name.
    other = tmp_path / "another disk" / "run"
    other.parent.mkdir()
    shutil.move(there.folder, other)
    there.folder.symlink_to(other)
    assert there.has("attack")
    there.of(clean.scenario).save("training", {"w": torch.full((2,), 3.0)}, {})
    with pytest.raises(ArtifactError, match=r"attack\.json is stale.*clean-r0/model\.safetensors"):
        there.load("attack")


def test_same_arrays_give_the_same_bytes(run):
    other = run.of(Scenario(repetition=1))
    for each in (run, other):
        each.save("attack", ARRAYS, {})
        each.save("training", {"w": torch.arange(9.0), "v": torch.ones(2)}, {})
    for stage in ("attack", "training"):
        assert run.payload(stage).read_bytes() == other.payload(stage).read_bytes()
    with zipfile.ZipFile(run.payload("attack")) as archive:
        # The time of writing would differ tomorrow.
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np, torch
from nbsupport.artifacts import ArtifactError, Run
from nbsupport.scenarios import PROFILES, Scenario

run = Run(Path(sys.argv[1]), PROFILES["tiny"], Scenario())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).random(10_000)
errors = []
for stage, payload, record in (
    ("attack", {"ids": noise}, {}),
    ("attack", {"ids": noise[:2]}, {"curve": noise.tolist()}),
    ("training", {"w": torch.from_numpy(noise)}, {}),
):
    try:
        run.save(stage, payload, record)
        errors.append(None)
    except ArtifactError as error:
        errors.append(str(error))
print(json.dumps(errors))
"""


def test_full_disk_is_reported_and_old_artefacts_stay(saved, python):
    saved.save("training", {"w": torch.ones(2)}, {}, made_from=((saved, "attack"),))
    names = sorted(path.name for path in saved.folder.iterdir())
    errors = json.loads(python(FULL_DISK, saved.runs))
    for error in errors:
        assert "could not be written" in error
        assert str(saved.folder) in error
        assert "'runs'" in error
    assert sorted(path.name for path in saved.folder.iterdir()) == names
    assert np.array_equal(saved.arrays("attack")["ids"], ARRAYS["ids"])
    assert torch.equal(saved.weights()["w"], torch.ones(2))


def test_file_in_place_of_the_folder_is_reported(run):
    run.runs.write_text("not a folder")
    with pytest.raises(ArtifactError, match=r"attack could not be written.*'runs'"):
        run.save("attack", ARRAYS, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_reported(saved):
    saved.folder.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match=r"could not be written.*Permission"):
            saved.save("attack", {"ids": np.arange(9)}, {})
        assert np.array_equal(saved.arrays("attack")["ids"], ARRAYS["ids"])
    finally:
        saved.folder.chmod(0o700)


def test_refused_writing_is_reported(saved, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "replace", refuse)
        with pytest.raises(ArtifactError, match=r"attack could not be written.*Permission denied"):
            saved.save("attack", {"ids": np.arange(9)}, {})
    assert leftovers(saved.folder) == []
    assert np.array_equal(saved.arrays("attack")["ids"], ARRAYS["ids"])


def finish(run):
    """Leave all stages of a run, each made from the first."""
    run.save("attack", {"ids": np.arange(3)}, {})
    for stage in list(STAGES)[1:]:
        payload = {"w": torch.ones(1)} if stage == "training" else {}
        run.save(stage, payload, {}, made_from=((run, "attack"),))


def test_finished_runs_are_found_in_order(saved):
    expected = []
    for profile, ids in (
        ("demo", ["clean-r0"]),
        ("tiny", ["amplitude-a64-p33-r0", "standard-s3-p15-r0"]),
        ("tiny-epochs2", ["standard-s3-p15-r0"]),
    ):
        for text in ids:
            run = Run(saved.runs, Profile.parse(profile), Scenario.parse(text))
            finish(run)
            expected.append(run)
    assert finished_runs(saved.runs) == expected
    assert finished_runs(saved.runs, profile="tiny") == expected[1:3]
    # A verdict whose attack is gone, or has changed, is none.
    expected[0].path("attack").unlink()
    assert finished_runs(saved.runs) == expected[1:]
    expected[1].save("attack", {"ids": np.arange(2)}, {})
    assert finished_runs(saved.runs) == expected[2:]
    assert finished_runs(saved.runs, stage="attack") == expected[1:]
    assert finished_runs(saved.runs, stage="ablation") == expected[2:]
    assert finished_runs(saved.runs / "nowhere") == []


def test_a_clean_network_needs_no_detection_to_be_scanned(saved):
    clean, poisoned = saved.of(Scenario("clean")), saved.of(Scenario("standard", percent="33"))
    for run in (clean, poisoned):
        finish(run)
        run.save("scan", {"label": np.arange(2)}, {}, made_from=((run, "training"),))
        run.path("detection").unlink()
    assert finished_runs(saved.runs, stage="scan") == [clean]
    # What it does not need must be sound all the same where somebody asks for it.
    finish(clean)
    clean.path("relevance").unlink()
    assert finished_runs(saved.runs) == []
    clean.path("training").unlink()
    assert finished_runs(saved.runs, stage="scan") == []


def test_finished_runs_pass_over_foreign_and_damaged_folders(saved):
    finish(saved)
    for foreign in (
        "figures/standard-s3-p15-r0",
        "tiny/notes",
        "tiny/standard-s3-p15-r0 (copy)",
        "tiny/standard-s03-p15-r0",  # another word for the same scenario, but not its folder
        f"tiny-epochs{PROFILES['tiny'].epochs}/standard-s3-p15-r0",
    ):
        shutil.copytree(saved.folder, saved.runs / foreign)
    damaged = saved.of(Scenario(repetition=1))
    finish(damaged)
    damaged.save("detection", {"scores": np.arange(3)}, {})
    halve(damaged.payload("detection"))
    assert finished_runs(saved.runs) == [saved]


def test_atomic_replaces_only_on_success(tmp_path):
    path = tmp_path / "table.csv"
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path, "a rename is atomic only within one file system"
        assert temporary.suffix == ".csv"
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_disk_that_fills_up_late_leaves_what_was_there(saved, monkeypatch, fails_at):
    """The new payload must not lie beside the old record: a finished training would be lost."""
    done, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        done(descriptor)

    before = saved.arrays("attack")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="What was there is intact"):
        saved.save("attack", {name: values[:1] for name, values in before.items()}, {})
    assert len(calls) == fails_at
    assert saved.has("attack")
    assert {k: v.tolist() for k, v in saved.arrays("attack").items()} == {
        k: v.tolist() for k, v in before.items()
    }
    assert not list(saved.folder.glob(".*"))


def test_json_without_nan_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"named": [5]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"named": [float("nan")]})
    assert json.loads(path.read_text()) == {"named": [5]}


def test_checksum_is_sha256(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert checksum(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---- copies


def test_a_copy_is_sound_and_does_not_say_where_it_was_made(saved, tmp_path):
    place = {"runs": tmp_path, "data": "/somewhere", "device": "cpu", "make": "all"}
    own = {"made_from": ((saved, "attack"),), "parameters": place, "seconds": 7}
    saved.save("training", {"w": torch.ones(2)}, {"asr": 3.0}, **own)
    copy = saved.copy_to(tmp_path / "other", ("attack", "training"))
    assert copy.folder == tmp_path / "other" / "tiny" / str(saved.scenario)
    assert torch.equal(copy.weights()["w"], torch.ones(2))
    told, before = copy.load("training"), saved.load("training")
    assert told.pop("parameters") == {"make": "all"}
    assert before.pop("parameters") != {"make": "all"}
    assert told.pop("copied") is True
    assert told == before
    assert leftovers(copy.folder) == []


def test_nothing_is_copied_if_one_stage_is_not_sound(saved, tmp_path):
    saved.save("training", {"w": torch.ones(2)}, {}, made_from=((saved, "attack"),))
    saved.payload("training").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"not what training\.json describes"):
        saved.copy_to(tmp_path / "other", ("attack", "training"))
    assert not (tmp_path / "other").exists()


def test_a_copy_that_cannot_be_written_leaves_what_was_there(saved, tmp_path, monkeypatch):
    copy = saved.copy_to(tmp_path / "other", ("attack",))
    before = copy.payload("attack").read_bytes()
    saved.save("attack", ARRAYS | {"ids": np.arange(9)}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match=r"attack could not be copied \(No space left"):
        saved.copy_to(tmp_path / "other", ("attack",))
    assert copy.payload("attack").read_bytes() == before
    assert copy.has("attack")
    assert leftovers(copy.folder) == []


@pytest.mark.parametrize("error", [FileNotFoundError, NotADirectoryError])
def test_what_vanishes_between_two_looks_is_missing(make, monkeypatch, error):
    run = make("standard-s3-p15-r0")
    assert run.has("detection")
    real = artifacts.checksum

    def gone(path):
        if path.name == "attack.npz":  # what detection was made from
            raise error(2, "gone", str(path))
        return real(path)

    monkeypatch.setattr(artifacts, "checksum", gone)
    for stage, told in (("attack", "attack.npz is missing"), ("detection", "which is missing")):
        with pytest.raises(ArtifactError, match=told):
            run.load(stage)
    assert artifacts.finished_runs(run.runs, "detection") == []
