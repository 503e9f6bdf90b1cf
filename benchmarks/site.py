"""Open every page of the site in a real browser: broken pictures, missing texts, time to load.

    python benchmarks/site.py [--site site] [--browser chromium] [--json FILE]

Needs Chromium or Chrome. Each page is loaded in a frame of a local page, which waits until it is
done and looks at what the browser made of it; exit status 1 if anything is wrong. Hosts elsewhere,
from where the pages take MathJax, are out of reach: the times are those of the site alone.
"""

import argparse
import functools
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PROBE = """<!doctype html><meta charset="utf-8"><body><script>
async function look(page) {
  const frame = document.createElement("iframe"), began = performance.now();
  frame.width = 1200; frame.height = 900;
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page; document.body.append(frame); await loaded;
  const inside = frame.contentDocument, pictures = [...inside.images];
  await Promise.all(pictures.map(picture => picture.decode().catch(() => 0)));
  const seconds = (performance.now() - began) / 1000;
  const shown = {
    page, seconds, pictures: pictures.length,
    broken: pictures.filter(p => !p.naturalWidth).length,
    without_alt: pictures.filter(p => !(p.alt || "").trim() || p.alt == "No description has been provided for this image").length,
    error_cells: inside.querySelectorAll('.output_error, .jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').length,
    dead_links: [...inside.links].filter(a => a.hash && a.pathname == inside.location.pathname
      && !inside.getElementById(a.hash.slice(1))  // as the standard says: raw first, then decoded
      && !inside.getElementById(decodeURIComponent(a.hash.slice(1)))).length,
    wider_than_window: inside.documentElement.scrollWidth > 1210,
    title: inside.title,
  };
  frame.remove();
  return shown;
}
(async () => {
  const found = [];
  for (const page of PAGES) found.push(await look(page));
  await fetch("/", {method: "POST", body: JSON.stringify(found)});
})();
</script></body>"""  # noqa: E501


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the site, and take the answer that the probe posts."""

    answer = queue.SimpleQueue()

    def do_POST(self):
        self.answer.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def inspect(site, browser, timeout=900):
    """Load all pages one after another; return what the browser saw of each."""
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    probe = site / "__probe__.html"
    probe.write_text(PROBE.replace("PAGES", json.dumps(pages)))
    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Children of the browser outlive it by a moment and write into the profile while it is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"http://127.0.0.1:{server.server_port}/{probe.name}",
        ]  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, start_new_session=True, **quiet) as running:
            try:
                return Handler.answer.get(timeout=timeout)
            except queue.Empty:
                raise SystemExit(f"{browser} did not come to an end in {timeout} s") from None
            finally:
                os.killpg(running.pid, signal.SIGKILL)
                server.shutdown()
                probe.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=Path("site"))
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not shutil.which(arguments.browser):
        raise SystemExit(f"{arguments.browser} is not installed; name another with --browser")
    if not (arguments.site / "index.html").exists():
        raise SystemExit(f"{arguments.site}/index.html is not there; `make site` makes it")
    found = inspect(arguments.site.resolve(), arguments.browser)
    faults = ("broken", "without_alt", "error_cells", "dead_links", "wider_than_window")
    for page in found:
        wrong = {name: page[name] for name in faults if page[name]}
        size = (arguments.site / page["page"]).stat().st_size / 2**20
        print(
            f"{page['page']:55} {size:5.1f} MB {page['seconds']:5.2f} s "
            f"{page['pictures']:3} pictures {wrong or ''}"
        )
    if arguments.json:
        from measure import machine  # here, as tests load this file from elsewhere

        report = {"machine": machine(), "pages": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    whole = sum(path.stat().st_size for path in arguments.site.rglob("*") if path.is_file()) / 2**20
    print(f"{len(found)} pages, {whole:.1f} MB")
    sys.exit(any(page[name] for page in found for name in faults))


if __name__ == "__main__":
    main()
