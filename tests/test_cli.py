"""The command line: what it prints and how it fails."""

import json
import os
from pathlib import Path

import pytest
from runs import finish

from nbsupport import artifacts, cli, data, workflow
from nbsupport.artifacts import Run
from nbsupport.cli import main
from nbsupport.scenarios import PAPER, PROFILES, Profile, Scenario


def test_scenarios_lists_the_paper_and_the_grammar(capsys):
    assert main(["scenarios"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[: len(PAPER)] == list(PAPER)
    assert "standard-s<side>" in out
    assert "extended (33 more" in out


def finish_until(stage, run):
    """Leave the records up to a stage of the chain."""
    finish(run)
    for later in artifacts.CHAIN[artifacts.CHAIN.index(stage) + 1 :]:
        run.path(later).unlink()


def test_status_names_what_is_missing(tmp_path, capsys):
    scenario = "standard-s3-p15-r0"
    assert main(["status", "--runs", str(tmp_path), "--scenarios", scenario]) == 0
    assert capsys.readouterr().out == (
        f"{scenario}: missing attack, training, relevance, detection\n"
        "0 of 1 runs finished, no estimate before each kind of step has been done once\n"
    )


def test_status_estimates_the_rest_from_what_is_finished(tmp_path, capsys):
    done, missing = "standard-s3-p15-r0", "standard-s3-p05-r0"
    finish(Run(tmp_path, PROFILES["demo"], Scenario.parse(done)))
    place = ["--runs", str(tmp_path), "--jobs", "1"]
    assert main(["status", *place, "--scenarios", done, missing]) == 0
    first, _, last = capsys.readouterr().out.splitlines()
    assert first == f"{done}: complete"
    # The finished one took 2 + 100 + 30 + 7 s; each of the four steps needs a kernel to start.
    assert pytest.approx(3, abs=0.5) == (2 + 100 + 30 + 7 + 4 * workflow.STARTUP) / 60
    assert last == "1 of 2 runs finished, about 3 min left on 1 job"


def test_status_counts_what_is_sound(tmp_path, capsys):
    run = finish(Run(tmp_path, PROFILES["demo"], Scenario.parse("standard-s3-p15-r0")))
    run.payload("training").write_bytes(b"torn")
    assert main(["status", "--runs", str(tmp_path)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("missing training")
    assert last.startswith("0 of 1 runs finished")


def test_status_tells_of_all_that_was_begun(tmp_path, capsys):
    begun, done = (Scenario.parse(f"standard-s3-p{rate}-r0") for rate in ("05", "15"))
    finish(Run(tmp_path, PROFILES["demo"], done))
    finish_until("attack", Run(tmp_path, PROFILES["demo"], begun))
    (tmp_path / "demo" / "figures").mkdir()
    (tmp_path / "demo" / "figures" / "figure1.json").write_text("{}")
    assert main(["status", "--runs", str(tmp_path)]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"{begun}: missing training, relevance, detection"
    assert second == f"{done}: complete"
    assert last.startswith("1 of 2 runs finished")


@pytest.mark.parametrize("command", ["status", "summary"])
def test_a_folder_without_runs_says_where_there_are_some(command, tmp_path, capsys):
    finish(Run(tmp_path, PROFILES["demo"], Scenario.parse("standard-s3-p15-r0")))
    assert main([command, "--runs", str(tmp_path), "--profile", "fast"]) == 2
    said = capsys.readouterr().err
    assert f"no run of profile fast in {tmp_path} (profiles with runs there: demo)" in said
    assert "nbsupport run --profile fast --scenarios" in said
    assert main([command, "--runs", str(tmp_path / "nowhere")]) == 2
    assert "profiles with runs there: none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "name scenarios"),
        (["run", "--scenarios", "nope"], "'nope'"),
        (["sweep", "--attack", "amplitude", "--p", "33"], "need amplitudes: --a"),
        (["sweep", "--attack", "foo", "--p", "33"], "attack is 'foo'; a grid is made of standard,"),
        (["sweep", "--attack", "clean", "--p", "33"], "run --scenarios clean-r0' makes that"),
        (
            ["run", "--scenarios", "standard-s3-p15-r0", "--filters", "perfect"],
            "add --stage beyond",
        ),
        (
            ["run", "--scenarios", "clean-r0", "--stage", "ablation"],
            "nobody attacked clean-r0; name an attack",
        ),
        (["sweep", "--attack", "standard", "--p", "15", "--profile", "nope"], "'nope'"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_anything_starts(arguments, words, capsys, tmp_path):
    assert main([*arguments, "--runs", str(tmp_path / "runs")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_run_calls_the_workflow_with_all_settings(monkeypatch, tmp_path, capsys):
    called, held = [], []

    def execute(words, *_, hold):
        assert all(map(os.fstat, hold)), "the sign of being at work"
        held.append(len(hold))
        called.append(words)
        return 0

    monkeypatch.setattr(workflow, "execute", execute)
    monkeypatch.setattr(workflow, "SIGN", tmp_path / "notes" / "alive")
    place = ["--profile", "tiny", "--runs", str(tmp_path), "--jobs", "3", "--minutes", "7"]
    asked = ["standard-s3-p15-r0", "clean-r0"]
    assert main(["run", *place, "--unlock", "--device", "cpu", "--scenarios", *asked]) == 0
    assert held == [1, 2]
    unlock, run = called
    assert "--unlock" in unlock
    assert "--unlock" not in run
    assert run[run.index("--config") + 1 :] == [
        "profile=tiny", f"scenarios={' '.join(asked)}", f"runs={tmp_path}", "data=auto",
        "device=cpu", "minutes=7",
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "images: synthetic" in told.out
    assert "0 of 2 runs finished" in told.err
    # Runs that are finished say nothing of what lies beyond them.
    for name in asked:
        finish(Run(tmp_path, PROFILES["tiny"], Scenario.parse(name)))
    beyond = ["--stage", "beyond", "--filters", "perfect"]
    assert main(["run", *place, *beyond, "--scenarios", *asked]) == 0
    assert "every_beyond" in called[-1]
    assert "filters=perfect" in called[-1]
    assert "runs finished" not in capsys.readouterr().err


def test_a_side_road_is_taken_when_asked_for(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(workflow, "execute", lambda words, *_, **__: called.append(words) or 0)
    asked = ["--runs", str(tmp_path), "--profile", "tiny", "--scenarios", "standard-s3-p15-r0"]
    assert main(["run", *asked, "--stage", "ablation"]) == 0
    assert main(["run", *asked]) == 0
    aside, usual = called
    # Before the settings, or Snakemake would read it as one of them.
    assert "every_ablation" in aside[: aside.index("--config")]
    assert "every_ablation" not in usual
    with pytest.raises(SystemExit):
        main(["run", *asked, "--stage", "training"])


def test_sweep_tells_what_it_runs_and_where_the_results_are(monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setattr(workflow, "execute", lambda words, *_, **__: called.append(words) or 0)
    grid = ["--attack", "standard", "--p", "5,15", "--s", "1,3", "--repetitions", "2"]
    assert main(["sweep", *grid, "--profile", "tiny", "--runs", str(tmp_path)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("8 runs: standard-s1-p05-r0 standard-s1-p05-r1 standard-s1-p15-r0")
    assert last == f"results: {tmp_path / 'tiny' / 'results.csv'}"
    assert sum("scenarios=standard-s1-p05-r0 " in word for word in called[0]) == 1


def test_sweep_takes_the_options_of_the_grammar(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: 0)
    grid = ["--attack", "standard", "--p", "15", "--options", "plain,released,from1+2-to7"]
    assert main(["sweep", *grid, "--profile", "tiny", "--runs", str(tmp_path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "3 runs: standard-s3-p15-r0 standard-s3-p15-released-r0 standard-s3-p15-from1+2-to7-r0"
    )


def test_sizes_that_are_no_numbers_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--attack", "standard", "--p", "15", "--s", "1,x"])
    assert "'1,x' are no whole numbers; write 1,2,3" in capsys.readouterr().err


def test_a_grid_of_a_side_road_promises_no_results(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: 0)
    grid = ["sweep", "--profile", "tiny", "--runs", str(tmp_path), "--attack", "standard", "--p=15"]
    assert main(grid) == 0
    assert f"results: {tmp_path / 'tiny' / 'results.csv'}" in capsys.readouterr().out
    assert main([*grid, "--stage", "ablation"]) == 0
    assert "results:" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--runs", "--data"])
def test_the_home_of_nobody_is_named(option, capsys):
    folder = "~nobody-of-this-name/x"
    with pytest.raises(SystemExit):
        main(["run", "--scenarios", "standard-s3-p15-r0", option, folder])
    assert f"{folder} is no folder" in capsys.readouterr().err


def test_a_folder_that_one_may_not_look_at_is_named(monkeypatch, tmp_path, capsys):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(SystemExit):
        main(["status", "--runs", str(tmp_path / "x")])
    assert "cannot be looked at: [Errno 13] Permission denied" in capsys.readouterr().err


def test_a_failed_workflow_fails_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: 1)
    place = ["--profile", "tiny", "--runs", str(tmp_path)]
    assert main(["run", *place, "--scenarios", "standard-s3-p15-r0"]) == 1


@pytest.mark.parametrize("option", [["--jobs", "0"], ["--gpus", "0"], ["--jobs", "two"]])
def test_counts_that_cannot_be_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["status", *option])
    assert f"'{option[1]}' is no whole number from" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-5", "1.5", "ten"])
def test_a_time_limit_is_a_count(minutes, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: pytest.fail("must not start"))
    with pytest.raises(SystemExit):
        main(["run", "--scenarios", "standard-s3-p15-r0", f"--minutes={minutes}"])
    assert f"'{minutes}' is no whole number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "deeper"])
@pytest.mark.parametrize(
    "command",
    [
        ["data"],
        ["status"],
        ["summary"],
        ["run", "--scenarios", "standard-s3-p15-r0"],
        ["run", "--scenarios", "standard-s3-p15-r0", "--unlock"],
        ["sweep", "--attack", "standard", "--p", "15"],
    ],
)
def test_a_file_is_no_folder_of_runs(command, below, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: pytest.fail("must not start"))
    file = tmp_path / "runs"
    file.write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--runs", str(file / below)])
    assert stop.value.code == 2
    assert f"--runs: {file} is a file; name a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize("option", [["--profile", "nope"], ["--scenarios", "nope"]])
def test_unknown_names_exit_with_two_and_say_what_is_allowed(option, capsys):
    assert main(["status", *option]) == 2
    assert "'nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scenario", "method", "printed"),
    [
        ("standard-s3-p33-r0", "heatmap", "99.96 / 99.88 / 100.00"),
        # The counts behind the row say 86.67, the paper prints 86.17.
        ("standard-s3-p10-r0", "activation", "87.62 / 96.17 / 86.67"),
        # Printed, but of another experiment.
        ("label_consistent-s3-p15-r0", "heatmap", "- / - / -"),
        ("standard-s3-p07-r0", "heatmap", "-"),
    ],
)
def test_summary_holds_ours_against_the_corrected_rates(
    scenario, method, printed, tmp_path, capsys
):
    finish(Run(tmp_path, PROFILES["tiny"], Scenario.parse(scenario)), methods=[method])
    place = ["--profile", "tiny", "--runs", str(tmp_path)]
    assert main(["summary", *place, "--scenarios", scenario]) == 0
    (line,) = (s for s in capsys.readouterr().out.splitlines() if s.startswith(f"  {method} "))
    assert line.split(maxsplit=4)[4] == printed


def test_summary_of_a_missing_run_says_how_to_make_it(tmp_path, capsys):
    assert main(["summary", "--runs", str(tmp_path), "--scenarios", "clean-r0"]) == 2
    assert "notebooks/02_training.ipynb" in capsys.readouterr().err


def test_summary_goes_on_after_runs_that_are_not_ready(tmp_path, capsys):
    untrained, half, done = (f"standard-s3-p{rate}-r0" for rate in ("02", "05", "15"))
    finish(Run(tmp_path, PROFILES["demo"], Scenario.parse(done)))
    finish_until("training", Run(tmp_path, PROFILES["demo"], Scenario.parse(half)))
    assert main(["summary", "--runs", str(tmp_path), "--scenarios", untrained, half, done]) == 0
    said = capsys.readouterr().out
    assert f"{untrained} (profile demo): no network to speak of yet" in said
    path = Run(tmp_path, PROFILES["demo"], Scenario.parse(half)).path("training")
    path.write_text(path.read_text()[:100])
    assert main(["summary", "--runs", str(tmp_path), "--scenarios", half, done]) == 0
    assert f"{half} (profile demo): {path}" in capsys.readouterr().out
    assert said.count("detection: missing") == 1
    rates = json.loads(said.rpartition("summary: ")[2])
    assert set(rates) == {half, done}
    assert "methods" in rates[done]
    assert "methods" not in rates[half]


# ---- the published network of the attacker


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder of published networks, with one of the profile tiny; returns its run."""
    monkeypatch.setattr(cli, "NETWORKS", tmp_path / "networks")
    monkeypatch.setattr(workflow, "forget", lambda *_: None)
    images = data.load("synthetic", scale=PROFILES["tiny"].scale)
    run = Run(tmp_path / "trained", PROFILES["tiny"], Scenario.parse("clean-r0"))
    finish(run, fingerprint=images.fingerprint)
    assert main(["surrogate", "--publish", "--profile", "tiny", "--runs", str(run.runs)]) == 0
    return Run(tmp_path / "networks", run.profile, run.scenario)


def test_a_published_network_spares_its_training(published, tmp_path, monkeypatch, capsys):
    forgotten = []
    monkeypatch.setattr(workflow, "forget", lambda *told: forgotten.append(told))
    assert sorted(path.name for path in published.folder.iterdir()) == [
        "attack.json", "attack.npz", "model.safetensors", "training.json",
    ]  # fmt: skip
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: 0)
    place = ["--profile", "tiny", "--runs", str(tmp_path / "my runs")]
    wanting = Scenario.parse("label_consistent-s3-p33-r4")
    run = Run(tmp_path / "my runs", PROFILES["tiny"], wanting)
    capsys.readouterr()
    assert main(["run", *place, "--dry-run", "--scenarios", str(wanting)]) == 0
    said = capsys.readouterr().err
    command = f"  make surrogate PROFILE=tiny RUNS='{tmp_path / 'my runs'}'"
    assert command in said.splitlines()
    # Whoever named the images must name them there as well.
    here = [*place, "--dry-run", "--data", str(tmp_path), "--scenarios", str(wanting)]
    assert main(["run", *here]) == 0
    said = capsys.readouterr().err.splitlines()
    assert f"{command} DATA={tmp_path}" in said
    assert "and go on with make resume" in said
    grid = ["--attack", "label_consistent", "--p", "33"]
    assert main(["sweep", *place, "--dry-run", *grid]) == 0
    assert "and go on with make resume-sweep" in capsys.readouterr().err.splitlines()
    assert main(["run", *here[: len(place)], "--stage", "ablation", *here[len(place) :]]) == 0
    assert "and go on with make resume-ablation" in capsys.readouterr().err.splitlines()
    assert forgotten == []
    assert main(["surrogate", *place]) == 0
    assert "clean accuracy 97.75 %" in capsys.readouterr().out
    clean = run.of(wanting.surrogate)
    assert clean.load("training") == published.load("training")
    assert forgotten == [(clean, ("attack", "training"))]
    assert workflow.outdated([run]) == []
    assert workflow.progress([run]).steps == 2
    assert main(["run", *place, "--dry-run", "--scenarios", str(wanting)]) == 0
    assert "surrogate" not in capsys.readouterr().err


def test_a_network_of_ones_own_is_not_replaced(published, tmp_path, capsys):
    clean = Run(tmp_path / "runs", published.profile, published.scenario)
    finish(clean, clean_accuracy=91.0)
    assert main(["surrogate", "--profile", "tiny", "--runs", str(tmp_path / "runs")]) == 0
    assert "is there already and stays as it is" in capsys.readouterr().out
    assert clean.load("training")["result"]["clean_accuracy"] == 91.0
    clean.payload("training").write_bytes(b"torn")  # what would be trained anew may be replaced
    assert main(["surrogate", "--profile", "tiny", "--runs", str(tmp_path / "runs")]) == 0
    assert clean.load("training") == published.load("training")


def test_a_network_of_other_images_or_of_none_is_refused(published, tmp_path, monkeypatch, capsys):
    place = ["--runs", str(tmp_path / "runs")]
    assert main(["surrogate", "--profile", "demo", *place]) == 2
    said = capsys.readouterr().err
    assert "clean-r0 of profile demo is not published (there are those of: tiny)" in said
    assert "make run SCENARIOS=clean-r0 PROFILE=demo RUNS=" in said
    body = published.path("training").read_text()
    published.path("training").write_text(body.replace('"version": 1', '"version": 0'))
    assert main(["surrogate", "--profile", "tiny", *place]) == 2
    said = capsys.readouterr().err
    assert "was edited after it was written; train it: make run SCENARIOS=clean-r0 PROF" in said
    published.path("training").write_text(body)
    others = data.load("synthetic", scale=PROFILES["tiny"].scale, seed=1)
    monkeypatch.setattr(data, "load", lambda *_, **__: others)
    assert main(["surrogate", "--profile", "tiny", *place]) == 2
    assert "made from other images" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_attacks_that_the_images_are_too_few_for_are_named_before_any_starts(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: pytest.fail("must not start"))
    place = ["--profile", "tiny", "--runs", str(tmp_path)]
    assert main(["sweep", *place, "--attack", "standard", "--p", "15,90,0.01"]) == 2
    said = capsys.readouterr().err
    assert "2 of 3 scenarios cannot be carried out on these images, and none was started:" in said
    assert "standard-s3-p90-r0: " in said
    assert "lower the rate or name more source classes" in said
    assert "standard-s3-p0.01-r0: 0.01 % of" in said
    assert "standard-s3-p15" not in said
    assert not list(tmp_path.glob("*/*/*"))


def test_runs_of_other_images_are_not_joined(monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setattr(workflow, "execute", lambda words, *_, **__: called.append(words) or 0)
    run = finish(Run(tmp_path, Profile.parse("tiny"), Scenario.parse("standard-s3-p33-r0")))
    batch = ["run", "--profile", "tiny", "--runs", str(tmp_path), "--scenarios", "clean-r0"]

    def made_from(fingerprint):
        run.save("attack", run.arrays("attack"), {"fingerprint": fingerprint})
        return main(batch)

    here = data.load("synthetic", scale=PROFILES["tiny"].scale).fingerprint
    assert made_from(here) == 0
    assert len(called) == 1
    assert made_from("f" * 64) == 2
    said = capsys.readouterr().err
    assert f"{run.folder}: this run was made from other images" in said
    assert f"fingerprints ffffffffffff and {here[:12]}" in said
    assert "keep runs of these in another folder (RUNS=)" in said
    assert len(called) == 1


def test_a_batch_that_failed_says_how_to_make_tables_of_the_rest(monkeypatch, tmp_path, capsys):
    status = 1
    monkeypatch.setattr(workflow, "execute", lambda *_, **__: status)
    finish(Run(tmp_path, Profile.parse("tiny"), Scenario.parse("standard-s3-p33-r0")))
    place = ["--profile", "tiny", "--runs", str(tmp_path)]
    both = ["--scenarios", "standard-s3-p33-r0", "standard-s3-p15-r0"]
    told = f'make run PROFILE=tiny RUNS={tmp_path} SCENARIOS="standard-s3-p33-r0"'
    assert main(["run", *place, *both]) == 1
    assert f"tables of what is finished: {told}\n" in capsys.readouterr().err
    # Where nothing is missing, something else has failed, and where all is, there are no tables.
    assert main(["run", *place, *both[:2]]) == 1
    assert main(["run", *place, both[0], both[2]]) == 1
    status = 0
    assert main(["run", *place, *both]) == 0
    assert "tables of what is finished" not in capsys.readouterr().err
