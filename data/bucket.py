"""An S3 bucket as a source of files: listed as a stream, read by many threads, every failure explained.

boto3 finds the credentials, the endpoint and the region, lists and uploads. Objects are read through urllib3,
on which boto3 itself is built: a request costs a fifth of the processor time that way, and a bucket like the
public one of bins has a million small objects.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
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
from botocore.exceptions import BotoCoreError, ClientError

from data.errors import UserError

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


class Gate:
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
        self.gate = Gate(workers)
        self._client, self._credentials = client, credentials
        self.endpoint: str = client.meta.endpoint_url
        self._base = f"{self.endpoint}/{place.bucket}/"
        limits = urllib3.Timeout(connect=min(5.0, timeout), read=timeout)
        settings: dict[str, Any] = {"maxsize": workers, "retries": _RETRIES, "timeout": limits}
        if bundle := os.environ.get("AWS_CA_BUNDLE"):
            settings["ca_certs"] = bundle
        parts = urlsplit(self._base)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        self._http = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)

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
                raise ObjectError(f"{key}: the bucket answers {answer.status} {answer.reason or ''}".rstrip())
            etag = answer.headers.get("ETag", "").strip('"')
            if _agrees(etag, answer):
                return Content(answer.data, etag)
        raise ObjectError(f"{key}: the content received does not have the checksum {etag}")

    def put(self, name: str, file: Path) -> None:
        """Upload a file, in parts where it is large; an object appears whole or not at all."""
        try:
            self._client.upload_file(str(file), self.place.bucket, self.place.prefix + name, Config=_UPLOAD)
        except (ClientError, BotoCoreError, S3UploadFailedError) as error:
            raise explained(self.place, self._client, error) from error

    def _signed(self, url: str) -> dict[str, str]:
        if self._credentials is None:
            return {}
        request = AWSRequest("GET", url)
        region = self._client.meta.region_name
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", region).add_auth(request)
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
    a byte. Raises UserError for a bucket that does not exist, denies access or cannot be reached, and, unless
    it may be `empty`, for a prefix without objects.
    """
    if endpoint is not None and not re.match(r"https?://[^/]+", endpoint):
        raise UserError(f"--endpoint {endpoint}: not an address", "for example http://127.0.0.1:9000")
    credentials = boto3.session.Session().get_credentials()
    client = _client(endpoint, credentials, workers, timeout)
    try:
        first = _first(client, place)
    except UserError:
        if credentials is None or empty:
            raise
        credentials = None
        client = _client(endpoint, None, workers, timeout)
        first = _first(client, place)
    if not first.get("KeyCount") and not empty:
        raise UserError(f"{place.uri} holds nothing", "a prefix that exists, as `aws s3 ls` shows it")
    region = _region(client, place)
    if region and region != client.meta.region_name:
        client = _client(endpoint, credentials, workers, timeout, region)
    return Bucket(place, client, credentials, workers, timeout)


def _client(
    endpoint: str | None, credentials: Any, workers: int, timeout: float, region: str | None = None
) -> Any:
    """Path-style addresses, because every server that speaks S3 understands them."""
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
        s3={"addressing_style": "path"},
    )
    where = region or session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=where, config=config)


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


def explained(place: Place, client: Any, error: Exception) -> UserError:
    """What a failure of boto3 means for the person who asked."""
    at = client.meta.endpoint_url
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _ABSENT:
            return UserError(f"there is no bucket {place.bucket} at {at}", "check the name and the endpoint")
        if code in _DENIED:
            return UserError(
                f"access to {place.uri} is denied ({code}) at {at}",
                "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of somebody who may",
            )
        return UserError(f"{place.uri}: {at} answers {code}: {error}", "check the address")
    return UserError(
        f"{place.uri}: {at} cannot be reached ({error})",
        "check --endpoint or AWS_ENDPOINT_URL, and the network; then run the same command again",
    )


def _agrees(etag: str, answer: urllib3.BaseHTTPResponse) -> bool:
    """An ETag is the content's MD5, except after uploads in parts and under a customer's or a KMS key."""
    encrypted = "kms" in answer.headers.get("x-amz-server-side-encryption", "")
    customers = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    if encrypted or customers or not _MD5.fullmatch(etag):
        return True
    return hashlib.md5(answer.data, usedforsecurity=False).hexdigest() == etag
