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

from binsweep.data.labels import Label, sorted_labels
from binsweep.models.labelling import metric_keys
from binsweep.models.metrics import Labels, confusion_matrix
from binsweep.tracking.evaluation.figures import LoadPhoto, draw_reliability, write_figures
from binsweep.tracking.evaluation.predictions import Predictions
from binsweep.tracking.evaluation.scorecard import Scorecard, confidence

MAX_BATCH_METRICS = 1000  # that MLflow accepts at a time
MAX_TABLE_CLASSES = 40  # of the confusion matrix on the page; the file has all
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
{% if key in card.guess_scores %}<td>{{ show(key, card.guess_scores[key]) }}</td>
<td>{{ show(key, card.guess_intervals[key][0]) }} to {{ show(key, card.guess_intervals[key][1]) }}</td>
{% endif %}</tr>{% endfor %}
</table><p class="muted">Intervals by bootstrap over photos.</p>

<div class="row"><div><h2>Scores per true {{ words.noun }}</h2>
<table><tr><th>{{ words.column }}</th><th>photos</th>
{% for name in columns.values() %}<th>{{ name }}</th>{% endfor %}
{% if 'rmse' in columns %}<th>always {{ card.guess }}: RMSE</th>{% endif %}</tr>
{% for label, row in card.classes.items() %}<tr><td>{{ label }}</td><td>{{ row.support | int }}</td>
{% for key in columns %}<td>{{ show(key, row[key]) }}</td>{% endfor %}
{% if 'rmse' in columns %}<td>{{ show('rmse', (label - card.guess) | abs) }}</td>{% endif %}</tr>{% endfor %}
</table></div>
{% if labels | length <= most %}<div><h2>Predictions per true {{ words.noun }}</h2>
<table><tr><th>true</th>{% for label in labels %}<th>{{ label }}</th>{% endfor %}</tr>
{% for label in labels %}<tr><td>{{ label }}</td>{% for n in matrix[loop.index0] %}<td>{{ n }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if card.decodings %}<div><h2>From the distribution to one {{ words.noun }}</h2>
<table><tr><th></th>{% for name in names.values() %}<th>{{ name }}</th>{% endfor %}</tr>
{% for decoding, row in card.decodings.items() %}<tr><td>{{ decoding }}</td>
{% for key in names %}<td>{{ show(key, row[key]) }}</td>{% endfor %}</tr>{% endfor %}</table>
<p class="muted">For information: the model's decoding was chosen on the validation split.</p></div>{% endif %}</div>

<div class="row">{% for name in ('confusion_matrix', 'reliability') %}<img alt="{{ name }}" src="{{ images[name] }}">
{% endfor %}</div>
<h2>Worst mistakes</h2><p class="muted">By confidence.</p><img alt="mistakes" src="{{ images.mistakes }}">
</body></html>
"""


def format_score(key: str, value: float) -> str:
    """A score for people: shares in percent, errors in items."""
    return f"{value:.3f}" if key in ("rmse", "mae", "macro_f1", "f1", "log_loss") else f"{value:.1%}"


def _render(
    card: Scorecard,
    matrix: NDArray[np.int64],
    labels: Sequence[Label],
    facts: Mapping[str, str],
    notes: Sequence[str],
    folder: Path,
) -> str:
    """The HTML page of a scorecard, with the figures of `folder` embedded."""
    figures = ("confusion_matrix.png", "reliability.png", "mistakes.jpg")
    images = {Path(name).stem: _data_url(folder / name) for name in figures}
    values: dict[str, Any] = {"card": card, "matrix": matrix.tolist(), "labels": labels, "images": images}
    values |= {
        "words": card.labelling.words,
        "columns": card.labelling.class_scores,
        "most": MAX_TABLE_CLASSES,
    }
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(**values, facts=facts, notes=notes, names=card.score_names, show=format_score)


def _data_url(image: Path) -> str:
    media_type, _ = guess_type(image.name)
    return f"data:{media_type};base64,{base64.b64encode(image.read_bytes()).decode()}"


def write_scorecard(
    folder: Path,
    card: Scorecard,
    predictions: Predictions,
    actual: Labels,
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
    predicted, confidences = predictions.labels, confidence(predictions)
    columns = {f"p{label}": predictions.probabilities[:, k] for k, label in enumerate(predictions.classes)}
    table = {"id": list(ids), "true": actual, "predicted": predicted, "confidence": confidences, **columns}
    pd.DataFrame(table).to_parquet(folder / "predictions.parquet", index=False)
    title = f"accuracy {card.scores['accuracy']:.1%} on {card.images} photos"
    labels = sorted_labels(card.classes.keys() | set(predictions.classes))
    write_figures(folder, predicted, confidences, actual, labels, ids, load_photo, title)
    draw_reliability(card.reliability, card.calibration_error, folder / "reliability.png")
    (folder / "scores.json").write_text(json.dumps(asdict(card) | {"facts": dict(facts)}, indent=1))
    matrix = confusion_matrix(predicted, actual, labels)
    page = _render(card, matrix, labels, facts, notes, folder)
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
    keys = metric_keys(list(card.classes))
    for label, row in card.classes.items():
        scores[f"{prefix}_accuracy_class_{keys[label]}"] = row["accuracy"]
    now = time.time_ns() // 1_000_000
    metrics = [Metric(key, value, now, int(version)) for key, value in scores.items()]
    for start in range(0, len(metrics), MAX_BATCH_METRICS):
        client.log_batch(run_id, metrics[start : start + MAX_BATCH_METRICS])
