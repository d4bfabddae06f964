"""Registration: a trained network becomes a version of a model, with the engine that computes it when it is served."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import requests
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map
from PIL import Image

from binsweep.data.errors import UserError, first_line
from binsweep.data.labels import Label
from binsweep.models.decoding import answer_columns
from binsweep.models.engines.choice import ServingEngine
from binsweep.models.engines.names import EngineName
from binsweep.models.labelling import labelling_of
from binsweep.models.predictor import Predictor
from binsweep.tracking.fluent_state import process_settings
from binsweep.tracking.registry.model_source import model_source
from binsweep.tracking.registry.versions import image_rows

ENGINE, ENGINE_REASON = "engine", "engine.reason"  # tags of a version
TORCH = ServingEngine("torch", "computed by PyTorch")
# The packages of a served model, besides those of its engine. The small MLflow serves as well, and needs less memory.
REQUIREMENTS = ("mlflow-skinny", "pi-heif", "pillow", "numpy", "pandas")
ENGINE_REQUIREMENTS: dict[EngineName, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "torch": ("torch", "torchvision", "timm"),
}
ANSWER_TYPES: dict[str, DataType | Map] = {
    "count": DataType.long,
    "label": DataType.string,
    "expected_count": DataType.double,
    "confidence": DataType.double,
    "probabilities": Map(DataType.double),
}


def signature(classes: Sequence[Label]) -> ModelSignature:
    """The columns of a model of these classes."""
    answers = [ColSpec(ANSWER_TYPES[name], name, required=False) for name in answer_columns(classes)]
    others = [ColSpec(DataType.string, "model_version", required=False), ColSpec(DataType.string, "error")]
    return ModelSignature(Schema([ColSpec(DataType.string, "image")]), Schema([*answers, *others]))


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
        with mlflow.start_run(
            run_id=run_id, nested=True
        ):  # a caller in Python may have a run of its own open
            yield
    finally:
        client.set_terminated(run_id, before.status, before.end_time)


@contextlib.contextmanager
def uploads(tracking_uri: str) -> Iterator[None]:
    """Raise UserError if a file of the block is too large for the server, or for a proxy before it."""
    try:
        yield
    except requests.HTTPError as error:
        if error.response is None or error.response.status_code != requests.codes.request_entity_too_large:
            raise
        raise UserError(
            f"MLflow server {tracking_uri} takes no file as large as the model's: it answered 413",
            "raise the limit of the proxy before it (nginx: client_max_body_size 0), then promote again",
        ) from error


@contextlib.contextmanager
def _model_arguments(predictor: Predictor, engine: ServingEngine) -> Iterator[dict[str, Any]]:
    """The arguments from which MLflow builds a model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.py").write_text(model_source(engine.name), encoding="utf-8")
        files = {"config": folder / "config.json", "weights": folder / "weights.pt"}
        files["config"].write_text(json.dumps(predictor.to_dict()))
        torch.save(predictor.state_dict(), files["weights"])
        if engine.onnx:
            files["network"] = folder / "network.onnx"
            files["network"].write_bytes(engine.onnx)
        packages = (*REQUIREMENTS, *ENGINE_REQUIREMENTS[engine.name])
        yield {
            "python_model": str(folder / "model.py"),
            "artifacts": {name: str(file) for name, file in files.items()},
            "signature": signature(predictor.classes),
            "input_example": _example(64),
            "pip_requirements": [f"{package}=={version(package)}" for package in packages],
        }


@contextlib.contextmanager
def saved_model(predictor: Predictor, engine: ServingEngine = TORCH) -> Iterator[Path]:
    """The model that `register` would store, in a temporary folder for the block."""
    with tempfile.TemporaryDirectory() as temporary, _model_arguments(predictor, engine) as arguments:
        folder = Path(temporary) / "model"
        mlflow.pyfunc.save_model(str(folder), **arguments)
        yield folder


def register(
    tracking_uri: str,
    run_id: str,
    name: str,
    predictor: Predictor,
    tags: Mapping[str, str],
    engine: ServingEngine = TORCH,
) -> ModelVersion:
    """Log the predictor to its run and register it as a new version of `name`, without any alias.

    The model consists of one source file that imports nothing of this project, a config, a state dict, and for another
    engine than PyTorch an ONNX file.
    """
    client = MlflowClient(tracking_uri)
    with (
        process_settings(tracking_uri),
        _model_arguments(predictor, engine) as arguments,
        _reopened(tracking_uri, run_id),
        uploads(tracking_uri),
    ):
        info = mlflow.pyfunc.log_model(name="model", **arguments)
    description = f"{labelling_of(predictor.classes).words.does}."
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**tags, ENGINE: engine.name, ENGINE_REASON: engine.reason[:5000]}
    return client.create_model_version(name, info.model_uri, run_id, tags, model_id=info.model_id)


@dataclass(frozen=True)
class StoredNetwork:
    """The network of a stored model, and the ONNX file that an engine computes it from (b"" if PyTorch computes it)."""

    predictor: Predictor
    onnx: bytes


def load_network(model_uri: str, tracking_uri: str) -> StoredNetwork:
    """Download a model and rebuild its network. Raises UserError for a model that this version cannot rebuild."""
    mlflow.set_tracking_uri(tracking_uri)  # the argument below does not reach the registry
    with tempfile.TemporaryDirectory() as temporary:
        try:
            files = Path(mlflow.artifacts.download_artifacts(model_uri, None, None, temporary, tracking_uri))
            artifacts = files / "artifacts"
            predictor = Predictor.from_dict(json.loads((artifacts / "config.json").read_text()))
            predictor.load_state_dict(torch.load(artifacts / "weights.pt", weights_only=True))
        except (MlflowException, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the network of {model_uri} cannot be rebuilt: {first_line(error)}",
                "give a model that this version of Binsweep registered; promoting a sweep again registers it anew",
            ) from error
        network = artifacts / "network.onnx"
        return StoredNetwork(predictor.eval(), network.read_bytes() if network.exists() else b"")
