"""Makes names and texts such that every MLflow server and its database take them."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

LONGEST_PARAM, LONGEST_TAG, LONGEST_NAME = 6000, 8000, 250  # characters; the server's limits


def legal_key(key: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,200}", key, re.ASCII):
        raise ValueError(f"key: must be 1 to 200 letters, digits, '_', '.', '-'; got {key!r}")
    return key


def legal_text(value: Any, longest: int) -> str:
    """`value` as text that every database takes: no NUL, no half of a surrogate pair, at most `longest`."""
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()[:longest]


@lru_cache(maxsize=4096)  # the same few names come every epoch
def legal_name(name: str) -> str:
    """A name MLflow takes: letters, digits and `_-. :/`, and no path that means another one."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:LONGEST_NAME].rstrip("/") or "_"


def legal_params(values: Mapping[str, Any]) -> dict[str, str]:
    return {legal_name(name): legal_text(value, LONGEST_PARAM) for name, value in values.items()}


def legal_tags(values: Mapping[str, str]) -> dict[str, str]:
    return {legal_name(name): legal_text(value, LONGEST_TAG) for name, value in values.items()}
