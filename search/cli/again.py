"""The commands about one trial: trial, rerun."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from binsweep.search.workflows.home import home_folder

if TYPE_CHECKING:
    from binsweep.search.workflows.rerun import Rerun


@click.command()
@click.argument("sweep_id", metavar="SWEEP")
@click.argument("number", metavar="N", type=click.IntRange(min=0))
@click.option(
    "--yaml", "as_yaml", is_flag=True, help="Print a sweep file of this trial alone, with its seed."
)
@click.option("--json", "as_json", is_flag=True, help="Print the trial as JSON.")
def trial(sweep_id: str, number: int, as_yaml: bool, as_json: bool) -> None:
    """Print all about trial N of SWEEP (its id, or a name for the newest one)."""
    import yaml

    from binsweep.search.history.run_log_reader import read_history
    from binsweep.search.history.sweep_state import find_folder
    from binsweep.search.report.trial_text import trial_json, trial_text
    from binsweep.search.workflows.rerun import spec_of_trial, trial_of

    folder = find_folder(home_folder(), sweep_id)
    history = read_history(folder)
    found = trial_of(history, number)
    if as_yaml:
        print(yaml.safe_dump(spec_of_trial(history.spec, found), sort_keys=False), end="")
    elif as_json:
        print(json.dumps(trial_json(history, found, folder)))
    else:
        print(trial_text(history, found, folder))


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--runner",
    type=click.Choice(["ray", "local"]),
    default="ray",
    help="local: train in this process, without Ray.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def rerun(run: str, runner: Any, as_json: bool) -> None:
    """Train the trial RUN (SWEEP/N, or the id of its run in MLflow) again, and compare the curves."""
    from binsweep.search.workflows.rerun import find_trial, rerun_trial
    from binsweep.tracking.mlflow_server.embedded import tracking_server

    home = home_folder()
    if "/" in run:
        find_trial(home, run)  # before a server starts
    with tracking_server(home) as uri:
        found = rerun_trial(home, run, runner, uri)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _print(found)
    sys.exit(1 if found.verdict == "differs" else 0)


def _print(found: Rerun) -> None:
    epochs = f"{found.epochs} epoch{'s' * (found.epochs != 1)}"
    print(f"{found.sweep}, trial {found.trial}, again as {found.again}: {epochs} of both are compared")
    if found.verdict == "differs":
        print(f"it differs from epoch {found.first} on; at most by {found.largest:.2g} of {found.name}")
    elif found.largest:
        print(f"equal within rounding: at most by {found.largest:.1e} of {found.name}")
    else:
        print("equal: every metric of every epoch is the same")
    for line in found.differences:
        print(f"  not as it was: {line}")
