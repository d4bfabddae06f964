"""Figures and tables of an evaluation: confusion matrix, scores per class, reliability diagram, worst mistakes.

Drawn with Pillow: matplotlib took 1 to 2 s of a core for each trial, longer than training a head.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from binsweep.models.metrics import CalibrationBin, Counts, confusion_matrix, per_class

LoadPhoto = Callable[[int], NDArray[np.uint8]]  # the photo of a row, uint8 [S, S, 3]
MAX_MISTAKES = 24  # photos on one picture


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write one table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def draw_confusion(matrix: NDArray[np.int64], classes: Sequence[int], title: str, path: Path) -> None:
    """Draw a confusion matrix: rows are true counts, columns predicted ones; a cell's shade is its share of the row."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    left, top, cell, below = 80, 50, 72, 70
    side = cell * len(classes)
    text, small = _font(18), _font(15)
    width = max(left + side + 20, 40 + int(small.getlength(title)))
    image = Image.new("RGB", (width, top + side + below), "white")
    draw = ImageDraw.Draw(image)
    draw.text((width / 2, top / 2), title, "black", small, "mm")
    for (row, column), number in np.ndenumerate(matrix):
        x, y = left + cell * column, top + cell * row
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), _shade(float(share[row, column])))
        colour = "white" if share[row, column] > 0.5 else "black"
        draw.text((x + cell / 2, y + cell / 2), str(number), colour, text, "mm")
    for place, count in enumerate(classes):
        draw.text((left + cell * (place + 0.5), top + side + 16), str(count), "black", text, "mm")
        draw.text((left - 16, top + cell * (place + 0.5)), str(count), "black", text, "mm")
    draw.text((left + side / 2, top + side + 48), "predicted items", "black", text, "mm")
    name = Image.new("RGB", (side, 28), "white")
    ImageDraw.Draw(name).text((side / 2, 14), "true items", "black", text, "mm")
    image.paste(name.rotate(90, expand=True), (10, top))
    image.save(path)


def _shade(share: float) -> tuple[int, int, int]:
    """White for none of the row, dark blue for all of it."""
    red, green, blue = (round(255 + (end - 255) * share) for end in (8, 48, 107))
    return red, green, blue


def draw_mistakes(
    load_photo: LoadPhoto,
    ids: Sequence[str],
    actual: Counts,
    predicted: Counts,
    confidences: NDArray[np.float64],
    path: Path,
) -> None:
    """Draw the mistakes with the highest confidence as a JPEG: photo, id, true and predicted count, confidence.

    As a PNG, real photos took 20 times as long and 7 times the space, more than all other figures together.
    All arrays [N]; `load_photo` is called only for the rows that are drawn.
    """
    wrong = np.flatnonzero(actual != predicted)
    rows = wrong[np.argsort(-confidences[wrong], kind="stable")][:MAX_MISTAKES]
    columns, side, gap, line = 6, 192, 8, 20
    lines = max(1, -(-len(rows) // columns))
    step = (side + gap, side + gap + 2 * line)
    image = Image.new("RGB", (columns * step[0] + gap, lines * step[1] + gap), "white")
    draw, font = ImageDraw.Draw(image), _font(13)
    if len(rows) == 0:
        draw.text((image.width / 2, image.height / 2), "no mistakes", "black", font, "mm")
    for place, row in enumerate(rows):
        x, y = gap + place % columns * step[0], gap + place // columns * step[1]
        caption = f"true {actual[row]}, predicted {predicted[row]} ({confidences[row]:.0%})"
        draw.text((x, y), _shorten(ids[row], font, side), "black", font)
        draw.text((x, y + line), caption, "black", font)
        photo = Image.fromarray(np.asarray(load_photo(int(row)))).resize((side, side), reducing_gap=1.0)
        image.paste(photo, (x, y + 2 * line))
    image.save(path, quality=85)


def _shorten(text: str, font: Any, width: int) -> str:
    """The end of a long id, which says more than its beginning."""
    cut = text
    while len(cut) > 1 and font.getlength(cut) > width:
        cut = "\N{HORIZONTAL ELLIPSIS}" + cut[2:]
    return cut


def draw_reliability(table: Sequence[CalibrationBin], error: float, path: Path) -> None:
    """Draw accuracy against confidence; a perfectly calibrated model lies on the diagonal.

    A dot's area is its bin's share of the photos.
    """
    side, left, top, below = 360, 80, 50, 60
    image = Image.new("RGB", (left + side + 30, top + side + below), "white")
    draw, text, small = ImageDraw.Draw(image), _font(16), _font(13)
    draw.text(
        ((left + image.width) / 2, top / 2), f"expected calibration error {error:.3f}", "black", text, "mm"
    )
    draw.rectangle((left, top, left + side, top + side), outline="#888")
    draw.line((left, top + side, left + side, top), "#888")
    for tick in range(0, 11, 2):
        along = side * tick / 10
        draw.text((left + along, top + side + 14), f"{10 * tick}%", "black", small, "mm")
        draw.text((left - 8, top + side - along), f"{10 * tick}%", "black", small, "rm")
    photos = sum(row.photos for row in table)
    points = [(left + side * row.confidence, top + side * (1 - row.accuracy)) for row in table]
    draw.line(points, "#08306b", 2)
    for (x, y), row in zip(points, table, strict=True):
        radius = 3 + 22 * (row.photos / photos) ** 0.5
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), "#6b93c4", "#08306b")
        draw.text((x, y), str(row.photos), "black", small, "mm")
    draw.text((left + side / 2, top + side + 40), "confidence", "black", text, "mm")
    name = Image.new("RGB", (side, 24), "white")
    ImageDraw.Draw(name).text((side / 2, 12), "accuracy", "black", text, "mm")
    image.paste(name.rotate(90, expand=True), (6, top))
    image.save(path)


def write_evaluation(
    folder: Path,
    probabilities: NDArray[np.floating[Any]],
    actual: Counts,
    classes: Sequence[int],
    ids: Sequence[str],
    load_photo: LoadPhoto,
    title: str,
) -> None:
    """Write predictions.csv and the figures of a trial into `folder`.

    `probabilities` is [N, K], the true counts `actual` [N].
    """
    folder.mkdir(parents=True, exist_ok=True)
    predicted = np.asarray(classes)[probabilities.argmax(axis=1)]
    header = ["id", "true", "predicted", *(f"p{count}" for count in classes)]
    lines = zip(ids, actual, predicted, *np.round(probabilities.T, 5), strict=True)
    write_csv(folder / "predictions.csv", header, lines)
    confidences = probabilities.max(axis=1).astype(np.float64)
    write_figures(folder, predicted, confidences, actual, classes, ids, load_photo, title)


def write_figures(
    folder: Path,
    predicted: Counts,
    confidences: NDArray[np.float64],
    actual: Counts,
    classes: Sequence[int],
    ids: Sequence[str],
    load_photo: LoadPhoto,
    title: str,
) -> None:
    """Write confusion_matrix.csv and .png, per_class.csv and mistakes.jpg; all arrays [N]."""
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
    draw_mistakes(load_photo, ids, actual, predicted, confidences, folder / "mistakes.jpg")
