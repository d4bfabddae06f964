"""The data of a spec: its source, less what `data.exclude` names."""

from __future__ import annotations

import csv
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.parallel import Progress
from binsweep.search.spec.parser import SweepSpec


def spec_manifest(spec: SweepSpec, home: Path, progress: Progress | None = None) -> Manifest:
    """Read a spec's source, and leave the photos that `data.exclude` names out of the train split.

    Raises UserError for what `load_manifest` does, and for a file that cannot be read or names no photo of the source.
    """
    manifest = load_manifest(spec.data.source, spec.data.classes, spec.split, home, progress)
    if spec.data.exclude is None:
        return manifest
    ids = _read_ids(Path(spec.data.exclude))
    if not ids & {item.id for item in manifest.items}:
        raise UserError(
            f"data.exclude: {spec.data.exclude} names no photo of {spec.data.source}",
            "its column `id` must hold ids as `binsweep data audit` writes them",
        )
    return manifest.without(ids, spec.data.exclude)


def _read_ids(file: Path) -> set[str]:
    try:
        # As Excel saves it, too: with a byte-order mark, and where commas divide decimals, with semicolons.
        lines = file.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        header = lines[0] if lines else ""
        rows = list(csv.DictReader(lines, delimiter=";" if ";" in header and "," not in header else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"data.exclude: cannot read {file} ({error})", "a CSV file with a column `id`"
        ) from error
    if not rows or "id" not in rows[0]:
        raise UserError(f"data.exclude: {file} has no column `id`", "as `binsweep data audit` writes it")
    return {row["id"] for row in rows if row["id"]}
