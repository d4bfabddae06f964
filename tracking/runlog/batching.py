"""From the spool's records to what MLflow should be told: many records of a run become few requests."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from binsweep.tracking.runlog.spool import Record

Entity = Metric | Param | RunTag

# The server's limits for one log_batch request.
_MOST = {Metric: 1000, Param: 100, RunTag: 100}
_MOST_TOGETHER = 1000
_MOST_BYTES = 900_000  # of 1 MB


@dataclass
class RunPlan:
    """All that a stretch of the spool says about one run.

    `start` is its last start record, if any; `status` the last word on whether it runs or how it ended, with
    the time in milliseconds since 1970; an artifact has its path, its folder and the number of its record.
    """

    key: str
    start: Record | None = None
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[DatasetInput] = field(default_factory=list)
    artifacts: list[tuple[str, str, int]] = field(default_factory=list)
    status: tuple[str, int] | None = None

    def batches(self) -> Iterator[list[Entity]]:
        """Metrics, parameters and tags in parts that the server accepts in one request each."""
        entities: list[Entity] = [Param(k, v) for k, v in self.params.items()]
        entities += [RunTag(k, v) for k, v in self.tags.items()]
        return pack([*entities, *self.metrics])


def plan_runs(records: Iterable[Record]) -> list[RunPlan]:
    """One plan per run, in the order of first mention, from records in the order they were made."""
    plans: dict[str, RunPlan] = {}
    for record in records:
        plan = plans.setdefault(record["key"], RunPlan(record["key"]))
        match record["kind"]:
            case "start":
                plan.start, plan.status = record, ("RUNNING", record["at"])
                plan.tags.update(record["tags"])
                _add_params(plan, record["params"])
            case "metrics":
                at, step = record["at"], record["step"]
                plan.metrics += [Metric(k, v, at, step) for k, v in record["values"].items()]
            case "params":
                _add_params(plan, record["values"])
            case "tags":
                plan.tags.update(record["values"])
            case "dataset":
                plan.datasets.append(_dataset_input(record))
            case "artifact":
                plan.artifacts.append((record["path"], record["folder"], record["n"]))
            case "end":
                plan.status = (record["status"], record["at"])
    return list(plans.values())


def pack(entities: Iterable[Entity]) -> Iterator[list[Entity]]:
    """Cut `entities` into lists within the server's limits, in order."""
    part: list[Entity] = []
    counts: dict[type, int] = dict.fromkeys(_MOST, 0)
    size = 0
    for entity in entities:
        kind, weight = type(entity), 100 + len(json.dumps([entity.key, entity.value]))
        full = counts[kind] >= _MOST[kind] or len(part) >= _MOST_TOGETHER
        if part and (full or size + weight > _MOST_BYTES):
            yield part
            part, counts, size = [], dict.fromkeys(_MOST, 0), 0
        part.append(entity)
        counts[kind] += 1
        size += weight
    if part:
        yield part


def _add_params(plan: RunPlan, values: dict[str, str]) -> None:
    # Parameters are written once, so the first value is the one the server keeps.
    plan.params |= {name: value for name, value in values.items() if name not in plan.params}


def _dataset_input(record: Record) -> DatasetInput:
    profile: dict[str, Any] = record["profile"]
    dataset = Dataset(
        name=record["name"],
        digest=record["digest"],
        source_type="local",
        source=json.dumps({"uri": record["source"]}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])
