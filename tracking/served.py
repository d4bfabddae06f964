"""The served model: base64 photos in, counts out. The end of the one file that goes to the registry."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from data.decode import ImageError, decode
from models.network import fold_norms
from models.predictor import MAX_PHOTO_BYTES, MAX_ROWS, Predictor, decode_counts

# Photos that one thread computes at a time: with 8 they are a third fewer a second (docs/promotion.md). More go to
# several threads, each with its own: threads that share a batch wait for one another at every layer
# (docs/performance.md).
CHUNK = 4


def _decode_base64(text: Any, size: int) -> np.ndarray:
    if not isinstance(text, str):
        raise ImageError(f"expected base64 text, got {type(text).__name__}")
    if len(text) > (MAX_PHOTO_BYTES + 2) // 3 * 4:
        raise ImageError(f"more than the {MAX_PHOTO_BYTES:,} bytes that are allowed")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"not base64: {error}") from error
    return decode(content, size)


def _one_line(error: Exception) -> str:
    """What is wrong, without the input that MLflow sets before it, and without a stack trace."""
    said = error.message if isinstance(error, MlflowException) else f"{type(error).__name__}: {error}"
    said = said.rpartition("\nError: ")[2].strip()
    return (said.splitlines() or ["the request cannot be read"])[0][:500]


def _refuse_in_one_line(answer: Callable[..., Any]) -> Callable[..., Any]:
    def answer_or_refuse(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except Exception as error:
            raise MlflowException.invalid_parameter_value(_one_line(error)) from None

    return answer_or_refuse


def _guard_server() -> None:
    """Make MLflow's scoring server, where this process is one, refuse bad requests with 400 and one line.

    Its own answers carry the whole input or a stack trace, and some (no content type, deep nesting, a CSV of
    nothing) are an error 500.
    """
    server = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is not None:
        server.invocations = _refuse_in_one_line(server.invocations)  # type: ignore[attr-defined]


def _registered_version(model: Path) -> str | None:
    """The version that MLflow notes beside a model which it fetched from the registry; None for any other."""
    for folder in model.parents:
        if (folder / "MLmodel").exists():
            note = folder / "registered_model_meta"
            return str(yaml.safe_load(note.read_text())["model_version"]) if note.exists() else None
    return None


class ServedCounter(PythonModel):
    """Input: a string column `image`, base64 of JPEG, PNG or WebP. Output, a row each: `count`, `expected_count`
    (mean of the distribution), `confidence` (probability of `count`), `probabilities` (count -> probability),
    `model_version` and `error`.

    A bad image of a batch gets its reason in `error`, and the others are answered; a request without any good
    image is refused as a whole.
    """

    def load_context(self, context: PythonModelContext) -> None:
        config = Path(context.artifacts["config"])
        self.predictor = Predictor.from_dict(json.loads(config.read_text())).eval()
        weights = torch.load(context.artifacts["weights"], map_location="cpu", weights_only=True)
        self.predictor.load_state_dict(weights)
        fold_norms(self.predictor)
        self.predictor.to(memory_format=torch.channels_last)
        self.version = _registered_version(config)
        self.turn = threading.Lock()  # one request at a time computes, with every core
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(cores, "counting", torch.set_num_threads, (1,))
        started = threading.Barrier(cores)
        list(self.pool.map(lambda _: started.wait(), range(cores)))
        torch.set_num_threads(cores)  # what the last of them set counts for new threads, too
        # The first pass through a network allocates and tunes; no caller should wait for that.
        for rows in (1, CHUNK + 1):
            size = self.predictor.image_size
            self._probabilities(np.zeros((rows, size, size, 3), np.uint8))
        _guard_server()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        if "image" not in model_input or len(model_input) == 0:
            raise MlflowException.invalid_parameter_value("expected a column 'image' with at least one row")
        if len(model_input) > MAX_ROWS:
            raise MlflowException.invalid_parameter_value(
                f"{len(model_input)} rows; at most {MAX_ROWS} a request"
            )
        images, errors = [], []
        for text in model_input["image"]:
            try:
                images.append(_decode_base64(text, self.predictor.image_size))
                errors.append("")
            except ImageError as error:
                errors.append(str(error))
        if not images:
            raise MlflowException.invalid_parameter_value(f"no readable image: {errors[0]}")
        answers = iter(self._answers(np.stack(images)))
        nothing = dict.fromkeys(("count", "expected_count", "confidence", "probabilities"))
        rows = [
            {**(nothing if error else next(answers)), "model_version": self.version, "error": error}
            for error in errors
        ]
        # As objects: pandas would make floats of whole numbers beside a missing one.
        return pd.DataFrame(rows, dtype=object)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, K] for uint8 images [N, S, S, 3]."""
        chunks = torch.from_numpy(images).split(CHUNK)
        with self.turn:
            parts = [self._chunk(chunks[0])] if len(chunks) == 1 else list(self.pool.map(self._chunk, chunks))
        return np.concatenate(parts)

    def _chunk(self, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            result: np.ndarray = self.predictor(images).numpy()
        return result

    def _answers(self, images: np.ndarray) -> list[dict[str, Any]]:
        classes = self.predictor.classes
        table = self._probabilities(images)
        answers = []
        for row, count in zip(table, decode_counts(table, classes, self.predictor.decoding), strict=True):
            spread = {str(one): float(p) for one, p in zip(classes, row, strict=True)}
            expected = float(sum(one * p for one, p in zip(classes, row, strict=True)))
            answers.append(
                {
                    "count": int(count),
                    "expected_count": expected,
                    "confidence": spread[str(count)],
                    "probabilities": spread,
                }
            )
        return answers


set_model(ServedCounter())
