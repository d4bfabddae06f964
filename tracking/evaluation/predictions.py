"""A registered model's predictions for a list of photos, computed in a process of its own.

Two versions of the served file must not share one interpreter, and a fresh process evaluates exactly what a server
would load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binsweep.data.decode import ImageError, read
from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.data.python_process import python_module, subprocess_environment
from binsweep.models.metrics import Labels

BATCH_PHOTOS = 32
LOAD_SECONDS = 120
SECONDS_PER_PHOTO = 5  # far above any backbone's time on one core: only a hang takes longer


@dataclass(frozen=True)
class Predictions:
    """A model's predictions: `classes` in their order, `probabilities` float64 [N, K], `labels` int64 or str [N].

    `errors` [N] holds the reason why a photo has no prediction, "" for all others. A photo without a prediction has
    the probabilities NaN and the count -1, or the name "".
    """

    classes: tuple[Label, ...]
    probabilities: NDArray[np.float64]
    labels: Labels
    errors: tuple[str, ...]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which photos have a prediction, [N]."""
        return np.array([not error for error in self.errors], bool)

    def take(self, rows: NDArray[np.bool_] | slice) -> Predictions:
        """The predictions for some of the photos."""
        errors = np.array(self.errors, object)[rows]
        return Predictions(self.classes, self.probabilities[rows], self.labels[rows], tuple(errors))


def answer_of(row: Mapping[str, Any]) -> Any:
    """The count or the label of a model's answer."""
    return row["label"] if "label" in row else row["count"]


def require_answers(predictions: Predictions, ids: Sequence[str], model: str) -> None:
    """Raise UserError, with the first reason, if some of the photos `ids` have no prediction."""
    missing = [row for row, error in enumerate(predictions.errors) if error]
    if missing:
        raise UserError(
            f"{model} has no prediction for {len(missing)} of {len(ids)} photos; "
            f"{ids[missing[0]]}: {predictions.errors[missing[0]]}",
            "has the file changed since it was read?",
        )


def evaluate(model_uri: str, images: Sequence[Path], tracking_uri: str) -> Predictions:
    """Load `model_uri` in a fresh process and predict every image.

    Raises UserError if it cannot be loaded, or predicts none of the images.
    """
    with tempfile.TemporaryDirectory() as temporary:
        inputs, outputs = Path(temporary) / "images.json", Path(temporary) / "predictions.json"
        inputs.write_text(json.dumps([str(path.resolve()) for path in images]))
        timeout = LOAD_SECONDS + SECONDS_PER_PHOTO * len(images)
        try:
            process = subprocess.run(
                python_module(
                    "binsweep.tracking.evaluation.predictions", model_uri, str(inputs), str(outputs)
                ),
                env=subprocess_environment() | {"MLFLOW_TRACKING_URI": tracking_uri},
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{model_uri} was not evaluated within {timeout} s", "try again on a less busy machine"
            ) from error
        if process.returncode != 0:
            reason = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
            raise UserError(
                f"{model_uri} could not be evaluated: {reason}", "is it a model that binsweep registered?"
            )
        rows = json.loads(outputs.read_text())
    errors = tuple(str(row["error"]) for row in rows)
    first = next((row for row in rows if not row["error"]), None)
    if first is None:
        raise UserError(
            f"{model_uri} predicts none of {len(images)} photos: {errors[0] if errors else 'none given'}",
            "is it a model that binsweep registered?",
        )
    named = isinstance(first["answer"], str)
    classes: tuple[Label, ...] = tuple(name if named else int(name) for name in first["probabilities"])
    table = [
        [np.nan] * len(classes) if row["error"] else [row["probabilities"][str(label)] for label in classes]
        for row in rows
    ]
    nothing: Label = "" if named else -1
    labels = np.array([nothing if row["error"] else row["answer"] for row in rows])
    return Predictions(classes, np.array(table, np.float64), labels, errors)


def _main(model_uri: str, inputs: Path, outputs: Path) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(model_uri)
    paths = [Path(path) for path in json.loads(inputs.read_text())]
    rows = []
    for start in range(0, len(paths), BATCH_PHOTOS):
        rows += _predict(model, paths[start : start + BATCH_PHOTOS])
    outputs.write_text(json.dumps(rows, default=int))


def _predict(model: Any, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each photo: `answer` and `probabilities`, or in `error` the reason why there are none."""
    from mlflow.exceptions import MlflowException

    from binsweep.tracking.registry.versions import image_rows

    contents = [_read_photo(path) for path in paths]
    photos = [content for content in contents if isinstance(content, bytes)]
    try:
        table = model.predict(image_rows(photos)) if photos else None
    except MlflowException as error:
        if len(paths) == 1:
            return [{"error": error.message}]
        # A request without any good photo is refused as a whole: send each alone to get its reason.
        return [row for path in paths for row in _predict(model, [path])]
    answers = iter([] if table is None else table.to_dict(orient="records"))
    rows = [next(answers) if isinstance(content, bytes) else {"error": content} for content in contents]
    return [
        {"error": row["error"]}
        if row.get("error")
        else {"answer": answer_of(row), "probabilities": row["probabilities"], "error": ""}
        for row in rows
    ]


def _read_photo(path: Path) -> bytes | str:
    """A photo's bytes, or why it cannot be read."""
    try:
        return read(path)
    except ImageError as error:
        return str(error)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
