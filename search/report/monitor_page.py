"""The page of `binsweep monitor`: what a served version sees against its validation photos, in one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from binsweep.search.report.axis import Axis
from binsweep.search.report.page import write_page_file
from binsweep.search.report.svg_charts import BLUE, GREY, ORANGE, RED, Chart
from binsweep.tracking.evaluation.report import format_score
from binsweep.tracking.monitoring.drift import LARGE, SOME, table_of
from binsweep.tracking.monitoring.drift_test import ALPHA
from binsweep.tracking.monitoring.figures import FIGURES
from binsweep.tracking.monitoring.store import BLOCK_PHOTOS
from binsweep.tracking.monitoring.summary import FigureDrift, LiveScores, OddPhoto, Summary
from binsweep.tracking.monitoring.truths import wilson_interval

TEMPLATE = Path(__file__).with_name("monitor.html.jinja")
MIN_COURSE_BLOCKS = 3  # of a chart over time
MAX_GROUPS = 16  # pairs of bars of a chart
WIDTH, HEIGHT, LEFT, FLOOR, TOP = 560, 220, 44, 186, 12


def write_page(
    page: Path, model: str, version: str, summary: Summary, tags: Mapping[str, str], notes: Sequence[str]
) -> None:
    """Write the page atomically. Raises UserError if the file cannot be written."""
    write_page_file(page, TEMPLATE, _contents(model, version, summary, tags, notes))


def verdict(summary: Summary) -> str:
    """Whether there is drift, in one line."""
    if not summary.figures:
        return "nothing to compare with"
    if drifting := summary.drifting:
        which = ", ".join(
            f"{figure.name} (PSI {figure.index:.2f})" if figure.index is not None else figure.name
            for figure in drifting
        )
        return f"drift: {which}"
    if summary.measured < BLOCK_PHOTOS:
        return f"no verdict yet: {summary.measured} photos measured, the first look is after {BLOCK_PHOTOS}"
    return "no drift found"


def format_time(seconds: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_latency(summary: Summary) -> str:
    """The latency of requests as upper limits, because it is counted in bins."""
    return ", ".join(
        f"p{round(100 * share)} at most {seconds:g} s" for share, seconds in summary.latency.items()
    )


def format_share(part: int, whole: int) -> str:
    """A share of photos with its 95 % interval."""
    low, high = wilson_interval(part, whole)
    return f"{part:,} of {whole:,}" + (f", {part / whole:.1%} ({low:.1%} to {high:.1%})" if whole else "")


def score_rows(live: LiveScores, tags: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Name, live value with interval, and value on the test split when it was judged ("" if not known)."""
    rows = []
    for key, name in live.labelling.score_names.items():
        if key not in live.scores:
            continue
        low, high = (format_score(key, end) for end in live.intervals[key])
        judged = tags.get(f"test.{key}", "")
        text = f"{format_score(key, live.scores[key])} ({low} to {high})"
        rows.append((name, text, format_score(key, float(judged)) if judged else ""))
    return rows


def odd_row(odd: OddPhoto) -> dict[str, Any]:
    """An odd photo as plain values; what was not measured is left out."""
    photo, stats = odd.photo, odd.photo.stats
    sizes = {} if stats is None else {"width": stats.width, "height": stats.height}
    looks = {} if stats is None else {"brightness": stats.brightness, "sharpness": stats.sharpness}
    return {
        "sha256": photo.sha256.hex(),
        "at": format_time(photo.at),
        "answer": json.loads(photo.answer),
        "confidence": photo.confidence,
        "bytes": photo.bytes,
        **looks,
        **sizes,
        "unlike": odd.figure,
    }


def _contents(
    model: str, version: str, summary: Summary, tags: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    facts = [
        ("watched", f"{format_time(summary.began)} to {format_time(summary.ended)}"),
        ("requests", ", ".join(f"{times:,} with {status}" for status, times in summary.requests.items())),
        ("latency", format_latency(summary) or "no request yet"),
        ("photos answered", f"{summary.answered:,}, of which {summary.measured:,} were measured"),
        ("photos refused", format_share(summary.refused, summary.answered + summary.refused)),
    ]
    if summary.missed:
        facts.append(("photos missed", f"{summary.missed:,}: the server was too busy"))
    if summary.reference_photos:
        facts.append(("compared with", f"{summary.reference_photos:,} validation photos"))
    return {
        "model": model,
        "version": version,
        "verdict": verdict(summary),
        "bad": bool(summary.drifting),
        "facts": facts,
        "notes": notes,
        "figures": [_figure(figure) for figure in summary.figures],
        "limits": (SOME, LARGE),
        "alpha": ALPHA,
        "block": BLOCK_PHOTOS,
        "scores": [] if summary.live is None else score_rows(summary.live, tags),
        "live": summary.live,
        "odd": [(odd_row(odd), _picture(odd)) for odd in summary.examples],
        "pictures": any(odd.thumbnail for odd in summary.examples),
    }


def _picture(odd: OddPhoto) -> str:
    return "" if odd.thumbnail is None else base64.b64encode(odd.thumbnail).decode()


def _figure(figure: FigureDrift) -> dict[str, Any]:
    return {
        "drift": figure,
        "index": "" if figure.index is None else f"{figure.index:.3f}",
        "p": "no look yet" if figure.test.look is None else f"{figure.test.p:.2g}",
        "first": "" if figure.first_at is None else format_time(figure.first_at),
        "bars": _bars(figure),
        "course": _course(figure),
    }


def _bars(figure: FigureDrift) -> str:
    """The shares of validation photos (grey) and of the last photos (blue), side by side."""
    table, names = table_of(figure.name, [figure.reference, figure.seen])
    texts = [str(json.loads(name)) for name in names]
    if figure.name in FIGURES:
        table, texts = _merge(table, FIGURES[figure.name].edges)
    elif len(names) > MAX_GROUPS:
        rest = np.argsort(-table.sum(axis=0))[MAX_GROUPS - 1 :]
        table = np.column_stack([np.delete(table, rest, axis=1), table[:, rest].sum(axis=1)])
        texts = [*np.delete(np.array(texts), rest).tolist(), "others"]
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    top = max(float(shares.max()), 0.01)
    step = (WIDTH - LEFT - 10) / len(texts)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><g class="grid">']
    for share in (0.0, top / 2, top):
        y = FLOOR - share / top * (FLOOR - TOP)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 10}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    parts.append("</g>")
    for place, text in enumerate(texts):
        x = LEFT + place * step
        for offset, row, colour in ((0.1, 0, GREY), (0.5, 1, BLUE)):
            height = shares[row, place] / top * (FLOOR - TOP)
            parts.append(
                f'<rect x="{x + offset * step:.1f}" y="{FLOOR - height:.1f}" width="{0.4 * step:.1f}" '
                f'height="{height:.1f}" fill="{colour}"><title>{escape(text)}: {shares[row, place]:.1%}</title></rect>'
            )
        parts.append(
            f'<text x="{x + step / 2:.1f}" y="{FLOOR + 14}" text-anchor="middle">{escape(text[:9])}</text>'
        )
    return "".join([*parts, "</svg>"])


def _merge(table: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The bins that have photos, neighbours merged to at most MAX_GROUPS, and the lower edge of each."""
    there = np.flatnonzero(table.sum(axis=0))
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, 0)
    each = -(-(last - first + 1) // MAX_GROUPS)
    starts = list(range(first, last + 1, each))
    merged = np.add.reduceat(table[:, : last + 1], starts, axis=1)
    return merged, ["less" if start == 0 else _short(edges[start - 1]) for start in starts]


def _short(edge: float) -> str:
    if edge >= 1e4:
        return f"{edge / 1e6:.3g}M" if edge >= 1e6 else f"{edge / 1e3:.3g}k"
    return f"{edge:.0f}" if edge >= 10 else f"{edge:.4g}"


def _course(figure: FigureDrift) -> str:
    """The index of each block, with the limits of its usual reading."""
    if len(figure.course) < MIN_COURSE_BLOCKS:
        return ""
    values = [index for _, index in figure.course]
    chart = Chart(
        Axis(1, len(values)),
        Axis(0, max(*values, LARGE * 1.2)),
        ("block of photos", "PSI"),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
    )
    for limit, colour in ((SOME, ORANGE), (LARGE, RED)):
        chart.line([(1, limit), (len(values), limit)], colour, width=1)
    chart.line(list(enumerate(values, start=1)), BLUE, width=2)
    return chart.svg()
