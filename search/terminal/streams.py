"""The three streams of a process as a command finds them: closed, of few letters, or with nobody behind them."""

from __future__ import annotations

import io
import locale
import os
import sys

from binsweep.data.python_process import in_utf8_mode

_kept: list[
    object
] = []  # streams that were replaced: with the last reference to one its file would be closed


def settle_streams() -> None:
    """Let a command write what it has to say wherever it was started. First thing in the program.

    Text is UTF-8 whatever the locale says, in files and for processes that are started from here as well. A closed
    stream leads nowhere: else the next file that is opened would get its number, and what another process writes to it.
    A character that stdout cannot show, such as one of a file's name that is not UTF-8, is written escaped.
    """
    _open_closed_ones()
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8"):
        sys.stderr.flush()
        in_utf8_mode()
    # Whoever calls the program from Python may have put a stream of their own in the place of one.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        _kept.append(sys.stderr)
        sys.stderr = _Progress(
            sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True
        )


def _open_closed_ones() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


class _Progress(io.TextIOWrapper):
    """stderr. That nobody can read the progress any more, because a pipe, a terminal or a disk behind it is gone, ends
    no sweep: it is dropped from then on."""

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
    """Drop what is written to a stream from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
