"""The page of `binsweep ui`: its first paint, how soon an epoch is on the screen and a click on the disk, and what it
costs the sweep.

    python benchmarks/ui.py [--trials N ...] [--windows N]

The sweep keeps all cores of this machine busy. While it runs, the page is open in Chromium on the same machine and
then not, in windows that alternate; the ratio of their speeds is of the same minutes, so that other work of the
machine meets both alike.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "search"))

from browser import Browser, browser, missing
from recorded_sweeps import random_sweep

from binsweep.search.history.run_log_reader import RunLogReader
from binsweep.tracking.processes import free_port

WINDOW_SECONDS = 12.0
SETTLE_SECONDS = 3.0  # after the page was opened or closed
TRAIN = """
    import hashlib
    import os
    from concurrent.futures import ThreadPoolExecutor

    BLOCK = bytes(8 << 20)


    def work(_):
        for _ in range(6):
            hashlib.sha256(BLOCK).digest()


    def train(trial):
        with ThreadPoolExecutor() as pool:
            for epoch in trial.epochs():
                list(pool.map(work, range(os.cpu_count() or 1)))
                trial.report({"score": epoch / (epoch + 20)})
"""
SPEC = """
    name: busy
    trainer: train.py:train
    space: {lr: {low: 0.1, high: 1.0}}
    objective: {metric: score, goal: maximize}
    fidelity: {epochs: 100000}
    budget: {trials: 1}
    search: {sampler: random, stopping: none}
"""
PAINTED = "return document.querySelectorAll('tbody td').length > 50 && performance.now()"
COUNT = "Number(document.body.innerText.match(/^([\\d,]+) epochs?(,|$)/m)?.[1].replaceAll(',', '') ?? 0)"
WHOLE = "return document.querySelector('progress').hidden && document.body.innerText.includes(arguments[0])"


@contextmanager
def ui(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The command for a home: the link that opens the page, and its process."""
    environment = {**os.environ, "BINSWEEP_HOME": str(home)}
    command = [sys.executable, "-m", "binsweep", "ui", "--port", str(free_port())]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http\S+", process.stdout.readline())
            assert found is not None, "no link"
            yield found[0], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def first_paint(window: Browser, folder: Path, trials: int) -> None:
    """Milliseconds from the start of the navigation to the first rows; right after the server has started, which has
    not read the sweep then, and again."""
    random_sweep(folder / "sweeps" / "painted-1", trials)
    with ui(folder) as (link, _):
        base = link.partition("#")[0]
        window.go(link)
        window.wait_for("painted-1", 60)
        shown, whole = [], []
        for _ in range(4):
            window.go("about:blank")
            window.go(f"{base}#/sweep/painted-1")
            shown.append(window.until(PAINTED, seconds=60))
            whole.append(window.until(f"{WHOLE} && performance.now()", f"\n{trials:,} / ", seconds=600))
        print(
            f"{trials:,} trials: first rows on the screen after {shown[0]:.0f} ms, all after {whole[0]:.0f} ms; "
            f"opened again {statistics.median(shown[1:]):.0f} and {statistics.median(whole[1:]):.0f} ms (medians of 3)",
            flush=True,
        )


def beside_a_sweep(window: Browser, folder: Path, windows: int) -> None:
    """The delay of epochs, and the sweep's speed with the page open and without."""
    (folder / "train.py").write_text(textwrap.dedent(TRAIN))
    (folder / "busy.yaml").write_text(textwrap.dedent(SPEC))
    home = folder / "home"
    environment = {**os.environ, "BINSWEEP_HOME": str(home)}
    command = [sys.executable, "-m", "binsweep", "sweep", folder / "busy.yaml", "--runner", "local"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as sweep:
        try:
            reader = wait_for_epochs(home / "sweeps" / "busy-1")
            with ui(home) as (link, server):
                window.go(link)
                window.wait_for("busy-1", 60)
                print(delays(window, link, reader), flush=True)
                print(button_delays(window), flush=True)
                print(slowdown(window, link, reader, server, windows), flush=True)
        finally:
            sweep.terminate()
            sweep.wait(60)


def wait_for_epochs(folder: Path) -> RunLogReader:
    """A reader of the sweep's run log, once it has epochs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "sweep.json").exists():
            reader = RunLogReader(folder)
            if any(trial.epochs_done > 3 for trial in reader.read().trials):
                return reader
        time.sleep(0.2)
    raise SystemExit("the sweep does not begin")


def delays(window: Browser, link: str, reader: RunLogReader, samples: int = 30) -> str:
    """How long after its report an epoch is on the screen: times of the run log and of the browser, of one clock."""
    window.go("about:blank")
    window.go(f"{link.partition('#')[0]}#/sweep/busy-1")
    window.until(f"return {COUNT}")
    found: list[float] = []
    for _ in range(samples):
        before = window.run(f"return {COUNT}")
        at = window.until(f"return {COUNT} > arguments[0] && Date.now()", before)
        (trial,) = reader.read().trials
        # Every epoch that has appeared with it waited at least since the one after the last that was shown.
        found.append(at / 1000 - trial.times[int(before) + 1])
        time.sleep(0.3)
    median, most = statistics.median(found), max(found)
    return f"an epoch is on the screen {median:.2f} s after its report (median of {samples}; at most {most:.2f} s)"


def button_delays(window: Browser, samples: int = 10) -> str:
    """How long after a click its request is on the disk, at most: until the page has the answer, which comes later."""
    found: list[float] = []
    for number in range(samples):
        verb = "Resume" if number % 2 else "Pause"
        window.press(verb)
        window.until("return document.querySelector('dialog .answer:not(.bad)') !== null")
        began = time.monotonic()
        window.press(verb)
        window.until("return document.querySelector('dialog') === null")
        found.append(time.monotonic() - began)
        window.press("Dismiss")
        window.until("return document.querySelector('.toast') === null")
    median, most = statistics.median(found), max(found)
    return f"a click is on the disk after {median:.2f} s at most (median of {samples}; at most {most:.2f} s)"


def slowdown(window: Browser, link: str, reader: RunLogReader, server: psutil.Process, windows: int) -> str:
    """Epochs a second with the page open, relative to those without, in alternating windows."""
    address = f"{link.partition('#')[0]}#/sweep/busy-1"
    spans: list[tuple[bool, float, float]] = []
    busy, drawing = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}
    for number in range(2 * windows):
        is_open = (number % 2 == 1) ^ (
            number % 4 >= 2
        )  # without, with, with, without: a drift meets both alike
        window.go("about:blank")
        if is_open:
            window.go(address)
        time.sleep(SETTLE_SECONDS)
        start, before, drawn = time.time(), sum(server.cpu_times()[:2]), window.cpu_seconds()
        time.sleep(WINDOW_SECONDS)
        spans.append((is_open, start, time.time()))
        busy[is_open] += sum(server.cpu_times()[:2]) - before
        drawing[is_open] += window.cpu_seconds() - drawn
    (trial,) = reader.read().trials
    ends = sorted(trial.times.values())
    rates: dict[bool, list[float]] = {False: [], True: []}
    for is_open, start, end in spans:
        inside = [at for at in ends if start <= at <= end]
        rates[is_open].append((len(inside) - 1) / (inside[-1] - inside[0]))
    ratios = [one / other for one, other in zip(rates[True], rates[False], strict=True)]
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    seconds = windows * WINDOW_SECONDS
    return (
        f"the sweep's speed with the page open: {math.exp(mean):.4f} of that without "
        f"({math.exp(mean - 2 * error):.4f} to {math.exp(mean + 2 * error):.4f}, {windows} pairs of windows of "
        f"{WINDOW_SECONDS:g} s); the server uses {100 * busy[True] / seconds:.2f} % of a core, and "
        f"{100 * busy[False] / seconds:.2f} % while no page is open; the browser uses "
        f"{100 * drawing[True] / seconds:.1f} and {100 * drawing[False] / seconds:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 10_000])
    parser.add_argument("--windows", type=int, default=8)
    options = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before the run")
    with tempfile.TemporaryDirectory() as name, browser() as window:
        window.size(1300, 900)
        for trials in options.trials:
            first_paint(window, Path(name) / str(trials), trials)
        if options.windows:
            beside_a_sweep(window, Path(name), options.windows)


if __name__ == "__main__":
    main()
