"""Word of what happened, sent to people: a webhook, Slack, Teams, e-mail, or a command of theirs.

A sweep never waits for it longer than MAX_SECONDS, and never fails because of it. What is printed about a failure has
no address: whoever knows that of a webhook may write to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import smtplib
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, Literal

EventKind = Literal["ended", "failed", "waiting", "champion", "approval", "drift"]
ChannelKind = Literal["webhook", "slack", "teams", "email", "command"]
MAX_SECONDS = 30.0  # for all channels together, attempts included
REQUEST_SECONDS = (5.0, 10.0)  # to connect, to answer
PAUSES = (0.5, 1.0, 2.0)  # seconds between attempts
WORTH_RETRYING = (429, 500, 502, 503, 504)
SUBMISSION_TLS_PORT = 465  # RFC 8314
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Event:
    """Something that people want to hear of. `subject` is the sweep or the model; `details` are plain values."""

    kind: EventKind
    subject: str
    title: str
    text: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # the same in every attempt
    at: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """The body of a webhook, and what a command reads on its standard input."""
        return {
            "event": self.kind,
            "subject": self.subject,
            "title": self.title,
            "text": self.text,
            "details": dict(self.details),
            "host": socket.gethostname(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at)),
            "id": self.id,
        }


@dataclass(frozen=True)
class Mail:
    """Where e-mail goes, and the server that takes it: HOST or HOST:PORT."""

    to: tuple[str, ...]
    sender: str
    server: str
    user: str | None = None
    password: str | None = None


@dataclass(frozen=True)
class Channel:
    """One receiver: an address of a webhook, a mail, or a shell command, and the events that it is sent."""

    kind: ChannelKind
    target: str | Mail
    on: tuple[EventKind, ...] | None = None  # None: all

    def takes(self, kind: EventKind) -> bool:
        """Whether it is sent events of this kind."""
        return self.on is None or kind in self.on


class NotSentError(Exception):
    """Why an event was not sent, without any address; `again` says whether another attempt may help."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


def send(event: Event, channels: Sequence[Channel], seconds: float = MAX_SECONDS) -> list[str]:
    """Send an event to all channels that take it, at once; returns a line for each that did not get it in time."""
    failures: dict[int, str] = {}
    chosen = [channel for channel in channels if channel.takes(event.kind)]
    deadline = time.monotonic() + seconds
    threads = []
    for place, channel in enumerate(chosen):
        failures[place] = f"no answer in {seconds:g} s"
        thread = threading.Thread(
            target=_try_to_send, args=(event, channel, failures, place), name="notify", daemon=True
        )
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [f"{chosen[place].kind}: {reason}" for place, reason in sorted(failures.items())]


def _try_to_send(event: Event, channel: Channel, failures: dict[int, str], place: int) -> None:
    for pause in (*PAUSES, None):
        try:
            _send(event, channel)
            del failures[place]
            return
        except NotSentError as error:
            if pause is None or not error.again:
                failures[place] = str(error)
                return
        except Exception as error:  # whatever a receiver does, no sweep is to fail
            failures[place] = type(error).__name__
            return
        time.sleep(pause)


def _send(event: Event, channel: Channel) -> None:
    if isinstance(channel.target, Mail):
        _send_mail(event, channel.target)
    elif channel.kind == "command":
        _run_command(event, channel.target)
    else:
        body = {"webhook": Event.as_json, "slack": _slack, "teams": _teams}[channel.kind](event)
        _post(channel.target, body)


def _slack(event: Event) -> dict[str, Any]:
    """https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"""
    text = f"*{event.title}*\n{event.text}".strip()
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, name)
    return {"text": text}


def _teams(event: Event) -> dict[str, Any]:
    """An Adaptive Card in a message, as Teams' workflows for webhooks take it
    (https://learn.microsoft.com/en-us/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using)."""
    blocks = [{"type": "TextBlock", "text": event.title, "weight": "bolder", "wrap": True}]
    if event.text:
        blocks.append({"type": "TextBlock", "text": event.text, "wrap": True})
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": blocks,
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
    return {"type": "message", "attachments": [attachment]}


def _post(url: str, body: Mapping[str, Any]) -> None:
    import requests  # slow to import, and every spec imports the kinds of events

    # Attempts are counted here: urllib3's own retries log the path, which is what is secret about a webhook.
    try:
        answer = requests.post(url, json=body, timeout=REQUEST_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise NotSentError(type(error).__name__, again=not isinstance(error, ValueError)) from None
    if not 200 <= answer.status_code < 300:
        raise NotSentError(
            f"it answered with status {answer.status_code}", answer.status_code in WORTH_RETRYING
        )


def _send_mail(event: Event, mail: Mail) -> None:
    message = EmailMessage()
    message["Subject"] = f"[binsweep] {event.title}"
    message["From"], message["To"] = mail.sender, ", ".join(mail.to)
    message["Message-ID"] = f"<{event.id}@binsweep>"
    message.set_content(event.text or event.title)
    host, _, port = mail.server.partition(":")
    try:
        _deliver(message, mail, host, int(port or 587))
    except smtplib.SMTPResponseException as error:
        # From 500 on it is for good (RFC 5321, 4.2.1).
        raise NotSentError(
            f"its server answered with code {error.smtp_code}", error.smtp_code < 500
        ) from None
    except (OSError, smtplib.SMTPException) as error:
        raise NotSentError(type(error).__name__, again=True) from None


def _deliver(message: EmailMessage, mail: Mail, host: str, port: int) -> None:
    kind = smtplib.SMTP_SSL if port == SUBMISSION_TLS_PORT else smtplib.SMTP
    with kind(host, port, timeout=REQUEST_SECONDS[1]) as server:
        if kind is smtplib.SMTP:
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls()
                server.ehlo()
            elif mail.password is not None and host not in LOOPBACK:
                raise NotSentError("its server offers no encryption, and the password is not sent without")
        if mail.user is not None:
            server.login(mail.user, mail.password or "")
        server.send_message(message)


def _run_command(event: Event, command: str) -> None:
    named = {"BINSWEEP_EVENT": event.kind, "BINSWEEP_SUBJECT": event.subject, "BINSWEEP_TITLE": event.title}
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **named},
        start_new_session=True,
    )
    try:
        _, said = process.communicate(json.dumps(event.as_json()).encode(), timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise NotSentError(f"it had not ended after {MAX_SECONDS:g} s, and was killed") from None
    if process.returncode:
        last = "".join(f" ({line[:200]})" for line in said.decode(errors="replace").splitlines()[-1:])
        raise NotSentError(f"it ended with exit code {process.returncode}{last}")
