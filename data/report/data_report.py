"""The report of a data set: an HTML page, and the same facts as JSON."""

import base64
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binsweep.data.atomic_write import write_bytes
from binsweep.data.decode import ImageError, decode
from binsweep.data.labels import Label, sorted_labels
from binsweep.data.manifest import Item, Manifest
from binsweep.data.near_duplicates import components, near_duplicate_pairs
from binsweep.data.parallel import Progress
from binsweep.data.report.image_stats import ImageStats, measure_image
from binsweep.data.report.page import render
from binsweep.data.sources.metadata import parse_metadata
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files
from binsweep.data.split import SPLITS

_HISTOGRAM_BINS = 24
_MAX_TABLE_ROWS = 200  # rows of a table on the page; the JSON has all
_SHEET_IMAGES, _THUMBNAIL_SIZE = 12, 96
_MAX_SHEETS = 50  # classes with a contact sheet


@dataclass(frozen=True)
class DataReport:
    """`facts` are JSON values; `sheets` are contact sheets, a JPEG for each of the first classes."""

    facts: dict[str, Any]
    sheets: dict[Label, bytes]


def build_data_report(manifest: Manifest, home: Path, progress: Progress | None = None) -> DataReport:
    """Measure every image of a manifest; measurements are cached under `home` until a file changes."""
    items = manifest.items
    root = Path(os.path.commonpath([item.path.parent for item in items]))
    found = scan_files([item.path for item in items], measure_image, ScanCache(root, home, "looks"), progress)
    measured = [
        (i, ImageStats(**json.loads(str(v)))) for i, (v, _) in zip(items, found, strict=True) if v is not None
    ]
    stats = [s for _, s in measured]
    exact = _clusters(_equal_pairs(item.sha256 for item in items), items)
    examined = [item for item, _ in measured]
    near = [
        c for c in _clusters(near_duplicate_pairs([s.hash for s in stats]), examined) if not _is_one_file(c)
    ]
    in_split = {name: manifest.class_counts(name) for name in SPLITS}
    counts = {str(label): {n: in_split[n][label] for n in SPLITS} for label in manifest.classes}
    totals = [total for row in counts.values() if (total := sum(row.values()))]
    sizes = Counter(f"{s.width} x {s.height}" for s in stats)
    facts = {
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
        "images": len(items),
        "classes": counts,
        "train_also": {str(label): n for label, n in manifest.other_counts().items()},
        "imbalance": round(max(totals) / min(totals), 2),
        "sizes": dict(sizes.most_common()),
        "bytes": _distribution([s.bytes for s in stats]),
        "brightness": _distribution([s.brightness for s in stats]),
        "sharpness": _distribution([s.sharpness for s in stats]),
        "darkest": _lowest(measured, "brightness"),
        "most_blurred": _lowest(measured, "sharpness"),
        "exact_duplicates": [_cluster(cluster) for cluster in exact],
        "near_duplicates": [_cluster(cluster) for cluster in near],
        "across_splits": sum(_cluster(c)["across_splits"] for c in [*exact, *near]),
        "unreadable": [{"id": skipped.id, "reason": skipped.reason} for skipped in manifest.skipped],
    }
    if manifest.kind == "counts":
        facts["label_disagreements"] = _disagreements(manifest, root, home)
    shown: dict[Label, list[Item]] = {label: [] for label in sorted_labels({item.label for item in items})}
    for item in items:
        shown[item.label].append(item)
    return DataReport(facts, {label: _sheet(some) for label, some in list(shown.items())[:_MAX_SHEETS]})


def write_report(report: DataReport, page: Path) -> tuple[Path, Path]:
    """Write the self-contained page, and the facts next to it as .json; returns both paths."""
    sheets = {str(label): base64.b64encode(data).decode() for label, data in report.sheets.items()}
    page.parent.mkdir(parents=True, exist_ok=True)
    facts = page.with_suffix(".json")
    write_bytes(page, render(report.facts, sheets, _MAX_TABLE_ROWS).encode(), durable=False)
    write_bytes(facts, json.dumps(report.facts, indent=1).encode(), durable=False)
    return page, facts


def _distribution(values: Sequence[float]) -> dict[str, Any]:
    """Quantiles, and a histogram from the 0.5 % to the 99.5 % quantile; its end bins include the values outside."""
    array = np.asarray(values, np.float64)
    low, high = np.quantile(array, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, _HISTOGRAM_BINS + 1)
    heights, _ = np.histogram(array.clip(edges[0], edges[-1]), edges)
    names = ("min", "median", "max")
    quantiles = dict(zip(names, np.quantile(array, [0, 0.5, 1]).round(1).tolist(), strict=True))
    return {
        **quantiles,
        "from": round(float(edges[0]), 1),
        "to": round(float(edges[-1]), 1),
        "counts": heights.tolist(),
    }


def _lowest(measured: Sequence[tuple[Item, ImageStats]], name: str, count: int = 10) -> list[dict[str, Any]]:
    ranked = sorted(measured, key=lambda pair: (getattr(pair[1], name), pair[0].id))[:count]
    return [{"id": item.id, "label": item.label, name: getattr(s, name)} for item, s in ranked]


def _equal_pairs(keys: Iterable[str]) -> np.ndarray:
    first: dict[str, int] = {}
    pairs = [(first.setdefault(key, index), index) for index, key in enumerate(keys)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _clusters(pairs: np.ndarray, items: Sequence[Item]) -> list[list[Item]]:
    """The connected groups of at least two items."""
    members: dict[int, list[Item]] = defaultdict(list)
    joined = set(pairs.ravel().tolist())
    for index, group in enumerate(components(len(items), pairs).tolist()):
        if index in joined:
            members[group].append(items[index])
    return list(members.values())


def _is_one_file(cluster: Sequence[Item]) -> bool:
    return len({item.sha256 for item in cluster}) == 1


def _cluster(cluster: Sequence[Item]) -> dict[str, Any]:
    splits, labels = {item.split for item in cluster}, {item.label for item in cluster}
    return {
        "ids": [item.id for item in cluster],
        "labels": sorted_labels(labels),
        "splits": sorted(splits),
        "across_splits": len(splits) > 1,
    }


def _disagreements(manifest: Manifest, root: Path, home: Path) -> list[dict[str, str]]:
    """Labels that contradict the quantities in the metadata, which only the bucket's layout has."""
    folder = root.parent / "metadata"
    if root.name != "bin-images" or not folder.is_dir():
        return []
    documents = [folder / f"{item.path.stem}.json" for item in manifest.items]
    cache = ScanCache(folder, home, "disagreements")
    found = zip(manifest.items, scan_files(documents, _disagreement, cache), strict=True)
    return [{"id": item.id, "reason": str(reason)} for item, (reason, _) in found if reason]


def _disagreement(document: Path) -> ScanResult:
    return parse_metadata(document.read_bytes()).disagreement, ""


def _sheet(items: Sequence[Item]) -> bytes:
    """A contact sheet of images of a class, evenly spaced in its ids, as JPEG."""
    chosen = items[:: max(1, len(items) // _SHEET_IMAGES)][:_SHEET_IMAGES]
    sheet = Image.new("RGB", (_THUMBNAIL_SIZE * len(chosen), _THUMBNAIL_SIZE))
    for position, item in enumerate(chosen):
        try:
            sheet.paste(Image.fromarray(decode(item.path, _THUMBNAIL_SIZE)), (position * _THUMBNAIL_SIZE, 0))
        except ImageError:  # the file has changed since: its position stays black
            continue
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=80)
    return stream.getvalue()
