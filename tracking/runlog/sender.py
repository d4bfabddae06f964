"""Sends the spool's records to an MLflow server, so that sending them twice changes nothing.

- A run carries the unique tag `binsweep.key`; it is looked up before it is created, unless it cannot exist yet. A
  creation whose answer is lost may leave a second run, even later (the client also repeats requests on its own):
  when a run ends, its duplicates are searched for and deleted.
- A metric's point carries the time recorded in the spool. MLflow's primary key of a point is run, name, step,
  time and value, and its log_batch drops points that are already there (tried on SQLite, read in its source).
- Parameters may be written again with an equal value; tags and artifacts are overwritten; a data set is identified
  by name and digest.
- Artifacts may go to a store of their own (S3, GCS, Azure), which can be down while MLflow is up. They are sent
  apart from the rest, so that they delay nothing, and are given up only if no store will ever accept them.
"""

import getpass
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow.entities import DatasetInput, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from binsweep.data.errors import UserError, first_line
from binsweep.tracking.runlog.batching import Entity, RunPlan
from binsweep.tracking.runlog.permanent_errors import (
    NoFileError,
    NoRunError,
    is_permanent,
    is_permanent_for_artifact,
)
from binsweep.tracking.runlog.s3_patience import limit_s3_patience

KEY_TAG = "binsweep.key"
# Without it the UI opens with its pages for language-model applications.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A request that may be repeated until it succeeds.

    `record` is the number of an artifact's record, None for everything else: an artifact that cannot be stored now
    may wait while others are sent.
    """

    send: Callable[[], None]
    record: int | None = None


class Sender:
    """Sends run plans to one experiment. `identity` is the spool's; with `fresh` none of its runs can exist yet.

    `refused` collects what the server refused permanently, by run, as readable lines. Not thread-safe.
    """

    def __init__(self, tracking_uri: str, experiment: str, identity: str, fresh: bool) -> None:
        self._client = MlflowClient(tracking_uri)
        self._experiment = experiment
        self._experiment_id: str | None = None
        self._identity = identity
        self._fresh = fresh
        self._uncertain: set[str] = set()  # creations whose answer was lost
        self._running: set[str] = set()
        self.runs: dict[str, str] = {}
        self.refused: dict[str, list[str]] = {}

    def requests_of(self, plan: RunPlan) -> Iterator[Request]:
        """The requests of a plan, in order; those for its artifacts may be sent at any later time.

        A request raises the client's error if the server or a store does not answer. A permanent refusal goes to
        `refused`, and the request counts as done.
        """
        todo: list[tuple[str, Callable[[], object]]] = [("the run", partial(self._ensure, plan))]
        for batch in plan.batches():
            todo.append(("values", partial(self._log_batch, plan.key, batch)))
        for dataset in plan.datasets:
            todo.append((f"data set {dataset.dataset.name}", partial(self._log_dataset, plan.key, dataset)))
        for what, send in todo:
            yield Request(partial(self._attempt, plan.key, what, send, is_permanent))
        for path, folder, record in plan.artifacts:
            what, send = f"artifact {path}", partial(self._log_artifact, plan.key, Path(path), folder)
            yield Request(partial(self._attempt, plan.key, what, send, is_permanent_for_artifact), record)
        if plan.status is not None:
            send = partial(self._set_status, plan.key, *plan.status)
            yield Request(partial(self._attempt, plan.key, "the status", send, is_permanent))

    def _attempt(
        self, key: str, what: str, send: Callable[[], object], is_final: Callable[[Exception], bool]
    ) -> None:
        try:
            send()
        except Exception as error:
            if not is_final(error):
                raise
            self._refuse(key, what, error)

    def _refuse(self, key: str, what: str, error: Exception) -> None:
        line = f"{key}: {what} refused: {error}"
        lines = self.refused.setdefault(key, [])
        if line not in lines:  # a repeated request meets the same refusals
            _log.warning("MLflow refuses this permanently: %s", line)
            lines.append(line)

    def _experiment_by_name(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                try:
                    self._experiment_id = self._client.create_experiment(
                        self._experiment, tags=EXPERIMENT_TAGS
                    )
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    return self._experiment_by_name()  # another process was faster
            else:
                if found.lifecycle_stage == LifecycleStage.DELETED:
                    self._client.restore_experiment(found.experiment_id)
                self._experiment_id = found.experiment_id
        return str(self._experiment_id)

    def page(self, key: str) -> str | None:
        """The run's page in the MLflow UI, as a link within that UI; None before the run exists."""
        if key not in self.runs or self._experiment_id is None:
            return None
        return _run_link(self._experiment_id, self.runs[key])

    def sent_page(self, key: str) -> str | None:
        """`page` of a run that an earlier process may have sent. Changes nothing, so it is thread-safe."""
        experiment, run_id = self._client.get_experiment_by_name(self._experiment), self.lookup(key)
        return None if experiment is None or run_id is None else _run_link(experiment.experiment_id, run_id)

    def _run(self, key: str) -> str:
        """The id of a run, which is created from its key alone if the record of its start was lost."""
        return self.runs.get(key) or self._ensure(RunPlan(key))

    def _ensure(self, plan: RunPlan) -> str:
        """Find or create the run; an existing one gets the name and parent of its new start."""
        key, start = plan.key, plan.start
        identity = {KEY_TAG: f"{self._identity}/{key}"}
        if start is not None:
            identity["mlflow.runName"] = start["name"]
            if start["parent"] is not None:
                identity["mlflow.parentRunId"] = self._run(start["parent"])
        try:
            if key not in self.runs and (not self._fresh or key in self._uncertain):
                self._find(key)
            if key not in self.runs:
                self._create(key, start["at"] if start else None, identity)
                return self.runs[key]
        except MlflowException as error:
            self._experiment_id = None  # it may have been deleted: look it up again
            raise NoRunError(f"no run for {key}: {error}") from error
        if start is not None:
            self._client.log_batch(self.runs[key], tags=[RunTag(k, v) for k, v in identity.items()])
        return self.runs[key]

    def _create(self, key: str, at: int | None, identity: dict[str, str]) -> None:
        tags = {"mlflow.user": user_name(), "mlflow.source.name": "binsweep", "mlflow.source.type": "LOCAL"}
        name = identity.get("mlflow.runName", key)
        experiment = self._experiment_by_name()
        self._uncertain.add(key)
        run = self._client.create_run(experiment, start_time=at, tags=tags | identity, run_name=name)
        self._uncertain.discard(key)
        self._running.add(key)
        self._note_run(key, run)

    def _note_run(self, key: str, run: Run) -> None:
        self.runs[key] = str(run.info.run_id)
        limit_s3_patience(run.info.artifact_uri or "")

    def lookup(self, key: str) -> str | None:
        """The id of a run that was sent earlier; None if the server has none. Changes nothing, so it is thread-safe."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        found = [] if experiment is None else self._search(key, experiment.experiment_id)
        return str(found[0].info.run_id) if found else None

    def _search(self, key: str, experiment_id: str) -> list[Run]:
        key_filter = f"tags.`{KEY_TAG}` = '{self._identity}/{key}'"
        return list(self._client.search_runs([experiment_id], key_filter, ViewType.ALL))

    def _find(self, key: str) -> None:
        """Look up the run of `key` (the known one, or else the fullest), and delete its duplicates.

        A run that a user deleted is found as well, so that no second one is created in its place.
        """
        known = self.runs.get(key)

        def preference(run: Run) -> tuple[bool, bool, int, int, str]:
            deleted = run.info.lifecycle_stage == LifecycleStage.DELETED
            weight = len(run.data.metrics) + len(run.data.params)
            return run.info.run_id != known, deleted, -weight, run.info.start_time, run.info.run_id

        found = sorted(self._search(key, self._experiment_by_name()), key=preference)
        for duplicate in found[1:]:
            if duplicate.info.lifecycle_stage != LifecycleStage.DELETED:
                self._client.delete_run(duplicate.info.run_id)
        if found:
            self._note_run(key, found[0])

    def _log_batch(self, key: str, batch: list[Entity]) -> None:
        run_id = self._run(key)
        try:
            self._client.log_batch(
                run_id,
                metrics=[entity for entity in batch if isinstance(entity, Metric)],
                params=[entity for entity in batch if isinstance(entity, Param)],
                tags=[entity for entity in batch if isinstance(entity, RunTag)],
            )
        except Exception as error:
            if not is_permanent(error):
                raise
            if len(batch) == 1 or not self._takes_values(run_id):
                names = ", ".join(entity.key for entity in batch[:3]) + (", ..." if len(batch) > 3 else "")
                self._refuse(key, f"{len(batch)} value(s) ({names})", error)
                return
            # One bad value must not cost the others: halve the batch until it is alone.
            middle = len(batch) // 2
            self._log_batch(key, batch[:middle])
            self._log_batch(key, batch[middle:])

    def _takes_values(self, run_id: str) -> bool:
        try:
            stage: str = self._client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if not is_permanent(error):
                raise
            return False
        return stage == LifecycleStage.ACTIVE

    def _log_dataset(self, key: str, dataset: DatasetInput) -> None:
        self._client.log_inputs(self._run(key), [dataset])

    def _log_artifact(self, key: str, path: Path, folder: str) -> None:
        # Checked here, because a FileNotFoundError of a store's client may be about another file.
        if not path.exists():
            raise NoFileError(f"{path} no longer exists")
        if path.is_dir():
            self._client.log_artifacts(self._run(key), str(path), folder or None)
        else:
            self._client.log_artifact(self._run(key), str(path), folder or None)

    def _set_status(self, key: str, status: str, at: int) -> None:
        run_id = self._run(key)
        if status != "RUNNING":
            self._find(key)
            self._client.set_terminated(run_id, status, at)
            self._running.discard(key)
        elif key not in self._running:
            self._client.update_run(run_id, status)
            self._running.add(key)


def _run_link(experiment_id: str, run_id: str) -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def user_name() -> str:
    """The name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id may have no name
        return "unknown"


def sweep_of_run(tracking_uri: str, run_id: str) -> tuple[str, str]:
    """The sweep's id and the key of a run. Raises UserError if it is no run of a sweep."""
    try:
        tags = MlflowClient(tracking_uri).get_run(run_id).data.tags
    except MlflowException as error:
        raise UserError(
            f"there is no run {run_id}: {first_line(error)}", "give its id, or SWEEP/NUMBER"
        ) from error
    if KEY_TAG not in tags or "sweep" not in tags:
        raise UserError(
            f"the run {run_id} is no training of a sweep", "give that of a trial, or SWEEP/NUMBER"
        )
    return tags["sweep"], tags[KEY_TAG].rpartition("/")[2]
