"""Serve a model's champion over HTTP: a new version as soon as the alias moves, 503 while there is none."""

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from mlflow.exceptions import MlflowException

from binsweep.data.errors import UserError, first_line
from binsweep.tracking.processes import interrupted_by_sigterm, listen, local_url
from binsweep.tracking.registry.versions import champion_of
from binsweep.tracking.serving.refusals import Refusals
from binsweep.tracking.serving.replica import DRAIN_SECONDS, Replica, WatchOptions, open_replica
from binsweep.tracking.serving.watching import usable

POLL_SECONDS = 5.0
RETRY_SECONDS = (
    60.0  # between attempts to start a version while another one is served: loading takes its processor
)
TRACKING_ERRORS = (MlflowException, OSError)  # MLflow does not answer, or something else answers


def follow_champion(
    name: str,
    host: str,
    port: int,
    tracking_uri: str,
    report: Callable[[str], None],
    watch: WatchOptions | None = None,
) -> int:
    """Serve the champion of the model `name` on `host`:`port`, whichever version it is, until Ctrl-C or SIGTERM: 130.

    The alias is looked up every 5 s. When it moves, the new version's server starts next to the old one, is warmed, and
    takes the requests; then the old one answers those that it has, and ends. The port is open all the time. If a
    version cannot be served (it is gone, does not load or does not count a photo), the reason goes to `report`, the old
    one stays, and the new one is tried again every 60 s. While there is none to serve, requests are answered with 503
    and the reason. While MLflow does not answer, the present version stays served. Raises UserError if the port is
    taken.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(host, port)]
        stack.enter_context(interrupted_by_sigterm())
        follower = _Follower(
            name, local_url(host, port), listeners, tracking_uri, report, usable(watch, name)
        )
        try:
            while True:
                follower.poll()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            return 130
        finally:
            follower.close()


class _Follower:
    """What is served now: a version, or refusals; and the version before it, as long as it still answers."""

    def __init__(
        self,
        name: str,
        url: str,
        listeners: Sequence[socket.socket],
        tracking_uri: str,
        report: Callable[[str], None],
        watch: WatchOptions | None,
    ) -> None:
        self._name = name
        self._watch = watch
        self._url = url
        self._listeners = listeners
        self._tracking_uri = tracking_uri
        self._report = _without_repetition(report)
        self._served: tuple[Replica, ExitStack] | None = None
        self._draining: tuple[Replica, ExitStack] | None = None
        self._drained_by = 0.0  # monotonic time
        self._refusals: Refusals | None = None
        self._failed, self._retry_at = "", 0.0  # the version that did not start last, monotonic time

    def poll(self) -> None:
        """Look the champion up, and serve it if it is not served yet."""
        self._remove_ended()
        try:
            version = self._champion()
        except TRACKING_ERRORS as error:
            if self._served is None:
                self._refuse(f"MLflow at {self._tracking_uri} cannot be queried: {first_line(error)[:300]}")
            return
        if version is None:
            self._refuse(f"there is no champion of {self._name} yet")
        elif self._served is None or self._served[0].version != version:
            self._start(version)

    def close(self) -> None:
        """End every server."""
        for replica in filter(None, (self._served, self._draining)):
            replica[1].close()
        if self._refusals is not None:
            self._refusals.close()

    def _champion(self) -> str | None:
        champion = champion_of(self._tracking_uri, self._name)
        return None if champion is None else str(champion.version)

    def _remove_ended(self) -> None:
        """Take note of servers that have ended: the served one by itself, the one before it as it should."""
        if self._served is not None and not self._served[0].is_alive():
            (replica, stack), self._served = self._served, None
            stack.close()
            self._refuse(f"the server of {self._name} version {replica.version} has ended")
        if self._draining is not None and not self._draining[0].is_answering(self._drained_by):
            self._finish_draining()

    def _start(self, version: str) -> None:
        """Start `version` next to what is served, and switch to it once it is warm."""
        failed = version == self._failed
        if self._served is not None and failed and time.monotonic() < self._retry_at:
            return
        if self._served is None and not failed:
            self._answer_with(f"version {version} of {self._name} is being loaded")
        self._finish_draining()  # never three versions in memory
        try:
            with ExitStack() as stack:
                replica = stack.enter_context(
                    open_replica(self._name, version, self._tracking_uri, self._listeners, self._watch)
                )
                if not self._is_champion(version):
                    return
                self._switch(replica, stack.pop_all())
        except (UserError, *TRACKING_ERRORS) as error:
            self._failed, self._retry_at = version, time.monotonic() + RETRY_SECONDS
            reason = error.message if isinstance(error, UserError) else first_line(error)[:300]
            if self._served is None:
                self._report(f"not serving {self._name} version {version}: {reason}")
                self._answer_with(reason)
            else:
                kept = self._served[0].version
                self._report(
                    f"still serving {self._name} version {kept}: version {version} cannot be served: {reason}"
                )

    def _is_champion(self, version: str) -> bool:
        """Whether `version` is champion still, as far as MLflow answers."""
        try:
            return self._champion() == version
        except TRACKING_ERRORS:
            return True

    def _switch(self, replica: Replica, stack: ExitStack) -> None:
        before, self._served = self._served, (replica, stack)
        self._failed = ""
        self._stop_refusing()
        replica.accept()
        self._drain(before)
        self._report(f"serving {self._name} version {replica.version} at {self._url}")

    def _drain(self, served: tuple[Replica, ExitStack] | None) -> None:
        """Let a server answer what it has, and end."""
        if served is not None:
            self._finish_draining()
            served[0].drain()
            self._draining = served
            self._drained_by = time.monotonic() + DRAIN_SECONDS + POLL_SECONDS

    def _finish_draining(self) -> None:
        """Wait until the server of the version before has ended, and remove its files."""
        if self._draining is not None:
            replica, stack = self._draining
            while replica.is_answering(self._drained_by):
                time.sleep(0.1)
            stack.close()
            self._draining = None

    def _refuse(self, reason: str) -> None:
        """Serve no version, but answer with `reason`."""
        before, self._served = self._served, None
        self._answer_with(reason)
        self._drain(before)
        self._report(f"not serving: {reason}")

    def _answer_with(self, reason: str) -> None:
        if self._refusals is None:
            self._refusals = Refusals(self._listeners, reason, POLL_SECONDS)
        self._refusals.reason = reason

    def _stop_refusing(self) -> None:
        if self._refusals is not None:
            self._refusals.close()
            self._refusals = None


def _without_repetition(report: Callable[[str], None]) -> Callable[[str], None]:
    """`report` that skips a text whose first line is the last one's: attempts without end would fill the log. Further
    lines are the end of a server's log, with times and numbers of processes."""
    last = ""

    def report_news(text: str) -> None:
        nonlocal last
        first = text.partition("\n")[0]
        if first != last:
            last = first
            report(text)

    return report_news
