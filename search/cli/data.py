"""The commands for data sets: `binsweep data ...`."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from binsweep.data.errors import UserError
from binsweep.search.cli.options import (
    classes_option,
    labels_option,
    parse_classes,
    parse_counts,
    split_by_option,
)
from binsweep.search.terminal.format import format_duration
from binsweep.search.terminal.progress import ProgressMeter
from binsweep.search.workflows.home import home_folder

if TYPE_CHECKING:
    from binsweep.data.labels import LabelKind
    from binsweep.data.manifest import Manifest

MEGABYTE = 1e6


@click.group("data")
def data_group() -> None:
    """Generate, download, upload and inspect data sets."""


@data_group.command()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--images", default=600, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--size", default=224, show_default=True, type=click.IntRange(32, 2048), help="Pixels per side."
)
@click.option("--classes", default="0-5", show_default=True, help="Counts, as 0-5 or 1,2,3.")
def synth(dest: Path, images: int, seed: int, size: int, classes: str) -> None:
    """Render synthetic bins into DEST, in the layout of the public bucket."""
    from binsweep.data.synthetic.dataset import write_synthetic

    write_synthetic(dest, images, seed, size, parse_counts(classes))
    print(f"{images} bins in {dest}")


@data_group.command()
@click.argument("source", metavar="s3://BUCKET[/PREFIX]")
@click.argument("dest", type=click.Path(path_type=Path))
@classes_option
@labels_option
@click.option("--limit", type=click.IntRange(1), help="Maximum number of images.")
@click.option("--per-class", type=click.IntRange(1), help="Maximum number of images of each class.")
@click.option(
    "--ids", type=click.Path(path_type=Path), help="Only the images whose ids are in this file, one per line."
)
@click.option(
    "--seed", default=0, show_default=True, type=int, help="Seed of the choice by --limit and --per-class."
)
@click.option("--endpoint", metavar="URL", help="S3 server, if not Amazon's (or AWS_ENDPOINT_URL).")
@click.option(
    "--workers",
    default=32,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Number of parallel requests.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pull(
    source: str,
    dest: Path,
    classes: str | None,
    labels: Any,
    limit: int | None,
    per_class: int | None,
    ids: Path | None,
    seed: int,
    endpoint: str | None,
    workers: int,
    as_json: bool,
) -> None:
    """Download images of a bucket into DEST; the same command again continues where it stopped."""
    from dataclasses import asdict

    from binsweep.data.labels import of_kind, sorted_labels
    from binsweep.data.s3.address import parse_address
    from binsweep.data.s3.bucket import open_bucket
    from binsweep.data.s3.listing import Selection
    from binsweep.data.s3.pull import PROBLEMS
    from binsweep.data.s3.pull import pull as run

    kind: LabelKind = labels or "counts"
    chosen = tuple(sorted_labels(set(of_kind(parse_classes(classes), kind)))) if classes else None
    wanted = Selection(chosen, limit, per_class, _read_ids(ids), seed, kind)
    bucket = open_bucket(parse_address(source), endpoint, workers)
    start = time.monotonic()
    with ProgressMeter() as meter:
        pulled = run(bucket, dest, wanted, meter, workers)
    if as_json:
        print(json.dumps(asdict(pulled)))
        return
    counts_text = ", ".join(f"{number:,} of {label}" for label, number in pulled.classes.items())
    print(f"{pulled.images:,} images in {dest}: {counts_text}")
    seconds = time.monotonic() - start
    print(
        f"{pulled.fetched:,} objects, {pulled.bytes / MEGABYTE:,.1f} MB fetched in {format_duration(seconds)}"
    )
    if pulled.problems:
        left_out = pulled.problems - pulled.disagreements
        print(
            f"{pulled.problems:,} problems in {dest / PROBLEMS}: {left_out:,} left out, {pulled.disagreements:,} "
            "labels disagree with their items"
        )


@data_group.command()
@click.argument("source")
@click.argument("dest", metavar="s3://BUCKET[/PREFIX]")
@click.option(
    "--layout",
    type=click.Choice(["same", "splits"]),
    default="same",
    show_default=True,
    help="same: the source's layout; splits: train/, validation/ and test/, each with a folder for each class.",
)
@labels_option
@split_by_option
@click.option(
    "--endpoint",
    metavar="URL",
    help="S3 server of both, if not Amazon's (or AWS_ENDPOINT_URL).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(
    source: str, dest: str, layout: Any, labels: Any, split_by: Any, endpoint: str | None, as_json: bool
) -> None:
    """Upload the readable images of SOURCE to a bucket, with their metadata and manifest.parquet."""
    from dataclasses import asdict

    from binsweep.data.manifest import load_manifest
    from binsweep.data.s3.address import parse_address
    from binsweep.data.s3.bucket import open_bucket
    from binsweep.data.s3.push import push as run
    from binsweep.data.split import Split

    bucket = open_bucket(parse_address(dest), endpoint, allow_empty=True)
    if endpoint is not None:
        os.environ["AWS_ENDPOINT_URL"] = endpoint  # for a source that is a bucket, too
    with ProgressMeter() as meter:
        manifest = load_manifest(
            source,
            None,
            Split(by=split_by),
            home_folder(),
            partial(meter, "reading"),
            labels=labels,
            allow_untrainable=layout == "same",
        )
        pushed = run(manifest, bucket, layout, meter)
    if as_json:
        print(json.dumps(asdict(pushed)))
        return
    print(f"{pushed.images:,} images in {dest}: {pushed.sent:,} of {pushed.objects:,} objects sent")
    _print_left_out(manifest)


@data_group.command()
@click.argument("source")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The HTML page; a JSON file is written next to it.",
)
@classes_option
@labels_option
@split_by_option
def report(source: str, out: Path, classes: str | None, labels: Any, split_by: Any) -> None:
    """Report on SOURCE: classes, sizes, brightness, blur, duplicates, leaks between splits, samples."""
    from binsweep.data.manifest import load_manifest
    from binsweep.data.output_path import require_page
    from binsweep.data.report.data_report import build_data_report, write_report
    from binsweep.data.split import Split

    require_page(out)
    wanted = parse_classes(classes) if classes else None
    with ProgressMeter() as meter:
        manifest = load_manifest(
            source,
            wanted,
            Split(by=split_by),
            home_folder(),
            partial(meter, "reading"),
            labels=labels,
            allow_untrainable=True,
        )
        found = build_data_report(manifest, home_folder(), partial(meter, "looking"))
    _print_left_out(manifest)
    for gap in manifest.warnings():
        print(f"warning: {gap}", file=sys.stderr)
    try:
        page, facts = write_report(found, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}", "give a writable place") from error
    names = ("exact_duplicates", "near_duplicates", "unreadable", "label_disagreements")
    for name in (one for one in names if one in found.facts):
        print(f"{len(found.facts[name]):>8,} {name.replace('_', ' ')}")
    print(f"{found.facts['across_splits']:>8,} duplicates across splits")
    print(f"{page}\n{facts}")


def _print_left_out(manifest: Manifest) -> None:
    from binsweep.data.source_checks import format_skipped

    if skipped := manifest.skipped:
        print(f"left out {len(skipped):,} files: {format_skipped(skipped)}", file=sys.stderr)


def _read_ids(file: Path | None) -> tuple[str, ...] | None:
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")  # Excel and Notepad write a byte-order mark
        ids = tuple(sorted({line.strip() for line in text.splitlines()} - {""}))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--ids {file}: cannot be read ({error})", "give a text file with one id per line"
        ) from error
    if not ids:
        raise UserError(f"--ids {file}: lists no id", "give a text file with one id per line")
    return ids


@data_group.command("audit")
@click.argument("source")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder for the results.")
@classes_option
@labels_option
@split_by_option
@click.option("--backbone", default="efficientnet_lite0", show_default=True, help="Backbone of the features.")
@click.option("--image-size", default=224, show_default=True, type=click.IntRange(32, 1024))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def audit_labels(
    source: str,
    out: Path,
    classes: str | None,
    labels: Any,
    split_by: Any,
    backbone: str,
    image_size: int,
    as_json: bool,
) -> None:
    """Find probably wrong labels in SOURCE (train and validation; the test split is not read)."""
    from dataclasses import asdict

    from binsweep.data.manifest import load_manifest
    from binsweep.data.output_path import require_folder
    from binsweep.data.split import Split
    from binsweep.models.labelling import labelling_of
    from binsweep.models.pretrained import check_weights
    from binsweep.search.spec.backbone_checks import backbone_problems, is_backbone, near_backbones
    from binsweep.search.workflows.label_audit import effect_lines, run_audit

    if not is_backbone(backbone):
        raise UserError(f"--backbone {backbone}: unknown", near_backbones(backbone))
    for problem in backbone_problems("--backbone", "--image-size", [backbone], [image_size]):
        raise UserError(f"{problem.path} {problem.value}: {problem.rule}", problem.hint)
    check_weights(backbone, "imagenet")
    require_folder(out)
    wanted = parse_classes(classes) if classes else None
    with ProgressMeter() as meter:
        progress = partial(meter, "reading")
        manifest = load_manifest(source, wanted, Split(by=split_by), home_folder(), progress, labels=labels)
    try:
        doubts, effect = run_audit(manifest, home_folder(), out, image_size, backbone)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}", "give a writable folder") from error
    issues = [doubt for doubt in doubts if doubt.issue]
    if as_json:
        print(
            json.dumps(
                {"photos": len(doubts), "issues": len(issues), "effect": asdict(effect), "out": str(out)}
            )
        )
        return
    print(f"{len(issues):,} of {len(doubts):,} labels are doubtful; the most doubtful:")
    for doubt in issues[:10]:
        suggestion = f"the model says {doubt.suggested} ({doubt.p_suggested:.0%})"
        print(f"  {doubt.id} ({doubt.split}): label {doubt.label}, {suggestion}")
    print("\n".join(effect_lines(effect, labelling_of(manifest.classes))))
    print(f"{out / 'doubtful.jpg'}, {out / 'audit.csv'}\n{out / 'exclude.csv'}: for data.exclude of a sweep")
