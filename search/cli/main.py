"""The command line: results on stdout, progress on stderr; exit codes 0 done, 1 failed, 2 user error, 130 stopped."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import select
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from binsweep import __version__
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import limit_threads
from binsweep.search.cli.again import rerun, trial
from binsweep.search.cli.compare import compare
from binsweep.search.cli.data import data_group
from binsweep.search.cli.jobs import logs, resume, stop, submit
from binsweep.search.cli.machine import doctor, migrate, mlflow, ui
from binsweep.search.cli.models import evaluate, export, predict, promote, rollback, serve
from binsweep.search.cli.monitor import monitor, shadow
from binsweep.search.cli.steering import budget, enqueue, narrow, pause, pin, stop_trial, unpin
from binsweep.search.cli.sweep import report, status, sweep, sync
from binsweep.search.execution.interrupts import interrupt
from binsweep.search.terminal.library_logs import MLFLOW_LEVEL, QUIET_LEVELS
from binsweep.search.terminal.streams import OutputError, redirect_to_null, settle_streams
from binsweep.tracking.mlflow_server.credentials import normalize_addresses

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal is closed
# Errors of a path that the user has chosen.
PATH_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks and library logs.")
@click.version_option(__version__, prog_name="binsweep")
def cli(debug: bool) -> None:
    """Sweep hyperparameters, compare trials in MLflow, promote the best model on evidence, serve it."""
    level = logging.INFO if debug else logging.WARNING
    if not debug:
        os.environ.setdefault(MLFLOW_LEVEL, "ERROR")
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    for name, quiet in QUIET_LEVELS.items():
        logging.getLogger(name).setLevel(logging.INFO if debug else quiet)


COMMANDS = (
    *(sweep, status, report, trial, rerun, compare, sync),
    *(promote, rollback, evaluate, serve, monitor, shadow, predict, export),
    *(enqueue, stop_trial, pin, unpin, budget, narrow, pause, resume),
    *(submit, logs, stop),
    *(ui, mlflow, migrate, doctor),
    data_group,
)
for command in COMMANDS:
    cli.add_command(command)


def _leave(number: int, frame: object) -> None:
    """On the first signal (Ctrl-C, docker stop, a scheduler), end in order, without half-written files."""
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _leave_at_once)
    interrupt()


def _leave_at_once(number: int, frame: object) -> None:
    """On the second signal, end at once; everything can be resumed from the disk."""
    import psutil

    try:
        if processes := sys.modules.get("binsweep.tracking.processes"):  # otherwise it has started no server
            processes.kill_started()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    finally:
        os._exit(130)


def _ignore_signals() -> None:
    """Ignore signals while Python shuts down: they would change the exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stdout_has_no_reader() -> bool:
    """Whether stdout is a pipe without a reader, as after `| head -1`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # closed, or in memory
        return False


def _working_folder_exists() -> bool:
    """Whether the working directory still exists; without it, PyTorch aborts the process with another error."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print("binsweep: the folder in which this was started does not exist any more", file=sys.stderr)
        print("  hint: `cd` to one that does", file=sys.stderr)
        return False
    return True


def main() -> None:
    """The entry point. A user error is one message and exit code 2."""
    atexit.register(_ignore_signals)  # registered first, called last
    settle_streams()
    limit_threads()
    normalize_addresses()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _leave)
    code = _run("--debug" in sys.argv) if _working_folder_exists() else 2
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OutputError as error:
        redirect_to_null(sys.stdout.fileno())  # Python's last flush must not fail again
        if code == 0:  # otherwise the failure is reported already
            code = _report_lost_result(error)
    if _stdout_has_no_reader():
        redirect_to_null(sys.stdout.fileno())
        # A mistake or an interruption counts more; click ends with 1 when it meets the closed pipe.
        if code < 2:
            code = 128 + signal.SIGPIPE  # like any program ended by a closed pipe
    sys.exit(code)


def _goes_on(arguments: Sequence[str]) -> bool:
    """Whether the same command goes on where it was interrupted."""
    if "predict" in arguments[:2]:
        return any(one.startswith("--out") for one in arguments)
    return "sweep" in arguments[:2] and "--dry-run" not in arguments


def _report_lost_result(error: OutputError) -> int:
    """Say why stdout did not take the result; returns the exit code."""
    print(f"binsweep: the result cannot be written: {error.strerror}", file=sys.stderr)
    return 1


def _run(debug: bool) -> int:
    """Run the command; returns the exit code."""
    try:
        return int(cli.main(standalone_mode=False) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"binsweep: {error}", file=sys.stderr)
        return 2
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns KeyboardInterrupt into Abort
        print("binsweep: interrupted", file=sys.stderr)
        if _goes_on(sys.argv[1:]):
            print(f"  the same command goes on: {shlex.join(['binsweep', *sys.argv[1:]])}", file=sys.stderr)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OutputError as error:
        return _report_lost_result(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename is not None and error.errno in PATH_ERRORS:
            print(f"binsweep: {os.fspath(error.filename)}: {error.strerror}", file=sys.stderr)
            print("  hint: change that path or its permissions, or give another one", file=sys.stderr)
            return 2
        print(f"binsweep: failed: {type(error).__name__}: {error}", file=sys.stderr)
        print("  hint: `binsweep --debug COMMAND ...` shows where", file=sys.stderr)
        return 1
