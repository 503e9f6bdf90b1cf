"""The check of the site in a real browser sees what is wrong. Without a browser it is skipped."""

import importlib.util
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nbsupport import ROOT, site
from nbsupport.scenarios import PROFILES

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome")
def test_the_browser_sees_errors_and_missing_pictures(tmp_path):
    spec = importlib.util.spec_from_file_location("browse", ROOT / "benchmarks" / "site.py")
    browse = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browse)
    pages = {
        "sound": new_markdown_cell("Nothing here."),
        "error": new_code_cell("1 / 0", outputs=[new_output("error", ename="E", traceback=["E"])]),
        "picture": new_markdown_cell("![a picture](gone.png)"),
        "link": new_markdown_cell("[down](#nowhere)"),
    }
    for name, cell in pages.items():
        folder = tmp_path / "runs" / "tiny" / "standard-s3-p15-r0"
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=[cell]), folder / f"01_{name}.ipynb")
    site.build(tmp_path / "runs", PROFILES["tiny"], tmp_path / "site")
    found = browse.inspect(tmp_path / "site", BROWSER, 300)
    seen = {page["page"].split("/")[-1][:-5].removeprefix("01_"): page for page in found}
    faults = {"error": "error_cells", "picture": "broken", "link": "dead_links"}
    for name, page in seen.items():
        wrong = {fault for fault in faults.values() if page[fault]}
        assert wrong == ({faults[name]} if name in faults else set())
    assert {*pages, "index"} == set(seen)
