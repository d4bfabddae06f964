"""A study whose process dies between any two changes of one event can go on, and ends as an undisturbed one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage

from binsweep.search.spec.space import Range, SearchSpace
from binsweep.search.strategy import study_storage
from binsweep.search.strategy.base import Decision, Outcome, Record
from binsweep.search.strategy.factory import StrategyOptions, open_strategy
from binsweep.search.strategy.optuna_strategy import OptunaStrategy

WRITES = (
    "create_new_trial",
    "set_trial_system_attr",
    "set_trial_state_values",
    "set_study_user_attr",
)


def opened(file: Path) -> OptunaStrategy:
    space = SearchSpace({"lr": Range(1e-4, 1e-1, log=True)})
    return open_strategy(file, "s", StrategyOptions(space, "maximize", 2, "random", "none"))


def go_on(strategy: OptunaStrategy) -> list[Record]:
    """Train what runs and what is new: 1 ends as it should, 2 breaks a limit, 3 diverges."""
    for number in range(3):
        live = [one for one in strategy.trials() if one.number == number]
        if live and live[0].state != "running":
            continue
        if not live:
            suggestion = strategy.suggest()
            assert suggestion is not None and suggestion.number == number
        for epoch in range(max(live[0].values, default=0) + 1 if live else 1, 3):
            value = float("nan") if number == 2 and epoch == 2 else 0.1 * epoch
            verdict = strategy.observe(number, epoch, value)
            if verdict.decision is not Decision.CONTINUE:
                break
        strategy.finish(number, Outcome("completed", "its reason", violation=0.5 if number == 1 else 0.0))
    return strategy.trials()


def test_a_kill_before_any_write_changes_nothing_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file as it is before each write is what a kill at that moment leaves."""
    file, left = tmp_path / "whole.db", list[Path]()
    strategy = opened(file)

    def kept(write: Any) -> Any:
        def keep_and_write(*words: Any, **named: Any) -> Any:
            left.append(tmp_path / f"{len(left)}.db")
            shutil.copy(file, left[-1])
            return write(*words, **named)

        return keep_and_write

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(RDBStorage, name, kept(getattr(RDBStorage, name)))
        for name in ("_set_attribute", "_write_value"):  # without Optuna's own methods
            patch.setattr(study_storage, name, kept(getattr(study_storage, name)))
        whole = go_on(strategy)
    assert [record.state for record in whole] == ["completed", "completed", "failed"]
    assert len(left) >= 10
    for study in left:
        assert go_on(opened(study)) == whole, study
