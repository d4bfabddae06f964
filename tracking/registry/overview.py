"""All registered models at a glance: their versions, which is champion, and what was decided about each."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from binsweep.tracking.registry.versions import versions_of

MAX_MODELS = 200


def registered_models(tracking_uri: str) -> list[dict[str, Any]]:
    """Every registered model by name: `aliases` with the version of each, and its `versions`, the newest first, with
    the tags that a promotion has set."""
    client = MlflowClient(tracking_uri)
    found = []
    for model in client.search_registered_models(max_results=MAX_MODELS, order_by=["name ASC"]):
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        versions = sorted(versions_of(tracking_uri, model.name), key=lambda one: -int(one.version))
        found.append(
            {
                "name": model.name,
                "aliases": aliases,
                "versions": [
                    {
                        "version": str(one.version),
                        "aliases": sorted(name for name, of in aliases.items() if of == str(one.version)),
                        "created": one.creation_timestamp / 1000,
                        "run": one.run_id,
                        "tags": dict(one.tags),
                    }
                    for one in versions
                ],
            }
        )
    return found
