"""Return to the champion before, and tell those who want to hear of it."""

from __future__ import annotations

from pathlib import Path

from binsweep.search.workflows.notify import notify, rolled_back
from binsweep.tracking.promotion.rollback import rollback


def roll_back(model: str, reason: str, home: Path, tracking_uri: str) -> str:
    """Make the previous champion of a model champion again; returns what has happened, as a sentence.

    Raises UserError if there is no champion, or none before it.
    """
    left, back = rollback(tracking_uri, model, reason, home)
    notify(rolled_back(model, back, reason), None, home)
    return f"{model}: version {back} is champion again, instead of version {left}"
