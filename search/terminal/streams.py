"""The standard streams of a process: they may be closed, not UTF-8, or without a reader."""

from __future__ import annotations

import io
import locale
import os
import sys

from binsweep.data.python_process import restart_in_utf8_mode

_replaced: list[object] = []  # streams; without a reference, they would close their files


def settle_streams() -> None:
    """Make the standard streams usable wherever the command was started. Call it first.

    Text is UTF-8 whatever the locale, also in files and in child processes. A closed stream is redirected to
    /dev/null: otherwise the next opened file would get its number, and with it the output of other processes. A
    character that stdout cannot encode, such as one of a file name that is not UTF-8, is escaped.
    """
    _open_closed_streams()
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8"):
        sys.stderr.flush()
        restart_in_utf8_mode()
    # A caller in Python may have replaced a stream.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
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
