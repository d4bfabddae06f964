"""An S3 bucket as a source of files: listed as a stream, read by many threads, every failure explained.

boto3 finds the credentials, the endpoint and the region, lists and uploads. Objects are read through urllib3,
on which boto3 itself is built: a request costs a fifth of the processor time that way, and a bucket like the
public one of bins has a million small objects.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import boto3
import botocore.session
import urllib3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from binsweep.data.errors import UserError

# It logs a traceback before it raises the reason, which is told without.
logging.getLogger("botocore.credentials").setLevel(logging.CRITICAL)

SCHEME = "s3://"
WORKERS = 32
_DENIED = {
    "AccessDenied",
    "403",
    "Forbidden",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
}
_ABSENT = {"NoSuchBucket", "404", "NotFound"}
# What a server says of a whole run rather than of one object, and the remedy.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestExpired"}
_VIRTUAL = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden", "PathStyleRequestNotAllowed"}
_REMEDIES = {
    **dict.fromkeys(
        _EXPIRED,
        ("the credentials have expired", "sign in again: `aws sso login`, or a new AWS_SESSION_TOKEN"),
    ),
    **dict.fromkeys(
        _VIRTUAL,
        (
            "the server wants the bucket as a part of its host name (virtual-hosted addresses)",
            "an endpoint with a host name of its own instead of a number or localhost",
        ),
    ),
    "RequestTimeTooSkewed": (
        "this machine's clock is wrong",
        "set the clock, then run the same command again",
    ),
    "InvalidAccessKeyId": ("the server does not know the access key", "AWS_ACCESS_KEY_ID, or AWS_PROFILE"),
    "SignatureDoesNotMatch": ("the secret does not belong to the access key", "AWS_SECRET_ACCESS_KEY"),
    "407": ("the proxy wants a name and a password", "HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT"),
}
_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
PAYER = "BINSWEEP_REQUEST_PAYER"
_PAYER_HEADER = {"x-amz-request-payer": "requester"}
# The first retry comes at once, the following ones after 0.5, 1, 2, ... seconds.
_RETRIES = urllib3.Retry(
    total=8,
    backoff_factor=0.25,
    backoff_max=10,
    backoff_jitter=0.25,
    status_forcelist=(408, 429, 500, 502, 503, 504),
    allowed_methods=None,
    redirect=0,
    raise_on_status=False,
)
# The threads are ours; boto3 would start more for each file. Below the threshold an ETag is the content's MD5.
_UPLOAD = TransferConfig(multipart_threshold=64 * 2**20, use_threads=False)
_SLOW_DOWN = (429, 503)
_MD5 = re.compile(r"[0-9a-f]{32}")
_CODE = re.compile(rb"<Code>(\w+)</Code>")


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and the prefix in it that counts as its root: "" or text that ends with a slash."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it: `name` is its key without the place's prefix."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Content:
    """An object's bytes, and the ETag of exactly these."""

    data: bytes
    etag: str


class _Refused(UserError):
    """Credentials that do not open a bucket, which may be public all the same."""


class ObjectError(Exception):
    """One object that cannot be had though the bucket answers: gone, forbidden, archived."""


def is_bucket(source: str) -> bool:
    """Whether a source is an s3:// address."""
    return source.startswith(SCHEME)


def parse_place(uri: str) -> Place:
    """s3://BUCKET or s3://BUCKET/PREFIX; raises UserError for anything else."""
    bucket, _, prefix = uri.removeprefix(SCHEME).partition("/")
    if not is_bucket(uri) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", bucket):
        raise UserError(f"not the address of a bucket: {uri}", "s3://BUCKET or s3://BUCKET/PREFIX")
    prefix = prefix.strip("/")
    return Place(bucket, f"{prefix}/" if prefix else "")


class ConcurrencyLimiter:
    """Lets at most `limit` in at a time: fewer each time a server says slow down, slowly more again."""

    def __init__(self, limit: int) -> None:
        self.limit: float = limit
        self._most, self._inside, self._free = limit, 0, threading.Condition()

    def __enter__(self) -> None:
        with self._free:
            self._free.wait_for(lambda: self._inside < self.limit)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._inside -= 1
            self._free.notify()

    def answered(self, slow_down: bool) -> None:
        """Additive increase, multiplicative decrease, as TCP shares a line (Chiu and Jain, 1989)."""
        with self._free:
            step = -0.3 * self.limit if slow_down else 1 / self.limit
            self.limit = min(float(self._most), max(1.0, self.limit + step))


class Bucket:
    """A place that answered. Its methods raise UserError when the bucket as a whole fails; threads may share it."""

    def __init__(self, place: Place, client: Any, credentials: Any, workers: int, timeout: float) -> None:
        self.place = place
        self.gate = ConcurrencyLimiter(workers)
        self._client, self._credentials = client, credentials
        self.endpoint: str = client.meta.endpoint_url
        parts = urlsplit(self.endpoint)
        virtual = client.meta.config.s3["addressing_style"] == "virtual"
        self._base = (
            f"{parts.scheme}://{place.bucket}.{parts.netloc}/"
            if virtual
            else f"{self.endpoint}/{place.bucket}/"
        )
        limits = urllib3.Timeout(connect=min(5.0, timeout), read=timeout)
        settings: dict[str, Any] = {"maxsize": workers, "retries": _RETRIES, "timeout": limits}
        if bundle := os.environ.get("AWS_CA_BUNDLE"):
            settings["ca_certs"] = bundle
        self._http = _pool(self._base, settings)

    def list(self, under: str = "") -> Iterator[Listed]:
        """The objects whose names begin with `under`, in ascending order, a page at a time."""
        pages = self._client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=self.place.bucket, Prefix=self.place.prefix + under):
                for one in page.get("Contents", ()):
                    name = one["Key"].removeprefix(self.place.prefix)
                    yield Listed(name, one["Size"], one["ETag"].strip('"'))
        except (ClientError, BotoCoreError) as error:
            raise explained(self.place, self._client, error) from error

    def get(self, name: str) -> Content:
        """An object's whole content, checked against its ETag. Raises ObjectError when it cannot be had.

        Broken connections, cut bodies, time-outs and a server's own errors are tried again with growing
        pauses; UserError when that does not help.
        """
        key = self.place.prefix + name
        url = self._base + quote(key, safe="/~")
        for _ in range(3):
            with self.gate:
                try:
                    answer = self._http.request("GET", url, headers=self._signed(url))
                except urllib3.exceptions.HTTPError as error:
                    raise self._unreachable(key, error) from error
            tried = answer.retries.history if answer.retries else ()
            self.gate.answered(any(one.status in _SLOW_DOWN for one in tried))
            if answer.status >= 500 or answer.status in (408, 429):
                raise self._unreachable(key, f"status {answer.status}")
            if answer.status != 200:
                said = _CODE.search(answer.data)
                code = said[1].decode() if said else str(answer.status)
                if code in _REMEDIES:
                    raise _of_all(self.place, self.endpoint, code)
                why = f" ({code})" if said else ""
                raise ObjectError(f"{key}: the bucket answers {answer.status} {answer.reason or ''}{why}")
            etag = answer.headers.get("ETag", "").strip('"')
            if _agrees(etag, answer):
                return Content(answer.data, etag)
        raise ObjectError(f"{key}: the content received does not have the checksum {etag}")

    def put(self, name: str, file: Path) -> None:
        """Upload a file, in parts where it is large; an object appears whole or not at all."""
        try:
            self._client.upload_file(str(file), self.place.bucket, self.place.prefix + name, Config=_UPLOAD)
        except S3UploadFailedError as error:  # its text hides what the server said
            cause = error.__context__ if isinstance(error.__context__, ClientError) else error
            raise explained(self.place, self._client, cause) from error
        except (ClientError, BotoCoreError) as error:
            raise explained(self.place, self._client, error) from error

    def _signed(self, url: str) -> dict[str, str]:
        if self._credentials is None:
            return {}
        request = AWSRequest("GET", url, headers=_PAYER_HEADER if _pays() else {})
        region = self._client.meta.region_name
        try:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", region).add_auth(request)
        except BotoCoreError as error:
            raise explained(self.place, self._client, error) from error
        return dict(request.headers)

    def _unreachable(self, key: str, error: object) -> UserError:
        return UserError(
            f"{self.place.uri}: gave up on {key} after {_RETRIES.total} retries ({error})",
            "run the same command again when the endpoint answers: it goes on where it stopped",
        )


def open_bucket(
    place: Place,
    endpoint: str | None = None,
    workers: int = WORKERS,
    timeout: float = 30.0,
    empty: bool = False,
) -> Bucket:
    """A bucket that answers. Credentials are boto3's; without any, or where they are refused, none are sent.

    `endpoint` is a server's address, else AWS_ENDPOINT_URL, else Amazon's; `timeout` counts seconds without
    a byte. Where readers pay for a bucket, BINSWEEP_REQUEST_PAYER=requester says that they will. Raises UserError
    for a bucket that does not exist, denies access or cannot be reached, for settings of AWS that cannot be, and,
    unless it may be `empty`, for a prefix without objects.
    """
    if endpoint is not None and not re.match(r"https?://[^/]+", endpoint):
        raise UserError(f"--endpoint {endpoint}: not an address", "for example http://127.0.0.1:9000")
    try:
        return _opened(place, endpoint, workers, timeout, empty)
    except ProfileNotFound as error:
        raise UserError(
            f"AWS_PROFILE: {error}",
            "a profile of ~/.aws/config, or unset AWS_PROFILE: a public bucket needs none",
        ) from error
    except (BotoCoreError, ValueError) as error:
        address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        hint = "check ~/.aws/config, ~/.aws/credentials and the AWS_... variables"
        if endpoint is None and address and not re.match(r"https?://[^/]+", address):
            hint = f"AWS_ENDPOINT_URL=http://{address}, or https://"
        raise UserError(f"{place.uri}: the settings of AWS cannot be used: {error}", hint) from error


def _opened(place: Place, endpoint: str | None, workers: int, timeout: float, empty: bool) -> Bucket:
    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)
    style = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
    credentials: Any = None
    refusal: UserError | None = None
    try:
        credentials = session.get_credentials()
    except (*_NO_CREDENTIALS, OSError) as error:  # OSError: a credential_process that cannot be started
        refusal = _without_credentials(place, error)

    def client(region: str | None = None) -> Any:
        return _client(endpoint, credentials, workers, timeout, style, region)

    def first() -> dict[str, Any]:
        nonlocal style
        try:
            return _first(client(), place)
        except UserError as error:
            code = _code_of(error.__cause__)
            if code not in _VIRTUAL or style == "virtual":
                raise
            style = "virtual"
            return _first(client(), place)

    try:
        page = first()
    except _Refused as error:
        if credentials is None or empty or _pays():
            raise refusal or error from error
        credentials, refusal = None, error
        try:
            page = first()
        except UserError:  # no public one: what was wrong with the credentials is the reason
            raise refusal from error
    if not page.get("KeyCount") and not empty:
        raise UserError(f"{place.uri} holds nothing", "a prefix that exists, as `aws s3 ls` shows it")
    opened = client()
    region = _region(opened, place)
    if region and region != opened.meta.region_name:
        opened = client(region)
    return Bucket(place, opened, credentials, workers, timeout)


def _client(
    endpoint: str | None,
    credentials: Any,
    workers: int,
    timeout: float,
    style: str | None,
    region: str | None,
) -> Any:
    """Path-style addresses, which most servers that speak S3 understand, unless another `style` is wanted.

    Checksums beside the ETag are left out where they need not be: older servers refuse them.
    """
    core = botocore.session.get_session()
    # Dates are not needed, and reading them is half of the work of listing a million objects.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    session = boto3.session.Session(botocore_session=core)
    config = Config(
        signature_version=UNSIGNED if credentials is None else "s3v4",
        retries={"mode": "adaptive", "total_max_attempts": 5},
        connect_timeout=min(5.0, timeout),
        read_timeout=timeout,
        max_pool_connections=workers,
        s3={"addressing_style": "virtual" if style == "virtual" else "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    where = region or session.region_name or "us-east-1"
    client = session.client("s3", endpoint_url=endpoint, region_name=where, config=config)
    if _pays():
        client.meta.events.register("before-call.s3", _say_who_pays)
    return client


def _pays() -> bool:
    text = os.environ.get(PAYER, "")
    if text not in ("", "requester"):
        raise UserError(f"{PAYER}: must be requester, not {text!r}", f"unset it, or {PAYER}=requester")
    return text == "requester"


def _say_who_pays(params: dict[str, Any], **_: object) -> None:
    params["headers"] |= _PAYER_HEADER


def _pool(base: str, settings: dict[str, Any]) -> urllib3.PoolManager:
    """Connections to a server, through the proxy that the environment names for it."""
    parts = urlsplit(base)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if not proxy:
        return urllib3.PoolManager(**settings)
    where = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = where.netloc.rpartition("@")[2]
    headers = None
    if where.username is not None:
        both = f"{unquote(where.username)}:{unquote(where.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=both)
    if where.scheme not in ("http", "https"):
        raise UserError(
            f"the proxy {where.scheme}://{address} cannot be used", f"http:// or https:// before {address}"
        )
    return urllib3.ProxyManager(f"{where.scheme}://{address}", proxy_headers=headers, **settings)


def _first(client: Any, place: Place) -> dict[str, Any]:
    try:
        page: dict[str, Any] = client.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)
    except (ClientError, BotoCoreError) as error:
        raise explained(place, client, error) from error
    return page


def _region(client: Any, place: Place) -> str | None:
    """Where Amazon keeps the bucket; None where the server does not say."""
    if urlsplit(client.meta.endpoint_url).hostname not in ("s3.amazonaws.com", _own_host(client)):
        return None
    try:
        region: str | None = client.head_bucket(Bucket=place.bucket).get("BucketRegion")
    except (ClientError, BotoCoreError):
        return None
    return region


def _own_host(client: Any) -> str:
    return f"s3.{client.meta.region_name}.amazonaws.com"


def explained(place: Place, client: Any, error: BaseException) -> UserError:
    """What a failure of boto3 means for the person who asked."""
    at = client.meta.endpoint_url
    if isinstance(error, ClientError):
        code = _code_of(error)
        if code in _ABSENT:
            return UserError(f"there is no bucket {place.bucket} at {at}", "check the name and the endpoint")
        if code in _REMEDIES:
            return _of_all(place, at, code)
        if code in _DENIED:
            return _Refused(
                f"access to {place.uri} is denied ({code}) at {at}",
                "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of somebody who may; "
                f"where the readers of the bucket pay, {PAYER}=requester, too",
            )
        return UserError(f"{place.uri}: {at} answers {code}: {error}", "check the address")
    if isinstance(error, _NO_CREDENTIALS):
        return _without_credentials(place, error)
    if isinstance(error, SSLError):
        return UserError(
            f"{place.uri}: {at} cannot prove who it is ({error})",
            "AWS_CA_BUNDLE with the certificates of the server's, or of the proxy's, authority",
        )
    if isinstance(error, BotoCoreError) and not isinstance(error, HTTPClientError | ConnectionError):
        return UserError(f"{place.uri}: {error}", "check ~/.aws/config and the AWS_... variables")
    return UserError(
        f"{place.uri}: {at} cannot be reached ({error})",
        "check --endpoint or AWS_ENDPOINT_URL, and the network; then run the same command again",
    )


def _code_of(error: object) -> str:
    """What the server said, in a word; empty for another error."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _of_all(place: Place, at: str, code: str) -> UserError:
    why, remedy = _REMEDIES[code]
    kind = _Refused if code in _EXPIRED | _DENIED else UserError
    return kind(f"access to {place.uri} is denied ({code}) at {at}: {why}", remedy)


def _without_credentials(place: Place, error: Exception) -> UserError:
    return _Refused(
        f"access to {place.uri}: the credentials cannot be had: {error}",
        "`aws sso login`, or other settings in ~/.aws and AWS_...; a public bucket needs none: unset AWS_PROFILE",
    )


def _agrees(etag: str, answer: urllib3.BaseHTTPResponse) -> bool:
    """An ETag is the content's MD5, except after uploads in parts and under a customer's or a KMS key."""
    encrypted = "kms" in answer.headers.get("x-amz-server-side-encryption", "")
    customers = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    if encrypted or customers or not _MD5.fullmatch(etag):
        return True
    return hashlib.md5(answer.data, usedforsecurity=False).hexdigest() == etag
