"""What the report and `status` say of a sweep, from its run log alone."""

import io
import json
import math
import re
import subprocess
from pathlib import Path
from shutil import which

import pytest
from recorded_sweeps import RAW, START, Recorded, random_sweep
from rich.console import Console

from binsweep.data.errors import UserError
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import as_json
from binsweep.search.report.advice import importances, improvements, next_steps, verdict
from binsweep.search.report.axis import Axis
from binsweep.search.report.status import format_lines, screen
from binsweep.search.report.svg_charts import Chart, shade
from binsweep.search.report.sweep_report import write_report

CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=10000 --dump-dom"
)


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_sweep(tmp_path_factory.mktemp("home") / "recorded-1", 60)


def test_a_trials_course_is_what_the_run_log_holds(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1")
    params = {"backbone": "resnet18", "lr": 0.01, "weight_decay": 0.1, "epochs": 9}
    sweep.start(0, **params)
    sweep.at += 10
    sweep.epoch(0, 1, 0.4)
    sweep.start(1, **{**params, "lr": 0.02})
    sweep.tags(0, state="paused", halted_because="another trial comes first")
    sweep.at += 100
    sweep.epoch(1, 1, 0.9, loss=math.nan)
    sweep.tags(1, state="failed", ended_because="value is nan")
    sweep.at += 1000  # a break: nobody works
    sweep.start(0, **params)
    sweep.at += 5
    sweep.epoch(0, 2, 0.6)
    sweep.tags(0, health__overfit="since epoch 2")
    sweep.tags(0, state="stopped", ended_because="two worse")
    course = read_history(sweep.close())
    first, second = course.trials
    assert (first.state, first.reason, first.value, first.epoch) == ("stopped", "two worse", 0.6, 2)
    assert first.params == params and first.warnings == {"health.overfit": "since epoch 2"}
    assert (second.value, second.state) == (None, "failed")
    assert [trial.number for trial in course.leaders] == [0]
    assert first.seconds == 15 and second.seconds == 100 and course.seconds == 115
    assert course.active_seconds_until(START + 1112) == 112  # the break is left out
    assert course.cost == {"cpu_hours": 230 / 3600, "gpu_hours": 0.0, "money": 115 / 3600}
    assert [(round(at), value) for at, _, value, _ in improvements(course)] == [(10, 0.4), (115, 0.6)]
    assert course.guess == 0.25 and "35.0 points above" in " ".join(verdict(course))
    # Three of four photos show one item less than the guess: its RMSE is 0.866, and the best trial's is 1.2.
    assert course.guess_errors == {"val_rmse": 0.75**0.5, "val_mae": 0.75}
    assert "val_rmse of 0.866: the best trial, with 1.200, is no better" in " ".join(verdict(course))
    assert "val_mae" not in " ".join(verdict(course))


def test_the_advice_finds_what_decides(sixty: Path) -> None:
    course = read_history(sixty)
    weights = importances(course)
    assert next(iter(weights)) == "lr" and weights["weight_decay"] < 0.1
    steps = next_steps(course, weights)
    assert any(step.startswith("lr:") for step in steps) and any(
        "fix" in step and "weight_decay at" in step for step in steps
    )


def test_an_optimum_at_the_edge_is_said(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1")
    for number in range(20):
        lr = 1e-4 * 1000 ** (number / 19)
        sweep.start(number, backbone="resnet18", lr=lr, weight_decay=0.1, epochs=2)
        sweep.epoch(number, 1, 0.3 + 0.01 * number)
        sweep.tags(number, state="completed", ended_because="trained to its end")
    course = read_history(sweep.close())
    assert any(
        "lr: the best lies at the upper edge (0.1)" in step for step in next_steps(course, {"lr": 1.0})
    )


def test_a_trial_that_broke_a_limit_leads_nothing(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1")
    for number, accuracy in enumerate((0.4, 0.9)):
        sweep.start(number, backbone="resnet18", lr=0.01, weight_decay=0.1, epochs=2)
        sweep.epoch(number, 1, accuracy)
        sweep.tags(number, state="stopped", ended_because="a limit", within_limits=str(number == 0).lower())
    course = read_history(sweep.close())
    assert [trial.number for trial in course.leaders] == [0]
    assert [value for _, _, value, _ in improvements(course)] == [0.4]


def test_a_parameter_that_depends_on_another_is_shown_where_it_counts(tmp_path: Path) -> None:
    momentum = {"low": 0.5, "high": 0.99, "when": {"optimizer": ["sgd"]}}
    space = {
        "optimizer": ["adamw", "sgd"],
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "momentum": momentum,
    }
    sweep = Recorded(tmp_path / "s-1", space=space)
    for number in range(24):
        optimizer = ("adamw", "sgd")[number % 2]
        lr = 1e-4 * 1000 ** (number / 23)
        sweep.start(number, optimizer=optimizer, lr=lr, momentum=0.9 if number % 2 else 0.2, epochs=2)
        sweep.epoch(number, 1, 0.3 + 0.01 * number)
        sweep.tags(number, state="completed", ended_because="trained to its end")
    folder = sweep.close()
    course = read_history(folder)
    assert [set(trial.params) for trial in course.trials[:2]] == [{"optimizer", "lr"}, set(space)]
    assert next(iter(importances(course))) == "lr"
    assert write_report(folder).read_text().count("<tr data-n=") == 24 and format_lines(course)


def test_too_few_trials_say_nothing_about_the_space(tmp_path: Path) -> None:
    course = read_history(random_sweep(tmp_path / "s-1", 4))
    assert importances(course) == {} and "too few" in next_steps(course, {})[0]


@pytest.mark.parametrize(("trials", "said"), [(0, "none with a result yet"), (1, "Leaderboard")])
def test_a_sweep_that_has_hardly_begun_has_a_report_too(tmp_path: Path, trials: int, said: str) -> None:
    assert said in write_report(random_sweep(tmp_path / "s-1", trials)).read_text()


def test_contours_say_what_is_near_and_nothing_elsewhere() -> None:
    chart = Chart(Axis(1e-4, 1e-1, log=True), Axis(-0.5, 1.5, words=("a", "b")), ("lr", "backbone"))
    chart.contours([(1e-4, 0.1), (1e-4, 1.0), (1e-1, 1.0)], [1.0, 0.0, 0.45])
    bands = {
        fill: (min(x for x, _ in corners), max(x for x, _ in corners), max(y for _, y in corners))
        for fill, corners in drawn(chart)
    }
    assert set(bands) == {shade(0.95), shade(0.05), shade(0.45)}  # values of a choice do not mix
    (left, _), (right, _) = chart.at(1e-4, 0), chart.at(1e-1, 0)
    reach = 0.2 * (right - left)
    assert bands[shade(0.95)][0] == left and bands[shade(0.95)][1] <= left + reach + 1
    assert bands[shade(0.45)][1] == right and bands[shade(0.45)][0] >= right - reach - 1
    assert bands[shade(0.05)][2] < chart.at(1e-4, 0.49)[1]  # within the stretch of b, which is above


def drawn(chart: Chart) -> list[tuple[str, list[tuple[float, float]]]]:
    """Fill and corners of each band."""
    found = []
    for mark in chart.marks:
        path, fill = re.findall(r'd="([^"]+)" style="fill:(#\w+)', mark)[0]
        found.append((fill, [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]))
    return found


def test_the_page_needs_nothing_but_itself(sixty: Path) -> None:
    page = write_report(sixty).read_text()
    assert not re.search(r"(src|href)\s*=|url\(|@import|fetch\(", page)
    assert page.count("<tr data-n=") == 60 and "Parallel coordinates" in page
    # A folder that is not there is made, where it can be.
    assert write_report(sixty, out=sixty / "nowhere" / "page.html").read_text() == page
    with pytest.raises(UserError, match=r"page\.html"):
        write_report(sixty, out=sixty / "nowhere" / "page.html" / "page.html")


def test_words_of_others_cannot_become_markup(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1")
    sweep.start(0, backbone="resnet18", lr=0.01, weight_decay=0.1, epochs=2)
    sweep.epoch(0, 1, 0.4)
    sweep.tags(0, state="failed", ended_because="ValueError: </script><script>alert(1)</script>")
    page = write_report(sweep.close()).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_status_in_plain_lines_and_json(sixty: Path) -> None:
    course = read_history(sixty)
    text, answer = "\n".join(format_lines(course)), json.loads(as_json(course))
    best = course.leaders[0]
    assert f"trial {best.number} at epoch {best.epoch}" in text and "by the spec's prices" in text
    assert (
        answer["best"]["value"] == best.value
        and answer["trials"]["completed"] + answer["trials"]["stopped"] == 60
    )
    assert answer["rungs"]["1"] == 60 and answer["status"] == "finished"
    assert "trials: 60/1000: " in text and answer["budget_trials"] == 1000


def test_status_and_leaderboard_say_which_level_a_trial_has_reached(tmp_path: Path) -> None:
    levels = {"image_size": [112, 224], "trainable": ["head", "all"], "epochs": [3, 2]}
    space = {name: dimension for name, dimension in RAW["space"].items() if name != "epochs"}
    sweep = Recorded(tmp_path / "s-1", fidelity=levels, space=space)
    for number, epochs in enumerate((3, 2, 4)):
        sweep.start(number, backbone="resnet18", lr=0.01, weight_decay=0.1)
        for epoch in range(1, epochs + 1):
            sweep.epoch(number, epoch, 0.1 * epoch)
        sweep.tags(number, state="stopped", ended_because="others did better")
    course = read_history(sweep.close())
    text, answer = "\n".join(format_lines(course)), json.loads(as_json(course))
    assert "levels: 3 reached head at 112 px, 1 reached all at 224 px" in text and "rungs" not in text
    assert "trial 2 at epoch 4 of 5 (reached all at 224 px)" in text
    assert answer["levels"] == {"head at 112 px": 3, "all at 224 px": 1}
    assert [row["level"] for row in answer["leaderboard"]] == ["all at 224 px"] + ["head at 112 px"] * 2
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(screen(course))
    assert console.export_text().count("head at 112 px") == 1 + 2, "in the line, and for two trials"
    assert write_report(tmp_path / "s-1").read_text().count('<td class="text">head at 112 px</td>') == 2 + 1


def test_the_leaderboard_shows_the_metric_once(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1", objective={"metric": "val_rmse"})
    sweep.start(0, backbone="resnet18", lr=0.01, weight_decay=0.1, epochs=2)
    sweep.epoch(0, 1, 0.4)
    page = write_report(sweep.close()).read_text()
    assert page.count("<th>val_rmse</th>") == 1 and page.count(">1.200</td>") == 1


def test_the_status_of_a_sweep_without_a_limit_of_trials(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "s-1", "running", budget={"minutes": 60})
    sweep.start(0, backbone="resnet18", lr=0.01, weight_decay=0.1, epochs=2)
    sweep.at += 360
    sweep.epoch(0, 1, 0.4)
    course = read_history(sweep.close())
    text, answer = "\n".join(format_lines(course)), json.loads(as_json(course))
    assert "trials: 1: " in text and answer["budget_trials"] is None
    assert course.seconds_left == pytest.approx(54 * 60)


@pytest.mark.integration
def test_a_browser_shows_the_report_without_complaint(sixty: Path, tmp_path: Path) -> None:
    browser = which("chromium") or which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    page = write_report(sixty).read_text()
    # What a person does: sort by value, worst first, and point at a mark.
    act = """<script>
    document.querySelectorAll('#leaders th')[2].click();
    const mark = document.querySelector('circle[data-n="7"]');
    mark.dispatchEvent(new MouseEvent('mouseover', { bubbles: true }));
    document.title = [document.querySelector('#leaders tbody tr').dataset.n, document.getElementById('tip').textContent,
      document.querySelectorAll('.lit').length].join('|');
    </script>"""
    file = tmp_path / "acted.html"
    file.write_text(page.replace("</body>", f"{act}</body>"))
    command = [browser, *CHROMIUM.split(), f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    first, tip, lit = title.group(1).split("|")
    assert int(first) == read_history(sixty).leaders[-1].number
    assert tip.startswith("trial 7: val_accuracy") and int(lit) > 5
