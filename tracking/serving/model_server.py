"""Serve a registered model over HTTP with MLflow's own command, and predict with a server or in this process."""

import base64
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores
from binsweep.tracking.fluent_state import process_settings
from binsweep.tracking.processes import (
    LOOPBACK,
    Server,
    describe_failed_start,
    end,
    free_port,
    require_port,
    root_cause,
    spawn,
    tail,
    wait_until_answers,
)
from binsweep.tracking.registry.versions import find_version, is_own_code

T = TypeVar("T")
BATCH_PHOTOS = 32
# The answers to the bytes of photos' files, in order.
Answer = Callable[[Sequence[bytes]], list[dict[str, Any]]]
START_SECONDS = 120.0  # to download the model and import PyTorch on a busy machine


@dataclass(frozen=True)
class ServedModel:
    """A model that answers at `url` (POST `url`/invocations), and its server."""

    url: str
    server: Server


@contextmanager
def serve_model(
    model_uri: str, tracking_uri: str, port: int | None = None, host: str = LOOPBACK
) -> Iterator[ServedModel]:
    """Serve `model_uri` on `host` and `port` (default: a free one) for the block.

    Runs exactly `mlflow models serve -m MODEL_URI --env-manager local --host HOST -p PORT` and ends all of its
    processes afterwards. `host` is any address of this machine (0.0.0.0: all of them).
    Raises UserError if the model does not exist, the port is taken, or the model does not answer /ping within
    120 s.
    """
    if port is None:
        port = free_port(host)
    else:
        require_port(port, host)
    require_model(model_uri, tracking_uri)
    with tempfile.TemporaryDirectory(prefix="binsweep-serve-") as temporary:
        folder = Path(temporary)
        log = folder / "serve.log"
        command = ["models", "serve", "-m", model_uri, "--env-manager", "local"]
        command += ["--host", host, "-p", str(port)]
        server = spawn(command, port, folder, log, server_environment(folder, tracking_uri), host)
        try:
            if not wait_until_answers(server, "/ping", START_SECONDS):
                reason = describe_failed_start(server, START_SECONDS)
                raise UserError(
                    f"the server of model {model_uri} {reason}; its log ends:\n{tail(log)}",
                    "fix what the log reports; `mlflow models serve` with the same model shows all of it",
                )
            yield ServedModel(server.url, server)
        finally:
            end(server)


def predict(url: str, images: Sequence[bytes], timeout: float) -> list[dict[str, Any]]:
    """Send `images` (the bytes of photos' files) to the model at `url`; returns one answer each, in order.

    `url` may leave out http://, and may end with a slash or with /invocations.
    Raises UserError if there is no answer within `timeout` seconds, or an error.
    """
    if not images:
        return []
    body = {"dataframe_split": {"columns": ["image"], "data": [[text] for text in _base64(images)]}}
    hint = "send photos (JPEG, PNG, WebP, TIFF, AVIF or HEIC) to a model that Binsweep registered"
    url, reply = _post(url, body, timeout, hint)
    return _rows(url, reply, len(images))


def ask_any(url: str, body: dict[str, Any], timeout: float) -> list[Any]:
    """Send a request in MLflow's format to any model at `url`; returns its predictions.

    Raises what `predict` raises.
    """
    _, reply = _post(url, body, timeout, "compare the request with the model's signature")
    answer = reply.json()
    found = answer.get("predictions") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise UserError(
            f"the model server {url} answered without a list of predictions", "is it an MLflow model?"
        )
    return found


def _post(url: str, body: dict[str, Any], timeout: float, hint: str) -> tuple[str, requests.Response]:
    """The address without /invocations, and the reply; `hint` says what to do about a refusal."""
    url = url.strip() if "://" in url else f"http://{url.strip()}"
    url = url.rstrip("/").removesuffix("/invocations").rstrip("/")
    try:
        reply = requests.post(f"{url}/invocations", json=body, timeout=timeout)
    except requests.RequestException as error:
        reason = f"no answer in {timeout:g} s" if isinstance(error, requests.Timeout) else root_cause(error)
        raise UserError(
            f"the model server {url} cannot be reached: {reason}",
            "start one with `binsweep serve`, or correct the URL",
        ) from error
    if reply.status_code >= 500:
        raise UserError(
            f"the model server {url} failed: it answered {reply.status_code}: {_reason(reply)}",
            "its output says more; try again once that is fixed",
        )
    if not reply.ok:
        raise UserError(f"the model server {url} answered {reply.status_code}: {_reason(reply)}", hint)
    return url, reply


def measure_latencies(ask: Callable[[T], object], requests: Iterable[T]) -> list[float]:
    """The seconds of each request, sent one after another by `ask`; raises what that raises."""
    seconds = []
    for request in requests:
        started = time.perf_counter()
        ask(request)
        seconds.append(time.perf_counter() - started)
    return seconds


def open_model(model_uri: str, tracking_uri: str) -> Answer:
    """A function that answers as `predict` does, with the model loaded into this process instead of a server.

    Raises UserError if the model does not exist or takes no photos; the function raises it if the model refuses the
    images.
    """
    (answer,) = open_models(model_uri, tracking_uri, 1)
    return answer


def open_models(model_uri: str, tracking_uri: str, number: int) -> list[Answer]:
    """As many functions as `open_model` gives, for threads that ask at once: each has the model, and its share of the
    cores to compute with."""
    photo_version(model_uri, tracking_uri)
    with process_settings(tracking_uri), tempfile.TemporaryDirectory(prefix="binsweep-model-") as folder:
        files = mlflow.artifacts.download_artifacts(model_uri, dst_path=folder)
        with _threads_of_each(number):
            models = [mlflow.pyfunc.load_model(files) for _ in range(number)]
    inputs = models[0].metadata.get_input_schema()
    if inputs is not None and "image" not in inputs.input_names():
        raise _takes_no_photos(model_uri)
    return [partial(_answer, model_uri, model) for model in models]


def registered_version(model_uri: str, tracking_uri: str) -> ModelVersion:
    """The registered version at an address. Raises UserError if there is none."""
    require_model(model_uri, tracking_uri)
    version = find_version(model_uri, tracking_uri)
    if version is None:
        raise UserError(f"{model_uri} is not a registered version", "give NAME, NAME@alias or NAME/version")
    return version


def require_photos(version: ModelVersion) -> None:
    """Raise UserError if a version is of own training code: what it takes is known to its code alone."""
    if is_own_code(version):
        raise _takes_no_photos(f"{version.name} version {version.version}")


def photo_version(model_uri: str, tracking_uri: str) -> ModelVersion | None:
    """The registered version at an address; None for addresses outside of the registry.

    Raises UserError if there is no such version, or if it is of own training code.
    """
    require_model(model_uri, tracking_uri)
    version = find_version(model_uri, tracking_uri)
    if version is not None:
        require_photos(version)
    return version


def _takes_no_photos(model: str) -> UserError:
    return UserError(
        f"{model} is a model of own training code, not of photos",
        "`binsweep serve` serves it, and mlflow.pyfunc.load_model(...).predict(...) asks it (docs/own_code.md)",
    )


@contextmanager
def _threads_of_each(number: int) -> Iterator[None]:
    """Let each of so many models that are loaded in the block compute with its share of the cores.

    Served models read OMP_NUM_THREADS when they are loaded.
    """
    if number == 1:
        yield
        return
    before = os.environ.get("OMP_NUM_THREADS", "")
    limit = min(cores(), int(before)) if before.isdigit() else cores()
    os.environ["OMP_NUM_THREADS"] = str(max(1, limit // number))
    try:
        yield
    finally:
        os.environ["OMP_NUM_THREADS"] = before
        if not before:
            del os.environ["OMP_NUM_THREADS"]


def _answer(model_uri: str, model: Any, images: Sequence[bytes]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        for start in range(0, len(images), BATCH_PHOTOS):
            batch = images[start : start + BATCH_PHOTOS]
            rows += model.predict(pd.DataFrame({"image": _base64(batch)})).to_dict("records")
    except MlflowException as error:
        raise UserError(
            f"{model_uri} refuses: {error.message}", "give photos (JPEG, PNG, WebP, TIFF, AVIF or HEIC)"
        ) from error
    return [{key: _to_json(value) for key, value in row.items()} for row in rows]


def require_model(model_uri: str, tracking_uri: str) -> None:
    """Raise UserError, naming what exists, if `model_uri` is a registry address without a model.

    Other addresses (runs:/, a path, models:/ with a model's own id) are left to MLflow.
    """
    address = re.fullmatch(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))", model_uri)
    if address is None:
        return
    name, alias, version = address["name"], address["alias"], address["version"]
    client = MlflowClient(tracking_uri)
    try:
        model: RegisteredModel = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise UserError(
                f"MLflow at {tracking_uri} cannot tell whether model {name!r} exists: {error.message}",
                "check that the server is up, then try again",
            ) from error
        names = sorted(found.name for found in client.search_registered_models(max_results=100))
        there = f"registered models: {', '.join(names)}" if names else "no model is registered yet"
        raise UserError(
            f"model {name!r} is not registered at {tracking_uri}",
            f"{there}; `binsweep promote SWEEP` registers a sweep's best",
        ) from error
    if alias is not None and alias not in model.aliases:
        known = ", ".join(f"{alias} (version {number})" for alias, number in sorted(model.aliases.items()))
        others = f"its aliases: {known or 'none'}"
        if known:
            others += f"; name one as {name}@{min(model.aliases)}"
        raise UserError(f"model {name!r} has no alias {alias!r}", others)
    if version is not None and version != "latest":
        try:
            client.get_model_version(name, version)
        except MlflowException as error:
            # Compared here: MLflow's filters cannot express every name that a model may have.
            versions = [int(found.version) for found in client.search_model_versions() if found.name == name]
            raise UserError(
                f"model {name!r} has no version {version!r}",
                f"its versions: {', '.join(map(str, sorted(versions))) or 'none'}",
            ) from error


def server_environment(folder: Path, tracking_uri: str) -> Mapping[str, str]:
    """The environment of the serving process, which downloads the model from our server into `folder`.

    MLflow finds uvicorn by PATH, and this Python's virtual environment may not be active.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return os.environ | {"MLFLOW_TRACKING_URI": tracking_uri, "PATH": path, "TMPDIR": str(folder)}


def _base64(images: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(content).decode("ascii") for content in images]


def _reason(reply: requests.Response) -> str:
    """The first line of the error; MLflow puts a printout of the input before the model's own message."""
    try:
        message = str(reply.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = reply.text
    if "enforce schema" in message:
        message = re.split(r"\sError: ", message)[-1]
    message = message.rpartition("\nError: ")[2]
    return (message.strip().splitlines() or ["no reason given"])[0][:300]


def _rows(url: str, reply: requests.Response, expected: int) -> list[dict[str, Any]]:
    try:
        rows = reply.json()["predictions"]
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list) or len(rows) != expected or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{url} does not answer with one object for each of {expected} image(s): {reply.text[:200]!r}",
            "give the address of a server of a model that Binsweep registered",
        )
    return rows


def _to_json(value: Any) -> Any:
    """A cell of a data frame as JSON carries it: no NumPy types, None for NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
