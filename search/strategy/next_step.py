"""What a free worker does next, by a planner, the time left and the state of the trials."""

from collections.abc import Callable

from binsweep.search.strategy.planner import Plan, Planner
from binsweep.search.strategy.training_times import TrainingTimes
from binsweep.search.strategy.trial_pool import TrialPool

MAX_LEADER_SHARE = 0.5  # of the time left; a leader that needs more to its end is not left waiting


class NextStep:
    """Asks the planner once for the same trials, until `forget` says that something has changed.

    `save` stores the planner's hyperparameters when they have changed. Without a planner, the sampler begins every
    trial.
    """

    def __init__(
        self,
        pool: TrialPool,
        times: TrainingTimes,
        planner: Planner | None,
        save: Callable[[list[float]], None],
    ) -> None:
        self._pool, self._times, self._planner, self._save = pool, times, planner, save
        self._plan: Plan | None = None

    def forget(self) -> None:
        """The trials have changed: the plan is no longer valid."""
        self._plan = None

    def plan(self, may_begin: bool, all_tried: bool = False) -> Plan | None:
        """What a free worker should do, None for nothing. With `all_tried` no trial begins because every configuration
        was tried: what is left of the time is then for the paused ones."""
        if not may_begin:
            return self._without_beginning() or (self._best_paused() if all_tried else None)
        if (leader := self._waiting_leader()) is not None:
            return leader
        planner = self._planner
        if planner is None:
            return Plan()
        if self._plan is None or not self._is_possible(self._plan):
            before = planner.hyperparameters
            self._plan = planner.plan(self._pool)
            if planner.hyperparameters != before:
                self._save(planner.hyperparameters)
        return self._plan or self._without_beginning()

    def _is_possible(self, plan: Plan) -> bool:
        """Whether what was planned a while ago can still end in the time left."""
        if plan.number is not None:
            return self._times.last_epoch(self._pool, plan.number) > 0
        return plan.params is None or self._times.reachable_by_new(plan.params) > 0

    def _waiting_leader(self) -> Plan | None:
        """The leading trial, if it is paused and would soon have too little time left to be trained to its end."""
        left, leader = self._times.seconds_left, self._leader()
        if left is None or leader is None or self._pool.trials[leader].state != "paused":
            return None
        remaining = self._times.seconds_to_end(self._pool, leader, self._pool.trials[leader].epochs)
        needed = self._times.start + (remaining or 0.0)
        if needed <= left * MAX_LEADER_SHARE or not self._times.last_epoch(self._pool, leader):
            return None
        return Plan("the leading trial is trained to its end while there is time", number=leader)

    def _leader(self) -> int | None:
        trials = self._pool.trials
        sound = [number for number, trial in enumerate(trials) if trial.epochs and not trial.broken]
        return max(sound, key=lambda number: (trials[number].best, -number), default=None)

    def _without_beginning(self) -> Plan | None:
        """What is left to do if no new trial may begin."""
        if (found := self._times.next_promotion(self._pool)) is not None:
            return Plan(found[1], number=found[0])
        for number in self._pool.pareto_front():
            if self._can_resume(number):
                reason = "no further trial begins: trials on the Pareto front are trained to their end"
                return Plan(reason, number=number)
        best = self._leader()
        if best is None or not self._can_resume(best):
            return None
        return Plan("no further trial begins: the best one is trained to its end", number=best)

    def _best_paused(self) -> Plan | None:
        """The best paused trial that can end in the time left; None without a limit on time, where successive halving
        has decided."""
        if self._times.seconds_left is None:
            return None
        waiting = [number for number in self._pool.paused() if self._can_resume(number)]
        if not waiting:
            return None
        best = max(waiting, key=lambda number: (self._pool.trials[number].best, -number))
        return Plan("every configuration was tried: paused trials go on, the best one first", number=best)

    def _can_resume(self, number: int) -> bool:
        paused = self._pool.trials[number].state == "paused"
        return paused and self._times.last_epoch(self._pool, number) > 0
