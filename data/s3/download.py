"""The work of a pull: list a bucket, choose images, download those that are missing here."""

import hashlib
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from binsweep.data.decode import MAX_BYTES, ImageError, ReadFailed, dimensions
from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.data.s3.bucket import Bucket, Content
from binsweep.data.s3.errors import ObjectError
from binsweep.data.s3.listing import (
    MAX_SINGLE_LOOKUPS,
    PARTIAL,
    PhaseProgress,
    Selection,
    layout_of,
    list_bucket,
    list_table,
    remove_gone,
)
from binsweep.data.s3.pull_state import PullState
from binsweep.data.sources.folder import FoundPhoto
from binsweep.data.sources.metadata import BinMetadata, parse_metadata
from binsweep.data.sources.object_names import Layout

_QUEUED_PER_WORKER = 4  # requests that wait for each one in progress
In = TypeVar("In")
Out = TypeVar("Out")


def download(
    bucket: Bucket,
    root: Path,
    state: PullState,
    selection: Selection,
    progress: PhaseProgress,
    workers: int,
    table: Mapping[str, FoundPhoto] | None = None,
) -> tuple[Layout, int, int]:
    """List the bucket, choose images, download the missing ones; returns the layout, objects and bytes fetched.

    With a `table`, whose keys are names of objects, only its photos count.
    """
    if table is None:
        list_bucket(bucket, state, selection, progress)
        layout = layout_of(bucket, state)
    else:
        layout = list_table(bucket, state, table, progress)
    if selection.ids is None or len(selection.ids) > MAX_SINGLE_LOOKUPS:
        remove_gone(root, state)
    run = _Download(bucket, root, state, layout, selection, progress)
    with ThreadPoolExecutor(workers, "pull") as pool:
        if layout == "bucket":
            run.choose_by_documents(pool, workers * _QUEUED_PER_WORKER)
        else:
            run.choose_by_names()
        run.fetch_images(pool, workers * _QUEUED_PER_WORKER)
    state.commit()
    return layout, run.fetched, run.bytes


class _Download:
    """One run over a bucket. Threads download and write files; only the caller's thread uses the pull state."""

    def __init__(
        self,
        bucket: Bucket,
        root: Path,
        state: PullState,
        layout: Layout,
        selection: Selection,
        progress: PhaseProgress,
    ) -> None:
        self._bucket, self._root, self._state, self._layout = bucket, root, state, layout
        self._selection, self._progress = selection, progress
        self._counts: Counter[Label] = Counter()
        self.fetched = self.bytes = 0

    def _candidates(self, columns: str, join: str = "") -> tuple[str, tuple[Any, ...]]:
        """A query of the images that may be chosen, in the order of choice, with its values."""
        selection = self._selection
        asked = "and l.id in (select id from asked)" if selection.ids is not None else ""
        order = "place(?, l.id)" if selection.limit or selection.per_class else "l.id, ?"
        query = (
            f"select {columns} from listed l {join} where l.layout = '{self._layout}' and l.kind = "
            f"'{'document' if self._layout == 'bucket' else 'image'}' {asked} group by l.id order by {order}"
        )
        return query, (selection.seed,)

    def choose_by_names(self) -> None:
        """Choose images whose folders are their labels."""
        query, values = self._candidates("l.id, min(l.name), l.label, l.split")
        for id, _, label, split in self._state.rows(query, values):
            if self._accepts(label):
                self._choose(id, label, split)
            if self._is_full():
                break

    def choose_by_documents(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        """Choose images with metadata files, which are read until enough images are chosen."""
        image_exists = (
            "exists (select 1 from listed i where i.layout = 'bucket' and i.kind = 'image' and i.id = l.id)"
        )
        self._state.write(
            f"insert or ignore into problems select l.id, 'has metadata but no image' from listed l "
            f"where l.layout = 'bucket' and l.kind = 'document' and not {image_exists}"
        )
        columns = "l.id, l.name, l.size, l.etag, d.size, d.etag, d.label, d.reason"
        query, values = self._candidates(columns, "left join documents d on d.id = l.id")
        query = query.replace(" group by", f" and {image_exists} group by")
        total = self._state.scalar(f"select count(*) from ({query})", values)
        rows = self._state.rows(query, values)
        for done, (row, document, content) in enumerate(
            map_ordered(pool, ahead, self._read_document, rows), 1
        ):
            self._progress("metadata", done, total)
            self._choose_by_document(row[0], row[1], document, content)
            if self._is_full():
                break

    def _choose_by_document(self, id: str, name: str, document: BinMetadata, content: Content | None) -> None:
        """Choose an image or leave it out; `content` is the metadata file's if it was downloaded."""
        if content is not None:
            self._record_document(id, content, document)
        if document.label is None:
            self._state.problem(id, f"{name}: {document.reason}")
        if document.label is not None and self._accepts(document.label):
            if content is not None:
                _write(self._root, name, content.data)
            self._choose(id, document.label, None)
        elif content is not None:
            (self._root / name).unlink(missing_ok=True)

    def _read_document(self, row: Any) -> tuple[Any, BinMetadata, Content | None]:
        """In a thread: a row's metadata, from the pull state if the file has not changed, otherwise downloaded."""
        _, name, size, etag, known_size, known_etag, label, reason = row
        if (size, etag) == (known_size, known_etag) and (
            label is None or not self._in_classes(label) or _is_here(self._root / name, size)
        ):
            return row, BinMetadata(label, reason), None
        try:
            content = self._bucket.get(name)
        except ObjectError as error:
            return row, BinMetadata(None, str(error)), None
        return row, parse_metadata(content.data), content

    def _record_document(self, id: str, content: Content, document: BinMetadata) -> None:
        self.fetched, self.bytes = self.fetched + 1, self.bytes + len(content.data)
        self._state.write(
            "insert or replace into documents values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                id,
                len(content.data),
                content.etag,
                document.label,
                document.reason,
                document.disagreement,
                json.dumps(document.names),
                json.dumps(document.quantities),
            ),
        )

    def _in_classes(self, label: Label) -> bool:
        return self._selection.classes is None or label in self._selection.classes

    def _accepts(self, label: Label) -> bool:
        return self._in_classes(label) and self._counts[label] < (self._selection.per_class or 2**62)

    def _choose(self, id: str, label: Label, split: str | None) -> None:
        self._counts[label] += 1
        self._state.write("insert or ignore into chosen values (?, ?, ?)", (id, label, split))

    def _is_full(self) -> bool:
        """Whether no further image can be accepted."""
        selection = self._selection
        if selection.limit is not None and self._counts.total() >= selection.limit:
            return True
        every = selection.per_class is not None and selection.classes is not None
        return every and all(
            self._counts[label] >= (selection.per_class or 0) for label in selection.classes or ()
        )

    def fetch_images(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        """Download the chosen images that are missing here or have changed."""
        total = self._state.scalar("select count(*) from chosen")
        rows = self._state.rows(
            "select l.id, min(l.name), l.size, l.etag, i.size, i.etag, i.reason from chosen join listed l "
            "using (id) left join images i on i.name = l.name where l.layout = ? and l.kind = 'image' "
            "group by l.id order by l.id",
            (self._layout,),
        )
        for done, (row, known, problem) in enumerate(map_ordered(pool, ahead, self._fetch_image, rows), 1):
            self._progress("images", done, total)
            if known is not None:
                self.fetched, self.bytes = self.fetched + 1, self.bytes + known[1]
                self._state.write("insert or replace into images values (?, ?, ?, ?, ?, ?, ?)", known)
            if problem:
                self._state.problem(row[0], f"{row[1]}: {problem}")

    def _fetch_image(self, row: Any) -> tuple[Any, tuple[Any, ...] | None, str]:
        """In a thread: download an image unless it is here already; returns its new record, and its problem."""
        _, name, size, etag, known_size, known_etag, reason = row
        if (size, etag) == (known_size, known_etag) and _is_here(self._root / name, size):
            return row, None, reason
        if size > MAX_BYTES:
            return row, None, f"{size:,} bytes are more than the {MAX_BYTES:,} that are allowed"
        try:
            content = self._bucket.get(name)
        except ObjectError as error:
            return row, None, str(error)
        _write(self._root, name, content.data)
        width = height = None
        problem = ""
        try:
            width, height = dimensions(content.data)
        except ReadFailed as error:
            raise UserError(
                f"{name}: {error}", "run the same command again: it continues from here"
            ) from error
        except ImageError as error:
            problem = str(error)
        found = (
            name,
            len(content.data),
            content.etag,
            hashlib.sha256(content.data).hexdigest(),
            width,
            height,
            problem,
        )
        return row, found, problem


def map_ordered(
    pool: ThreadPoolExecutor, ahead: int, work: Callable[[In], Out], items: Iterable[In]
) -> Iterator[Out]:
    """The results of `work` in the order of `items`, of which at most `ahead` are submitted in advance."""
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _is_here(file: Path, size: int) -> bool:
    """Whether a file exists with the expected size."""
    try:
        return file.stat().st_size == size
    except OSError:
        return False


def _write(root: Path, name: str, data: bytes) -> None:
    """Write a file whole or not at all, through one temporary file for each thread.

    Not `atomic_path`: it runs a million times, and paths as text take half the time.
    """
    file, temporary = f"{root}/{name}", f"{root}/{PARTIAL}/{threading.get_ident()}"
    with open(temporary, "wb") as stream:  # noqa: PTH123
        stream.write(data)
    try:
        os.replace(temporary, file)  # noqa: PTH105
    except FileNotFoundError:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(temporary).replace(file)
