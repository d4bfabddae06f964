"""The served model: base64 photos in, counts out. The end of the one file that goes to the registry."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from data.decode import ImageError, decode
from models.network import Counter, CounterConfig

MAX_ROWS = 256
BATCH = 32  # bounds the memory of one request


def _decode_base64(text: Any, size: int) -> np.ndarray:
    if not isinstance(text, str):
        raise ImageError(f"expected base64 text, got {type(text).__name__}")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"not base64: {error}") from error
    return decode(content, size)


class ServedCounter(PythonModel):
    """Input: a string column `image`, base64 of JPEG, PNG or WebP. Output, a row each: `count`, `expected_count`
    (mean of the distribution), `confidence` (probability of `count`), `probabilities` (count -> probability) and
    `error`.

    A bad image of a batch gets its reason in `error`, and the others are answered; a request without any good
    image is refused as a whole.
    """

    def load_context(self, context: PythonModelContext) -> None:
        config = json.loads(Path(context.artifacts["config"]).read_text())
        self.counter = Counter(CounterConfig.from_dict(config)).eval()
        weights = torch.load(context.artifacts["weights"], map_location="cpu", weights_only=True)
        self.counter.load_state_dict(weights)
        # The first pass through a network allocates and tunes; no caller should wait for that.
        self._probabilities(
            np.zeros((1, self.counter.config.image_size, self.counter.config.image_size, 3), "u1")
        )

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
                images.append(_decode_base64(text, self.counter.config.image_size))
                errors.append("")
            except ImageError as error:
                errors.append(str(error))
        if not images:
            raise MlflowException.invalid_parameter_value(f"no readable image: {errors[0]}")
        answers = iter(self._answers(np.stack(images)))
        nothing = {"count": None, "expected_count": None, "confidence": None, "probabilities": None}
        rows = [{**(nothing if error else next(answers)), "error": error} for error in errors]
        # As objects: pandas would make floats of whole numbers beside a missing one.
        return pd.DataFrame(rows, dtype=object)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 [N, K] for uint8 images [N, S, S, 3]."""
        with torch.inference_mode():
            parts = [self.counter(batch) for batch in torch.from_numpy(images).split(BATCH)]
            result: np.ndarray = torch.cat(parts).exp().numpy()
        return result

    def _answers(self, images: np.ndarray) -> list[dict[str, Any]]:
        classes = self.counter.config.classes
        answers = []
        for row in self._probabilities(images):
            best = int(row.argmax())
            spread = {str(count): float(p) for count, p in zip(classes, row, strict=True)}
            expected = float(sum(count * p for count, p in zip(classes, row, strict=True)))
            answers.append(
                {
                    "count": int(classes[best]),
                    "expected_count": expected,
                    "confidence": float(row[best]),
                    "probabilities": spread,
                }
            )
        return answers


set_model(ServedCounter())
