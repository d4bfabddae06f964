"""Answers about any number of photos in one file, CSV, Parquet or JSON lines; after an interruption it goes on.

Until all photos are answered, the answers are in FILE.partial: a line that says what is asked, then a line for each
answer, in the order of the photos. FILE itself is written at the end, whole.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from binsweep.data.atomic_write import atomic_path
from binsweep.data.errors import UserError
from binsweep.data.locks import try_lock
from binsweep.data.output_path import require_folder
from binsweep.search.execution.interrupts import uninterrupted
from binsweep.search.workflows.photo_list import PhotoList
from binsweep.search.workflows.predict import Answered, answer_photos, ask_server, list_photos, models_for
from binsweep.tracking.mlflow_server.embedded import model_server
from binsweep.tracking.serving.model_server import BATCH_PHOTOS, Answer, open_models, photo_version

HEADER_START = b'{"model": '
ROWS_AT_ONCE = 10_000  # of the file that is written at the end
Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked: answers to another question do not belong into the same file.

    `model` is NAME/VERSION, with the time at which it was registered in milliseconds, or another address.
    """

    model: str
    registered: int | None
    photos: int
    digest: str


@dataclass(frozen=True)
class AnswerFile:
    """What was written: the number of photos, those without an answer, and those that an earlier run answered."""

    out: str
    photos: int
    unanswered: int
    there: int


def predict_to_file(
    places: Sequence[str],
    out: Path,
    url: str | None,
    model_uri: str,
    home: Path,
    resumed: Callable[[int, int], None],
) -> AnswerFile:
    """Write a row for each photo to `out`, in the order of `find_photos`.

    A column for each key of an answer: image, count and expected_count, or label, confidence, pCLASS for the
    probability of each class, model_version, error; JSON lines have one object `probabilities`. After an interruption,
    the same call goes on; `resumed` is told how many of how many answers are there already. Raises UserError if the
    file exists, or if other photos or another model were asked before.
    """
    write = _writer(out)
    photos = list_photos(places)
    if url is not None:
        question = Question(f"the server at {_without_login(url)}", None, len(photos), photos.digest)
        with _journal(out, question) as journal:
            _complete(journal, photos, lambda: ask_server(url), resumed)
            return journal.finish(write)
    with model_server(home, model_uri) as uri:
        registered = None
        if (version := photo_version(model_uri, uri)) is not None:
            # What the alias names now: it may name another version before the end.
            model_uri = f"models:/{version.name}/{version.version}"
            registered = version.creation_timestamp
        question = Question(model_uri.removeprefix("models:/"), registered, len(photos), photos.digest)
        with _journal(out, question) as journal:
            _complete(journal, photos, lambda: open_models(model_uri, uri, models_for(len(photos))), resumed)
            return journal.finish(write)


def _without_login(url: str) -> str:
    """An address without the name and the password that may be in it."""
    return re.sub(r"[^/@]*@", "", url)


def _complete(
    journal: Journal, photos: PhotoList, load: Callable[[], list[Answer]], resumed: Callable[[int, int], None]
) -> None:
    """Ask about the photos that have no answer yet."""
    if journal.done:
        resumed(journal.done, len(photos))
    if journal.done < len(photos):
        with closing(answer_photos(photos, load(), journal.done)) as answered:
            journal.extend(answered)


class Journal:
    """The answers until now, in FILE.partial."""

    def __init__(self, out: Path, path: Path, file: IO[bytes], question: Question) -> None:
        self._out, self.path, self._file, self._question = out, path, file, question
        self.done = 0
        self._version: str | None = None  # of the last answer
        self._read()
        self._there = self.done

    def _read(self) -> None:
        """Count the answers, and cut off a last one that was not written whole. Raises UserError if they are answers to
        another question."""
        self._file.seek(0)
        start = self._file.read(len(HEADER_START))
        if not HEADER_START.startswith(start):
            raise UserError(f"{self.path} was not written by `binsweep predict --out`", "give another --out")
        self._file.seek(0)
        asked, whole = None, 0
        for number, (row, end) in enumerate(_complete_lines(self._file)):
            asked, whole = asked or row, end
            if number:
                self.done, self._version = number, row.get("model_version") or self._version
        same = asked == asdict(self._question)
        if asked is not None and not same and self.done:
            raise self._other_question(Question(**asked))
        self._file.truncate(whole if same else 0)
        self._file.seek(0, os.SEEK_END)
        if not same:
            self._append([asdict(self._question)])

    def _other_question(self, asked: Question) -> UserError:
        now, anew = self._question, f"delete {self.path} to begin anew"
        if (asked.model, asked.registered) == (now.model, now.registered):
            return UserError(
                f"{self.path} has answers about another list of photos ({asked.photos:,} photos then, "
                f"{now.photos:,} now)",
                f"give the same photos to go on, or {anew}",
            )
        again = asked.model == now.model
        return UserError(
            f"{self.path} has answers of {asked.model}, and now {now.model} is asked"
            + ", which was registered since" * again,
            anew if again else f"ask {asked.model} to go on, or {anew}",
        )

    def extend(self, answered: Iterator[Answered]) -> None:
        """Append answers as they come, a batch at a time. Raises UserError if a server changed its model since."""
        compare = self._version is not None
        while batch := [{"image": name, **row} for name, row in islice(answered, BATCH_PHOTOS)]:
            version = next((row["model_version"] for row in batch if row.get("model_version")), None)
            if compare and version is not None:
                if version != self._version:
                    raise UserError(
                        f"{self.path} has answers of version {self._version}, and the model is now version {version}",
                        f"serve version {self._version} to go on, or delete {self.path} to begin anew",
                    )
                compare = False
            self._append(batch)
            self.done += len(batch)

    def _append(self, rows: Sequence[Row]) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            with uninterrupted():
                self._file.write(lines)
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}",
                "the same command goes on once that is mended",
            ) from error

    def rows(self) -> Iterator[Row]:
        """The answers, from the first one on."""
        self._file.seek(0)
        return (row for row, _ in islice(_complete_lines(self._file), 1, None))

    def finish(self, write: Callable[[Journal, Path], None]) -> AnswerFile:
        """Write the file, and remove the journal."""
        try:
            with atomic_path(self._out) as temporary:
                write(self, temporary)
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())
        except OSError as error:
            raise UserError(
                f"{self._out} cannot be written: {error.strerror}",
                "the same command goes on once that is mended",
            ) from error
        unanswered = sum(bool(row.get("error")) for row in self.rows())
        self.path.unlink()
        return AnswerFile(str(self._out), self.done, unanswered, self._there)


def _complete_lines(file: IO[bytes]) -> Iterator[tuple[Row, int]]:
    """The object of each line, and where the line ends, up to the first one that was not written whole."""
    end = 0
    for line in file:
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError:  # a power cut may leave zeros at the end
            return
        if not line.endswith(b"\n"):
            return
        yield row, end


@contextmanager
def _journal(out: Path, question: Question) -> Iterator[Journal]:
    """The journal of `out`, for this process alone."""
    path = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "rb+") as file:
        if not try_lock(file.fileno()):
            raise UserError(
                f"{path} is being written by another process", "wait for it, or give another --out"
            )
        journal = Journal(out, path, file, question)
        try:
            yield journal
        finally:
            if not journal.done:
                path.unlink()


def _writer(out: Path) -> Callable[[Journal, Path], None]:
    """What writes the file, by its suffix. Raises UserError if it cannot be written."""
    write = WRITERS.get(out.suffix.lower())
    if write is None:
        raise UserError(f"--out {out}: not a table", f"a name that ends in {', '.join(WRITERS)}")
    if os.path.lexists(out):
        raise UserError(f"--out {out}: exists", "delete it, or give another name: nothing is overwritten")
    require_folder(out, out.parent)
    return write


def _columns(journal: Journal) -> tuple[list[str], list[str]]:
    """The columns of a table of the answers, without those of probabilities; and the classes that have those."""
    classes: dict[str, None] = {}
    named = False
    for row in journal.rows():
        named = named or "label" in row
        classes |= dict.fromkeys(row.get("probabilities") or ())
    answer = ["label"] if named else ["count", "expected_count"]
    return ["image", *answer, "confidence", "model_version", "error"], list(classes)


def _tables(journal: Journal, columns: Sequence[str], classes: Sequence[str]) -> Iterator[list[Row]]:
    """Rows of a table, ROWS_AT_ONCE at a time."""

    def flat(row: Row) -> Row:
        probabilities = row.get("probabilities") or {}
        cells = {column: row.get(column) for column in columns}
        return (
            cells | {"error": row.get("error") or ""} | {f"p{one}": probabilities.get(one) for one in classes}
        )

    rows = map(flat, journal.rows())
    while table := list(islice(rows, ROWS_AT_ONCE)):
        yield table


def _write_csv(journal: Journal, file: Path) -> None:
    columns, classes = _columns(journal)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*columns, *(f"p{one}" for one in classes)])
        writer.writeheader()
        for table in _tables(journal, columns, classes):
            writer.writerows(table)


def _write_parquet(journal: Journal, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, classes = _columns(journal)
    types = {"count": pa.int64(), "expected_count": pa.float64(), "confidence": pa.float64()}
    fields = [(column, types.get(column, pa.string())) for column in columns]
    schema = pa.schema([*fields, *((f"p{one}", pa.float64()) for one in classes)])
    with pq.ParquetWriter(file, schema) as writer:
        for table in _tables(journal, columns, classes):
            writer.write_table(pa.Table.from_pylist(table, schema))


def _write_json_lines(journal: Journal, file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in journal.rows())


WRITERS: dict[str, Callable[[Journal, Path], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".jsonl": _write_json_lines,
}
