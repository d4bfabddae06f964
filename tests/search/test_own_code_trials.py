"""Trials of own code in their process, one at a time: what they may do, what ends them, and what is said then."""

import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from binsweep.search.execution.code_trial import CodeState, CodeTrainer, read_code_history
from binsweep.search.execution.health import read_findings
from binsweep.search.execution.trial import ERROR, LostWorkerError, TrialTask, is_disk_full
from binsweep.search.own_code import host_process
from binsweep.search.own_code.host_process import KEPT_BYTES, OUTPUT, close_hosts, host_for
from binsweep.search.own_code.snapshot import CodeSnapshot
from binsweep.search.own_code.trial import ARTIFACTS
from binsweep.search.spec.sweep_spec import CodeSection, CodeSettings

SECONDS = 1_000_000 + os.getpid()  # by which a process of these tests is recognised

COUNTS = """
    def train(trial):
        saved = trial.checkpoint()
        total = float((saved / "total").read_text()) if saved else 0.0
        for epoch in trial.epochs():
            total += trial.params["x"] * epoch
            trial.report({"score": total}, save=lambda folder: (folder / "total").write_text(str(total)))
"""


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    close_hosts()


@dataclass
class Trainings:
    """Trials of one training function; `sent` are the epochs that were reported, by trial."""

    folder: Path
    sent: dict[int, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)

    def write(self, code: str, name: str = "train.py") -> Path:
        file = self.folder / "code" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(code))
        return file

    def train(
        self,
        number: int = 0,
        epochs: int = 3,
        until: int = 10**9,
        params: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        """Train a trial until it ends, or until it is told to stop after an epoch; returns its folder."""
        settings = CodeSettings(params or {"x": 2.0}, epochs, 7)
        folder = self.folder / f"trial-{number:04d}"
        sent = self.sent.setdefault(number, [])
        known = max((epoch for epoch, _ in sent), default=0)
        task = TrialTask(
            number, (CodeSection(settings),), folder, "score", "maximize", 1, known=known, **changes
        )

        def send(epoch: int, metrics: dict[str, float]) -> bool:
            sent.append((epoch, metrics))
            return epoch < until

        place = str(self.folder / "code" / "train.py")
        CodeTrainer(CodeSnapshot(place, "train", "", ("train.py",)), {}).train(task, send)
        return folder

    def scores(self, number: int = 0) -> list[tuple[int, float]]:
        return [(epoch, metrics["score"]) for epoch, metrics in self.sent[number]]

    def failure(self, number: int = 0, **how: Any) -> str:
        """Why a trial fails, as its error file says."""
        with pytest.raises((RuntimeError, TimeoutError)):
            self.train(number, **how)
        return (self.folder / f"trial-{number:04d}" / ERROR).read_text().splitlines()[0]


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    return Trainings(tmp_path)


def findings(folder: Path) -> dict[str, str]:
    return {finding.rule: finding.text for finding in read_findings(folder)}


def wait_for(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_epochs_are_reported_and_the_last_checkpoints_are_kept(trainings: Trainings) -> None:
    trainings.write(COUNTS)
    folder = trainings.train()
    assert trainings.scores() == [(1, 2.0), (2, 6.0), (3, 12.0)]
    assert all(metrics["seconds"] > 0 for _, metrics in trainings.sent[0])
    assert [path.name for path in folder.glob("checkpoint*")] == ["checkpoint-000003"]
    assert CodeState.read(folder) == CodeState(3, "checkpoint-000003", 3, "checkpoint-000003", 3)


def test_a_paused_trial_goes_on_from_its_checkpoint_also_in_another_process(trainings: Trainings) -> None:
    trainings.write(COUNTS)
    trainings.train(epochs=9, until=4)
    close_hosts()
    trainings.train(epochs=9)
    trainings.train(number=1, epochs=9)
    assert trainings.scores(0) == trainings.scores(1) and len(trainings.scores(0)) == 9


def test_what_was_reported_but_not_received_is_sent_again(trainings: Trainings) -> None:
    trainings.write(COUNTS)
    trainings.train(epochs=5, until=3)
    received = trainings.sent[0][:1]
    trainings.sent[0][:] = received  # the controller knows the first epoch only
    trainings.train(epochs=5)
    assert [epoch for epoch, _ in trainings.sent[0]] == [1, 2, 3, 4, 5]


def test_the_best_epochs_checkpoint_stays_next_to_the_last_one(trainings: Trainings) -> None:
    trainings.write("""
        def train(trial):
            for epoch in trial.epochs():
                trial.report({"score": [1, 5, 3][epoch - 1]}, save=lambda f: (f / "it").write_text(str(epoch)))
    """)
    folder = trainings.train()
    state = CodeState.read(folder)
    assert state.best is not None and state.last is not None
    assert ((folder / state.best / "it").read_text(), (folder / state.last / "it").read_text()) == ("2", "3")


def test_a_line_that_was_cut_off_hides_no_other(trainings: Trainings) -> None:
    trainings.write(COUNTS)
    folder = trainings.train(epochs=9, until=2)
    with (folder / "history.jsonl").open("a") as stream:
        stream.write('[3, {"score": 1')
    trainings.train(epochs=9)
    assert [metrics["score"] for metrics in read_code_history(folder)] == [x * (x + 1) for x in range(1, 10)]


def test_code_that_saves_nothing_begins_again(trainings: Trainings) -> None:
    trainings.write("""
        import random
        def train(trial):
            loss = 4.0
            for epoch in trial.epochs():
                loss -= random.random()
                trial.report({"score": -loss, "train_loss": loss, "val_loss": loss})
    """)
    folder = trainings.train(epochs=6, until=3)
    trainings.train(epochs=6)
    trainings.train(number=1, epochs=6)
    curve = [metrics["score"] for metrics in read_code_history(folder)]
    assert curve == [score for _, score in trainings.scores(1)], "its seed makes it equal"
    assert "saved nothing" in findings(folder)["no_checkpoint"]
    before = len(trainings.sent[0])
    trainings.train(epochs=6)  # the worker was lost after the last report
    assert len(trainings.sent[0]) == before


def test_trials_share_a_process_and_the_person_s_files_do_not_change_it(trainings: Trainings) -> None:
    trainings.write("""
        import os
        def train(trial):
            trial.report({"score": os.getpid()})
    """)
    trainings.train(0)
    trainings.train(1)
    assert trainings.scores(0) == trainings.scores(1)


def test_a_function_may_return_its_metrics(trainings: Trainings) -> None:
    trainings.write("def train(trial): return {'score': 3, 'size': 4} if trial.number else 2.5")
    trainings.train(0)
    trainings.train(1)
    assert trainings.scores(0) == [(1, 2.5)] and trainings.scores(1) == [(1, 3.0)]


def test_a_loop_of_its_own_ends_with_the_trial(trainings: Trainings) -> None:
    trainings.write("""
        def train(trial):
            for epoch in range(1, 100):
                trial.report({"score": epoch})
    """)
    trainings.train(0, epochs=4)
    trainings.train(1, epochs=9, until=2)
    assert trainings.scores(0)[-1] == (4, 4.0) and trainings.scores(1)[-1] == (2, 2.0)


BROKEN = {
    "an exception": (
        'raise KeyError("lr")',
        "KeyError: 'lr' (train.py, line 4)",
    ),
    "a report without the objective": (
        'trial.report({"accuracy": 1})',
        "ReportError: trial.report: accuracy was reported; objective.metric is score, which is missing "
        "(train.py, line 4)",
    ),
    "a report of nothing": (
        "trial.report({})",
        "ReportError: trial.report: nothing was reported; objective.metric is score, which is missing "
        "(train.py, line 4)",
    ),
    "no dict": (
        "trial.report(0.5)",
        "ReportError: trial.report: float is no dict of metrics, such as {'score': 0.5} (train.py, line 4)",
    ),
    "text": (
        'trial.report({"score": "0.5"})',
        "ReportError: trial.report: score is '0.5' (str), not a number (train.py, line 4)",
    ),
    "None": (
        'trial.report({"score": None})',
        "ReportError: trial.report: score is None (NoneType), not a number (train.py, line 4)",
    ),
    "two numbers": (
        'import numpy; trial.report({"score": numpy.zeros((2, 2))})',
        "ReportError: trial.report: score is array([[0., 0.], [0., 0.]]) (ndarray), not a number (train.py, line 4)",
    ),
    "a name that MLflow refuses": (
        'trial.report({"score": 1, "accuracy (%)": 1})',
        "ReportError: trial.report: 'accuracy (%)' is no name that MLflow takes: use up to 200 letters, digits and "
        "_ - . : / and blanks (train.py, line 4)",
    ),
    "an epoch twice": (
        'trial.report({"score": 1}, epoch=1); trial.report({"score": 1}, epoch=1)',
        "ReportError: trial.report: epoch 1 was reported twice (train.py, line 4)",
    ),
    "an epoch backwards": (
        'trial.report({"score": 1}, epoch=2); trial.report({"score": 1}, epoch=1)',
        "ReportError: trial.report: epoch 1 was reported after epoch 2: they must go up from 1 (train.py, line 4)",
    ),
    "an epoch before the first": (
        'trial.report({"score": 1}, epoch=-1)',
        "ReportError: trial.report: epoch -1 was reported after epoch 0: they must go up from 1 (train.py, line 4)",
    ),
    "epoch 0": (
        'trial.report({"score": 1}, epoch=0)',
        "ReportError: trial.report: epoch 0 was reported after epoch 0: they must go up from 1 (train.py, line 4)",
    ),
    "half an epoch": (
        'trial.report({"score": 1}, epoch=1.5)',
        "ReportError: trial.report: epoch 1.5 is no whole number (train.py, line 4)",
    ),
    "an epoch behind the last": (
        'trial.report({"score": 1}, epoch=30)',
        "ReportError: trial.report: epoch 30 was reported, and the training ends at 3: raise fidelity.epochs "
        "(train.py, line 4)",
    ),
    "no report": (
        "pass",
        "ReportError: train ended without a report: call trial.report({'score': ...})",
    ),
    "an epoch without a report": (
        "for epoch in trial.epochs(): pass",
        "ReportError: epoch 1 ended without a report: call trial.report in each epoch (train.py, line 4)",
    ),
    "an empty checkpoint": (
        'trial.report({"score": 1}, save=lambda folder: None)',
        "ReportError: save wrote nothing into the folder that it was given: write the checkpoint there "
        "(train.py, line 4)",
    ),
    "an artifact that does not exist": (
        'trial.artifact("plot.png")',
        "ReportError: trial.artifact: there is no file plot.png (train.py, line 4)",
    ),
    "sys.exit": ("import sys; sys.exit(3)", "SystemExit: it called sys.exit(3)"),
    "os._exit": ("import os; os._exit(3)", "its process ended with exit code 3"),
    "other values": (
        'trial.params["x"] = 3',
        "TypeError: 'mappingproxy' object does not support item assignment (train.py, line 4)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_training_says_why_and_the_next_one_runs(case: str, trainings: Trainings) -> None:
    line, message = BROKEN[case]
    trainings.write(f"""
        def train(trial):
            if trial.number == 0:
                {line}
            else:
                trial.report({{"score": 1}})
    """)
    assert trainings.failure(0) == message
    trainings.train(1)
    assert trainings.scores(1) == [(1, 1.0)]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import no_such_package\n",
            "ModuleNotFoundError: No module named 'no_such_package' (train.py, line 1)",
        ),
        ("x = 1\ndef train(trial:\n", "SyntaxError: '(' was never closed (train.py, line 2)"),
        ("import sys\nsys.exit(2)\n", "SystemExit: 2 (train.py, line 2)"),
        ("import broken\n", "ZeroDivisionError: division by zero (broken.py, line 2)"),
    ],
)
def test_code_that_cannot_be_imported_is_named_with_its_line(
    code: str, message: str, trainings: Trainings
) -> None:
    trainings.write("def f():\n    return 1 / 0\nf()\n", "broken.py")
    file = trainings.write(code)
    assert trainings.failure() == f"{file} cannot be imported: {message}"


def test_a_missing_function_is_named_with_those_that_are_there(trainings: Trainings) -> None:
    file = trainings.write("from pathlib import Path\ndef fit(trial): ...\ndef load(): ...\n")
    assert trainings.failure() == f"{file} has no function train: it has fit, load"


def test_a_file_with_the_name_of_a_module_of_python_is_refused(trainings: Trainings) -> None:
    file = trainings.write("def train(trial): ...", "random.py")
    place = CodeSnapshot(str(file), "train", "", ())
    task = TrialTask(
        0, (CodeSection(CodeSettings({}, 1, 0)),), trainings.folder / "t", "score", "maximize", 1
    )
    with pytest.raises(
        RuntimeError, match="Python has a module random of its own: give the file another name"
    ):
        CodeTrainer(place, {}).train(task, lambda epoch, metrics: True)


def test_gigabytes_of_output_are_cut_in_the_middle(trainings: Trainings) -> None:
    trainings.write("""
        def train(trial):
            print("the beginning")
            for _ in range(400):
                print("x" * 100_000)
            print("the end")
            trial.report({"score": 1})
    """)
    output = (trainings.train() / OUTPUT).read_bytes()
    assert output.startswith(b"the beginning\n") and output.endswith(b"the end\n")
    assert b"MB are left out" in output and len(output) < 4 * KEPT_BYTES


def test_each_trial_has_its_own_output(trainings: Trainings) -> None:
    trainings.write("""
        import subprocess, sys
        def train(trial):
            print("trial", trial.number)
            subprocess.run([sys.executable, "-c", "print('a child of', %d)" % trial.number])
            print("an error", file=sys.stderr)
            trial.report({"score": 1})
    """)
    for number in range(3):
        output = (trainings.train(number) / OUTPUT).read_text()
        assert output == f"trial {number}\na child of {number}\nan error\n"


@pytest.mark.parametrize(
    "start",
    [
        f"subprocess.Popen(['sleep', '{SECONDS}'])",
        f"subprocess.Popen(['sleep', '{SECONDS}'], start_new_session=True)",
        f"subprocess.run(['sh', '-c', 'setsid sleep {SECONDS} & exit 0'])",
    ],
    ids=["a child", "in a session of its own", "whose parent has ended"],
)
def test_processes_that_it_leaves_are_ended_and_named(start: str, trainings: Trainings) -> None:
    trainings.write(f"""
        import os, subprocess
        def train(trial):
            {start}
            trial.report({{"score": os.getpid()}})
    """)
    folder = trainings.train()
    found = findings(folder)["left_processes"]  # setsid may not have become sleep yet
    assert "which were ended: " in found and found.endswith(f"sleep {SECONDS}")
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", str(SECONDS)]]
    trainings.train(1)
    assert trainings.scores(0) != trainings.scores(1), "a new process serves the next trial"


def test_what_is_written_elsewhere_is_named(trainings: Trainings) -> None:
    elsewhere = Path("/var/not-written.csv")
    trainings.write(f"""
        def train(trial):
            open("mine.csv", "w").write("1")
            trial.artifact("mine.csv")
            try:
                open("{"../" * 20}{elsewhere}", "r+")
            except FileNotFoundError:
                pass
            trial.report({{"score": 1}})
    """)
    folder = trainings.train()
    assert findings(folder)["foreign_writes"].endswith(f"overwrite each other: {elsewhere}")
    assert (folder / ARTIFACTS / "mine.csv").read_text() == "1"


def test_a_hung_epoch_ends_after_the_trials_time(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binsweep.search.execution.code_trial.GRACE_SECONDS", 0.2)
    monkeypatch.setattr(host_process, "MAX_UNWIND_SECONDS", 0.2)
    trainings.write("""
        import time
        def train(trial):
            trial.report({"score": 1})
            while not trial.number:
                time.sleep(60)
    """)
    message = trainings.failure(minutes=0.02)
    expected = "budget.trial_minutes: 0.02 are over, and an epoch has not ended"
    assert message == f"TimeoutError: {expected}"
    message = trainings.failure(seconds_left=0.5, limit="budget.minutes: 3")
    assert message == "TimeoutError: budget.minutes: 3 are long over, and an epoch has not ended"
    trainings.train(1)
    assert trainings.scores(1) == [(1, 1.0)]


def test_epochs_that_end_count_against_the_trials_time_too(trainings: Trainings) -> None:
    trainings.write("""
        import time
        def train(trial):
            for epoch in trial.epochs():
                time.sleep(0.1)
                trial.report({"score": epoch})
    """)
    message = trainings.failure(minutes=0.005, epochs=10_000)
    assert message.startswith("TimeoutError: budget.trial_minutes: 0.005 are over after epoch ")


def test_a_killed_process_is_no_failure_of_its_trial(trainings: Trainings) -> None:
    trainings.write("""
        import os, signal, pathlib
        def train(trial):
            for epoch in trial.epochs():
                if epoch == 3 and not pathlib.Path("killed").exists():
                    pathlib.Path("killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                trial.report({"score": epoch}, save=lambda folder: (folder / "it").touch())
    """)
    with pytest.raises(LostWorkerError, match="its process was ended by SIGKILL"):
        trainings.train()
    assert not (trainings.folder / "trial-0000" / ERROR).exists()
    trainings.train()
    assert trainings.scores() == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_killed_process_is_noticed_although_its_children_live(trainings: Trainings) -> None:
    """A forked child holds the connection, too."""
    trainings.write("""
        import os, signal, time
        def train(trial):
            if os.fork() == 0:
                time.sleep(302)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    with pytest.raises(LostWorkerError):
        trainings.train()


def test_a_full_disk_is_no_failure_of_its_trial(trainings: Trainings) -> None:
    trainings.write("""
        def train(trial):
            raise OSError(28, "No space left on device")
    """)
    with pytest.raises(OSError, match="No space left") as caught:
        trainings.train()
    assert is_disk_full(caught.value) and not (trainings.folder / "trial-0000" / ERROR).exists()


def test_the_process_and_its_children_end_with_the_worker(trainings: Trainings) -> None:
    """Whatever the code is at; another worker may go on with its trial at once."""
    trainings.write("""
        import os, subprocess, time
        from pathlib import Path
        def train(trial):
            child = subprocess.Popen(["sleep", "303"], start_new_session=True)
            Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
            Path("pids.tmp").rename("pids")
            while True:
                time.sleep(60)
    """)
    worker = os.fork()
    if worker == 0:
        try:
            trainings.train()
        finally:
            os._exit(1)
    pids = trainings.folder / "trial-0000" / "work" / "pids"
    wait_for(pids.exists)
    children = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_for(lambda: not any(_lives(child) for child in children))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_losses_are_watched_once_each(trainings: Trainings) -> None:
    trainings.write("""
        def train(trial):
            for epoch in trial.epochs():
                loss = float("nan") if trial.number else 1.0
                trial.report({"score": 1, "train_loss": loss, "val_loss": 2.0})
    """)
    assert findings(trainings.train(1))["exploding_tensor"] == "train_loss is nan"
    trainings.train(0, epochs=60, until=2)
    assert "loss_not_decreasing" not in findings(trainings.train(0, epochs=3))
    assert "loss_not_decreasing" in findings(trainings.train(0, epochs=4))


def test_a_worker_has_one_process_for_a_function(trainings: Trainings) -> None:
    trainings.write(COUNTS)
    place = str(trainings.folder / "code" / "train.py")
    first = host_for(place, "train", 1)
    assert host_for(place, "train", 1) is first
    assert host_for(place, "train", 2) is not first
