"""Safe settings for every MLflow client of this process, set before MLflow is first imported."""

import os

# A person's own value always wins: these are defaults, not rules.
_DEFAULTS = {
    # MLflow decides about telemetry while it is being imported.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With MLflow's own values (7 retries, 120 s each) a dead server holds its caller for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Its banners would mix with the answers of the command line.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_LOOPBACK = ("127.0.0.1", "localhost")


def configure_client() -> None:
    """Set the defaults above where the environment says nothing, and keep loopback calls away from proxies.

    Called when the room is imported; calling it again changes nothing.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Clients read the lower-case spelling first, so the two must agree.
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in known.split(",") if host.strip()]
    hosts += [host for host in _LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
