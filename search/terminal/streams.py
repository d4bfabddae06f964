"""The standard streams of a process: they may be closed, not UTF-8, or without a reader."""

from __future__ import annotations

import contextlib
import io
import locale
import os
import sys
from collections.abc import Iterator

from binsweep.data.python_process import restart_in_utf8_mode

_replaced: list[object] = []  # streams; without a reference, they would close their files


def settle_streams() -> None:
    """Make the standard streams usable wherever the command was started. Call it first.

    Text is UTF-8 whatever the locale, also in files and in child processes. A closed stream is redirected to
    /dev/null: otherwise the next opened file would get its number, and with it the output of other processes. A
    character that stdout cannot encode, such as one of a file name that is not UTF-8, is escaped. A result that stdout
    cannot take raises OutputError wherever it is written: without a buffer (PYTHONUNBUFFERED) already in `print`.
    """
    _open_closed_streams()
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8"):
        sys.stderr.flush()
        restart_in_utf8_mode()
    # A caller in Python may have replaced a stream.
    if isinstance(sys.stdout, io.TextIOWrapper):
        _replaced.append(sys.stdout)
        sys.stdout = _ResultStream(
            sys.stdout.buffer,
            sys.stdout.encoding,
            "backslashreplace",
            line_buffering=sys.stdout.line_buffering,
            write_through=sys.stdout.write_through,
        )
    if isinstance(sys.stderr, io.TextIOWrapper):
        _replaced.append(sys.stderr)
        sys.stderr = _TolerantStream(
            sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True
        )


def _open_closed_streams() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class OutputError(OSError):
    """Stdout cannot take the result, for example because its disk is full; it has the errno of the reason."""


class _ResultStream(io.TextIOWrapper):
    """stdout whose errors can be told from those of other files; a pipe without a reader stays a BrokenPipeError."""

    def write(self, text: str) -> int:
        with _output_errors():
            return super().write(text)

    def flush(self) -> None:
        with _output_errors():
            super().flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    """Turn the errors of a stream into OutputError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


class _TolerantStream(io.TextIOWrapper):
    """stderr that drops its output once its pipe, terminal or disk is gone: that must not end a sweep."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            redirect_to_null(self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            redirect_to_null(self.fileno())


def redirect_to_null(number: int) -> None:
    """Redirect a file descriptor to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
