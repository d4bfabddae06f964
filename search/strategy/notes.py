"""The reasons of a trial as its note in Optuna's own dashboard (`optuna-dashboard`).

The dashboard reads notes from system attributes of the study, by version: 1 is what a sweep writes, and one that a
person has edited has a higher one and stays.
"""

import json
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import StudySystemAttributeModel
from optuna.trial import FrozenTrial
from sqlalchemy.dialects.sqlite import insert

from binsweep.search.strategy.attributes import (
    BEST_EPOCH_ATTR,
    ENDED_ATTR,
    LAST_EPOCH_ATTR,
    PAUSED_ATTR,
    PRIOR_ATTR,
    SUGGESTED_ATTR,
)

SHOWN = (SUGGESTED_ATTR, PAUSED_ATTR, LAST_EPOCH_ATTR, ENDED_ATTR)  # whose change changes a note
MAX_LENGTH = 2045  # of one attribute of the dashboard's
_TABLE = StudySystemAttributeModel.__table__
_INSERT = insert(_TABLE)
_WRITE = _INSERT.on_conflict_do_update(
    index_elements=["study_id", "key"], set_={"value_json": _INSERT.excluded.value_json}
)


def note_of(trial: FrozenTrial) -> str:
    """The reasons that are stored with a trial, in Markdown."""
    known = trial.user_attrs
    lines = [f"**Tried because**: {known[SUGGESTED_ATTR]}"] if known.get(SUGGESTED_ATTR) else []
    if PRIOR_ATTR in known:
        lines.append(f"**From an earlier sweep**: {known[PRIOR_ATTR]}")
    if known.get(LAST_EPOCH_ATTR):
        lines.append(f"**Shortened**: it ends after epoch {known[LAST_EPOCH_ATTR]}")
    if ENDED_ATTR in known:
        best = f" (best epoch: {known[BEST_EPOCH_ATTR]})" if known.get(BEST_EPOCH_ATTR) else ""
        lines.append(f"**Ended because**: {known[ENDED_ATTR]}{best}")
    elif known.get(PAUSED_ATTR):
        lines.append(
            f"**Paused** after epoch {known[PAUSED_ATTR]}; it goes on if it is the most promising one"
        )
    return "\n\n".join(lines)[:MAX_LENGTH]


def write_note(storage: RDBStorage, study_id: int, trial_id: int, trial: FrozenTrial) -> None:
    """Store a trial's note in one transaction, unless a person has edited it."""
    version, text = f"dashboard:{trial_id}:note_ver", f"dashboard:{trial_id}:note_str:0"
    columns = _TABLE.c
    written: dict[str, Any] = {version: 1, text: note_of(trial)}
    with storage.engine.begin() as connection:
        edited = sqlalchemy.select(columns.value_json).where(
            columns.study_id == study_id, columns.key == version
        )
        if json.loads(connection.execute(edited).scalar() or "1") > 1:
            return
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(v)} for key, v in written.items()]
        connection.execute(_WRITE, rows)
