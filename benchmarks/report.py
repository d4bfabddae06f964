"""What the report of a sweep of many trials weighs, costs to write, and takes to be drawn in Chromium.

    python benchmarks/report.py [--trials N]

Both figures are beside those of an empty page, in the same run.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import which
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "search"))

from recorded_sweeps import random_sweep

from binsweep.search.report.sweep_report import write_report

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,5000"
)
CLOCK = """<script>addEventListener('load', () => {
document.body.getBoundingClientRect(); document.title = 'ms ' + performance.now() })</script>"""


def drawn(page: str, folder: Path) -> tuple[float, float]:
    """Milliseconds until the page was laid out, and of the whole browser that paints it; medians of five."""
    browser = which("chromium") or which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium here")
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"{CLOCK}</body>"))
    laid, whole = [], []
    for number in range(5):
        command = [browser, *FLAGS.split(), f"--user-data-dir={folder / f'profile-{number}'}"]
        run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=120)
        found = re.search(r"<title>ms ([\d.]+)", run([*command, "--dump-dom", file.as_uri()]).stdout)
        assert found is not None, "the page was not laid out"
        laid.append(float(found.group(1)))
        start = time.perf_counter()
        run([*command, f"--screenshot={folder / 'page.png'}", file.as_uri()])
        whole.append(1000 * (time.perf_counter() - start))
    return median(laid), median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = random_sweep(folder / "recorded-1", trials)
        write_report(sweep)  # imports
        start = time.process_time()
        page = write_report(sweep)
        seconds = time.process_time() - start
        text = page.read_text()
        print(f"{trials} trials: {page.stat().st_size / 1e6:.2f} MB, {seconds:.2f} s of CPU to write")
        (blank, nothing), (laid, whole) = drawn("<html><body></body></html>", folder), drawn(text, folder)
        print(f"laid out after {laid:.0f} ms (an empty page {blank:.0f} ms)")
        print(
            f"a browser started, painted it all and ended in {whole:.0f} ms (an empty page {nothing:.0f} ms)"
        )


if __name__ == "__main__":
    main()
