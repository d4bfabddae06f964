"""Sweeps side by side: at equal amounts, with repetitions, and what their best trials have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_sweeps import run_here
from recorded_sweeps import RAW, Recorded, random_sweep
from scipy import stats

import binsweep
from binsweep.data.errors import UserError
from binsweep.search.history.comparison import Comparison, best_so_far, compare, difference_of, mean_of
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.report.compare_page import comparison_text, write_comparison


def recorded(folder: Path, values: dict[int, list[float]], seed: int = 0, **changes: Any) -> Path:
    """A sweep with these accuracies by trial, one trial after the other, an epoch every 10 s."""
    sweep = Recorded(folder, search={"seed": seed}, **changes)
    for number, curve in values.items():
        sweep.start(number, lr=0.01 * (number + 1), backbone="resnet18", weight_decay=0.1, epochs=30)
        for epoch, value in enumerate(curve, 1):
            sweep.at += 10
            sweep.epoch(number, epoch, value)
        sweep.tags(number, state="stopped", ended_because="because")
    return sweep.close()


def compared(*folders: Path) -> Comparison:
    return compare([read_history(folder) for folder in folders], ["same"] * len(folders))


def test_a_course_counts_what_was_spent_until_each_best_value(tmp_path: Path) -> None:
    history = read_history(recorded(tmp_path / "a-1", {0: [0.1, 0.3], 1: [0.2], 2: [0.2, 0.4, 0.3]}))
    course = best_so_far(history, "money")
    assert course.values == [0.1, 0.3, 0.4, 0.4]
    assert course.amounts["trials"] == [1, 1, 3, 3] and course.amounts["epochs"] == [1, 2, 5, 6]
    assert course.amounts["seconds"] == [10, 20, 50, 60]
    assert course.amounts["money"] == pytest.approx([2 * s / 3600 * 0.5 for s in (10, 20, 50, 60)])
    assert [course.at("epochs", amount) for amount in (0, 1, 4, 5, 99)] == [None, 0.1, 0.3, 0.4, 0.4]


def test_what_failed_or_broke_a_limit_was_spent_but_not_found(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "a-1")
    for number, tags in enumerate(({"state": "failed"}, {"state": "stopped", "within_limits": "false"}, {})):
        sweep.start(number, lr=0.01, backbone="resnet18", weight_decay=0.1, epochs=30)
        sweep.at += 10
        sweep.epoch(number, 1, 0.9 - 0.2 * number)
        sweep.tags(number, **{"state": "completed", **tags})
    course = best_so_far(read_history(sweep.close()), "cpu_hours")
    assert course.values == [0.5] and course.amounts["trials"] == [3] and course.amounts["epochs"] == [3]


def test_repetitions_are_one_group_and_groups_are_compared_at_equal_amounts(tmp_path: Path) -> None:
    good = [recorded(tmp_path / f"a-{n}", {0: [0.5, 0.6 + n / 100], 1: [0.5]}, seed=n) for n in (1, 2, 3)]
    other = {**RAW["space"], "lr": {"low": 0.001, "high": 0.1, "log": True}}
    late = [
        recorded(
            tmp_path / f"b-{n}", {0: [0.2 + n / 50, 0.2, 0.4 + n / 100, 0.7 + n / 30]}, seed=n, space=other
        )
        for n in (1, 2)
    ]
    found = compared(*good, *late)
    assert [group.name for group in found.groups] == ["a-1, a-2, a-3", "b-1, b-2"]
    assert found.cost == "money" and found.axes[-1] == "money"
    at = {(point.axis, point.amount): point for point in found.points}
    first, second = at["epochs", 3.0].means
    assert first is not None and second is not None
    assert (first.value, first.n) == (pytest.approx(0.62), 3) and second.value == pytest.approx(0.415)
    gain = at["epochs", 3.0].gains[1]
    assert gain is not None and gain.interval is not None
    assert gain.value == pytest.approx(-0.205) and gain.interval[1] < 0
    assert ("seconds", 30.0) in at and ("trials", 1.0) in at
    assert [one.name for one in found.parameters if one.has_moved] == []
    assert ("not searched" in str(found.parameters)) is False and found.differences == []
    text = comparison_text(found)
    assert (
        "A  a-1, a-2, a-3: 62.0% (59.5% to 64.5%)" in text and "B is better than A by -20.5 points (" in text
    )
    write_comparison(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 4 and "0.0001 to 0.1" in page and "0.001 to 0.1" in page


def test_intervals_are_those_of_student_and_welch() -> None:
    first, second = [0.1, 0.2, 0.4], [0.5, 0.55]
    mean = mean_of(first)
    half = stats.t.ppf(0.975, 2) * np.std(first, ddof=1) / np.sqrt(3)
    assert mean.interval == pytest.approx((mean.value - half, mean.value + half))
    difference = difference_of(first, second)
    assert (
        difference.value == pytest.approx(np.mean(second) - np.mean(first))
        and difference.interval is not None
    )
    assert mean_of([0.3]).interval is None and difference_of(first, [0.5]).interval is None


def test_what_makes_a_comparison_weak_is_said(tmp_path: Path) -> None:
    one, other = (
        recorded(tmp_path / "a-1", {0: [0.5]}),
        recorded(tmp_path / "b-1", {0: [0.4]}, model={"batch_size": 64}),
    )
    found = compare([read_history(one), read_history(other)], ["x", "y"])
    assert found.differences == [("model.batch_size", ["null", "64"])]
    assert "different data" in found.warnings[0] and "one sweep of each kind" in found.warnings[1]


def test_objectives_that_differ_are_refused(tmp_path: Path) -> None:
    accuracy = recorded(tmp_path / "a-1", {0: [0.5]})
    rmse = recorded(tmp_path / "b-1", {0: [0.5]}, objective={"metric": "val_rmse"})
    with pytest.raises(UserError, match="a-1 maximizes val_accuracy; b-1 minimizes val_rmse"):
        compared(accuracy, rmse)
    with pytest.raises(UserError, match="no trial of c-1 has a result"):
        compared(accuracy, Recorded(tmp_path / "c-1").close())


def test_the_command(tmp_path: Path) -> None:
    home = {"BINSWEEP_HOME": str(tmp_path)}
    for seed in (1, 2):
        random_sweep(tmp_path / "sweeps" / f"tried-{seed}", 12, seed)
    done = run_here("compare", "tried-*", "--json", **home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [group["sweeps"] for group in found["groups"]] == [["tried-1", "tried-2"]]
    assert Path(found["page"]).parent == tmp_path / "comparisons" and Path(found["page"]).exists()
    for arguments, told in (
        (("tried-1",), "only one sweep is named: tried-1"),
        (("tried-1", "tried"), "at equal amounts"),
        (("tried-1", "nothing-*"), "no sweep 'nothing-*'"),
        (("tried-1", "tried-2", "--out", "page.txt"), "not a page"),
    ):
        done = run_here("compare", *arguments, **home)
        assert told in done.stdout + done.stderr and done.returncode == (
            0 if told == "at equal amounts" else 2
        )


def test_from_python(tmp_path: Path) -> None:
    for seed in (1, 2):
        random_sweep(tmp_path / "sweeps" / f"tried-{seed}", 12, seed)
    other = {**RAW["space"], "lr": {"low": 0.001, "high": 0.1, "log": True}}
    elsewhere = recorded(tmp_path / "else" / "sweeps" / "tried-1", {0: [0.5, 0.6], 1: [0.7]}, space=other)
    sweep = binsweep.open("tried-1", home=tmp_path / "else")
    # A Sweep is itself, also where the home has another one of its name.
    found = binsweep.compare("tried-*", sweep, home=tmp_path)
    assert found.groups == [["tried-1", "tried-2"], ["tried-1"]]
    points = found.points
    last = points[points.axis == "epochs"].iloc[-2:]
    assert last.group.tolist() == [1, 2] and last.low.notna().tolist() == [True, False]
    assert points[points.group == 1].gain.isna().all() and last.gain.notna().tolist() == [False, True]
    best = read_history(elsewhere).leaders[0].params["lr"]
    assert found.parameters.loc["lr"].iloc[-1] == best
    assert found.differences == {} and all(isinstance(line, str) for line in found.warnings)
    assert found.report().parent == tmp_path / "comparisons" and "at equal amounts" in repr(found)
    assert found.report(tmp_path / "page.html").exists()
    with pytest.raises(UserError, match="only one sweep is named: tried-1"):
        binsweep.compare(sweep, sweep)
    with pytest.raises(UserError, match="no sweep is named"):
        binsweep.compare()
