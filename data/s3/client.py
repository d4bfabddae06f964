"""Connections to a server that speaks S3: boto3 clients and urllib3 pools, with its proxy and its region."""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import boto3
import botocore.session
import urllib3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from binsweep.data.errors import UserError
from binsweep.data.s3.errors import REQUEST_PAYER

REQUEST_PAYER_HEADER = {"x-amz-request-payer": "requester"}
# The first retry comes at once, the following ones after 0.5, 1, 2, ... seconds.
RETRIES = urllib3.Retry(
    total=8,
    backoff_factor=0.25,
    backoff_max=10,
    backoff_jitter=0.25,
    status_forcelist=(408, 429, 500, 502, 503, 504),
    allowed_methods=None,
    redirect=0,
    raise_on_status=False,
)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How a server is reached: requests are not signed without `credentials`; `timeout` is in seconds."""

    endpoint: str | None
    workers: int
    timeout: float
    credentials: Any = None
    addressing_style: str | None = None
    region: str | None = None

    @property
    def connect_timeout(self) -> float:
        return min(5.0, self.timeout)


def create_client(settings: ClientSettings) -> Any:
    """A boto3 client with path-style addresses, which most servers understand, unless the settings say virtual.

    Optional checksums besides the ETag are left out because older servers refuse them.
    """
    core = botocore.session.get_session()
    # Dates are not needed, and parsing them is half of the work of listing a million objects.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    session = boto3.session.Session(botocore_session=core)
    config = Config(
        signature_version=UNSIGNED if settings.credentials is None else "s3v4",
        retries={"mode": "adaptive", "total_max_attempts": 5},
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.timeout,
        max_pool_connections=settings.workers,
        s3={"addressing_style": "virtual" if settings.addressing_style == "virtual" else "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = settings.region or session.region_name or "us-east-1"
    client = session.client("s3", endpoint_url=settings.endpoint, region_name=region, config=config)
    if requester_pays():
        client.meta.events.register("before-call.s3", _add_request_payer)
    return client


def requester_pays() -> bool:
    """Whether the environment accepts the costs of requests; raises UserError for an invalid value."""
    text = os.environ.get(REQUEST_PAYER, "")
    if text not in ("", "requester"):
        raise UserError(
            f"{REQUEST_PAYER}: must be requester, not {text!r}", f"unset it, or {REQUEST_PAYER}=requester"
        )
    return text == "requester"


def _add_request_payer(params: dict[str, Any], **_: object) -> None:
    params["headers"] |= REQUEST_PAYER_HEADER


def create_pool(base_url: str, settings: ClientSettings) -> urllib3.PoolManager:
    """A pool of connections to a server, through the environment's proxy for it."""
    timeout = urllib3.Timeout(connect=settings.connect_timeout, read=settings.timeout)
    options: dict[str, Any] = {"maxsize": settings.workers, "retries": RETRIES, "timeout": timeout}
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        options["ca_certs"] = bundle
    parts = urlsplit(base_url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if not proxy:
        return urllib3.PoolManager(**options)
    proxy_parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host = proxy_parts.netloc.rpartition("@")[2]
    headers = None
    if proxy_parts.username is not None:
        user, password = unquote(proxy_parts.username), unquote(proxy_parts.password or "")
        headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}")
    if proxy_parts.scheme not in ("http", "https"):
        raise UserError(
            f"the proxy {proxy_parts.scheme}://{host} cannot be used", f"http:// or https:// before {host}"
        )
    return urllib3.ProxyManager(f"{proxy_parts.scheme}://{host}", proxy_headers=headers, **options)


def bucket_region(client: Any, bucket: str) -> str | None:
    """The region in which Amazon stores a bucket; None for other servers, and where Amazon does not report it."""
    own_host = f"s3.{client.meta.region_name}.amazonaws.com"
    if urlsplit(client.meta.endpoint_url).hostname not in ("s3.amazonaws.com", own_host):
        return None
    try:
        region: str | None = client.head_bucket(Bucket=bucket).get("BucketRegion")
    except (ClientError, BotoCoreError):
        return None
    return region
