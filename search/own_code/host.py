"""The process that own training code runs in: `python -m binsweep.search.own_code.host FD LIFELINE`.

It serves one trial after the other, so that a process and its imports are paid for once. What the code prints, leaves
behind, or breaks stays in here: the worker that has started this process sees to it (`host_process`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import inspect
import os
import random
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from binsweep.search.own_code.descendants import end_descendants
from binsweep.search.own_code.load import LoadError, describe_error, load_function
from binsweep.search.own_code.trial import ReportError, Trial, TrialEnded, TrialStart, returned_metrics

PR_SET_CHILD_SUBREAPER = 36  # of Linux's <sys/prctl.h>
_foreign_writes: list[str] = []  # files that own code opened for writing outside of its folder
_allowed: list[str] = []  # prefixes of the paths in which it may


def main() -> None:
    """Serve the connection of an inherited file descriptor until it is closed, and end with that of the lifeline."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    sys.argv = ["train"]
    threading.Thread(target=_end_with_worker, args=(lifeline,), daemon=True).start()
    _adopt_orphans()
    sys.addaudithook(_watch_writes)
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        kind, *arguments = message
        answer = _train(connection, *arguments) if kind == "train" else _call(CALLS[kind], *arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


def _end_with_worker(lifeline: int) -> None:
    """End this process and its children as soon as the worker is gone: another one may go on with the trial at once.

    The worker never writes to the pipe, which the system closes when it dies; in the middle of an epoch, nothing else
    tells.
    """
    os.read(lifeline, 1)
    end_descendants(os.getpid())
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _adopt_orphans() -> None:
    """Become the parent of processes that own code starts and whose parent ends: so the worker finds all of them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _seed_everything(seed: int) -> None:
    """Seed the global generators of what is imported: own code that uses them is repeatable."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


def _call(function: Callable[..., Any], place: str, *arguments: Any) -> tuple[Any, ...]:
    """Call something on own code; what it returns or raises goes back."""
    try:
        return ("ended", function(place, *arguments))
    except LoadError as error:
        return ("failed", str(error), "".join(traceback.format_exception(error.__cause__ or error)), False)
    except BaseException as error:  # SystemExit, too: the process goes on
        return ("failed", describe_error(error, place), "".join(traceback.format_exception(error)), False)


def _load(place: str, names: Sequence[str]) -> list[str]:
    """Import a module; returns which of these functions it has. The first one is required."""
    required, *others = names
    load_function(place, required)
    return [required, *(name for name in others if load_function(place, name, required=False) is not None)]


def _predict(place: str, checkpoint: Path, split: str, params: dict[str, Any]) -> dict[str, list[Any]]:
    """The table of `predict(checkpoint, split)` as plain lists, by column."""
    table = _with_params(place, "predict", params)(checkpoint, split)
    if hasattr(table, "to_dict"):  # a DataFrame
        return {str(name): _plain(table[name]) for name in table.columns}
    if isinstance(table, Mapping):
        return {str(name): _plain(column) for name, column in table.items()}
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table) and table:
        return {str(name): _plain([row.get(name) for row in table]) for name in table[0]}
    raise TypeError(f"predict returned a {type(table).__name__}: return a DataFrame, or a dict of columns")


def _save_model(
    place: str, checkpoint: Path, params: dict[str, Any], folder: Path, code: Sequence[Path]
) -> None:
    from binsweep.tracking.registry.own_model import save_own_model  # imports MLflow

    save_own_model(_with_params(place, "model", params)(checkpoint), folder, code)


def _with_params(place: str, name: str, params: dict[str, Any]) -> Callable[..., Any]:
    """A function of own code, which is given the trial's params if it has a parameter of that name."""
    function = load_function(place, name)
    assert function is not None
    if "params" in inspect.signature(function).parameters:
        return functools.partial(function, params=params)
    return function


def _plain(column: Any) -> list[Any]:
    """A column as a list without types of other libraries."""
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


CALLS: dict[str, Callable[..., Any]] = {"load": _load, "predict": _predict, "model": _save_model}


def _train(
    connection: Connection, place: str, function: str, start: TrialStart, marker: bytes
) -> tuple[Any, ...]:
    has_reported = False

    def send(epoch: int, metrics: dict[str, float], saved: bool) -> bool:
        nonlocal has_reported
        has_reported = True
        foreign, _foreign_writes[:] = list(_foreign_writes), []
        connection.send(("report", epoch, metrics, saved, foreign))
        try:
            return bool(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the worker is gone

    work = start.folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    _allowed[:] = [
        f"{start.folder}/",
        f"{tempfile.gettempdir()}/",
        "/dev/",
        "/proc/",
        str(Path.home() / ".cache"),
    ]
    os.chdir(work)
    trial = Trial(start, send)
    try:
        train = load_function(place, function)
        assert train is not None
        _seed_everything(start.seed)
        _foreign_writes.clear()
        returned = train(trial)
        metrics = {} if has_reported else returned_metrics(returned, start.metric)
        if metrics is None and start.first_epoch <= start.last_epoch:
            raise ReportError(
                f"{function} ended without a report: call trial.report({{{start.metric!r}: ...}})"
            )
        if metrics:
            trial.report(metrics)
        return ("ended", {})
    except TrialEnded:
        return ("ended", {})
    except LoadError as error:
        return ("failed", str(error), "".join(traceback.format_exception(error.__cause__ or error)), False)
    except BaseException as error:  # SystemExit, too: the process goes on
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        details = "".join(traceback.format_exception(error))
        reason = describe_error(error, place)
        if isinstance(error, SystemExit):
            reason = f"SystemExit: it called sys.exit({error.code!r})"
        return ("failed", reason, details, full)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            os.write(1, marker)  # behind all that the trial has printed


def _watch_writes(event: str, arguments: tuple[Any, ...]) -> None:
    """Note files that are opened for writing outside of the trial's folder: trials at once would share them."""
    if event != "open" or not _allowed:
        return
    path, mode, flags = arguments
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    writes = writes or (mode is None and isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)))
    if not writes or not isinstance(path, str) or len(_foreign_writes) >= 8:
        return
    full = os.path.normpath(Path(path).absolute())
    if not full.startswith(tuple(_allowed)) and "__pycache__" not in full:
        _foreign_writes.append(full)


if __name__ == "__main__":
    main()
