"""Errors that sending again cannot mend: those of the server, of a store of artifacts, and our own."""

import requests
from mlflow.exceptions import MlflowException, RestException

# Error codes that the server repeats however often the request is sent.
_PERMANENT_CODES = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
# A store's codes for an artifact that it will never accept. All other errors (no access, no such bucket, expired
# keys, no connection, a missing library) pass or can be fixed.
_CONTENT_TOO_LARGE = 413
_PERMANENT_STORE_CODES = {"EntityTooLarge", "KeyTooLongError"}
# Errors in our own request, which recur every time.
_PROGRAMMING_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


class NoRunError(Exception):
    """A run could be neither found nor created. Nothing can be sent without it, so this is never given up."""


class NoFileError(Exception):
    """The file to send no longer exists."""


def is_permanent(error: Exception) -> bool:
    """Whether sending the same values again is useless: the server understood and refused, or the error is ours.

    All other errors (no connection, time-outs, 5xx, a proxy's error page, 401, 429) may pass.
    """
    if isinstance(error, NoRunError):
        return False
    if isinstance(error, MlflowException):
        return error.error_code in _PERMANENT_CODES or (
            isinstance(error, RestException) and error.error_code == "BAD_REQUEST"
        )
    # All errors of `requests` are OSErrors; the one for an answer that is not JSON is a ValueError, too.
    if isinstance(error, OSError):
        return _http_status(error) in (400, _CONTENT_TOO_LARGE)
    return isinstance(error, _PROGRAMMING_ERRORS)


def is_permanent_for_artifact(error: BaseException | None) -> bool:
    """Whether storing the same artifact again is useless, from the error and its causes.

    That is so in three cases only: the file is gone, MLflow refuses its name, or it is too large for the store.
    """
    if error is None or isinstance(error, NoRunError):
        return False
    if isinstance(error, NoFileError) or _http_status(error) == _CONTENT_TOO_LARGE:
        return True
    if isinstance(error, MlflowException) and error.error_code in _PERMANENT_CODES:
        return True
    answer = getattr(error, "response", None)
    if (
        isinstance(answer, dict) and answer.get("Error", {}).get("Code") in _PERMANENT_STORE_CODES
    ):  # botocore's
        return True
    if _is_mlflow_refusal(answer):
        return True
    return is_permanent_for_artifact(error.__cause__ or error.__context__)


def _http_status(error: BaseException) -> int | None:
    """The HTTP status of an error of requests and Azure (`response`, `status_code`), or Google (`code`)."""
    answer = getattr(error, "response", None)
    attributes = ((answer, "status_code"), (error, "status_code"), (error, "code"))
    values = (getattr(owner, name, None) for owner, name in attributes)
    return next((int(status) for status in values if isinstance(status, int)), None)


def _is_mlflow_refusal(answer: object) -> bool:
    """Whether an HTTP answer is MLflow's refusal, not that of a store or proxy (S3 answers 400 to expired keys)."""
    if not isinstance(answer, requests.Response):
        return False
    try:
        body = answer.json()
    except requests.JSONDecodeError:
        return False
    return isinstance(body, dict) and body.get("error_code") in _PERMANENT_CODES
