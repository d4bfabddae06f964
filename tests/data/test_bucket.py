"""A bucket behind proxies, wrong clocks, old servers and expired credentials."""

import base64
import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from binsweep.data.errors import UserError
from binsweep.data.s3.address import parse_address
from binsweep.data.s3.bucket import Bucket, open_bucket
from binsweep.data.s3.errors import ObjectError
from binsweep.data.s3.listing import Selection
from binsweep.data.s3.pull import pull

Answer = tuple[int, str]  # a status, and the code of an error in S3's words; 0: let it through
Rule = Callable[[str, str, Mapping[str, str]], Answer]  # method, address, headers
THROUGH = (0, "")


@contextmanager
def door(target: str, rule: Rule) -> Iterator[str]:
    """The address of a server, or proxy, that applies `rule` and forwards other requests to `target`."""
    where = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, code = rule(self.command, self.path, self.headers)
            if status:
                self.answer(status, f"<Error><Code>{code}</Code></Error>".encode() if code else b"", [])
                return
            parts = urlsplit(self.path)
            headers = {
                k: v
                for k, v in self.headers.items()
                if not k.lower().startswith(("connection", "proxy-", "host"))
            }
            upstream = http.client.HTTPConnection(where, timeout=30)
            bucket = (parts.hostname or "").removesuffix(".s3.test")  # an address in the virtual-hosted style
            path = (
                f"/{bucket}{parts.path}" if "s3.test" in parts.netloc and bucket != "s3.test" else parts.path
            )
            upstream.request(self.command, f"{path}?{parts.query}".rstrip("?"), body, headers)
            answer = upstream.getresponse()
            skipped = ("content-length", "transfer-encoding", "connection")
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
            self.answer(answer.status, answer.read(), kept)

        do_PUT = do_HEAD = do_POST = do_GET

        def answer(self, status: int, data: bytes, headers: list[tuple[str, str]]) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def name(s3: Any) -> str:
    """A public bucket with one object, 1/a.jpg."""
    bucket: str = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="1/a.jpg", Body=b"photo", ACL="public-read")
    return bucket


def content(bucket: Bucket) -> bytes:
    assert [one.name for one in bucket.list()] == ["1/a.jpg"]
    return bucket.get("1/a.jpg").data


def refusal(name: str, endpoint: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_bucket(parse_address(f"s3://{name}"), endpoint)
    return str(caught.value)


def wants_password(method: str, address: str, headers: Mapping[str, str]) -> Answer:
    right = "Basic " + base64.b64encode(b"u@x:p:w/d").decode()
    return THROUGH if headers.get("Proxy-Authorization") == right else (407, "")


@pytest.fixture
def through_proxy(s3: Any, name: str) -> Iterator[Callable[[str], None]]:
    with pytest.MonkeyPatch.context() as patch:  # undone before the server is asked to end its faults

        def set_proxy(address: str) -> None:
            for key in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
                patch.delenv(key, raising=False)
            patch.setenv("http_proxy", address)
            patch.setenv("AWS_ENDPOINT_URL", "http://s3.test")

        yield set_proxy


def test_a_proxy_with_a_password(s3: Any, name: str, through_proxy: Callable[[str], None]) -> None:
    with door(s3.url, wants_password) as proxy:
        through_proxy(proxy.replace("//", "//u%40x:p%3Aw%2Fd@"))
        assert content(open_bucket(parse_address(f"s3://{name}"))) == b"photo"
        through_proxy(proxy)
        said = refusal(name)
    assert "the proxy for http://s3.test requires a user name and a password" in said
    assert "HTTP_PROXY=http://NAME:PASSWORD@HOST" in said  # not HTTPS_PROXY, which this endpoint does not use


def test_objects_that_may_be_listed_but_not_read(s3: Any, name: str, tmp_path: Path) -> None:
    for code, hint in (("AccessDenied", "s3:GetObject"), ("InvalidObjectState", "must be restored first")):

        def rule(method: str, address: str, headers: Mapping[str, str], code: str = code) -> Answer:
            return (403, code) if method == "GET" and address.endswith("/1/a.jpg") else THROUGH

        with door(s3.url, rule) as server, pytest.raises(UserError, match=hint) as caught:
            pull(
                open_bucket(parse_address(f"s3://{name}"), server),
                tmp_path / code,
                Selection(),
                lambda *_: None,
            )
        assert str(caught.value).count("1/a.jpg") == 1


def test_a_proxy_without_scheme(s3: Any, name: str, through_proxy: Callable[[str], None]) -> None:
    with door(s3.url, lambda *_: THROUGH) as proxy:
        through_proxy(proxy.removeprefix("http://"))
        assert content(open_bucket(parse_address(f"s3://{name}"))) == b"photo"


def test_a_server_that_wants_virtual_hosted_addresses(
    s3: Any, name: str, through_proxy: Callable[[str], None]
) -> None:
    def rule(method: str, address: str, headers: Mapping[str, str]) -> Answer:
        virtual = urlsplit(address).hostname == f"{name}.s3.test"
        return THROUGH if virtual else (403, "SecondLevelDomainForbidden")

    with door(s3.url, rule) as proxy:
        through_proxy(proxy)
        assert content(open_bucket(parse_address(f"s3://{name}"))) == b"photo"
        said = refusal(name, proxy)  # a number as the host's name leaves no place for the bucket
    assert "virtual-hosted" in said and "an endpoint with a host name" in said


def test_a_server_that_refuses_checksums(s3: Any, name: str, tmp_path: Path) -> None:
    def rule(method: str, address: str, headers: Mapping[str, str]) -> Answer:
        sums = any(
            key.lower().startswith("x-amz-checksum") or key.lower() == "x-amz-trailer" for key in headers
        )
        return (501, "NotImplemented") if sums else THROUGH

    file = tmp_path / "file"
    file.write_bytes(b"new")
    with door(s3.url, rule) as endpoint:
        bucket = open_bucket(parse_address(f"s3://{name}"), endpoint)
        bucket.put("2/b.jpg", file)
        assert bucket.get("2/b.jpg").data == b"new"


def test_the_servers_error_of_an_upload_is_reported(s3: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"new")
    denied = lambda method, *_: (403, "AccessDenied") if method == "PUT" else THROUGH  # noqa: E731
    with door(s3.url, denied) as endpoint, pytest.raises(UserError, match="is denied"):
        open_bucket(parse_address(f"s3://{name}"), endpoint).put("2/b.jpg", tmp_path / "file")


def test_readers_that_pay(s3: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(method: str, address: str, headers: Mapping[str, str]) -> Answer:
        return THROUGH if headers.get("x-amz-request-payer") == "requester" else (403, "AccessDenied")

    with door(s3.url, rule) as endpoint:
        assert "BINSWEEP_REQUEST_PAYER=requester" in refusal(name, endpoint)
        monkeypatch.setenv("BINSWEEP_REQUEST_PAYER", "requester")
        assert content(open_bucket(parse_address(f"s3://{name}"), endpoint)) == b"photo"
        monkeypatch.setenv("BINSWEEP_REQUEST_PAYER", "me")
        assert "must be requester, not 'me'" in refusal(name, endpoint)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", "credentials have expired"),
        (403, "RequestTimeTooSkewed", "clock is wrong"),
        (403, "InvalidAccessKeyId", "does not know the access key"),
        (403, "SignatureDoesNotMatch", "secret does not belong"),
    ],
)
def test_the_true_reason_of_a_refusal(s3: Any, name: str, status: int, code: str, says: str) -> None:
    """Also if an unsigned request after it is denied, and in the middle of a run."""

    def rule(method: str, address: str, headers: Mapping[str, str]) -> Answer:
        return (status, code) if "Authorization" in headers else (403, "AccessDenied")

    def later(method: str, address: str, headers: Mapping[str, str]) -> Answer:
        return (status, code) if "1/a.jpg" in address else THROUGH

    with door(s3.url, rule) as endpoint:
        assert says in refusal(name, endpoint)
    with door(s3.url, later) as endpoint, pytest.raises(UserError, match=says):
        open_bucket(parse_address(f"s3://{name}"), endpoint).get("1/a.jpg")


def test_an_unreadable_object_is_reported_with_the_reason(s3: Any, name: str) -> None:
    rule = lambda _, address, __: (403, "InvalidObjectState") if "a.jpg" in address else THROUGH  # noqa: E731
    with (
        door(s3.url, rule) as endpoint,
        pytest.raises(ObjectError, match=r"403 Forbidden \(InvalidObjectState: it is archived"),
    ):
        open_bucket(parse_address(f"s3://{name}"), endpoint).get("1/a.jpg")


def test_invalid_settings_of_aws(s3: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for variable, value, says in (
        ("AWS_PROFILE", "nope", "AWS_PROFILE: The config profile (nope) could not be found"),
        ("AWS_ENDPOINT_URL", "localhost:9000", "AWS_ENDPOINT_URL=http://localhost:9000"),
        ("AWS_DEFAULT_REGION", "eu west", "eu west"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            said = refusal(name)
            assert says in said and "hint: " in said
    config.write_text("[default\nbroken")
    assert "Unable to parse config file" in refusal(name)


def test_unavailable_credentials(
    s3: Any, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They matter only if the bucket is not public."""
    private = s3.bucket()
    s3.put(private, "1/a.jpg", b"photo")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    anonymous = lambda method, address, headers: (  # noqa: E731 (moto checks nobody)
        (403, "AccessDenied") if private in address or "Authorization" in headers else THROUGH
    )
    with door(s3.url, anonymous) as endpoint:
        assert content(open_bucket(parse_address(f"s3://{name}"), endpoint)) == b"photo"
        assert "Partial credentials found" in refusal(private, endpoint)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        config = tmp_path / "config"
        config.write_text("[profile p]\ncredential_process=/nonexistent/x\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_PROFILE", "p")
        assert "credential" in refusal(private, endpoint)
        config.write_text(
            "[profile p]\nsso_start_url=https://x.awsapps.com/start\nsso_region=eu-west-1\n"
            "sso_account_id=1\nsso_role_name=r\n"
        )
        assert "`aws sso login`" in refusal(private, endpoint)
        assert not caplog.records
