"""An evaluation's files: scores, predictions, pictures, and a page of HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from numpy.typing import NDArray

from binsweep.models.metrics import Counts, confusion_matrix
from binsweep.tracking.evaluation.figures import Picture, draw_reliability, write_figures
from binsweep.tracking.evaluation.predictions import Predictions
from binsweep.tracking.evaluation.scorecard import Scorecard, confidence

NAMES = {
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

<div class="row"><div><h2>Each true count</h2>
<table><tr><th>items</th><th>photos</th><th>accuracy</th><th>RMSE</th><th>always {{ card.guess }}: RMSE</th></tr>
{% for count, row in card.classes.items() %}<tr><td>{{ count }}</td><td>{{ row.support | int }}</td>
<td>{{ show('accuracy', row.accuracy) }}</td><td>{{ show('rmse', row.rmse) }}</td>
<td>{{ show('rmse', (count - card.guess) | abs) }}</td></tr>{% endfor %}</table></div>
<div><h2>Said, for each true count</h2>
<table><tr><th>true</th>{% for kind in kinds %}<th>{{ kind }}</th>{% endfor %}</tr>
{% for kind in kinds %}<tr><td>{{ kind }}</td>{% for n in matrix[loop.index0] %}<td>{{ n }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<div><h2>One count from a distribution</h2>
<table><tr><th></th>{% for name in names.values() %}<th>{{ name }}</th>{% endfor %}</tr>
{% for way, row in card.decodings.items() %}<tr><td>{{ way }}</td>
{% for key in names %}<td>{{ show(key, row[key]) }}</td>{% endfor %}</tr>{% endfor %}</table>
<p class="muted">For information: which one answers was decided on the validation split.</p></div></div>

<div class="row">{% for name in ('confusion_matrix', 'reliability') %}<img alt="{{ name }}" src="{{ images[name] }}">
{% endfor %}</div>
<h2>Worst mistakes</h2><p class="muted">The ones it was surest of.</p><img alt="mistakes" src="{{ images.mistakes }}">
</body></html>
"""


def show(key: str, value: float) -> str:
    """A score as people read it: shares in percent, errors in items."""
    return f"{value:.3f}" if key in ("rmse", "mae", "macro_f1") else f"{value:.1%}"


def render(
    card: Scorecard,
    matrix: NDArray[np.int64],
    kinds: Sequence[int],
    facts: Mapping[str, str],
    notes: Sequence[str],
    folder: Path,
) -> str:
    """The page of a scorecard whose pictures lie in `folder`; they are put into it."""
    pictures = ("confusion_matrix.png", "reliability.png", "mistakes.jpg")
    images = {Path(name).stem: _inline(folder / name) for name in pictures}
    values: dict[str, Any] = {"card": card, "matrix": matrix.tolist(), "kinds": kinds, "images": images}
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(**values, facts=facts, notes=notes, names=NAMES, show=show)


def _inline(picture: Path) -> str:
    """A picture as a data URL."""
    kind, _ = guess_type(picture.name)
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def write_scorecard(
    folder: Path,
    card: Scorecard,
    said: Predictions,
    actual: Counts,
    ids: Sequence[str],
    picture: Picture,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Write into `folder`: report.html (one page that needs nothing else), scores.json, predictions.parquet,
    confusion_matrix.csv and .png, per_class.csv, reliability.png and mistakes.jpg.

    `facts` head the page; `notes` are sentences below them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sure = confidence(said)
    columns = {f"p{count}": said.probabilities[:, place] for place, count in enumerate(said.classes)}
    table = {"id": list(ids), "true": actual, "predicted": said.counts, "confidence": sure, **columns}
    pd.DataFrame(table).to_parquet(folder / "predictions.parquet", index=False)
    title = f"accuracy {card.scores['accuracy']:.1%} on {card.images} photos"
    kinds = list(card.classes.keys() | set(said.classes))
    write_figures(folder, said.counts, sure, actual, sorted(kinds), ids, picture, title)
    draw_reliability(card.reliability, card.calibration_error, folder / "reliability.png")
    (folder / "scores.json").write_text(json.dumps(asdict(card) | {"facts": dict(facts)}, indent=1))
    matrix = confusion_matrix(said.counts, actual, sorted(kinds))
    (folder / "report.html").write_text(
        render(card, matrix, sorted(kinds), facts, notes, folder), encoding="utf-8"
    )
