"""Rollback: the champion before the present one becomes champion again."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError
from binsweep.tracking.promotion.lock import promotion_lock
from binsweep.tracking.promotion.version_tags import (
    CHAMPION_AGAIN,
    CHAMPION_BEFORE,
    DECISION,
    REASON,
    timestamp,
)
from binsweep.tracking.registry.versions import CHAMPION, champion_of
from binsweep.tracking.runlog.sender import user_name


def rollback(tracking_uri: str, model_name: str, reason: str, home: Path | None = None) -> tuple[str, str]:
    """Move the alias `champion` back to the champion before; returns the versions (left, restored).

    Both versions keep a record of it. Waits for a promotion of the same `home` that is just moving the alias. Raises
    UserError if there is no champion, or none before it.
    """
    client = MlflowClient(tracking_uri)
    with promotion_lock(home):
        champion, restored = _champion_and_before(client, tracking_uri, model_name)
        client.set_registered_model_alias(model_name, CHAMPION, restored)
    record = f"{timestamp()} by {user_name()}: {reason}"
    client.set_model_version_tag(model_name, champion, DECISION, "rolled back")
    client.set_model_version_tag(model_name, champion, REASON, record)
    client.set_model_version_tag(model_name, restored, CHAMPION_AGAIN, f"after version {champion}, {record}")
    return champion, restored


def _champion_and_before(client: MlflowClient, tracking_uri: str, model_name: str) -> tuple[str, str]:
    """The champion's version and the one that it replaced, which must still exist."""
    champion = champion_of(tracking_uri, model_name)
    if champion is None:
        raise UserError(f"model {model_name!r} has no champion", "`binsweep promote SWEEP` makes one")
    before = champion.tags.get(CHAMPION_BEFORE)
    if before is None:
        raise UserError(
            f"version {champion.version} of {model_name!r} followed no other champion",
            "there is no version to roll back to",
        )
    try:
        client.get_model_version(model_name, before)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"version {before} of {model_name!r}, which version {champion.version} followed, was deleted",
            "set the alias `champion` in MLflow to the version that you want",
        ) from error
    return str(champion.version), before
