"""Hygiene of the repository: notebooks, floors, dependencies, nothing private or heavy."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import networks
import pytest
import torch
import yaml

from nbsupport import ROOT
from nbsupport.artifacts import NETWORKS, PLACE, finished_runs
from nbsupport.evaluation import predict
from nbsupport.poison_detector import PoisonDetector

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

FLOORS = (
    {"augmentation", "clusterers", "devices", "gtsrb", "gw", "localisation", "metrics", "models",
     "scenarios", "widgets"},
    {"art_adapter", "artifacts", "attacks", "detectors", "distances", "layouts", "paper",
     "pictograms", "rules", "tracing"},
    {"audits", "baselines", "embeddings", "execution", "figures", "graph", "results", "synthetic",
     "transport", "workflow"},
    {"attribution", "barycentres", "data", "embedding_clustering", "engine", "gradients",
     "pictures", "plots", "poison_detector", "published", "site"},
    {"evaluation", "heatmap_clustering", "lrp"},
    {"cli", "evidence", "patterns", "tables", "training"},
    {"detection", "retraining"},
    {"ablation", "scan"},
    {"checkup", "claims"},
)  # fmt: skip
"""The house, ground floor first: a module imports only from floors below its own."""


def tracked() -> list[Path]:
    """List the files that git holds, or all files outside a checkout."""
    try:
        command = ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard", "-z"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_the_notebooks_are_there():
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        "00_overview", "01_attacks", "02_training", "03_lrp", "04_gw_clustering", "05_results",
        "06_beyond", "07_ablation", "08_your_network",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_runs_anywhere(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3",
    }  # fmt: skip
    assert "papermill" not in notebook.metadata
    assert "widgets" not in notebook.metadata
    assert [cell.id for cell in notebook.cells] == [str(i) for i in range(len(notebook.cells))]
    for cell in code_cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert "papermill" not in cell.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_with_hints_and_all_are_checked(path):
    tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    tree = ast.parse(tagged[0].source).body
    assert all(isinstance(node, ast.AnnAssign) for node in tree)
    hints = {node.target.id: node.annotation.id for node in tree}
    assert set(hints.values()) <= {"str", "int", "float", "bool"}
    assert all(type(ast.literal_eval(n.value)).__name__ == n.annotation.id for n in tree)
    assert all("#" in line for line in tagged[0].source.splitlines())
    calls = [
        node
        for cell in code_cells(path)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "resolve"
    ]
    assert len(calls) == 1
    assert {keyword.arg for keyword in calls[0].keywords} == set(hints)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rhythm(path):
    cells = nbformat.read(path, 4).cells
    code = code_cells(path)
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    definitions = [
        line for c in code for line in c.source.splitlines() if line.lstrip()[:4] == "def "
    ]
    assert len(definitions) <= 2
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert text[0].startswith("# ")
    assert "**You will**" in text[1]
    assert any(source.startswith("## Exercises") for source in text)
    assert "## References" in text[-1]
    for link in re.findall(r"\]\(([^)]+)\)", "\n".join(text)):
        # Executed copies and web pages lie in other folders, where no other path leads anywhere.
        assert re.fullmatch(r"\d\d_[a-z_]+\.ipynb|https?://.*|#.*", link), f"{path.stem}: {link}"
        assert ":" in link or link[0] == "#" or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_alt_text_and_no_result_needs_a_widget(path):
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("figures.show"):
                assert "alt" in {keyword.arg for keyword in node.keywords}
        assert "plt.show" not in cell.source
        if "widgets.browse" in cell.source:
            assert cell.source.startswith("if interactive:")


MODULES = {path.stem for path in (ROOT / "nbsupport").glob("*.py")} - {"__init__"}


def imported(source: str) -> set[str]:
    """Modules of the package that a source imports, at its top or later."""
    tree = ast.parse(source)
    # Types that are only named in hints may come from anywhere.
    tree.body = [n for n in tree.body if "TYPE_CHECKING" not in ast.unparse(n).split("\n")[0]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbsupport"):
            parts = node.module.split(".")[1:]
            found |= set(parts or [a.name for a in node.names]) & MODULES
    return found


def module_imports(name: str) -> set[str]:
    return imported((ROOT / "nbsupport" / f"{name}.py").read_text())


def test_modules_import_from_floors_below_only():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert set(floor) == MODULES, "give a new module its floor here"
    for name in MODULES:
        for other in module_imports(name):
            assert floor[other] < floor[name], f"{name} imports {other}"


@pytest.mark.parametrize(
    ("rule", "notebook", "behind"),
    [
        ("gw_clustering", "04_gw_clustering", True),
        ("ablation", "07_ablation", True),
        ("beyond", "06_beyond", False),  # what is behind these two stands in stages
        ("results", "05_results", False),
    ],
)
def test_the_workflow_watches_the_modules_of_quick_steps(rule, notebook, behind):
    text = (ROOT / "Snakefile").read_text().partition(f"rule {rule}:")[2].partition("\nrule ")[0]
    watched = set(re.findall(r'"(\w+)"', re.search(r"modules=modules\((.*?)\)", text, re.S)[1]))
    cells = code_cells(ROOT / "notebooks" / f"{notebook}.ipynb")
    used = imported("\n".join(cell.source for cell in cells))
    while behind and (more := set().union(*map(module_imports, used)) - used):
        used |= more
    # Images, networks and records come from stages with versions.
    used -= {"artifacts", "attacks", "data", "devices", "evaluation", "execution", "gtsrb",
             "layouts", "models", "pictograms", "scenarios", "synthetic", "widgets"}  # fmt: skip
    if behind:  # what is only shown changes no verdict
        used -= {"audits", "figures", "paper", "pictures", "plots", "results", "tables"}
    assert used - watched == set(), f"rule {rule} does not rerun when these change"
    assert watched <= MODULES


def test_light_modules_need_no_torch():
    code = (
        "import sys, papermill, nbsupport.scenarios, nbsupport.artifacts, nbsupport.paper,"
        "nbsupport.metrics, nbsupport.cli, nbsupport.engine; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_widgets_imports_ipywidgets_and_nothing_imports_snakemake():
    for path in [*(ROOT / "nbsupport").glob("*.py"), *NOTEBOOKS]:
        text = path.read_text()
        assert "import snakemake" not in text
        assert "from snakemake" not in text
        if path.stem != "widgets":
            assert "import ipywidgets" not in text


def test_environment_yml_mirrors_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    lines = re.findall(r"^      - (\S+)(.*)$", (ROOT / "environment.yml").read_text(), re.M)
    listed = {name for name, _ in lines if not name.startswith("-")}
    assert listed == wanted
    assert all("# " in reason for _, reason in lines), "every line says why"


def test_whatever_is_imported_is_declared():
    """What came with another package today may not come tomorrow."""
    names = {"PIL": "pillow", "IPython": "ipython", "ot": "POT", "sklearn": "scikit-learn",
             "yaml": "pyyaml"}  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = {"package": project["dependencies"]}
    told["tests"] = told["package"] + project["optional-dependencies"]["test"]
    folders = {"package": ("nbsupport", "notebooks"), "tests": ("tests", "benchmarks")}
    for users, declared in told.items():
        files = [each for each in tracked() if each.relative_to(ROOT).parts[0] in folders[users]]
        own = {path.stem for path in files} | {"nbsupport"} | set(sys.stdlib_module_names)
        sources = [code_of(path) for path in files if path.suffix in {".py", ".ipynb"}]
        used = {name.split(".")[0] for source in sources for name in imports_of(source)} - own
        wanted = {names.get(name, name) for name in used}
        missing = wanted - {each.split(">=")[0] for each in declared}
        assert len(used) > 5
        assert not missing, f"{users}: {sorted(missing)} are imported and not declared"


def code_of(path):
    """Source of a module, or of all code cells of a notebook."""
    text = path.read_text()
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def imports_of(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_constraints_pin_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert {name.split(">=")[0].lower() for name in wanted} <= pinned


def test_the_cell_that_trains_builds_what_it_trains():
    """Run again after a stop, it would go on from half-trained weights and say nothing."""
    cells = nbformat.read(ROOT / "notebooks" / "02_training.ipynb", 4).cells
    (source,) = (cell.source for cell in cells if "training.fit(" in cell.source)
    assert 0 <= source.find("model = models.build(") < source.index("training.fit(")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_what_the_dependencies_need_as_well():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line.split("==")[0]) for line in lines if "==" in line}
    installed = {canonical(each.name) for each in metadata.distributions()}
    seen, waiting = set(), [("nbsupport", ("workflow", "test"))]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for words, _, marker in (each.partition(";") for each in metadata.requires(name) or []):
            needed = canonical(re.match(r"[\w.-]+", words)[0])
            asked = re.search(r"""extra == ['"]([^'"]+)""", marker)
            # Whether a condition on Python or the system holds is seen by what is installed.
            if needed in installed and (not asked or asked[1] in extras):
                more = re.search(r"\[(.*?)\]", words)
                waiting.append((needed, tuple(more[1].split(",")) if more else ()))
    assert len(seen) > 100
    assert {name for name, _ in seen} - {"nbsupport"} <= pinned


def test_nothing_private_or_heavy_is_committed():
    for path in tracked():
        if not path.is_relative_to(NETWORKS):
            assert path.stat().st_size < 1_000_000, f"{path} is too large for git"
            assert path.suffix not in {".npz", ".npy", ".pt", ".pkl", ".safetensors", ".xz", ".ppm"}
        if path.suffix in {".py", ".md", ".ipynb", ".yml", ".toml", ".json", ".csv", ".cff", ""}:
            text = path.read_text(errors="ignore")
            # A machine's folders (written apart here, or this test would find itself).
            for private in ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/tm" + "p/"):
                assert private not in text, f"{path} names {private}"


def test_published_networks_are_sound_clean_and_without_images():
    found = finished_runs(NETWORKS, "training")
    names = sorted(str(path.relative_to(NETWORKS)) for path in NETWORKS.rglob("*.*"))
    assert [(str(run.profile), str(run.scenario)) for run in found] == [("fast", "clean-r0")]
    files = ("attack.json", "attack.npz", "model.safetensors", "training.json")
    assert names == [f"fast/clean-r0/{name}" for name in files]
    for run in found:
        assert all(len(array) == 0 for array in run.arrays("attack").values())
        assert sum(path.stat().st_size for path in run.folder.iterdir()) < 5_000_000
        record = run.load("training")
        assert not set(record["parameters"]) & set(PLACE)
        assert "+" not in record["code"], "made by code that was never committed"
        assert record["result"]["clean_accuracy"] > 90


def python_blocks(part):
    """Find the examples in a part of the README."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {part}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_readme_s_example_for_a_grid_groups_every_published_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = python_blocks("A grid")
    *lines, last = block.splitlines()
    names = {}
    exec("\n".join(lines), names)
    grouped = eval(last, names)
    assert len(names["rows"]) >= 30
    assert names["rows"].attack_took.all()
    assert grouped["tpr", "count"].sum() == len(names["rows"])
    assert len(grouped) == names["rows"].scenario.str.replace(r"-r\d+$", "", regex=True).nunique()


def test_the_readme_s_examples_for_your_own_model_run():
    blocks = python_blocks("Your own model")
    assert len(blocks) == 2, "the second goes on from the first"
    model = networks.trained()
    noise = 0.02 * torch.rand(24, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = (255 * (networks.images() + noise).clamp(0, 1)).to(torch.uint8).flatten(0, 1)
    labels = predict(model, images, torch.device("cpu")).argmax(1)
    assert len(labels.unique()) > 1
    names = {"model": model, "images": images, "labels": labels}
    for block in blocks:
        exec(block, names)
    assert {verdict.label for verdict in names["verdicts"]} == set(labels.tolist())
    assert len(names["verdict"].poisoned) == (labels == names["label"]).sum()
    # One class or all of them: the same evidence, and the same verdict.
    scanned, told = names["verdicts"][0], names["inputs"].evidence
    judge = PoisonDetector().fit(told)
    assert judge.n_strong_ == scanned.n_strong
    assert judge.strength(told).max() == pytest.approx(scanned.strongest, rel=1e-6)
    assert names["suspicious"].tolist() == scanned.accused.tolist()
    assert len(names["other"].poisoned) == len(names["inputs"].ids)


def test_the_floors_in_the_readme_are_those_checked_here():
    lines = re.findall(r"^    floor (\d)   (.*)$", (ROOT / "README.md").read_text(), re.M)
    assert [set(names.split()) for _, names in lines] == list(FLOORS)


def test_makefile_takes_lists_from_loops_and_refuses_unknown_settings():
    def make(*words):
        command = ["make", "-n", "status", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    listed = make("SCENARIOS=standard-s3-p33-r0\nstandard-s3-p15-r0\n")
    assert "--scenarios standard-s3-p33-r0 standard-s3-p15-r0" in listed.stdout
    wrong = make("SCENARIO=standard-s3-p33-r0")
    assert wrong.returncode != 0
    assert "no setting is called SCENARIO" in wrong.stderr
    assert "SCENARIOS" in wrong.stderr


@pytest.mark.parametrize(
    "page", ["README.md", "data/README.md", "figures/README.md", "benchmarks/README.md"]
)
def test_a_readme_names_what_exists(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page} links to {link}"
    for picture in re.findall(r"!\[([^\]]*)\]", text):
        assert picture.strip(), "a picture without alt text"
    targets = set(re.findall(r"\bmake ([a-z-]+)", text))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert targets <= known


def anchors(page):
    """Headings as GitHub names them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_cluster_profiles_give_a_gpu_to_every_rule_that_computes_on_one(name):
    rules = re.split(r"^rule ", (ROOT / "Snakefile").read_text(), flags=re.M)[1:]
    wanted = {text.split(":")[0] for text in rules if "gpu=int(GPU)" in text}
    assert {"training", "lrp", "ablation"} <= wanted
    profile = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
    assert {rule for rule, asked in profile["set-resources"].items() if asked["gpu"]} == wanted
    assert set(profile["set-threads"]) == wanted


def test_a_training_is_not_deleted_before_somebody_asks_whether_it_is_needed():
    """Snakemake deletes outputs before a job, unless they are marked."""
    text = (ROOT / "Snakefile").read_text().partition("rule retraining:")[2].partition("log:")[0]
    outputs = text.partition("output:")[2]
    assert len(re.findall(r"update\(", outputs)) == outputs.count("RUN}/retrained") == 2
