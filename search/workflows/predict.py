"""Ask a model about photos, with a server or in this process: files are read beside decoding and computing."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from binsweep.data.decode import ImageError, decode
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores
from binsweep.search.terminal.progress import ProgressBar
from binsweep.search.workflows.photo_list import Photo, PhotoList, find_photos
from binsweep.tracking.mlflow_server.embedded import model_server
from binsweep.tracking.serving.model_server import BATCH_PHOTOS, Answer, open_model, open_models
from binsweep.tracking.serving.model_server import predict as ask

MAX_ANSWER_SECONDS = 60.0
N_READERS = 16  # also for objects of a bucket, each of which takes a while to arrive
READ_AHEAD = 32  # photos whose bytes are read, or being read, before a model takes them
MAX_BATCH_BYTES = 32 * 2**20  # of the photos that one model gets at once: they may be large
# One model for each core is fastest, as no thread waits for another, but each takes memory.
MAX_MODELS = 4
FEW_PHOTOS = 2 * BATCH_PHOTOS  # for which a second model is not worth loading
N_REQUESTS = 3  # to a server at once: it decodes one while it computes another
Answered = tuple[str, dict[str, Any]]  # a photo's name and its row


def predict_images(
    places: Sequence[str], url: str | None, model_uri: str, home: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each photo's name and answer, in the order of `find_photos`: count and expected_count, or label;
    confidence, probabilities, model_version, error. A photo that cannot be read has only its error.

    Asks the server at `url`, or loads the model `model_uri`.
    """
    photos = list_photos(places)
    if url is None:
        with model_server(home, model_uri) as uri:
            answers = open_models(model_uri, uri, models_for(len(photos)))
    else:
        answers = ask_server(url)
    yield from answer_photos(photos, answers)


def list_photos(places: Sequence[str]) -> PhotoList:
    """The photos of a command's places, `-` being its stdin."""
    return PhotoList(find_photos(places, None if sys.stdin is None else sys.stdin.buffer))


def load_answer(model_uri: str, home: Path) -> Answer:
    """Load a model into this process. Raises UserError if it does not exist."""
    with model_server(home, model_uri) as uri:
        return open_model(model_uri, uri)


def models_for(photos: int) -> int:
    """How many models shall answer about so many photos at once."""
    return 1 if photos <= FEW_PHOTOS else min(cores(), MAX_MODELS)


def ask_server(url: str) -> list[Answer]:
    """Functions that ask a server, for requests at once."""
    return [partial(ask, url, timeout=MAX_ANSWER_SECONDS)] * N_REQUESTS


def answer_photos(
    photos: PhotoList, answers: Sequence[Answer], done: int = 0
) -> Generator[Answered, None, None]:
    """Yield the photos' names and answers from number `done` on; each of `answers` is asked by one thread at a time.

    In memory are READ_AHEAD photos and, for each of `answers`, two batches.
    """
    free: SimpleQueue[Answer] = SimpleQueue()
    for answer in answers:
        free.put(answer)

    def rows(contents: Sequence[bytes | str]) -> list[dict[str, Any]]:
        answer = free.get()
        try:
            return _rows(contents, answer)
        finally:
            free.put(answer)

    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar("predicting")) if len(photos) > BATCH_PHOTOS else None
        readers, askers = ThreadPoolExecutor(N_READERS), ThreadPoolExecutor(len(answers))
        for pool in (readers, askers):  # after an error, or when it is interrupted, what waits is not begun
            stack.callback(pool.shutdown, cancel_futures=True)
        asked: deque[tuple[list[str], Future[list[dict[str, Any]]]]] = deque()
        if progress is not None:
            progress(done, len(photos))

        def finished() -> Iterator[Answered]:
            nonlocal done
            names, answered = asked.popleft()
            yield from zip(names, answered.result(), strict=True)
            done += len(names)
            if progress is not None:
                progress(done, len(photos))

        for names, contents in _batches(_read_ahead(photos.after(done), readers)):
            asked.append((names, askers.submit(rows, contents)))
            if len(asked) == 2 * len(answers):
                yield from finished()
        while asked:
            yield from finished()


def _read_ahead(photos: Iterator[Photo], readers: ThreadPoolExecutor) -> Iterator[tuple[str, bytes | str]]:
    """The photos' names with their bytes, or the reason why they cannot be read; READ_AHEAD of them are under way."""
    reading = deque((photo.name, readers.submit(_content, photo)) for photo in islice(photos, READ_AHEAD))
    while reading:
        name, content = reading.popleft()
        yield name, content.result()
        reading.extend((photo.name, readers.submit(_content, photo)) for photo in islice(photos, 1))


def _batches(contents: Iterable[tuple[str, bytes | str]]) -> Iterator[tuple[list[str], list[bytes | str]]]:
    """Names and contents in batches of at most BATCH_PHOTOS, which end early when they hold MAX_BATCH_BYTES."""
    names: list[str] = []
    batch: list[bytes | str] = []
    size = 0
    for name, content in contents:
        names.append(name)
        batch.append(content)
        size += len(content)
        if len(batch) == BATCH_PHOTOS or size >= MAX_BATCH_BYTES:
            yield names, batch
            names, batch, size = [], [], 0
    if batch:
        yield names, batch


def _rows(contents: Sequence[bytes | str], answer: Answer) -> list[dict[str, Any]]:
    """The answers for a batch. A photo that cannot be read has the reason in `error`; the others are answered."""
    good = [content for content in contents if isinstance(content, bytes)]
    try:
        answers = answer(good) if good else []
    except UserError:
        # A model refuses a request without any readable photo; report the error of each one.
        errors = [_fault(content) for content in good]
        if not all(errors):
            raise
        answers = [_unanswered(error) for error in errors]
    rows = iter(answers)
    return [next(rows) if isinstance(content, bytes) else _unanswered(content) for content in contents]


def _content(photo: Photo) -> bytes | str:
    """A photo's bytes, or the reason why it cannot be read."""
    try:
        return photo.read()
    except ImageError as error:
        return str(error)


def _fault(content: bytes) -> str:
    try:
        decode(content)
    except ImageError as error:
        return str(error)
    return ""


def _unanswered(error: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("count", "expected_count", "confidence", "probabilities", "model_version"))
    return {**nothing, "error": error}
