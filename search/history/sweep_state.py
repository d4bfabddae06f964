"""The state file of a sweep, sweep.json: written by the sweep, read to promote, resume or show it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from binsweep.data.atomic_write import write_json
from binsweep.data.errors import UserError
from binsweep.search.execution.kinds import kind_of
from binsweep.search.history.run_keys import JOB_VARIABLE, SWEEP, trial_key
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.renamed_keys import translate_renamed_keys
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.tracking.runlog.ownership import owner_of

if TYPE_CHECKING:  # these imports take seconds
    from binsweep.search.execution.controller import Controller
    from binsweep.tracking.runlog.run_log import RunLog

STATE = "sweep.json"
# Sections that may change when a sweep is resumed: they say how much is searched, not what.
CHANGEABLE = ("budget", "resources", "register", "health", "notify")
Status = Literal["running", "unfinished", "finished"]


def save_state(
    folder: Path, spec: SweepSpec, fingerprint: str, controller: Controller, runlog: RunLog, status: Status
) -> None:
    """Write sweep.json: the spec, the fingerprint of its data or code, and the checkpoint of each trial's best epoch.

    A sweep that is `running` without a process that owns its run log has lost its process.
    """
    kind = kind_of(spec)
    trials = [
        {
            "number": trial.number,
            "run_id": runlog.run_id(trial_key(trial.number), timeout=0.0),
            "value": trial.value,
            "checkpoint": str(kind.best_checkpoint(trial.folder).relative_to(folder)),
        }
        for trial in controller.leaderboard()
    ]
    state: dict[str, Any] = {
        "id": folder.name,
        "status": status,
        "process": os.getpid(),
        "job": os.environ.get(JOB_VARIABLE, ""),
        "ended_by": controller.ended_by,
        **asdict(controller.spent),
        "spec": spec.raw,
        "run_id": runlog.run_id(SWEEP, timeout=0.0),
        "fingerprint": fingerprint,
        "leaderboard": trials,
    }
    write_json(folder / STATE, state)


def load_state(folder: Path) -> dict[str, Any]:
    """The state that `save_state` wrote last, its spec with present key names. Raises UserError if it is damaged."""
    file = folder / STATE
    try:
        state = json.loads(file.read_text())
    except ValueError:
        state = None
    if (
        not isinstance(state, dict)
        or not {"id", "status", "spec"} <= state.keys()
        or not isinstance(state["spec"], dict)
    ):
        raise UserError(
            f"{file} is damaged: nothing can be done with this sweep",
            "restore the file, or move its folder away; `binsweep sweep SPEC --new` starts another sweep",
        )
    return {**state, "spec": translate_renamed_keys(state["spec"])}


def read_spec(folder: Path) -> SweepSpec:
    """The spec that the sweep in a folder was last started with. Raises UserError if its state is damaged."""
    return parse_spec(load_state(folder)["spec"], str(folder / STATE))


def sweep_folders(home: Path) -> list[Path]:
    """The folders of all sweeps of a home."""
    return sorted(file.parent for file in (home / "sweeps").glob(f"*/{STATE}"))


def _named(home: Path, name: str) -> list[Path]:
    """The folders of the sweeps of a name, newest first."""
    pattern = re.compile(re.escape(name) + r"-(\d+)", re.ASCII)
    named = [(int(found[1]), f) for f in sweep_folders(home) if (found := pattern.fullmatch(f.name))]
    return [folder for _, folder in sorted(named, reverse=True)]


def _submitted_as(home: Path, name: str) -> Path | None:
    """The folder of the sweep that was submitted to a cluster under this name."""
    return next((f for f in sweep_folders(home) if is_readable(f) and load_state(f).get("job") == name), None)


def is_readable(folder: Path) -> bool:
    """Whether the sweep in a folder has a state that is not damaged."""
    try:
        load_state(folder)
    except UserError:
        return False
    return True


def run_status(folder: Path, state: dict[str, Any]) -> Status:
    """Of a sweep with this state: running only while the process that runs it lives."""
    # The run log may also be open in a process that promotes the sweep or sends waiting records.
    owner = owner_of(folder / "spool")
    alive = owner is not None and owner.process == state.get("process", owner.process)
    status: Status = state["status"]
    return "unfinished" if status == "running" and not alive else status


def find_folder(home: Path, sweep: str) -> Path:
    """The folder of a sweep by its id or the name that it was submitted under, or of the newest sweep by its name.
    Raises UserError if there is none."""
    exact = next((folder for folder in sweep_folders(home) if folder.name == sweep), None)
    found = exact or next(iter(_named(home, sweep)), None) or _submitted_as(home, sweep)
    if found is None:
        have = ", ".join(sorted(folder.name for folder in sweep_folders(home))) or "none yet"
        raise UserError(f"no sweep {sweep!r} in {home}", f"sweeps here: {have}")
    return found


def find_folders(home: Path, sweeps: Sequence[str]) -> list[Path]:
    """The folders of several sweeps, each once: by what `find_folder` takes, or by patterns of ids, such as abid-*.

    Raises UserError for one that names none.
    """
    found: dict[Path, None] = {}
    for sweep in sweeps:
        if any(character in sweep for character in "*?["):
            named = [folder for folder in sweep_folders(home) if fnmatchcase(folder.name, sweep)]
            if not named:
                raise UserError(f"no sweep {sweep!r} in {home}", "quote the pattern: 'abid-*'")
            found |= dict.fromkeys(sorted(named, key=_begun))
        else:
            found[find_folder(home, sweep)] = None
    return list(found)


def folders_by_age(home: Path) -> list[Path]:
    """The folders of all sweeps, the one that was started last first. Raises UserError if there is none."""
    folders = sweep_folders(home)
    if not folders:
        raise UserError(f"no sweep in {home}", "start one with `binsweep sweep SPEC`, or set BINSWEEP_HOME")
    return sorted(folders, key=_begun, reverse=True)


def _begun(folder: Path) -> float:
    """When a sweep was last started or resumed: spec.yaml is written then, shortly after sweep.json."""
    for name in ("spec.yaml", STATE):
        with contextlib.suppress(FileNotFoundError):
            return (folder / name).stat().st_mtime
    return 0.0  # it has just been deleted


def find_unfinished(home: Path, spec: SweepSpec, fingerprint: str, asked: bool) -> Path | None:
    """The sweep to resume: the newest of the spec's name that was interrupted, differs in CHANGEABLE sections only, and
    is run by no process.

    With `asked` (--resume) it is the newest of that name, finished or not; raises UserError if that cannot be resumed.
    Raises UserError if the state of the newest one is damaged.
    """
    named = _named(home, spec.name)
    if asked:
        if not named:
            raise UserError(f"--resume: no sweep {spec.name!r} in {home}", "leave out --resume to start it")
        require_resumable(named[0], spec, fingerprint)
        return named[0]
    if named:
        load_state(named[0])
    return next((folder for folder in named if _is_resumable(folder, spec, fingerprint)), None)


def require_resumable(folder: Path, spec: SweepSpec, fingerprint: str) -> None:
    """Raise UserError if a sweep cannot be resumed with this spec and data of that fingerprint, and say why."""
    if found := _obstacle(folder, spec, fingerprint):
        problem, hint = found
        raise UserError(f"--resume: cannot go on with {folder.name}: {problem}", hint)


def _is_resumable(folder: Path, spec: SweepSpec, fingerprint: str) -> bool:
    """Whether a sweep is unfinished and can be resumed."""
    try:
        return load_state(folder)["status"] != "finished" and not _obstacle(folder, spec, fingerprint)
    except UserError:
        return False  # damaged


def _obstacle(folder: Path, spec: SweepSpec, fingerprint: str) -> tuple[str, str] | None:
    """Why a sweep cannot be resumed with this spec and data of that fingerprint, and a hint; None if it can."""
    state = load_state(folder)
    owner = owner_of(folder / "spool", sure=True)
    problem, hint = "", "leave out --resume to start a new sweep"
    # What an earlier version did not know yet has its default.
    differ = _differences(parse_spec(state["spec"], str(folder / STATE)).raw, spec.raw)
    if owner is not None:
        problem, hint = f"{owner} is at it", "wait until it has ended, or end it"
    elif differ:
        problem = f"it was begun with another {differ[0]}"
        hint = (
            f"leave out --resume to start a new sweep; --warm-start {folder.name} lets it know these results"
        )
    elif state["fingerprint"] != fingerprint:
        problem = f"{spec.source} has changed since"
    return (problem, hint) if problem else None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys (section.name) whose values differ, without CHANGEABLE sections."""
    differ = []
    for section in sorted(before.keys() | now.keys()):
        old, new = before.get(section), now.get(section)
        if section in CHANGEABLE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            differ += [
                f"{section}.{name} ({old.get(name)!r}, now {new.get(name)!r})"
                for name in sorted(old.keys() | new.keys())
                # Before they had a default, no initial points were written as an empty list.
                if old.get(name) != new.get(name)
                and (name, old.get(name), new.get(name)) != ("initial_points", [], None)
            ]
        else:
            differ.append(f"{section} ({old!r}, now {new!r})")
    return differ
