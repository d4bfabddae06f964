"""The work of a pull: list a bucket, choose what is wanted, fetch what is not here yet."""

import hashlib
import json
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from binsweep.data.decode import MAX_BYTES, ImageError, ReadFailed, dimensions
from binsweep.data.errors import UserError
from binsweep.data.s3.bucket import Bucket, Content
from binsweep.data.s3.errors import ObjectError
from binsweep.data.s3.listing import (
    FEW,
    PARTIAL,
    PhaseProgress,
    Selection,
    layout_of,
    list_bucket,
    remove_gone,
)
from binsweep.data.s3.pull_state import PullState
from binsweep.data.sources.metadata import BinMetadata, parse_metadata
from binsweep.data.sources.object_names import Layout

_AHEAD = 4  # requests that wait for each one under way
In = TypeVar("In")
Out = TypeVar("Out")


def fetch(
    bucket: Bucket, root: Path, ledger: PullState, wanted: Selection, report: PhaseProgress, workers: int
) -> tuple[Layout, int, int]:
    """List, choose, and fetch what is chosen and not here; returns the layout and the objects and bytes fetched."""
    list_bucket(bucket, ledger, wanted, report)
    layout = layout_of(bucket, ledger)
    if wanted.ids is None or len(wanted.ids) > FEW:
        remove_gone(root, ledger)
    run = _Run(bucket, root, ledger, layout, wanted, report)
    with ThreadPoolExecutor(workers, "pull") as pool:
        if layout == "bucket":
            run.choose_by_documents(pool, workers * _AHEAD)
        else:
            run.choose_by_names()
        run.fetch_images(pool, workers * _AHEAD)
    ledger.commit()
    return layout, run.fetched, run.bytes


class _Run:
    """One run over a bucket. Threads fetch and write images; only the caller's thread touches the ledger."""

    def __init__(
        self,
        bucket: Bucket,
        root: Path,
        ledger: PullState,
        layout: Layout,
        wanted: Selection,
        report: PhaseProgress,
    ) -> None:
        self._bucket, self._root, self._ledger, self._layout = bucket, root, ledger, layout
        self._wanted, self._report = wanted, report
        self._counts: Counter[int] = Counter()
        self.fetched = self.bytes = 0

    def _candidates(self, columns: str, join: str = "") -> tuple[str, tuple[Any, ...]]:
        """The images that may be chosen, in the order in which they are."""
        w = self._wanted
        asked = "and l.id in (select id from asked)" if w.ids is not None else ""
        order = "place(?, l.id)" if w.limit or w.per_class else "l.id, ?"
        query = (
            f"select {columns} from listed l {join} where l.layout = '{self._layout}' and l.kind = "
            f"'{'document' if self._layout == 'bucket' else 'image'}' {asked} group by l.id order by {order}"
        )
        return query, (w.seed,)

    def choose_by_names(self) -> None:
        """Choose where folders are the labels."""
        query, values = self._candidates("l.id, min(l.name), l.label, l.split")
        for id, _, label, split in self._ledger.rows(query, values):
            if self._accepts(label):
                self._choose(id, label, split)
            if self._full():
                break

    def choose_by_documents(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        """Choose where each image has a metadata file: read these first, as far as they are needed."""
        here = "(select 1 from listed i where i.layout = 'bucket' and i.kind = 'image' and i.id = l.id)"
        self._ledger.write(
            f"insert or ignore into problems select l.id, 'has metadata but no image' from listed l "
            f"where l.layout = 'bucket' and l.kind = 'document' and not exists {here}"
        )
        columns = "l.id, l.name, l.size, l.etag, d.size, d.etag, d.label, d.reason"
        query, values = self._candidates(columns, "left join documents d on d.id = l.id")
        query = query.replace(" group by", f" and exists {here} group by")
        total = self._ledger.number(f"select count(*) from ({query})", values)
        rows = self._ledger.rows(query, values)
        for done, (row, document, content) in enumerate(map_ordered(pool, ahead, self._document, rows), 1):
            self._report("metadata", done, total)
            id, name = row[0], row[1]
            if content is not None:
                self._note_document(id, content, document)
            if document.label is None:
                self._ledger.problem(id, f"{name}: {document.reason}")
            chosen = document.label is not None and self._accepts(document.label)
            if chosen:
                if content is not None:
                    _write(self._root, name, content.data)
                assert document.label is not None
                self._choose(id, document.label, None)
            elif content is not None:
                (self._root / name).unlink(missing_ok=True)
            if self._full():
                break

    def _document(self, row: Any) -> tuple[Any, BinMetadata, Content | None]:
        """In a thread: what is known of a metadata file that has not changed; else it is read."""
        _, name, size, etag, known_size, known_etag, label, reason = row
        if (size, etag) == (known_size, known_etag) and (
            label is None or not self._in_classes(label) or _lies_here(self._root / name, size)
        ):
            return row, BinMetadata(label, reason), None
        try:
            content = self._bucket.get(name)
        except ObjectError as error:
            return row, BinMetadata(None, str(error)), None
        return row, parse_metadata(content.data), content

    def _note_document(self, id: str, content: Content, document: BinMetadata) -> None:
        self.fetched, self.bytes = self.fetched + 1, self.bytes + len(content.data)
        self._ledger.write(
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

    def _in_classes(self, label: int) -> bool:
        return self._wanted.classes is None or label in self._wanted.classes

    def _accepts(self, label: int) -> bool:
        return self._in_classes(label) and self._counts[label] < (self._wanted.per_class or 2**62)

    def _choose(self, id: str, label: int, split: str | None) -> None:
        self._counts[label] += 1
        self._ledger.write("insert or ignore into chosen values (?, ?, ?)", (id, label, split))

    def _full(self) -> bool:
        """Whether nothing more can be accepted."""
        w = self._wanted
        if w.limit is not None and self._counts.total() >= w.limit:
            return True
        every = w.per_class is not None and w.classes is not None
        return every and all(self._counts[label] >= (w.per_class or 0) for label in w.classes or ())

    def fetch_images(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        """Fetch the chosen images that are not here as the bucket has them."""
        total = self._ledger.number("select count(*) from chosen")
        rows = self._ledger.rows(
            "select l.id, min(l.name), l.size, l.etag, i.size, i.etag, i.reason from chosen join listed l "
            "using (id) left join images i on i.name = l.name where l.layout = ? and l.kind = 'image' "
            "group by l.id order by l.id",
            (self._layout,),
        )
        for done, (row, known, problem) in enumerate(map_ordered(pool, ahead, self._image, rows), 1):
            self._report("images", done, total)
            if known is not None:
                self.fetched, self.bytes = self.fetched + 1, self.bytes + known[1]
                self._ledger.write("insert or replace into images values (?, ?, ?, ?, ?, ?, ?)", known)
            if problem:
                self._ledger.problem(row[0], f"{row[1]}: {problem}")

    def _image(self, row: Any) -> tuple[Any, tuple[Any, ...] | None, str]:
        """In a thread: fetch an image and put it in its place, unless it lies there already."""
        _, name, size, etag, known_size, known_etag, reason = row
        if (size, etag) == (known_size, known_etag) and _lies_here(self._root / name, size):
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
            raise UserError(f"{name}: {error}", "run the same command again: it goes on from here") from error
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
    """The results of `work` in the order of `items`, of which at most `ahead` are taken in advance."""
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


def _lies_here(file: Path, size: int) -> bool:
    """Whether a file is here with as many bytes as it should have."""
    try:
        return file.stat().st_size == size
    except OSError:
        return False


def _write(root: Path, name: str, data: bytes) -> None:
    """Put a file in its place, whole or not at all. Each thread has one place where it writes beside."""
    file, beside = f"{root}/{name}", f"{root}/{PARTIAL}/{threading.get_ident()}"
    with open(beside, "wb") as stream:  # noqa: PTH123 (a million times: paths as text cost half)
        stream.write(data)
    try:
        os.replace(beside, file)  # noqa: PTH105
    except FileNotFoundError:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(beside).replace(file)
