"""The page in a real browser: each button pressed, on a sweep that runs; by keys; small screens; many trials."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from browser import Browser, browser, missing
from mlflow import MlflowClient
from own_sweeps import code_spec
from real_sweeps import kill_all, run, started, wait_for_epochs
from recorded_sweeps import random_sweep
from ui_server import Page, served

from binsweep.search.history.run_log_reader import read_history
from binsweep.search.steering.inbox import read_answers, waiting_requests

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing() or "all is here"),
]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sklearn_digits"
ODD = "<img src=x onerror=document.title='hacked'> & ünï'code-1"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(autouse=True)
def _no_complaints(window: Browser, server: str) -> Iterator[None]:
    """No test leaves an error in the console, nor anything that the page's policy refuses.

    What MLflow's own pages ask for and do not find is theirs, and may arrive after they were left.
    """
    window.size(1300, 900)
    yield
    assert [line for line in window.complaints() if f" {server}/" not in line] == []
    assert "hacked" not in window.run("return document.title")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: str) -> Path:
    """Recorded sweeps, and a finished one of real training whose model can be promoted."""
    home = tmp_path_factory.mktemp("browser") / "home"
    for name, trials in (("wide-1", 40), ("wide-2", 30), (ODD, 12)):
        random_sweep(home / "sweeps" / name, trials, seed=trials)
    raw = yaml.safe_load((EXAMPLE / "sweep.yaml").read_text())
    raw |= {"name": "digits", "trainer": f"{EXAMPLE / 'train.py'}:train", "budget": {"trials": 3}}
    raw |= {"fidelity": {"epochs": 6}, "register": {**raw.get("register", {}), "finalists": 1, "seeds": 1}}
    spec = home.parent / "digits.yaml"
    spec.write_text(yaml.safe_dump(raw))
    done = run(spec, "local", home, server)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def page(home: Path, server: str) -> Iterator[Page]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        with served(home) as page:
            yield page


@pytest.fixture(scope="module")
def running(home: Path, page: Page, server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sweep of own code that trains while it is looked at, an epoch each 0.2 s."""
    space = {"lr": {"low": 1e-3, "high": 1.0, "log": True}, "kind": ["a", "b", "c"]}
    spec = code_spec(
        tmp_path_factory.mktemp("code") / "code",
        "live",
        60,
        space=space,
        params={"seconds": 0.2},
        fidelity={"epochs": 400},
    )
    process = started(spec, "local", home, server)
    # Its output is read, so that it never waits for a reader.
    reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    wait_for_epochs(home, "live", 3)
    try:
        yield home / "sweeps" / "live-1"
    finally:
        kill_all(process)
        reader.kill()
        reader.wait()


def opened(window: Browser, page: Page, place: str, text: str) -> None:
    """Open a place of the page, with the token, as the printed link does at first."""
    window.go("about:blank")
    window.go(page.link)
    window.wait_for("Sweeps")
    window.run("location.hash = arguments[0]", place)
    window.wait_for(text)


def asked(folder: Path, kind: str) -> str:
    """The answer of the sweep's process to the last request of a kind, once it has one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [one for one in read_answers(folder) if one.request.kind == kind]
        if found and not waiting_requests(folder):
            assert found[-1].granted, found[-1].answer
            return str(found[-1].request)
        time.sleep(0.05)
    raise AssertionError(f"nobody asked for {kind}")


def confirm(window: Browser, verb: str) -> None:
    """Read what would happen, agree, and dismiss the answer."""
    window.until("return document.querySelector('dialog .answer:not(.bad)') !== null")
    window.press(verb)
    window.until("return document.querySelector('dialog') === null")
    window.press("Dismiss")
    window.until("return document.querySelector('.toast') === null")


def test_without_the_token_the_page_says_what_it_needs(page: Page, tmp_path: Path) -> None:
    with browser() as fresh:
        fresh.go(page.base)
        fresh.wait_for("This page needs its link")
        fresh.go(page.link)
        fresh.wait_for("wide-1")
        assert "token" not in fresh.run("return location.href")
        refused = [one for one in fresh.complaints() if "401" not in one]
        assert refused == []


def test_the_list_of_sweeps(window: Browser, page: Page, running: Path) -> None:
    opened(window, page, "#/sweeps", "live-1")
    window.wait_for(ODD[:20])
    window.fill("input[type=search]", "wide")
    window.until(
        "const rows = document.querySelectorAll('tbody tr[aria-rowindex]:not([hidden])');"
        "return rows.length === 2 && [...rows].every(row => row.textContent.startsWith('wide'))"
    )
    window.run("document.querySelectorAll('tbody tr[aria-rowindex]:not([hidden])')[0].click()")
    window.wait_for("Learning curves")


def test_a_running_sweep_grows_while_one_looks(
    window: Browser, page: Page, running: Path, figure: Callable[[str], None]
) -> None:
    opened(window, page, "#/sweep/live-1", "running")
    epochs = (
        "return Number(document.body.innerText.match(/^([\\d,]+) epochs?(,|$)/m)?.[1].replace(',', '') ?? 0)"
    )
    before = window.until(epochs)
    window.until(f"return ({epochs.removeprefix('return ')}) >= arguments[0]", before + 5)
    # From the report of an epoch to the screen.
    delays = []
    for _ in range(3):
        known = sum(trial.epochs_done for trial in read_history(running).trials)
        while (now := sum(trial.epochs_done for trial in read_history(running).trials)) == known:
            time.sleep(0.01)
        began = time.monotonic()
        window.until(f"return ({epochs.removeprefix('return ')}) >= arguments[0]", now)
        delays.append(time.monotonic() - began)
    figure(f"an epoch was on the screen {max(delays):.2f} s after its report, at most")
    assert max(delays) < 2 * 3  # on a machine that is busy with other tests


def test_each_button_of_a_running_sweep(window: Browser, page: Page, running: Path) -> None:
    opened(window, page, "#/sweep/live-1", "running")
    window.press("Pause")
    confirm(window, "Pause")
    assert asked(running, "pause") == "pause"
    window.wait_for("paused by")
    window.press("Resume")
    confirm(window, "Resume")
    assert asked(running, "resume") == "resume"

    window.press("Budget")
    window.fill("dialog input[name=trials]", "+5")
    window.press("Check")
    window.wait_for("budget.trials: 65 (was 60)")
    confirm(window, "Change")
    assert asked(running, "budget") == "budget trials=+5"

    window.press("Enqueue")
    window.fill("dialog input[name=lr]", "7")
    window.press("Check")
    window.wait_for("lies outside of the space")  # refused, and the dialog stays
    window.fill("dialog input[name=lr]", "0.25")
    window.press("Check")
    confirm(window, "Enqueue")
    assert "lr=0.25" in asked(running, "enqueue")

    window.press("Narrow")
    window.fill("dialog input[name=lr-low]", "0.01")
    window.press("Check")
    confirm(window, "Narrow")
    assert asked(running, "narrow") == "narrow lr=0.01..1.0"

    number = window.until(
        "return document.querySelector('button[aria-label^=\"Pin trial\"]:not(:disabled)')?.getAttribute('aria-label')"
    )
    window.press(number)
    confirm(window, "Pin the trial")
    assert asked(running, "pin") == f"pin {number.split()[-1]}"
    window.press(f"Unpin trial {number.split()[-1]}")
    confirm(window, "Let the strategy decide")
    assert asked(running, "unpin") == f"unpin {number.split()[-1]}"
    window.press(f"Stop trial {number.split()[-1]}")
    confirm(window, "Stop the trial")
    assert asked(running, "stop-trial") == f"stop-trial {number.split()[-1]}"
    window.wait_for("What people asked for")
    window.wait_for(f"stop-trial {number.split()[-1]}")


def test_each_button_of_a_trial(window: Browser, page: Page, running: Path) -> None:
    number = next(trial.number for trial in read_history(running).trials[::-1] if trial.state == "running")
    opened(window, page, f"#/sweep/live-1/trial/{number}", "tried because")
    window.press("Enqueue a variant")
    window.fill("dialog input[name=lr]", "0.125")
    window.press("Check")
    confirm(window, "Enqueue")
    assert f"--like {number}" in asked(running, "enqueue")
    number = next(trial.number for trial in read_history(running).trials[::-1] if trial.state == "running")
    window.run("location.hash = arguments[0]", f"#/sweep/live-1/trial/{number}")
    window.wait_for(f"Trial {number}")
    window.press("Pin")
    confirm(window, "Pin the trial")
    window.press("Stop")
    confirm(window, "Stop the trial")
    assert asked(running, "stop-trial") == f"stop-trial {number}"
    window.wait_for("stopped")


def test_it_works_by_keys_alone(window: Browser, page: Page, running: Path) -> None:
    opened(window, page, "#/sweeps", "live-1")
    focused = "return document.activeElement.className"
    for _ in range(15):
        if "scroll" in window.run(focused):
            break
        window.type("Tab")
    assert "scroll" in window.run(focused), "the table is reached by Tab"
    window.type("ArrowDown", "Enter")
    window.wait_for("Learning curves")
    window.type("/")
    assert window.run("return document.activeElement.type") == "search"
    window.run("location.hash = '#/sweep/live-1'")
    window.wait_for("live-1 running")
    for _ in range(20):
        if window.run("return document.activeElement.textContent") == "Pause":
            break
        window.type("Tab")
    window.type("Enter")
    window.until("return document.querySelector('dialog .answer:not(.bad)') !== null")
    window.until(
        "return document.activeElement.textContent === 'Pause' && document.activeElement.closest('dialog') !== null"
    )
    window.type("Escape")
    window.until("return document.querySelector('dialog') === null")
    assert window.run("return document.activeElement.textContent") == "Pause"  # the focus is back
    assert not read_history(running).paused_by


@pytest.mark.timeout(1200)  # two promotions
def test_promoting_with_a_dry_run_first(
    window: Browser, page: Page, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    opened(window, page, "#/sweep/digits-1", "finished")
    window.press("Promote")
    window.wait_for("Nothing was run yet")
    buttons = "return [...document.querySelectorAll('dialog button')]"
    assert "Promote" not in window.run(
        f"{buttons}.filter(b => b.offsetParent !== null).map(b => b.textContent)"
    )
    window.press("Dry run")
    window.wait_for("Dry run runs since")
    window.press("Interrupt")
    window.wait_for("Dry run was interrupted", 60)
    window.press("Dry run")
    window.wait_for("Dry run ended", 500)
    window.wait_for("nothing was registered")
    window.press("Promote")
    window.wait_for("Promotion ended", 500)
    window.wait_for("version 1: champion")
    window.press("Close")
    window.press("Models")
    window.wait_for("digits", 40)
    window.wait_for("champion: version 1")
    window.run("document.querySelector('details').open = true")
    window.wait_for("better than the constant guess")


def test_rolling_back_by_its_button(window: Browser, page: Page, server: str) -> None:
    client, name = MlflowClient(server), "counted <b>bins"
    client.create_registered_model(name)
    for before in ({}, {"champion.before": "1"}):
        client.create_model_version(name, "s3://nowhere/model", tags={"decision": "promoted", **before})
    client.set_registered_model_alias(name, "champion", "2")
    opened(window, page, "#/models", name)
    window.run(
        "const all = [...document.querySelectorAll('section')];"
        "all.find(one => one.textContent.includes('counted')).querySelector('button').click()"
    )
    window.fill("dialog input[name=reason]", "worse at night")
    window.press("Roll back to version 1")
    window.wait_for("version 1 is champion again")
    assert client.get_model_version_by_alias(name, "champion").version == "1"


def test_side_by_side_and_the_links(window: Browser, page: Page, server: str) -> None:
    opened(window, page, "#/sweep/wide-1", "What to try next")
    window.press("Compare with another sweep")
    window.wait_for("Choose two sweeps")
    window.run(
        "const s = document.querySelector('main select'); s.value = 'wide-2'; s.dispatchEvent(new Event('change'))"
    )
    window.wait_for("At equal amounts")
    window.press("Leave out wide-2")
    window.wait_for("Choose two sweeps")
    opened(window, page, "#/sweep/digits-1", "finished")
    report, mlflow = window.until(
        "const found = [...document.querySelectorAll('.links a')].map(a => a.href); return found.length >= 2 && found"
    )[:2]
    window.go(report)
    window.wait_for("What to try next")
    window.go(mlflow)
    window.until("return location.href.startsWith(arguments[0])", server)


@pytest.mark.parametrize(
    "place",
    ["#/sweeps", "#/sweep/live-1", "#/sweep/digits-1/trial/0", "#/compare/wide-1/wide-2", "#/models"],
)
def test_a_small_screen_has_no_sideways_scrolling(
    window: Browser, page: Page, running: Path, place: str
) -> None:
    window.size(390, 844)
    opened(window, page, place, "Sweeps")
    time.sleep(1.5)
    wide, room = window.run(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room, place
    if place == "#/sweep/live-1":
        window.press("Budget")
        box = window.run(
            "const b = document.querySelector('dialog').getBoundingClientRect(); return [b.left, b.right]"
        )
        assert box[0] >= 0 and box[1] <= 390
        window.press("Cancel")


def test_hostile_names_are_text(window: Browser, page: Page) -> None:
    opened(window, page, "#/sweeps", "onerror")
    window.run(
        "[...document.querySelectorAll('tbody tr')].find(r => r.textContent.includes('onerror')).click()"
    )
    window.wait_for("Learning curves")
    window.wait_for("What to try next")
    assert window.run("return document.querySelectorAll('main img').length") == 0


def test_ten_thousand_trials_stay_fluid(
    window: Browser,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    random_sweep(tmp_path / "sweeps" / "many-1", 10_000)
    with served(tmp_path) as page:
        opened(window, page, "#/sweeps", "many-1")
        window.go("about:blank")
        window.go(f"{page.base}/#/sweep/many-1")
        shown = window.until(
            "return document.querySelectorAll('tbody td').length > 50 && performance.now()", seconds=60
        )
        figure(f"10,000 trials: the first rows are on the screen after {shown:.0f} ms")
        window.until(
            "return document.body.innerText.includes('10,000') && document.querySelector('progress').hidden",
            seconds=200,
        )
        assert window.run("return document.querySelectorAll('tr').length") < 200  # only what is in sight
        steps = window.run(
            "const box = document.querySelector('.scroll'), found = [];"
            "for (let i = 0; i < 40; i++) { const t = performance.now(); box.scrollTop = 7000 * i;"
            "box.dispatchEvent(new Event('scroll')); document.body.offsetHeight; found.push(performance.now() - t); }"
            "return found.sort((a, b) => a - b)"
        )
        figure(f"10,000 trials: a step of scrolling takes {steps[20]:.0f} ms, at most {steps[-1]:.0f} ms")
        assert steps[20] < 500
        assert re.search(r"10,000", window.text())
        window.go("about:blank")
