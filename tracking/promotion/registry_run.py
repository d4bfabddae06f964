"""The run that holds a registered model's files: where MLFLOW_REGISTRY_URI names another server, a run on that one.

A version's files are in a run, and MLflow lets a registry have only versions whose run its own server knows. So a model
for another server gets a run there, next to which everything about its versions is kept; the sweep's runs stay where
they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from binsweep.tracking.mlflow_server.named_server import registry_of

EXPERIMENT = "registered models"
SOURCE_RUN = "source.run"  # tag of a run in the registry's server: the run of the sweep
REGISTERED = "registered"  # tag of a sweep's run: the version's page in the registry's server
_MAX_PARAMS, _MAX_METRICS = 100, 1000  # of one request


@dataclass(frozen=True)
class RegistryRun:
    """The server with the registered models, and a run there."""

    server: str
    run_id: str


def registry_run(tracking_uri: str, run_id: str, create: bool) -> RegistryRun:
    """The run for the files of a model that the sweep's run `run_id` trained.

    It is that run itself if the registry's server knows it. Otherwise it is found there by its tag, so that promoting
    again uses it again, or created with the parameters, metrics and tags of the sweep's run; without `create`, a run
    that does not exist yet is the sweep's, whose id nothing there has.
    """
    server = registry_of(tracking_uri)
    if server == tracking_uri:
        return RegistryRun(server, run_id)
    client = MlflowClient(server)
    if _knows(client, run_id):
        return RegistryRun(server, run_id)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        found = client.search_runs(
            [experiment.experiment_id], f"tags.`{SOURCE_RUN}` = '{run_id}'", max_results=1
        )
        if found:
            return RegistryRun(server, found[0].info.run_id)
    if not create:
        return RegistryRun(server, run_id)
    place = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    return RegistryRun(server, _copy(client, place, MlflowClient(tracking_uri).get_run(run_id), tracking_uri))


def record_registered(tracking_uri: str, run_id: str, place: RegistryRun, name: str, version: str) -> None:
    """Note on the sweep's run where its model was registered, if that is another server."""
    if place.run_id != run_id:
        page = f"{place.server}/#/models/{name}/versions/{version}"
        MlflowClient(tracking_uri).set_tag(run_id, REGISTERED, page)


def _knows(client: MlflowClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
    except MlflowException as error:
        # A server with accounts denies access to a run that does not exist as to one of another user.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        return False
    return True


def _copy(client: MlflowClient, experiment: str, run: Run, tracking_uri: str) -> str:
    page = f"{tracking_uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    tags = {
        **{key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
        "mlflow.note.content": f"The model of [{run.info.run_name}]({page}), a run of a sweep on another server.",
        SOURCE_RUN: run.info.run_id,
    }
    copy: str = client.create_run(experiment, tags=tags, run_name=run.info.run_name).info.run_id
    params = [Param(key, value) for key, value in run.data.params.items()]
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(copy, params=params[start : start + _MAX_PARAMS])
    now = run.info.end_time or run.info.start_time
    client.log_batch(
        copy, [Metric(key, value, now, 0) for key, value in run.data.metrics.items()][:_MAX_METRICS]
    )
    client.set_terminated(copy, "FINISHED")
    return copy
