"""The requests to a sweep on disk: an inbox of files in its folder, and the log of what was answered.

A request is one file in `requests/`, complete and on the disk before the command that writes it goes on. The process
that runs the sweep takes requests in by writing them, with their answers, to `steering.json`, which is replaced as a
whole. What is in force follows from that file alone: a process that is killed before it was replaced finds the requests
again, and one that is killed afterwards finds them answered, so that each of them happens once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from binsweep.data.atomic_write import write_json
from binsweep.data.errors import UserError
from binsweep.search.steering.request import AnsweredRequest, Request

REQUESTS = "requests"  # a folder, in the sweep's
STEERING = "steering.json"  # in the sweep's folder


def post(folder: Path, request: Request) -> None:
    """Leave a request in the inbox of the sweep in `folder`; it is on the disk when this returns."""
    inbox = folder / REQUESTS
    inbox.mkdir(exist_ok=True)
    write_json(inbox / f"{request.id}.json", asdict(request))


def withdraw(folder: Path, request: Request) -> bool:
    """Take a request back out of the inbox; returns whether it was still there."""
    try:
        (folder / REQUESTS / f"{request.id}.json").unlink()
    except FileNotFoundError:
        return False
    return True


def waiting_requests(folder: Path) -> list[Request]:
    """The requests in the inbox, oldest first."""
    try:
        with os.scandir(folder / REQUESTS) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".json"))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        file = folder / REQUESTS / name
        try:
            found.append(Request.from_json(json.loads(file.read_bytes())))
        except FileNotFoundError:
            continue  # withdrawn, or taken in by the sweep
        except ValueError:
            continue  # somebody else's file
    return found


def read_answers(folder: Path) -> list[AnsweredRequest]:
    """All requests that the sweep has taken in, in that order. Raises UserError if the file is damaged."""
    file = folder / STEERING
    try:
        return [AnsweredRequest.from_json(one) for one in json.loads(file.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        hint = "restore the file, or move it away: what was asked of the sweep is then forgotten"
        raise UserError(f"{file} is damaged", hint) from error


def write_answers(folder: Path, answers: Sequence[AnsweredRequest]) -> None:
    """Replace the log of answered requests, on the disk when this returns."""
    write_json(folder / STEERING, [one.as_json() for one in answers])
