"""A warm start: the results of an earlier sweep that a new one may use (`--warm-start`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from binsweep.models.settings import Settings
from binsweep.search.history.sweep_state import load_state
from binsweep.search.spec.parser import SweepSpec, parse_spec
from binsweep.search.strategy.base import Record
from binsweep.search.strategy.factory import StrategyOptions, open_strategy

MAX_POINTS = 5  # configurations to try first if the earlier values do not count


@dataclass(frozen=True)
class WarmStart:
    """`records` count as results of the new sweep; `points` are configurations to try first."""

    sweep: str
    records: list[Record]
    points: list[dict[str, Any]]

    def __str__(self) -> str:
        if self.records:
            return f"{len(self.records)} results of {self.sweep} are known"
        best = f"the best {len(self.points)} configurations of {self.sweep} are tried first"
        return f"{best}: its values do not count here"


def load_warm_start(folder: Path, spec: SweepSpec, fingerprint: str) -> WarmStart:
    """Read the sweep in `folder` for a new one on data with this fingerprint.

    A trial counts as a result if it was measured on the same data by the same metric, and if the new sweep could
    suggest it: its parameters lie in the new space, and all other settings are the same. If no trial counts, the best
    configurations that fit into the new space are tried first.
    """
    state = load_state(folder)
    before = parse_spec(state["spec"])
    options = StrategyOptions(before.space, before.goal, before.max_epochs, "random", "none")
    strategy = open_strategy(folder / "study.db", state["id"], options)
    names = [field.name for field in fields(Settings) if field.name != "seed"]
    same = state["fingerprint"] == fingerprint and before.metric == spec.metric
    same = same and before.data.image_size == spec.data.image_size and before.fidelity == spec.fidelity
    records, fitting = [], []
    for record in strategy.trials():
        settings = asdict(before.trial_settings(record.params, seed=0))
        params = spec.space.active(settings)
        if record.value is None or not all(spec.space.contains(name, params[name]) for name in params):
            continue
        fitting.append(replace(record, params=params))
        if same and all(settings[n] == getattr(spec.settings, n) for n in names if n not in params):
            records.append(fitting[-1])
    best = sorted(fitting, key=lambda record: before.objective.sort_key(record.value, record.number))
    return WarmStart(state["id"], records, [] if records else [record.params for record in best[:MAX_POINTS]])
