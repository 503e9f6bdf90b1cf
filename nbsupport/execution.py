"""The parameters of a notebook, checked.

papermill runs a notebook with its defaults if a parameter is mistyped. Both doors are closed: our
engine (``papermill --engine nbsupport``) refuses before a kernel starts, and `resolve`, which every
notebook calls on its parameters, refuses under plain papermill too.
"""

import ast
import difflib
import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsupport import ROOT
from nbsupport.artifacts import PLACE, Run, code_version
from nbsupport.scenarios import DEVICES, Profile, Scenario

__all__ = [
    "ParameterError",
    "Settings",
    "anchored",
    "assignments",
    "check_names",
    "check_type",
    "resolve",
]


class ParameterError(ValueError):
    """A notebook was given a parameter that it does not have, or of another type."""


@dataclass(frozen=True)
class Settings:
    """The parameters of a notebook after checking; displays itself as a table.

    Attributes
    ----------
    run : Run
        Scenario, profile and folder.
    device : str
        "auto", "cpu" or "cuda", as asked for.
    data : str
        Folder of GTSRB, or "auto".
    interactive : bool
        Whether widgets are wanted.
    parameters : dict
        All parameters by name, for the record.
    """

    run: Run
    device: str
    data: str
    interactive: bool
    parameters: dict[str, Any]

    def rows(self) -> dict[str, str]:
        """Return what a reader wants to see: resolved values by name."""
        # The device brings torch, which whoever only wants to check parameters can do without.
        from nbsupport.devices import pick_device
        from nbsupport.layouts import data_folder

        profile = self.run.profile
        knobs = {k: v for k, v in self.parameters.items() if k not in _COMMON}
        images = "drawn signs" if profile.data == "synthetic" else str(data_folder(self.data))
        return {
            "scenario": str(self.run.scenario),
            "profile": f"{profile}, at most {profile.epochs} epochs",
            "data": images,
            "device": str(pick_device(self.device)),
            "run": str(self.run.folder),
        } | {name: repr(value) for name, value in knobs.items()}

    def __repr__(self):
        return "\n".join(f"{name}: {value}" for name, value in self.rows().items())

    def _repr_html_(self):
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'><code>{html.escape(value)}</code></td></tr>"
            for name, value in self.rows().items()
        )
        return f"<table>{cells}</table>"


_COMMON = dict.fromkeys(PLACE, str) | {"interactive": bool}


def resolve(
    *,
    profile: str,
    runs: str,
    interactive: bool,
    scenario: str | None = None,
    device: str | None = None,
    data: str | None = None,
    **knobs: Any,
) -> Settings:
    """Check the parameters of a notebook and anchor its folders on the repository.

    Parameters
    ----------
    profile, scenario : str
        Ids; see `Profile.parse` and `Scenario.parse`. A notebook without ``scenario``, ``device``
        or ``data`` leaves it out: "clean-r0", "auto" and "auto" stand in.
    runs : str
        Folder of all runs, relative to the repository.
    interactive : bool
        Whether widgets are wanted.
    device : {"auto", "cpu", "cuda"}
        Where to compute.
    data : str
        Folder of GTSRB, or "auto" for the environment variable NBSUPPORT_DATA.
    **knobs
        The notebook's own parameters, kept for the record.

    Returns
    -------
    Settings

    Raises
    ------
    ParameterError
        If papermill injected a name that the notebook does not have, or one of the parameters
        listed here has another type. (Those of a notebook alone are checked by the engine.)
    ValueError
        If a scenario, profile or device is unknown.
    """
    # Asked before anything runs: a commit made meanwhile must not be recorded as what ran.
    code_version()
    every = {
        "scenario": scenario,
        "profile": profile,
        "device": device,
        "runs": runs,
        "data": data,
        "interactive": interactive,
    }
    given = {name: value for name, value in every.items() if value is not None}
    for name, value in given.items():
        check_type(name, value, _COMMON[name])
    scenario = "clean-r0" if scenario is None else scenario
    device, data = ("auto" if value is None else value for value in (device, data))
    check_names(_injected_names(), [*given, *knobs])
    if device not in DEVICES:
        raise ParameterError(f"device is {device!r}; choose 'auto', 'cpu' or 'cuda'")
    run = Run(anchored(runs), Profile.parse(profile), Scenario.parse(scenario))
    return Settings(run, device, data, interactive, {**given, **knobs})


def anchored(folder: str | Path) -> Path:
    """Read a folder relative to the repository, whatever the kernel's working folder is."""
    return (ROOT / Path(folder).expanduser()).resolve()


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a parameter that the notebook does not have, naming those that it has."""
    known = sorted(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ParameterError(
                f"this notebook has no parameter {name!r}{hint} Its parameters are: "
                f"{', '.join(known)}"
            )


def check_type(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another type than the default; an int may stand for a float."""
    fine = (
        isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float
        else isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    )
    if not fine:
        # papermill's -p makes numbers of what looks like one.
        raw = f"; write -r {name} {value}" if kind is str else ""
        raise ParameterError(
            f"parameter {name!r} is {value!r} ({type(value).__name__}); it takes a "
            f"{kind.__name__}{raw}"
        )


def assignments(source: str) -> Mapping[str, Any]:
    """Read the literal assignments of a cell: names and values."""
    return {name: ast.literal_eval(value) for name, value in _assigned(source)}


def _assigned(source: str) -> Iterator[tuple[str, ast.expr]]:
    """Read the assignments of a cell, whatever their values are."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            yield target.id, node.value


def _injected_names() -> list[str]:
    """Names that papermill's injected cell has set in this kernel; none outside papermill."""
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    return [
        name
        for source in cells
        if isinstance(source, str) and source.startswith("# Parameters\n")
        # The names alone: a value may be an expression, as papermill's float('inf').
        for name, _ in _assigned(source)
    ]
