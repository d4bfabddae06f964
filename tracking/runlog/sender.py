"""Tells an MLflow server what the spool holds, so that telling it twice changes nothing.

- A run carries the tag `binsweep.key`, unique for ever; it is looked up before it is made, unless it cannot
  exist yet. A creation whose answer is lost may leave a second run, even later (the client repeats requests
  on its own, too): when a run ends, its doubles are looked for and removed.
- A metric's point carries the time recorded in the spool. MLflow's primary key of a point is run, name, step,
  time and value, and its log_batch drops points that are already there (tried on SQLite, read in its source).
- Parameters are write-once with an equal value; tags and artifacts overwrite themselves; a data set is known
  by name and digest.
- Artifacts may go to a store of their own (S3, GCS, Azure), which can be away while MLflow is there. They are
  sent apart from the rest, so that they hold nothing up, and only what no store will ever take is given up.
"""

import getpass
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests
from mlflow.entities import DatasetInput, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from binsweep.tracking.runlog.batching import Entity, RunPlan

KEY_TAG = "binsweep.key"
# What the server will answer again and again, however often it is asked.
_HOPELESS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
# Without it the UI greets people with its pages for language-model applications.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_log = logging.getLogger(__name__)


# A store's words for what it will never take. Whatever else it says (no access, no such bucket, expired keys, no
# connection, a missing library) passes, or somebody mends it.
_TOO_LARGE = 413
_NEVER_STORED = {"EntityTooLarge", "KeyTooLongError"}
# A mistake in what we ask for, and so the same every time.
_OURS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)


class _NoRunError(Exception):
    """A run could be neither found nor made. Without it nothing could be sent, so this is never given up."""


class _NoFileError(Exception):
    """The file that should be sent is not there any more."""


@dataclass(frozen=True)
class Step:
    """A request that may be repeated until it succeeds.

    `record` is the number of the record that asks for an artifact, and None for all else: an artifact that cannot
    be stored now may wait while others are sent.
    """

    send: Callable[[], None]
    record: int | None = None


def hopeless(error: Exception) -> bool:
    """Whether sending the same values again is useless: the server understood and refused, or the mistake is ours.

    Everything else (no connection, time-outs, 5xx, a proxy's error page, 401, 429) may pass.
    """
    if isinstance(error, _NoRunError):
        return False
    if isinstance(error, MlflowException):
        return error.error_code in _HOPELESS or (
            isinstance(error, RestException) and error.error_code == "BAD_REQUEST"
        )
    if isinstance(
        error, OSError
    ):  # a failed request is one, also one whose answer was no JSON (a ValueError, too)
        return _answer_of(error) in (400, _TOO_LARGE)
    return isinstance(error, _OURS)


def never_stored(error: BaseException | None) -> bool:
    """Whether storing the same artifact again is useless; asked of the error and of those behind it.

    Only what is named here is: the file is gone, MLflow refuses its name, or it is too large for the store.
    """
    if error is None or isinstance(error, _NoRunError):
        return False
    if isinstance(error, _NoFileError) or _answer_of(error) == _TOO_LARGE:
        return True
    if isinstance(error, MlflowException) and error.error_code in _HOPELESS:
        return True
    answer = getattr(error, "response", None)
    if isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _NEVER_STORED:  # botocore's
        return True
    if _refused_by_mlflow(answer):
        return True
    return never_stored(error.__cause__ or error.__context__)


def _answer_of(error: BaseException) -> int | None:
    """The HTTP status behind an error: of requests and Azure (`response`, `status_code`), or Google (`code`)."""
    answer = getattr(error, "response", None)
    places = ((answer, "status_code"), (error, "status_code"), (error, "code"))
    found = (getattr(place, name, None) for place, name in places)
    return next((int(status) for status in found if isinstance(status, int)), None)


def _refused_by_mlflow(answer: object) -> bool:
    """Whether an HTTP answer is MLflow's refusal, and not that of a store or proxy (S3 says 400 to expired keys)."""
    if not isinstance(answer, requests.Response):
        return False
    try:
        said = answer.json()
    except requests.JSONDecodeError:
        return False
    return isinstance(said, dict) and said.get("error_code") in _HOPELESS


class Sender:
    """Sends plans to one experiment. `identity` is the spool's; `fresh` says that no run of it can exist yet.

    `refused` collects what the server would not take, by run, as readable lines. Not for several threads.
    """

    def __init__(self, tracking_uri: str, experiment: str, identity: str, fresh: bool) -> None:
        self._client = MlflowClient(tracking_uri)
        self._experiment = experiment
        self._experiment_id: str | None = None
        self._identity = identity
        self._fresh = fresh
        self._doubtful: set[str] = set()  # creations whose answer was lost
        self._running: set[str] = set()
        self.runs: dict[str, str] = {}
        self.refused: dict[str, list[str]] = {}

    def steps(self, plan: RunPlan) -> Iterator[Step]:
        """The requests of a plan, in order; those for its artifacts may be taken out of it.

        A step raises what the client raises when the server or a store cannot be had; what is refused for good
        is noted in `refused`, and the step counts as done.
        """
        todo: list[tuple[str, Callable[[], object]]] = [("the run", partial(self._ensure, plan))]
        for batch in plan.batches():
            todo.append(("values", partial(self._log_batch, plan.key, batch)))
        for dataset in plan.datasets:
            todo.append((f"data set {dataset.dataset.name}", partial(self._log_dataset, plan.key, dataset)))
        for what, step in todo:
            yield Step(partial(self._attempt, plan.key, what, step, hopeless))
        for path, folder, record in plan.artifacts:
            step = partial(self._log_artifact, plan.key, Path(path), folder)
            yield Step(partial(self._attempt, plan.key, f"artifact {path}", step, never_stored), record)
        if plan.status is not None:
            step = partial(self._set_status, plan.key, *plan.status)
            yield Step(partial(self._attempt, plan.key, "the status", step, hopeless))

    def _attempt(
        self, key: str, what: str, step: Callable[[], object], for_good: Callable[[Exception], bool]
    ) -> None:
        try:
            step()
        except Exception as error:
            if not for_good(error):
                raise
            self._refuse(key, what, error)

    def _refuse(self, key: str, what: str, error: Exception) -> None:
        line = f"{key}: {what} refused: {error}"
        lines = self.refused.setdefault(key, [])
        if line not in lines:  # a repeated step meets the same refusals
            _log.warning("MLflow does not take this, for good: %s", line)
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
        """Where the MLflow UI shows a run, as a link within that UI; None before the run is there."""
        if key not in self.runs or self._experiment_id is None:
            return None
        return _page(self._experiment_id, self.runs[key])

    def sent_page(self, key: str) -> str | None:
        """`page` of a run that an earlier process may have sent. Changes nothing: for any thread."""
        experiment, run_id = self._client.get_experiment_by_name(self._experiment), self.lookup(key)
        return None if experiment is None or run_id is None else _page(experiment.experiment_id, run_id)

    def _run(self, key: str) -> str:
        """The id of a run, made from its name alone if the record of its start was lost."""
        return self.runs.get(key) or self._ensure(RunPlan(key))

    def _ensure(self, plan: RunPlan) -> str:
        """Find or make the run; one that is there already gets the name and parent of its new start."""
        key, start = plan.key, plan.start
        identity = {KEY_TAG: f"{self._identity}/{key}"}
        if start is not None:
            identity["mlflow.runName"] = start["name"]
            if start["parent"] is not None:
                identity["mlflow.parentRunId"] = self._run(start["parent"])
        try:
            if key not in self.runs and (not self._fresh or key in self._doubtful):
                self._find(key)
            if key not in self.runs:
                self._create(key, start["at"] if start else None, identity)
                return self.runs[key]
        except MlflowException as error:
            self._experiment_id = None  # somebody may have deleted it: look again
            raise _NoRunError(f"no run for {key}: {error}") from error
        if start is not None:
            self._client.log_batch(self.runs[key], tags=[RunTag(k, v) for k, v in identity.items()])
        return self.runs[key]

    def _create(self, key: str, at: int | None, identity: dict[str, str]) -> None:
        tags = {"mlflow.user": user_name(), "mlflow.source.name": "binsweep", "mlflow.source.type": "LOCAL"}
        name = identity.get("mlflow.runName", key)
        experiment = self._experiment_by_name()
        self._doubtful.add(key)
        run = self._client.create_run(experiment, start_time=at, tags=tags | identity, run_name=name)
        self._doubtful.discard(key)
        self._running.add(key)
        self.runs[key] = str(run.info.run_id)

    def lookup(self, key: str) -> str | None:
        """The id of a run that was sent earlier; None if the server has none. Changes nothing: for any thread."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        found = [] if experiment is None else self._search(key, experiment.experiment_id)
        return str(found[0].info.run_id) if found else None

    def _search(self, key: str, experiment_id: str) -> list[Run]:
        where = f"tags.`{KEY_TAG}` = '{self._identity}/{key}'"
        return list(self._client.search_runs([experiment_id], where, ViewType.ALL))

    def _find(self, key: str) -> None:
        """Look the run of `key` up (the one we know, or else the fullest), and remove its doubles.

        A run that someone deleted is found too, so that nobody's decision is undone by a second one.
        """
        known = self.runs.get(key)

        def preference(run: Run) -> tuple[bool, bool, int, int, str]:
            deleted = run.info.lifecycle_stage == LifecycleStage.DELETED
            weight = len(run.data.metrics) + len(run.data.params)
            return run.info.run_id != known, deleted, -weight, run.info.start_time, run.info.run_id

        found = sorted(self._search(key, self._experiment_by_name()), key=preference)
        for double in found[1:]:
            if double.info.lifecycle_stage != LifecycleStage.DELETED:
                self._client.delete_run(double.info.run_id)
        if found:
            self.runs[key] = str(found[0].info.run_id)

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
            if not hopeless(error):
                raise
            if len(batch) == 1 or not self._takes_values(run_id):
                names = ", ".join(entity.key for entity in batch[:3]) + (", ..." if len(batch) > 3 else "")
                self._refuse(key, f"{len(batch)} value(s) ({names})", error)
                return
            # One bad value must not cost the others: halve until it stands alone.
            middle = len(batch) // 2
            self._log_batch(key, batch[:middle])
            self._log_batch(key, batch[middle:])

    def _takes_values(self, run_id: str) -> bool:
        try:
            stage: str = self._client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if not hopeless(error):
                raise
            return False
        return stage == LifecycleStage.ACTIVE

    def _log_dataset(self, key: str, dataset: DatasetInput) -> None:
        self._client.log_inputs(self._run(key), [dataset])

    def _log_artifact(self, key: str, path: Path, folder: str) -> None:
        if not path.exists():  # looked at here: a store's client may miss a file of its own
            raise _NoFileError(f"there is no {path} any more")
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


def _page(experiment_id: str, run_id: str) -> str:
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return "unknown"
