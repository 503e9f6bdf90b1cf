"""The command line: what it prints and how it fails."""

import pytest

from nbsupport.cli import main
from nbsupport.scenarios import PAPER


def test_scenarios_lists_the_paper_and_the_grammar(capsys):
    assert main(["scenarios"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[: len(PAPER)] == list(PAPER)
    assert "standard-s<side>" in out


def test_status_names_what_is_missing(tmp_path, capsys):
    scenario = "standard-s3-p15-r0"
    assert main(["status", "--runs", str(tmp_path), "--scenarios", scenario]) == 0
    assert capsys.readouterr().out == (
        f"{scenario}: missing attack, training, relevance, detection\n"
    )


@pytest.mark.parametrize("option", [["--profile", "nope"], ["--scenarios", "nope"]])
def test_unknown_names_exit_with_two_and_say_what_is_allowed(option, capsys):
    assert main(["status", *option]) == 2
    assert "'nope'" in capsys.readouterr().err


def test_summary_of_a_missing_run_says_how_to_make_it(tmp_path, capsys):
    assert main(["summary", "--runs", str(tmp_path), "--scenarios", "clean-r0"]) == 2
    assert "notebooks/02_training.ipynb" in capsys.readouterr().err
