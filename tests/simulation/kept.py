"""What libraries make anew for each study and is always the same: kept from schedule to schedule, as it takes a third
of the time."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy
from optuna.storages._rdb.storage import _VersionManager

_create_engine = sqlalchemy.engine.create_engine
_create_script = _VersionManager._create_alembic_script
_script: list[Any] = []


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


def migrations(manager: _VersionManager) -> Any:
    """The migrations of Optuna's tables, all of which it imports to tell the newest."""
    if not _script:
        _script.append(_create_script(manager))
    return _script[0]
