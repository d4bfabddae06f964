"""What the recorder waits for at a sweep's end, and whose weights it keeps."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import binsweep.search.recording.recorder
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.photo_trial import BEST
from binsweep.search.execution.trial import ONE_CORE
from binsweep.search.recording.photo_records import PhotoRecords
from binsweep.search.recording.recorder import MAX_KEPT_CHECKPOINTS, Recorder
from binsweep.search.spec.parser import parse_spec

RAW: dict[str, Any] = {
    "name": "small",
    "data": {"source": "./bins"},
    "space": {"lr": {"low": 1e-4, "high": 0.03, "log": True}},
    "budget": {"trials": 20},
}


class Delivered:
    """A run log all of which has arrived."""

    def delivered(self, key: str) -> bool:
        return True


class Told(Delivered):
    """A run log that knows the runs `known`, and remembers what is begun."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.begun = known, list[str]()

    def has_started(self, key: str) -> bool:
        return key in self.known

    def recorded(self, key: str) -> set[int]:
        return set()

    def start_run(self, key: str, *rest: Any) -> None:
        self.begun.append(key)

    def tags(self, key: str, values: Any) -> None: ...
    def dataset(self, *words: Any) -> None: ...


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    controller = Controller(parse_spec(RAW), None, tmp_path, lambda settings: ONE_CORE)  # type: ignore[arg-type]
    for number in range(MAX_KEPT_CHECKPOINTS + 2):
        trial = controller._add(number, {"lr": 0.01}, "")
        trial.value, trial.state = 0.9 - 0.1 * number, "completed"
        trial.folder.mkdir()
        (trial.folder / BEST).touch()
    return controller


@pytest.fixture
def recorder(controller: Controller, tmp_path: Path) -> Recorder:
    manifest: Any = SimpleNamespace(fingerprint="f", items=[None] * 1234, source="./bins", summary=dict)
    data: Any = None
    parts: Any = (
        Delivered(),
        parse_spec(RAW),
        "small-1",
        PhotoRecords(manifest, data),
        tmp_path,
        controller,
    )
    return Recorder(*parts)


def kept(controller: Controller) -> list[int]:
    return [n for n, trial in controller.trials.items() if (trial.folder / BEST).exists()]


@pytest.mark.parametrize("state", ["running", "paused", "waiting"])
def test_a_leader_that_fails_in_the_end_leaves_weights_of_as_many_as_can_be_finalists(
    state: Any, recorder: Recorder, controller: Controller
) -> None:
    controller.trials[0].state = state
    recorder.prune()
    assert kept(controller) == [0, 1, 2, 3, 4, 5]
    controller.trials[0].state = "failed"  # it diverged
    recorder.prune()
    most = parse_spec({**RAW, "register": {"finalists": 5}}).register.finalists
    leaders = controller.leaderboard()[:most]
    assert len(leaders) == 5 and all((trial.folder / BEST).exists() for trial in leaders)
    assert kept(controller) == [0, 1, 2, 3, 4, 5]


def test_weights_behind_the_first_ones_go(recorder: Recorder, controller: Controller) -> None:
    recorder.prune()
    assert kept(controller) == [0, 1, 2, 3, 4]


def test_a_trial_that_its_process_could_not_record_is_begun_by_the_next(
    recorder: Recorder, controller: Controller
) -> None:
    """It may never go on, and would be missing in the history: with a smaller budget, say."""
    recorder._log = told = Told({"trial-0001"})  # type: ignore[assignment]
    for number in (0, 1):
        controller.trials[number].state = "waiting"
        recorder._catch_up(controller.trials[number])
    assert told.begun == ["trial-0000"]


def test_the_end_of_a_sweep_waits_for_the_data_report_aloud_and_not_for_ever(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binsweep.search.recording.recorder, "MAX_SILENT_SECONDS", 0.05)
    monkeypatch.setattr(binsweep.search.recording.recorder, "MAX_DATA_REPORT_SECONDS", 0.3)
    over = threading.Event()
    recorder._data_report = threading.Thread(target=over.wait, daemon=True)
    recorder._data_report.start()
    start = time.monotonic()
    recorder._wait_for_data_report()
    assert 0.3 <= time.monotonic() - start < 10
    said = capsys.readouterr().err
    assert "waiting up to under a second for the data report of 1,234 images" in said
    assert "`binsweep data report ./bins` writes it" in said
    over.set()
    recorder._data_report.join()
    recorder._wait_for_data_report()
    assert capsys.readouterr().err == ""


def test_figures_that_take_long_are_told(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binsweep.search.recording.recorder, "MAX_SILENT_SECONDS", 0.05)
    recorder._pending = [recorder._figure_pool.submit(time.sleep, 0.2) for _ in range(2)]
    recorder._wait_for_figures()
    assert all(future.done() for future in recorder._pending)
    assert "drawing the figures of 2 trials" in capsys.readouterr().err
