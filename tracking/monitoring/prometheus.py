"""What was counted in Prometheus' text format.

Source: "Exposition formats", the text format 0.0.4 (prometheus.io). Written here, because the model server's container
has no client library, and the counts are in the store, where the servers of several versions and restarts have added to
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from binsweep.tracking.monitoring.drift import (
    RECENT_BLOCKS,
    compared_figures,
    population_stability_index,
    summed,
)
from binsweep.tracking.monitoring.figures import ANSWER, FIGURES, LATENCY, Figure
from binsweep.tracking.monitoring.store import Counts
from binsweep.tracking.monitoring.watcher import MISSED, PHOTOS, REFUSED, REQUESTS, SECONDS, Watcher

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_BUCKETS = 20  # of a histogram: each is a time series
Bins = Mapping[str, tuple[int, float]]


def metrics_text(watcher: Watcher, model: str) -> str:
    """Everything that was counted of the version that `watcher` watches, with its drift where it has a reference."""
    store, version = watcher.store, watcher.version
    totals = store.totals(version)
    base = {"model": model, "version": version}
    photos = totals.get(PHOTOS, {})
    lines = [
        *_counter("requests", "Requests to /invocations by status", base, "code", totals.get(REQUESTS, {})),
        *_histogram("request_seconds", LATENCY, base, totals.get(SECONDS, {})),
        *_counter(
            "photos",
            "Photos: answered, refused with a reason (error), measured, or answered and not counted (missed)",
            base,
            "state",
            {"answered": (0, 0.0), REFUSED: (0, 0.0), MISSED: (0, 0.0), **photos},
        ),
        *_counter(
            "answers",
            "Answers by label",
            base,
            "answer",
            {str(json.loads(label)): cell for label, cell in totals.get(ANSWER, {}).items()},
        ),
    ]
    for name, figure in FIGURES.items():
        lines += _histogram(f"photo_{name}", figure, base, totals.get(name, {}))
    if watcher.reference is not None:
        lines += _drift_lines(watcher, watcher.reference.counts, base)
    judged = store.judged(version)
    lines += _gauge(
        "feedback_photos", "Of the last photos, those whose true label is known", base, len(judged)
    )
    right = sum(answer == truth for answer, truth in judged)
    lines += _gauge("feedback_right_photos", "Of these, those that were answered right", base, right)
    lines += _gauge("watch_failures", "Times that counting failed in this server", base, watcher.failures)
    if watcher.failure:
        lines.append(f"# the last failure: {watcher.failure}")
    return "\n".join(lines) + "\n"


def _drift_lines(watcher: Watcher, reference: Counts, base: Mapping[str, str]) -> list[str]:
    recent = summed(watcher.store.blocks(watcher.version, RECENT_BLOCKS))
    lines = _header(
        "population_stability_index",
        "gauge",
        f"Of the last photos (up to {RECENT_BLOCKS} blocks) against the validation photos; 0.1 is some, 0.25 large",
    )
    for name in compared_figures(reference):
        index = population_stability_index(name, reference[name], recent.get(name, {}))
        if index is not None:
            lines.append(_sample("population_stability_index", {**base, "figure": name}, index))
    return lines


def _header(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP binsweep_{name} {text}", f"# TYPE binsweep_{name} {kind}"]


def _gauge(name: str, text: str, base: Mapping[str, str], value: float) -> list[str]:
    return [*_header(name, "gauge", text), _sample(name, base, value)]


def _counter(name: str, text: str, base: Mapping[str, str], label: str, cells: Bins) -> list[str]:
    name = f"{name}_total"
    samples = [_sample(name, {**base, label: place}, times) for place, (times, _) in sorted(cells.items())]
    return [*_header(name, "counter", text), *samples]


def _histogram(name: str, figure: Figure, base: Mapping[str, str], cells: Bins) -> list[str]:
    """Cumulative counts below some of the figure's edges."""
    edges = figure.edges.tolist()
    step = -(-len(edges) // _MAX_BUCKETS)
    lines = _header(name, "histogram", figure.title[0].upper() + figure.title[1:])
    for place in range(step - 1, len(edges), step):
        below = sum(times for at, (times, _) in cells.items() if int(at) <= place)
        lines.append(_sample(f"{name}_bucket", {**base, "le": f"{edges[place]:.6g}"}, below))
    every = sum(times for times, _ in cells.values())
    lines.append(_sample(f"{name}_bucket", {**base, "le": "+Inf"}, every))
    lines.append(_sample(f"{name}_sum", base, sum(total for _, total in cells.values())))
    return [*lines, _sample(f"{name}_count", base, every)]


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    text = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
    return f"binsweep_{name}{{{text}}} {value:.10g}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
