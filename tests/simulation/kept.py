"""What libraries make anew for each study and is always the same: kept from schedule to schedule, as it takes a third
of the time."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy
from optuna.storages._rdb.storage import _VersionManager

_create_engine = sqlalchemy.engine.create_engine
_find_head_version = _VersionManager.get_head_version
_head: list[str] = []


@functools.cache
def _first_engine() -> sqlalchemy.engine.Engine:
    engine = _create_engine("sqlite://")
    engine.connect().close()  # only a connection tells the dialect what it is for
    return engine


def create_engine(*words: Any, **options: Any) -> sqlalchemy.engine.Engine:
    """An engine that knows the statements which others have compiled; a dialect is part of their keys."""
    engine, first = _create_engine(*words, **options), _first_engine()
    engine.dialect, engine._compiled_cache = first.dialect, first._compiled_cache
    return engine


def head_version(manager: _VersionManager) -> str:
    """The newest version of Optuna's tables, for which it reads all its migrations."""
    if not _head:
        _head.append(_find_head_version(manager))
    return _head[0]
