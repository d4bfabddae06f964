"""A sweep's study in Optuna's own dashboard, the real program, on the very file."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import requests

from binsweep.search.spec.space import Range, SearchSpace
from binsweep.search.strategy.base import Decision, Outcome
from binsweep.search.strategy.factory import StoppingName, StrategyOptions, open_strategy
from binsweep.search.strategy.optuna_strategy import OptunaStrategy
from binsweep.tracking.processes import free_port

pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed: `make install` has it")
from optuna_dashboard import get_note

SPACE = SearchSpace({"lr": Range(1e-4, 1e-1, log=True)})


def opened(file: Path, stopping: StoppingName = "auto") -> OptunaStrategy:
    options = StrategyOptions(SPACE, "minimize", 9, "random", stopping, metric="val_rmse")
    return open_strategy(file, "s-1", options)


def search(strategy: OptunaStrategy) -> dict[str, int]:
    """A search that leaves a trial in every state; returns a number of each."""
    first = strategy.suggest()
    assert first is not None
    strategy.observe(first.number, 1, float("nan"))
    strategy.finish(first.number, Outcome("completed"))
    paused: set[int] = set()
    for _ in range(40):
        suggestion = strategy.suggest()
        assert suggestion is not None
        number = suggestion.number
        paused.discard(number)
        for epoch in range(suggestion.epochs_done + 1, 10):
            if strategy.observe(number, epoch, number + 1 / epoch).decision is Decision.PAUSE:
                paused.add(number)
                break
        else:
            strategy.finish(number, Outcome("completed"))
            if len(paused) > 1:
                stopped, waiting = sorted(paused)[:2]
                strategy.finish(stopped, Outcome("stopped", "a person stopped it"))
                return {"Fail": first.number, "Complete": number, "Pruned": stopped, "paused": waiting}
    raise AssertionError("no trial was completed while others were paused")


@contextmanager
def dashboard(url: str) -> Iterator[str]:
    """The address of the program, as its command starts it."""
    port = free_port()
    words = [sys.executable, "-m", "optuna_dashboard._cli", url, "--port", str(port), "--quiet"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
            while True:
                try:
                    requests.get(f"{address}/api/meta", timeout=5)
                    break
                except requests.ConnectionError:
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()


def study_of(address: str) -> dict[str, Any]:
    (study,) = requests.get(f"{address}/api/studies", timeout=20).json()["study_summaries"]
    found = requests.get(f"{address}/api/studies/{study['study_id']}", timeout=20)
    found.raise_for_status()
    return {**study, **found.json()}


def read_only(file: Path) -> str:
    return f"sqlite:///file:{file}?mode=ro&uri=true"


def test_the_dashboard_shows_states_values_and_reasons_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    strategy = opened(file)  # still open, as in a sweep that runs
    numbers = search(strategy)
    with dashboard(read_only(file)) as address:
        study = study_of(address)
        trials = {trial["number"]: trial for trial in study["trials"]}
        of = {state: trials[number] for state, number in numbers.items()}
        assert {state: trial["state"] for state, trial in of.items()} == {
            "Fail": "Fail",
            "Complete": "Complete",
            "Pruned": "Pruned",
            "paused": "Running",
        }
        assert study["study_name"] == "s-1" and study["directions"] == ["minimize"]
        assert study["objective_names"] == ["val_rmse"]
        assert of["Complete"]["values"] == [numbers["Complete"] + 1 / 9]
        steps = [point["step"] for point in of["Complete"]["intermediate_values"]]
        assert steps == list(range(1, 10))
        notes = {state: trial["note"]["body"] for state, trial in of.items()}
        assert all(note.startswith("**Tried because**: ") for note in notes.values())
        assert "**Ended because**: value is nan" in notes["Fail"]
        assert "**Ended because**: trained to its end (best epoch: 9)" in notes["Complete"]
        assert "**Ended because**: a person stopped it" in notes["Pruned"]
        assert "**Paused** after epoch " in notes["paused"]
        # What a page could ask for changes nothing.
        for words in (
            ("DELETE", f"/api/studies/{study['study_id']}", {}),
            ("PUT", f"/api/studies/{study['study_id']}/note", {"body": "mine", "version": 1}),
            ("POST", f"/api/trials/{of['paused']['trial_id']}/tell", {"state": "Fail"}),
        ):
            assert (
                requests.request(words[0], address + words[1], json=words[2], timeout=20).status_code >= 400
            )
        # The sweep goes on next to it, and the page follows.
        suggestion = strategy.suggest()
        assert suggestion is not None
        deadline = time.monotonic() + 30
        while suggestion.number not in [trial["number"] for trial in study_of(address)["trials"]]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    again = opened(file)
    assert again.trials() == strategy.trials()


def test_a_note_that_a_person_edits_stays_and_the_sweep_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    first = opened(file, "none").suggest()
    assert first is not None
    with dashboard(f"sqlite:///{file}") as address:
        (trial,) = study_of(address)["trials"]
        place = f"{address}/api/studies/{trial['study_id']}/{trial['trial_id']}/note"
        requests.put(place, json={"body": "look at this one", "version": 2}, timeout=20).raise_for_status()
    strategy = opened(file, "none")  # as `--resume` does
    assert [one.state for one in strategy.trials()] == ["running"]
    for epoch in range(1, 10):
        strategy.observe(first.number, epoch, 0.5)
    strategy.finish(first.number, Outcome("completed"))
    study = optuna.load_study(study_name="s-1", storage=f"sqlite:///{file}")
    (ended,) = study.get_trials()
    assert ended.state.name == "COMPLETE" and ended.value == 0.5
    handle = optuna.Trial(study, ended._trial_id)
    assert get_note(handle) == "look at this one"


def test_a_long_reason_is_cut_to_what_a_note_holds(tmp_path: Path) -> None:
    strategy = opened(tmp_path / "study.db")
    suggestion = strategy.suggest()
    assert suggestion is not None
    strategy.finish(suggestion.number, Outcome("failed", "é" * 5000))
    study = optuna.load_study(study_name="s-1", storage=f"sqlite:///{tmp_path / 'study.db'}")
    (trial,) = study.get_trials()
    note = get_note(optuna.Trial(study, trial._trial_id))
    assert "**Ended because**: é" in note and len(note) == 2045
