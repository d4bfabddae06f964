"""Events reach real receivers: an HTTP server, a mail server, a command."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from binsweep.tracking.notifications import Channel, Event, Mail, send

EVENT = Event("ended", "abid-3", "abid-3 ended: val_accuracy 39.1% <&>", "Best: trial 12.", {"value": 0.391})


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent, after it has answered with each of `statuses`; None: it does not answer in time."""

    def __init__(self, *statuses: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses, self.got, self.waiting = list(statuses), list[dict[str, Any]](), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/services/SECRET"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status is None:
            self.server.waiting.wait(20)
            return
        if status == 200:
            self.server.got.append(body)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mails by SMTP (RFC 5321), after it has answered the first of them with `first`, if that is given."""

    daemon_threads = True

    def __init__(self, first: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _MailHandler)
        self.first, self.got = first, list[str]()
        self.place = f"127.0.0.1:{self.server_address[1]}"


class _MailHandler(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        def say(line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        say("220 test")
        while line := self.rfile.readline().decode().strip().upper():
            if line.startswith("MAIL") and self.server.first:
                say(self.server.first)
                self.server.first = None
            elif line == "DATA":
                say("354 go on")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.got.append(b"".join(lines).decode())
                say("250 taken")
            else:
                say("221 bye" if line == "QUIT" else "250 well")


@pytest.fixture
def start() -> Iterator[Callable[[Any], Any]]:
    started: list[socketserver.BaseServer] = []

    def serve(server: Any) -> Any:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        started.append(server)
        return server

    yield serve
    for server in started:
        server.shutdown()
        server.server_close()


def test_each_receiver_gets_its_form(start: Callable[[Any], Any], tmp_path: Path) -> None:
    web, slack, teams, mail = (start(server) for server in (Receiver(), Receiver(), Receiver(), MailServer()))
    to = Mail(("ann@example.org", "bo@example.org"), "sweeps@example.org", mail.place)
    channels = [
        Channel("webhook", web.url),
        Channel("slack", slack.url),
        Channel("teams", teams.url),
        Channel("email", to),
        Channel("command", f'cat > {tmp_path}/event; echo "$BINSWEEP_TITLE" > {tmp_path}/title'),
        Channel("webhook", web.url, ("drift", "failed")),  # not of this event
    ]
    assert send(EVENT, channels) == []
    (got,) = web.got
    assert (got["event"], got["subject"], got["details"]) == ("ended", "abid-3", {"value": 0.391})
    assert json.loads((tmp_path / "event").read_text()) == got
    assert (tmp_path / "title").read_text().strip() == EVENT.title
    assert slack.got == [{"text": "*abid-3 ended: val_accuracy 39.1% &lt;&amp;&gt;*\nBest: trial 12."}]
    card = teams.got[0]["attachments"][0]["content"]
    assert [block["text"] for block in card["body"]] == [EVENT.title, EVENT.text]
    assert f"Subject: [binsweep] {EVENT.title}" in mail.got[0] and "Best: trial 12." in mail.got[0]
    assert "To: ann@example.org, bo@example.org" in mail.got[0]


def test_what_fails_for_a_moment_is_sent_again(start: Callable[[Any], Any]) -> None:
    web, mail = start(Receiver(500, 429)), start(MailServer(first="451 later"))
    to = Mail(("ann@example.org",), "sweeps@example.org", mail.place)
    assert send(EVENT, [Channel("webhook", web.url), Channel("email", to)]) == []
    assert [body["id"] for body in web.got] == [EVENT.id] and len(mail.got) == 1


def test_failures_are_told_in_time_and_without_addresses(
    start: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    slow, gone, moved = start(Receiver(None)), start(Receiver(404)), start(Receiver(302))
    refusing, closed = start(MailServer(first="550 no")), Receiver()
    closed.server_close()
    channels = [
        Channel("webhook", slow.url),
        Channel("slack", gone.url),
        Channel("teams", moved.url),
        Channel("webhook", closed.url),
        Channel("webhook", "no address: SECRET"),
        Channel("email", Mail(("a@example.org",), "b@example.org", refusing.place)),
        Channel("email", Mail(("a@example.org",), "b@example.org", "no.such.host.invalid")),
        Channel("command", "echo nothing there >&2; exit 3"),
        Channel("command", "sleep 60"),
    ]
    started = time.monotonic()
    told = send(EVENT, channels, seconds=8)
    slow.waiting.set()
    assert time.monotonic() - started < 12 and "SECRET" not in caplog.text
    assert told == [
        "webhook: no answer in 8 s",
        "slack: it answered with status 404",
        "teams: it answered with status 302",
        "webhook: ConnectionError",
        "webhook: InvalidSchema",
        "email: its server answered with code 550",
        "email: gaierror",  # the name of its host is not known
        "command: it ended with exit code 3 (nothing there)",
        "command: no answer in 8 s",
    ]


def test_a_password_is_not_sent_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[Any], Any]
) -> None:
    mail = start(MailServer())
    monkeypatch.setattr("binsweep.tracking.notifications.LOOPBACK", ())
    to = Mail(("a@example.org",), "b@example.org", mail.place, "ann", "SECRET")
    (line,) = send(EVENT, [Channel("email", to)])
    assert line == "email: its server offers no encryption, and the password is not sent without"
    assert not mail.got
