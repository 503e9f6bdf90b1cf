import base64
import re
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from runs import detected, finish

from nbsupport import site, widgets
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
    runs = make_runs(folder / "runs")
    # What JupyterLab leaves beside a notebook that somebody saved.
    shutil.copytree(runs / "tiny" / "standard-s3-p15-r0", runs / "tiny" / ".ipynb_checkpoints")
    site.build(runs, PROFILES["tiny"], folder / "site")
    return folder / "site"


def test_only_formulas_ask_the_net_for_anything(out):
    for page in out.rglob("*.html"):
        tags = re.sub(r"<a [^>]*>", "", page.read_text())
        asked = re.findall(
            r"""(?:src|href)\s*=\s*["']?([^"' >]+)|import [^;]*["'](http[^"']+)""", tags
        )
        hosts = [link for pair in asked for link in pair if re.match("(https?:)?//", link)]
        assert ["mathjax" in host.lower() for host in hosts] == [True] * (page.stem != "index")


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


def shown(*outputs):
    """Text of the streams of a cell with these outputs, as a page shows them."""
    notebook = new_notebook(
        cells=[new_markdown_cell("x"), new_code_cell("1", outputs=list(outputs))]
    )
    site._shorten(notebook)
    return [output.get("text", output.output_type) for output in notebook.cells[1].outputs]


def stream(*lines, name="stdout"):
    """Outputs of a cell that printed these lines one by one, as a kernel sends them."""
    return [new_output("stream", name=name, text=f"{line}\n") for line in lines]


def test_of_progress_a_page_keeps_the_last_line_of_each_label():
    first = "10 of 1,684, 0 s, about 5 s left", "1,684 of 1,684, 1 min 05 s; done"
    second = "32 of 1,684, 2 s", "3 of 4 images read", "1,684 of 1,684, 2 h 05 min"
    printed = [f"relevance, gamma: {line}" for line in first] + list(second)
    assert shown(*stream(*printed), picture(), *stream("a: 1 of 2, 0 s", "b: 1 of 2, 0 s")) == [
        "\n".join([printed[1], *second]) + "\n",
        "display_data",
        "a: 1 of 2, 0 s\nb: 1 of 2, 0 s\n",
    ]


def test_progress_as_it_is_reported_is_understood(monkeypatch, capsys):
    monkeypatch.setattr(widgets._Lines, "wait", lambda self, elapsed: 0)
    report = widgets.reporter(False, "training")
    for epoch in range(1, 4):
        report(epoch, 3, f"loss {1 / epoch:.3f}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert shown(*stream(*lines)) == [lines[-1] + "\n"]


def test_a_page_shows_the_words_of_a_warning_once_and_no_path(tmp_path):
    text = "/private/folder/package/gw.py:{}: UserWarning: 1 of 9 maps is dark\n  gw.fit(X)"
    other = "/private/kernel_7/1.py:1: RuntimeWarning: nothing to divide"
    said = stream(text.format(7), text.format(9), other, "a line", "a line", name="stderr")
    assert shown(*said, picture(), *stream(text.format(8), name="stderr")) == [
        "UserWarning: 1 of 9 maps is dark\nRuntimeWarning: nothing to divide\na line\na line\n",
        "display_data",
    ]
    source = tmp_path / "runs" / "tiny" / "standard-s3-p15-r0" / "01.ipynb"
    write(source, *said)
    before = source.read_bytes()
    site.build(tmp_path / "runs", PROFILES["tiny"], tmp_path / "site")
    page = (tmp_path / "site" / "standard-s3-p15-r0" / "01.html").read_text()
    assert "maps is dark" in page
    assert "/private/folder" not in page
    assert source.read_bytes() == before


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


def test_folders_that_are_no_runs_have_no_pages(tmp_path):
    runs = make_runs(tmp_path / "runs")
    (folder,) = [path for path in (runs / "tiny").glob("standard*") if path.is_dir()][:1]
    shutil.copytree(folder, folder.with_name(f"{folder.name}_backup"))
    pages = site.build(runs, PROFILES["tiny"], tmp_path / "site")
    assert not any("backup" in str(page) for page in pages)


def test_pages_of_another_profile_are_not_the_concern_of_this_one(tmp_path, capsys):
    runs = make_runs(tmp_path / "runs")
    shutil.copytree(runs / "tiny", runs / "demo")
    write(runs / "demo" / "07_x.ipynb", picture(alt=""))
    arguments = ["--runs", str(runs), "--out", str(tmp_path / "site"), "--profile"]
    assert site.main([*arguments, "demo"]) == 1
    assert site.main([*arguments, "tiny"]) == 0, capsys.readouterr().out


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
