"""The study, twice: in SQLite, which is the truth, and in memory, from which samplers read.

Samplers read every past trial for every suggestion, which costs 120 ms at 1,000 trials on SQLite and a tenth
of it in memory. Only one process writes, so the copy in memory is never behind. Each change is one
transaction on disk, written before the copy. Where an event changes several things (a trial's end: its reason,
then its state), their order is such that a kill between any two leaves a study that can go on: the trial runs
still, and ends again.
"""

from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from binsweep.data.errors import UserError
from binsweep.search.strategy.base import Goal

INFEASIBLE = "constraints:limit"  # system attribute


class StudyStorage:
    """One study's trials by number. Without a path it is kept in memory only, for simulations."""

    def __init__(self, path: Path | None, name: str, goal: Goal) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its notes per trial are the sweep's to make
        self._memory = InMemoryStorage()
        self.study = optuna.create_study(storage=self._memory, study_name=name, direction=goal)
        self._storages: list[tuple[BaseStorage, list[int]]] = [(self._memory, [])]  # with trial ids by number
        self._study_ids: dict[BaseStorage, int] = {self._memory: self._memory.get_study_id_from_name(name)}
        if path is not None:
            disk = _open_disk(path)
            study_id = self._study_ids[disk] = _open_study(disk, name, goal, path)
            for key, value in disk.get_study_user_attrs(study_id).items():
                self._memory.set_study_user_attr(self._study_ids[self._memory], key, value)
            trials = disk.get_all_trials(study_id, deepcopy=False)
            self._storages.insert(0, (disk, [trial._trial_id for trial in trials]))
            for trial in trials:
                self._copy_to_memory(trial)

    def __len__(self) -> int:
        return len(self._storages[-1][1])

    def trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def add(self, trial: optuna.Trial, attributes: dict[str, Any]) -> FrozenTrial:
        """Write down a trial that the in-memory study was just asked for."""
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        memory_ids = self._storages[-1][1]
        frozen = self._memory.get_trial(trial._trial_id)
        memory_ids.append(trial._trial_id)
        for storage, ids in self._storages[:-1]:
            ids.append(storage.create_new_trial(self._study_ids[storage], template_trial=frozen))
        return frozen

    def add_point(
        self, params: dict[str, Any], distributions: dict[str, BaseDistribution], attributes: dict[str, Any]
    ) -> FrozenTrial:
        """Write down a trial of our own choosing."""
        template = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
        )
        for storage, ids in self._storages:
            ids.append(storage.create_new_trial(self._study_ids[storage], template_trial=template))
        return self._memory.get_trial(self._storages[-1][1][-1])

    def note(self, number: int, key: str, value: Any) -> None:
        """Write down something about a running trial."""
        for storage, ids in self._storages:
            storage.set_trial_user_attr(ids[number], key, value)

    def remember(self, key: str, value: Any) -> None:
        """Write down something about the study."""
        for storage, _ in self._storages:
            storage.set_study_user_attr(self._study_ids[storage], key, value)

    def recall(self, key: str) -> Any:
        """What was last remembered, None if nothing was."""
        return self._memory.get_study_user_attrs(self._study_ids[self._memory]).get(key)

    def report(self, number: int, epoch: int, value: float) -> None:
        for storage, ids in self._storages:
            storage.set_trial_intermediate_value(ids[number], epoch, value)

    def mark_infeasible(self, number: int, violation: float) -> None:
        """Write down that a trial broke a limit, where Optuna's samplers look for it (`Trial.set_constraint`)."""
        for storage, ids in self._storages:
            storage.set_trial_system_attr(ids[number], INFEASIBLE, violation)

    def close(self, number: int, state: TrialState, value: float | None, attributes: dict[str, Any]) -> None:
        """End a trial; its attributes are written first, so that no ended trial lacks its reason."""
        values = None if value is None else [value]
        for storage, ids in self._storages:
            for key, attribute in attributes.items():
                storage.set_trial_user_attr(ids[number], key, attribute)
            storage.set_trial_state_values(ids[number], state, values)

    def _copy_to_memory(self, trial: FrozenTrial) -> None:
        study_id = self._study_ids[self._memory]
        self._storages[-1][1].append(self._memory.create_new_trial(study_id, template_trial=trial))


def _open_disk(path: Path) -> RDBStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return RDBStorage(f"sqlite:///{path}")
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be opened as a study ({reason})", "move it away, or restore it"
        ) from error


def _open_study(disk: RDBStorage, name: str, goal: Goal, path: Path) -> int:
    study = optuna.create_study(storage=disk, study_name=name, direction=goal, load_if_exists=True)
    if study.direction.name.lower() != goal:
        rule = f"{path}: study {name!r} was begun to {study.direction.name.lower()}, but got {goal}"
        raise UserError(rule, "keep the goal, or give the sweep another name")
    return int(disk.get_study_id_from_name(name))
