"""A schedule: a small sweep, and what goes wrong with it, all of it drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

CRASHES = ("kill", "power", "interrupt")
# What is counted until a fault happens: any effect, requests to MLflow, effects of workers, reports to the driver.
COUNTED = {
    "full": "effect",
    "eio": "disk",
    "intruder": "effect",
    "mlflow 500": "request",
    "mlflow answer lost": "request",
    "mlflow answer lost, done later": "request",
    "mlflow slow": "request",
    "mlflow down": "request",
    "mlflow rolled back": "request",
    "worker dies": "worker",
    "worker hangs": "epoch",
    "report twice": "report",
    "report after death": "report",
}
# Those that `_life` does not draw: the wall clock is set by up to an hour, a commit fails, somebody steers the sweep.
ALSO_COUNTED = {"clock jumps": "effect", "study eio": "commit", "asked": "effect"}


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at the `at`-th event of its kind in a life; `size` is how much or for how long."""

    kind: str
    at: int
    size: float = 0.0


@dataclass(frozen=True)
class Life:
    """One process of the sweep, from its command to its end. `skew` is by how much the wall clock is wrong, in s."""

    faults: tuple[Fault, ...] = ()
    skew: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A sweep and its lives; after the last one it goes on without faults."""

    seed: int
    trials: int
    epochs: int
    workers: int
    sampler: str
    stopping: str
    epoch_seconds: float
    saves_every: int  # epochs; 0: the code saves nothing
    budget: dict[str, float] = field(default_factory=dict)
    bad: dict[int, tuple[str, int]] = field(
        default_factory=dict
    )  # trial -> raises or diverges, at which epoch
    hop: float = 0.2
    tick: float = 0.01  # seconds that an effect takes at most
    same_pid: bool = False  # as in containers
    lives: tuple[Life, ...] = ()
    afterwards: tuple[Fault, ...] = ()  # of a process that resumes the finished sweep

    @property
    def is_local(self) -> bool:
        """Whether the in-process runner runs the trials."""
        return self.workers == 0

    @property
    def is_steered(self) -> bool:
        """Whether somebody asks something of the sweep."""
        return any(fault.kind == "asked" for fault in self.faults())

    def faults(self) -> Iterator[Fault]:
        for life in self.lives:
            yield from life.faults
        yield from self.afterwards

    def __str__(self) -> str:
        runner = "in process" if self.is_local else f"{self.workers} workers"
        lines = [
            f"seed {self.seed}: {self.trials} trials of {self.epochs} epochs, {runner}, "
            f"{self.sampler}/{self.stopping}, {self.epoch_seconds:g} s an epoch, saved every {self.saves_every}, "
            f"budget {self.budget}" + (f", bad {self.bad}" if self.bad else "")
        ]
        for number, life in enumerate(self.lives, 1):
            skew = f", clock off by {life.skew:g} s" if life.skew else ""
            lines.append(f"  process {number}: {_told(life.faults)}{skew}")
        if self.afterwards:
            lines.append(f"  once it is finished: {_told(self.afterwards)}")
        return "\n".join(lines)


def _told(faults: tuple[Fault, ...]) -> str:
    return ", ".join(f"{one.kind} at {one.at} ({one.size:.3g})" for one in faults) or "no fault"


def draw(seed: int) -> Plan:
    """The schedule of a seed."""
    dice = random.Random(f"bad days {seed}")
    trials, epochs = dice.randint(2, 6), dice.randint(1, 4)
    workers = dice.choice([0, 0, 1, 2, 3, 4])
    sampler, stopping = dice.choice(
        [("random", "none")] * 5
        + [("grid", "none"), ("random", "asha"), ("random", "auto"), ("random", "auto"), ("tpe", "median")]
        + [("auto", "auto")]
    )
    budget: dict[str, float] = {"trials": trials}
    if dice.random() < 0.2:
        budget["epochs"] = dice.randint(1, trials * epochs)
    bad = {}
    if dice.random() < 0.2:
        bad[dice.randrange(trials)] = (dice.choice(["raises", "diverges"]), dice.randint(1, epochs))
    effects = 120 + 45 * trials + 12 * trials * epochs
    lives = tuple(_life(dice, effects) for _ in range(dice.choice([0, 1, 1, 1, 2, 2, 3, 4])))
    lives = _also(random.Random(f"jump {seed}"), lives, "clock jumps", effects)
    lives = _also(random.Random(f"database {seed}"), lives, "study eio", effects // 10)
    lives = _also(random.Random(f"asked {seed}"), lives, "asked", effects, times=2)
    epoch_seconds = dice.choice([0.0, 0.05, 1.0, 20.0])
    budget |= _limit(random.Random(f"other limit {seed}"), trials * epochs * epoch_seconds)
    return Plan(
        seed,
        trials,
        epochs,
        workers,
        sampler,
        stopping,
        epoch_seconds=epoch_seconds,
        saves_every=dice.choice([1, 1, 1, 2, 0]),
        budget=budget,
        bad=bad,
        hop=dice.choice([0.0, 0.1, 0.5]),
        tick=dice.choice([0.0, 0.01, 0.1]),
        same_pid=dice.random() < 0.3,
        lives=lives,
        afterwards=_afterwards(random.Random(f"afterwards {seed}")),
    )


def _also(
    dice: random.Random, lives: tuple[Life, ...], kind: str, events: int, times: int = 1
) -> tuple[Life, ...]:
    """Further faults in each process of a tenth of the sweeps."""
    if dice.random() >= 0.1:
        return lives

    def some() -> tuple[Fault, ...]:
        at = (1 + int(events * dice.random() ** 1.5) for _ in range(times))
        return tuple(Fault(kind, one, dice.uniform(-1, 1)) for one in at)

    return tuple(replace(life, faults=(*life.faults, *some())) for life in lives)


def _afterwards(dice: random.Random) -> tuple[Fault, ...]:
    """A fifth of the finished sweeps are resumed by a process that is killed or loses its power."""
    if dice.random() >= 0.2:
        return ()
    return (Fault(dice.choice(["kill", "power"]), 1 + int(120 * dice.random())),)


def _limit(dice: random.Random, seconds: float) -> dict[str, float]:
    """A further limit of the budget of a fifth of the sweeps, which would train for so many seconds."""
    kind = dice.choice(["target", "no_improvement", "minutes", *[""] * 12])
    if kind == "target":
        return {kind: dice.uniform(0.1, 0.7)}
    if kind == "no_improvement":
        return {kind: dice.randint(1, 3)}
    return {kind: seconds * dice.uniform(0.2, 1.2) / 60} if kind and seconds else {}


def _life(dice: random.Random, effects: int) -> Life:
    faults = []
    crash = dice.choice(["kill", "kill", "power", "power", "interrupt", ""])
    if crash:
        faults.append(Fault(crash, 1 + int(effects * dice.random() ** 1.5)))
    spans = {
        "effect": effects,
        "disk": effects,
        "request": 40,
        "worker": effects // 3,
        "epoch": 8,
        "report": 8,
    }
    for kind in dice.sample(sorted(COUNTED), dice.choice([0, 0, 1, 1, 2, 3])):
        at = 1 + int(spans[COUNTED[kind]] * dice.random() ** 1.5)
        faults.append(Fault(kind, at, dice.random()))
    skew = dice.choice([-3600.0, -1.0, 1.0, 3600.0]) if dice.random() < 0.1 else 0.0
    return Life(tuple(faults), skew)


def smaller(plan: Plan) -> Iterator[Plan]:
    """Schedules with a little less in them, the largest steps first."""
    for number in range(len(plan.lives)):
        yield replace(plan, lives=plan.lives[:number] + plan.lives[number + 1 :])
    for number, life in enumerate(plan.lives):
        for one in range(len(life.faults)):
            fewer = replace(life, faults=life.faults[:one] + life.faults[one + 1 :])
            yield replace(plan, lives=(*plan.lives[:number], fewer, *plan.lives[number + 1 :]))
        if life.skew:
            yield replace(
                plan, lives=(*plan.lives[:number], replace(life, skew=0.0), *plan.lives[number + 1 :])
            )
    if plan.afterwards:
        yield replace(plan, afterwards=())
    if plan.bad:
        yield replace(plan, bad={})
    for name in plan.budget.keys() - {"trials"}:
        yield replace(plan, budget={key: limit for key, limit in plan.budget.items() if key != name})
    if (plan.sampler, plan.stopping) != ("random", "none"):
        yield replace(plan, sampler="random", stopping="none")
    simple: dict[str, Any] = {"hop": 0.0, "saves_every": 1, "same_pid": False}
    for name, value in simple.items():
        if getattr(plan, name) != value:
            yield replace(plan, **{name: value})
    for workers in sorted({0, 1} - {plan.workers}):
        if plan.workers > workers:
            yield replace(plan, workers=workers)
    if plan.trials > 1:
        yield replace(plan, trials=plan.trials - 1, budget={**plan.budget, "trials": plan.trials - 1})
    if plan.epochs > 1:
        yield replace(plan, epochs=plan.epochs - 1)
    for number, life in enumerate(plan.lives):
        for one, fault in enumerate(life.faults):
            for at in sorted({fault.at // 2, fault.at - 10, fault.at - 1}):
                if 0 < at < fault.at:
                    earlier = list(life.faults)
                    earlier[one] = replace(fault, at=at)
                    lives = (
                        *plan.lives[:number],
                        replace(life, faults=tuple(earlier)),
                        *plan.lives[number + 1 :],
                    )
                    yield replace(plan, lives=lives)
