"""Sweeps side by side from Python."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binsweep.search.api.session import session
from binsweep.search.api.sweeps import Place, Sweep
from binsweep.search.workflows.home import home_folder

if TYPE_CHECKING:  # these imports take seconds
    import pandas as pd

    from binsweep.search.history.comparison import Comparison


class SweepComparison:
    """Sweeps side by side, as they were when `binsweep.compare` was called.

    Sweeps whose specs differ in the seed alone are one group.
    """

    def __init__(self, found: Comparison, home: Path) -> None:
        """`found` is the comparison of sweeps of this home."""
        self._found, self._home = found, home

    @property
    def groups(self) -> list[list[str]]:
        """The ids of the sweeps of each group."""
        return [[sweep.id for sweep in group.sweeps] for group in self._found.groups]

    @property
    def points(self) -> pd.DataFrame:
        """The best value of each group after equal amounts, and what it is better than the first group by.

        `axis` is trials, epochs, seconds, or a cost; `low` to `high` is the 95 % interval of the mean, `gain_low` to
        `gain_high` that of the gain (positive: better). NaN where there is no value, or one sweep alone.
        """
        from binsweep.search.api.frames import comparison_frame

        return comparison_frame(self._found)

    @property
    def parameters(self) -> pd.DataFrame:
        """What the best trials have: a row for each searched value, by sweep, and whether it has moved."""
        from binsweep.search.api.frames import moved_frame

        return moved_frame(self._found)

    @property
    def differences(self) -> dict[str, list[Any]]:
        """What else the groups' specs say differently, by dotted key."""
        import json

        return {key: [json.loads(value) for value in values] for key, values in self._found.differences}

    @property
    def warnings(self) -> list[str]:
        """What makes the values less comparable."""
        return self._found.warnings

    def report(self, out: Place | None = None) -> Path:
        """Write the page, to `out` or into the folder `comparisons` of the home; returns its path."""
        from binsweep.data.output_path import require_page
        from binsweep.search.workflows.compare import write_comparison_page

        page = None if out is None else Path(out).expanduser()
        if page is not None:
            require_page(page)
        return write_comparison_page(self._found, self._home, page)

    def __repr__(self) -> str:
        from binsweep.search.report.compare_page import comparison_text

        return comparison_text(self._found)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def compare(*sweeps: str | Sweep, home: Place | None = None) -> SweepComparison:
    """Compare sweeps at equal trials, epochs, time and cost, as `binsweep compare` does.

    Each is a Sweep, or an id, a name for its newest sweep, or a pattern such as abid-* of `home` (default:
    BINSWEEP_HOME, or .binsweep). Raises UserError if they are fewer than two, or have different objectives.
    """
    from binsweep.search.history.sweep_state import find_folders
    from binsweep.search.workflows.compare import read_and_compare

    place = home_folder(home)
    with session():
        found = [
            folder
            for one in sweeps
            for folder in ([one.folder] if isinstance(one, Sweep) else find_folders(place, [one]))
        ]
        return SweepComparison(read_and_compare(found), place)
