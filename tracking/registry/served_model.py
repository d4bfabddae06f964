"""The served model: base64 photos in, counts or names of classes out, whatever engine computes.

It is part of the one source file in the registry, whose last line makes a `ServedCountingModel` of the version's engine
the model.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from binsweep.data.decode import MAX_BYTES, ImageError, decode
from binsweep.data.resource_limits import cores
from binsweep.models.decoding import MAX_ROWS, answer_columns, answer_rows

# Photos in one pass of the network: twice as many per core are no faster (benchmarks/RESULTS.md), and other requests
# wait longer. Every batch size up to the maximum is compiled at the start, so the maximum is small.
PHOTOS_PER_CORE, MAX_CHUNK_PHOTOS = 2, 8
MAX_REASONS = 3  # of unreadable rows, in the refusal of a request


_DATA_ADDRESS = re.compile(r"\s*data:[^,]*;\s*base64\s*,", re.IGNORECASE)
_NO_WHITESPACE = dict.fromkeys(map(ord, " \t\r\n\f\v"))
_URL_SAFE = str.maketrans("-_", "+/")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


# The note on every error in the model after a request was read.
_SERVER_FAULT = "not the request's fault"


def from_base64(text: str) -> bytes:
    """Decode base64 as clients write it: in lines, as a data: URL, with - and _, without padding."""
    address = _DATA_ADDRESS.match(text)
    if address is not None:
        text = unquote(text[address.end() :])
    text = text.translate(_NO_WHITESPACE).translate(_URL_SAFE).rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _decode_base64(text: Any, size: int, interpolation: str) -> np.ndarray | str:
    """uint8 RGB [size, size, 3], or the reason why there is none."""
    if text is None or text != text or text in ("None", "nan"):  # what MLflow makes of a null
        return "expected base64 text, got nothing (null)"
    if not isinstance(text, str):
        return f"expected base64 text, got {type(text).__name__}"
    too_large = f"more than the {MAX_BYTES:,} bytes that are allowed"
    if len(text) > 2 * MAX_BYTES:  # base64 adds a third, and line breaks a little
        return too_large
    try:
        content = from_base64(text)
    except ValueError as error:
        return f"not base64: {error}"
    if len(content) > MAX_BYTES:
        return too_large
    try:
        return decode(content, size, interpolation)
    except ImageError as error:
        return str(error)


def _join_reasons(errors: Sequence[str]) -> str:
    """The reasons of the first rows, each with its row where there are several."""
    if len(errors) == 1:
        return errors[0]
    rows = [f"row {row} of {len(errors)}: {error[:120]}" for row, error in enumerate(errors, 1)]
    more = f"; and {len(rows) - MAX_REASONS} more" if len(rows) > MAX_REASONS else ""
    return "; ".join(rows[:MAX_REASONS]) + more


def _error_line(error: Exception) -> str:
    """The error in one line, without the input that MLflow puts before it, and without a stack trace."""
    if isinstance(error.__context__, UnicodeDecodeError):  # its message holds the whole body
        return "the body is not UTF-8 text (compressed bodies are not supported)"
    message = error.message if isinstance(error, MlflowException) else f"{type(error).__name__}: {error}"
    if "enforce schema" in message:
        message = re.split(r"\sError: ", message)[-1]
    message = message.rpartition("\nError: ")[2].strip()
    return (message.splitlines() or ["the request cannot be read"])[0][:500]


def _refuse_in_one_line(answer: Callable[..., Any]) -> Callable[..., Any]:
    def answer_or_refuse(data: Any, content_type: str | None, *arguments: Any) -> Any:
        if content_type is None:
            raise MlflowException.invalid_parameter_value(
                "the request has no Content-Type: application/json is usual"
            )
        if isinstance(data, bytes):  # Excel and PowerShell write it
            data = data.removeprefix(_BYTE_ORDER_MARK)
        try:
            return answer(data, content_type.lower(), *arguments)  # media types are case-insensitive
        except Exception as error:
            cause = error.__context__ or error  # MLflow turns errors of the model into bad requests
            if _SERVER_FAULT in getattr(cause, "__notes__", ()) or isinstance(error, MemoryError | OSError):
                logging.getLogger(__name__).error("", exc_info=cause)
                message = f"the server failed, not the request: {type(cause).__name__}: {cause}"
                raise MlflowException(message.splitlines()[0][:500], INTERNAL_ERROR) from None
            raise MlflowException.invalid_parameter_value(_error_line(error)) from None

    return answer_or_refuse


def _settle_server() -> None:
    """If this process is MLflow's scoring server: short error answers, no garbage collection pauses, memory kept.

    - MLflow's answers to bad requests contain the whole input or a stack trace, and some (no content type, deep
      nesting, an empty CSV) are an error 500; here they are a 400 with one line. Errors in the model it reports as
      bad requests; here they are an error 500, with the stack trace in the log.
    - Garbage collection regularly scans half a million objects of libraries, which delays every answer by 0.3 s;
      gc.freeze excludes them.
    - glibc returns a layer's memory at once and takes it again page by page, which costs a fifth of a batch's time
      (benchmarks/RESULTS.md).
    """
    server = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is None:
        return
    server.invocations = _refuse_in_one_line(server.invocations)  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries than glibc lack it
    if mallopt is not None:
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD: bytes that may stay unused at the heap's end
        mallopt(-4, 0)  # M_MMAP_MAX: no memory outside the heap


def _registered_version(model: Path) -> str | None:
    """The version that MLflow records next to a model that it downloaded from the registry; None for others."""
    for folder in model.parents:
        if (folder / "MLmodel").exists():
            note = folder / "registered_model_meta"
            return str(yaml.safe_load(note.read_text())["model_version"]) if note.exists() else None
    return None


def _max_threads() -> int:
    """The threads that may compute: one for each core, or fewer by OMP_NUM_THREADS."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(wanted)) if wanted.isdigit() and int(wanted) else cores()


class Engine(Protocol):
    """What computes a version's network. It is created and called by one thread."""

    threads: int  # with which it computes

    def __init__(self, files: Mapping[str, str], max_threads: int) -> None:
        """`files` are the model's files by name."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 [N, K] of uint8 photos [N, S, S, 3]."""


class ServedCountingModel(PythonModel):
    """Input: a string column `image`, base64 of JPEG, PNG, WebP, TIFF, AVIF or HEIC.

    Output, one row each: `count` and `expected_count` (mean of the distribution), or for a model of named classes
    `label`; `confidence` (its probability), `probabilities` (count or name -> probability), `model_version` and
    `error`.

    A bad image in a batch gets the reason in `error`, and the others are answered; a request without any good image
    is refused as a whole.
    """

    def __init__(self, engine: type[Engine]) -> None:
        self.engine = engine

    def load_context(self, context: PythonModelContext) -> None:
        # A single thread loads the network and computes with all cores.
        self.counting = ThreadPoolExecutor(1, "counting")
        self.waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
        config = json.loads(Path(context.artifacts["config"]).read_text())
        # All networks of a model have the same classes, the same size and the same interpolation.
        first = config["counters"][0]
        self.classes, self.image_size, self.interpolation = (
            first[key] for key in ("classes", "image_size", "interpolation")
        )
        self.decoding = config["decoding"]
        self.version = _registered_version(Path(context.artifacts["config"]))
        self.network = self.counting.submit(self.engine, context.artifacts, _max_threads()).result()
        self.chunk = min(PHOTOS_PER_CORE * self.network.threads, MAX_CHUNK_PHOTOS)
        self.readers = ThreadPoolExecutor(self.network.threads, "reading")
        _settle_server()
        # The first pass of each batch size allocates and compiles; no caller should wait for that.
        for rows in range(1, self.chunk + 1):
            self._probabilities(np.zeros((rows, *2 * (self.image_size,), 3), np.uint8))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        if "image" not in model_input or len(model_input) == 0:
            raise MlflowException.invalid_parameter_value("expected a column 'image' with at least one row")
        if len(model_input) > MAX_ROWS:
            raise MlflowException.invalid_parameter_value(
                f"{len(model_input)} rows; at most {MAX_ROWS} per request"
            )
        try:
            return self._predict(model_input)
        except MlflowException:
            raise
        except Exception as error:
            error.add_note(_SERVER_FAULT)
            raise

    def _predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        decode_one = partial(_decode_base64, size=self.image_size, interpolation=self.interpolation)
        decoded = list(self.readers.map(decode_one, model_input["image"]))
        images = [one for one in decoded if not isinstance(one, str)]
        errors = [one if isinstance(one, str) else "" for one in decoded]
        if not images:
            raise MlflowException.invalid_parameter_value(f"no readable image: {_join_reasons(errors)}")
        answers = iter(answer_rows(self._probabilities(np.stack(images)), self.classes, self.decoding))
        nothing = dict.fromkeys(answer_columns(self.classes))
        rows = [
            {**(nothing if error else next(answers)), "model_version": self.version, "error": error}
            for error in errors
        ]
        # As objects, because pandas turns integers into floats if a value is missing.
        return pd.DataFrame(rows, dtype=object)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, K] for uint8 images [N, S, S, 3]. Requests take turns after each chunk."""
        tables = []
        for start in range(0, len(images), self.chunk):
            answer: Future[np.ndarray] = Future()
            self.waiting.append((images[start : start + self.chunk], answer))
            self.counting.submit(self._compute)
            tables.append(answer.result())
        return np.concatenate(tables)

    def _compute(self) -> None:
        """Compute the longest waiting chunk, and with it as many of the next ones as fit into one chunk."""
        chunks: list[np.ndarray] = []
        answers: list[Future[np.ndarray]] = []
        while self.waiting and sum(len(one) for one in (*chunks, self.waiting[0][0])) <= self.chunk:
            chunk, answer = self.waiting.popleft()
            chunks.append(chunk)
            answers.append(answer)
        if not chunks:  # they were computed with an earlier one
            return
        try:
            table = self.network(np.concatenate(chunks))
        except Exception as error:
            for answer in answers:
                answer.set_exception(error)
        else:
            ends = np.cumsum([len(one) for one in chunks])
            for answer, part in zip(answers, np.split(table, ends[:-1]), strict=True):
                answer.set_result(part)
