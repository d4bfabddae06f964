"""Default settings for every MLflow client of this process, set before MLflow is first imported."""

import os

# A value that the user has set always wins.
_DEFAULTS = {
    # MLflow reads the telemetry setting while it is being imported.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With MLflow's own values (7 retries, 120 s each) a dead server holds its caller for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's banners would mix with the output of the command line.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_LOOPBACK = ("127.0.0.1", "localhost")


def configure_client() -> None:
    """Set the defaults above for variables that are not set, and exempt the loopback from proxies.

    Called when the package is imported; calling it again changes nothing.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Clients read the lower-case spelling first, so the two must agree.
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in known.split(",") if host.strip()]
    hosts += [host for host in _LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
