"""The command `compare`: sweeps side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from binsweep.data.errors import UserError
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
    from binsweep.search.history.comparison import compare as compare_histories
    from binsweep.search.history.run_log_reader import read_history
    from binsweep.search.history.sweep_state import find_folders, load_state
    from binsweep.search.report.compare_page import (
        MAX_GROUPS,
        comparison_json,
        comparison_text,
        write_comparison,
    )

    if out is not None:
        require_page(out)
    home = home_folder()
    folders = find_folders(home, sweeps)
    if len(folders) < 2:
        raise UserError(f"only one sweep is named: {folders[0].name}", "name at least two to compare")
    histories = [read_history(folder) for folder in folders]
    found = compare_histories(histories, [load_state(folder).get("fingerprint", "") for folder in folders])
    if len(found.groups) > MAX_GROUPS:
        what = f"{len(found.groups)} groups of sweeps, and a page has room for {MAX_GROUPS}"
        raise UserError(what, "name fewer sweeps; those whose specs differ in the seed alone are one group")
    page = out or home / "comparisons" / f"{'-vs-'.join(group.sweeps[0].id for group in found.groups)}.html"
    write_comparison(found, page)
    if as_json:
        print(json.dumps({**comparison_json(found), "page": str(page)}))
    else:
        print(comparison_text(found))
        print(page)
