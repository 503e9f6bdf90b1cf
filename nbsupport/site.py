"""Executed notebooks as web pages: one folder, one index, links that lead somewhere.

``python -m nbsupport.site --profile demo`` writes ``site/``; ``make site`` does the same.
"""

import argparse
import html
import re
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from nbsupport.artifacts import ArtifactError, Run
from nbsupport.execution import anchored
from nbsupport.figures import method_style
from nbsupport.results import OURS
from nbsupport.scenarios import Profile, Scenario

__all__ = ["build", "check", "main"]

TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
"""
"""The classic template keeps the alternative texts of pictures, others drop them. Its scripts for
widgets and diagrams, which pages without either would fetch from the net, are left out; MathJax,
which sets the formulas, stays."""

SHOWN = ("activation", "heatmap", OURS)
"""Methods whose rates stand in the index; the pages have all."""

STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
       color: #1a1a1a; line-height: 1.45; }
table { border-collapse: collapse; } caption { text-align: left; padding-bottom: .5rem; }
th, td { border-bottom: 1px solid #bbb; padding: .3rem .7rem; text-align: right; }
th[scope=row], td:last-child, th:last-child { text-align: left; } a { color: #0b57a4; }
"""


def build(runs: Path, profile: Profile, out: Path) -> list[Path]:
    """Write the executed notebooks of a profile as HTML, and an index of its runs.

    Parameters
    ----------
    runs : Path
        Folder of all runs.
    profile : Profile
        Whose runs are shown.
    out : Path
        Folder of the site; pages that are there are replaced.

    Returns
    -------
    list of Path
        All pages, the index first.

    Raises
    ------
    ArtifactError
        If there is no executed notebook.
    """
    base, out = Path(runs) / str(profile), Path(out)
    sources = sorted(base.glob("[0-9]*.ipynb")) + [
        path for path in sorted(base.glob("[!.]*/[0-9]*.ipynb")) if _is_run(path.parent.name)
    ]
    if not sources:
        raise ArtifactError(
            f"no executed notebook below {base}; make some with\n  make run PROFILE={profile}"
        )
    pages = {source: out / source.relative_to(base).with_suffix(".html") for source in sources}
    exporter = HTMLExporter(template_name="classic", raw_template=TEMPLATE)
    for source, page in pages.items():
        notebook = nbformat.read(source, 4)
        _shorten(notebook)
        _relink(notebook, page, set(pages.values()), out)
        scenario = "" if source.parent == base else f" · {source.parent.name}"
        title = {"metadata": {"name": f"{source.stem}{scenario} · {profile}"}}
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(exporter.from_notebook_node(notebook, resources=title)[0])
    index = out / "index.html"
    index.write_text(_index(Path(runs), profile, list(pages.values()), out))
    return [index, *pages.values()]


def _is_run(folder: str) -> bool:
    """Whether a folder is named as a run is; a copy of one, for example, is not."""
    try:
        Scenario.parse(folder)
    except ValueError:
        return False
    return True


_TIME = r"(?:\d+ s|\d+ min \d\d s|\d+ h \d\d min)"
_PROGRESS = re.compile(rf"(?:(?P<label>.+): )?[\d,]+ of [\d,]+, {_TIME}(?:[,;] .*)?\n?")
"""A line of `widgets.reporter`: of what, how much is done, and the time it took."""

_WARNING = re.compile(r"^\S.*?:\d+: (\w*Warning: .*\n?)(?:  \S.*\n?)?", re.MULTILINE)
"""What Python prints of a warning: file and line, kind and text, then the line of the source."""


def _shorten(notebook) -> None:
    """Keep the last line of progress, and of warnings the words: once, without a file's path."""
    joined = CoalesceStreamsPreprocessor()  # a kernel sends a line at a time
    for cell in notebook.cells:
        joined.preprocess_cell(cell, {}, 0)
        outputs, told = cell.get("outputs", []), set()
        for output in outputs:
            if output.get("name") == "stdout":
                output.text = _without_progress(output.text)
            elif output.get("name") == "stderr":
                output.text = _words_of_warnings(output.text, told)
        if outputs:
            cell.outputs = [output for output in outputs if output.get("text") != ""]


def _without_progress(text: str) -> str:
    """Drop each line of progress that is followed by another with the same label."""
    lines = text.splitlines(keepends=True)
    progress = [_PROGRESS.fullmatch(line) for line in lines]
    labels = [match and (match["label"] or "") for match in progress]
    pairs = zip(lines, labels, [*labels[1:], None], strict=True)
    return "".join(line for line, own, following in pairs if own is None or own != following)


def _words_of_warnings(text: str, told: set[str]) -> str:
    """Reduce each warning to its words; drop those ``told`` before, and add the others to it."""

    def words(match: re.Match) -> str:
        new = match[1] not in told
        told.add(match[1])
        return match[1] if new else ""

    return _WARNING.sub(words, text)


def _relink(notebook, page: Path, pages: set[Path], out: Path) -> None:
    """Lead links between notebooks to pages: of the same run, else of the profile, else the index.

    A page of the profile leads to the first run that has the notebook.
    """
    up = "" if page.parent == out else "../"

    def target(match: re.Match) -> str:
        name = f"{match[1]}.html"
        if page.parent / name in pages:
            return f"]({name})"
        if out / name in pages:
            return f"]({up}{name})"
        runs = sorted(each for each in pages if each.name == name)
        there = runs[0].relative_to(out).as_posix() if runs and not up else f"{up}index.html"
        return f"]({there})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", target, cell.source)
    back = f"[All runs]({up}index.html)"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(back, id="site"))


def _index(runs: Path, profile: Profile, pages: list[Path], out: Path) -> str:
    """Write the index: one row a run, with what came out and where to read it."""
    head = ["run", "poisoned images", "clean accuracy (%)", "ASR (%)", "MASR (%)"]
    head += [f"{method_style(method).label}: TPR / TNR (%)" for method in SHOWN] + ["pages"]
    rows = []
    for folder in dict.fromkeys(page.parent for page in pages if page.parent != out):
        cells = _numbers(Run(runs, profile, Scenario.parse(folder.name)))
        links = _links([page for page in pages if page.parent == folder], out)
        rows.append(
            f"<tr><th scope='row'>{html.escape(folder.name)}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + f"<td>{links}</td></tr>"
        )
    heads = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in head)
    together = _links([page for page in pages if page.parent == out], out)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Heatmap Clustering, profile {profile}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>Heatmap Clustering, the living edition</h1>\n<p>{together}</p>\n"
        f"<table><caption>{len(rows)} run{'s' * (len(rows) != 1)}, profile {profile}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>\n"
        "</body></html>\n"
    )


def _links(pages: Iterable[Path], out: Path) -> str:
    return " · ".join(
        f"<a href='{page.relative_to(out).as_posix()}'>{page.stem.replace('_', ' ')}</a>"
        for page in sorted(pages)
    )


def _numbers(run: Run) -> list[str]:
    """Tell what a run came to; a dash where it is not finished, or not sound any more."""
    training = run.load("training")["result"] if run.has("training") else {}
    methods = run.load("detection")["result"]["methods"] if run.has("detection") else {}
    rates = [training.get(name) for name in ("clean_accuracy", "asr", "masr")]
    found = [methods.get(method, {}) for method in SHOWN]
    return [
        str(training["counts"]["train"]["n_poisoned"]) if training else "–",
        *(_percent(rate) for rate in rates),
        *(" / ".join(_percent(rates.get(name)) for name in ("tpr", "tnr")) for rates in found),
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


class _Page(HTMLParser):
    """Collects what can be wrong with a page."""

    def __init__(self):
        super().__init__()
        self.links, self.pictures, self.errors = [], [], 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append((given.get("src") or "", (given.get("alt") or "").strip()))
        self.errors += "output_error" in (given.get("class") or "").split()


def check(out: Path, pages: Iterable[Path] | None = None) -> list[str]:
    """Find what is wrong with the pages of a site.

    Parameters
    ----------
    out : Path
        Folder of the site.
    pages : iterable of Path, optional
        Which pages; all below the folder if left out.

    Returns
    -------
    list of str
        Pictures without alternative text or without file, errors among the outputs, relative links
        that lead nowhere; each with its page.
    """
    found = []
    for page in sorted(Path(out).rglob("*.html") if pages is None else pages):
        parser = _Page()
        parser.feed(page.read_text())
        there = [link for link in parser.links if not re.match(r"[a-z]+:|#|//", link)]
        files = [src for src, _ in parser.pictures if not re.match(r"(data|https?):", src)]
        wrong = [f"dead link {link}" for link in there if not _leads(page, link)]
        wrong += [f"missing picture {src!r}" for src in files if not src or not _leads(page, src)]
        # nbconvert's own words for a picture that has none.
        silent = ("", "No description has been provided for this image", "No output", "image")
        wrong += ["picture without alternative text" for _, alt in parser.pictures if alt in silent]
        wrong += ["a cell ended in an error"] * bool(parser.errors)
        found += [f"{page.relative_to(out)}: {text}" for text in wrong]
    return found


def _leads(page: Path, link: str) -> bool:
    return (page.parent / link.partition("#")[0].partition("?")[0]).is_file()


def main(arguments: Iterable[str] | None = None) -> int:
    """Build the site, say what is wrong with it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nbsupport.site", description=__doc__)
    parser.add_argument("--profile", default="demo", help="whose runs are shown")
    parser.add_argument("--runs", default="data/runs", help="folder of all runs")
    parser.add_argument("--out", default="site", help="folder to write")
    options = parser.parse_args(arguments)
    out = anchored(options.out)
    try:
        pages = build(anchored(options.runs), Profile.parse(options.profile), out)
    except (ArtifactError, ValueError) as error:
        print(f"nbsupport: {error}", file=sys.stderr)
        return 2
    problems = check(out, pages)
    print("\n".join([*problems, f"{len(pages)} pages: {pages[0]}"]))
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
