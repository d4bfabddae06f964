"""Bad days of a sweep, simulated: `python benchmarks/bad_days.py --seeds 10000`.

Each seed is a small sweep and what goes wrong with it (tests/simulation). Prints how many seeds kept every promise,
how often each fault happened, how many different interleavings and crash points were met, and for a broken promise the
command that repeats it. Ends with 1 if one was broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A script's own folder comes first on the path, where `search.py` would hide the package of that name.
sys.path[:1] = [str(ROOT / "src"), str(ROOT)]

CHUNK = 20  # seeds that a process runs before it answers


def run_chunk(seeds: list[int]) -> list[object]:
    """The outcomes of some seeds; in a process of its own."""
    from tests.simulation.plan import draw
    from tests.simulation.world import run

    return [run(draw(seed)) for seed in seeds]


def outcomes(start: int, seeds: int, processes: int) -> Iterator[object]:
    wanted = range(start, start + seeds)
    chunks = [list(wanted[at : at + CHUNK]) for at in range(0, seeds, CHUNK)]
    # Spawned, and now and then replaced: SQLAlchemy and greenlets are not made to be forked, or for a million studies.
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=25) as pool:
        for found in pool.map(run_chunk, chunks):
            yield from found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    words = parser.parse_args()
    begun, done, broken, lives, effects = time.monotonic(), 0, 0, 0, 0
    injected: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    traces: set[int] = set()
    points: set[str] = set()
    crashes: set[str] = set()
    for outcome in outcomes(words.start, words.seeds, words.processes):
        done += 1
        lives, effects = lives + outcome.lives, effects + outcome.effects
        injected += outcome.injected
        hit.update(outcome.injected.keys())
        traces.add(outcome.trace)
        points |= outcome.points
        crashes |= outcome.crashes
        if outcome.problems:
            broken += 1
            print(f"BROKEN, repeat with: python -m tests.simulation --seed {outcome.plan.seed} --shrink")
            print("\n".join(f"    {problem[:300]}" for problem in outcome.problems[:5]), flush=True)
        if done % 500 == 0:
            print(f"{done:,} seeds, {broken} broken, {time.monotonic() - begun:,.0f} s", flush=True)
    seconds = time.monotonic() - begun
    print(f"{done:,} seeds in {seconds:,.0f} s by {words.processes} processes: {broken} broke a promise")
    print(f"{lives:,} processes of sweeps, {effects:,} effects, {len(traces):,} different interleavings")
    places = {point.partition(" ")[2] for point in crashes}
    kinds = f"{len(points):,} different effects, by kind, file and line"
    print(f"{kinds}; at {len(places):,} of them a process was killed, interrupted or lost its power")
    for kind, times in injected.most_common():
        print(f"    {kind:32} {times:7,} times, in {hit[kind]:,} seeds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
