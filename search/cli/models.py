"""The commands for registered models: promote, rollback, evaluate, serve, predict, export."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from binsweep.data.errors import UserError
from binsweep.search.cli.options import parse_classes
from binsweep.search.workflows.home import home_folder, model_uri

DEFAULT_PORT = 5001


def promote_and_print(
    sweep_id: str,
    home: Path,
    uri: str,
    approved: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    in_budget: bool = False,
) -> dict[str, Any]:
    from binsweep.search.workflows.promote import promote_sweep

    model, decision = promote_sweep(sweep_id, home, uri, approved, dry_run, in_budget)
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
    print(f"  on {decision.images} {decision.unit} of the test split (95 % intervals by bootstrap):")
    columns = {"candidate": decision.candidate}
    if decision.champion is not None:
        where = (
            ""
            if decision.compared == decision.images
            else f", on {decision.compared} of these {decision.unit}"
        )
        columns[f"champion before (version {decision.champion_version}{where})"] = decision.champion
    columns["constant guess"] = decision.guess
    for name, scores in columns.items():
        print(f"  {name}: {scores_line(scores, decision.intervals if name == 'candidate' else {})}")
    for rule in decision.rules:
        print(f"  {'passed' if rule.passed else 'FAILED'}  {rule.name}: {rule.text}")
    if decision.warning:
        print(f"  but it is {decision.warning}")
    return {"model": model, **asdict(decision)}


def scores_line(scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    """Scores on one line, with their intervals if there are any."""
    from binsweep.models.labelling import COUNTING, NAMING
    from binsweep.tracking.evaluation.report import format_score

    names = COUNTING.score_names if "rmse" in scores else NAMING.score_names

    def one(key: str) -> str:
        low, high = (format_score(key, end) for end in intervals.get(key, (0.0, 0.0)))
        return f"{names[key]} {format_score(key, scores[key])}" + (
            f" ({low} to {high})" if key in intervals else ""
        )

    return ", ".join(one(key) for key in names if key in scores)


def serve_and_ask(sweep_id: str, home: Path, uri: str, quiet: bool = False) -> dict[str, Any] | None:
    """Serve the champion and predict one photo; None if there is no champion."""
    from binsweep.models.labelling import labelling_of
    from binsweep.search.history.sweep_state import find_folder, load_state
    from binsweep.search.workflows.promote import sweep_manifest
    from binsweep.tracking.mlflow_server.named_server import registry_of
    from binsweep.tracking.registry.photo_splits import seen_by
    from binsweep.tracking.registry.versions import champion_of
    from binsweep.tracking.serving.model_server import predict as ask
    from binsweep.tracking.serving.model_server import serve_model

    uri = registry_of(uri)
    if "trainer" in load_state(find_folder(home, sweep_id))["spec"]:
        return None  # what its model is asked is known to its code alone; the gate has served it
    spec, manifest = sweep_manifest(sweep_id, home)
    name, words = spec.model_name(manifest.classes), labelling_of(manifest.classes).words
    champion = champion_of(uri, name)
    if champion is None:
        if not quiet:
            print("no champion yet: nothing to serve")
        return None
    # The champion may come from another sweep, with other splits.
    seen = seen_by(uri, champion, home)
    tested = manifest.split("test")
    item = next((one for one in tested if one.sha256 not in (seen or ())), tested[0])
    new = "which no trial has seen"
    if seen is None:
        new = f"which no trial of {sweep_id} has seen; whether the champion has is not known"
    elif item.sha256 in seen:
        new = "which it was trained on or chosen by"
    with serve_model(f"models:/{name}@champion", tracking_uri=uri) as served:
        row = ask(served.url, [item.path.read_bytes()], timeout=60)[0]
    if not quiet:
        print(
            f"\nserved champion (version {champion.version}), asked about {words.subject} {item.id}, {new}:"
        )
        print(
            f"  true {words.noun} {item.label}, predicted {row[words.answer]} (confidence {row['confidence']:.0%})"
        )
    return {"version": champion.version, words.subject: item.id, "true": item.label, **row}


@click.command()
@click.argument("sweep_id", metavar="SWEEP")
@click.option(
    "--approve", "approved", is_flag=True, help="Give the approval that register.gate.approval requires."
)
@click.option("--dry-run", is_flag=True, help="Print what the gate would decide; register nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def promote(sweep_id: str, approved: bool, dry_run: bool, as_json: bool) -> None:
    """Test the best model of SWEEP (its id, or a name for the newest one); make it champion if it is better."""
    from binsweep.tracking.mlflow_server.embedded import tracking_server

    home = home_folder()
    with tracking_server(home) as uri:
        answer = promote_and_print(sweep_id, home, uri, approved, dry_run, quiet=as_json)
    if as_json:
        print(json.dumps(answer))


@click.command()
@click.argument("model", default="bin-counter")
@click.option("--reason", default="no reason given", show_default=True, help="Stored with both versions.")
def rollback(model: str, reason: str) -> None:
    """Make the previous champion of MODEL champion again."""
    from binsweep.search.workflows.roll_back import roll_back
    from binsweep.tracking.mlflow_server.embedded import registry_server

    home = home_folder()
    with registry_server(home) as uri:
        print(roll_back(model, reason, home, uri))


@click.command()
@click.argument("model")
@click.argument("source")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    help="Split to evaluate. Default: test for the model's own data, all photos otherwise.",
)
@click.option(
    "--classes",
    help="Counts to evaluate, such as 1-5, or names, such as ok,scratched. Default: those that the model knows.",
)
@click.option("--seen", is_flag=True, help="Include photos that the model was trained on or chosen by.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder for the report.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    model: str, source: str, split: Any, classes: str | None, seen: bool, out: Path | None, as_json: bool
) -> None:
    """Evaluate MODEL (a registered name, NAME@alias, NAME/version or a model URI) on photos of SOURCE."""
    from binsweep.data.output_path import require_folder
    from binsweep.search.workflows.evaluate import evaluate_source
    from binsweep.tracking.evaluation.report import format_score
    from binsweep.tracking.mlflow_server.embedded import model_server

    home = home_folder()
    wanted = parse_classes(classes) if classes else None
    if out is not None:
        require_folder(out)
    with model_server(home, model_uri(model)) as uri:
        done = evaluate_source(model_uri(model), source, home, uri, split, wanted, out, seen)
    card = done.card
    if as_json:
        place = {"facts": done.facts, "folder": str(done.folder), "notes": done.notes}
        print(json.dumps(place | asdict(card)))
        return
    print(f"{done.facts['model']} on {card.images} photos: {done.facts['photos']}")
    for note in done.notes:
        print(f"  {note}")
    print(f"  model: {scores_line(card.scores, card.intervals)}")
    print(f"  always {card.guess}: {scores_line(card.guess_scores, card.guess_intervals)}")
    for label, row in card.classes.items():
        text = ", ".join(
            f"{name} {format_score(key, row[key])}" for key, name in card.labelling.class_scores.items()
        )
        what = "1 item" if label == 1 else card.labelling.describe(label)
        photos = "1 photo" if row["support"] == 1 else f"{row['support']:.0f} photos"
        print(f"  {what} ({photos}): {text}")
    print(f"  expected calibration error {card.calibration_error:.3f}")
    print(f"report: {done.folder / 'report.html'}")


@click.command()
@click.argument("model", default="bin-counter")
@click.option("--port", type=click.IntRange(1, 65535), help=f"{DEFAULT_PORT} unless --check is given.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; 0.0.0.0 is all interfaces.",
)
@click.option(
    "--follow", is_flag=True, help="Serve the champion, and switch when another version becomes champion."
)
@click.option(
    "--check",
    is_flag=True,
    help="Compare a server's answers on the test split with the stored ones, and exit.",
)
@click.option(
    "--watch/--no-watch",
    default=True,
    show_default=True,
    help="Count what a registered version sees and answers, for `binsweep monitor` and GET /metrics.",
)
@click.option(
    "--keep-thumbnails",
    is_flag=True,
    help="Keep small pictures of the oddest photos. Without it, no pixel of a photo is kept.",
)
@click.option(
    "--shadow",
    "challenger",
    metavar="VERSION",
    help="Another version of MODEL (an alias, as challenger, or a number) that answers a share of the requests, too.",
)
@click.option(
    "--shadow-share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="The share of requests that the version in the shadow is asked.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result of --check as JSON.")
def serve(
    model: str,
    port: int | None,
    host: str,
    follow: bool,
    check: bool,
    watch: bool,
    keep_thumbnails: bool,
    challenger: str | None,
    shadow_share: float,
    as_json: bool,
) -> None:
    """Serve MODEL (a registered name, NAME@alias, NAME/version or a model URI) as `mlflow models serve` does."""
    if follow and (check or any(sign in model for sign in "@/:")):
        raise UserError(
            f"serve {model} --follow{' --check' if check else ''}: only the champion of a registered name is followed",
            "give a registered name alone, or omit --follow",
        )
    if challenger is not None and (follow or check or not watch):
        other = "--follow" if follow else "--check" if check else "--no-watch"
        raise UserError(
            f"--shadow with {other}: a challenger is only asked next to one watched version", "omit one"
        )
    if keep_thumbnails and not watch:
        raise UserError("--keep-thumbnails with --no-watch: nothing is watched", "omit one of the two")
    from binsweep.tracking.mlflow_server.embedded import model_server, registry_server
    from binsweep.tracking.mlflow_server.named_server import named_registry, named_server
    from binsweep.tracking.serving.foreground import ShadowOptions, serve_foreground
    from binsweep.tracking.serving.replica import WatchOptions

    home = home_folder()
    watched = WatchOptions(str(home), keep_thumbnails) if watch else None
    if follow:
        from binsweep.tracking.serving.follow_champion import follow_champion

        # A named server may be starting or unavailable: following waits for it.
        named = named_registry() or named_server()
        with contextlib.nullcontext(named) if named else registry_server(home) as uri:
            log = functools.partial(print, flush=True)
            sys.exit(follow_champion(model, host, port or DEFAULT_PORT, uri, log, watched))
    with model_server(home, model_uri(model)) as uri:
        if check:
            from binsweep.search.workflows.serving_check import check_serving

            checked = check_serving(model_uri(model), home, uri, port)
            if as_json:
                print(json.dumps(asdict(checked)))
            else:
                print(f"{checked.model}: {'agrees' if checked.rule.passed else 'DOES NOT AGREE'}")
                print(f"  {checked.rule.text}")
                spread = ", ".join(f"p{p} {ms:.1f} ms" for p, ms in checked.milliseconds.items())
                print(f"  one {checked.unit} over HTTP: {spread}")
            sys.exit(0 if checked.rule.passed else 1)
        code = serve_foreground(
            model_uri(model),
            port or DEFAULT_PORT,
            uri,
            ready=lambda url: print(f"serving {model} at {url}", flush=True),
            host=host,
            watch=watched,
            shadow=None if challenger is None else ShadowOptions(challenger, shadow_share),
        )
    sys.exit(code)


@click.command()
@click.argument("model", default="bin-counter")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["onnx", "openvino"]),
    required=True,
    help="The kind of file.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The new folder. Default: NAME-VERSION-FORMAT in this one."
)
def export(model: str, file_format: Any, out: Path | None) -> None:
    """Write the network of MODEL (a registered name, NAME@alias or NAME/version) for other programs.

    The file takes the pixels of decoded photos and returns probabilities. A test vector and a README come with it.
    """
    from binsweep.search.workflows.export import export_model
    from binsweep.tracking.mlflow_server.embedded import model_server

    with model_server(home_folder(), model_uri(model)) as uri:
        folder, error = export_model(model_uri(model), file_format, out, uri)
    print(f"{folder}: the network, a test vector and a README")
    print(f"  probabilities differ by at most {error:.1e} from PyTorch's")


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="PLACE...")
@click.option("--url", help="Use the server at this URL. Default: load the model.")
@click.option("--model", default="bin-counter", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write a table to this .csv, .parquet or .jsonl file; after an interruption, the same command goes on.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line; with --out, one about the file."
)
def predict(places: Sequence[str], url: str | None, model: str, out: Path | None, as_json: bool) -> None:
    """Ask the model about the photos at each PLACE: a file, a folder, a glob, a table with a column `path` (CSV,
    Parquet), s3://BUCKET/PREFIX, or - for stdin (a photo, or one place per line)."""
    from binsweep.search.workflows.predict import predict_images

    if out is not None:
        sys.exit(_predict_to_file(places, url, model, out, as_json))
    failed, has_header = 0, False
    for name, row in predict_images(places, url, model_uri(model), home_folder()):
        failed += bool(row["error"])
        if as_json:
            print(json.dumps({"image": name, **row}), flush=True)
        elif row["error"]:
            print(f"{name}: {row['error']}", file=sys.stderr)
        else:
            named = "label" in row
            if not has_header:
                print("confidence  class  photo" if named else "items  confidence  expected  photo")
                has_header = True
            if named:
                print(f"{row['confidence']:>10.0%}  {row['label']}  {name}")
            else:
                print(f"{row['count']:>5}  {row['confidence']:>10.0%}  {row['expected_count']:>8.2f}  {name}")
    sys.exit(1 if failed else 0)


def _predict_to_file(places: Sequence[str], url: str | None, model: str, out: Path, as_json: bool) -> int:
    from binsweep.search.workflows.predict_file import predict_to_file

    def resumed(done: int, total: int) -> None:
        print(f"{done:,} of {total:,} were there already", file=sys.stderr, flush=True)

    written = predict_to_file(places, out, url, model_uri(model), home_folder(), resumed)
    if as_json:
        print(json.dumps(asdict(written)))
    else:
        failed = f", {written.unanswered:,} without an answer (column error)" if written.unanswered else ""
        print(f"{out}: {written.photos:,} photos{failed}")
    return 1 if written.unanswered else 0
