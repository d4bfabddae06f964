"""The MLflow servers that MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI name: addresses, and whether they can be used."""

import functools
import logging
import os
import re
import warnings
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import InsecureRequestWarning

from binsweep.data.errors import UserError
from binsweep.data.python_process import environment_variable
from binsweep.tracking.mlflow_server.credentials import (
    INSECURE_TLS,
    PASSWORD,
    REGISTRY,
    TOKEN,
    TRACKING,
    USERNAME,
    normalize_address,
)
from binsweep.tracking.processes import root_cause

_log = logging.getLogger(__name__)
# Stores that MLflow would open without a server; no other process could see them while a sweep writes to them.
_LOCAL_SCHEMES = ("", "file", "sqlite", "postgresql", "mysql", "mssql")
_SERVERS_WITHOUT_SCHEME = ("databricks", "databricks-uc")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # a single letter is a Windows drive
_CREDENTIALS = (USERNAME, PASSWORD, TOKEN)
_ABSENT_EXPERIMENT = "binsweep: does MLflow answer?"
_MANAGED_HINT = (
    "that is MLflow's own message: its client connects to such addresses, with packages and logins of theirs"
)


def named_server() -> str | None:
    """The address in MLFLOW_TRACKING_URI, None if it is not set or empty.

    Raises UserError if it is not a server's address but a file or a database.
    """
    return _address_in(TRACKING)


def named_registry() -> str | None:
    """The address of the MLflow server in MLFLOW_REGISTRY_URI; None if it is not set or empty, or if the registry is no
    MLflow server but a managed one (`databricks-uc`), which MLflow's client finds itself.

    Raises UserError if it is a file or a database.
    """
    uri = _address_in(REGISTRY)
    return uri if uri is not None and _scheme_of(uri) in ("http", "https") else None


def registry_of(tracking_uri: str) -> str:
    """The server that has the registered models, and the runs that hold their files: usually the tracking server."""
    return named_registry() or tracking_uri


def _scheme_of(uri: str) -> str:
    return found[1].lower() if (found := _SCHEME.match(uri)) else ""


def _address_in(variable: str) -> str | None:
    uri = normalize_address(os.environ.get(variable, ""))
    if not uri:
        return None
    scheme = _scheme_of(uri)
    if scheme.partition("+")[0] in _LOCAL_SCHEMES and uri.lower() not in _SERVERS_WITHOUT_SCHEME:
        raise UserError(f"{variable}: must be the http(s) address of a server, got {uri!r}", _hint(variable))
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(uri)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserError(f"{variable}: {uri!r} names no host and port", "write http://HOST:PORT")
    return uri


def _hint(variable: str) -> str:
    other = "the embedded server" if variable == TRACKING else "the tracking server"
    return f"start that server or correct {variable}; unset it to use {other}"


def require_reachable(uri: str, variable: str = TRACKING) -> None:
    """Raise UserError, naming `uri`, unless an MLflow server answers there; hints name `variable`.

    Two requests of MLflow's own client, with all that the user has set for it (accounts, tokens, certificates,
    time-outs, plug-ins), which need no rights: an experiment that does not exist must be reported as absent, and a
    search for experiments must succeed. A server with one answer for everything fails one of them.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as RETRIES
    from mlflow.tracking import MlflowClient

    if uri.startswith("https:") and os.environ.get(INSECURE_TLS, "").lower() in ("true", "1"):
        _warn_once(f"the certificate of {uri} is not checked ({INSECURE_TLS})")
    with environment_variable(RETRIES.name, "0"):  # no retries: the user at the terminal can try again
        try:
            client = MlflowClient(uri)
            absent = client.get_experiment_by_name(_ABSENT_EXPERIMENT)
            client.search_experiments(max_results=1)
        except Exception as error:  # including those of a plug-in, a missing library, a store of its own
            raise _unreachable(uri, error, _hint(variable)) from error
    if absent is not None and absent.name != _ABSENT_EXPERIMENT:
        raise UserError(f"{uri} answers, but it is no MLflow server", _hint(variable))


@functools.cache
def _warn_once(text: str) -> None:
    """Log a warning in place of the one that the client's library gives for each request."""
    warnings.filterwarnings("ignore", category=InsecureRequestWarning)
    _log.warning(text)


def require_named_servers() -> None:
    """Raise UserError if a server that the environment names cannot be used."""
    for variable, uri in ((TRACKING, named_server()), (REGISTRY, named_registry())):
        if uri is not None:
            require_reachable(uri, variable)


def _unreachable(uri: str, error: Exception, hint: str) -> UserError:
    """What is wrong with the server at `uri`, from the error of MLflow's client."""
    text, cause = " ".join(str(error).split()), error.__cause__ or error.__context__
    if _scheme_of(uri) not in ("http", "https"):
        return UserError(f"MLflow at {uri} cannot be used: {text or type(error).__name__}", _MANAGED_HINT)
    found = re.search(r"failed with error code (\d+)|too many (\d+) error responses", text)
    status = int(found[1] or found[2]) if found else None
    if status is None and (connection := _connection_error(uri, text, cause, hint)):
        return connection
    body = _as_text(text.rpartition("Response body: ")[2])[:150]
    code = getattr(error, "error_code", "")
    if status in (401, 403) or code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"):
        answer = f"it answered {status}: " if status else ""
        return UserError(f"MLflow server {uri} refuses us: {answer}{body}", _refusal_hint(status))
    # The client reports INTERNAL_ERROR for JSON without an error of MLflow's, ENDPOINT_NOT_FOUND for an API without
    # the request, and RESOURCE_DOES_NOT_EXIST for a search if the server answers that to everything.
    foreign = text.startswith("INTERNAL_ERROR: Response: ")
    foreign |= code in ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST")
    if foreign or "not in a valid JSON format" in text or status in (404, 405):
        return UserError(
            f"{uri} answers, but it is no MLflow server (a login page, or a wrong path?): {body}",
            f"{hint}; a proxy that asks for a login needs {USERNAME} or {TOKEN}",
        )
    if status is not None:
        more = f": {body}" if "Response body" in text else ""
        return UserError(f"{uri} is not a healthy MLflow server: it answered {status}{more}", hint)
    return UserError(f"MLflow at {uri} cannot be used: {text[:300] or type(error).__name__}", hint)


def _as_text(body: str) -> str:
    """What an HTML page says; other texts as they are."""
    return " ".join(re.sub(r"<[^>]*>", " ", body).split()) if "<" in body else body


def _refusal_hint(status: int | None) -> str:
    given = [name for name in _CREDENTIALS if os.environ.get(name)]
    hint = f"set {USERNAME} and {PASSWORD}, or {TOKEN}"
    if given:
        hint = f"it does not accept what {' and '.join(given)} give"
    if status == 401:
        return hint
    return f"{hint}, or allow this host name at the server (--allowed-hosts)"


def _connection_error(uri: str, text: str, cause: BaseException | None, hint: str) -> UserError | None:
    """The error for a server that gave no answer; None if it gave one."""
    if "WRONG_VERSION_NUMBER" in text:
        return UserError(f"MLflow server {uri} cannot be reached: nothing there speaks TLS", "write http://")
    if isinstance(cause, requests.exceptions.SSLError):
        return UserError(
            f"MLflow server {uri} cannot be trusted: {root_cause(cause)}",
            "name your authority's certificate in MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE "
            f"({INSECURE_TLS}=true checks nothing)",
        )
    if isinstance(cause, requests.Timeout):
        return UserError(
            f"MLflow server {uri} cannot be reached: no answer in time",
            f"{hint}; MLFLOW_HTTP_REQUEST_TIMEOUT gives it more seconds",
        )
    if isinstance(cause, requests.RequestException):
        return UserError(f"MLflow server {uri} cannot be reached: {root_cause(cause)}", hint)
    return None
