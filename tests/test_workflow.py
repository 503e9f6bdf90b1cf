"""Grids, the command line of the workflow, progress, and one chain on a stand-in for a cluster."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from runs import finish, shown

from nbsupport import ROOT, artifacts, results, workflow
from nbsupport.artifacts import Run
from nbsupport.cli import main
from nbsupport.results import collect, write_csv
from nbsupport.scenarios import PAPER, PROFILES, Scenario, expand
from nbsupport.workflow import STARTUP, command, grid, outdated, progress


def names(scenarios):
    return [str(scenario) for scenario in scenarios]


def test_grid_is_every_combination_in_order():
    found = grid(["standard"], ["1", "15"], 2, sides=[2, 3])
    assert names(found) == [
        f"standard-s{s}-p{p}-r{r}" for s in (2, 3) for p in ("01", "15") for r in (0, 1)
    ]
    assert names(grid(["amplitude", "standard"], ["33"], amplitudes=[64, 32])) == [
        "amplitude-a64-p33-r0",
        "amplitude-a32-p33-r0",
        "standard-s3-p33-r0",
    ]
    assert names(grid(["standard"], ["15"], 2, variants=["plain", "win20x20-resnet"])) == [
        "standard-s3-p15-r0",
        "standard-s3-p15-r1",
        "standard-s3-p15-win20x20-resnet-r0",
        "standard-s3-p15-win20x20-resnet-r1",
    ]
    assert names(grid(["standard"], ["15"], variants=["to5", "plain"])) == ["standard-s3-p15-r0"]
    # Rates written twice in two ways are one experiment.
    assert names(grid(["standard"], ["5", "05", "5.0"])) == ["standard-s3-p05-r0"]
    wide = grid(["standard"], ["15"], sides=[12], variants=["win20x20", "released"])
    assert names(wide) == ["standard-s12-p15-win20x20-r0", "standard-s12-p15-released-r0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attacks": ["amplitude"]}, "need amplitudes: --a"),
        ({"attacks": ["nope"], "amplitudes": [1]}, "attack is 'nope'; a grid is made of standard"),
        ({"attacks": ["nope"]}, "attack is 'nope'"),
        ({"attacks": ["clean"]}, r"attack is 'clean' \(no rate, no size: 'nbsupport run"),
        ({"percents": ["100"]}, "not between 0 and 100"),
        ({"sides": [40]}, "side is 40"),
        ({"variants": ["vgg"]}, r"'standard-s3-p15-vgg-r0'; the grammar is"),
        ({"variants": ["resnet-released"]}, "options, in this order"),
        ({"repetitions": 0}, "expected at least 1"),
        ({"amplitudes": [64]}, "--a 64 is of no use to standard; leave it out, or add .*amplitude"),
        (
            {"attacks": ["amplitude", "blended"], "amplitudes": [20], "sides": [1, 2]},
            "--s 1,2 is of no use to amplitude, blended; .*: standard, label_consistent",
        ),
        ({"attacks": []}, "needs an attack and a rate: --attack standard --p"),
        ({"percents": []}, "needs an attack and a rate"),
    ],
)
def test_wrong_grids_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        grid(**{"attacks": ["standard"], "percents": ["15"]} | options)


def test_command_holds_every_setting_and_leaves_defaults_to_the_workflow():
    line = workflow.command(
        expand("clean-r0 standard-s3-p15-r0"), "tiny", jobs=3, gpus=2, options=["--dry-run"],
        runs="a folder", data=None, minutes=5,
    )  # fmt: skip
    assert line[line.index("--cores") + 1] == "3"
    assert line[line.index("--resources") + 1] == "gpu=2"
    assert line.index("--dry-run") < line.index("--config")
    assert line[line.index("--config") + 1 :] == [
        "profile=tiny", "scenarios=clean-r0 standard-s3-p15-r0", "runs=a folder", "minutes=5",
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["/runs #2", "/a: b", "/it's", '/"no"', "/{x}", "/end "])
def test_a_folder_that_the_workflow_would_misread_is_refused(folder, capsys):
    """Snakemake reads settings as YAML: "runs #2" was the folder "runs" to it."""
    with pytest.raises(ValueError, match="rename the folder"):
        workflow.command(["clean-r0"], "tiny", runs=folder)
    assert main(["run", "--scenarios", "clean-r0", "--runs", folder, "--dry-run"]) == 2
    assert f"runs is {folder!r}" in capsys.readouterr().err


def test_two_workflows_in_one_folder_of_runs_would_undo_each_other_s_work(
    monkeypatch, tmp_path, capsys
):
    """Snakemake's own locks go when any other workflow of the checkout ends."""
    calls = []
    monkeypatch.setattr(workflow, "SIGN", tmp_path / "notes" / "alive")
    monkeypatch.setattr(workflow, "execute", lambda line, *_, **__: calls.append(line) or 0)
    run = ["run", "--profile", "tiny", "--scenarios", "standard-s3-p15-r0", "--runs"]
    with workflow.claimed(tmp_path / "runs", PROFILES["tiny"]):
        assert main([*run, str(tmp_path / "runs")]) == 2
        assert f"at work in {tmp_path / 'runs' / 'tiny'}, where" in capsys.readouterr().err
        assert calls == []
        assert main([*run, str(tmp_path / "elsewhere")]) == 0
        assert main([*run, str(tmp_path / "runs"), "--dry-run"]) == 0
    assert main([*run, str(tmp_path / "runs")]) == 0
    assert len(calls) == 3


@pytest.mark.parametrize("folder", ["/a b", "/#2", "/a:b", "/ü (1), [x] & 100% = c@d~", "/a\\b"])
def test_any_other_folder_reaches_the_workflow_under_its_own_name(folder):
    parse = pytest.importorskip("snakemake.cli").parse_config
    line = workflow.command(["clean-r0"], "tiny", runs=folder, minutes=5)
    read = parse(line[line.index("--config") + 1 :])
    assert read == {"profile": "tiny", "scenarios": "clean-r0", "runs": folder, "minutes": 5}


def test_locks_are_not_taken_from_a_run_that_is_at_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workflow, "SIGN", tmp_path / "notes" / "alive")
    with workflow.alive(), workflow.alive():  # two runs side by side are fine
        arguments = ["run", "--scenarios", "clean-r0", "--runs", str(tmp_path), "--unlock"]
        monkeypatch.setattr(workflow, "execute", lambda *_, **__: pytest.fail("must not start"))
        assert main(arguments) == 2
        assert "another run is at work" in capsys.readouterr().err
    # The command that a killed run leaves behind is at work as well.
    monkeypatch.undo()
    monkeypatch.setattr(workflow, "SIGN", tmp_path / "notes" / "alive")
    stays = "import os, time; os.fork() or time.sleep(3)"  # the child outlives the command
    with workflow.alive() as sign:
        assert workflow.execute([sys.executable, "-c", stays], hold=[sign]) == 0
    with pytest.raises(ValueError, match="another run is at work"), workflow.alive(alone=True):
        pass
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(ValueError), workflow.alive(alone=True):
            break
        time.sleep(0.2)
    with workflow.alive(alone=True):
        pass
    # A file system without locks, or a checkout that cannot be written to: nothing is held.
    monkeypatch.setattr(workflow, "SIGN", Path("/dev/null/alive"))
    with workflow.alive(alone=True) as sign:
        assert sign is None


@pytest.fixture
def make(tmp_path):
    def make(text, done=True):
        run = Run(tmp_path, PROFILES["tiny"], Scenario.parse(text))
        return finish(run) if done else run

    return make


SECONDS = {"attack": 2, "training": 100, "relevance": 30, "detection": 7}
"""What `runs.finish` writes into its records."""
CHAIN = sum(SECONDS.values()) + 4 * STARTUP


def test_progress_of_nothing_and_of_everything(make):
    assert str(progress([make("standard-s3-p15-r0")])) == "1 of 1 runs finished"
    assert str(progress([])) == "0 of 0 runs finished"


def test_without_a_finished_step_there_is_no_estimate(make):
    found = progress([make("standard-s3-p15-r0", done=False)])
    assert (found.finished, found.steps, found.seconds) == (0, 0, None)
    assert str(found).startswith("0 of 1 runs finished, no estimate before")


def test_time_left_is_what_finished_steps_took(make, monkeypatch):
    runs = [make("standard-s3-p15-r0"), *(make(f"standard-s3-p{p}-r0", False) for p in (33, 10))]
    found = progress(runs, jobs=1, gpus=2)
    assert (found.finished, found.total, found.steps) == (1, 3, 4)
    assert found.seconds == pytest.approx(2 * CHAIN)
    assert str(found) == "1 of 3 runs finished, about 6 min left on 1 job"
    # Two chains on two jobs take as long as one; on many jobs no chain is shorter than itself.
    assert progress(runs, jobs=2, gpus=2).seconds == pytest.approx(CHAIN)
    assert progress(runs, jobs=9, gpus=9).seconds == pytest.approx(CHAIN)
    # Trainings ran on a GPU, of which there is one.
    gpu = 2 * (SECONDS["training"] + STARTUP)
    assert progress(runs, jobs=9, gpus=1).seconds == pytest.approx(gpu)
    runs[1].path("training").parent.mkdir(parents=True)
    finish(runs[1])
    runs[1].path("detection").unlink()
    found = progress(runs, jobs=1, gpus=2)
    assert (found.finished, found.steps) == (1, 7)
    assert found.seconds == pytest.approx(CHAIN + SECONDS["detection"] + STARTUP)
    # A newer recipe makes what is there worthless, for the run and for the estimate.
    newer = artifacts.STAGES["training"].version + 1
    stage = artifacts.Stage("training", "model.safetensors", "02_training", newer)
    monkeypatch.setitem(artifacts.STAGES, "training", stage)
    found = progress(runs, jobs=1)
    assert (found.finished, found.seconds) == (0, None)


def test_published_runs_tell_how_long_it_takes_until_there_are_own_ones(
    make, tmp_path, monkeypatch
):
    def told(seconds, scenario, profile="tiny", **more):
        stages = {
            name: {"version": artifacts.STAGES[name].version, "seconds": seconds, "device": "cpu"}
            for name in SECONDS
        }
        return {f"{profile}/{scenario}": stages | more}

    rows = told(100, "standard-s3-p10-r0") | told(300, "standard-s3-p33-r0")
    older = {"training": {"version": 0, "seconds": 1, "device": "cpu"}}
    rows |= told(9, "standard-s3-p33-r0", "demo") | told(200, "amplitude-a64-p33-r0", **older)
    (tmp_path / "results.json").write_text(json.dumps({"runs": rows}))
    monkeypatch.setattr(workflow, "PUBLISHED", tmp_path)
    workflow._published.cache_clear()
    run = make("standard-s3-p15-r0", done=False)
    found = progress([run], jobs=1)
    assert found.seconds == pytest.approx(4 * (200 + STARTUP))
    assert "about 14 min left on 1 job, if it takes as long as the published runs" in str(found)
    # What is known here counts, of whatever attack.
    make("amplitude-a64-p33-r0")
    found = progress([run], jobs=1)
    assert (found.seconds, found.elsewhere) == (pytest.approx(CHAIN), False)
    # Whatever the file holds, the workflow goes on.
    for text in ("[]", "{", "null"):
        (tmp_path / "results.json").write_text(text)
        workflow._published.cache_clear()
        assert workflow._published("tiny") == {}
    workflow._published.cache_clear()


def test_every_step_of_the_paper_has_an_estimate_from_the_start(tmp_path):
    runs = [Run(tmp_path, PROFILES["fast"], Scenario.parse(name)) for name in PAPER]
    found = progress(runs, jobs=2)
    assert found.elsewhere
    assert found.seconds > 3600


def test_surrogates_are_waited_for_and_not_counted_as_runs(make):
    make("standard-s3-p15-r0")
    runs = [make(f"label_consistent-s3-p33-r{r}", done=False) for r in range(2)]
    found = progress(runs, jobs=9, gpus=9)
    assert found.total == 2
    surrogate = SECONDS["attack"] + SECONDS["training"] + 2 * STARTUP
    assert found.seconds == pytest.approx(surrogate + CHAIN)


def test_long_times_are_told_in_hours(make):
    make("standard-s3-p15-r0")
    runs = [make(name, done=False) for name in PAPER if not name.startswith("standard-s3-p15")]
    found = progress(runs, jobs=1)
    assert found.seconds > 1.5 * 3600
    assert re.fullmatch(r"0 of 30 runs finished, about \d\.\d h left on 1 job", str(found))


def test_execute_passes_the_status_on_and_prints_what_it_is_told(capfd):
    lines = iter(["1 of 2 runs finished", None, None])
    code = "import time, sys; time.sleep(0.7); sys.exit(3)"
    status = workflow.execute([sys.executable, "-c", code], lambda: next(lines, None), every=0.2)
    assert status == 3
    assert capfd.readouterr().err == "[1 of 2 runs finished]\n"


def test_ctrl_c_while_progress_is_read_waits_for_the_workflow():
    def interrupted():
        raise KeyboardInterrupt

    code = "import time, sys; time.sleep(0.7); sys.exit(3)"
    assert workflow.execute([sys.executable, "-c", code], interrupted, every=0.2) == 3


def test_a_question_that_fails_ends_no_workflow(capfd):
    code = "import time, sys; time.sleep(0.7); sys.exit(3)"
    assert workflow.execute([sys.executable, "-c", code], lambda: 1 / 0, every=0.2) == 3
    # Asked twice or more, it is told once.
    assert capfd.readouterr().err == "[no word on progress: ZeroDivisionError: division by zero]\n"


@pytest.mark.parametrize("record", ["null", "[1]", "7", '"words"'])
def test_progress_takes_a_record_that_is_none_for_missing(make, record):
    run = make("standard-s3-p15-r0")
    run.path("detection").write_text(record)
    assert progress([run]).finished == 0
    assert progress([run], prove=True).finished == 0


def test_ending_the_command_line_ends_the_workflow():
    code = (
        "import signal, sys; from nbsupport import workflow\n"
        "child = 'import time; print(1, flush=True); time.sleep(60)'\n"
        "sys.exit(workflow.execute([sys.executable, '-c', child]) == -signal.SIGTERM)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1, "the child lived on or ended in another way"


def test_ending_the_command_line_ends_the_jobs_but_leaves_kernels_to_papermill():
    # As Snakemake does, the child waits for its job when it is told to end.
    child = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "job, kernel = subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)\n"
        "print(1, flush=True)\n"
        "ended = job.wait() == -signal.SIGTERM\n"
        "time.sleep(1)\n"
        "left = kernel.poll() is None\n"
        "kernel.kill()\n"
        "sys.exit(3 if ended and left else 4)\n"
    )
    code = (
        "import sys; from nbsupport import workflow\n"
        f"sys.exit(workflow.execute([sys.executable, '-c', {child!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 3


def planned(capfd, *arguments):
    """Rules, and how often each would run."""
    status = main(["sweep", "--profile", "tiny", "--dry-run", *map(str, arguments)])
    told = capfd.readouterr()
    assert status == 0, told.err
    table = told.out.partition("Job stats")[2].partition("Job stats")[0]
    return {rule: int(n) for rule, n in re.findall(r"^([a-z_]+) +(\d+)$", table, re.M)}


def test_a_rate_added_to_a_grid_runs_only_what_is_new(make, tmp_path, capfd):
    runs = [make(f"standard-s3-p{p}-r{r}") for p in ("15", "05") for r in (0, 1)]
    write_csv(collect(runs), tmp_path / "tiny" / "results.csv")
    there = ("--runs", tmp_path, "--attack", "standard", "--repetitions", 2)
    assert planned(capfd, *there, "--p", "15,5") == {}
    assert planned(capfd, *there, "--p", "15,5,33") == {
        "attacks": 2, "training": 2, "lrp": 2, "gw_clustering": 2, "results": 1, "all": 1,
        "total": 10,
    }  # fmt: skip


def test_another_spelling_of_the_data_folder_runs_nothing(make, tmp_path, capfd):
    run = make("standard-s3-p15-r0")
    write_csv(collect([run]), tmp_path / "tiny" / "results.csv")
    # Snakemake then knows with which settings all this was made.
    place = {"runs": tmp_path, "data": "/one"}
    touch = command([run.scenario], "tiny", options=("--touch", "--forceall"), **place)
    subprocess.run(touch, cwd=ROOT, check=True, capture_output=True)
    there = ("--runs", tmp_path, "--attack", "standard", "--p", "15")
    assert planned(capfd, *there, "--data", "/other") == {}
    assert planned(capfd, *there, "--p", "10", "--data", "/other")["attacks"] == 1


def test_what_is_outdated_is_made_anew_without_notes_of_snakemake(
    make, tmp_path, capfd, monkeypatch
):
    runs = [make("standard-s3-p15-r0"), make("label_consistent-s3-p33-r0", done=False)]
    assert outdated(runs) == []
    newer = dataclasses.replace(artifacts.STAGES["relevance"], version=99)
    monkeypatch.setitem(artifacts.STAGES, "relevance", newer)
    # What follows is made anew with it.
    assert outdated(runs) == [runs[0].path("relevance")]
    # Side roads are nobody's business unless they are asked for.
    runs[0].path("scan").write_text("{}")
    assert outdated(runs) == [runs[0].path("relevance")]
    assert outdated(runs, "beyond") == [runs[0].path("relevance"), runs[0].path("scan")]
    # Nor is what belongs to a filter that nobody chose.
    heatmap = runs[0].path("retrained/heatmap/training")
    heatmap.parent.mkdir(parents=True)
    heatmap.write_text("{}")
    assert heatmap not in outdated(runs, "beyond"), "the usual filters are not all"
    asked = outdated(runs, "beyond", ["perfect", "heatmap"])
    assert asked == [*outdated(runs, "beyond", ["perfect"]), heatmap]
    # Beyond the paper every run is shown beside the clean network, which it does not need itself.
    clean = make("clean-r0")
    clean.path("scan").write_text("{}")
    assert clean.path("scan") not in outdated(runs[:1])
    assert clean.path("scan") in outdated(runs[:1], "beyond")
    clean.path("scan").unlink()
    there = ("--runs", tmp_path, "--attack", "standard", "--p", "15")
    plan = planned(capfd, *there)
    assert (plan["lrp"], plan["gw_clustering"]) == (1, 1)
    assert "training" not in plan


def test_a_network_put_there_by_a_copy_is_not_made_anew(make, tmp_path, capfd):
    runs = [make("clean-r0"), make("label_consistent-s3-p33-r0")]
    write_csv(collect(runs[1:]), tmp_path / "tiny" / "results.csv")
    # Snakemake remembers a network of an older recipe under this name.
    script = (
        "import sys\nfrom dataclasses import replace\nfrom nbsupport.artifacts import STAGES\n"
        "from snakemake.cli import main\n"
        "STAGES['training'] = replace(STAGES['training'], version=99)\nmain(sys.argv[1:])"
    )
    names = [run.scenario for run in runs]
    touch = command(names, "tiny", options=("--touch", "--forceall"), runs=tmp_path)
    subprocess.run(
        [sys.executable, "-c", script, *touch[3:]], cwd=ROOT, check=False, capture_output=True
    )
    there = ("--runs", tmp_path, "--attack", "label_consistent", "--p", "33")
    assert planned(capfd, *there)["training"] == 2
    for run in runs:
        workflow.forget(run, ("attack", "training"))
    assert planned(capfd, *there) == {}


def test_a_copied_record_tells_nothing_of_this_machine(make, tmp_path):
    copied = make("clean-r0").copy_to(tmp_path / "here", ("attack", "training"))
    run = Run(copied.runs, copied.profile, Scenario.parse("label_consistent-s3-p33-r0"))
    assert progress([run]).steps == 2
    assert progress([run]).seconds is None


def test_the_ablation_does_not_ask_for_verdicts(make):
    run = make("standard-s3-p15-r0")
    run.path("detection").write_text("null")
    assert outdated([run]) == [run.path("detection")]
    assert outdated([run], "ablation") == []


def printed_by_make(*words):
    """What make would run, line by line."""
    command = ["make", "-n", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def recipe(*words):
    """What make would run, as one line."""
    return " ".join(printed_by_make(*words).replace("\\\n", " ").split())


def test_a_quoted_home_is_the_same_folder_for_every_target():
    folder = f"{Path.home()}/some runs"
    for target in ("run", "figures", "status"):
        assert f'"{folder}' in recipe(target, "RUNS=~/some runs")
    assert '"data/~/runs' in recipe("figures", "RUNS=data/~/runs")
    assert f'"{Path.home()}/my/bin/python" -m pip --version' in recipe("status", "VENV=~/my")


def test_an_environment_of_several_words_is_refused():
    done = subprocess.run(
        ["make", "-n", "status", "VENV=/a/my env"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "VENV is '/a/my env'; name a folder without spaces" in done.stderr


@pytest.mark.parametrize(
    ("from_where", "anew"), [(ROOT, False), (ROOT.parent, True), ("", True), (None, True)]
)
def test_make_installs_anew_what_was_installed_from_another_folder(from_where, anew, tmp_path):
    if from_where is not None:
        (tmp_path / ".nbsupport-ready").write_text(f"{from_where}\n")
    assert ("pip install" in recipe("status", f"VENV={tmp_path}")) == anew


@pytest.mark.parametrize(("pip", "anew"), [(0, False), (1, True)])
def test_an_environment_that_stayed_without_pip_is_made_again(pip, anew, tmp_path):
    """Debian's Python leaves one behind where python3.11-venv is missing."""
    python, made = tmp_path / "env" / "bin" / "python", tmp_path / "made"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\ncase "$*" in "-m pip --version") exit {pip};; esac\n')
    maker = tmp_path / "maker"
    maker.write_text(f'#!/bin/sh\necho "$@" > "{made}"\n')
    for script in (python, maker):
        script.chmod(0o755)
    venv = tmp_path / "env"
    words = ["make", f"{venv}/.nbsupport-ready", f"VENV={venv}", f"PYTHON={maker}"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert made.exists() == anew
    assert not anew or made.read_text() == f"-m venv {venv}\n"


def test_help_needs_no_more_than_the_tools_of_every_system(tmp_path):
    for tool in ("make", "sh", "awk", "cat"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^surrogate  +take the published .*: PROFILE=fast$", done.stdout, re.M)


def test_no_recipe_calls_a_script_that_names_the_folder_it_was_installed_in():
    known = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert {"run", "figures", "lint", "site"} <= {*known}
    for target in known:
        called = re.findall(r"^\s*@?(?:\w+=\S+ )*([\w-]+)", printed_by_make(target), re.M)
        scripts = {"papermill", "ruff", "nbstripout", "jupyter", "pytest", "snakemake"}
        assert called
        assert not scripts & {*called}, target


def test_make_and_the_command_line_run_the_same_thing():
    settings = ("PROFILE=fast", "JOBS=3", "DATA=a b", "MINUTES=9")
    named = (*settings, "SCENARIOS=paper extended")
    run = recipe("run", *named)
    words = 'nbsupport run --profile fast --runs "data/runs" --jobs 3 --gpus 1 --data "a b"'
    assert f"{words} --device auto --minutes 9 --scenarios paper extended ||" in run
    assert "--unlock" not in run
    assert f"{words} --device auto --minutes 9 --unlock --scenarios" in recipe("resume", *named)
    grid = "--attack standard --p 1,2 --s 1,3 --dry-run"
    swept = recipe("sweep", *settings, f"GRID={grid}")
    assert f"nbsupport sweep {words.partition('run ')[2]} --device auto --minutes 9 {grid}" in swept


@pytest.mark.parametrize(
    ("target", "command"),
    [("run", "run"), ("sweep", "sweep"), ("ablation", "run"), ("beyond", "run")],
)
def test_make_names_the_command_that_goes_on_after_a_kill(target, command, tmp_path):
    resume = "resume" if target == "run" else f"resume-{target}"
    script = recipe(target).partition(f"nbsupport {command} ")[2]
    assert f"'make {resume}' goes on with the rest" in script
    assert "--unlock" not in script
    assert "--unlock" in recipe(resume).partition(f"nbsupport {command} ")[2]
    # What stopped goes on; a setting that cannot be would stop again.
    fake, ready = tmp_path / "bin" / "nbsupport", tmp_path / ".nbsupport-ready"
    fake.parent.mkdir()
    ready.write_text(f"{ROOT}\n")
    for status, says in ((0, False), (1, True), (2, False)):
        fake.write_text(f"#!/bin/sh\nexit {status}\n")
        fake.chmod(0o755)
        words = ["make", "-o", str(ready), f"VENV={tmp_path}", target]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode == 0) == (status == 0), done.stderr
        assert ("goes on with the rest" in done.stdout) == says


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "GRID=--attack standard --p 1"), "GRID says nothing to 'make run'"),
        (("status", "FILTERS=perfect"), "FILTERS says nothing.*read by beyond resume-beyond"),
        (("run", "KEEP=yes"), "KEEP says nothing to 'make run'; it is read by figures"),
        (("site", "FIGURES=mine"), "FIGURES says nothing to 'make site'"),
        (("sweep", "SCENARIOS=clean-r0"), "a grid names its scenarios itself"),
        (("resume-sweep", "SCENARIOS=clean-r0"), "give GRID without SCENARIOS, or 'make run'"),
    ],
)
def test_a_setting_that_a_command_would_pass_over_is_refused(words, told):
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(told, done.stderr)


def test_the_status_is_of_all_that_was_begun_unless_scenarios_are_named():
    assert "--scenarios" not in recipe("status")
    assert recipe("status", "SCENARIOS=paper").endswith("--scenarios paper")


def dry_run(*scenarios, cores=2, profile="tiny", **config):
    """What the workflow answers if Snakemake is called by hand; returns status and all it said."""
    words = command(scenarios, profile, jobs=cores, options=("--dry-run",), **config)
    words = [word for word in words if word not in ("--quiet", "rules", "host", "reason")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"minutes": "abc"}, "minutes is 'abc'; the time limit of a step is a whole number"),
        ({"minutes": "0"}, "minutes is '0'"),
        ({"device": "gpu"}, "device is 'gpu'; choose among auto, cpu, cuda"),
    ],
)
def test_settings_of_a_workflow_called_by_hand_are_checked(config, told, tmp_path):
    status, said = dry_run("standard-s3-p15-r0", runs=tmp_path, **config)
    assert status != 0
    assert told in said
    assert "Traceback" not in said


def test_more_epochs_have_more_time(tmp_path):
    for profile, minutes in (("tiny", 20), ("fast-epochs60", 6000), ("fast-epochs2", 600)):
        status, said = dry_run("clean-r0", profile=profile, runs=tmp_path)
        assert status == 0, said
        assert set(re.findall(r"runtime=(\d+)", said)) == {str(minutes)}


def test_the_last_of_a_batch_has_the_cores_to_itself(make, tmp_path):
    def threads():
        status, said = dry_run(*names, cores=6, runs=tmp_path)
        assert status == 0, said
        return re.findall(r"^rule training:.*?threads: (\d+)", said, re.M | re.S)

    names = ["standard-s3-p15-r0", "standard-s3-p15-r1", "clean-r0"]
    assert threads() == ["2", "2", "2"]
    make(names[0])
    make(names[2])
    assert threads() == ["6"]


@pytest.mark.parametrize(
    ("profile", "folder"),
    [("fast", "figures"), ("paper", "figures/paper"), ("demo", "figures/demo"),
     ("fast-epochs9", "figures/fast-epochs9")],
)  # fmt: skip
def test_figures_of_one_profile_never_replace_those_of_another(profile, folder):
    made = recipe("figures", f"PROFILE={profile}")
    assert f'-p figures_folder "{folder}"' in made
    assert "snakemake" not in made
    assert "-p keep ask" in made
    assert "-p keep yes" in recipe("figures", f"PROFILE={profile}", "KEEP=yes")


SUBMIT = """#!/bin/sh
# What sbatch does, as far as Snakemake can tell: start the job elsewhere, say its number, return.
number=$(ls "{folder}" | grep -c script)
cp "$1" "{folder}/$number.script"
(sh "$1"; echo $? > "{folder}/$number.rc") > "{folder}/$number.log" 2>&1 &
echo $number
"""
STATUS = """#!/bin/sh
case $(cat "{folder}/$1.rc" 2> /dev/null) in
'') echo running;; 0) echo success;; *) echo failed;;
esac
"""


@pytest.fixture
def scheduler(tmp_path):
    """A stand-in for the scheduler of a cluster; returns options of Snakemake and its folder."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    folder = tmp_path / "jobs"
    folder.mkdir()
    # The profile for Slurm, as it is, with another door to the scheduler.
    options = ["--profile", "profiles/slurm", "--executor", "cluster-generic", "--jobs", "2"]
    options += ["--seconds-between-status-checks", "1", "--latency-wait", "30"]
    for name, text in (("submit", SUBMIT), ("status", STATUS)):
        script = tmp_path / name
        script.write_text(text.format(folder=folder))
        script.chmod(0o755)
        options += [f"--cluster-generic-{name}-cmd", str(script)]
    return options, folder


def on_cluster(scheduler, runs, targets, **config):
    """Make targets by jobs of the stand-in."""
    settings = {"profile": "tiny", "runs": runs, "device": "cpu"} | config
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *map(str, targets), *scheduler[0], "--config",
         *(f"{name}={value}" for name, value in settings.items())],
        cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip


def submitted(folder):
    """What each job that was sent to the stand-in asks for."""
    scripts = [path.read_text() for path in folder.glob("*.script")]
    return [json.loads(re.search(r"^# properties = (.*)$", s, re.M)[1]) for s in scripts]


# What computes on a GPU asks for one, on the partition that has them; 20 minutes are tiny's limit.
ON_GPU = {"gpu": 1, "slurm_partition": "gpu", "runtime": 20}
ON_CPU = {"gpu": None, "slurm_partition": "cpu", "runtime": 20}
ASKED = dict.fromkeys(["attacks", "gw_clustering", "results"], ON_CPU)
ASKED |= dict.fromkeys(["training", "lrp"], ON_GPU)


@pytest.mark.notebooks
def test_the_whole_chain_runs_as_jobs_of_a_scheduler(scheduler, tmp_path):
    run, other = (
        Run(tmp_path, PROFILES["tiny"], Scenario.parse(f"standard-s3-{rate}-r0"))
        for rate in ("p15", "p05")
    )
    # One thread a job: on busy cores, several wait for each other.
    scheduler[0].extend(["--set-threads", "training=1", "lrp=1"])
    done = on_cluster(scheduler, tmp_path, ["all", other.path("attack")], scenarios=run.scenario)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in artifacts.CHAIN:
        run.load(stage)
    other.load("attack")
    table = pd.read_csv(tmp_path / "tiny" / "results.csv")
    assert set(table["scenario"]) == {str(run.scenario)}
    assert {path.read_text() for path in scheduler[1].glob("*.rc")} == {"0\n"}
    jobs = submitted(scheduler[1])
    for job in jobs:
        assert {name: job["resources"].get(name) for name in ON_CPU} == ASKED[job["rule"]]
    # And none was computed where jobs are sent.
    assert sorted(job["rule"] for job in jobs) == sorted([*ASKED, "attacks"])


def test_jobs_that_compute_on_a_gpu_ask_for_four_threads(scheduler, tmp_path):
    (tmp_path / "submit").write_text(SUBMIT.replace('sh "$1"', "false").format(folder=scheduler[1]))
    scenarios = ("standard-s3-p15-r0", "standard-s3-p05-r0")
    for text, lost in zip(scenarios, ("training", "relevance"), strict=True):
        run = finish(Run(tmp_path, PROFILES["tiny"], Scenario.parse(text)))
        run.path(lost).unlink()
    done = on_cluster(scheduler, tmp_path, [], scenarios=" ".join(scenarios))
    assert done.returncode != 0
    threads = {job["rule"]: job["threads"] for job in submitted(scheduler[1])}
    assert threads == {"training": 4, "lrp": 4}


def test_the_whole_paper_is_planned_with_a_gpu_for_each_job_that_uses_one(scheduler, tmp_path):
    scheduler[0].append("--dry-run")
    done = on_cluster(scheduler, tmp_path, [], profile="paper", scenarios="paper")
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = re.findall(r"^rule (\w+):\n(?: .*\n)*? +resources: (.*)$", done.stdout, re.M)
    counts = Counter(rule for rule, _ in jobs)
    n = len(PAPER)  # and the attacker's network; "all" stays with the plan
    once = {"attacks": n + 1, "training": n + 1, "results": 1, "all": 1}
    assert counts == dict.fromkeys(ASKED, n) | once
    for rule, resources in jobs:
        if rule == "all":
            continue
        asked = dict(part.split("=", 1) for part in resources.split(", "))
        assert asked["slurm_partition"] == ASKED[rule]["slurm_partition"]
        assert asked.get("gpu") == ("1" if ASKED[rule]["gpu"] else None)
        assert asked["runtime"] == str(24 * 60)


@pytest.mark.notebooks
def test_a_failed_job_fails_the_workflow_and_leaves_its_notebook(scheduler, tmp_path):
    run = Run(tmp_path, PROFILES["tiny"], Scenario.parse("label_consistent-s3-p33-r0"))
    surrogate = finish(run.of(run.scenario.surrogate))
    surrogate.payload("training").write_bytes(b"no weights")
    done = on_cluster(scheduler, tmp_path, [run.path("attack")], scenarios=run.scenario)
    assert done.returncode != 0
    assert "Error in rule attacks" in done.stderr
    assert not run.path("attack").exists()
    (log,) = scheduler[1].glob("*.log")
    assert "missing, truncated or not what training.json describes" in log.read_text()
    assert "ArtifactError" in shown(run.folder / "01_attacks.ipynb")


def results_notebook(out, runs, published, keep="ask"):
    """Run notebook 5 on profile fast, without the images of GTSRB."""
    return subprocess.run(
        [sys.executable, "-m", "papermill", "--engine", "nbsupport",
         f"{ROOT}/notebooks/05_results.ipynb", str(out), "-p", "profile", "fast",
         "-p", "runs", str(runs), "-p", "data", str(out.parent / "none"), "-p", "keep", keep,
         "-p", "figures_folder", str(published), "-p", "interactive", "False"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first_machine(tmp_path_factory):
    """One run, published by notebook 5."""
    base = tmp_path_factory.mktemp("first")
    run = Run(base / "runs", PROFILES["fast"], Scenario.parse("standard-s3-p15-r0"))
    finish(run, ("activation", "heatmap", results.OURS))
    done = results_notebook(base / "out.ipynb", base / "runs", base / "published")
    assert done.returncode == 0, done.stderr[-3000:]
    return base


@pytest.mark.notebooks
def test_pictures_of_gtsrb_stay_beside_the_runs(first_machine):
    published = first_machine / "published"
    beside = {path.stem for path in (first_machine / "runs" / "fast" / "figures").iterdir()}
    assert beside == {"figure1", "figure3", "figure4"}
    assert {path.stem for path in published.iterdir()} == {
        "table1", "table2", "table3", "table4", "table5", "thesis", "scoreboard", "results",
        "detection_rates", "localisation", "networks", "without_poison", "strength", "claims",
        "detections", "first_check",
    }  # fmt: skip
    assert "Figure 5 is missing" in shown(first_machine / "out.ipynb")
    for name in ("table1", "scoreboard", "detection_rates"):
        note = json.loads((published / f"{name}.json").read_text())
        stages = note["runs"]["fast/standard-s3-p15-r0"]
        assert stages["training"]["device"] == "cuda"
        assert note["libraries"]["torch"]


@pytest.mark.notebooks
def test_published_tables_travel_from_machine_to_machine(first_machine, tmp_path):
    published, other = tmp_path / "published", tmp_path / "elsewhere"
    shutil.copytree(first_machine / "published", published)
    for text in ("standard-s3-p33-r0", "clean-r0"):
        finish(Run(other, PROFILES["fast"], Scenario.parse(text)), ("activation", "heatmap"))
    refused = results_notebook(tmp_path / "ask.ipynb", other, published)
    assert "holds 1 runs of profile 'fast' that are not finished here" in refused.stderr
    done = results_notebook(tmp_path / "yes.ipynb", other, published, keep="yes")
    assert done.returncode == 0, done.stderr[-3000:]
    both = {"standard-s3-p15-r0", "standard-s3-p33-r0"}
    for name, found in {
        "results": both,
        "strength": both,
        "networks": both | {"clean-r0"},
        "localisation": both,
        "without_poison": both,
    }.items():
        assert set(pd.read_csv(published / f"{name}.csv")["scenario"]) == found, name
        told = json.loads((published / f"{name}.json").read_text())["runs"]
        assert set(told) >= {f"fast/{run}" for run in found}, name
    table1 = pd.read_csv(published / "table1.csv").set_index("experiment")["n_runs"]
    assert table1["standard-s3-p15"].max() == table1["standard-s3-p33"].max() == 1

    # And on a third, which has none: the same tables.
    tables = {path: path.read_bytes() for path in published.iterdir() if path.suffix != ".json"}
    done = results_notebook(tmp_path / "none.ipynb", tmp_path / "nothing", published, keep="yes")
    assert done.returncode == 0, done.stderr[-3000:]
    again = {path: path.read_bytes() for path in published.iterdir() if path.suffix != ".json"}
    assert [path.name for path in tables if again[path] != tables[path]] == []
    assert "Figure 3 is missing" in shown(tmp_path / "none.ipynb")
