"""Serve one model, whichever stays the same, until it is interrupted; with another version in its shadow if wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from binsweep.data.errors import UserError
from binsweep.tracking.monitoring.shadow import ShadowTask
from binsweep.tracking.processes import interrupted_by_sigterm, listen, local_url, wait_in_foreground
from binsweep.tracking.registry.versions import find_version
from binsweep.tracking.serving.model_server import require_model
from binsweep.tracking.serving.replica import WatchOptions, open_replica, start_replica
from binsweep.tracking.serving.watching import usable


@dataclass(frozen=True)
class ShadowOptions:
    """The challenger, an alias or a version of the same model, and the share of requests that it is asked."""

    challenger: str
    share: float


def serve_foreground(
    model_uri: str,
    port: int,
    tracking_uri: str,
    ready: Callable[[str], None],
    host: str = "127.0.0.1",
    watch: WatchOptions | None = None,
    shadow: ShadowOptions | None = None,
) -> int:
    """Serve `model_uri` on `host`:`port` until Ctrl-C or SIGTERM (130) or until it ends itself (1).

    It is MLflow's own application, as `mlflow models serve --env-manager local` runs it, in a process that can also
    count what it sees (`watch`, for registered versions) and ask a challenger (`shadow`). An alias is looked up once.
    `ready` is called with the address when the model answers; connections that come before wait until then. Raises
    UserError if the model or the challenger does not exist or does not answer within 120 s, or the port is taken.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(host, port)]
        stack.enter_context(interrupted_by_sigterm())
        try:
            require_model(model_uri, tracking_uri)
            version = find_version(model_uri, tracking_uri)
            if version is None:
                if shadow is not None:
                    raise UserError(
                        f"{model_uri} is not a registered version: nothing can be in its shadow",
                        "give a name",
                    )
                served = start_replica(model_uri, None, "", tracking_uri, listeners, None)
            else:
                name, number = version.name, str(version.version)
                uri, watched = f"models:/{name}/{number}", usable(watch, name)
                task = None
                if shadow is not None and watched is not None:
                    task = _start_challenger(stack, name, number, tracking_uri, shadow)
                served = start_replica(uri, name, number, tracking_uri, listeners, watched, task)
            replica = stack.enter_context(served)
            replica.accept()
            ready(local_url(host, port))
            return wait_in_foreground(replica.server)
        except KeyboardInterrupt:
            return 130


def _start_challenger(
    stack: ExitStack, name: str, served: str, tracking_uri: str, shadow: ShadowOptions
) -> ShadowTask:
    """Start the challenger's server, which ends with the stack."""
    by_number = re.fullmatch(r"\d+", shadow.challenger) is not None
    uri = f"models:/{name}{'/' if by_number else '@'}{shadow.challenger}"
    require_model(uri, tracking_uri)
    found = find_version(uri, tracking_uri)
    if found is None or str(found.version) == served:
        raise UserError(
            f"--shadow {shadow.challenger}: that is version {served}, which is served itself",
            "name another version, or promote a sweep: a candidate that is refused becomes challenger",
        )
    replica = stack.enter_context(
        open_replica(name, str(found.version), tracking_uri, [], in_background=True)
    )
    return ShadowTask(replica.version, replica.server.url, shadow.share)
