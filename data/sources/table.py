"""A table as a source: a CSV or Parquet file with a row for each photo.

Columns: `path` (relative to the table's folder), `label` and, if the table divides the photos, `split`. Others are
ignored. Somebody wrote the table, so a wrong cell is a mistake rather than a photo less: all are reported at once.
"""

import csv
import io
import math
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from binsweep.data.errors import UserError, first_line
from binsweep.data.labels import Label, LabelKind, class_name, parse_count
from binsweep.data.sources.folder import FoundPhoto, Skipped
from binsweep.data.sources.object_names import image_id, parse_split, printable
from binsweep.data.split import SPLITS, SplitName

TABLE_SUFFIXES = (".csv", ".parquet")
COLUMNS = "columns path, label and, if the table divides the photos, split"
MAX_LISTED = 10  # mistakes of a table that are named one by one
_WHOLE = re.compile(r"([0-9]{1,9})\.0+")  # how a count is written next to empty cells


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row as text; `number` is its line in a CSV file, or its place in a Parquet file, from 1."""

    number: int
    path: str
    label: str
    split: str | None  # None if the table has no such column


def is_table(source: str) -> bool:
    """Whether a source (a path or an address) is a table, by its suffix; a folder may be called so, too."""
    if not source.lower().endswith(TABLE_SUFFIXES):
        return False
    return "://" in source or not Path(source).expanduser().is_dir()


def scan_table(
    file: Path, labels: LabelKind | None, prefix: str = ""
) -> tuple[list[FoundPhoto], list[Skipped]]:
    """The photos of a table, not opened yet, and the rows that repeat another one.

    `labels` is what the labels are; None: counts, if all of them are whole numbers. `prefix` is the address of the
    folder that the file was fetched from, which a path may begin with. Raises UserError if the file cannot be read,
    lacks a column, or has mistakes.
    """
    folder = file.absolute().parent
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"data.source: cannot read {file}: {error.strerror}", "a CSV or Parquet file"
        ) from error

    def relative(path: str) -> str:
        whole = Path(posixpath.normpath(folder / (path.removeprefix(prefix) if prefix else path)))
        return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()

    photos, skipped = table_photos(str(file), content, labels, relative)
    return [FoundPhoto(one.id, one.label, folder / one.path, one.split) for one in photos], skipped


def table_photos(
    name: str, content: bytes, labels: LabelKind | None, relative: Callable[[str], str]
) -> tuple[list[FoundPhoto], list[Skipped]]:
    """The photos of a table's content, with paths relative to its folder, and the rows that repeat another one.

    `relative` makes a cell's path one below the table's folder, if it is; it may raise ValueError, whose text says what
    is wrong with the path. `name` is the table's in messages.
    """
    rows = list(_rows(name, content))
    kind = labels or (
        "counts" if all(_count(row.label) is not None for row in rows if row.label) else "names"
    )
    mistakes: list[str] = []
    first: dict[str, tuple[TableRow, FoundPhoto]] = {}
    skipped, ids = [], set[str]()
    for row in rows:
        try:
            path, label, split = _path(row, relative), _label(row, kind), _split(row)
        except ValueError as error:
            mistakes.append(f"row {row.number} {error}")
            continue
        if (known := first.get(path)) is not None:
            if (contradiction := _contradiction(known[1], label, split)) is not None:
                of = f"row {row.number} gives {printable(row.path)!r}"
                mistakes.append(f"{of} {contradiction} in row {known[0].number}")
            else:
                skipped.append(Skipped(f"row {row.number}", f"repeats row {known[0].number}"))
            continue
        id = image_id(path)
        id = printable(path) if id in ids else id
        if id in ids:
            skipped.append(
                Skipped(f"row {row.number}", f"{printable(path)} has the same id as another photo")
            )
            continue
        ids.add(id)
        first[path] = (row, FoundPhoto(id, label, Path(path), split))
    _raise_mistakes(name, mistakes)
    return [photo for _, photo in first.values()], skipped


def table_paths(name: str, content: bytes) -> Iterator[tuple[int, str]]:
    """The number and the path of each row of a table of photos whose labels are not asked for; rows may repeat a path.

    Raises UserError if the content cannot be read, lacks the column `path`, or has a row without a path.
    """
    mistakes: list[str] = []
    try:
        for row in _rows(name, content, ("path",), "a column path"):
            if row.path:
                yield row.number, row.path
            else:
                mistakes.append(f"row {row.number} has no path")
        _raise_mistakes(name, mistakes)
    except UserError as error:  # here the table is no source of a sweep
        raise UserError(error.message.removeprefix("data.source: "), error.hint) from error


def _raise_mistakes(name: str, mistakes: Sequence[str]) -> None:
    if mistakes:
        many = f"{len(mistakes):,} mistakes" if len(mistakes) > 1 else "1 mistake"
        listed = "; ".join(mistakes[:MAX_LISTED])
        more = f"; and {len(mistakes) - MAX_LISTED:,} more" if len(mistakes) > MAX_LISTED else ""
        raise UserError(
            f"data.source: {name} has {many}: {listed}{more}",
            "correct these rows, or remove them: no photo is left out without a word",
        )


def _path(row: TableRow, relative: Callable[[str], str]) -> str:
    if not row.path:
        raise ValueError("has no path")
    if "\0" in row.path:
        raise ValueError("has a path with a NUL character")
    path = relative(row.path)
    if PurePosixPath(path).name in ("", ".."):
        raise ValueError(f"has the path {printable(row.path)!r}, which names no file")
    return path


def _label(row: TableRow, kind: LabelKind) -> Label:
    text = row.label
    if not text or text.lower() == "nan":
        raise ValueError("has no label")
    if kind == "names":
        return printable(class_name(text))
    count = _count(text)
    if count is None:
        raise ValueError(f"has the label {printable(text)[:40]!r}, which is not a count")
    return count


def _split(row: TableRow) -> SplitName | None:
    if row.split is None:
        return None
    split = parse_split(row.split)
    if split is None:
        given = f"the unknown split {printable(row.split)[:40]!r}" if row.split else "no split"
        raise ValueError(f"has {given}: {', '.join(SPLITS)} are known")
    return split


def _contradiction(known: FoundPhoto, label: Label, split: SplitName | None) -> str | None:
    if known.label != label:
        return f"the label {label}, and {known.label}"
    return f"the split {split}, and {known.split}" if known.split != split else None


def _count(text: str) -> int | None:
    found = _WHOLE.fullmatch(text)
    return parse_count(found[1] if found else text)


def _rows(
    name: str, content: bytes, required: Sequence[str] = ("path", "label"), columns_hint: str = COLUMNS
) -> Iterator[TableRow]:
    """The rows of a table, which must have the `required` columns."""
    columns, rows = (_parquet_rows if content.startswith(b"PAR1") else _csv_rows)(name, content)
    places = {}
    for wanted in ("path", "label", "split"):
        found = [place for place, column in enumerate(columns) if column.strip() == wanted]
        if len(found) > 1:
            raise UserError(
                f"data.source: {name} has {len(found)} columns {wanted!r}", f"a table with {columns_hint}"
            )
        places[wanted] = found[0] if found else None
    missing = [wanted for wanted in required if places[wanted] is None]
    if missing:
        has = ", ".join(repr(printable(column)[:40]) for column in columns[:20]) or "no column"
        raise UserError(
            f"data.source: {name} has no column {' and no column '.join(map(repr, missing))}; it has {has}",
            f"a table with {columns_hint}",
        )
    n_rows = 0
    for number, cells in rows:
        n_rows += 1
        path, label, split = (None if (at := places[one]) is None else cells[at] for one in places)
        yield TableRow(number, path or "", label or "", split)
    if not n_rows:
        raise UserError(f"data.source: {name} has no rows", f"a row for each photo, with {columns_hint}")


def _csv_rows(name: str, content: bytes) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a CSV file, and its rows with their line numbers; also as Excel writes it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8 text"
        raise UserError(
            f"data.source: cannot read {name}: {what}", "a CSV file in UTF-8, or Parquet"
        ) from error
    header = text.partition("\n")[0]
    separator = ";" if ";" in header and "," not in header else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)

    def lines() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            where = f"line {reader.line_num}: {first_line(error)}"
            raise UserError(f"data.source: cannot read {name}: {where}", "a CSV file, or Parquet") from error

    every = lines()
    _, columns = next(every, (0, []))

    def rows() -> Iterator[tuple[int, list[str]]]:
        wrong = []
        for number, cells in every:
            if len(cells) != len(columns):
                wrong.append(f"row {number} has {len(cells)} cells, and the header has {len(columns)}")
            elif not wrong:
                yield number, cells
        _raise_mistakes(name, wrong)

    return columns, rows()


def _parquet_rows(name: str, content: bytes) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns of a Parquet file, and its rows with their places."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        columns = [str(column) for column in file.schema_arrow.names]
        wanted = [column for column in columns if column.strip() in ("path", "label", "split")]
        table = file.read(columns=wanted)
        cells = {column: table.column(column).to_pylist() for column in set(wanted)}
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError) as error:
        raise UserError(
            f"data.source: cannot read {name}: {first_line(error)[:200]}", "a whole Parquet file, or CSV"
        ) from error
    return columns, (
        (row + 1, [_text(cells[column][row]) if column in cells else "" for column in columns])
        for row in range(table.num_rows)
    )


def _text(value: Any) -> str:
    """A Parquet file's cell as text; "" for nothing and for NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool):
        return str(value).lower()
    return (
        value.decode("utf-8", "backslashreplace").strip() if isinstance(value, bytes) else str(value).strip()
    )


def bucket_path(path: str, prefix: str) -> str:
    """A cell's path as the name of an object below the table's prefix (an address that ends with a slash).

    Raises ValueError for one that lies elsewhere.
    """
    name = path.removeprefix(prefix)
    if "://" in name or name.startswith("/"):
        raise ValueError(f"has the path {printable(path)[:200]!r}, which is not below {prefix}")
    return str(PurePosixPath(name))
