"""Mistakes in a sweep file, as the user is shown them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = object()  # the value of a mistake in a key rather than in a value


@dataclass(frozen=True)
class Problem:
    """One mistake: the key, the rule that it breaks, the value given, and a hint how to correct it."""

    path: str
    rule: str
    value: Any
    hint: str

    def __str__(self) -> str:
        got = "" if self.value is ABSENT else f", but got {_as_yaml(self.value)}"
        return f"{self.path}: {self.rule}{got} ({self.hint})"


def _as_yaml(value: Any) -> str:
    """A value as a sweep file has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name: the most similar known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
