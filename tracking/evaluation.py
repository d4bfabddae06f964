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

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.start import python_module, same_modules

ROWS = 32  # photos a call
SECONDS_PER_IMAGE = 5  # far above any backbone's time on one core: only a hang takes longer


@dataclass(frozen=True)
class Predictions:
    """A model's answers: `classes` ascending, `probabilities` float64 [N, K], `counts` int64 [N]."""

    classes: tuple[int, ...]
    probabilities: NDArray[np.float64]
    counts: NDArray[np.int64]

    def part(self, start: int, end: int) -> Predictions:
        """The answers about some of the photos."""
        return Predictions(self.classes, self.probabilities[start:end], self.counts[start:end])


def evaluate(model_uri: str, images: Sequence[Path], tracking_uri: str) -> Predictions:
    """Load `model_uri` in a fresh process and ask it for every image; raises UserError when it cannot."""
    with tempfile.TemporaryDirectory() as temporary:
        asked, said = Path(temporary) / "images.json", Path(temporary) / "said.json"
        asked.write_text(json.dumps([str(path.resolve()) for path in images]))
        limit = 120 + SECONDS_PER_IMAGE * len(images)
        try:
            done = subprocess.run(
                python_module("tracking.evaluation", model_uri, str(asked), str(said)),
                env=same_modules() | {"MLFLOW_TRACKING_URI": tracking_uri},
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
    classes = tuple(int(count) for count in rows[0]["probabilities"])
    table = [[row["probabilities"][str(count)] for count in classes] for row in rows]
    return Predictions(classes, np.array(table), np.array([row["count"] for row in rows]))


def _main(model_uri: str, asked: Path, said: Path) -> None:
    import mlflow

    from tracking.registry import image_rows

    model = mlflow.pyfunc.load_model(model_uri)
    paths = [Path(path) for path in json.loads(asked.read_text())]
    rows = []
    for start in range(0, len(paths), ROWS):
        answer = model.predict(image_rows([path.read_bytes() for path in paths[start : start + ROWS]]))
        rows += answer[["count", "probabilities"]].to_dict(orient="records")
    said.write_text(json.dumps(rows, default=int))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
