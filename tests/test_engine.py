"""The papermill engine, on small notebooks of its own."""

import asyncio
import queue
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.engines import NotebookExecutionManager
from papermill.exceptions import PapermillExecutionError

from nbsupport import engine, workflow
from nbsupport.engine import HEARTBEAT
from nbsupport.execution import ParameterError


def write(path, *cells):
    """Write a notebook: first cell tagged parameters, the others as they are."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    return path


def run(path, out, parameters=None, **options):
    return papermill.execute_notebook(
        path, out, parameters or {}, engine_name="nbsupport", progress_bar=False, **options
    )


@pytest.fixture
def notebook(tmp_path):
    return write(tmp_path / "in.ipynb", "n: int = 1\nname: str = 'x'", "print('n is', n)")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"nn": 2}, r"no parameter 'nn'; did you mean 'n'\?.*: n, name"),
        ({"n": "two"}, "'n' is 'two' \\(str\\); it takes a int"),
        ({"name": 3}, "'name' is 3 \\(int\\); it takes a str"),
    ],
)
def test_wrong_parameters_stop_before_anything_is_written(notebook, tmp_path, parameters, message):
    out = tmp_path / "sub" / "out.ipynb"
    with pytest.raises(ParameterError, match=message):
        run(notebook, out, parameters)
    assert not out.parent.exists()


def test_a_long_name_of_the_temporary_folder_is_no_obstacle(notebook, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    run(notebook, tmp_path / "out.ipynb")
    assert "n is 1" in (tmp_path / "out.ipynb").read_text()


def test_files_that_would_stay_empty_are_refused(notebook, tmp_path):
    out = tmp_path / "out.ipynb"
    with (
        open(tmp_path / "lines", "w") as file,
        pytest.raises(ParameterError, match="no stdout_file: it prints"),
    ):
        run(notebook, out, stdout_file=file)
    assert not out.exists()


def test_parameters_reach_the_kernel_and_lines_are_passed_on(notebook, tmp_path, capfd):
    out = run(notebook, tmp_path / "out.ipynb", {"n": 7})
    assert "n is 7" in out.cells[-1].outputs[0].text
    assert "[in] n is 7" in capfd.readouterr().err


def test_a_notebook_that_runs_keeps_its_locks(notebook, tmp_path, monkeypatch):
    """A job that outlives a killed workflow must not be started a second time."""
    monkeypatch.setattr(workflow, "SIGN", tmp_path / "alive")
    said, begin = [], engine._Client.execute

    def execute(self, *args, **kwargs):
        with pytest.raises(ValueError, match="another run"), workflow.alive(alone=True):
            pass
        said.append("asked")
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(engine._Client, "execute", execute)
    run(notebook, tmp_path / "out.ipynb")
    assert said == ["asked"]
    with workflow.alive(alone=True):
        pass


def test_kernels_talk_through_files_not_ports(tmp_path):
    cell = "import json, sys\njson.load(open(sys.argv[sys.argv.index('-f') + 1]))['transport']"
    out = run(write(tmp_path / "in.ipynb", "n = 1", cell), tmp_path / "out.ipynb")
    assert out.cells[-1].outputs[0].data["text/plain"] == "'ipc'"


def test_kernels_side_by_side_do_not_meet(tmp_path):
    cell = "import json, sys\njson.load(open(sys.argv[sys.argv.index('-f') + 1]))['ip']"
    path = write(tmp_path / "in.ipynb", "n = 1", "import time; time.sleep(2)", cell)
    command = [sys.executable, "-m", "papermill", "--engine", "nbsupport", path]
    both = [
        subprocess.Popen([*command, f"out{i}.ipynb"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        for i in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    sockets = {
        nbformat.read(tmp_path / f"out{i}.ipynb", 4).cells[-1].outputs[0].data["text/plain"]
        for i in range(2)
    }
    assert len(sockets) == 2
    # Nothing of the kernels stays behind.
    assert {file.name for file in tmp_path.iterdir()} == {"in.ipynb", "out0.ipynb", "out1.ipynb"}
    assert not any(Path(ip.strip("'")).parent.exists() for ip in sockets)


def test_a_silent_cell_is_reported_within_ten_seconds(tmp_path, capfd):
    assert HEARTBEAT < 10
    nap = f"import time; time.sleep({HEARTBEAT + 2})"
    run(write(tmp_path / "in.ipynb", "n = 1", nap), tmp_path / "out.ipynb")
    assert "[in] cell 2 of 2" in capfd.readouterr().err


def test_the_time_limit_is_that_of_the_whole_notebook(tmp_path):
    nap = "import time; time.sleep(4)"
    path = write(tmp_path / "in.ipynb", "n = 1", nap, nap, nap)
    started = time.monotonic()
    with pytest.raises(Exception, match="longer than the 6 s"):
        run(path, tmp_path / "out.ipynb", execution_timeout=6)
    assert time.monotonic() - started < 30


def test_a_failed_notebook_keeps_its_evidence(tmp_path):
    path = write(tmp_path / "in.ipynb", "n = 1", "print('before')", "raise ValueError('boom')")
    with pytest.raises(PapermillExecutionError, match="boom"):
        run(path, tmp_path / "out.ipynb")
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells  # papermill marks the failed one
    said, failed = [cell for cell in cells if cell.cell_type == "code"][-2:]
    assert said.outputs[0].text == "before\n"
    assert (failed.outputs[-1].ename, failed.outputs[-1].evalue) == ("ValueError", "boom")


def test_papermill_finds_the_engine_by_its_name(notebook, tmp_path):
    command = [sys.executable, "-m", "papermill", "--engine", "nbsupport", notebook, "out.ipynb"]
    done = subprocess.run(
        [*command, "-p", "nn", "2"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no parameter 'nn'" in done.stderr


def test_a_reply_is_found_though_nobody_is_woken():
    """What the client sends to output widgets can swallow the wake-up for the reply."""
    waits, reply = [], {"parent_header": {"msg_id": "mine"}}

    class Channel:
        async def get_msg(self, timeout=None):
            waits.append(timeout)
            if len(waits) < 3:
                raise queue.Empty  # no wake-up came in all that time
            return reply

    async def poll(timeout):
        client = engine._Client(NotebookExecutionManager(new_notebook()))
        client.kc, done = SimpleNamespace(shell_channel=Channel()), asyncio.Future()
        done.set_result(None)
        cell = new_code_cell(metadata={"execution": {}})
        return await client._async_poll_for_reply("mine", cell, timeout, done, asyncio.Future())

    assert asyncio.run(poll(None)) is reply
    assert waits == [engine.LOOK] * 3, "without a limit it must look again, too"
    waits.clear()
    assert asyncio.run(poll(60)) is reply
    assert waits == [engine.LOOK] * 3
