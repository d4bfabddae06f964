"""The commands around sweeps: sweep, status, report, sync."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from binsweep.data.errors import UserError
from binsweep.search.cli.models import promote_and_print, serve_and_ask
from binsweep.search.cli.options import home_folder, promote_option, require_writable, set_option

SYNC_SECONDS = 120.0


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@click.option(
    "--runner", type=click.Choice(["ray", "local"]), default="ray", help="local: in this process, no Ray."
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Run the trials on the Ray cluster that this machine is a node of: auto, or HOST:PORT.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the newest sweep of this name, with a larger budget too."
)
@click.option("--new", "anew", is_flag=True, help="Start a new sweep even where one was cut short.")
@click.option(
    "--warm-start",
    metavar="SWEEP",
    help="A new sweep that knows the results of an earlier one, by id or name.",
)
@click.option("--dry-run", is_flag=True, help="Check the spec and say what would run.")
@promote_option
@click.option("--profile", is_flag=True, help="Keep torch.profiler's trace of a few steps of every trial.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def sweep(
    spec: Path,
    assignments: Sequence[str],
    runner: Any,
    address: str | None,
    resume: bool,
    anew: bool,
    warm_start: str | None,
    dry_run: bool,
    then_promote: bool,
    profile: bool,
    as_json: bool,
) -> None:
    """Run the sweep that SPEC describes, or go on with it where it was cut short."""
    from binsweep.search.spec.parser import load_spec

    given = [f"--{name}" for name, on in (("resume", resume), ("new", anew)) if on]
    given += ["--warm-start"] if warm_start else []
    if "--resume" in given and len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} exclude one another", "--resume goes on, the others start anew"
        )
    if address is not None and runner == "local":
        raise UserError("--address and --runner local exclude one another", "leave out one of them")
    loaded = load_spec(spec, assignments)

    # Mistakes in a specification are told before seconds are spent on these.
    from binsweep.search.history.sweep_state import find_folder, find_unfinished
    from binsweep.search.recording.live_table import leaderboard_table
    from binsweep.search.workflows.sweep import check_before_start, prepare, run_sweep
    from binsweep.search.workflows.warm_start import load_warm_start
    from binsweep.tracking.mlflow_server.embedded import named_server, require_reachable, tracking_server

    home = home_folder()
    known = find_folder(home, warm_start) if warm_start else None
    nodes = _join(address) if address is not None else None
    check_before_start(loaded, nodes, runner)
    if dry_run:
        print(json.dumps(loaded.raw, indent=1))
        return
    require_writable(home)
    if remote := named_server():
        require_reachable(remote)  # before minutes are spent on the data
    manifest, data = prepare(loaded, home)
    unfinished = None if anew else find_unfinished(home, loaded, manifest.fingerprint, asked=resume)
    if unfinished == known:  # to start from it is not to go on with it
        unfinished = None
    if unfinished is not None:
        print(f"going on with {unfinished.name} (--new starts another sweep instead)", file=sys.stderr)
    warm = None if known is None or unfinished else load_warm_start(known, loaded, manifest.fingerprint)
    if warm is not None:
        print(warm, file=sys.stderr)
    with tracking_server(home) as uri:
        result = run_sweep(loaded, manifest, data, home, runner, uri, unfinished, warm, profile, nodes)
        leaders = result.leaderboard
        rows = [{"trial": t.number, "value": t.value, "epoch": t.epoch, "params": t.params} for t in leaders]
        answer: dict[str, Any] = {"sweep": result.id, "ended_by": result.ended_by, "leaderboard": rows}
        if leaders and not as_json:
            # Piped into a file, a table must not be squeezed into a terminal nobody has.
            Console(width=None if sys.stdout.isatty() else 160).print(
                leaderboard_table(leaders, loaded, f"leaderboard of {result.id}")
            )
            print(f"ended by {result.ended_by}")
        if not leaders:
            reason = result.failed[0].reason if result.failed else result.ended_by or "no trial ran"
            raise click.ClickException(f"no trial of {result.id} has a result: {reason}")
        if result.suspended:
            raise click.ClickException(
                f"{result.id} was given up; the same command goes on. {result.ended_by}"
            )
        if then_promote:
            answer["promotion"] = promote_and_print(result.id, home, uri, quiet=as_json)
            answer["proof"] = serve_and_ask(result.id, home, uri, quiet=as_json)
    if as_json:
        print(json.dumps(answer))
    else:
        _next_commands(home, result.id, then_promote)


def _join(address: str) -> Sequence[Mapping[str, float]]:
    """What the nodes of a cluster have, which this process is a driver of until the command ends."""
    from binsweep.search.ray_backend.runner import join_ray  # Ray takes seconds to import

    return click.get_current_context().with_resource(join_ray(address))


def _next_commands(home: Path, sweep_id: str, promoted: bool) -> None:
    print("\nnext:")
    print("  binsweep ui                      browse the sweep in MLflow")
    if not promoted:
        print(f"  binsweep promote {sweep_id:<15} test the best model and make it champion if it earned it")
    print("  binsweep serve                   serve the champion")
    print("  binsweep predict PHOTO.jpg       count the items in a photo")
    if home != Path(".binsweep").absolute():
        print(f"  (with BINSWEEP_HOME={home})")


@click.command()
@click.argument("sweep_id", metavar="[SWEEP]", required=False)
@click.option("--address", metavar="URL", help="Of a sweep that was submitted there; without SWEEP, of all.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def status(sweep_id: str | None, address: str | None, as_json: bool) -> None:
    """Show how SWEEP stands (its id or name; else the newest): live in a terminal while it runs, else once."""
    if address is not None:
        from binsweep.search.ray_backend.jobs import format_job, job_of, jobs

        found = [job_of(sweep_id, address)] if sweep_id else jobs(address)
        print(json.dumps([asdict(job) for job in found]) if as_json else "\n".join(map(format_job, found)))
        return
    from binsweep.search.history.sweep_state import find_folder, newest_folder
    from binsweep.search.report.status import show

    home = home_folder()
    show(find_folder(home, sweep_id) if sweep_id else newest_folder(home), as_json)


@click.command()
@click.argument("sweep_id", metavar="SWEEP")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the page here, not into the sweep's folder."
)
@click.option("--open", "then_open", is_flag=True, help="Open the page in a browser.")
def report(sweep_id: str, out: Path | None, then_open: bool) -> None:
    """Write the report of SWEEP (its id, or its name for the newest), running or finished, as one HTML page."""
    from binsweep.data.atomic_write import require_page
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
    """Send what the tracking server has not had yet, of SWEEP or of all sweeps."""
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
                left = replay(folder / "spool", uri, load_state(folder)["spec"]["name"], SYNC_SECONDS)
            except UserError as error:
                if sweep_id:
                    raise
                print(
                    f"{folder.name}: {error}", file=sys.stderr
                )  # one that has its own trouble costs no other one
                unsent += 1
            else:
                print(f"{folder.name}: {f'{left} records are still waiting' if left else 'all sent'}")
                unsent += left
    sys.exit(1 if unsent else 0)
