"""The commands for submitted sweeps: submit, logs, stop, and resume, which is also for paused sweeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from binsweep.search.cli.options import (
    dashboard_option,
    optional_dashboard_option,
    promote_option,
    set_option,
)
from binsweep.search.cli.steering import ask


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@promote_option
@dashboard_option
def submit(spec: Path, assignments: Sequence[str], then_promote: bool, dashboard: str) -> None:
    """Submit the sweep that SPEC describes to a Ray cluster as a job; prints its name."""
    from binsweep.search.ray_backend.jobs import submit_sweep

    name = submit_sweep(spec, assignments, dashboard, then_promote)
    print(name)
    for command in (f"logs -f {name}", f"status {name}", f"stop {name}"):
        print(f"  binsweep {command} --dashboard {dashboard}", file=sys.stderr)


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the sweep ends.")
@dashboard_option
def logs(name: str, follow: bool, dashboard: str) -> None:
    """Print the log of the submitted sweep NAME."""
    from binsweep.search.ray_backend.jobs import print_logs

    print_logs(name, dashboard, follow)


@click.command()
@click.argument("name")
@dashboard_option
def stop(name: str, dashboard: str) -> None:
    """Stop the submitted sweep NAME; `binsweep resume` continues it."""
    from binsweep.search.ray_backend.jobs import format_job, stop_sweep

    print(format_job(stop_sweep(name, dashboard)))


@click.command()
@click.argument("sweep_id", metavar="SWEEP")
@optional_dashboard_option
def resume(sweep_id: str, dashboard: str | None) -> None:
    """Let SWEEP go on after `binsweep pause`; with a dashboard also a submitted one that was stopped, has failed, or
    has lost the cluster's head."""
    if dashboard is not None:
        from binsweep.search.ray_backend.jobs import has_ended, resume_sweep

        if has_ended(sweep_id, dashboard):
            print(f"{sweep_id} goes on as {resume_sweep(sweep_id, dashboard)}")
            return
    ask(sweep_id, dashboard, "resume")
