"""An evaluation's files: scores, predictions, figures, and a self-contained HTML page; and logging them to a run."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from mlflow import MlflowClient
from mlflow.entities import Metric
from numpy.typing import NDArray

from binsweep.models.metrics import Counts, confusion_matrix
from binsweep.tracking.evaluation.figures import LoadPhoto, draw_reliability, write_figures
from binsweep.tracking.evaluation.predictions import Predictions
from binsweep.tracking.evaluation.scorecard import Scorecard, confidence

SCORE_NAMES = {
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "mae": "MAE",
    "within_one": "within one",
    "macro_f1": "macro F1",
}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation: {{ facts.values() | first }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
.muted { color: #666 } table { border-collapse: collapse } .row { display: flex; flex-wrap: wrap; gap: 2.5rem }
td, th { padding: .15rem 1rem .15rem 0; text-align: right; vertical-align: top }
td:first-child, th:first-child, table.facts td { text-align: left; overflow-wrap: anywhere }
img { max-width: 100%; display: block }
</style></head><body>
<h1>Evaluation</h1>
<table class="facts">{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
</table>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}

<h2>Scores</h2>
<table><tr><th></th><th>model</th><th>95 % interval</th><th>always {{ card.guess }}</th><th>95 % interval</th></tr>
{% for key, name in names.items() %}<tr><td>{{ name }}</td><td>{{ show(key, card.scores[key]) }}</td>
<td>{{ show(key, card.intervals[key][0]) }} to {{ show(key, card.intervals[key][1]) }}</td>
<td>{{ show(key, card.guess_scores[key]) }}</td>
<td>{{ show(key, card.guess_intervals[key][0]) }} to {{ show(key, card.guess_intervals[key][1]) }}</td></tr>{% endfor %}
</table><p class="muted">Intervals by bootstrap over photos.</p>

<div class="row"><div><h2>Scores per true count</h2>
<table><tr><th>items</th><th>photos</th><th>accuracy</th><th>RMSE</th><th>always {{ card.guess }}: RMSE</th></tr>
{% for count, row in card.classes.items() %}<tr><td>{{ count }}</td><td>{{ row.support | int }}</td>
<td>{{ show('accuracy', row.accuracy) }}</td><td>{{ show('rmse', row.rmse) }}</td>
<td>{{ show('rmse', (count - card.guess) | abs) }}</td></tr>{% endfor %}</table></div>
<div><h2>Predictions per true count</h2>
<table><tr><th>true</th>{% for count in counts %}<th>{{ count }}</th>{% endfor %}</tr>
{% for count in counts %}<tr><td>{{ count }}</td>{% for n in matrix[loop.index0] %}<td>{{ n }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<div><h2>From the distribution to one count</h2>
<table><tr><th></th>{% for name in names.values() %}<th>{{ name }}</th>{% endfor %}</tr>
{% for decoding, row in card.decodings.items() %}<tr><td>{{ decoding }}</td>
{% for key in names %}<td>{{ show(key, row[key]) }}</td>{% endfor %}</tr>{% endfor %}</table>
<p class="muted">For information: the model's decoding was chosen on the validation split.</p></div></div>

<div class="row">{% for name in ('confusion_matrix', 'reliability') %}<img alt="{{ name }}" src="{{ images[name] }}">
{% endfor %}</div>
<h2>Worst mistakes</h2><p class="muted">By confidence.</p><img alt="mistakes" src="{{ images.mistakes }}">
</body></html>
"""


def format_score(key: str, value: float) -> str:
    """A score for people: shares in percent, errors in items."""
    return f"{value:.3f}" if key in ("rmse", "mae", "macro_f1") else f"{value:.1%}"


def _render(
    card: Scorecard,
    matrix: NDArray[np.int64],
    counts: Sequence[int],
    facts: Mapping[str, str],
    notes: Sequence[str],
    folder: Path,
) -> str:
    """The HTML page of a scorecard, with the figures of `folder` embedded."""
    figures = ("confusion_matrix.png", "reliability.png", "mistakes.jpg")
    images = {Path(name).stem: _data_url(folder / name) for name in figures}
    values: dict[str, Any] = {"card": card, "matrix": matrix.tolist(), "counts": counts, "images": images}
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(**values, facts=facts, notes=notes, names=SCORE_NAMES, show=format_score)


def _data_url(image: Path) -> str:
    media_type, _ = guess_type(image.name)
    return f"data:{media_type};base64,{base64.b64encode(image.read_bytes()).decode()}"


def write_scorecard(
    folder: Path,
    card: Scorecard,
    predictions: Predictions,
    actual: Counts,
    ids: Sequence[str],
    load_photo: LoadPhoto,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Write into `folder`: report.html (self-contained), scores.json, predictions.parquet, confusion_matrix.csv and
    .png, per_class.csv, reliability.png and mistakes.jpg.

    `facts` head the page; `notes` are sentences below them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predicted, confidences = predictions.counts, confidence(predictions)
    columns = {f"p{count}": predictions.probabilities[:, k] for k, count in enumerate(predictions.classes)}
    table = {"id": list(ids), "true": actual, "predicted": predicted, "confidence": confidences, **columns}
    pd.DataFrame(table).to_parquet(folder / "predictions.parquet", index=False)
    title = f"accuracy {card.scores['accuracy']:.1%} on {card.images} photos"
    counts = sorted(card.classes.keys() | set(predictions.classes))
    write_figures(folder, predicted, confidences, actual, counts, ids, load_photo, title)
    draw_reliability(card.reliability, card.calibration_error, folder / "reliability.png")
    (folder / "scores.json").write_text(json.dumps(asdict(card) | {"facts": dict(facts)}, indent=1))
    matrix = confusion_matrix(predicted, actual, counts)
    page = _render(card, matrix, counts, facts, notes, folder)
    (folder / "report.html").write_text(page, encoding="utf-8")


def log_scorecard(
    tracking_uri: str, run_id: str, version: str, card: Scorecard, folder: Path, prefix: str, artifacts: str
) -> None:
    """Log an evaluation of a version to its run: the files of `folder` under `artifacts`, and the scores as metrics
    whose names begin with `prefix` and whose step is the version."""
    client = MlflowClient(tracking_uri)
    client.log_artifacts(run_id, str(folder), artifacts)
    scores = {f"{prefix}_{key}": value for key, value in card.scores.items()}
    scores[f"{prefix}_calibration_error"] = card.calibration_error
    for count, row in card.classes.items():
        scores[f"{prefix}_accuracy_class_{count}"] = row["accuracy"]
    now = time.time_ns() // 1_000_000
    client.log_batch(run_id, [Metric(key, value, now, int(version)) for key, value in scores.items()])
