"""Replaces what MLflow's servers and their databases do not accept in names and texts."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MAX_PARAM_LENGTH, MAX_TAG_LENGTH, MAX_NAME_LENGTH = 6000, 8000, 250  # characters; the server's limits


def require_key(key: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,200}", key, re.ASCII):
        raise ValueError(f"key: must be 1 to 200 letters, digits, '_', '.', '-'; got {key!r}")
    return key


def sanitize_text(value: Any, longest: int) -> str:
    """`value` as text that every database accepts: no NUL, no lone surrogate, at most `longest` characters."""
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()[:longest]


@lru_cache(maxsize=4096)  # the same few names recur in every epoch
def sanitize_name(name: str) -> str:
    """`name` as MLflow accepts it: letters, digits and `_-. :/`, and as a path already normalised."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    return (
        "/".join(part for part in parts if part not in ("", ".", ".."))[:MAX_NAME_LENGTH].rstrip("/") or "_"
    )


def sanitize_params(values: Mapping[str, Any]) -> dict[str, str]:
    return {sanitize_name(name): sanitize_text(value, MAX_PARAM_LENGTH) for name, value in values.items()}


def sanitize_tags(values: Mapping[str, str]) -> dict[str, str]:
    return {sanitize_name(name): sanitize_text(value, MAX_TAG_LENGTH) for name, value in values.items()}
