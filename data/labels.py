"""Labels: what a photo shows, either a number of items (an int) or the name of a class (a str).

All labels of a source are of one kind. A label is kept as it is from the source to the served answer, so that its type
says which kind it is, in files as well.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

Label = int | str
LabelKind = Literal["counts", "names"]
# Above it, the labels are more likely to name single photos than classes, and no report could show them.
MAX_NAMES = 1000
_COUNT = re.compile(r"[0-9]{1,9}")


def kind_of(labels: Sequence[Label]) -> LabelKind:
    """The kind of some labels; counts if there are none."""
    return "names" if any(isinstance(label, str) for label in labels) else "counts"


def sorted_labels(labels: Iterable[Label]) -> list[Label]:
    """Counts in ascending order, or names by their characters: the order of classes everywhere."""
    return sorted(labels, key=lambda label: (0, label) if isinstance(label, str) else (label, ""))


def parse_count(text: str) -> int | None:
    """The count that a text is, decimal digits such as 3 or 03; None for other texts."""
    return int(text) if _COUNT.fullmatch(text) else None


def class_name(text: str) -> str:
    """The name of a class from a folder's name or a table's cell; "" if nothing is left of it.

    Blanks at its ends are dropped. The same letters are the same name, whichever way they are encoded (macOS writes
    an accent as a character of its own).
    """
    return unicodedata.normalize("NFC", text).strip()


def parse_label(text: str, kind: LabelKind) -> Label | None:
    """The label that a text is; None if it is none of this kind."""
    return parse_count(text) if kind == "counts" else class_name(text) or None


def of_kind(labels: Iterable[Label], kind: LabelKind) -> list[Label]:
    """Labels as a person wrote them, as labels of this kind where they can be: the 3 in a list of names is "3"."""
    return [str(label) if kind == "names" else label for label in labels]
