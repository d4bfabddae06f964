"""A version of a model, loaded and warm in a server process of its own, that takes requests when it is told to."""

from __future__ import annotations

import io
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from PIL import Image

from binsweep.data.errors import UserError
from binsweep.data.python_process import current_import_path
from binsweep.tracking.monitoring.shadow import ShadowTask
from binsweep.tracking.processes import (
    Server,
    describe_failed_start,
    end,
    free_port,
    spawn,
    tail,
    wait_until_answers,
)
from binsweep.tracking.serving.model_server import (
    BATCH_PHOTOS,
    START_SECONDS,
    predict,
    require_model,
    server_environment,
)


@dataclass(frozen=True)
class WatchOptions:
    """Where a server counts what it sees, and whether it keeps small pictures of the oddest photos."""

    home: str
    keep_thumbnails: bool = False


@dataclass(frozen=True)
class WorkerTask:
    """What a server process serves. `name` is None and `version` "" for a model that is no registered version."""

    model_uri: str
    name: str | None
    version: str
    port: int  # of the loopback
    control: int  # file descriptors
    listeners: Sequence[int]
    watch: WatchOptions | None
    shadow: ShadowTask | None = None
    in_background: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        raw = json.loads(text)
        watch, shadow = raw.pop("watch"), raw.pop("shadow")
        return cls(
            **raw,
            watch=None if watch is None else WatchOptions(**watch),
            shadow=None if shadow is None else ShadowTask(**shadow),
        )


WARM_UP = (1, 1, 1, BATCH_PHOTOS)  # photos of each request that a server answers before it takes others
ANSWER_SECONDS = 60.0
DRAIN_SECONDS = 60.0  # for the requests that a server has; as long as MLflow's application gives one of them


@dataclass(frozen=True)
class Replica:
    """A server of version `version`. It takes requests from `accept` to `drain`, and is there until `open_replica`'s
    block ends."""

    version: str
    server: Server
    _control: BinaryIO

    def accept(self) -> None:
        """Begin to take requests of the public sockets."""
        with suppress(BrokenPipeError):  # it has ended: `is_alive` says so
            self._control.write(b"a")

    def drain(self) -> None:
        """Take no more connections; the process answers what it has, and ends."""
        self._control.close()

    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.server.process() is not None

    def is_answering(self, until: float) -> bool:
        """Whether its process runs, and the monotonic time `until` has not come."""
        return self.is_alive() and time.monotonic() < until


@contextmanager
def open_replica(
    name: str,
    version: str,
    tracking_uri: str,
    listeners: Sequence[socket.socket],
    watch: WatchOptions | None = None,
    in_background: bool = False,
) -> Iterator[Replica]:
    """A warm server of `version` of the model `name`, for the public sockets `listeners`; ended with the block.

    It has answered a few photos on a port of the loopback. Raises UserError if the version does not exist, if its
    server does not answer within 120 s, or if it does not count these photos.
    """
    model_uri = f"models:/{name}/{version}"
    require_model(model_uri, tracking_uri)
    with start_replica(
        model_uri, name, version, tracking_uri, listeners, watch, in_background=in_background
    ) as replica:
        _warm_up(replica.server, model_uri)
        yield replica


@contextmanager
def start_replica(
    model_uri: str,
    name: str | None,
    version: str,
    tracking_uri: str,
    listeners: Sequence[socket.socket],
    watch: WatchOptions | None,
    shadow: ShadowTask | None = None,
    in_background: bool = False,
) -> Iterator[Replica]:
    """A server of any model that MLflow can load, for the public sockets `listeners`; ended with the block.

    Raises UserError if it does not answer within 120 s.
    """
    with tempfile.TemporaryDirectory(prefix="binsweep-serve-") as temporary:
        folder = Path(temporary)
        log = folder / "serve.log"
        orders, control = os.pipe()
        with os.fdopen(control, "wb", 0) as writer:
            try:
                port = free_port()
                descriptors = [listener.fileno() for listener in listeners]
                task = WorkerTask(
                    model_uri, name, version, port, orders, descriptors, watch, shadow, in_background
                )
                server = spawn(
                    [task.to_json()],
                    port,
                    folder,
                    log,
                    {**server_environment(folder, tracking_uri), "PYTHONPATH": current_import_path()},
                    module="binsweep.tracking.serving.worker",
                    pass_fds=(orders, *descriptors),
                )
            finally:
                os.close(orders)
            try:
                if not wait_until_answers(server, "/ping", START_SECONDS):
                    reason = describe_failed_start(server, START_SECONDS)
                    raise UserError(
                        f"the server of model {model_uri} {reason}; its log ends:\n{tail(log)}",
                        "fix what the log reports; `mlflow models serve` with the same model shows all of it",
                    )
                yield Replica(version, server, writer)
            finally:
                end(server)


def _warm_up(server: Server, model_uri: str) -> None:
    """Let a server count some photos."""
    photo = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(photo, "JPEG")
    for photos in WARM_UP:
        rows = predict(server.url, [photo.getvalue()] * photos, ANSWER_SECONDS)
        if reason := next((row["error"] for row in rows if row.get("error")), ""):
            raise UserError(f"model {model_uri} does not count a photo: {reason}")
