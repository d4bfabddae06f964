"""Who may ask the page's server: browsers on this machine that have its token, from its own pages alone.

The token comes to the browser in the part of the opening link after #, which is sent to no server. The page keeps it in
the storage of its own origin, port included, and sends it as a header. So nothing is sent by itself, as a cookie would
be: another page cannot borrow it, and servers on other ports of this machine never see it. A picture or a page that
the browser fetches by its address alone has a ticket in that address, which opens nothing else.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from binsweep.tracking.processes import LOOPBACK

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TOKEN_HEADER = "X-Binsweep-Token"
MAX_BODY_BYTES = 64 * 1024
# What the page loads is its own files; nothing inline, nothing of others, and nobody shows it in a frame.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Wraps an ASGI application that listens on `port` of the loopback.

    Paths below /api/ need the token, those below /files/, /report/ and /mlflow/ a ticket; the page itself and its
    static files hold nothing that is secret. Any method but GET and HEAD needs the page's own Origin, too.
    """

    def __init__(self, app: Any, port: int, token: str) -> None:
        self.app, self._token = app, token
        self._hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost", "[::1]")}
        if port == 80:
            self._hosts |= {LOOPBACK, "localhost", "[::1]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.lower().encode() not in given
                    ),
                ]
            await send(message)

        if refusal:
            status, text = refusal
            answer = JSONResponse({"message": text, "hint": ""}, status)
            await answer(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the reason with which a request is refused; None if it is not."""
        headers, path, method = Headers(scope=scope), str(scope["path"]), str(scope["method"])
        host = headers.get("host", "")
        if host not in self._hosts:
            return 403, "this server answers on the loopback only"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "another site asks"
        if method not in ("GET", "HEAD"):
            if headers.get("origin") != f"http://{host}":
                return 403, "only a page of this server may act"
            if headers.get("content-type", "").partition(";")[0] != "application/json":
                return 415, "a request is JSON"
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
                return 413, f"a request has at most {MAX_BODY_BYTES} bytes"
        if path.startswith(("/files/", "/report/", "/mlflow/")):
            given = scope["query_string"].decode("latin-1").removeprefix("ticket=")
            if not hmac.compare_digest(given.encode(), ticket(self._token, path).encode()):
                return 401, "this link is no longer valid: open it from the page"
        elif path.startswith("/api/") and not hmac.compare_digest(
            headers.get(TOKEN_HEADER, "").encode(), self._token.encode()
        ):
            return 401, "open the link that `binsweep ui` printed"
        return None


def new_token() -> str:
    """A token for one run of the server."""
    return secrets.token_urlsafe(32)


def ticket(token: str, path: str) -> str:
    """What opens `path`, as it is without percent signs, and nothing else."""
    return hmac.new(token.encode(), path.encode(), "sha256").hexdigest()


def signed(token: str, *parts: str) -> str:
    """The address, with its ticket, of the path that consists of these parts; parts of several names may have /."""
    path = "/" + "/".join(parts)
    return f"{quote(path)}?ticket={ticket(token, path)}"
