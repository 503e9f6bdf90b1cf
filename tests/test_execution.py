"""Parameters of notebooks: what is refused, and what the refusal says."""

import re
import sys
from types import SimpleNamespace

import pytest

from nbsupport import ROOT
from nbsupport.execution import (
    ParameterError,
    anchored,
    assignments,
    check_names,
    check_type,
    resolve,
)

GIVEN = {"profile": "tiny", "runs": "data/runs", "interactive": False}


def test_resolved_settings_name_run_and_folder():
    settings = resolve(**GIVEN, scenario="standard-s3-p5-r1", share=0.9)
    assert str(settings.run.scenario) == "standard-s3-p05-r1"
    assert settings.run.folder == ROOT / "data" / "runs" / "tiny" / "standard-s3-p05-r1"
    assert settings.parameters["share"] == 0.9
    assert "share" in repr(settings)
    assert "standard-s3-p05-r1" in settings._repr_html_()


def test_folders_start_at_the_repository_whatever_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert anchored("data/runs") == ROOT / "data" / "runs"
    assert anchored(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profile": "quick"}, ["'quick'", "demo", "fast", "paper"]),
        ({"profile": "fast-epochs0"}, ["'fast-epochs0'", "fast-epochs12"]),
        ({"scenario": "standrd-s3-p15-r0"}, ["'standrd-s3-p15-r0'", "label_consistent-s<side>"]),
        ({"scenario": ""}, ["''", "label_consistent-s<side>"]),
        ({"device": "gpu"}, ["'gpu'", "cuda", "cpu", "auto"]),
        ({"device": ""}, ["''", "cuda", "cpu", "auto"]),
        ({"interactive": "False"}, ["interactive", "str", "bool"]),
        ({"runs": 3}, ["runs", "3", "str"]),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(change, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        resolve(**(GIVEN | change))
    assert [word for word in words if word not in str(error.value)] == []


def test_a_number_for_a_word_tells_how_papermill_keeps_words():
    with pytest.raises(ParameterError, match=r"'classes' is 5 \(int\).*write -r classes 5"):
        check_type("classes", 5, str)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ParameterError, match=r"'scenaro'.*did you mean 'scenario'"):
        check_names(["scenaro"], ["scenario", "profile"])


def test_plain_papermill_cannot_smuggle_an_unknown_name_in(monkeypatch):
    # papermill only logs unknown names; its injected cell is the second cell of the kernel.
    cells = ["", "profile: str = 'demo'", "# Parameters\nprofile = 'tiny'\nepsilom = 0.01\n"]
    shell = SimpleNamespace(user_ns={"In": cells})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with pytest.raises(ParameterError, match=r"'epsilom'.*'epsilon'"):
        resolve(**GIVEN, epsilon=0.1)
    cells[2] = "# Parameters\nprofile = 'tiny'\nepsilon = 0.01\n"
    assert resolve(**GIVEN, epsilon=0.01).parameters["epsilon"] == 0.01
    # A notebook without this parameter does not take it, though others do.
    cells[2] = "# Parameters\nprofile = 'tiny'\nscenario = 'standard-s3-p15-r0'\n"
    with pytest.raises(ParameterError, match=r"no parameter 'scenario'"):
        resolve(**GIVEN, epsilon=0.1)
    assert resolve(**GIVEN, scenario="standard-s3-p15-r0").device == "auto"
    # So papermill writes `-p epsilon inf`.
    cells[2] = "# Parameters\nprofile = 'tiny'\nepsilon = float('inf')\n"
    assert resolve(**GIVEN, epsilon=float("inf")).parameters["epsilon"] == float("inf")


def test_assignments_reads_literals_with_and_without_hints():
    source = 'a: int = 3  # three\nb = "x"\nc: list[str] = ["y"]\n'
    assert assignments(source) == {"a": 3, "b": "x", "c": ["y"]}
