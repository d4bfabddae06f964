"""The model registry: versions of the counting model, and which of them is champion."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map
from PIL import Image

from binsweep.data.errors import UserError
from binsweep.models.predictor import Predictor
from binsweep.tracking.registry.model_source import model_source

CHAMPION, CHALLENGER = "champion", "challenger"
REQUIREMENTS = ("mlflow", "torch", "torchvision", "timm", "pi-heif", "pillow", "numpy", "pandas")
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.long, "count", required=False),
            ColSpec(DataType.double, "expected_count", required=False),
            ColSpec(DataType.double, "confidence", required=False),
            ColSpec(Map(DataType.double), "probabilities", required=False),
            ColSpec(DataType.string, "model_version", required=False),
            ColSpec(DataType.string, "error"),
        ]
    ),
)


def image_rows(images: list[bytes]) -> pd.DataFrame:
    """The served model's input: a string column `image` with base64 of each file's bytes."""
    return pd.DataFrame({"image": [base64.b64encode(content).decode() for content in images]})


def _example(size: int) -> pd.DataFrame:
    """A small grey ramp, so that the model's page shows what a request looks like."""
    ramp = np.linspace(60, 190, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([np.broadcast_to(ramp, (size, size))] * 3, axis=2)).save(
        buffer, "JPEG", quality=40
    )
    return image_rows([buffer.getvalue()])


@contextlib.contextmanager
def _reopened(tracking_uri: str, run_id: str) -> Iterator[None]:
    """Make an ended run the active one; its status and its duration stay as they were."""
    client = MlflowClient(tracking_uri)
    before = client.get_run(run_id).info
    # start_run refuses a run that is not of the process's active experiment.
    mlflow.set_experiment(experiment_id=before.experiment_id)
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:
        client.set_terminated(run_id, before.status, before.end_time)


@contextlib.contextmanager
def _model_arguments(predictor: Predictor) -> Iterator[dict[str, Any]]:
    """The arguments from which MLflow builds a model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.py").write_text(model_source(), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(predictor.to_dict()))
        torch.save(predictor.state_dict(), folder / "weights.pt")
        yield {
            "python_model": str(folder / "model.py"),
            "artifacts": {"config": str(folder / "config.json"), "weights": str(folder / "weights.pt")},
            "signature": SIGNATURE,
            "input_example": _example(64),
            "pip_requirements": [f"{package}=={version(package)}" for package in REQUIREMENTS],
        }


@contextlib.contextmanager
def saved_model(predictor: Predictor) -> Iterator[Path]:
    """The model that `register` would store, in a temporary folder for the block."""
    with tempfile.TemporaryDirectory() as temporary, _model_arguments(predictor) as arguments:
        folder = Path(temporary) / "model"
        mlflow.pyfunc.save_model(str(folder), **arguments)
        yield folder


def register(
    tracking_uri: str, run_id: str, name: str, predictor: Predictor, tags: Mapping[str, str]
) -> ModelVersion:
    """Log the predictor to its run and register it as a new version of `name`, without any alias.

    The model consists of one source file that imports nothing of this project, a config, and a state dict.
    """
    mlflow.set_tracking_uri(tracking_uri)
    client = MlflowClient(tracking_uri)
    with _model_arguments(predictor) as arguments, _reopened(tracking_uri, run_id):
        info = mlflow.pyfunc.log_model(name="model", **arguments)
    try:
        client.create_registered_model(name, description="Counts the items in a bin from its photo.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, info.model_uri, run_id, dict(tags), model_id=info.model_id)


def find_version(model_uri: str, tracking_uri: str) -> ModelVersion | None:
    """The version at models:/NAME@ALIAS or models:/NAME/VERSION; None for any other address."""
    address = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))", model_uri)
    if address is None:
        return None
    client = MlflowClient(tracking_uri)
    if address["alias"]:
        return client.get_model_version_by_alias(address["name"], address["alias"])
    return client.get_model_version(address["name"], address["version"])


def stored_predictions(tracking_uri: str, version: ModelVersion) -> pd.DataFrame:
    """The version's predictions for its test split when it was judged.

    One row for each photo with `id`, `true`, `predicted`, `confidence` and a column pN for each count N. Raises
    UserError if none are stored.
    """
    where = f"{test_folder(version.version)}/predictions.parquet"
    try:
        with tempfile.TemporaryDirectory() as folder:
            return pd.read_parquet(
                MlflowClient(tracking_uri).download_artifacts(version.run_id or "", where, folder)
            )
    except (MlflowException, OSError) as error:
        name = f"{version.name} version {version.version}"
        raise UserError(f"{name} has no stored predictions ({where})", "promote a sweep again") from error


def test_folder(version: str) -> str:
    """The folder in a version's run for its evaluation on the test split; a run may become several versions."""
    return f"test/version-{version}"


def describe(tracking_uri: str, name: str, version: str, text: str) -> None:
    """Set a version's description, Markdown in the registry's page, cut to the 5,000 characters that it keeps."""
    MlflowClient(tracking_uri).update_model_version(name, version, text[:5000])


def versions_of(tracking_uri: str, name: str) -> list[ModelVersion]:
    """Every version of a registered model; none if there is no such model."""
    client, token = MlflowClient(tracking_uri), None
    versions: list[ModelVersion] = []
    while True:
        page = client.search_model_versions(_name_filter(name), page_token=token)
        versions += [version for version in page if version.name == name]
        token = page.token
        if not token:
            return versions


def _name_filter(name: str) -> str | None:
    """MLflow's filter for a name; None, which admits all names, if its syntax cannot express this one."""
    quote = '"' if "'" in name else "'"
    return None if quote in name else f"name={quote}{name}{quote}"


def champion_of(tracking_uri: str, name: str) -> ModelVersion | None:
    """The version that the alias `champion` points at; None if there is none."""
    client = MlflowClient(tracking_uri)
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        # A server with accounts denies access to a model that does not exist as to one of another user.
        if error.error_code == "PERMISSION_DENIED":
            found = client.search_registered_models(_name_filter(name))
            if all(model.name != name for model in found):
                return None
        raise
