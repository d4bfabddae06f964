"""The command line: answers on stdout, progress on stderr; exit 0 done, 1 failed, 2 the user's mistake, 130 stopped."""

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
from pathlib import Path

import click

from binsweep import __version__
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import limit_threads
from binsweep.search.cli.data import data_group
from binsweep.search.cli.jobs import logs, resume, stop, submit
from binsweep.search.cli.machine import doctor, migrate, ui
from binsweep.search.cli.models import evaluate, predict, promote, rollback, serve
from binsweep.search.cli.sweep import report, status, sweep, sync
from binsweep.search.execution.interrupts import interrupt
from binsweep.search.terminal.streams import redirect_to_null, settle_streams
from binsweep.tracking.mlflow_server.credentials import tidy_the_address

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last when the terminal is closed
# Errors that say what is wrong with a place which the user has chosen.
OF_PLACES = {
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
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read when MLflow is imported
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("mlflow", "alembic", "ray", "optuna"):
        logging.getLogger(noisy).setLevel(logging.INFO if debug else logging.ERROR)
    # Ray Tune logs each failed trial as an error of its own; the sweep has said it already, with the reason.
    logging.getLogger("ray.tune").setLevel(logging.INFO if debug else logging.CRITICAL)


COMMANDS = (
    *(sweep, status, report, sync),
    *(promote, rollback, evaluate, serve, predict),
    *(submit, logs, stop, resume),
    *(ui, migrate, doctor),
    data_group,
)
for command in COMMANDS:
    cli.add_command(command)


def _leave(number: int, frame: object) -> None:
    """Asked to end, as by Ctrl-C, docker stop or a scheduler: tidily, with nothing half-written."""
    for again in ENDINGS:
        signal.signal(again, _leave_at_once)
    interrupt()


def _leave_at_once(number: int, frame: object) -> None:
    """Asked a second time: whatever ran can go on from what is on the disk."""
    import psutil

    try:
        if processes := sys.modules.get("binsweep.tracking.processes"):  # else it has started no server
            processes.kill_started()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    finally:
        os._exit(130)


def _hear_no_more() -> None:
    """Everything has ended: what Python still does for itself need not be cut short, nor change the exit code."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _reader_is_gone() -> bool:
    """Whether nobody reads what this process prints, as behind `| head -1`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # closed, or in memory
        return False


def _stands_somewhere() -> bool:
    """Whether the working folder still exists, without which PyTorch ends the process for a reason of its own."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print("binsweep: the folder in which this was started does not exist any more", file=sys.stderr)
        print("  hint: `cd` to one that does", file=sys.stderr)
        return False
    return True


def main() -> None:
    """The entry point: every mistake of the user is one message and exit code 2."""
    atexit.register(_hear_no_more)  # the first that is registered is the last that is called
    settle_streams()
    limit_threads()
    tidy_the_address()
    for number in ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _leave)
    code = _run("--debug" in sys.argv) if _stands_somewhere() else 2
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        redirect_to_null(sys.stdout.fileno())  # where Python's own last flush must not fail again
        if code == 0:  # else it has been said why
            print(f"binsweep: the answer cannot be written: {error.strerror}", file=sys.stderr)
            code = 1
    if _reader_is_gone():
        redirect_to_null(sys.stdout.fileno())
        code = 128 + signal.SIGPIPE  # as any program that a closed pipe ends
    sys.exit(code)


def _run(debug: bool) -> int:
    """Do what the command line says; returns the exit code."""
    try:
        return int(cli.main(standalone_mode=False) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"binsweep: {error}", file=sys.stderr)
        return 2
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes the one of the other
        print("binsweep: interrupted", file=sys.stderr)
        if "sweep" in sys.argv[1:3]:
            print(f"  the same command goes on: {shlex.join(['binsweep', *sys.argv[1:]])}", file=sys.stderr)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename is not None and error.errno in OF_PLACES:
            print(f"binsweep: {os.fspath(error.filename)}: {error.strerror}", file=sys.stderr)
            print("  hint: change that place or its rights, or name another one", file=sys.stderr)
            return 2
        print(f"binsweep: failed: {type(error).__name__}: {error}", file=sys.stderr)
        print("  hint: `binsweep --debug COMMAND ...` shows where", file=sys.stderr)
        return 1
