"""The commands for sweeps: sweep, status, report, sync."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.search.cli.models import promote_and_print, serve_and_ask
from binsweep.search.cli.options import promote_option, renamed_option, set_option
from binsweep.search.workflows.home import home_folder

if TYPE_CHECKING:  # these imports take seconds
    from binsweep.search.spec.sweep_spec import SweepSpec
    from binsweep.search.workflows.sweep import SweepResult

MAX_SYNC_SECONDS = 120.0


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@click.option(
    "--runner",
    type=click.Choice(["ray", "local"]),
    default="ray",
    help="local: run trials in this process, without Ray.",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Run trials on the Ray cluster that this machine is a node of: auto, or HOST:PORT.",
)
@click.option(
    "--resume", is_flag=True, help="Resume the newest sweep of this name, also with a larger budget."
)
@click.option("--new", "start_new", is_flag=True, help="Start a new sweep even if one was interrupted.")
@click.option(
    "--warm-start",
    "warm_starts",
    metavar="SWEEP",
    multiple=True,
    help="Start a new sweep with what another one has found (its id or name); may be given several times.",
)
@click.option("--dry-run", is_flag=True, help="Check the spec and print it with all defaults.")
@promote_option
@click.option("--profile", is_flag=True, help="Keep a torch.profiler trace of a few steps of every trial.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def sweep(
    spec: Path,
    assignments: Sequence[str],
    runner: Any,
    address: str | None,
    resume: bool,
    start_new: bool,
    warm_starts: Sequence[str],
    dry_run: bool,
    then_promote: bool,
    profile: bool,
    as_json: bool,
) -> None:
    """Run the sweep that SPEC describes, or resume it if it was interrupted."""
    from binsweep.search.spec.parser import load_spec
    from binsweep.search.workflows.launch import LaunchOptions, check_options, plan_sweep
    from binsweep.search.workflows.preflight import check_before_start, print_warnings

    check_options(resume, start_new, bool(warm_starts), address is not None and runner == "local")
    loaded = load_spec(spec, assignments)
    nodes = _join(address) if address is not None else None
    if dry_run:
        check_before_start(loaded, nodes, runner)
        print_warnings(loaded)
        _print_dry_run(loaded)
        return
    home = home_folder()
    plan = plan_sweep(
        loaded,
        home,
        LaunchOptions(
            runner,
            nodes,
            resume,
            start_new=start_new,
            warm_starts=warm_starts,
            then_promote=then_promote,
            profile=profile,
        ),
    )
    from binsweep.tracking.mlflow_server.embedded import tracking_server  # takes seconds

    with tracking_server(home) as uri:
        result = plan.run(uri)
        if not as_json:
            _print_leaderboard(result, loaded)
        answer = _answer(result)
        if then_promote:
            answer["promotion"] = promote_and_print(result.id, home, uri, quiet=as_json, in_budget=True)
            answer["proof"] = serve_and_ask(result.id, home, uri, quiet=as_json)
    if as_json:
        print(json.dumps(answer))
    else:
        has_champion = answer.get("proof") is not None or answer.get("promotion", {}).get("promoted", False)
        _print_next_commands(home, result.id, loaded, plan.prepared.classes, then_promote, has_champion)


def _print_dry_run(spec: SweepSpec) -> None:
    """Print the spec with all defaults, with the configurations that would be tried first."""
    from binsweep.search.workflows.first_guesses import initial_points

    points = initial_points(spec)
    for point in points:
        if point.reason:
            values = ", ".join(f"{name} {value}" for name, value in point.params.items())
            print(f"begins with {point.reason}: {values}", file=sys.stderr)
    search = {**spec.raw["search"], "initial_points": [dict(point.params) for point in points]}
    print(json.dumps({**spec.raw, "search": search}, indent=1))


def _join(address: str) -> Sequence[Mapping[str, float]]:
    """The resources of the nodes of a cluster, which this process has joined until the command ends."""
    from binsweep.search.ray_backend.runner import join_ray  # Ray takes seconds to import

    return click.get_current_context().with_resource(join_ray(address))


def _print_leaderboard(result: SweepResult, spec: SweepSpec) -> None:
    from binsweep.search.recording.live_table import leaderboard_table

    if result.leaderboard:
        # Without a terminal rich assumes 80 columns, which would squeeze the table.
        console = Console(width=None if sys.stdout.isatty() else 160)
        # Printed by Python: where nobody reads stdout any more, rich would end the process with 1, without a word.
        with console.capture() as table:
            console.print(leaderboard_table(result.leaderboard, spec, f"leaderboard of {result.id}"))
        print(table.get(), end="")
        print(f"ended by {result.ended_by}")


def _answer(result: SweepResult) -> dict[str, Any]:
    """The JSON answer of a sweep. Raises ClickException if it has no result or was suspended."""
    from binsweep.search.workflows.launch import SweepError, require_result

    try:
        require_result(result)
    except SweepError as error:
        raise click.ClickException(str(error)) from error
    rows = [
        {"trial": trial.number, "value": trial.value, "epoch": trial.epoch, "params": trial.params}
        for trial in result.leaderboard
    ]
    return {"sweep": result.id, "ended_by": result.ended_by, "leaderboard": rows}


def _print_next_commands(
    home: Path, sweep_id: str, spec: SweepSpec, classes: Sequence[Label], promoted: bool, has_champion: bool
) -> None:
    """The commands after a sweep. Once it was promoted, those for the champion are left out if there is none."""
    from binsweep.models.labelling import labelling_of
    from binsweep.search.spec.schema import DEFAULT_MODEL
    from binsweep.search.spec.sweep_spec import PhotoSpec

    model = spec.model_name(classes)
    quoted = shlex.quote(model)
    serve, predict = "binsweep serve", "binsweep predict PHOTO.jpg"
    if model != DEFAULT_MODEL:
        serve, predict = f"{serve} {quoted}", f"{predict} --model {quoted}"
    commands = {"binsweep ui": "look at the sweep, and steer the next one"}
    if not promoted:
        commands[f"binsweep promote {sweep_id}"] = "test the best model, make it champion if it is better"
    if has_champion or not promoted:
        commands[serve] = "serve the champion"
        if isinstance(spec, PhotoSpec):
            commands[predict] = labelling_of(classes).words.ask
    width = max(31, *map(len, commands))
    print("\nnext:")
    for command, purpose in commands.items():
        print(f"  {command:<{width}}  {purpose}")
    if home != Path(".binsweep").absolute():
        print(f"  (with BINSWEEP_HOME={home})")


@click.command()
@click.argument("sweep_id", metavar="[SWEEP]", required=False)
@click.option("--dashboard", metavar="URL", help="Ray dashboard URL: show submitted sweeps (all, or SWEEP).")
@renamed_option("--address", "--dashboard")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def status(sweep_id: str | None, dashboard: str | None, as_json: bool) -> None:
    """Show the status of SWEEP (its id or name; default: the newest), live in a terminal while it runs."""
    if dashboard is not None:
        from binsweep.search.ray_backend.jobs import format_job, job_of, jobs

        found = [job_of(sweep_id, dashboard)] if sweep_id else jobs(dashboard)
        print(json.dumps([asdict(job) for job in found]) if as_json else "\n".join(map(format_job, found)))
        return
    from binsweep.search.history.sweep_state import find_folder
    from binsweep.search.report.status import show, show_newest

    home = home_folder()
    if sweep_id:
        show(find_folder(home, sweep_id), as_json)
    else:
        show_newest(home, as_json)


@click.command()
@click.argument("sweep_id", metavar="SWEEP")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write. Default: report.html in the sweep's folder.",
)
@click.option("--open", "then_open", is_flag=True, help="Open the page in a browser.")
def report(sweep_id: str, out: Path | None, then_open: bool) -> None:
    """Write the report of SWEEP (its id, or a name for the newest one) as one HTML page."""
    from binsweep.data.output_path import require_page
    from binsweep.search.history.sweep_state import find_folder
    from binsweep.search.report.sweep_report import write_report

    if out is not None:
        require_page(out)
    page = write_report(find_folder(home_folder(), sweep_id), out=out)
    print(page)
    if then_open:
        click.launch(str(page))


@click.command()
@click.argument("sweep_id", metavar="[SWEEP]", required=False)
def sync(sweep_id: str | None) -> None:
    """Send the records that the tracking server does not have yet, of SWEEP or of all sweeps."""
    from binsweep.search.history.sweep_state import find_folder, load_state, sweep_folders
    from binsweep.tracking.mlflow_server.embedded import tracking_server
    from binsweep.tracking.runlog.run_log import replay

    home = home_folder()
    folders = [find_folder(home, sweep_id)] if sweep_id else sweep_folders(home)
    if not folders:
        print(f"no sweep in {home}: nothing to send", file=sys.stderr)
        return
    unsent = 0
    with tracking_server(home) as uri:
        for folder in folders:
            try:
                waiting = replay(folder / "spool", uri, load_state(folder)["spec"]["name"], MAX_SYNC_SECONDS)
            except UserError as error:
                if sweep_id:
                    raise
                print(f"{folder.name}: {error}", file=sys.stderr)  # the other sweeps are still sent
                unsent += 1
            else:
                print(f"{folder.name}: {f'{waiting} records are still waiting' if waiting else 'all sent'}")
                unsent += waiting
    sys.exit(1 if unsent else 0)
