"""Ways to search the same data for the same minutes, as whole sweeps of the command line, one after another.

    python benchmarks/minutes.py SPEC --set data.source=FOLDER --minutes 30 --seeds 3 --runs FILE

SPEC searches everything but `trainable` and has no `fidelity`. The ways: trainings that climb from a head to the whole
network (`levels`), the same three parts as choices of one space (`parts`), the whole network alone, heads alone, and
random search with asynchronous successive halving over the parts. Photos and feature banks are prepared before the
minutes begin. Nothing else should run meanwhile. A sweep that FILE holds already is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = "[head, last_stage, all]"
WAYS: dict[str, list[str]] = {
    "levels": [f"fidelity={{trainable: {PARTS}}}"],
    "parts": [f"space.trainable={PARTS}"],
    "whole network": ["model.trainable=all"],
    "heads": ["model.trainable=head"],
    "random + asha": [f"space.trainable={PARTS}", "search.sampler=random", "search.stopping=asha"],
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps that are missing and print the table of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--home", type=Path, default=Path(".binsweep"), help="whose banks are used")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), help="separated by commas")
    parser.add_argument("--runs", type=Path, required=True, help="JSON lines, one a sweep")
    options = parser.parse_args(arguments)
    rows = (
        [json.loads(line) for line in options.runs.read_text().splitlines()] if options.runs.exists() else []
    )
    done = {(row["way"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for way in options.ways.split(","):
            if (way, seed) not in done:
                rows.append(_run(options, way, seed))
                with options.runs.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    _print(rows, 60 * options.minutes)


def _run(options: argparse.Namespace, way: str, seed: int) -> dict[str, Any]:
    """One sweep: its best value, how long it searched, and what it did."""
    name = f"minutes-{way.replace(' ', '-').replace('-+-', '-')}-{seed}"
    given = [
        *options.assignments,
        *WAYS[way],
        f"name={name}",
        f"search.seed={seed}",
        f"budget={{minutes: {options.minutes}}}",
    ]
    words = [sys.executable, "-m", "binsweep", "sweep", options.spec, "--new"]
    for assignment in given:
        words += ["--set", assignment]
    began = time.monotonic()
    environment = {**os.environ, "BINSWEEP_HOME": str(options.home.absolute())}
    subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL)
    asked = [sys.executable, "-m", "binsweep", "status", name, "--json"]
    answer = subprocess.run(asked, check=True, env=environment, capture_output=True, text=True)
    status = json.loads(answer.stdout)
    return {
        "way": way,
        "seed": seed,
        "best": status["best"]["value"],
        "seconds": status["seconds"],
        "whole_seconds": time.monotonic() - began,
        "trials": sum(status["trials"].values()),
        "epochs": status["epochs"],
        "params": status["best"]["params"],
        "ended_by": status["ended_by"],
    }


def _print(rows: list[dict[str, Any]], seconds: float) -> None:
    print("| way | sweeps | mean best | standard error | each | of its time | trials | epochs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        best = [row["best"] for row in mine]
        error = statistics.stdev(best) / len(best) ** 0.5 if len(best) > 1 else float("nan")
        each = ", ".join(f"{value:.4f}" for value in best)
        used = ", ".join(f"{row['seconds'] / seconds:.1%}" for row in mine)
        trials, epochs = (statistics.fmean(row[key] for row in mine) for key in ("trials", "epochs"))
        cells = f"{statistics.fmean(best):.4f} | {error:.4f} | {each} | {used} | {trials:.0f} | {epochs:.0f}"
        print(f"| {way} | {len(best)} | {cells} |")


if __name__ == "__main__":
    main()
