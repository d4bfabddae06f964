"""A home's sweeps as every command finds them: one that is just being begun, a damaged one, several of one name."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from real_sweeps import run_here
from recorded_sweeps import Recorded

from binsweep.data.errors import UserError
from binsweep.search.history.run_log_reader import resources_spent
from binsweep.search.history.sweep_state import find_unfinished, folders_by_age, load_state
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.tracking.runlog.ownership import owner_of
from binsweep.tracking.runlog.run_log import RunLog
from binsweep.tracking.runlog.spool import Spool

NOBODY = "http://127.0.0.1:9"
PARAMS = {"backbone": "resnet18", "lr": 0.01, "weight_decay": 0.1, "epochs": 2}


def spec_of(folder: Path) -> SweepSpec:
    return parse_spec(load_state(folder)["spec"])


def note(folder: Path, **changes: Any) -> None:
    state = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({"fingerprint": "f", **state, **changes}))


def test_a_sweep_of_a_version_with_fewer_sections_goes_on(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "sweeps" / "recorded-1")
    sweep.start(0, **PARAMS)
    folder = sweep.close()
    spec = spec_of(folder)
    stored = json.loads((folder / "sweep.json").read_text())["spec"]
    del stored["fidelity"], stored["health"], stored["data"]["train_also"], stored["register"]["engine"]
    note(folder, spec=stored, status="unfinished")
    assert find_unfinished(tmp_path, spec, "f", asked=True) == folder
    assert find_unfinished(tmp_path, spec, "f", asked=False) == folder
    levels = parse_spec({**spec.raw, "fidelity": {"train_share": [0.5, 1.0]}})
    with pytest.raises(UserError, match=r"begun with another fidelity\.train_share"):
        find_unfinished(tmp_path, levels, "f", asked=True)


def test_a_sweep_with_keys_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its stored spec has keys that were renamed since; it is shown, and goes on by a spec with the new ones."""
    new = {
        "objective": {"cost_objective": "megabytes"},
        "resources": {"max_concurrent_trials": 2, "overrides": {"when": {"backbone": ["resnet18"]}}},
        "search": {"initial_points": []},
        "register": {"gate": {"min_class_accuracy": 0.1}},
    }
    sweep = Recorded(tmp_path / "sweeps" / "recorded-1", **new)
    sweep.start(0, **PARAMS)
    sweep.epoch(0, 1, 0.5)
    folder = sweep.close()
    spec = spec_of(folder)
    stored = json.loads((folder / "sweep.json").read_text())["spec"]
    stored["objective"]["against"] = stored["objective"].pop("cost_objective")
    stored["resources"]["max_concurrent_trials"] = stored["resources"].pop("max_concurrent_trials")
    stored["resources"]["large"] = stored["resources"].pop("overrides")
    stored["search"]["points"] = stored["search"].pop("initial_points")
    stored["register"]["gate"]["class_floor"] = stored["register"]["gate"].pop("min_class_accuracy")
    note(folder, spec=stored, status="unfinished")
    assert spec_of(folder) == spec
    assert find_unfinished(tmp_path, spec, "f", asked=True) == folder
    for words in (["status", "recorded-1"], ["report", "recorded-1"]):
        done = run_here(*words, BINSWEEP_HOME=str(tmp_path), MLFLOW_TRACKING_URI=NOBODY)
        assert done.returncode == 0, done.stderr


def test_status_shows_a_sweep_that_has_no_spec_file_yet(tmp_path: Path) -> None:
    sweep = Recorded(tmp_path / "sweeps" / "s-1", status="running")
    (sweep.folder / "spec.yaml").unlink()
    assert folders_by_age(tmp_path)[0] == sweep.folder
    done = run_here("status", BINSWEEP_HOME=str(tmp_path))
    assert done.returncode == 0 and done.stdout.startswith("s-1: running"), done.stderr
    sweep.close()


def test_whoever_looks_at_a_run_log_does_not_hinder_its_owner(tmp_path: Path) -> None:
    """Others look without end while run logs are opened, and two who look do not take one another for an owner."""
    RunLog(tmp_path, NOBODY, "s").close(0.0)
    look = "import sys; from pathlib import Path; from binsweep.tracking.runlog.ownership import owner_of\n"
    look += "print(1, flush=True)\n"
    look += "while True: owner_of(Path(sys.argv[1]))"
    lookers = [
        subprocess.Popen([sys.executable, "-c", look, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for looker in lookers:
            assert looker.stdout is not None and looker.stdout.readline()
        assert [owner_of(tmp_path) for _ in range(2000)] == [None] * 2000
        for _ in range(300):
            Spool(tmp_path, lambda record: None).close()
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate()


def test_a_home_that_may_only_be_read_is_looked_at(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NOBODY, "s")
    (tmp_path / "runlog.lock").chmod(0o444)
    opened: list[int] = []
    real = os.open

    def without_writing(path: Any, flags: int, *more: Any) -> int:
        opened.append(flags & os.O_ACCMODE)
        return real(path, flags, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", without_writing)
        owner = owner_of(tmp_path)
        assert owner is not None and str(owner) == f"process {os.getpid()}"
    assert opened == [os.O_RDONLY]
    log.close(0.0)
    assert owner_of(tmp_path) is None


def test_an_owner_is_refused_a_run_log_that_another_one_has(tmp_path: Path) -> None:
    spool = Spool(tmp_path, lambda record: None)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        Spool(tmp_path, lambda record: None)
    spool.close()


def test_the_newest_unfinished_sweep_goes_on_and_not_only_the_newest(tmp_path: Path) -> None:
    """Two of one name were begun at once and both were cut short: the same command, twice, goes on with both."""
    folders = [Recorded(tmp_path / "sweeps" / f"recorded-{n}").close() for n in (1, 2, 10)]
    first, second, third = folders
    for folder in folders:
        note(folder, status="unfinished")
    spec = spec_of(first)
    assert find_unfinished(tmp_path, spec, "f", asked=False) == third
    owner = Spool(third / "spool", lambda record: None)
    assert find_unfinished(tmp_path, spec, "f", asked=False) == second
    note(second, status="finished")
    assert find_unfinished(tmp_path, spec, "f", asked=False) == first
    note(first, fingerprint="other data")
    assert find_unfinished(tmp_path, spec, "f", asked=False) is None
    with pytest.raises(UserError, match=f"process {os.getpid()} is at it"):
        find_unfinished(tmp_path, spec, "f", asked=True)
    owner.close()
    assert find_unfinished(tmp_path, spec, "f", asked=True) == third


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "\x00" * 9], ids=["empty", "cut", "list", "none", "zeros"]
)
def test_a_damaged_sweep_is_named_and_does_not_hinder_the_others(content: str, tmp_path: Path) -> None:
    _, bad = (Recorded(tmp_path / "sweeps" / name).close() for name in ("good-1", "recorded-1"))
    spec = spec_of(bad)
    (bad / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"recorded-1/sweep\.json is damaged") as refused:
        find_unfinished(tmp_path, spec, "f", asked=False)
    assert "--new" in str(refused.value)
    for words in (["status", "recorded-1"], ["report", "recorded-1"]):
        done = run_here(*words, BINSWEEP_HOME=str(tmp_path), MLFLOW_TRACKING_URI=NOBODY)
        assert done.returncode == 2 and "recorded-1/sweep.json is damaged" in done.stderr, done.stderr
    done = run_here("status", "good", BINSWEEP_HOME=str(tmp_path))
    assert done.returncode == 0 and "good-1: finished" in done.stdout


@pytest.mark.parametrize("content", ["{", '{"id": "b-1", "status": "finished", "spec": 3}', "cut spec"])
def test_status_of_the_newest_sweep_names_its_damaged_file_and_another_sweep(
    content: str, tmp_path: Path
) -> None:
    folders = [Recorded(tmp_path / "sweeps" / name).close() for name in ("old-1", "cut-1", "new-1")]
    for age, folder in enumerate(reversed(folders)):
        os.utime(folder / "spec.yaml", (1e9 - age, 1e9 - age))
    (folders[1] / "sweep.json").write_text("")
    if content == "cut spec":
        note(folders[2], spec={"name": "new"})
    else:
        (folders[2] / "sweep.json").write_text(content)
    for words in (["status"], ["status", "--json"]):
        done = run_here(*words, BINSWEEP_HOME=str(tmp_path))
        assert done.returncode == 2 and not done.stdout
        assert "new-1/sweep.json" in done.stderr.splitlines()[0]
        assert "`binsweep status old-1` shows" in done.stderr.splitlines()[-1]
    (folders[0] / "sweep.json").unlink()
    assert "binsweep status" not in run_here("status", BINSWEEP_HOME=str(tmp_path)).stderr


def test_sync_sends_what_the_other_sweeps_have(server: str, tmp_path: Path) -> None:
    for name in ("good-1", "more-1"):
        folder = tmp_path / "sweeps" / name
        log = RunLog(folder / "spool", NOBODY, name)
        log.start_run("sweep", name)
        log.close(0.0)
        state = {"id": name, "status": "finished", "spec": {"name": name}}
        (folder / "sweep.json").write_text(json.dumps(state))
    bad = Recorded(tmp_path / "sweeps" / "less-1").close()
    (bad / "sweep.json").write_text("")
    done = run_here("sync", BINSWEEP_HOME=str(tmp_path), MLFLOW_TRACKING_URI=server)
    assert done.returncode == 1 and "good-1: all sent\nmore-1: all sent" in done.stdout
    assert "less-1/sweep.json is damaged" in done.stderr


def test_what_a_killed_process_gave_to_a_sweep_is_counted(tmp_path: Path) -> None:
    """It wrote down what was spent when it began only: the run log knows the rest, without the break."""
    sweep = Recorded(tmp_path / "s-1", status="running")
    for start in (0, 5000):
        sweep.at += start
        sweep.start(0, **PARAMS)
        sweep.at += 100
        sweep.epoch(0, 1 + bool(start), 0.4)
    note(sweep.close(), seconds=50.0, cpu_seconds=900.0, gpu_seconds=0.0)
    spent = resources_spent(sweep.folder)
    assert spent.seconds == pytest.approx(200) and spent.cpu_seconds == 900
    assert resources_spent(tmp_path / "none").seconds == 0


def test_a_listing_outlives_a_sweep_that_is_deleted_meanwhile(tmp_path: Path) -> None:
    """Somebody deletes a sweep's folder while the newest one is looked for."""
    kept = Recorded(tmp_path / "sweeps" / "a-1").close()
    gone = tmp_path / "sweeps" / "b-1"
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            gone.mkdir()
            (gone / "sweep.json").write_text("{}")
            (gone / "sweep.json").unlink()
            gone.rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert {folders_by_age(tmp_path)[0] for _ in range(500)} <= {kept, gone}
    finally:
        over.set()
        thread.join()
