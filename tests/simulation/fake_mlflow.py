"""An MLflow server in this process, behind the client that the sender uses: what it stores, and how it fails."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)

KEY = "binsweep.key"


@dataclass
class StoredRun:
    """What the server has of a run. A point is (name, step, time, value), and stored once, as its primary key says."""

    id: str
    tags: dict[str, str]
    started: int
    params: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int, int, float]] = field(default_factory=set)
    artifacts: dict[str, str] = field(default_factory=dict)
    status: str = "RUNNING"
    stage: str = "active"

    def copy(self) -> StoredRun:
        values = {"tags": dict(self.tags), "params": dict(self.params)}
        return replace(self, **values, points=set(self.points), artifacts=dict(self.artifacts))

    @property
    def info(self) -> SimpleNamespace:
        known = {"run_id": self.id, "lifecycle_stage": self.stage, "start_time": self.started}
        return SimpleNamespace(**known, artifact_uri="mlflow-artifacts:/")

    @property
    def data(self) -> SimpleNamespace:
        names = {name for name, *_ in self.points}
        return SimpleNamespace(tags=self.tags, metrics=names, params=self.params)


class FakeMlflow:
    """The server. `serve(call)` is asked before and after each request, and may refuse it."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, StoredRun] = {}
        self._made = 0

    def next_id(self) -> str:
        self._made += 1
        return f"run{self._made:05d}"

    def copy(self) -> tuple[dict[str, str], dict[str, StoredRun]]:
        return dict(self.experiments), {key: run.copy() for key, run in self.runs.items()}

    def restore(self, state: tuple[dict[str, str], dict[str, StoredRun]]) -> None:
        self.experiments, self.runs = dict(state[0]), {key: run.copy() for key, run in state[1].items()}

    def active(self) -> list[StoredRun]:
        return [run for run in self.runs.values() if run.stage == "active"]


def unavailable(text: str) -> MlflowException:
    """As the client raises it after its own attempts, or where nothing answers."""
    return MlflowException(f"API request failed: {text}", error_code=INTERNAL_ERROR)


class FakeClient:
    """`MlflowClient` as far as the sender uses it. `asked(name, work)` does the work of a request, with its faults."""

    def __init__(self, server: FakeMlflow, asked: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._server, self._asked = server, asked

    def get_experiment_by_name(self, name: str) -> Any:
        def work() -> Any:
            found = self._server.experiments.get(name)
            return None if found is None else SimpleNamespace(experiment_id=found, lifecycle_stage="active")

        return self._asked("get_experiment", work)

    def create_experiment(self, name: str, tags: dict[str, str]) -> str:
        def work() -> str:
            if name in self._server.experiments:
                raise MlflowException("it exists", error_code=RESOURCE_ALREADY_EXISTS)
            self._server.experiments[name] = str(len(self._server.experiments) + 1)
            return self._server.experiments[name]

        return str(self._asked("create_experiment", work))

    def create_run(
        self, experiment_id: str, start_time: int | None, tags: dict[str, str], run_name: str
    ) -> Any:
        def work() -> Any:
            if experiment_id not in self._server.experiments.values():
                raise MlflowException("no such experiment", error_code=RESOURCE_DOES_NOT_EXIST)
            run = StoredRun(self._server.next_id(), dict(tags), start_time or 0)
            self._server.runs[run.id] = run
            return run

        return self._asked("create_run", work)

    def _run(self, run_id: str) -> StoredRun:
        if run_id not in self._server.runs:
            raise MlflowException(f"Run '{run_id}' not found", error_code=RESOURCE_DOES_NOT_EXIST)
        return self._server.runs[run_id]

    def _active(self, run_id: str) -> StoredRun:
        run = self._run(run_id)
        if run.stage != "active":
            raise MlflowException(f"Run '{run_id}' is deleted", error_code=INVALID_PARAMETER_VALUE)
        return run

    def get_run(self, run_id: str) -> Any:
        return self._asked("get_run", lambda: self._run(run_id))

    def search_runs(self, experiment_ids: Sequence[str], filter_string: str, view: Any) -> list[Any]:
        wanted = filter_string.rpartition(" = ")[2].strip("'")

        def work() -> list[Any]:
            return [copy.copy(run) for run in self._server.runs.values() if run.tags.get(KEY) == wanted]

        return list(self._asked("search_runs", work))

    def log_batch(
        self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        def work() -> None:
            run = self._active(run_id)
            for param in params:
                if run.params.get(param.key, param.value) != param.value:
                    text = f"Changing param values is not allowed: {param.key}"
                    raise MlflowException(text, error_code=INVALID_PARAMETER_VALUE)
            run.params |= {param.key: param.value for param in params}
            run.tags |= {tag.key: tag.value for tag in tags}
            run.points |= {(one.key, one.step, one.timestamp, float(one.value)) for one in metrics}

        self._asked("log_batch", work)

    def log_inputs(self, run_id: str, datasets: Sequence[Any]) -> None:
        self._asked("log_inputs", lambda: self._active(run_id))

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        def work() -> None:
            name = f"{folder or ''}/{Path(path).name}"
            self._active(run_id).artifacts[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()

        self._asked("log_artifact", work)

    def log_artifacts(self, run_id: str, path: str, folder: str | None) -> None:
        def work() -> None:
            run = self._active(run_id)
            for file in Path(path).rglob("*"):
                if file.is_file():
                    run.artifacts[f"{folder or ''}/{file.relative_to(path)}"] = file.read_text()

        self._asked("log_artifacts", work)

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self._asked("set_terminated", lambda: setattr(self._active(run_id), "status", status))

    def update_run(self, run_id: str, status: str) -> None:
        self._asked("update_run", lambda: setattr(self._active(run_id), "status", status))

    def delete_run(self, run_id: str) -> None:
        self._asked("delete_run", lambda: setattr(self._run(run_id), "stage", "deleted"))
