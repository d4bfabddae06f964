"""Counting in the model server: the answers are handed over when they are made, and a thread of its own does the rest.

The caller's path only appends to a queue. What waits in it is bounded; what finds no room is counted as missed
and forgotten. Measuring a photo means decoding it once more, which may take MEASURE_SHARE of one core: on a busy server
some of the photos are measured, on others all. Nothing that fails here reaches an answer: it is counted, its reason is
among the metrics, and the server's log has the stack trace.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from PIL import Image

from binsweep.data.decode import ImageError, decode
from binsweep.tracking.monitoring.drift import Oddness
from binsweep.tracking.monitoring.figures import ANSWER, CONFIDENCE, FIGURES, LATENCY, measure_photo
from binsweep.tracking.monitoring.reference import Reference
from binsweep.tracking.monitoring.shadow import Shadow
from binsweep.tracking.monitoring.store import AnsweredPhoto, Tally, WatchStore
from binsweep.tracking.registry.served_model import from_base64

MAX_WAITING_BYTES = 64 * 2**20  # of base64, a few requests of the largest size
MAX_WAITING_REQUESTS = 10_000
FLUSH_SECONDS = 2.0
MEASURE_SHARE = 0.05  # of one core's time, for decoding photos once more
MAX_CREDIT_SECONDS = 1.0  # of measuring, saved up while there was little to do
MAX_ANSWERS = 1000  # different answers that are counted by name; a model of photos has no more classes
THUMBNAIL_SIDE = 128  # pixels
REQUESTS, SECONDS, PHOTOS = "requests", "seconds", "photos"  # counted besides FIGURES and ANSWER
ANSWERED, REFUSED, MISSED, MEASURED = "answered", "error", "missed", "measured"  # bins of PHOTOS
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answers:
    """A request's photos in base64, and the model's answers."""

    texts: Sequence[Any]
    rows: pd.DataFrame
    at: float


@dataclass(frozen=True)
class _Request:
    status: int
    seconds: float


@dataclass(frozen=True)
class _Refusal:
    photos: int


class Watcher:
    """Counts the requests and photos of one version's server into a store, from `start` on."""

    def __init__(
        self,
        store: WatchStore,
        version: str,
        load_reference: Callable[[], Reference | None],
        keep_thumbnails: bool = False,
        shadow: Shadow | None = None,
    ) -> None:
        self.store, self.version = store, version
        self.reference: Reference | None = None
        self.failures, self.failure = 0, ""  # how often counting failed, and the last reason
        self._shadow = shadow
        self._load_reference, self._keep_thumbnails = load_reference, keep_thumbnails
        self._waiting: queue.SimpleQueue[_Answers | _Request | _Refusal | threading.Event] = (
            queue.SimpleQueue()
        )
        self._waiting_bytes, self._missed = 0, 0
        self._lock = threading.Lock()
        self._tally = Tally()
        self._names = set[str]()
        self._oddness: Oddness | None = None
        self._credit, self._credited = MAX_CREDIT_SECONDS, time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to count."""
        self._thread = threading.Thread(target=self._run, name="watching", daemon=True)
        self._thread.start()
        if self._shadow is not None:
            self._shadow.start()

    def close(self) -> None:
        """Write what was counted, and end."""
        if self._thread is not None:
            self.flush(5.0)
            self._ended.set()

    def request_done(self, status: int, seconds: float) -> None:
        """Count a request, whatever came of it."""
        self._put(_Request(status, seconds))

    def refused(self, photos: int) -> None:
        """Count the photos of a request that the model refused as a whole."""
        self._put(_Refusal(photos))

    def _put(self, item: _Request | _Refusal) -> None:
        if self._thread is not None and self._waiting.qsize() < MAX_WAITING_REQUESTS:
            self._waiting.put(item)

    def answered(self, texts: Sequence[Any], rows: pd.DataFrame) -> None:
        """Count the answers to photos in base64."""
        if self._thread is None:
            return
        if self._shadow is not None:
            self._shadow.offer(texts, rows)
        size = sum(len(text) for text in texts if isinstance(text, str))
        with self._lock:
            if self._waiting_bytes + size > MAX_WAITING_BYTES:
                self._missed += len(texts)
                return
            self._waiting_bytes += size
        self._waiting.put(_Answers(texts, rows, time.time()))

    def flush(self, timeout: float) -> bool:
        """Wait until everything before this call is in the store; False if that takes longer than `timeout` seconds."""
        done = threading.Event()
        self._waiting.put(done)
        return done.wait(timeout)

    def _run(self) -> None:
        self._guard(self._find_reference)
        flush_at = time.monotonic() + FLUSH_SECONDS
        while not self._ended.is_set():
            try:
                item = self._waiting.get(timeout=max(0.05, flush_at - time.monotonic()))
            except queue.Empty:
                item = None
            if isinstance(item, _Answers):
                self._guard(self._count_answers, item)
            elif isinstance(item, _Request):
                self._count_request(item)
            elif isinstance(item, _Refusal):
                self._tally.add(PHOTOS, REFUSED, times=item.photos)
            if isinstance(item, threading.Event) or time.monotonic() >= flush_at:
                self._guard(self._write)
                flush_at = time.monotonic() + FLUSH_SECONDS
            if isinstance(item, threading.Event):
                item.set()

    def _guard(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do some work; a failure of any kind is counted and logged, because counting must not end with it."""
        try:
            work(*arguments)
        except Exception as error:
            self.failures += 1
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            log.exception("counting failed")

    def _find_reference(self) -> None:
        self.reference = self._load_reference()
        if self.reference is not None:
            self._oddness = Oddness(self.reference.counts)

    def _count_request(self, request: _Request) -> None:
        self._tally.add(REQUESTS, request.status)
        self._tally.add(SECONDS, LATENCY.bin_of(request.seconds), request.seconds)

    def _count_answers(self, answers: _Answers) -> None:
        try:
            names = [name for name in ("count", "label") if name in answers.rows]
            if not names or "confidence" not in answers.rows:
                return  # a model that does not answer about photos
            for text, row in zip(answers.texts, answers.rows.to_dict("records"), strict=True):
                if row.get("error"):
                    self._tally.add(PHOTOS, REFUSED)
                else:
                    self._count_photo(text, row[names[0]], float(row["confidence"]), answers.at)
        finally:
            with self._lock:
                self._waiting_bytes -= sum(len(text) for text in answers.texts if isinstance(text, str))

    def _count_photo(self, text: str, answer: Any, confidence: float, at: float) -> None:
        content = from_base64(text)
        label = json.dumps(answer, default=int)
        if len(self._names) < MAX_ANSWERS:
            self._names.add(label)
        photo = AnsweredPhoto(hashlib.sha256(content).digest(), at, label, confidence, len(content), None)
        values: dict[str, float] = {CONFIDENCE: confidence, "bytes": len(content)}
        if self._may_measure():
            began = time.thread_time()
            try:
                stats = measure_photo(content)
            except ImageError:  # models that answer about other bytes than photos
                stats = None
            if stats is not None:
                photo = AnsweredPhoto(photo.sha256, at, label, confidence, photo.bytes, stats)
                values |= {name: getattr(stats, name) for name in FIGURES if hasattr(stats, name)}
                self._tally.measured += 1
                self._tally.add(PHOTOS, MEASURED)
                self._keep_odd(photo, content)
            self._credit -= time.thread_time() - began
        for name, value in values.items():
            self._tally.add(name, FIGURES[name].bin_of(value), value)
        self._tally.add(ANSWER, label if label in self._names else '"..."')
        self._tally.add(PHOTOS, ANSWERED)
        self._tally.photos.append(photo)

    def _may_measure(self) -> bool:
        """Whether decoding has not taken more than its share of time."""
        now = time.monotonic()
        self._credit = min(MAX_CREDIT_SECONDS, self._credit + MEASURE_SHARE * (now - self._credited))
        self._credited = now
        return self._credit > 0

    def _keep_odd(self, photo: AnsweredPhoto, content: bytes) -> None:
        """Keep a small picture of a photo that is unlike the validation photos, if that was asked for."""
        if not self._keep_thumbnails or self._oddness is None:
            return
        oddness, _ = self._oddness.of(photo)
        stream = io.BytesIO()
        Image.fromarray(decode(content, THUMBNAIL_SIDE)).save(stream, "JPEG", quality=70)
        self._tally.thumbnails.append((photo.sha256, oddness, stream.getvalue()))

    def _write(self) -> None:
        tally, self._tally = self._tally, Tally()
        with self._lock:
            missed, self._missed = self._missed, 0
        if missed:
            tally.add(PHOTOS, MISSED, times=missed)
        if tally.counts:
            self.store.add(self.version, tally)
