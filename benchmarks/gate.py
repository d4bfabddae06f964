"""How often the gate lets a candidate pass: one that is no better, and better ones, by simulation.

    python benchmarks/gate.py [--repeats N]

Two counters count the same photos. The champion is right in 35 % of them; the candidate in so many points more;
and in a given share of the photos one of the two alone is right: the more alike two models are, the fewer. Every
wrong answer is off by one. No model is trained: the counts are drawn.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.tracking.promotion.gate import judge_against

ACCURACY = 0.35


def passes(dice: np.random.Generator, photos: int, gain: float, differ: float) -> bool:
    won, lost = (differ + gain) / 2, (differ - gain) / 2
    kind = dice.choice(4, photos, p=[ACCURACY - lost, won, lost, 1 - ACCURACY - won])
    actual = dice.integers(0, 6, photos)
    wrong = np.where(actual == 5, 4, actual + 1)
    candidate = np.where(kind <= 1, actual, wrong)
    champion = np.where((kind == 0) | (kind == 2), actual, wrong)
    rules = judge_against(candidate, champion, actual, "accuracy", "the champion", strict=True)
    return all(rule.passed for rule in rules)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    print("candidates that pass, of", repeats, "(standard error at most", f"{0.5 / repeats**0.5:.1%})")
    print(
        f"{'photos':>7} {'only one is right':>18} " + " ".join(f"{f'+{g} points':>10}" for g in (0, 2, 5, 10))
    )
    for photos in (200, 1000, 5000):
        for differ in (0.15, 0.25, 0.35):
            dice = np.random.default_rng(0)
            rates = [
                sum(passes(dice, photos, gain / 100, differ) for _ in range(repeats)) / repeats
                for gain in (0, 2, 5, 10)
            ]
            print(f"{photos:>7} {differ:>18.0%} " + " ".join(f"{rate:>10.1%}" for rate in rates))


if __name__ == "__main__":
    main()
