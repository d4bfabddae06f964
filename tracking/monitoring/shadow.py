"""A challenger in the shadow of the served version: it answers a share of the requests, too, and nobody waits for it.

The challenger is a server process of its own, at the lowest priority. A thread of the served version's process sends it
one request at a time, after the caller has the answer, and keeps both answers to each photo. What finds no room to wait
is counted as missed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import requests
from PIL import Image

from binsweep.data.decode import ImageError, decode
from binsweep.tracking.monitoring.store import ShadowedPhoto, Tally, WatchStore
from binsweep.tracking.registry.served_model import from_base64

MAX_WAITING_REQUESTS = 4
MAX_WAITING_BYTES = 32 * 2**20  # of base64
ANSWER_SECONDS = 60.0
THUMBNAIL_SIDE = 128
SHADOW = "shadow"  # counted with the bins asked (photos), missed (photos) and failed (requests)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShadowTask:
    """The challenger's version, where its server answers, and the share of requests that it is asked."""

    version: str
    url: str
    share: float


class Shadow:
    """Asks the challenger some of the requests that a version has answered, from `start` on."""

    def __init__(self, store: WatchStore, version: str, task: ShadowTask, keep_thumbnails: bool) -> None:
        self._store, self._version, self._task = store, version, task
        self._keep_thumbnails = keep_thumbnails
        self._waiting: queue.Queue[tuple[Sequence[Any], pd.DataFrame]] = queue.Queue(MAX_WAITING_REQUESTS)
        self._dice = random.Random()
        self._missed = 0
        self._started = False

    def start(self) -> None:
        """Begin to ask."""
        self._started = True
        threading.Thread(target=self._run, name="shadow", daemon=True).start()

    def offer(self, texts: Sequence[Any], rows: pd.DataFrame) -> None:
        """Ask the challenger about these photos in base64, which were answered with `rows`, if the dice say so."""
        if not self._started or self._dice.random() >= self._task.share:
            return
        try:
            if sum(len(text) for text in texts if isinstance(text, str)) > MAX_WAITING_BYTES:
                raise queue.Full
            self._waiting.put_nowait((texts, rows))
        except queue.Full:
            self._missed += len(texts)

    def _run(self) -> None:
        while True:
            texts, rows = self._waiting.get()
            tally = Tally()
            try:
                photos = self._ask(texts, rows)
                tally.add(SHADOW, "asked", times=len(photos))
            except (requests.RequestException, ValueError, KeyError, TypeError) as error:
                photos = []
                tally.add(SHADOW, "failed")
                log.warning("the challenger did not answer: %s", error)
            missed, self._missed = self._missed, 0
            if missed:
                tally.add(SHADOW, "missed", times=missed)
            try:
                self._store.add(self._version, tally)
                self._store.add_shadowed(self._version, self._task.version, photos)
            except (OSError, sqlite3.Error):
                log.exception("the challenger's answers cannot be kept")

    def _ask(self, texts: Sequence[Any], rows: pd.DataFrame) -> list[ShadowedPhoto]:
        """Both answers to each photo that the served version has answered."""
        asked = [
            (text, row)
            for text, row in zip(texts, rows.to_dict("records"), strict=True)
            if not row.get("error")
        ]
        body = {"dataframe_split": {"columns": ["image"], "data": [[text] for text, _ in asked]}}
        reply = requests.post(f"{self._task.url}/invocations", json=body, timeout=ANSWER_SECONDS)
        reply.raise_for_status()
        others = reply.json()["predictions"]
        return [self._both(text, row, other) for (text, row), other in zip(asked, others, strict=True)]

    def _both(self, text: str, row: Mapping[Any, Any], other: Mapping[Any, Any]) -> ShadowedPhoto:
        content = from_base64(text)
        mine, theirs = (json.dumps(_answer(one), default=int) for one in (row, other))
        return ShadowedPhoto(
            hashlib.sha256(content).digest(),
            time.time(),
            mine,
            theirs,
            float(row["confidence"]),
            float(other["confidence"] or 0.0),
            _thumbnail(content) if self._keep_thumbnails and mine != theirs else None,
        )


def _answer(row: Mapping[Any, Any]) -> Any:
    return row["label"] if "label" in row else row["count"]


def _thumbnail(content: bytes) -> bytes | None:
    """A small JPEG; None for bytes that are no photo."""
    try:
        pixels = decode(content, THUMBNAIL_SIDE)
    except ImageError:
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=70)
    return stream.getvalue()
