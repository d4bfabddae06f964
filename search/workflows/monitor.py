"""Look at what a served version has seen: its drift, its oddest photos, and its accuracy on photos with true labels."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from binsweep.data.errors import UserError, first_line
from binsweep.search.report.monitor_page import verdict, write_page
from binsweep.search.terminal.progress import ProgressBar
from binsweep.search.workflows.notify import drifting, notify
from binsweep.tracking.evaluation.validation_reference import late_reference
from binsweep.tracking.monitoring.note import VERDICT, log_note
from binsweep.tracking.monitoring.reference import load_reference
from binsweep.tracking.monitoring.store import WatchStore, store_path
from binsweep.tracking.monitoring.summary import Summary, summarize
from binsweep.tracking.monitoring.truths import read_truths
from binsweep.tracking.serving.model_server import registered_version, require_photos


@dataclass(frozen=True)
class Monitoring:
    """What was found, its page, and what qualifies it. `truths` are the rows of --truths, of which `known` are of
    photos that were answered."""

    model: str
    version: str
    summary: Summary
    tags: Mapping[str, str]  # of the version
    page: Path
    notes: list[str]
    truths: int = 0
    known: int = 0


def monitor(
    model_uri: str, home: Path, tracking_uri: str, truths: Path | None = None, out: Path | None = None
) -> Monitoring:
    """Summarize what the servers of this home have seen of a registered version, after taking true labels from a file.

    Writes the page, next to the store unless `out` says where, and a note into MLflow: tags of the version, and the
    page in its run. A version without a reference gets one, if its data are still there. Raises UserError for a model
    that is not registered or was never watched, and for a file of true labels with mistakes.
    """
    found = registered_version(model_uri, tracking_uri)
    require_photos(found)
    name, version = found.name, str(found.version)
    store = open_store(home, name, version)
    notes: list[str] = []
    rows = [] if truths is None else read_truths(truths, _answer_kind(store, version))
    known = store.add_truths(rows) if rows else 0
    reference = load_reference(tracking_uri, found)
    if reference is None:
        with ProgressBar("reading the data") as progress:
            reference, problem = late_reference(tracking_uri, found, home, progress)
        if problem:
            notes.append(f"nothing to compare with: {problem}")
    summary = summarize(store, version, reference)
    page = out or store.path.with_name(f"monitor-{version}.html")
    write_page(page, name, version, summary, found.tags, notes)
    told = found.tags.get(VERDICT, "")
    log_note(tracking_uri, found, page, verdict(summary), summary, notes)
    if has_new_drift(summary, told):
        notify(drifting(name, version, verdict(summary), page), None, home)
    return Monitoring(name, version, summary, found.tags, page, notes, len(rows), known)


def has_new_drift(summary: Summary, told: str) -> bool:
    """Whether a figure drifts that the verdict of an earlier look does not name."""
    return any(figure.name not in told for figure in summary.drifting)


def open_store(home: Path, name: str, version: str) -> WatchStore:
    """The counts of a model's servers. Raises UserError if there are none, or none of this version."""
    path = store_path(home, name)
    hint = "`binsweep serve` counts what it sees, in the home (BINSWEEP_HOME) in which it runs"
    if not path.exists():
        raise UserError(f"no server of {name} has counted anything in {home}", hint)
    try:
        store = WatchStore(path)
        watched = store.versions()
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}", "move it away to begin anew"
        ) from error
    if version not in watched:
        others = f"watched: {', '.join(f'{name}/{one}' for one in watched)}" if watched else hint
        raise UserError(f"version {version} of {name} was not watched in {home}", others)
    return store


def _answer_kind(store: WatchStore, version: str) -> str | None:
    """What the version answers with, by its last photo; None if there is none."""
    photos = store.photos(version)[-1:]
    return next(("label" if isinstance(json.loads(one.answer), str) else "count" for one in photos), None)
