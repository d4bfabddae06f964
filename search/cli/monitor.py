"""The command that looks at what a served model has seen."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from binsweep.search.workflows.home import home_folder, model_uri

if TYPE_CHECKING:
    from binsweep.search.workflows.monitor import Monitoring


@click.command()
@click.argument("model", default="bin-counter")
@click.option(
    "--truths",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A CSV file of true labels: sha256 or path, and count or label.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The page, instead of one next to the counts.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def monitor(model: str, truths: Path | None, out: Path | None, as_json: bool) -> None:
    """Compare what `binsweep serve` has seen of MODEL (NAME, NAME@alias or NAME/version) with its validation photos."""
    from binsweep.data.output_path import require_page
    from binsweep.search.workflows.monitor import monitor as look
    from binsweep.tracking.mlflow_server.embedded import registry_server

    home = home_folder()
    if out is not None:
        require_page(out)
    with registry_server(home) as uri:
        found = look(model_uri(model), home, uri, truths, out)
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        _print(found)


@click.group()
def shadow() -> None:
    """Compare a served version with the challenger in its shadow."""


@shadow.command()
@click.argument("model", default="bin-counter")
@click.option(
    "--challenger", metavar="VERSION", help="The version's number. Default: the last one that was asked."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(model: str, challenger: str | None, as_json: bool) -> None:
    """Say how often the challenger differs from MODEL (NAME, NAME@alias or NAME/version), and where."""
    from binsweep.search.workflows.shadow_report import report_shadow
    from binsweep.tracking.mlflow_server.embedded import registry_server

    home = home_folder()
    with registry_server(home) as uri:
        found = report_shadow(model_uri(model), home, uri, challenger)
    if as_json:
        print(json.dumps(asdict(found) | {"line": found.line}))
        return
    print(f"{found.model} version {found.challenger}: {found.line}")
    if found.missed or found.failed:
        print(f"  not asked for lack of time: {found.missed} photos; failed: {found.failed} requests")
    for title, rows in (("answer", found.by_answer), ("confidence", found.by_confidence)):
        print(f"  by the {title} of version {found.version}:")
        for row in rows:
            share = row.differing / row.photos
            print(
                f"    {row.name}: {row.differing} of {row.photos}, {share:.1%} ({row.low:.1%} to {row.high:.1%})"
            )
    if found.pairs:
        print("  commonest differences: " + ", ".join(f"{a} -> {b} ({n})" for a, b, n in found.pairs))


def _print(found: Monitoring) -> None:
    from binsweep.search.report.monitor_page import (
        format_latency,
        format_share,
        format_time,
        odd_row,
        verdict,
    )
    from binsweep.search.report.monitor_page import score_rows as rows_of

    summary = found.summary
    print(f"{found.model} version {found.version}: {verdict(summary)}")
    for note in found.notes:
        print(f"  {note}")
    if found.truths:
        print(f"  true labels: {found.truths}, of which {found.known} are of photos that were answered")
    print(f"  watched from {format_time(summary.began)} to {format_time(summary.ended)}")
    print(
        f"  photos: {summary.answered:,} answered, {summary.measured:,} of them measured; refused: ", end=""
    )
    print(format_share(summary.refused, summary.answered + summary.refused))
    if summary.missed:
        print(f"  not counted, because the server was too busy: {summary.missed:,}")
    if summary.latency:
        print(f"  latency of requests: {format_latency(summary)}")
    if summary.figures:
        print(f"\n  {'figure':<12}{'photos':>8}{'PSI':>8}  {'reading':<16}{'p':>8}  drift")
    for figure in summary.figures:
        index = "-" if figure.index is None else f"{figure.index:.3f}"
        p = "-" if figure.test.look is None else f"{figure.test.p:.2g}"
        since = "no" if figure.first_at is None else f"since {format_time(figure.first_at)}"
        since = since if figure.test.look is not None else "no look yet"
        print(f"  {figure.name:<12}{figure.photos:>8,}{index:>8}  {figure.reading:<16}{p:>8}  {since}")
    if summary.live is not None:
        noun = summary.live.labelling.words.noun
        print(f"\n  on {summary.live.photos:,} photos whose true {noun} is known (95 % intervals):")
        for name, text, judged in rows_of(summary.live, found.tags):
            print(f"    {name} {text}" + (f"; {judged} on the test split" if judged else ""))
    for odd in summary.examples[:3]:
        row = odd_row(odd)
        print(f"  unlike the validation photos in {row['unlike']}: {row['sha256']}, answered {row['answer']}")
    print(f"page: {found.page}")


def _as_json(found: Monitoring) -> dict[str, Any]:
    from binsweep.search.report.monitor_page import odd_row, verdict

    summary, live = found.summary, found.summary.live
    return {
        "model": found.model,
        "version": found.version,
        "verdict": verdict(summary),
        "began": summary.began,
        "ended": summary.ended,
        "requests": summary.requests,
        "latency": {str(share): seconds for share, seconds in summary.latency.items()},
        "photos": {
            "answered": summary.answered,
            "refused": summary.refused,
            "missed": summary.missed,
            "measured": summary.measured,
        },
        "reference_photos": summary.reference_photos,
        "figures": {
            figure.name: {
                "photos": figure.photos,
                "psi": figure.index,
                "reading": figure.reading,
                **asdict(figure.test),
                "drifts": figure.test.drifts,
                "first_at": figure.first_at,
            }
            for figure in summary.figures
        },
        "live": None
        if live is None
        else {
            "photos": live.photos,
            "right": live.right,
            "scores": live.scores,
            "intervals": live.intervals,
        },
        "truths": {"given": found.truths, "answered": found.known},
        "examples": [odd_row(odd) for odd in summary.examples],
        "page": str(found.page),
        "notes": found.notes,
    }
