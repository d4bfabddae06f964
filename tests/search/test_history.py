"""A sweep's history says the same before a promotion and after it, however often the sweep went on in between."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from real_sweeps import run_here, spec_file
from recorded_sweeps import START, Recorded, random_trials

from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.search.history.run_keys import SWEEP, finalist_key, refit_key, trial_key, trial_number
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import as_json
from binsweep.search.report.advice import importances, next_steps, verdict
from binsweep.search.report.status import format_lines
from binsweep.search.report.sweep_report import contents, describe
from binsweep.tracking.runlog.spool import Spool

PARAMS = {"backbone": "resnet18", "lr": 0.01, "weight_decay": 0.1, "epochs": 2}


def said(folder: Path) -> dict[str, Any]:
    """Everything that anybody is told of a sweep."""
    course = read_history(folder)
    weights = importances(course)
    page = {name: value for name, value in contents(course).items() if name not in ("course", "rows")}
    return {
        "json": json.loads(as_json(course)),
        "status": format_lines(course),
        "verdict": verdict(course),
        "advice": next_steps(course, weights),
        "markdown": describe(folder),
        "page": page,
        "trials": course.trials,
        "times": (course.started, course.until, course.seconds, course.cost),
    }


@pytest.mark.parametrize("number", [0, 7, 9999, 10000, 123456])
def test_a_trial_is_known_by_the_name_of_its_run_and_nothing_else_is_taken_for_one(number: int) -> None:
    assert trial_number(trial_key(number)) == number
    again = finalist_key(number, 1)
    for other in (again, refit_key(again), refit_key(trial_key(number)), SWEEP):
        assert trial_number(other) is None
    assert len({trial_key(number), again, refit_key(again), refit_key(trial_key(number))}) == 4
    for other in (
        "trial-",
        "trial-0001-seed-1",
        "trial-0001\n",
        "a-trial-0001",
        "trial-\u0660\u0660\u0660\u0661",
    ):
        assert trial_number(other) is None


def test_a_promotion_changes_nothing_of_what_a_sweep_says(tmp_path: Path) -> None:
    sweep = random_trials(tmp_path / "s-1", 40)
    before = said(sweep.folder)
    assert len(before["trials"]) == 40
    sweep.at += 3600
    sweep.promoted(20, **PARAMS)
    assert said(sweep.folder) == before

    # It is extended and promoted once more.
    sweep.start(40, **PARAMS)
    sweep.at += 10
    sweep.epoch(40, 1, 0.9)
    sweep.tags(40, state="completed", ended_because="trained to its end")
    longer = said(sweep.folder)
    assert longer["json"]["best"]["trial"] == 40 and len(longer["trials"]) == 41
    sweep.promoted(40, **PARAMS)
    assert said(sweep.folder) == longer
    sweep.close()


def test_the_promotion_of_a_sweep_that_was_cut_short_is_no_part_of_its_trials_time(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1", status="unfinished")
    sweep.start(0, **PARAMS)
    sweep.at += 10
    sweep.epoch(0, 1, 0.4)
    sweep.start(1, **PARAMS)  # and the process dies
    sweep.spool.close()
    before = said(sweep.folder)
    assert before["json"]["status"] == "unfinished" and before["json"]["trials"] == {"interrupted": 2}
    sweep.spool = Spool(sweep.folder / "spool", lambda record: None)  # while it is promoted, too
    sweep.at += 3600
    sweep.promoted(0, **PARAMS)
    assert said(sweep.folder) == before
    sweep.close()
    assert said(sweep.folder) == before


def test_a_sweep_runs_only_where_its_own_process_does(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1", status="running")
    state = json.loads((sweep.folder / "sweep.json").read_text())
    for process, status in ((os.getpid(), "running"), (os.getpid() + 1, "unfinished")):
        (sweep.folder / "sweep.json").write_text(json.dumps({**state, "process": process}))
        assert read_history(sweep.folder).status == status
    sweep.close()


def test_the_time_in_which_the_machine_slept_is_nobodys(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1")
    sweep.start(0, **PARAMS)
    sweep.at += 10
    sweep.epoch(0, 1, 0.4)
    sweep.sleep(8 * 3600)
    sweep.at += 5
    sweep.epoch(0, 2, 0.5)
    sweep.tags(0, state="completed", ended_because="trained to its end")
    course = read_history(sweep.close())
    assert course.seconds == pytest.approx(15) and course.cost["cpu_hours"] == pytest.approx(30 / 3600)
    assert course.until == pytest.approx(START + 15)

    # Its process dies, and another one goes on after a break.
    later = Recorded(tmp_path / "s-2")
    later.start(0, **PARAMS)
    later.at += 10
    later.epoch(0, 1, 0.4)
    later.at += 1000
    later.slept = later.at - START  # what a new process counts begins at 0
    later.start(0, **PARAMS)
    later.at += 5
    later.epoch(0, 2, 0.5)
    later.tags(0, state="completed", ended_because="trained to its end")
    course = read_history(later.close())
    assert course.seconds == pytest.approx(15) and course.until == pytest.approx(START + 1015)


def test_the_break_before_a_later_process_records_the_end_of_a_trial_is_nobodys_time(tmp_path: Path) -> None:
    """The process is killed once the study knows the end, and the run log does not."""
    sweep = Recorded(tmp_path / "s-1")
    sweep.start(0, **PARAMS)
    sweep.at += 10
    sweep.epoch(0, 1, 0.4)
    sweep.at += 24 * 3600
    sweep.slept = sweep.at - START  # what a new process counts begins at 0
    sweep.add("sweep", "start", tags={"slots": "2"}, params={})
    sweep.tags(0, state="completed", ended_because="trained to its end")
    course = read_history(sweep.close())
    assert course.seconds == pytest.approx(10) and course.trials[0].state == "completed"


def test_a_clock_that_is_set_back_between_two_processes_takes_nothing_from_the_time(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1")
    sweep.start(0, **PARAMS)
    sweep.at += 3000
    sweep.epoch(0, 1, 0.4)
    sweep.at -= 3600
    sweep.slept = sweep.at - START  # what a new process counts begins at 0
    sweep.start(0, **PARAMS)
    sweep.at += 2000
    sweep.epoch(0, 2, 0.5)
    sweep.tags(0, state="completed", ended_because="trained to its end")
    assert read_history(sweep.close()).seconds == pytest.approx(5000)


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_is_set_changes_no_duration(
    jump: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two epochs, and between the last one and the look at a running sweep."""
    sweep = Recorded(tmp_path / "s-1", status="running")
    sweep.start(0, **PARAMS)
    sweep.at += 10
    sweep.epoch(0, 1, 0.4)
    monkeypatch.setattr(time, "time", lambda: sweep.at + jump)
    course = read_history(sweep.folder)
    assert course.seconds == pytest.approx(10) and course.until == pytest.approx(START + 10)
    sweep.sleep(jump)
    sweep.at += 5
    sweep.epoch(0, 2, 0.5)
    course = read_history(sweep.folder)
    assert course.seconds == pytest.approx(15) and course.until == pytest.approx(START + 15)
    sweep.close()


@pytest.mark.integration
def test_the_order_of_commands_of_the_readme(server: str, tmp_path: Path) -> None:
    """What `status` and `report` say after each of them is what leaderboard.csv says."""
    home, bins = tmp_path / "home", tmp_path / "bins"
    folder = home / "sweeps" / "order-1"
    write_synthetic(bins, 240, 0, 64, [0, 1, 2])  # enough that a counter beats the guess
    changes = {"space": {"lr": [0.003, 0.01, 0.03], "epochs": [4]}, "search": {"sampler": "grid"}}
    spec = spec_file(tmp_path, bins, "order", 3, register={"model": "order"}, **changes)
    client = MlflowClient(server)

    def do(*words: str) -> str:
        done = run_here(*words, BINSWEEP_HOME=str(home), MLFLOW_TRACKING_URI=server)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check() -> None:
        with (folder / "leaderboard.csv").open() as file:
            rows = list(csv.DictReader(file))
        answer = json.loads(do("status", "order", "--json"))
        found = [
            (str(t["trial"]), str(t["value"]), str(t["epoch"]), t["state"]) for t in answer["leaderboard"]
        ]
        assert found == [(row["trial"], row["val_accuracy"], row["epoch"], row["state"]) for row in rows]
        assert [float(row["lr"]) for row in rows] == [t["params"]["lr"] for t in answer["leaderboard"]]
        assert sum(answer["trials"].values()) == len(rows) and "interrupted" not in answer["trials"]
        best = rows[0]
        assert f"trial {best['trial']} at epoch {best['epoch']} of 4" in do("status")
        do("report", "order")
        told = f"trial {best['trial']} with val_accuracy {float(best['val_accuracy']):.1%}"
        page = (folder / "report.html").read_text()
        assert told in page and page.count("<tr data-n=") == len(rows)
        description = client.get_run(json.loads((folder / "sweep.json").read_text())["run_id"])
        assert told in description.data.tags["mlflow.note.content"]
        said.append((answer, page))

    said: list[tuple[dict[str, Any], str]] = []
    do("sweep", str(spec), "--runner", "local")
    check()
    do("promote", "order")
    check()
    do("evaluate", "order", str(bins))
    check()
    version = client.get_model_version_by_alias("order", "champion")
    again = client.copy_model_version(f"models:/order/{version.version}", "order")
    client.set_model_version_tag("order", again.version, "champion.before", version.version)
    client.set_registered_model_alias("order", "champion", again.version)
    assert f"version {version.version} is champion again" in do("rollback", "order")
    check()
    assert said == [said[0]] * 4

    do("sweep", str(spec), "--runner", "local", "--resume", "--set", "space.lr=[0.003,0.01,0.03]")
    check()
