"""From the spool's records to MLflow's entities: many records of a run become few requests."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from binsweep.tracking.runlog.spool import Record

Entity = Metric | Param | RunTag

# The server's limits for one log_batch request.
_MAX_ENTITIES = {Metric: 1000, Param: 100, RunTag: 100}
_MAX_BATCH_ENTITIES = 1000
_MAX_BATCH_BYTES = 900_000  # of 1 MB


@dataclass
class RunPlan:
    """All records of one run in a part of the spool.

    `start` is its last start record, if any; `status` its last status, with the time in milliseconds since 1970. An
    artifact has its path, its folder and the number of its record.
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
        """Metrics, parameters and tags in batches that the server accepts in one request each."""
        entities: list[Entity] = [Param(k, v) for k, v in self.params.items()]
        entities += [RunTag(k, v) for k, v in self.tags.items()]
        return split_into_batches([*entities, *self.metrics])


def plan_runs(records: Iterable[Record]) -> list[RunPlan]:
    """One plan per run, in the order of their first records."""
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


def split_into_batches(entities: Iterable[Entity]) -> Iterator[list[Entity]]:
    """Split `entities` into batches within the server's limits, in order."""
    batch: list[Entity] = []
    counts: dict[type, int] = dict.fromkeys(_MAX_ENTITIES, 0)
    size = 0
    for entity in entities:
        kind, weight = type(entity), 100 + len(json.dumps([entity.key, entity.value]))
        full = counts[kind] >= _MAX_ENTITIES[kind] or len(batch) >= _MAX_BATCH_ENTITIES
        if batch and (full or size + weight > _MAX_BATCH_BYTES):
            yield batch
            batch, counts, size = [], dict.fromkeys(_MAX_ENTITIES, 0), 0
        batch.append(entity)
        counts[kind] += 1
        size += weight
    if batch:
        yield batch


def _add_params(plan: RunPlan, values: dict[str, str]) -> None:
    # MLflow's parameters are write-once, so the first value is the one that it keeps.
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
