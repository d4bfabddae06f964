"""What the page is told, as plain values: sweeps, a trial, a comparison, conclusions, the log."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError, first_line
from binsweep.search.execution.kinds import kind_of
from binsweep.search.history.decisions import read_decisions
from binsweep.search.history.run_keys import trial_key
from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.history.sweep_state import STATE, load_state, run_status, sweep_folders
from binsweep.search.report.advice import balance, importances, next_steps, verdict
from binsweep.search.report.compare_page import comparison_contents
from binsweep.search.report.trial_text import trial_json
from binsweep.search.spec.parser import parse_spec
from binsweep.search.ui.live_sweep import MAX_READ_SECONDS, LiveSweep, plain
from binsweep.search.workflows.compare import compare_sweeps
from binsweep.search.workflows.rerun import trial_of

MAX_LOG = 300  # decisions, the last ones
MAX_FILES = 200  # of a trial
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
PICTURES |= {".webp": "image/webp", ".svg": "image/svg+xml"}
TEXTS = (".csv", ".txt", ".log", ".json", ".jsonl", ".yaml", ".yml", ".md")


class Home:
    """The sweeps of a home, each read when it is first asked for. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._sweeps: dict[str, LiveSweep] = {}

    def sweep(self, name: str) -> LiveSweep:
        """The sweep whose folder has this name. Raises UserError if there is none."""
        folder = next((one for one in sweep_folders(self.folder) if one.name == name), None)
        with self._lock:
            if folder is None:
                self._sweeps.pop(name, None)
                raise UserError(f"there is no sweep {name!r} any more", "it may have been deleted or moved")
            if name not in self._sweeps:
                self._sweeps[name] = LiveSweep(folder)
            return self._sweeps[name]

    def sweeps(self) -> list[dict[str, Any]]:
        """All sweeps, the one that was started last first; of a damaged one, why it cannot be shown."""
        found = [self._line(folder) for folder in sweep_folders(self.folder)]
        return sorted(found, key=lambda line: (-line["begun"], line["id"]))

    def _line(self, folder: Path) -> dict[str, Any]:
        try:
            state, line = _summary(folder, (folder / STATE).stat().st_mtime_ns)
            line = {**line, "id": folder.name, "status": run_status(folder, state)}
            if line["status"] != "finished":  # what its state file says of its trials is from its start
                line |= _present(self.sweep(folder.name).history(MAX_READ_SECONDS))
            return line
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            text = error.message if isinstance(error, UserError) else first_line(error)
            return {"id": folder.name, "error": text, "begun": _begun(folder)}


@functools.lru_cache(4096)
def _summary(folder: Path, written: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A sweep by its state file, which was last `written` at that time; first what tells whether it runs."""
    state = load_state(folder)
    spec = parse_spec(state["spec"], str(folder / STATE))
    leaders = state.get("leaderboard", [])
    runs: dict[str, Any] = {name: state[name] for name in ("status", "process") if name in state}
    return runs, {
        "name": spec.name,
        "ended_by": state.get("ended_by", ""),
        "metric": spec.metric,
        "goal": spec.goal,
        "best": plain(leaders[0]["value"]) if leaders else None,
        "trials": len(leaders),
        "seconds": state.get("seconds", 0.0),
        "begun": _begun(folder),
        "paused_by": "",
    }


def _begun(folder: Path) -> float:
    """When a sweep was last started: its spec.yaml is written then."""
    for file in (folder / "spec.yaml", folder / STATE, folder):
        if file.exists():
            return file.stat().st_mtime
    return 0.0


def _present(history: SweepHistory) -> dict[str, Any]:
    """A sweep that has not ended, by its run log."""
    leaders = history.leaders
    return {
        "best": plain(leaders[0].value) if leaders else None,
        "trials": len(history.trials),
        "seconds": history.seconds,
        "seconds_left": history.seconds_left if history.status == "running" else None,
        "paused_by": history.paused_by,
    }


def trial(sweep: LiveSweep, number: int) -> dict[str, Any]:
    """All about one trial, with the names of its files. Raises UserError if there is no such trial."""
    history = sweep.history()
    found = trial_of(history, number)
    metrics = {
        epoch: {name: plain(value) for name, value in values.items()}
        for epoch, values in sweep.epochs_of(number).items()
    }
    told = trial_json(history, found, sweep.folder, metrics)
    return {
        **told,
        "value": plain(found.value),
        "spec": history.spec.raw.get("model") or history.spec.raw.get("params") or {},
        "place": _place(history, found),
        "checkpoint": _checkpoint(history, sweep.folder, number),
        "folder": str(sweep.folder / trial_key(number)),
        "files": files_of(sweep.folder, number),
    }


def _place(history: SweepHistory, trial: TrialHistory) -> int | None:
    numbers = [one.number for one in history.leaders]
    return numbers.index(trial.number) + 1 if trial.number in numbers else None


def _checkpoint(history: SweepHistory, folder: Path, number: int) -> str | None:
    file = kind_of(history.spec).best_checkpoint(folder / trial_key(number))
    return str(file) if file.exists() else None


def files_of(folder: Path, number: int) -> list[str]:
    """A trial's pictures and texts, by their paths in its folder; nothing that lies elsewhere."""
    own = folder / trial_key(number)
    found = []
    for file in sorted(own.rglob("*")) if own.is_dir() else []:
        if file.suffix.lower() in (*PICTURES, *TEXTS) and file.is_file() and not file.is_symlink():
            found.append(file.relative_to(own).as_posix())
            if len(found) == MAX_FILES:
                break
    return found


def log(sweep: LiveSweep) -> list[dict[str, Any]]:
    """The last decisions of a sweep, newest first."""
    return read_decisions(sweep.folder)[: -MAX_LOG - 1 : -1]


def conclusions(sweep: LiveSweep) -> dict[str, Any]:
    """What the report says about the sweep: the verdict, what decides, what to try next, whether workers idle."""
    history = sweep.history()
    weights = importances(history)
    return {
        "verdict": verdict(history),
        "steps": next_steps(history, weights),
        "importances": [[name, plain(weight)] for name, weight in weights.items()],
        "balance": balance(history),
    }


def comparison(sweeps: Sequence[LiveSweep]) -> dict[str, Any]:
    """Sweeps side by side, with their courses. Raises UserError if they cannot be compared."""
    found = compare_sweeps({sweep.folder: sweep.history() for sweep in sweeps})
    courses = [[asdict(course) for course in group.courses] for group in found.groups]
    return {**comparison_contents(found), "axes": found.axes, "courses": courses}
