"""What surrounds each call of the API: quiet libraries, and an interrupt that waits until files are complete."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

from binsweep.data.errors import UserError
from binsweep.data.resource_limits import limit_threads
from binsweep.search.execution.interrupts import acknowledge_interrupt, interrupt
from binsweep.search.terminal.library_logs import quiet_libraries
from binsweep.tracking.mlflow_server.credentials import normalize_addresses

# tqdm, which libraries import, recommends widgets in a notebook; nothing here uses them. Set before those are imported.
warnings.filterwarnings("ignore", message="IProgress not found")
HOST = "binsweep.search.own_code.host"  # the main module of a process that runs own training code


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Prepare this process as the command line does, for the block; signal handlers and logging are restored.

    Raises UserError in a trial: a script that starts a sweep of its own function is imported by the trials.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name == HOST:
        raise UserError(
            "a trial, which imports its training code, came upon a call of binsweep that starts or changes a sweep",
            "put the call below `if __name__ == '__main__':`, or into another file",
        )
    limit_threads()
    normalize_addresses()
    with quiet_libraries(), _orderly_interrupt():
        yield


@contextlib.contextmanager
def _orderly_interrupt() -> Iterator[None]:
    """Let Ctrl-C, and a notebook's interrupt, wait for the end of a block that must be complete.

    Only the main thread may set handlers; in another one, the caller's handler goes on to decide.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)  # None: not set by Python
        acknowledge_interrupt()  # one that came while the sweep was ending does not concern the next one
