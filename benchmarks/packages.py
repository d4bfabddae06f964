"""Multi-fidelity methods of other packages behind the Strategy interface, for `benchmarks/search.py`.

`pip install 'binsweep[bench]'` brings them. Each gets what its own package would do with the same curves: the
rungs at 2, 6, 18 and 52 epochs of its defaults (least 2, eta 3), and, where it trains one configuration to a larger
budget, its checkpoint, so that it pays only for the further epochs.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from binsweep.search.spec.objective import Objective
from binsweep.search.spec.space import Choice, Dimension
from binsweep.search.strategy.base import Decision, Outcome, Suggestion, Verdict
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.simulator import Task

LEAST, ETA = 2, 3


class NoCosts:
    """What has no use for the costs and times of trials."""

    def note_seconds(self, number: int, seconds: float, start: float | None = None) -> None:
        """Not used."""

    def note_time_left(self, seconds: float, whole: float) -> None:
        """Not used."""

    def note_cost(self, number: int, cost: float) -> None:
        """Never called in simulations of one objective."""


class SyneTune(NoCosts):
    """A scheduler of Syne Tune that stops trials (`ASHACQR`, `ASHABORE`, `BOHB`)."""

    def __init__(self, task: Task, seed: int, name: str) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer import baselines

        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        np.random.seed(seed)  # parts of Syne Tune draw from the global generator
        self._task, self._trial = task, Trial
        self._scheduler = getattr(baselines, name)(
            config_space={key: _syne_tune_domain(dimension) for key, dimension in task.space.items()},
            metric="value",
            do_minimize=task.goal == "minimize",
            time_attr="epoch",
            max_t=task.max_epochs,
            grace_period=LEAST,
            reduction_factor=ETA,
            random_seed=seed,
        )
        self._trials: dict[int, Any] = {}

    def suggest(self, begin: bool = True) -> Suggestion | None:
        import datetime

        found = self._scheduler.suggest()
        if found is None:
            return None
        number = len(self._trials)
        self._trials[number] = self._trial(number, found.config, datetime.datetime.now())
        self._scheduler.on_trial_add(self._trials[number])
        return Suggestion(number, dict(found.config), "Syne Tune")

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        result = {"value": value, "epoch": epoch}
        if epoch == self._task.max_epochs:
            self._scheduler.on_trial_complete(self._trials[number], result)
            return Verdict(Decision.CONTINUE, "Syne Tune")
        said = self._scheduler.on_trial_result(self._trials[number], result)
        return Verdict(Decision.STOP if said == "STOP" else Decision.CONTINUE, "Syne Tune")

    def finish(self, number: int, outcome: Outcome) -> None:
        """Syne Tune learns of every end by `observe`."""


@dataclass
class _Job:
    """A configuration to be trained up to `epochs`; `told` takes the value that it then has (larger is better)."""

    params: dict[str, Any]
    epochs: int
    told: Callable[[float], None]


class AskTell(NoCosts):
    """An optimizer that asks for one configuration with one budget at a time."""

    def __init__(self, task: Task, ask: Callable[[], _Job | None]) -> None:
        self._task, self._ask = task, ask
        self._sign = Objective(task.goal).sign
        self._numbers: dict[tuple[tuple[str, Any], ...], int] = {}  # trials by configuration
        self._jobs: dict[int, _Job] = {}
        self._done: dict[int, int] = {}
        self._best: dict[int, float] = {}

    def suggest(self, begin: bool = True) -> Suggestion | None:
        while (job := self._ask()) is not None:
            number = self._numbers.setdefault(tuple(sorted(job.params.items())), len(self._numbers))
            if number in self._jobs:
                return None  # a duplicate of what is in training
            if self._done.get(number, 0) >= job.epochs:
                job.told(self._best[number])  # known already
                continue
            self._jobs[number] = job
            return Suggestion(number, job.params, "asked for", self._done.get(number, 0))
        return None

    def observe(self, number: int, epoch: int, value: float) -> Verdict:
        self._best[number] = max(self._best.get(number, -np.inf), self._sign * value)
        self._done[number] = epoch
        if epoch < self._jobs[number].epochs:
            return Verdict(Decision.CONTINUE, "asked for")
        self._jobs.pop(number).told(self._best[number])
        over = epoch == self._task.max_epochs
        return Verdict(Decision.CONTINUE if over else Decision.PAUSE, "as far as was asked for")

    def finish(self, number: int, outcome: Outcome) -> None:
        """Told when the budget of its job was reached."""


def dehb(task: Task, seed: int) -> AskTell:
    """DEHB (Awad et al., 2021), over the unit cube."""
    import loguru
    from dehb import DEHB

    loguru.logger.remove()
    encoder = Encoder(task.space)
    optimizer = DEHB(
        f=None,
        dimensions=len(encoder.names),
        min_fidelity=LEAST,
        max_fidelity=task.max_epochs,
        eta=ETA,
        n_workers=1,
        seed=seed,
        configspace=False,
        output_path=tempfile.mkdtemp(),
        save_freq="end",
    )

    def ask() -> _Job:
        info = optimizer.ask()
        epochs = max(1, round(info["fidelity"]))
        params = encoder.params(encoder.from_unit(np.array([info["config"]]))[0])
        return _Job(
            params, epochs, lambda value: optimizer.tell(info, {"fitness": -value, "cost": float(epochs)})
        )

    return AskTell(task, ask)


def smac(task: Task, seed: int) -> AskTell:
    """SMAC3's multi-fidelity facade: Hyperband with a random forest (Lindauer et al., 2022)."""
    from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer
    from smac import MultiFidelityFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    logging.getLogger("smac").setLevel(logging.ERROR)
    space = ConfigurationSpace(seed=seed)
    for name, d in task.space.items():
        if isinstance(d, Choice):
            space.add(Categorical(name, list(d.values)))
        else:
            space.add((Integer if d.is_int else Float)(name, (d.low, d.high), log=d.log))
    scenario = Scenario(
        space,
        deterministic=True,
        n_trials=100_000,
        min_budget=LEAST,
        max_budget=task.max_epochs,
        seed=seed,
        output_directory=Path(tempfile.mkdtemp()),
    )
    facade = MultiFidelityFacade(scenario, lambda config, seed, budget: 0.0, logging_level=50)

    def ask() -> _Job:
        info = facade.ask()
        epochs = max(1, round(info.budget))
        params = {name: _plain(value) for name, value in dict(info.config).items()}
        return _Job(params, epochs, lambda value: facade.tell(info, TrialValue(cost=-value), save=False))

    return AskTell(task, ask)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _syne_tune_domain(dimension: Dimension) -> Any:
    from syne_tune import config_space

    if isinstance(dimension, Choice):
        return config_space.choice(list(dimension.values))
    name = ("log" if dimension.log else "") + ("randint" if dimension.is_int else "uniform")
    return getattr(config_space, {"lograndint": "lograndint"}.get(name, name))(dimension.low, dimension.high)
