import base64
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from runs import detected, finish

from nbsupport import site
from nbsupport.artifacts import Run
from nbsupport.scenarios import PROFILES, Scenario

PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c63000100000005000100000000ffff0d0a2db40000000049454e44ae426082"
    )
).decode()
LINKS = (
    "[a](00_overview.ipynb) [b](01_attacks.ipynb) [c](02_training.ipynb) [d](03_lrp.ipynb) "
    "[e](https://example.org) [f](#top)"
)


def picture(alt="A sign with a sticker."):
    return new_output(
        "display_data", {"image/png": PNG, "text/plain": alt}, metadata={"image/png": {"alt": alt}}
    )


def write(path, *outputs, text=LINKS):
    """Leave an executed notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell(text), new_code_cell("1 + 1", outputs=list(outputs))]
    nbformat.write(new_notebook(cells=cells), path)


def make_runs(base):
    """A finished run with two notebooks, an unfinished one with one, and the profile's own two."""
    profile = PROFILES["tiny"]
    run = Run(base, profile, Scenario.parse("standard-s3-p15-r0"))
    methods = {"activation": detected(9, 1, 30, 10), "heatmap": detected(10, 0, 38, 2)}
    finish(run, methods, clean_accuracy=96.54)
    for name in ("01_attacks", "02_training"):
        write(run.folder / f"{name}.ipynb", picture())
    write(base / "tiny" / "standard-s3-p05-r0" / "01_attacks.ipynb")
    for name in ("00_overview", "05_results"):
        write(base / "tiny" / f"{name}.ipynb", picture())
    return base


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site.build(make_runs(folder / "runs"), PROFILES["tiny"], folder / "site")
    return folder / "site"


def links(page):
    return {
        text: target
        for target, text in re.findall(r"<a href=.([^'\"]+)[^>]*>([^<]+)</a>", page.read_text())
    }


def test_every_executed_notebook_has_a_page_and_a_place_in_the_index(out):
    pages = {page.relative_to(out).as_posix() for page in out.rglob("*.html")}
    assert pages == {
        "index.html", "00_overview.html", "05_results.html",
        "standard-s3-p15-r0/01_attacks.html", "standard-s3-p15-r0/02_training.html",
        "standard-s3-p05-r0/01_attacks.html",
    }  # fmt: skip
    there = re.findall(r"href='([^']+)'", (out / "index.html").read_text())
    assert sorted(there) == sorted(pages - {"index.html"})


def test_the_index_tells_what_came_out(out):
    text = (out / "index.html").read_text()
    rows = dict(re.findall(r"<tr><th scope='row'>([^<]+)</th>(.*?)</tr>", text))
    cells = {name: re.findall(r"<td>([^<]*)</td>", row) for name, row in rows.items()}
    assert cells["standard-s3-p15-r0"] == [
        "20", "96.5", "100.0", "88.5", "90.0 / 75.0", "100.0 / 95.0", "– / –",
    ]  # fmt: skip
    assert cells["standard-s3-p05-r0"] == ["–"] * 4 + ["– / –"] * 3
    assert "Heatmap Clustering: TPR / TNR (%)" in text


def test_links_between_notebooks_lead_to_their_pages(out):
    found = links(out / "standard-s3-p15-r0" / "02_training.html")
    assert found["a"] == "../00_overview.html"
    assert found["b"] == "01_attacks.html"
    assert found["d"] == "../index.html", "no run has notebook 3"
    assert found["e"] == "https://example.org"
    assert found["All runs"] == "../index.html"
    # From the profile's pages to the first run that has the notebook.
    found = links(out / "05_results.html")
    assert found["b"] == "standard-s3-p05-r0/01_attacks.html"
    assert found["c"] == "standard-s3-p15-r0/02_training.html"
    assert found["d"] == "index.html"


def test_a_sound_site_has_no_problems_and_shows_its_pictures(out):
    assert site.check(out) == []
    text = (out / "standard-s3-p15-r0" / "01_attacks.html").read_text()
    assert 'alt="A sign with a sticker."' in text
    assert PNG in text.replace("\n", "")


def test_problems_are_found_and_named_with_their_page(tmp_path):
    folder = tmp_path / "runs" / "tiny" / "standard-s3-p15-r0"
    write(folder / "01.ipynb", picture(alt=""), text="")
    error = new_output("error", ename="E", evalue="e", traceback=["E"])
    write(folder / "02.ipynb", error, text="")
    write(folder / "03.ipynb", text="[x](nowhere.html) [y](01.html) [z](../other.txt#part)")
    write(folder / "04.ipynb", text="![a picture](gone.png)")
    site.build(tmp_path / "runs", PROFILES["tiny"], tmp_path / "site")
    assert site.check(tmp_path / "site") == [
        "standard-s3-p15-r0/01.html: picture without alternative text",
        "standard-s3-p15-r0/02.html: a cell ended in an error",
        "standard-s3-p15-r0/03.html: dead link nowhere.html",
        "standard-s3-p15-r0/03.html: dead link ../other.txt#part",
        "standard-s3-p15-r0/04.html: missing picture 'gone.png'",
    ]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    runs = make_runs(tmp_path / "runs")
    arguments = ["--profile", "tiny", "--runs", str(runs), "--out", str(tmp_path / "site")]
    assert site.main(arguments) == 0
    assert "6 pages: " in capsys.readouterr().out
    write(runs / "tiny" / "05_results.ipynb", picture(alt=""))
    assert site.main(arguments) == 1
    assert "05_results.html: picture without" in capsys.readouterr().out
    assert site.main([*arguments, "--profile", "demo"]) == 2
    assert "make run PROFILE=demo" in capsys.readouterr().err
    assert site.main([*arguments, "--profile", "nope"]) == 2
