"""Serve one model, whichever stays the same, until it is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from binsweep.tracking.processes import interrupted_by_sigterm, listen, local_url, wait_in_foreground
from binsweep.tracking.registry.versions import find_version
from binsweep.tracking.serving.model_server import require_model
from binsweep.tracking.serving.replica import WatchOptions, start_replica
from binsweep.tracking.serving.watching import usable


def serve_foreground(
    model_uri: str,
    port: int,
    tracking_uri: str,
    ready: Callable[[str], None],
    host: str = "127.0.0.1",
    watch: WatchOptions | None = None,
) -> int:
    """Serve `model_uri` on `host`:`port` until Ctrl-C or SIGTERM (130) or until it ends itself (1).

    It is MLflow's own application, as `mlflow models serve --env-manager local` runs it, in a process that can also
    count what it sees (`watch`, for registered versions). An alias is looked up once. `ready` is called with the
    address when the model answers; connections that come before wait until then. Raises UserError if the model does
    not exist, the port is taken, or the model does not answer within 120 s.
    """
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(host, port)]
        stack.enter_context(interrupted_by_sigterm())
        try:
            require_model(model_uri, tracking_uri)
            version = find_version(model_uri, tracking_uri)
            if version is None:
                served = start_replica(model_uri, None, "", tracking_uri, listeners, None)
            else:
                name, number = version.name, str(version.version)
                uri, watched = f"models:/{name}/{number}", usable(watch, name)
                served = start_replica(uri, name, number, tracking_uri, listeners, watched)
            replica = stack.enter_context(served)
            replica.accept()
            ready(local_url(host, port))
            return wait_in_foreground(replica.server)
        except KeyboardInterrupt:
            return 130
