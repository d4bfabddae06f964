"""The command line: answers on stdout, progress on stderr; exit 0 done, 1 failed, 2 the user's mistake, 130 stopped."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import json
import logging
import os
import select
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from binsweep import __version__
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import limit_threads
from binsweep.search.cli.data import data_group
from binsweep.search.execution.interrupts import interrupt
from binsweep.search.terminal.streams import lead_nowhere, settle_streams
from binsweep.tracking.mlflow_server.credentials import tidy_the_address

DEFAULT_PORT, DEFAULT_UI_PORT = 5001, 5000
SYNC_SECONDS = 120.0
HOME_HINT = "set BINSWEEP_HOME to a folder where you may write"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last when the terminal is closed
# Errors that say what is wrong with a place which the user has chosen.
OF_PLACES = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


def home_folder() -> Path:
    """Where everything of the product lies: BINSWEEP_HOME, or .binsweep in the current folder.

    Raises UserError where that is no folder. A home that does not exist yet is made by whoever writes there.
    """
    asked = os.environ.get("BINSWEEP_HOME") or ".binsweep"
    try:
        home = Path(asked).expanduser().absolute()
    except RuntimeError as error:  # ~NAME of somebody who has no account here, or ~ without HOME
        raise UserError(f"BINSWEEP_HOME: nobody knows which folder {asked} is", HOME_HINT) from error
    if home.exists() and not home.is_dir():
        raise UserError(f"BINSWEEP_HOME: {home} is not a folder", HOME_HINT)
    if "?" in str(home):  # there its options begin in a database's address
        raise UserError(
            f"BINSWEEP_HOME: {home} has a question mark, which no database's address can have", HOME_HINT
        )
    return home


def require_writable(home: Path) -> None:
    """Raise UserError where no sweep can be kept, before minutes are spent on its data."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweeps = home / "sweeps"
        with tempfile.TemporaryFile(dir=sweeps if sweeps.exists() else home):
            pass
    except OSError as error:
        raise UserError(f"BINSWEEP_HOME: {home} cannot be written: {error.strerror}", HOME_HINT) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks and library logs.")
@click.version_option(__version__, prog_name="binsweep")
def cli(debug: bool) -> None:
    """Sweep hyperparameters, compare trials in MLflow, promote the best model on evidence, serve it."""
    level = logging.INFO if debug else logging.WARNING
    if not debug:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read when MLflow is imported
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("mlflow", "alembic", "ray", "optuna"):
        logging.getLogger(noisy).setLevel(logging.INFO if debug else logging.ERROR)
    # Ray Tune logs each failed trial as an error of its own; the sweep has said it already, with the reason.
    logging.getLogger("ray.tune").setLevel(logging.INFO if debug else logging.CRITICAL)


_SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key of the spec."
)
_PROMOTE = click.option(
    "--promote", "then_promote", is_flag=True, help="At the end promote, serve and try the best model."
)


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@_SET
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
@_PROMOTE
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
    from binsweep.search.workflows.warm_start import know_earlier
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
    earlier = None if known is None or unfinished else know_earlier(known, loaded, manifest.fingerprint)
    if earlier is not None:
        print(earlier, file=sys.stderr)
    with tracking_server(home) as uri:
        result = run_sweep(loaded, manifest, data, home, runner, uri, unfinished, earlier, profile, nodes)
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
        if result.halted:
            raise click.ClickException(
                f"{result.id} was given up; the same command goes on. {result.ended_by}"
            )
        if then_promote:
            answer["promotion"] = _promote(result.id, home, uri, quiet=as_json)
            answer["proof"] = _prove(result.id, home, uri, quiet=as_json)
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


def _promote(
    sweep_id: str, home: Path, uri: str, approved: bool = False, dry_run: bool = False, quiet: bool = False
) -> dict[str, Any]:
    from binsweep.search.workflows.promote import promote_sweep

    model, decision = promote_sweep(sweep_id, home, uri, approved, dry_run)
    if quiet:
        return {"model": model, **asdict(decision)}
    earned = all(rule.passed for rule in decision.rules)
    state = "champion" if decision.promoted else "challenger"
    if dry_run:
        print(f"\n{model}: would {'become champion' if earned else 'be refused'} (nothing was registered)")
    else:
        print(f"\n{model} version {decision.version}: {state}")
    for note in decision.notes:
        print(f"  {note}")
    print(f"  on {decision.images} photos of the test split (95 % intervals by bootstrap):")
    columns = {"candidate": decision.candidate}
    if decision.champion is not None:
        where = "" if decision.compared == decision.images else f", on {decision.compared} of these photos"
        columns[f"champion before (version {decision.champion_version}{where})"] = decision.champion
    columns["constant guess"] = decision.guess
    for name, scores in columns.items():
        print(f"  {name}: {_told(scores, decision.intervals if name == 'candidate' else {})}")
    for rule in decision.rules:
        print(f"  {'passed' if rule.passed else 'FAILED'}  {rule.name}: {rule.text}")
    if decision.warning:
        print(f"  but it is {decision.warning}")
    return {"model": model, **asdict(decision)}


def _told(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    """Scores on one line, with those intervals that there are."""
    from binsweep.tracking.evaluation.report import NAMES, show

    def one(key: str) -> str:
        low, high = (show(key, end) for end in intervals.get(key, (0.0, 0.0)))
        return f"{NAMES[key]} {show(key, scores[key])}" + (f" ({low} to {high})" if key in intervals else "")

    return ", ".join(one(key) for key in NAMES)


def _prove(sweep_id: str, home: Path, uri: str, quiet: bool = False) -> dict[str, Any] | None:
    """Serve the champion, whichever version it is, and ask it about one bin; None while there is no champion."""
    from binsweep.search.workflows.promote import sweep_manifest
    from binsweep.tracking.registry.photo_splits import seen_by
    from binsweep.tracking.registry.versions import champion_of
    from binsweep.tracking.serving.model_server import predict as ask
    from binsweep.tracking.serving.model_server import serve_model

    spec, manifest = sweep_manifest(sweep_id, home)
    champion = champion_of(uri, spec.model_name)
    if champion is None:
        if not quiet:
            print("no champion yet: nothing to serve")
        return None
    # The champion may be one of another sweep, which divided the photos otherwise.
    seen = seen_by(uri, champion, home)
    tested = manifest.split("test")
    item = next((one for one in tested if one.sha256 not in (seen or ())), tested[0])
    new = "which no trial has seen"
    if seen is None:
        new = f"which no trial of {sweep_id} has seen, and of which is not known whether the champion has"
    elif item.sha256 in seen:
        new = "by which it was trained or chosen"
    with serve_model(f"models:/{spec.model_name}@champion", tracking_uri=uri) as served:
        row = ask(served.url, [item.path.read_bytes()], timeout=60)[0]
    if not quiet:
        print(f"\nserved champion (version {champion.version}), asked about bin {item.id}, {new}:")
        print(f"  true count {item.label}, predicted {row['count']} (confidence {row['confidence']:.0%})")
    return {"version": champion.version, "bin": item.id, "true": item.label, **row}


@cli.command()
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


@cli.command()
@click.argument("sweep_id", metavar="[SWEEP]", required=False)
@click.option("--address", metavar="URL", help="Of a sweep that was submitted there; without SWEEP, of all.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def status(sweep_id: str | None, address: str | None, as_json: bool) -> None:
    """Show how SWEEP stands (its id or name; else the newest): live in a terminal while it runs, else once."""
    if address is not None:
        from binsweep.search.ray_backend.jobs import job_of, jobs, told

        found = [job_of(sweep_id, address)] if sweep_id else jobs(address)
        print(json.dumps([asdict(job) for job in found]) if as_json else "\n".join(map(told, found)))
        return
    from binsweep.search.history.sweep_state import find_folder, newest_folder
    from binsweep.search.report.status import show

    home = home_folder()
    show(find_folder(home, sweep_id) if sweep_id else newest_folder(home), as_json)


_ADDRESS = click.option(
    "--address",
    metavar="URL",
    envvar="RAY_API_SERVER_ADDRESS",
    required=True,
    help="The cluster's dashboard, such as http://127.0.0.1:8265 (or RAY_API_SERVER_ADDRESS).",
)


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@_SET
@_PROMOTE
@_ADDRESS
def submit(spec: Path, assignments: Sequence[str], then_promote: bool, address: str) -> None:
    """Send the sweep that SPEC describes to a Ray cluster, where it goes on without you; prints its name."""
    from binsweep.search.ray_backend.jobs import submit_sweep

    name = submit_sweep(spec, assignments, address, then_promote)
    print(name)
    for command in (f"logs -f {name}", f"status {name}", f"stop {name}"):
        print(f"  binsweep {command} --address {address}", file=sys.stderr)


@cli.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the sweep ends.")
@_ADDRESS
def logs(name: str, follow: bool, address: str) -> None:
    """Print what the submitted sweep NAME has said."""
    from binsweep.search.ray_backend.jobs import print_logs

    print_logs(name, address, follow)


@cli.command()
@click.argument("name")
@_ADDRESS
def stop(name: str, address: str) -> None:
    """Stop the submitted sweep NAME; `binsweep resume` goes on with it."""
    from binsweep.search.ray_backend.jobs import stop_sweep, told

    print(told(stop_sweep(name, address)))


@cli.command()
@click.argument("name")
@_ADDRESS
def resume(name: str, address: str) -> None:
    """Go on with the submitted sweep NAME after it was stopped, or failed, or lost its cluster's head."""
    from binsweep.search.ray_backend.jobs import resume_sweep

    print(f"{name} goes on as {resume_sweep(name, address)}")


@cli.command()
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


@cli.command()
@click.argument("sweep_id", metavar="SWEEP")
@click.option(
    "--approve", "approved", is_flag=True, help="The approval that register.gate.approval asks for."
)
@click.option("--dry-run", is_flag=True, help="Say what the gate would decide; register and move nothing.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def promote(sweep_id: str, approved: bool, dry_run: bool, as_json: bool) -> None:
    """Test the best model of SWEEP (its id, or its name for the newest) and make it champion if it is better."""
    from binsweep.tracking.mlflow_server.embedded import tracking_server

    home = home_folder()
    with tracking_server(home) as uri:
        answer = _promote(sweep_id, home, uri, approved, dry_run, quiet=as_json)
    if as_json:
        print(json.dumps(answer))


@cli.command()
@click.argument("model", default="bin-counter")
@click.option("--reason", default="no reason given", show_default=True, help="Kept with both versions.")
def rollback(model: str, reason: str) -> None:
    """Make the champion before the present one champion of MODEL again."""
    from binsweep.tracking.mlflow_server.embedded import tracking_server
    from binsweep.tracking.promotion.promote import rollback as roll_back

    with tracking_server(home_folder()) as uri:
        left, back = roll_back(uri, model, reason)
    print(f"{model}: version {back} is champion again, instead of version {left}")


@cli.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    help="Of its own data the test split is asked, of others every photo, unless this says otherwise.",
)
@click.option("--classes", help="The counts to ask about, such as 1-5; else those that the model knows.")
@click.option("--seen", is_flag=True, help="Ask about photos that it was trained on or chosen by, too.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder for the report and its files.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def evaluate(
    model: str, source: str, split: Any, classes: str | None, seen: bool, out: Path | None, as_json: bool
) -> None:
    """Score MODEL (a registered name, NAME@alias, NAME/version or any model URI) on the photos of SOURCE."""
    from binsweep.data.atomic_write import require_folder
    from binsweep.search.cli.data import parse_counts
    from binsweep.search.workflows.evaluate import evaluate_source
    from binsweep.tracking.mlflow_server.embedded import tracking_server

    home = home_folder()
    counts = parse_counts(classes) if classes else None
    if out is not None:
        require_folder(out)
    with tracking_server(home) as uri:
        done = evaluate_source(model_uri(model), source, home, uri, split, counts, out, seen)
    card = done.card
    if as_json:
        place = {"facts": done.facts, "folder": str(done.folder), "notes": done.notes}
        print(json.dumps(place | asdict(card)))
        return
    print(f"{done.facts['model']} on {card.images} photos: {done.facts['photos']}")
    for note in done.notes:
        print(f"  {note}")
    print(f"  model: {_told(card.scores, card.intervals)}")
    print(f"  always {card.guess}: {_told(card.guess_scores, card.guess_intervals)}")
    for count, row in card.classes.items():
        said = f"accuracy {row['accuracy']:.1%}, RMSE {row['rmse']:.3f}"
        print(f"  {count} items ({row['support']:.0f} photos): {said}")
    print(f"  expected calibration error {card.calibration_error:.3f}")
    print(f"report: {done.folder / 'report.html'}")


@cli.command()
@click.argument("model", default="bin-counter")
@click.option("--port", type=click.IntRange(1, 65535), help=f"{DEFAULT_PORT} unless --check is given.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 is everyone's."
)
@click.option("--follow", is_flag=True, help="Serve whichever version is champion, also once that changes.")
@click.option("--check", is_flag=True, help="Replay its test photos against a server, compare, time, end.")
@click.option("--json", "as_json", is_flag=True, help="The answer of --check as JSON.")
def serve(model: str, port: int | None, host: str, follow: bool, check: bool, as_json: bool) -> None:
    """Serve MODEL (a registered name, NAME@alias, NAME/version or any model URI) with `mlflow models serve`."""
    if follow and (check or any(sign in model for sign in "@/:")):
        raise UserError(
            f"serve {model} --follow{' --check' if check else ''}: only the champion of a registered name is followed",
            "give the name alone, or leave out --follow",
        )
    from binsweep.tracking.mlflow_server.embedded import named_server, tracking_server
    from binsweep.tracking.serving.model_server import serve_foreground

    home = home_folder()
    if follow:
        from binsweep.tracking.serving.follow_champion import follow_champion

        # A named server may still be starting, or be away for a while: following waits for it.
        named = named_server()
        with contextlib.nullcontext(named) if named else tracking_server(home) as uri:
            told = functools.partial(print, flush=True)
            sys.exit(follow_champion(model, host, port or DEFAULT_PORT, uri, told))
    with tracking_server(home) as uri:
        if check:
            from binsweep.search.workflows.serving_check import check_serving

            checked = check_serving(model_uri(model), home, uri, port)
            if as_json:
                print(json.dumps(asdict(checked)))
            else:
                print(f"{checked.model}: {'agrees' if checked.rule.passed else 'DOES NOT AGREE'}")
                print(f"  {checked.rule.text}")
                spread = ", ".join(f"p{p} {ms:.1f} ms" for p, ms in checked.milliseconds.items())
                print(f"  one photo over HTTP: {spread}")
            sys.exit(0 if checked.rule.passed else 1)
        code = serve_foreground(
            model_uri(model),
            port or DEFAULT_PORT,
            uri,
            ready=lambda url: print(f"serving {model} at {url}", flush=True),
            host=host,
        )
    sys.exit(code)


def model_uri(model: str) -> str:
    """NAME means its champion; NAME@alias and NAME/version that version; a URI itself."""
    if ":/" in model:
        return model
    return f"models:/{model}" if "@" in model or "/" in model else f"models:/{model}@champion"


@cli.command()
@click.argument("places", nargs=-1, required=True, metavar="PLACE...")
@click.option("--url", help="Ask a running server; without it the model is loaded here.")
@click.option("--model", default="bin-counter", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def predict(places: Sequence[str], url: str | None, model: str, as_json: bool) -> None:
    """Count the items in the photos at each PLACE: a file, a folder, a glob, s3://BUCKET/PREFIX, or - for stdin
    (a photo, or a place a line)."""
    from binsweep.search.workflows.predict import predict_images

    unread, header = 0, False
    for name, row in predict_images(places, url, model_uri(model), home_folder()):
        unread += bool(row["error"])
        if as_json:
            print(json.dumps({"image": name, **row}), flush=True)
        elif row["error"]:
            print(f"{name}: {row['error']}", file=sys.stderr)
        else:
            if not header:
                print("items  confidence  expected  photo")
                header = True
            print(f"{row['count']:>5}  {row['confidence']:>10.0%}  {row['expected_count']:>8.2f}  {name}")
    sys.exit(1 if unread else 0)


@cli.command()
@click.option("--port", default=DEFAULT_UI_PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--allowed-hosts",
    default="",
    envvar="MLFLOW_SERVER_ALLOWED_HOSTS",
    metavar="HOST,...",
    help="Names by which a browser may come to it, as through a tunnel; * is any.",
)
@click.option(
    "--static-prefix",
    default="",
    envvar="MLFLOW_STATIC_PREFIX",
    metavar="/PATH",
    help="The path under which a proxy shows it.",
)
def ui(port: int, allowed_hosts: str, static_prefix: str) -> None:
    """Open the MLflow UI of this home; with MLFLOW_TRACKING_URI set, say where it is."""
    from binsweep.tracking.mlflow_server.embedded import named_server, run_ui

    if remote := named_server():
        print(f"MLflow UI at {remote} (MLFLOW_TRACKING_URI)")
        return
    code = run_ui(
        home_folder(),
        port,
        lambda url: print(f"MLflow UI at {url} (Ctrl-C ends it)", flush=True),
        [host.strip() for host in allowed_hosts.split(",") if host.strip()],
        static_prefix,
    )
    sys.exit(code)


@cli.command()
def migrate() -> None:
    """Bring the MLflow database of this home, written by an older version, up to date; a copy of it is kept."""
    from binsweep.tracking.mlflow_server.embedded import migrate_database

    copy = migrate_database(home_folder())
    print(f"the MLflow database is up to date; as it was before, it lies in {copy}")


cli.add_command(data_group)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine; every line that is not right has a remedy."""
    from binsweep.search.workflows.doctor import examine

    findings = examine(home_folder())
    for finding in findings:
        if not as_json:
            remedy = f"  -> {finding.remedy}" if finding.remedy else ""
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name:<12} {finding.text}{remedy}")
    if as_json:
        print(json.dumps([vars(finding) for finding in findings]))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def _leave(number: int, frame: object) -> None:
    """Asked to end, as by Ctrl-C, docker stop or a scheduler: tidily, with nothing half-written."""
    for again in ENDINGS:
        signal.signal(again, _leave_at_once)
    interrupt()


def _leave_at_once(number: int, frame: object) -> None:
    """Asked a second time: whatever ran can go on from what is on the disk."""
    import psutil

    try:
        if processes := sys.modules.get("binsweep.tracking.processes"):  # else it has started no server
            processes.kill_started()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    finally:
        os._exit(130)


def _hear_no_more() -> None:
    """Everything has ended: what Python still does for itself need not be cut short, nor change the exit code."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _reader_is_gone() -> bool:
    """Whether nobody reads what this process prints, as behind `| head -1`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # closed, or in memory
        return False


def _stands_somewhere() -> bool:
    """Whether the working folder still exists, without which PyTorch ends the process for a reason of its own."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print("binsweep: the folder in which this was started does not exist any more", file=sys.stderr)
        print("  hint: `cd` to one that does", file=sys.stderr)
        return False
    return True


def main() -> None:
    """The entry point: every mistake of the user is one message and exit code 2."""
    atexit.register(_hear_no_more)  # the first that is registered is the last that is called
    settle_streams()
    limit_threads()
    tidy_the_address()
    for number in ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _leave)
    code = _run("--debug" in sys.argv) if _stands_somewhere() else 2
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        lead_nowhere(sys.stdout.fileno())  # where Python's own last flush must not fail again
        if code == 0:  # else it has been said why
            print(f"binsweep: the answer cannot be written: {error.strerror}", file=sys.stderr)
            code = 1
    if _reader_is_gone():
        lead_nowhere(sys.stdout.fileno())
        code = 128 + signal.SIGPIPE  # as any program that a closed pipe ends
    sys.exit(code)


def _run(debug: bool) -> int:
    """Do what the command line says; returns the exit code."""
    try:
        return int(cli.main(standalone_mode=False) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"binsweep: {error}", file=sys.stderr)
        return 2
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes the one of the other
        print("binsweep: interrupted", file=sys.stderr)
        if "sweep" in sys.argv[1:3]:
            print(f"  the same command goes on: {shlex.join(['binsweep', *sys.argv[1:]])}", file=sys.stderr)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename is not None and error.errno in OF_PLACES:
            print(f"binsweep: {os.fspath(error.filename)}: {error.strerror}", file=sys.stderr)
            print("  hint: change that place or its rights, or name another one", file=sys.stderr)
            return 2
        print(f"binsweep: failed: {type(error).__name__}: {error}", file=sys.stderr)
        print("  hint: `binsweep --debug COMMAND ...` shows where", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
