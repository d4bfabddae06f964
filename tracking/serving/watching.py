"""Watching a model in its server: what it answers is counted, and two more addresses tell of it and take true labels.

`GET /metrics` answers in Prometheus' format, `POST /feedback` takes the true labels of photos. Neither of them, nor the
counting, is part of the registered model: `mlflow models serve` serves it without.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError, first_line
from binsweep.tracking.monitoring.prometheus import CONTENT_TYPE, metrics_text
from binsweep.tracking.monitoring.reference import load_reference
from binsweep.tracking.monitoring.shadow import Shadow, ShadowTask
from binsweep.tracking.monitoring.store import WatchStore, store_path
from binsweep.tracking.monitoring.truths import parse_feedback
from binsweep.tracking.monitoring.watcher import Watcher
from binsweep.tracking.serving.replica import WatchOptions

MAX_FEEDBACK_BYTES = 2 * 2**20
FLUSH_SECONDS = 2.0  # that a question may wait for what was answered just before it
log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Send], Awaitable[None]]


def usable(options: WatchOptions | None, model: str) -> WatchOptions | None:
    """The options, or None with a warning if the store of a model cannot be written: then it is served unwatched."""
    if options is None:
        return None
    path = store_path(Path(options.home), model)
    try:
        WatchStore(path)
    except (OSError, sqlite3.Error, UserError) as error:
        log.warning("%s is not watched: %s: %s", model, path, first_line(error))
        return None
    return options


def open_watcher(
    options: WatchOptions, model: str, version: str, challenger: ShadowTask | None = None
) -> Watcher:
    """A watcher of a registered version, which also asks a challenger; MLflow's address is the process's."""

    def reference() -> Any:
        found = MlflowClient().get_model_version(model, version)
        return load_reference(mlflow.get_tracking_uri(), found)

    store = WatchStore(store_path(Path(options.home), model))
    shadow = None if challenger is None else Shadow(store, version, challenger, options.keep_thumbnails)
    return Watcher(store, version, reference, options.keep_thumbnails, shadow)


def watch_answers(model: Any, watcher: Watcher) -> str | None:
    """Have the answers of a loaded model counted; returns what it answers with, count or label, if that is known.

    Models that are no Python models, as own code may save them, are left as they are: their answers are of other kinds.
    """
    try:
        inner = model.unwrap_python_model()
    except MlflowException:
        return None
    predict = inner.predict

    @functools.wraps(predict)
    def predict_and_count(context: Any, model_input: Any, *arguments: Any, **named: Any) -> Any:
        about_photos = isinstance(model_input, pd.DataFrame) and "image" in model_input
        try:
            answers = predict(context, model_input, *arguments, **named)
        except Exception:
            if about_photos:
                watcher.refused(len(model_input))
            raise
        if about_photos and isinstance(answers, pd.DataFrame):
            watcher.answered(model_input["image"].tolist(), answers)
        return answers

    inner.predict = predict_and_count
    schema = model.metadata.get_output_schema()
    names = set(schema.input_names()) if schema is not None and schema.has_input_names() else set()
    return next((name for name in ("count", "label") if name in names), None)


class WatchedApp:
    """MLflow's application with `/metrics` and `/feedback`; the requests to `/invocations` are timed and counted."""

    def __init__(self, app: Application, watcher: Watcher, model: str, answer: str | None) -> None:
        self._app, self._watcher, self._model, self._answer = app, watcher, model, answer

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        path, method = (scope.get("path"), scope.get("method")) if scope["type"] == "http" else ("", "")
        if path == "/metrics" and method == "GET":
            await self._answer_with(send, *await asyncio.to_thread(self._metrics))
        elif path == "/feedback" and method == "POST":
            body = await _body(receive)
            await self._answer_with(send, *await asyncio.to_thread(self._feedback, body))
        elif path == "/invocations":
            await self._timed(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _timed(self, scope: Any, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            self._watcher.request_done(status, time.monotonic() - began)

    def _metrics(self) -> tuple[int, str, bytes]:
        self._watcher.flush(FLUSH_SECONDS)
        try:
            return 200, CONTENT_TYPE, metrics_text(self._watcher, self._model).encode()
        except (OSError, sqlite3.Error) as error:
            return 503, CONTENT_TYPE, f"# {first_line(error)}\n".encode()

    def _feedback(self, body: bytes | None) -> tuple[int, str, bytes]:
        if body is None:
            return _json(413, {"error": f"more than {MAX_FEEDBACK_BYTES:,} bytes"})
        try:
            truths = parse_feedback(body, self._answer)
            self._watcher.flush(FLUSH_SECONDS)
            known = self._watcher.store.add_truths(truths)
        except UserError as error:
            return _json(400, {"error": f"{error.message}; expected: {error.hint}"})
        except (OSError, sqlite3.Error) as error:
            return _json(503, {"error": f"the true labels cannot be kept: {first_line(error)}"})
        return _json(200, {"kept": len(truths), "answered": known})

    async def _answer_with(self, send: Send, status: int, kind: str, body: bytes) -> None:
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes | None:
    """A request's body; None if it is too long, or the client has gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        size += len(message.get("body", b""))
        if size > MAX_FEEDBACK_BYTES:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _json(status: int, value: dict[str, Any]) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(value).encode()
