"""Fidelity levels in simulated sweeps, where the cheap levels agree with the dear one, and where they mislead.

    python benchmarks/levels.py --seconds 1200,3600 --agreement 0.95,0.7,0.3 --seeds 10

Two workers. A training has 10 epochs of half a second, 4 of 12 s and 5 of 60 s; `top` trains the last section alone.
The value at the end of a section is a peak in five parameters; the peaks of cheap sections are mixtures of the top's
and another one, so that values correlate by `agreement` over random configurations. A section starts at the value of
the one before and rises towards its own. Printed is the mean distance of the best value found from the best possible
one, with 95 % intervals over seeds.
"""

import argparse
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# A script's own folder comes first on the path, where `search.py` would hide the package of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from binsweep.search.spec.objective import Goal  # noqa: E402
from binsweep.search.spec.space import Range, SearchSpace  # noqa: E402
from binsweep.search.strategy.factory import StrategyOptions, open_strategy  # noqa: E402
from binsweep.search.strategy.simulator import simulate  # noqa: E402

EPOCHS, COSTS = (10, 4, 5), (0.5, 12.0, 60.0)
CEILINGS = (0.33, 0.36, 0.42)  # of the sections
PENALTY = 0.6
NAMES = "abcde"


class LevelsTask:
    """A task whose trainings are the given sections."""

    goal: Goal = "maximize"

    def __init__(self, seed: int, agreement: float, sections: Sequence[int]) -> None:
        self.space = SearchSpace({name: Range(0.0, 1.0) for name in NAMES})
        rng = np.random.default_rng(seed)
        self._peak, self._other = rng.uniform(0.1, 0.9, 5), rng.uniform(0.1, 0.9, 5)
        self._weights = rng.permutation([1.0, 0.6, 0.4, 0.1, 0.05])
        self._seed, self._agreement, self._sections = seed, agreement, sections
        self.max_epochs = sum(EPOCHS[section] for section in sections)

    def _distance(self, x: np.ndarray, peak: np.ndarray) -> float:
        return float(PENALTY * np.sum(self._weights * (x - peak) ** 2))

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        """The value after every epoch, and the seconds from the start."""
        x = np.array([params[name] for name in NAMES])
        top, other = self._distance(x, self._peak), self._distance(x, self._other)
        cheap = self._agreement * top + math.sqrt(1 - self._agreement**2) * other
        noise = np.random.default_rng(zlib.crc32(repr((self._seed, sorted(params.items()))).encode()))
        values: list[float] = []
        seconds: list[float] = []
        start, now = 0.2, 0.0
        for section in self._sections:
            loss = (cheap, (cheap + top) / 2, top)[section]
            end = CEILINGS[section] - loss + noise.normal(0, 0.004)
            for epoch in range(1, EPOCHS[section] + 1):
                way = (1 - math.exp(-3 * epoch / EPOCHS[section])) / (1 - math.exp(-3))
                now += COSTS[section]
                values.append(start + (end - start) * way + noise.normal(0, 0.002))
                seconds.append(now)
            start = end
        return values, seconds


def run(agreement: float, sections: Sequence[int], sampler: str, seed: int, seconds: float) -> float:
    """How far the best value of one simulated sweep is from the best possible one."""
    task = LevelsTask(seed, agreement, sections)
    options = StrategyOptions(
        task.space,
        task.goal,
        EPOCHS[-1],
        sampler,  # type: ignore[arg-type]
        "auto" if sampler == "auto" else "asha",
        seed,
        sections=tuple(EPOCHS[section] for section in sections),
        epoch_cost=lambda params, section: COSTS[sections[section]],
    )
    steps = simulate(open_strategy(None, "s", options), task, 2, seconds=seconds)
    return CEILINGS[-1] - steps[-1].best


def main() -> None:
    """Print a row for each time, agreement and way to search."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", default="1200,3600")
    parser.add_argument("--agreement", default="0.95,0.7,0.3")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    ways = {
        "levels": ((0, 1, 2), "auto"),
        "top": ((2,), "auto"),
        "random + asha, levels": ((0, 1, 2), "random"),
        "random + asha, top": ((2,), "random"),
    }
    print("| seconds | agreement | way | distance from the best |")
    print("| --- | --- | --- | --- |")
    for seconds in map(float, options.seconds.split(",")):
        for agreement in map(float, options.agreement.split(",")):
            for name, (sections, sampler) in ways.items():
                found = [run(agreement, sections, sampler, seed, seconds) for seed in range(options.seeds)]
                interval = 1.96 * float(np.std(found, ddof=1)) / math.sqrt(len(found))
                print(
                    f"| {seconds:g} | {agreement} | {name} | {np.mean(found):.4f} ± {interval:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
