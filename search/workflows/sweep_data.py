"""The data of a spec: its source without the photos in `data.exclude`."""

from __future__ import annotations

import csv
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.parallel import Progress
from binsweep.search.spec.sweep_spec import PhotoSpec


def spec_manifest(spec: PhotoSpec, home: Path, progress: Progress | None = None) -> Manifest:
    """Read a spec's source, without the train photos that `data.exclude` names.

    Raises UserError like `load_manifest`, and if the file cannot be read or names no photo of the source.
    """
    manifest = load_manifest(
        spec.data.source,
        spec.data.classes,
        spec.split,
        home,
        progress,
        labels=spec.data.labels,
        train_also=spec.data.train_also,
    )
    if spec.data.exclude is None:
        return manifest
    ids = _read_ids(Path(spec.data.exclude))
    if not ids & {item.id for item in manifest.items}:
        raise UserError(
            f"data.exclude: {spec.data.exclude} names no photo of {spec.data.source}",
            "its column `id` must hold ids of photos, as written by `binsweep data audit`",
        )
    return manifest.without(ids, spec.data.exclude)


def _read_ids(file: Path) -> set[str]:
    try:
        # Also as Excel saves it: with a byte-order mark and, where the decimal separator is a comma, semicolons.
        lines = file.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        header = lines[0] if lines else ""
        rows = list(csv.DictReader(lines, delimiter=";" if ";" in header and "," not in header else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"data.exclude: cannot read {file} ({error})", "give a CSV file with a column `id`"
        ) from error
    if not rows or "id" not in rows[0]:
        raise UserError(
            f"data.exclude: {file} has no column `id`", "give a file that `binsweep data audit` wrote"
        )
    return {row["id"] for row in rows if row["id"]}
