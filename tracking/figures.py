"""The files that show how a counter counts: confusion matrix, scores per class, its worst mistakes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.metrics import Counts, confusion_matrix, per_class

Picture = Callable[[int], NDArray[np.uint8]]  # the photo of a row, uint8 [S, S, 3]
SHOWN = 24  # mistakes on one picture


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """One table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def _save(figure: Figure, path: Path) -> None:
    # The object interface, without pyplot: figures are drawn in a background thread.
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


def draw_confusion(matrix: NDArray[np.int64], classes: Sequence[int], title: str, path: Path) -> None:
    """Rows are true counts, columns predicted ones; each cell shows the number and is shaded by its row's share."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 + 0.75 * len(classes), 1.3 + 0.7 * len(classes)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(number), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), [str(count) for count in classes])
    axes.set_yticks(range(len(classes)), [str(count) for count in classes])
    axes.set_xlabel("predicted items")
    axes.set_ylabel("true items")
    axes.set_title(title, fontsize=10)
    _save(figure, path)


def draw_mistakes(
    picture: Picture,
    ids: Sequence[str],
    actual: Counts,
    predicted: Counts,
    sure: NDArray[np.float64],
    path: Path,
) -> None:
    """The mistakes the model was surest of: photo, id, true and predicted count, its confidence.

    All arrays [N]; `picture` is asked only for the rows that are shown.
    """
    wrong = np.flatnonzero(actual != predicted)
    rows = wrong[np.argsort(-sure[wrong], kind="stable")][:SHOWN]
    columns = 6
    lines = max(1, -(-len(rows) // columns))
    figure = Figure(figsize=(2.0 * columns, 2.35 * lines), layout="constrained")
    if len(rows) == 0:
        figure.text(0.5, 0.5, "no mistakes", ha="center")
    for place, row in enumerate(rows):
        axes = figure.add_subplot(lines, columns, place + 1)
        axes.imshow(picture(int(row)))
        axes.set_axis_off()
        axes.set_title(
            f"{ids[row]}\ntrue {actual[row]}, said {predicted[row]} ({sure[row]:.0%})",
            fontsize=8,
            parse_math=False,
        )
    _save(figure, path)


def write_evaluation(
    folder: Path,
    probabilities: NDArray[np.floating[Any]],
    actual: Counts,
    classes: Sequence[int],
    ids: Sequence[str],
    picture: Picture,
    title: str,
) -> None:
    """All files of one evaluation: probabilities [N, K] against the true counts `actual` [N].

    Writes predictions.csv, confusion_matrix.csv and .png, per_class.csv and mistakes.png into `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predicted = np.asarray(classes)[probabilities.argmax(axis=1)]
    sure = probabilities.max(axis=1)
    header = ["id", "true", "predicted", *(f"p{count}" for count in classes)]
    lines = zip(ids, actual, predicted, *np.round(probabilities.T, 5), strict=True)
    write_csv(folder / "predictions.csv", header, lines)
    matrix = confusion_matrix(predicted, actual, classes)
    write_csv(
        folder / "confusion_matrix.csv",
        ["true \\ predicted", *map(str, classes)],
        ([count, *row] for count, row in zip(classes, matrix.tolist(), strict=True)),
    )
    table = per_class(predicted, actual, classes)
    rows = ([c, f"{r['accuracy']:.4f}", f"{r['rmse']:.4f}", int(r["support"])] for c, r in table.items())
    write_csv(folder / "per_class.csv", ["items", "accuracy", "rmse", "bins"], rows)
    draw_confusion(matrix, classes, title, folder / "confusion_matrix.png")
    draw_mistakes(picture, ids, actual, predicted, sure.astype(np.float64), folder / "mistakes.png")
