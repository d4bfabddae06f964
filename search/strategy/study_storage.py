"""The study in two storages: SQLite, which is authoritative, and an in-memory copy that samplers read.

Samplers read every past trial for every suggestion, which takes 120 ms at 1,000 trials with SQLite and a tenth of that
in memory. Only one process writes, so the copy is never stale. Each change is one transaction on disk, written before
the copy. An event with several changes (a trial's end: its reason, then its state) writes them in an order in which a
kill between any two leaves a study that can go on: the trial is still running, and ends again.
"""

import json
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialUserAttributeModel
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.dialects.sqlite import insert

from binsweep.data.errors import UserError
from binsweep.search.spec.objective import Goal
from binsweep.search.strategy.notes import SHOWN, write_note

MAX_LOCKED_SECONDS = 60.0  # by a process that reads the study, such as a warm start from it
INFEASIBLE_ATTR = "constraints:limit"  # system attribute of a trial, stored

_VALUE, _ATTRIBUTE = (
    insert(model.__table__) for model in (TrialIntermediateValueModel, TrialUserAttributeModel)
)
_WRITE_VALUE = _VALUE.on_conflict_do_update(
    index_elements=["trial_id", "step"],
    set_={name: _VALUE.excluded[name] for name in ("intermediate_value", "intermediate_value_type")},
)
_WRITE_ATTRIBUTE = _ATTRIBUTE.on_conflict_do_update(
    index_elements=["trial_id", "key"], set_={"value_json": _ATTRIBUTE.excluded["value_json"]}
)


class StudyStorage:
    """One study, its trials by number. Without a path it exists in memory only, for simulations.

    `sync_records` is called before a trial's end is stored and before the study is written through: it waits until the
    disk has what was recorded of the trials elsewhere, so that a power cut leaves no trial that has ended and whose
    epochs are missing there.
    """

    def __init__(self, path: Path | None, name: str, goal: Goal, metric: str = "") -> None:
        self.sync_records: Callable[[], None] = lambda: None
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # the sweep logs trials itself
        self._memory = InMemoryStorage()
        self.study = optuna.create_study(storage=self._memory, study_name=name, direction=goal)
        self._storages: list[tuple[BaseStorage, list[int]]] = [(self._memory, [])]  # and trial ids by number
        self._study_ids: dict[BaseStorage, int] = {self._memory: self._memory.get_study_id_from_name(name)}
        if path is not None:
            disk = _open_disk(path)
            study_id = self._study_ids[disk] = _open_study(disk, name, goal, path, metric)
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
        """Store a trial that the in-memory study has just been asked for."""
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        memory_ids = self._storages[-1][1]
        frozen = self._memory.get_trial(trial._trial_id)
        memory_ids.append(trial._trial_id)
        for storage, ids in self._storages[:-1]:
            ids.append(storage.create_new_trial(self._study_ids[storage], template_trial=frozen))
        self._write_note(frozen)
        self.write_through()
        return frozen

    def add_point(
        self, params: dict[str, Any], distributions: dict[str, BaseDistribution], attributes: dict[str, Any]
    ) -> FrozenTrial:
        """Store a running trial with the given parameters."""
        template = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
        )
        for storage, ids in self._storages:
            ids.append(storage.create_new_trial(self._study_ids[storage], template_trial=template))
        frozen = self._memory.get_trial(self._storages[-1][1][-1])
        self._write_note(frozen)
        self.write_through()
        return frozen

    def set_trial_attr(self, number: int, key: str, value: Any) -> None:
        """Set a user attribute of a running trial."""
        self._require_running(number)
        for storage, ids in self._storages:
            _set_attribute(storage, ids[number], key, value)
        if key in SHOWN:
            self._write_note(self._memory.get_trial(self._storages[-1][1][number]))

    def set_study_attr(self, key: str, value: Any) -> None:
        """Set a user attribute of the study."""
        for storage, _ in self._storages:
            storage.set_study_user_attr(self._study_ids[storage], key, value)

    def study_attr(self, key: str) -> Any:
        """A user attribute of the study, None if it is not set."""
        return self._memory.get_study_user_attrs(self._study_ids[self._memory]).get(key)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store a value of a running trial. One of the same epoch is replaced."""
        self._require_running(number)
        for storage, ids in self._storages:
            if isinstance(storage, RDBStorage):
                _write_value(storage, ids[number], epoch, value)
            else:
                storage.set_trial_intermediate_value(ids[number], epoch, value)

    def _require_running(self, number: int) -> None:
        memory_id = self._storages[-1][1][number]
        self._memory.check_trial_is_updatable(memory_id, self._memory.get_trial(memory_id).state)

    def mark_infeasible(self, number: int, violation: float) -> None:
        """Store that a trial exceeded a limit, where Optuna's samplers look for it (`Trial.set_constraint`)."""
        for storage, ids in self._storages:
            storage.set_trial_system_attr(ids[number], INFEASIBLE_ATTR, violation)

    def close(self, number: int, state: TrialState, value: float | None, attributes: dict[str, Any]) -> None:
        """End a trial. Its attributes are written first, so that no ended trial lacks its reason."""
        values = None if value is None else [value]
        self._require_running(number)
        self.sync_records()
        for storage, ids in self._storages:
            for key, attribute in attributes.items():
                _set_attribute(storage, ids[number], key, attribute)
            storage.set_trial_state_values(ids[number], state, values)
        self._write_note(self._memory.get_trial(self._storages[-1][1][number]))
        self.write_through()

    def write_through(self) -> None:
        """Wait until all that was stored is on the disk.

        A power cut must not take back that a trial has begun, because its folder has files by then; or that it has
        ended, because the state that it could be resumed from is removed after that.
        """
        self.sync_records()
        for storage, _ in self._storages:
            if isinstance(storage, RDBStorage):
                with storage.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def _write_note(self, trial: FrozenTrial) -> None:
        for storage, ids in self._storages:
            if isinstance(storage, RDBStorage):
                write_note(storage, self._study_ids[storage], ids[trial.number], trial)

    def _copy_to_memory(self, trial: FrozenTrial) -> None:
        study_id = self._study_ids[self._memory]
        self._storages[-1][1].append(self._memory.create_new_trial(study_id, template_trial=trial))


def _set_attribute(storage: BaseStorage, trial_id: int, key: str, value: Any) -> None:
    """`set_trial_user_attr`, on disk without SQLAlchemy's ORM, as in `_write_value`."""
    if isinstance(storage, RDBStorage):
        with storage.engine.begin() as connection:
            row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            connection.execute(_WRITE_ATTRIBUTE, row)
    else:
        storage.set_trial_user_attr(trial_id, key, value)


def _write_value(storage: RDBStorage, trial_id: int, epoch: int, value: float) -> None:
    """`RDBStorage.set_trial_intermediate_value`, which takes three statements by SQLAlchemy's ORM, in one without: 14
    times as fast, and it is called in every epoch."""
    stored, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    row = {"trial_id": trial_id, "step": epoch}
    with storage.engine.begin() as connection:
        connection.execute(
            _WRITE_VALUE, {**row, "intermediate_value": stored, "intermediate_value_type": kind}
        )


def _open_disk(path: Path) -> RDBStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return RDBStorage(f"sqlite:///{path}", engine_kwargs={"creator": lambda: _connect(path)})
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be opened as a study ({reason})",
            "put a copy of it back; `binsweep sweep SPEC --new` starts another sweep",
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """A connection whose transactions do not wait for the disk, which takes tens of milliseconds.

    A killed process loses nothing. A power cut may lose those since the last `write_through`: these epochs are
    reported again.
    """
    connection = sqlite3.connect(path, timeout=MAX_LOCKED_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _open_study(disk: RDBStorage, name: str, goal: Goal, path: Path, metric: str) -> int:
    study = optuna.create_study(storage=disk, study_name=name, direction=goal, load_if_exists=True)
    if study.direction.name.lower() != goal:
        rule = f"{path}: study {name!r} was begun to {study.direction.name.lower()}, but got {goal}"
        raise UserError(rule, "keep the goal, or give the sweep another name")
    if metric and study.metric_names != [metric]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])  # as Optuna's plots and its dashboard call the values
    return int(disk.get_study_id_from_name(name))
