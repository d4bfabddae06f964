"""An S3 bucket: listing, reading and writing objects from many threads.

boto3 finds the credentials, the endpoint and the region; it lists and uploads. Objects are read through urllib3,
on which boto3 itself is built: a request then costs a fifth of the processor time, and a bucket like the public
one of bins has a million small objects.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import botocore.session
import urllib3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ClientError, ProfileNotFound

from binsweep.data.errors import UserError
from binsweep.data.s3.address import BucketAddress
from binsweep.data.s3.client import (
    REQUEST_PAYER_HEADER,
    RETRIES,
    ClientSettings,
    bucket_region,
    create_client,
    create_pool,
    requester_pays,
)
from binsweep.data.s3.concurrency_limiter import ConcurrencyLimiter
from binsweep.data.s3.errors import (
    CREDENTIAL_ERRORS,
    VIRTUAL_HOST_CODES,
    AccessDenied,
    ObjectError,
    credentials_unavailable,
    error_code,
    explain,
    explain_code,
    invalid_settings,
    is_http_address,
)
from binsweep.data.sources.object_names import is_hidden, is_photo

DEFAULT_WORKERS = 32
# The callers have threads of their own; boto3 would start more for each file. Below the threshold, an ETag is the
# MD5 of the content.
_UPLOAD_CONFIG = TransferConfig(multipart_threshold=64 * 2**20, use_threads=False)
_SLOW_DOWN_STATUSES = (429, 503)
_CHECKSUM_TRIES = 3
_MD5 = re.compile(r"[0-9a-f]{32}")
# Plain words for codes that do not explain themselves.
_OBJECT_REASONS = {"InvalidObjectState": ": it is archived and must be restored first"}
_ERROR_CODE = re.compile(rb"<Code>(\w+)</Code>")


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a listing: `name` is its key without the address's prefix."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Content:
    """An object's bytes with their ETag."""

    data: bytes
    etag: str


class Bucket:
    """An open bucket, thread-safe. Its methods raise UserError when the bucket as a whole fails."""

    def __init__(self, address: BucketAddress, client: Any, settings: ClientSettings) -> None:
        self.address = address
        self.endpoint: str = client.meta.endpoint_url
        self._limiter = ConcurrencyLimiter(settings.workers)
        self._client, self._credentials = client, settings.credentials
        parts = urlsplit(self.endpoint)
        virtual = client.meta.config.s3["addressing_style"] == "virtual"
        self._base_url = (
            f"{parts.scheme}://{address.bucket}.{parts.netloc}/"
            if virtual
            else f"{self.endpoint}/{address.bucket}/"
        )
        self._http = create_pool(self._base_url, settings)

    def list(self, prefix: str = "") -> Iterator[ListedObject]:
        """The objects whose names begin with `prefix`, in ascending order, a page at a time."""
        paginator = self._client.get_paginator("list_objects_v2")
        root = self.address.prefix
        try:
            for page in paginator.paginate(Bucket=self.address.bucket, Prefix=root + prefix):
                for entry in page.get("Contents", ()):
                    yield ListedObject(
                        entry["Key"].removeprefix(root), entry["Size"], entry["ETag"].strip('"')
                    )
        except (ClientError, BotoCoreError) as error:
            raise self._explain(error) from error

    def folders(self, prefix: str = "") -> set[str]:
        """The names of the folders right below `prefix` ("" or text that ends with a slash)."""
        paginator = self._client.get_paginator("list_objects_v2")
        root = self.address.prefix + prefix
        try:
            pages = paginator.paginate(Bucket=self.address.bucket, Prefix=root, Delimiter="/")
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        except (ClientError, BotoCoreError) as error:
            raise self._explain(error) from error
        return {name for prefix in found if not is_hidden(name := prefix[len(root) : -1])}

    def get(self, name: str) -> Content:
        """An object's whole content, checked against its ETag; raises ObjectError for an unreadable object.

        Broken connections, truncated bodies, time-outs and server errors are retried with growing delays;
        UserError when that does not help.
        """
        key = self.address.prefix + name
        for _ in range(_CHECKSUM_TRIES):
            response = self._request(key)
            if response.status != 200:
                raise self._failure(key, response)
            etag = response.headers.get("ETag", "").strip('"')
            if _matches_etag(etag, response):
                return Content(response.data, etag)
        raise ObjectError(f"the content received does not have the checksum {etag}")

    def put(self, name: str, file: Path) -> None:
        """Upload a file, in parts if it is large; the object appears whole or not at all."""
        key = self.address.prefix + name
        try:
            self._client.upload_file(str(file), self.address.bucket, key, Config=_UPLOAD_CONFIG)
        except S3UploadFailedError as error:  # its text hides the server's answer
            cause = error.__context__ if isinstance(error.__context__, ClientError) else error
            raise self._explain(cause) from error
        except (ClientError, BotoCoreError) as error:
            raise self._explain(error) from error

    def _request(self, key: str) -> urllib3.BaseHTTPResponse:
        url = self._base_url + quote(key, safe="/~")
        with self._limiter:
            try:
                response = self._http.request("GET", url, headers=self._signed_headers(url))
            except urllib3.exceptions.HTTPError as error:
                raise self._unreachable(key, error) from error
        tries = response.retries.history if response.retries else ()
        self._limiter.record(any(one.status in _SLOW_DOWN_STATUSES for one in tries))
        return response

    def _failure(self, key: str, response: urllib3.BaseHTTPResponse) -> Exception:
        """The exception for a response other than 200."""
        if response.status >= 500 or response.status in (408, 429):
            return self._unreachable(key, f"status {response.status}")
        found = _ERROR_CODE.search(response.data)
        code = found[1].decode() if found else str(response.status)
        if known := explain_code(code, self.address, self.endpoint):
            return known
        reason = _OBJECT_REASONS.get(code, "")
        suffix = f" ({code}{reason})" if found else ""
        return ObjectError(f"the bucket answers {response.status} {response.reason or ''}{suffix}")

    def _signed_headers(self, url: str) -> dict[str, str]:
        if self._credentials is None:
            return {}
        request = AWSRequest("GET", url, headers=REQUEST_PAYER_HEADER if requester_pays() else {})
        region = self._client.meta.region_name
        try:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", region).add_auth(request)
        except BotoCoreError as error:
            raise self._explain(error) from error
        return dict(request.headers)

    def _explain(self, error: BaseException) -> UserError:
        return explain(error, self.address, self.endpoint)

    def _unreachable(self, key: str, error: object) -> UserError:
        return UserError(
            f"{self.address.uri}: gave up on {key} after {RETRIES.total} retries ({error})",
            "run the same command again when the endpoint answers: it continues where it stopped",
        )


def open_bucket(
    address: BucketAddress,
    endpoint: str | None = None,
    workers: int = DEFAULT_WORKERS,
    timeout: float = 30.0,
    allow_empty: bool = False,
) -> Bucket:
    """Open a bucket that answers. Credentials are boto3's; without any, or if they are refused, none are sent.

    `endpoint` is a server's address; default: AWS_ENDPOINT_URL, or Amazon's. `timeout` is in seconds without a
    byte. BINSWEEP_REQUEST_PAYER=requester accepts the costs of a bucket whose readers pay. Raises UserError for a
    bucket that does not exist, denies access or cannot be reached, for invalid AWS settings, and, unless
    `allow_empty`, for a prefix without objects.
    """
    if endpoint is not None and not is_http_address(endpoint):
        raise UserError(f"--endpoint {endpoint}: not an address", "for example http://127.0.0.1:9000")
    try:
        settings, is_empty = _connect(address, ClientSettings(endpoint, workers, timeout), allow_empty)
        if is_empty and not allow_empty:
            hint = "a prefix that exists, as `aws s3 ls` shows it"
            if is_photo(address.prefix.rstrip("/")):
                hint = f"the folder of the photo instead: {address.uri.rstrip('/').rpartition('/')[0]}"
            raise UserError(f"{address.uri} holds nothing", hint)
        client = create_client(settings)
        region = bucket_region(client, address.bucket)
        if region and region != client.meta.region_name:
            client = create_client(replace(settings, region=region))
        return Bucket(address, client, settings)
    except ProfileNotFound as error:
        raise UserError(
            f"AWS_PROFILE: {error}",
            "name a profile of ~/.aws/config, or unset AWS_PROFILE: a public bucket needs none",
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise invalid_settings(error, address, endpoint) from error


def _connect(
    address: BucketAddress, settings: ClientSettings, allow_empty: bool
) -> tuple[ClientSettings, bool]:
    """The settings, with credentials or without, to which the bucket answers; and whether the prefix is empty."""
    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)
    style = (core.get_scoped_config().get("s3") or {}).get("addressing_style")
    credentials, unavailable = None, None
    try:
        credentials = session.get_credentials()
    except (*CREDENTIAL_ERRORS, OSError) as error:  # OSError: a credential_process that cannot be started
        unavailable = credentials_unavailable(error, address)
    settings = replace(settings, credentials=credentials, addressing_style=style)
    try:
        return _probe(address, settings)
    except AccessDenied as denied:
        if credentials is None or allow_empty or requester_pays():
            raise (unavailable or denied) from denied.__cause__
        try:
            return _probe(address, replace(settings, credentials=None))
        except UserError:  # not public either: report the failure of the credentials
            raise denied from denied.__cause__


def _probe(address: BucketAddress, settings: ClientSettings) -> tuple[ClientSettings, bool]:
    """List one object; returns the settings with the accepted addressing style, and whether there is no object."""
    client = create_client(settings)
    try:
        page = client.list_objects_v2(Bucket=address.bucket, Prefix=address.prefix, MaxKeys=1)
    except (ClientError, BotoCoreError) as error:
        if error_code(error) in VIRTUAL_HOST_CODES and settings.addressing_style != "virtual":
            return _probe(address, replace(settings, addressing_style="virtual"))
        raise explain(error, address, client.meta.endpoint_url) from error
    return settings, not page.get("KeyCount")


def _matches_etag(etag: str, response: urllib3.BaseHTTPResponse) -> bool:
    """An ETag is the MD5 of the content, except after multipart uploads and under a customer's or a KMS key."""
    encrypted = "kms" in response.headers.get("x-amz-server-side-encryption", "")
    customer_key = "x-amz-server-side-encryption-customer-algorithm" in response.headers
    if encrypted or customer_key or not _MD5.fullmatch(etag):
        return True
    return hashlib.md5(response.data, usedforsecurity=False).hexdigest() == etag
