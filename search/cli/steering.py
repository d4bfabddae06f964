"""The commands that steer a sweep while it is searched: enqueue, stop-trial, pin, unpin, budget, narrow, pause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from binsweep.search.cli.options import Command, optional_dashboard_option
from binsweep.search.spec.space import SearchSpace
from binsweep.search.workflows.home import home_folder

Parse = Callable[[SearchSpace, Sequence[str]], dict[str, Any]]


def ask(
    sweep_id: str,
    dashboard: str | None,
    kind: Any,
    trial: int | None = None,
    assignments: Sequence[str] = (),
    parse: Parse | None = None,
) -> None:
    """Ask something of a sweep of this machine, or of a submitted one, and print its answer."""
    if dashboard is not None:
        from binsweep.search.ray_backend.job_steering import steer_job

        number = [] if trial is None else ["--like", str(trial)] if kind == "enqueue" else [str(trial)]
        print(steer_job(sweep_id, dashboard, [kind, *number], assignments))
        return
    from binsweep.search.history.sweep_state import find_folder, read_spec
    from binsweep.search.steering.request import Request
    from binsweep.search.workflows.steer import steer

    folder = find_folder(home_folder(), sweep_id)
    values = {} if parse is None else parse(read_spec(folder).space, assignments)
    print(steer(folder, Request(kind, trial, values)))


def _command(name: str) -> Callable[[Command], click.Command]:
    """A command that asks something of SWEEP, with --dashboard for a submitted one."""

    def decorate(function: Command) -> click.Command:
        argument = click.argument("sweep_id", metavar="SWEEP")
        return click.command(name)(argument(optional_dashboard_option(function)))

    return decorate


@_command("enqueue")
@click.argument("assignments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--like", "like", type=int, metavar="N", help="Take what is not given from trial N.")
def enqueue(sweep_id: str, assignments: Sequence[str], like: int | None, dashboard: str | None) -> None:
    """Let SWEEP try a configuration next: NAME=VALUE for every searched value, or the changes to trial N."""
    from binsweep.search.workflows.steer import parse_configuration

    ask(sweep_id, dashboard, "enqueue", like, assignments, parse_configuration)


@_command("stop-trial")
@click.argument("trial", type=int, metavar="N")
def stop_trial(sweep_id: str, trial: int, dashboard: str | None) -> None:
    """Stop trial N of SWEEP after the epoch in progress; what it has reached counts."""
    ask(sweep_id, dashboard, "stop-trial", trial)


@_command("pin")
@click.argument("trial", type=int, metavar="N")
def pin(sweep_id: str, trial: int, dashboard: str | None) -> None:
    """Train trial N of SWEEP to its end, whatever the strategy thinks of it."""
    ask(sweep_id, dashboard, "pin", trial)


@_command("unpin")
@click.argument("trial", type=int, metavar="N")
def unpin(sweep_id: str, trial: int, dashboard: str | None) -> None:
    """Let the strategy decide again about trial N of SWEEP, which was pinned."""
    ask(sweep_id, dashboard, "unpin", trial)


@_command("budget")
@click.argument("assignments", nargs=-1, required=True, metavar="LIMIT=[+]VALUE...")
def budget(sweep_id: str, assignments: Sequence[str], dashboard: str | None) -> None:
    """Change limits of SWEEP's budget, such as minutes=+30, minutes=90 or trials=+10."""
    from binsweep.search.workflows.steer import parse_limits

    ask(sweep_id, dashboard, "budget", None, assignments, lambda space, pairs: parse_limits(pairs))


@_command("narrow")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=PART...")
def narrow(sweep_id: str, assignments: Sequence[str], dashboard: str | None) -> None:
    """Search less of SWEEP's space from now on, such as lr=1e-4..1e-2 or backbone=resnet18,resnet34."""
    from binsweep.search.workflows.steer import parse_parts

    ask(sweep_id, dashboard, "narrow", None, assignments, parse_parts)


@_command("pause")
def pause(sweep_id: str, dashboard: str | None) -> None:
    """Pause SWEEP: running trials end their epoch and wait; `binsweep resume` lets it go on."""
    ask(sweep_id, dashboard, "pause")
