"""Compare sweeps, and write the page about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.search.history.comparison import Comparison, compare
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_history import SweepHistory
from binsweep.search.history.sweep_state import load_state
from binsweep.search.report.compare_page import MAX_GROUPS, write_comparison


def read_and_compare(folders: Iterable[Path]) -> Comparison:
    """The comparison of the sweeps in these folders. Raises UserError as `compare_sweeps` does."""
    return compare_sweeps({folder: read_history(folder) for folder in folders})


def compare_sweeps(histories: Mapping[Path, SweepHistory]) -> Comparison:
    """The comparison of sweeps, by their folders.

    Raises UserError if they are fewer than two, cannot be compared, or are of more kinds than a page has room for.
    """
    if len(histories) < 2:
        names = [folder.name for folder in histories]
        told = f"only one sweep is named: {names[0]}" if names else "no sweep is named"
        raise UserError(told, "name at least two to compare")
    prints = [load_state(folder).get("fingerprint", "") for folder in histories]
    found = compare(list(histories.values()), prints)
    if len(found.groups) > MAX_GROUPS:
        what = f"{len(found.groups)} groups of sweeps, and a page has room for {MAX_GROUPS}"
        raise UserError(what, "name fewer sweeps; those whose specs differ in the seed alone are one group")
    return found


def write_comparison_page(found: Comparison, home: Path, out: Path | None) -> Path:
    """Write the page to `out`, or into the folder `comparisons` of the home; returns its path."""
    page = out or home / "comparisons" / f"{'-vs-'.join(group.sweeps[0].id for group in found.groups)}.html"
    write_comparison(found, page)
    return page
