"""Failures of S3 and boto3 as messages with a remedy."""

import logging
import os
import re
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from binsweep.data.errors import UserError
from binsweep.data.s3.address import BucketAddress

# It logs a traceback before it raises the error, which is reported without one.
logging.getLogger("botocore.credentials").setLevel(logging.CRITICAL)

REQUEST_PAYER = "BINSWEEP_REQUEST_PAYER"
CREDENTIAL_ERRORS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
# Error codes of servers that accept virtual-hosted addresses only.
VIRTUAL_HOST_CODES = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "PathStyleRequestNotAllowed"}
_DENIED_CODES = {
    "AccessDenied",
    "403",
    "Forbidden",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
}
_NOT_FOUND_CODES = {"NoSuchBucket", "404", "NotFound"}
_EXPIRED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "InvalidToken",
    "RequestExpired",
}
# Error codes that concern every request of a run rather than one object: (reason, remedy).
_REMEDIES = {
    **dict.fromkeys(
        _EXPIRED_CODES,
        ("the credentials have expired", "sign in again: `aws sso login`, or a new AWS_SESSION_TOKEN"),
    ),
    **dict.fromkeys(
        VIRTUAL_HOST_CODES,
        (
            "the server expects the bucket in the host name (virtual-hosted addresses)",
            "an endpoint with a host name instead of an IP address or localhost",
        ),
    ),
    "RequestTimeTooSkewed": (
        "this machine's clock is wrong",
        "set the clock, then run the same command again",
    ),
    "InvalidAccessKeyId": ("the server does not know the access key", "AWS_ACCESS_KEY_ID, or AWS_PROFILE"),
    "SignatureDoesNotMatch": ("the secret does not belong to the access key", "AWS_SECRET_ACCESS_KEY"),
}


class AccessDenied(UserError):
    """Credentials are missing or refused; the bucket may still be public."""


class ObjectError(Exception):
    """One object cannot be read although the bucket answers: it is gone, forbidden or archived. Its text is why."""


def is_http_address(text: str) -> bool:
    return re.match(r"https?://[^/]+", text) is not None


def error_code(error: object) -> str:
    """The error code of a server's response; empty for any other error."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def explain(error: BaseException, address: BucketAddress, endpoint: str) -> UserError:
    """A failure of boto3 as a message with a remedy."""
    if isinstance(error, ClientError):
        return _explain_response(error, address, endpoint)
    if isinstance(error, CREDENTIAL_ERRORS):
        return credentials_unavailable(error, address)
    if isinstance(error, SSLError):
        return UserError(
            f"{address.uri}: the certificate of {endpoint} cannot be verified ({error})",
            "AWS_CA_BUNDLE with the certificates of the authority of the server, or of the proxy",
        )
    if isinstance(error, BotoCoreError) and not isinstance(error, HTTPClientError | ConnectionError):
        return UserError(f"{address.uri}: {error}", "check ~/.aws/config and the AWS_... variables")
    return UserError(
        f"{address.uri}: {endpoint} cannot be reached ({error})",
        "check --endpoint or AWS_ENDPOINT_URL, and the network; then run the same command again",
    )


def _explain_response(error: ClientError, address: BucketAddress, endpoint: str) -> UserError:
    code = error_code(error)
    if code in _NOT_FOUND_CODES:
        return UserError(
            f"there is no bucket {address.bucket!r} at {endpoint}", "check the name and the endpoint"
        )
    if known := explain_code(code, address, endpoint):
        return known
    if code in _DENIED_CODES:
        return AccessDenied(
            f"access to {address.uri} is denied ({code}) at {endpoint}",
            "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of a user with access; "
            f"for a bucket whose readers pay, also {REQUEST_PAYER}=requester",
        )
    return UserError(f"{address.uri}: {endpoint} answers {code}: {error}", "check the address")


def explain_code(code: str, address: BucketAddress, endpoint: str) -> UserError | None:
    """An error code that concerns the whole run as a message with a remedy; None for other codes."""
    if code == "407":
        return UserError(
            f"{address.uri}: the proxy for {endpoint} requires a user name and a password",
            f"{urlsplit(endpoint).scheme.upper()}_PROXY=http://NAME:PASSWORD@HOST:PORT",
        )
    if code not in _REMEDIES:
        return None
    reason, remedy = _REMEDIES[code]
    kind = AccessDenied if code in _EXPIRED_CODES | _DENIED_CODES else UserError
    return kind(f"access to {address.uri} is denied ({code}) at {endpoint}: {reason}", remedy)


def credentials_unavailable(error: Exception, address: BucketAddress) -> UserError:
    return AccessDenied(
        f"access to {address.uri}: the credentials are not available: {error}",
        "`aws sso login`, or other settings in ~/.aws and AWS_...; a public bucket needs none: unset AWS_PROFILE",
    )


def invalid_settings(error: Exception, address: BucketAddress, endpoint: str | None) -> UserError:
    """The error for AWS settings that boto3 rejects."""
    variable = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    hint = "check ~/.aws/config, ~/.aws/credentials and the AWS_... variables"
    if endpoint is None and variable and not is_http_address(variable):
        hint = f"AWS_ENDPOINT_URL=http://{variable}, or https://"
    return UserError(f"{address.uri}: the settings of AWS cannot be used: {error}", hint)
