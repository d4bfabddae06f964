"""Sweeps as jobs of a Ray cluster: sent from anywhere, living there, looked at, stopped and resumed by name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when Ray is imported. A cluster that asks for no token ignores it; without one, nothing is sent.
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from binsweep.data.errors import UserError
from binsweep.data.python_process import PACKAGE
from binsweep.search.spec.parser import parse_spec, read_raw
from binsweep.search.terminal.format import format_duration

SPEC = "binsweep.spec"  # the job's metadata: what was sent,
NAME = "binsweep.name"  # what people call it, whichever attempt it is,
THEN = "binsweep.then"  # and the options of the command
STOP_SECONDS = 20  # Ray's own 3 s are fewer than an interrupted sweep takes to tell MLflow
PAUSE = 0.5
NO_AGENT = "No available agent"  # what a head says that has just started,
AGENT_SECONDS = 60.0  # and for how long it is asked again
LINES = 12  # of the log, in a job's status
LOOK_SECONDS = 90.0  # for a job that reads one small file
HOME = 'export BINSWEEP_HOME="${BINSWEEP_HOME:-$HOME/.binsweep}"'


# They tell of every package they send, on stderr.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Job:
    """A sweep on a cluster: its name, how its newest attempt stands, and the last lines that it said."""

    name: str
    attempt: str
    state: str  # Ray's, in lower case: pending, running, stopped, succeeded, failed
    message: str
    seconds: float
    said: tuple[str, ...]


@contextlib.contextmanager
def _told(dashboard: str) -> Iterator[None]:
    """Ray's errors about the connection as one sentence."""
    hint = "the address of the cluster's dashboard, such as http://127.0.0.1:8265, and its token in RAY_AUTH_TOKEN"
    try:
        yield
    except (ConnectionError, requests.RequestException) as error:
        raise UserError(f"--dashboard {dashboard}: no Ray cluster answers there", hint) from error
    except (RuntimeError, AuthenticationError) as error:
        raise UserError(f"--dashboard {dashboard}: {str(error).splitlines()[0]}", hint) from error


def _client(dashboard: str) -> JobSubmissionClient:
    if not dashboard.startswith(("http://", "https://")):
        raise UserError(f"--dashboard {dashboard}: not a URL", "for example http://127.0.0.1:8265")
    return JobSubmissionClient(dashboard)


def submit_sweep(file: Path, assignments: Sequence[str], dashboard: str, promote: bool) -> str:
    """Check a sweep file and send it, with this code, to a cluster; returns the job's name.

    The job needs nobody to wait for it. Its data must be reachable from there: a bucket, synthetic bins, or an absolute
    path of the cluster's head. Raises UserError for mistakes in the file, before anything is sent, and when the cluster
    refuses.
    """
    raw = read_raw(file, assignments)
    spec = parse_spec(raw, str(file))
    _check_paths(raw)
    name = f"{spec.name}-{secrets.token_hex(3)}"
    with _told(dashboard):
        return _send(_client(dashboard), name, name, yaml.safe_dump(raw), "--promote" if promote else "")


def resume_sweep(name: str, dashboard: str) -> str:
    """Send a sweep that was stopped or failed again; it goes on where it was. Returns the attempt's name.

    Ray forgets its jobs with its head. The head's BINSWEEP_HOME has what was sent, and a new head on it goes on.
    """
    with _told(dashboard):
        client = _client(dashboard)
        attempts = _known(client, name)
        if not attempts:
            if (kept := _kept(client, name)) is not None:
                return _send(client, name, name, *kept, resume="--resume")
            raise _unknown(client, name, dashboard, "the head's disk does not know it either")
        last = attempts[-1]
        if not last.status.is_terminal():
            raise UserError(f"{name} is {last.status.value.lower()}", f"stop it first: binsweep stop {name}")
        if last.status == JobStatus.SUCCEEDED:
            raise UserError(
                f"{name} has ended: succeeded", "submit the file with a larger budget for another"
            )
        sent = last.metadata or {}
        return _send(client, f"{name}.{len(attempts) + 1}", name, sent[SPEC], sent[THEN])


def stop_sweep(name: str, dashboard: str) -> Job:
    """Stop a sweep the way Ctrl-C does, and wait until it has ended: it can be resumed."""
    with _told(dashboard):
        client = _client(dashboard)
        last = _attempts(client, name, dashboard)[-1]
        if last.status.is_terminal():
            raise UserError(
                f"{name} has ended: {last.status.value.lower()}", f"binsweep logs {name} shows how"
            )
        assert last.submission_id is not None
        client.stop_job(last.submission_id)
        if not _ends(client, last.submission_id, STOP_SECONDS + 10):
            raise TimeoutError(f"{name} did not stop within {STOP_SECONDS + 10} s")
        return _job(client, name, _attempts(client, name, dashboard)[-1])


def job_of(name: str, dashboard: str) -> Job:
    """How a sweep on a cluster stands."""
    with _told(dashboard):
        client = _client(dashboard)
        return _job(client, name, _attempts(client, name, dashboard)[-1])


def jobs(dashboard: str) -> list[Job]:
    """Every sweep that was sent to a cluster, the newest first."""
    with _told(dashboard):
        client = _client(dashboard)
        newest = {(job.metadata or {}).get(NAME): job for job in _sorted(client)}
        return [_job(client, name, job) for name, job in reversed(newest.items()) if name is not None]


def print_logs(name: str, dashboard: str, follow: bool) -> None:
    """Print what the newest attempt has said; with `follow` go on until it ends."""
    with _told(dashboard):
        client = _client(dashboard)
        attempt = _attempts(client, name, dashboard)[-1].submission_id
        assert attempt is not None
        if not follow:
            print(client.get_job_logs(attempt), end="")
            return
        asyncio.run(_follow(client.tail_job_logs(attempt)))


async def _follow(lines: AsyncIterator[str]) -> None:
    async for some in lines:
        print(some, end="", flush=True)


def _check_paths(raw: dict[str, Any]) -> None:
    """A path of the sender's machine means nothing on the cluster."""
    for section, key in (("data", "source"), ("data", "exclude"), ("model", "weights"), ("space", "weights")):
        values = (raw.get(section) or {}).get(key)
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or "://" in value or value in ("none", "imagenet"):
                continue
            if not value.startswith("/"):
                raise UserError(
                    f"{section}.{key}: {value} is a path of this machine, the sweep runs on the cluster",
                    "put it into a bucket (`binsweep data push`, then s3://...), or give its absolute path there",
                )


def _send(
    client: JobSubmissionClient, attempt: str, name: str, spec: str, then: str, resume: str = ""
) -> str:
    with tempfile.TemporaryDirectory(prefix="binsweep-submit-") as folder:
        shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "sweep.yaml").write_text(spec)
        (Path(folder) / "sent.json").write_text(json.dumps([spec, then]) + "\n")
        jobs = '"$BINSWEEP_HOME/jobs"'
        job = {
            # The home must outlive the job's own folder. exec: the signal to stop reaches Python itself.
            "entrypoint": f"{HOME}; mkdir -p {jobs} && cp sent.json {jobs}/{name}.tmp && "
            f"mv {jobs}/{name}.tmp {jobs}/{name}.json && "
            f"exec python -m binsweep sweep sweep.yaml --address auto {then} {resume}".rstrip(),
            "submission_id": attempt,
            "runtime_env": {
                "working_dir": folder,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
            },
            "metadata": {SPEC: spec, NAME: name, THEN: then},
        }
        return _start(client, job)


def _start(client: JobSubmissionClient, job: dict[str, Any]) -> str:
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)


def _ends(client: JobSubmissionClient, attempt: str, seconds: float) -> bool:
    """Whether a job ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while not client.get_job_status(attempt).is_terminal():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def _kept(client: JobSubmissionClient, name: str) -> tuple[str, str] | None:
    """What was sent under a name to a head that is no more: specification and options, from the home that it left.

    None if that home, too, does not know it. A job reads the file, because only the head sees it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        return None
    look = _start(client, {"entrypoint": f'{HOME}; cat "$BINSWEEP_HOME"/jobs/{name}.json'})
    if not _ends(client, look, LOOK_SECONDS):
        client.stop_job(look)
        raise TimeoutError(f"the head did not read a file within {LOOK_SECONDS:.0f} s")
    said = client.get_job_logs(look)
    client.delete_job(look)
    # Ray, too, may say something in a job's log; without the file there is no such line.
    line = next((line for line in said.splitlines() if line.startswith('["')), None)
    if line is None:
        return None
    spec, then = json.loads(line)
    return spec, then


def _sorted(client: JobSubmissionClient) -> list[JobDetails]:
    return sorted(client.list_jobs(), key=lambda job: job.start_time or sys.maxsize)


def _known(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """The jobs of a sweep that Ray knows, the newest last."""
    return [job for job in _sorted(client) if (job.metadata or {}).get(NAME) == name and job.submission_id]


def _attempts(client: JobSubmissionClient, name: str, dashboard: str) -> list[JobDetails]:
    """The jobs of a sweep, the newest last; UserError where there is none."""
    if found := _known(client, name):
        return found
    raise _unknown(
        client, name, dashboard, f"if the head was started anew, `binsweep resume {name}` looks on its disk"
    )


def _unknown(client: JobSubmissionClient, name: str, dashboard: str, hint: str) -> UserError:
    names = sorted({(job.metadata or {}).get(NAME, "") for job in _sorted(client)} - {""})
    return UserError(
        f"no sweep {name!r} at {dashboard}", f"sweeps there: {', '.join(names) or 'none'}; {hint}"
    )


def _job(client: JobSubmissionClient, name: str, job: JobDetails) -> Job:
    assert job.submission_id is not None
    end = (job.end_time or time.time() * 1000) if job.start_time else 0
    lines = [line for line in client.get_job_logs(job.submission_id).splitlines() if line.strip()]
    # Ray's message repeats the log; of a job that ended well it says nothing.
    message = (job.message or "").splitlines()[0] if job.message and job.status != JobStatus.SUCCEEDED else ""
    return Job(
        name,
        job.submission_id,
        job.status.value.lower(),
        message,
        (end - (job.start_time or 0)) / 1000,
        tuple(lines[-LINES:]),
    )


def told(job: Job) -> str:
    """A job in words."""
    head = (
        f"{job.name}: {job.state} for {format_duration(job.seconds)}"
        if job.state == "running"
        else f"{job.name}: {job.state}"
    )
    attempt = f" (attempt {job.attempt})" if job.attempt != job.name else ""
    return "\n".join(
        [head + attempt, *([f"  {job.message}"] if job.message else []), *(f"  {line}" for line in job.said)]
    )
