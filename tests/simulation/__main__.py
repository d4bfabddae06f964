"""Repeat a schedule: `python -m tests.simulation --seed 4711`; with --shrink, find the shortest that still fails."""

from __future__ import annotations

import argparse
import sys

from .plan import draw
from .shrink import shrink
from .world import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--shrink", action="store_true", help="leave out whatever the failure does not need")
    words = parser.parse_args()
    plan = draw(words.seed)
    if words.shrink:
        plan = shrink(plan)
    outcome = run(plan)
    print(plan)
    print(f"{outcome.effects} effects in {outcome.lives} processes, trace {outcome.trace:08x}")
    for problem in outcome.problems:
        print(f"BROKEN: {problem}")
    if not outcome.problems:
        print("no promise broken")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
