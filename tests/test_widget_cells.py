"""The cells that browse: every callback of every notebook, at the ends of all its controls.

A notebook in full takes minutes. Here each runs cut down to the cells that its widgets need, on a
run whose network was never trained. ipywidgets shows what a callback raises in the callback's own
output and goes on; so the output is read, and the callbacks are called once more without it.
"""

import ast
import dis
from types import CodeType

import nbformat
import numpy as np
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.exceptions import PapermillExecutionError
from runs import finish

from nbsupport import ROOT, attacks, data, evidence, models, results
from nbsupport.artifacts import Run
from nbsupport.scenarios import PROFILES, Scenario

pytestmark = pytest.mark.notebooks

SCENARIO = Scenario.parse("standard-s3-p15-r0")  # what the notebooks take when told nothing
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
BROWSE = "widgets.browse("
KIND = "application/vnd.jupyter.widget-{}+json"

TO_THE_ENDS = """
import gc
import ipywidgets

def ends_of(control):
    if hasattr(control, "options"):
        return control.options[0], control.options[-1]
    return (control.min, control.max) if hasattr(control, "min") else (False, True)

for box in [w for w in gc.get_objects() if type(w) is ipywidgets.interactive]:
    ends = {control._kwarg: ends_of(control) for control in box.kwargs_widgets}
    cases = [{name: two[k] for name, two in ends.items()} for k in (0, 1)]
    cases += [box.kwargs | {name: end} for name, two in ends.items() for end in two]
    for case in cases:
        box.f(**case)
    print("called", len(cases), "times")
"""


def globals_of(source):
    """Global names that a cell reads before it binds them, and those that it binds or fills."""
    read, bound, codes = set(), set(), [compile(source, "cell", "exec")]
    filled = {
        node.value.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
    }  # fmt: skip
    for code in codes:
        for step in dis.get_instructions(code):
            if step.opname == "STORE_NAME":
                bound.add(step.argval)
            elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in bound:
                read.add(step.argval)
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    return read, bound | filled


def cut(path):
    """Return a notebook of the cells that browse and all that they need, and one that calls."""
    notebook, kept, wanted = nbformat.read(path, 4), [], set()
    for cell in reversed([c for c in notebook.cells if c.cell_type == "code"]):
        read, bound = globals_of(cell.source)
        if BROWSE in cell.source or bound & wanted:
            kept.append(cell)
            wanted |= read
    notebook.cells = [*reversed(kept), new_code_cell(TO_THE_ENDS, id="ends")]
    return notebook


def execute(notebook, folder, **parameters):
    """Run a notebook as somebody would who watches it; return it with what its widgets show."""
    nbformat.write(notebook, folder / "in.ipynb")
    done = papermill.execute_notebook(
        folder / "in.ipynb", folder / "out.ipynb", parameters, engine_name="nbsupport",
        kernel_name="python3", progress_bar=False,
    )  # fmt: skip
    state = done.metadata["widgets"][KIND.format("state")]["state"].values()
    shown = [w["state"]["outputs"] for w in state if w["model_name"] == "OutputModel"]
    return done, shown


def faults(shown):
    """What the callbacks raised, printed or warned of."""
    kinds = ("error", "stream")
    return [output for outputs in shown for output in outputs if output["output_type"] in kinds]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs: one up to the heatmaps and the scan of its classes, and a finished one."""
    run = Run(tmp_path_factory.mktemp("runs"), PROFILES["tiny"], SCENARIO)
    dataset = data.load(run.profile.data, scale=run.profile.scale)
    manifest = attacks.poison(SCENARIO, dataset)
    run.save("attack", manifest.arrays(), {"fingerprint": dataset.fingerprint})
    network = models.build(SCENARIO.model, seed=0)
    run.save("training", network.state_dict(), {}, made_from=((run, "attack"),))
    both = ((run, "attack"), (run, "training"))
    ids = attacks.apply(manifest, dataset).train.of_class(SCENARIO.target_class).ids.numpy()
    n, rng = len(ids), np.random.default_rng(0)
    # Few pixels of relevance, as a trained network has them: many would take minutes to match.
    piece = np.pad(rng.random((n, 8, 8)), ((0, 0), (8, 16), (20, 4)))
    maps = {f"heatmaps_{name}": piece for name in ("released", "squared", "gamma", "paper")}
    asked = {k: rng.random((n, 2)) for k in ("row", "column", "occluded", "answer", "gain")}
    asked = evidence.Evidence((3, 5), margin=rng.random(n), carried=asked["gain"], **asked)
    seen = {"ids": ids, "activations": rng.random((n, 64)), "logits": rng.random((n, 43))}
    run.save("relevance", seen | maps | asked.arrays(), {}, made_from=both)
    called = {k: np.array([5, 2]) for k in ("label", "n", "n_class", "n_strong", "strongest")}
    called |= {"present": np.array([True, False]), "share": np.array([0.15, 0.0])}
    called |= {"first_share": np.array([0.15, 0.4]), "accused": ids[:3]}
    run.save("scan", called, {"named": {"5": ["evidence"]}}, made_from=both)
    finish(run.of(Scenario.parse("standard-s3-p05-r0")), ("activation", "heatmap", results.OURS))
    return run.runs


def test_a_cut_keeps_what_is_read_and_nothing_else():
    assert globals_of("a = b\nc = [a + d for d in e]\nf(a)") == ({"b", "e", "f"}, {"a", "c"})
    assert globals_of("t['new'] = t['old']") == ({"t"}, {"t"})
    assert globals_of("g = g + 1\ndef h(x): return x + i") == ({"g", "i"}, {"g", "h"})


@pytest.mark.parametrize("name", [n for n, p in NOTEBOOKS.items() if BROWSE in p.read_text()])
def test_callbacks_show_something_wherever_their_controls_stand(name, runs, tmp_path):
    notebook = cut(NOTEBOOKS[name])
    n = sum(cell.source.count(BROWSE) for cell in notebook.cells)
    done, shown = execute(notebook, tmp_path, profile="tiny", runs=str(runs), interactive=True)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    views = [output for output in outputs if KIND.format("view") in output.get("data", {})]
    assert len(views) >= len(shown) == n  # progress has views, too
    assert all(shown)
    assert faults(shown) == []
    assert "".join(o.text for o in done.cells[-1].outputs if "text" in o).count("called") == n


@pytest.mark.parametrize("value", [5, 2])
def test_a_callback_that_raises_is_noticed(value, tmp_path):
    """At the end of its control, and where it stands at first."""
    cells = [
        "from nbsupport import widgets",
        f"widgets.browse(lambda side: print(1 / (side - {value})), side=(0, 5))",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    _, shown = execute(notebook, tmp_path)
    assert {o["output_type"] for o in faults(shown)} == {"error" if value == 2 else "stream"}
    if value == 5:
        notebook.cells.append(new_code_cell(TO_THE_ENDS))
        with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
            execute(notebook, tmp_path)
