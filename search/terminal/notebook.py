"""Progress in a notebook: an output of the cell that is replaced in place, instead of lines that fill the page."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 130  # characters; wider output gets a scroll bar
SECONDS = 0.5  # at least, between two changes
HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal">{code}</pre>'


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookOutput:
    """One output of the running cell. It needs no widgets, and the saved notebook has its last state."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = 0.0

    def show(self, content: RenderableType, at_once: bool = False) -> None:
        """Replace what is shown. Unless `at_once`, a change that comes too soon after the last one is left out."""
        if not at_once and time.monotonic() - self._shown < SECONDS:
            return
        self._shown = time.monotonic()
        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
        console.print(content)
        bundle = {
            "text/html": console.export_html(inline_styles=True, code_format=HTML, clear=False),
            "text/plain": console.export_text(),
        }
        if self._handle is None:
            from IPython.display import display  # a notebook has it

            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
