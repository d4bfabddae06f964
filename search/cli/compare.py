"""The command `compare`: sweeps side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from binsweep.search.workflows.home import home_folder


@click.command()
@click.argument("sweeps", metavar="SWEEP...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page. Default: in the folder `comparisons` of the home.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(sweeps: Sequence[str], out: Path | None, as_json: bool) -> None:
    """Compare SWEEPs (ids, names for the newest, or patterns like 'abid-*') at equal trials, epochs, time and cost."""
    from binsweep.data.output_path import require_page
    from binsweep.search.history.sweep_state import find_folders
    from binsweep.search.report.compare_page import comparison_json, comparison_text
    from binsweep.search.workflows.compare import read_and_compare, write_comparison_page

    if out is not None:
        require_page(out)
    home = home_folder()
    found = read_and_compare(find_folders(home, sweeps))
    page = write_comparison_page(found, home, out)
    if as_json:
        print(json.dumps({**comparison_json(found), "page": str(page)}))
    else:
        print(comparison_text(found))
        print(page)
