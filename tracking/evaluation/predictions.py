"""What a registered model says about a list of photos, asked in a process of its own.

A process of its own, because two versions of the served file must not share one interpreter, and because what
is evaluated is then exactly what a server would load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binsweep.data.decode import ImageError, read
from binsweep.data.errors import UserError
from binsweep.data.python_process import python_module, subprocess_environment

ROWS = 32  # photos a call
SECONDS_PER_IMAGE = 5  # far above any backbone's time on one core: only a hang takes longer


@dataclass(frozen=True)
class Predictions:
    """A model's answers: `classes` ascending, `probabilities` float64 [N, K], `counts` int64 [N].

    `errors` [N] says why a photo has no answer, and "" of all others; without one its probabilities are NaN and its
    count -1.
    """

    classes: tuple[int, ...]
    probabilities: NDArray[np.float64]
    counts: NDArray[np.int64]
    errors: tuple[str, ...]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which photos have an answer, [N]."""
        return np.array([not error for error in self.errors], bool)

    def take(self, rows: NDArray[np.bool_] | slice) -> Predictions:
        """The answers about some of the photos."""
        errors = np.array(self.errors, object)[rows]
        return Predictions(self.classes, self.probabilities[rows], self.counts[rows], tuple(errors))


def require_answers(said: Predictions, ids: Sequence[str], model: str) -> None:
    """Raise UserError, with the first reason, where a model has no answer about some of the photos `ids`."""
    missing = [place for place, error in enumerate(said.errors) if error]
    if missing:
        raise UserError(
            f"{model} has no answer about {len(missing)} of {len(ids)} photos; "
            f"{ids[missing[0]]}: {said.errors[missing[0]]}",
            "has the file changed since it was read?",
        )


def evaluate(model_uri: str, images: Sequence[Path], tracking_uri: str) -> Predictions:
    """Load `model_uri` in a fresh process and ask it for every image.

    Raises UserError when it cannot be loaded, or has no answer about any image.
    """
    with tempfile.TemporaryDirectory() as temporary:
        asked, said = Path(temporary) / "images.json", Path(temporary) / "said.json"
        asked.write_text(json.dumps([str(path.resolve()) for path in images]))
        limit = 120 + SECONDS_PER_IMAGE * len(images)
        try:
            done = subprocess.run(
                python_module("binsweep.tracking.evaluation.predictions", model_uri, str(asked), str(said)),
                env=subprocess_environment() | {"MLFLOW_TRACKING_URI": tracking_uri},
                capture_output=True,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{model_uri} gave no answer in {limit} s", "try again on a quieter machine"
            ) from error
        if done.returncode != 0:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(
                f"{model_uri} could not be evaluated: {reason}", "is it a model that binsweep registered?"
            )
        rows = json.loads(said.read_text())
    errors = tuple(str(row["error"]) for row in rows)
    first = next((row for row in rows if not row["error"]), None)
    if first is None:
        raise UserError(
            f"{model_uri} has no answer about any of {len(images)} photos: {errors[0] if errors else 'none given'}",
            "is it a model that binsweep registered?",
        )
    classes = tuple(int(count) for count in first["probabilities"])
    table = [
        [np.nan] * len(classes) if row["error"] else [row["probabilities"][str(count)] for count in classes]
        for row in rows
    ]
    counts = [-1 if row["error"] else row["count"] for row in rows]
    return Predictions(classes, np.array(table, np.float64), np.array(counts, np.int64), errors)


def _main(model_uri: str, asked: Path, said: Path) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(model_uri)
    paths = [Path(path) for path in json.loads(asked.read_text())]
    rows = []
    for start in range(0, len(paths), ROWS):
        rows += _ask(model, paths[start : start + ROWS])
    said.write_text(json.dumps(rows, default=int))


def _ask(model: Any, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """An answer for each photo: `count` and `probabilities`, or the reason in `error` why there is none."""
    from mlflow.exceptions import MlflowException

    from binsweep.tracking.registry.versions import image_rows

    contents = [_content(path) for path in paths]
    photos = [content for content in contents if isinstance(content, bytes)]
    try:
        table = model.predict(image_rows(photos)) if photos else None
    except MlflowException as error:
        if len(paths) == 1:
            return [{"error": error.message}]
        # A request without any good photo is refused as a whole: each one's reason is wanted.
        return [row for path in paths for row in _ask(model, [path])]
    answers = iter([] if table is None else table.to_dict(orient="records"))
    rows = [next(answers) if isinstance(content, bytes) else {"error": content} for content in contents]
    return [
        {"error": row["error"]}
        if row.get("error")
        else {"count": row["count"], "probabilities": row["probabilities"], "error": ""}
        for row in rows
    ]


def _content(path: Path) -> bytes | str:
    """A photo's bytes, or why they cannot be had."""
    try:
        return read(path)
    except ImageError as error:
        return str(error)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
