"""Figures and tables of an evaluation: confusion matrix, scores per class, reliability diagram, worst mistakes.

Drawn with Pillow: matplotlib took 1 to 2 s of a core for each trial, longer than training a head.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from binsweep.data.atomic_write import write_bytes
from binsweep.data.labels import Label
from binsweep.models.labelling import labelling_of
from binsweep.models.metrics import CalibrationBin, Labels, confusion_matrix

LoadPhoto = Callable[[int], NDArray[np.uint8]]  # the photo of a row, uint8 [S, S, 3]
MAX_MISTAKES = 24  # photos on one picture
MAX_DRAWN_CLASSES = 40  # of a confusion matrix
MAX_LARGE_CELLS = 16  # a side; more are drawn smaller
MAX_LABEL_PIXELS = 220


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], durable: bool = False
) -> None:
    """Write one table as CSV, atomically; with `durable` it is on the disk when this returns."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(), durable)


def _font(size: int, texts: Iterable[str] = ()) -> Any:
    """Pillow's own font, which has ASCII only; for other texts the one that comes with matplotlib, where it is."""
    library = None if all(map(str.isascii, texts)) else find_spec("matplotlib")
    if library is not None and library.origin is not None:
        file = Path(library.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.exists():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _most_confused(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the MAX_DRAWN_CLASSES classes that most mistakes are about, in order."""
    wrong = matrix - np.diag(np.diag(matrix))
    worst = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MAX_DRAWN_CLASSES]
    return np.sort(worst)


def draw_confusion(matrix: NDArray[np.int64], classes: Sequence[Label], title: str, path: Path) -> None:
    """Draw a confusion matrix: rows are true labels, columns predicted ones; a cell's shade is its share of the row.

    Of more than MAX_DRAWN_CLASSES classes, only those that most mistakes are about are drawn.
    """
    words = labelling_of(classes).words
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if len(classes) > MAX_DRAWN_CLASSES:
        shown = _most_confused(matrix)
        title = f"{title}; the {MAX_DRAWN_CLASSES} of {len(classes)} classes with most mistakes"
        matrix, share = matrix[np.ix_(shown, shown)], share[np.ix_(shown, shown)]
        classes = [classes[place] for place in shown]
    cell = 72 if len(classes) <= MAX_LARGE_CELLS else 44
    text, small = _font(18 if cell == 72 else 13, map(str, classes)), _font(15)
    names = [_fit(str(label), text, MAX_LABEL_PIXELS) for label in classes]
    longest = max(int(text.getlength(name)) for name in names)
    # Names that are wider than a cell stand upright below it.
    upright = longest > cell - 8
    left, top = 80 + max(0, longest - 20), 50
    below = 70 + (max(0, longest - 16) if upright else 0)
    side = cell * len(classes)
    width = max(left + side + 20, 40 + int(small.getlength(title)))
    image = Image.new("RGB", (width, top + side + below), "white")
    draw = ImageDraw.Draw(image)
    draw.text((width / 2, top / 2), title, "black", small, "mm")
    for (row, column), number in np.ndenumerate(matrix):
        x, y = left + cell * column, top + cell * row
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), _shade(float(share[row, column])))
        colour = "white" if share[row, column] > 0.5 else "black"
        draw.text((x + cell / 2, y + cell / 2), str(number), colour, text, "mm")
    for place, name in enumerate(names):
        middle = cell * (place + 0.5)
        if upright:
            _draw_upright(image, name, text, (int(left + middle), top + side + 8))
        else:
            draw.text((left + middle, top + side + 16), name, "black", text, "mm")
        draw.text((left - 16, top + middle), name, "black", text, "mm" if longest <= 20 else "rm")
    draw.text((left + side / 2, top + side + below - 22), words.predicted, "black", text, "mm")
    axis = Image.new("RGB", (side, 28), "white")
    ImageDraw.Draw(axis).text((side / 2, 14), words.true, "black", text, "mm")
    image.paste(axis.rotate(90, expand=True), (10, top))
    image.save(path)


def _draw_upright(image: Image.Image, name: str, font: Any, place: tuple[int, int]) -> None:
    """Draw text that reads upwards and ends at the top, at (its middle, its end)."""
    width, height = int(font.getlength(name)) + 4, 24
    box = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(box).text((width - 2, height / 2), name, "black", font, "rm")
    image.paste(box.rotate(90, expand=True), (place[0] - height // 2, place[1]))


def _fit(text: str, font: Any, width: int) -> str:
    """The beginning of a long name."""
    cut = text
    while len(cut) > 1 and font.getlength(cut) > width:
        cut = cut[:-2] + "\N{HORIZONTAL ELLIPSIS}"
    return cut


def _shade(share: float) -> tuple[int, int, int]:
    """White for none of the row, dark blue for all of it."""
    red, green, blue = (round(255 + (end - 255) * share) for end in (8, 48, 107))
    return red, green, blue


def draw_mistakes(
    load_photo: LoadPhoto,
    ids: Sequence[str],
    actual: Labels,
    predicted: Labels,
    confidences: NDArray[np.float64],
    path: Path,
) -> None:
    """Draw the mistakes with the highest confidence as a JPEG: photo, id, true and predicted label, confidence.

    As a PNG, real photos took 20 times as long and 7 times the space, more than all other figures together.
    All arrays [N]; `load_photo` is called only for the rows that are drawn.
    """
    wrong = np.flatnonzero(actual != predicted)
    rows = wrong[np.argsort(-confidences[wrong], kind="stable")][:MAX_MISTAKES]
    columns, side, gap, line = 6, 192, 8, 20
    lines = max(1, -(-len(rows) // columns))
    # Names take a line each; two counts share one.
    named = actual.dtype.kind == "U"
    above = (3 if named else 2) * line
    step = (side + gap, side + gap + above)
    image = Image.new("RGB", (columns * step[0] + gap, lines * step[1] + gap), "white")
    texts = (str(label) for label in {*actual[rows].tolist(), *predicted[rows].tolist()})
    draw, font = ImageDraw.Draw(image), _font(13, texts)
    if len(rows) == 0:
        draw.text((image.width / 2, image.height / 2), "no mistakes", "black", font, "mm")
    for place, row in enumerate(rows):
        x, y = gap + place % columns * step[0], gap + place // columns * step[1]
        true, said, sure = actual[row], predicted[row], f"({confidences[row]:.0%})"
        captions = [f"true {true}, predicted {said} {sure}"]
        if named:
            room = side - int(font.getlength(f"predicted  {sure}"))
            captions = [_fit(f"true {true}", font, side), f"predicted {_fit(str(said), font, room)} {sure}"]
        for number, caption in enumerate([_shorten(ids[row], font, side), *captions]):
            draw.text((x, y + number * line), caption, "black", font)
        photo = Image.fromarray(np.asarray(load_photo(int(row)))).resize((side, side), reducing_gap=1.0)
        image.paste(photo, (x, y + above))
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
    actual: Labels,
    classes: Sequence[Label],
    ids: Sequence[str],
    load_photo: LoadPhoto,
    title: str,
) -> None:
    """Write predictions.csv and the figures of a trial into `folder`.

    `probabilities` is [N, K], the true labels `actual` [N].
    """
    folder.mkdir(parents=True, exist_ok=True)
    predicted = np.asarray(classes)[probabilities.argmax(axis=1)]
    header = ["id", "true", "predicted", *(f"p{label}" for label in classes)]
    lines = zip(ids, actual, predicted, *np.round(probabilities.T, 5), strict=True)
    write_csv(folder / "predictions.csv", header, lines)
    confidences = probabilities.max(axis=1).astype(np.float64)
    write_figures(folder, predicted, confidences, actual, classes, ids, load_photo, title)


def write_figures(
    folder: Path,
    predicted: Labels,
    confidences: NDArray[np.float64],
    actual: Labels,
    classes: Sequence[Label],
    ids: Sequence[str],
    load_photo: LoadPhoto,
    title: str,
) -> None:
    """Write confusion_matrix.csv and .png, per_class.csv and mistakes.jpg; all arrays [N]."""
    matrix = confusion_matrix(predicted, actual, classes)
    write_csv(
        folder / "confusion_matrix.csv",
        ["true \\ predicted", *map(str, classes)],
        ([label, *row] for label, row in zip(classes, matrix.tolist(), strict=True)),
    )
    labelling = labelling_of(classes)
    table, scores = labelling.per_class(predicted, actual, classes), list(labelling.class_scores)
    rows = ([c, *(f"{r[score]:.4f}" for score in scores), int(r["support"])] for c, r in table.items())
    header = [labelling.words.column, *scores, labelling.words.photos_column]
    write_csv(folder / "per_class.csv", header, rows)
    draw_confusion(matrix, classes, title, folder / "confusion_matrix.png")
    draw_mistakes(load_photo, ids, actual, predicted, confidences, folder / "mistakes.jpg")
