"""The papermill engine of this project: ``papermill --engine nbsupport``.

papermill loads this module by its entry point while it is itself being imported: import papermill
before it, and do not import it from anything that a notebook imports.
"""

import math
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from nbclient.exceptions import CellTimeoutError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from traitlets.config import Config

from nbsupport.execution import ParameterError, assignments, check_names, check_type
from nbsupport.workflow import alive

__all__ = ["Engine"]

HEARTBEAT = 8.0
"""Seconds without output after which the engine says where it is."""

LOOK = 1.0
"""Seconds after which the engine looks itself whether the kernel has replied."""


class _Client(PapermillNotebookClient):
    """Notebook client that passes printed lines on while they come."""

    def log_output_message(self, output):
        self.heard = time.monotonic()
        if output.output_type == "stream":
            for line in "".join(output.text).splitlines():
                if line.strip():
                    _say(self.title, line)

    def process_message(self, *args, **kwargs):
        # The parent looks for an output only when one of papermill's own sinks is set.
        output = super().process_message(*args, **kwargs)
        if output:
            self.log_output_message(output)
        return output

    async def _async_poll_for_reply(self, *args, **kwargs):
        # While it waits, the client answers messages of output widgets on the same socket, and
        # what it sends can swallow the wake-up for the reply (nbclient #312): it would wait for
        # ever. A new wait begins with a look at the socket.
        channel = self.kc.shell_channel
        wait = channel.get_msg

        async def get_msg(timeout=None):
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            while True:
                left = deadline - time.monotonic()
                try:
                    return await wait(timeout=max(0.0, min(left, LOOK)))
                except queue.Empty:
                    if left <= LOOK:
                        raise

        channel.get_msg = get_msg
        try:
            return await super()._async_poll_for_reply(*args, **kwargs)
        finally:
            del channel.get_msg


class Engine(NBClientEngine):
    """papermill engine: ``papermill --engine nbsupport IN.ipynb OUT.ipynb -p name value``.

    It refuses unknown parameters before anything is started or written, passes printed lines on,
    speaks up at least every ten seconds, takes ``--execution-timeout`` as the limit of the whole
    notebook, and talks to the kernel through files instead of TCP ports, which parallel runs would
    snatch from each other (papermill #511).
    """

    @classmethod
    def execute_notebook(cls, nb, kernel_name, output_path=None, **kwargs):
        """Check the parameters, then execute."""
        _check_parameters(nb)
        if ignored := [name for name in ("stdout_file", "stderr_file") if kwargs.get(name)]:
            raise ParameterError(
                f"this engine writes no {' and no '.join(ignored)}: it prints what cells print as "
                "they go; send that to a file (2> FILE), or take plain papermill"
            )
        if output_path:
            Path(output_path).parent.mkdir(parents=True, exist_ok=True)
        kwargs["progress_bar"] = False
        return super().execute_notebook(nb, kernel_name, output_path, **kwargs)

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, start_timeout=60, execution_timeout=None, **kwargs
    ):
        """Execute the cells in an IPC kernel under one time limit."""
        deadline = time.monotonic() + (execution_timeout or math.inf)
        # A short path: the name of a socket has at most 107 bytes.
        short = len(tempfile.gettempdir()) < 70 or not os.path.isdir("/tmp")
        folder = tempfile.mkdtemp(prefix="nb-", dir=None if short else "/tmp")
        config = Config()
        config.KernelManager.transport = "ipc"
        config.KernelManager.connection_file = f"{folder}/kernel.json"

        def remaining(_cell) -> float | None:
            left = deadline - time.monotonic()
            return None if math.isinf(left) else max(left, 1)

        client = _Client(
            nb_man,
            config=config,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            timeout_func=remaining,
        )
        client.title, client.heard = _title(nb_man.nb), time.monotonic()
        over = threading.Event()
        threading.Thread(target=_beat, args=(client, over), daemon=True).start()
        try:
            with alive():
                client.execute()
        except CellTimeoutError as error:
            raise CellTimeoutError(
                f"{client.title} took longer than the {execution_timeout} s it was given; raise "
                "the limit (--execution-timeout, or 'minutes' in the workflow)"
            ) from error
        finally:
            over.set()
            shutil.rmtree(folder, ignore_errors=True)


def _check_parameters(nb) -> None:
    """Compare the parameters given to papermill with those of the notebook's own cell."""
    cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    declared = assignments(cells[0].source) if cells else {}
    given = dict(nb.metadata.get("papermill", {}).get("parameters", {}))
    check_names(given, declared)
    for name, value in given.items():
        check_type(name, value, type(declared[name]))


def _title(nb) -> str:
    """Name a running notebook for its lines of output: which notebook, which scenario."""
    papermill = nb.metadata.get("papermill", {})
    name = Path(papermill.get("input_path") or "notebook").stem
    return " ".join(filter(None, (name, papermill.get("parameters", {}).get("scenario"))))


def _say(title: str, line: str) -> None:
    print(f"[{title}] {line}", file=sys.stderr, flush=True)


def _beat(client: _Client, over: threading.Event) -> None:
    """Say where a notebook is whenever it has been silent for a while."""
    started = time.monotonic()
    while not over.wait(1):
        now = time.monotonic()
        if now - client.heard >= HEARTBEAT:
            client.heard = now
            cells = client.nb.cells
            done = sum(c.metadata.get("papermill", {}).get("status") == "completed" for c in cells)
            _say(client.title, f"cell {done + 1} of {len(cells)}, {now - started:.0f} s")
