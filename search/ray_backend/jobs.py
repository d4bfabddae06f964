"""Sweeps as jobs of a Ray cluster: submitted from any machine, and inspected, stopped and resumed by name."""

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

# Read when Ray is imported. A cluster without tokens ignores it; without a token, none is sent.
if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from binsweep.data.errors import UserError
from binsweep.data.python_process import PACKAGE
from binsweep.search.history.run_keys import JOB_VARIABLE
from binsweep.search.spec.parser import parse_spec, read_raw
from binsweep.search.spec.renamed_keys import translate_renamed_keys
from binsweep.search.terminal.format import format_duration

SPEC_KEY = "binsweep.spec"  # in the job's metadata: the spec,
NAME_KEY = "binsweep.name"  # the sweep's name, the same for all attempts,
OPTIONS_KEY = "binsweep.then"  # and the command's options
MAX_STOP_SECONDS = 20  # Ray's default of 3 s is too short for an interrupted sweep to reach MLflow
POLL_SECONDS = 0.5
NO_AGENT_MESSAGE = "No available agent"  # of a head that has just started
MAX_AGENT_SECONDS = 60.0  # to retry a submission to such a head
MAX_LOG_LINES = 12  # in a job's status
MAX_READ_SECONDS = 90.0  # for a job that reads one small file
EXPORT_HOME = 'export BINSWEEP_HOME="${BINSWEEP_HOME:-$HOME/.binsweep}"'


# They log every package that they send, on stderr.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Job:
    """A sweep on a cluster: its name, the state of its newest attempt, and the last lines of its log (`said`)."""

    name: str
    attempt: str
    state: str  # Ray's, in lower case: pending, running, stopped, succeeded, failed
    message: str
    seconds: float
    said: tuple[str, ...]


@contextlib.contextmanager
def connection_errors(dashboard: str) -> Iterator[None]:
    """Turn Ray's connection errors into a UserError."""
    hint = "give the URL of the Ray dashboard, such as http://127.0.0.1:8265, and its token in RAY_AUTH_TOKEN"
    try:
        yield
    except (ConnectionError, requests.RequestException) as error:
        raise UserError(f"--dashboard {dashboard}: no Ray cluster answers there", hint) from error
    except (RuntimeError, AuthenticationError) as error:
        raise UserError(f"--dashboard {dashboard}: {str(error).splitlines()[0]}", hint) from error


def connect(dashboard: str) -> JobSubmissionClient:
    """A client of the cluster whose Ray dashboard this is."""
    if not dashboard.startswith(("http://", "https://")):
        raise UserError(f"--dashboard {dashboard}: not a URL", "for example http://127.0.0.1:8265")
    return JobSubmissionClient(dashboard)


def submit_sweep(file: Path, assignments: Sequence[str], dashboard: str, promote: bool) -> str:
    """Check a sweep file and submit it, with this code, to a cluster; returns the sweep's name.

    The job runs on its own. Its data must be reachable from the cluster: a bucket, synthetic bins, or an absolute path
    on the head node. Raises UserError for mistakes in the file, before anything is sent, and if the cluster refuses it.
    """
    raw = read_raw(file, assignments)
    spec = parse_spec(raw, str(file))
    _check_paths(raw)
    name = f"{spec.name}-{secrets.token_hex(3)}"
    with connection_errors(dashboard):
        return _send(connect(dashboard), name, name, yaml.safe_dump(raw), "--promote" if promote else "")


def resume_sweep(name: str, dashboard: str) -> str:
    """Submit a stopped or failed sweep again; it continues where it was. Returns the attempt's name.

    Ray loses its jobs with its head. The submission is also stored in the head's BINSWEEP_HOME, for a new head there.
    """
    with connection_errors(dashboard):
        client = connect(dashboard)
        attempts = _find_attempts(client, name)
        if not attempts:
            if (kept := _read_submission(client, name)) is not None:
                spec, options = kept
                return _send(client, name, name, _translated(spec), options, resume="--resume")
            raise _unknown_sweep(client, name, dashboard, "the head's disk has no such sweep either")
        last = attempts[-1]
        if not last.status.is_terminal():
            raise UserError(f"{name} is {last.status.value.lower()}", f"stop it first: binsweep stop {name}")
        if last.status == JobStatus.SUCCEEDED:
            raise UserError(
                f"{name} has ended: succeeded", "submit the file with a larger budget for another"
            )
        sent = last.metadata or {}
        return _send(
            client, f"{name}.{len(attempts) + 1}", name, _translated(sent[SPEC_KEY]), sent[OPTIONS_KEY]
        )


def _translated(spec: str) -> str:
    """A submitted spec, perhaps by an earlier version, with present key names."""
    return str(yaml.safe_dump(translate_renamed_keys(yaml.safe_load(spec))))


def stop_sweep(name: str, dashboard: str) -> Job:
    """Stop a sweep like Ctrl-C does, and wait until it has ended; it can be resumed."""
    with connection_errors(dashboard):
        client = connect(dashboard)
        last = _attempts(client, name, dashboard)[-1]
        if last.status.is_terminal():
            raise UserError(
                f"{name} has ended: {last.status.value.lower()}", f"binsweep logs {name} shows how"
            )
        assert last.submission_id is not None
        client.stop_job(last.submission_id)
        if not wait_for_end(client, last.submission_id, MAX_STOP_SECONDS + 10):
            raise TimeoutError(f"{name} did not stop within {MAX_STOP_SECONDS + 10} s")
        return _job(client, name, _attempts(client, name, dashboard)[-1])


def has_ended(name: str, dashboard: str) -> bool:
    """Whether no attempt of a submitted sweep runs; also if Ray does not know it, as after the loss of its head."""
    with connection_errors(dashboard):
        attempts = _find_attempts(connect(dashboard), name)
        return not attempts or attempts[-1].status.is_terminal()


def require_submitted(client: JobSubmissionClient, name: str, dashboard: str) -> None:
    """Raise UserError if no sweep of this name was submitted."""
    _attempts(client, name, dashboard)


def job_of(name: str, dashboard: str) -> Job:
    """The status of a submitted sweep."""
    with connection_errors(dashboard):
        client = connect(dashboard)
        return _job(client, name, _attempts(client, name, dashboard)[-1])


def jobs(dashboard: str) -> list[Job]:
    """All sweeps submitted to a cluster, the newest first."""
    with connection_errors(dashboard):
        client = connect(dashboard)
        newest = {(job.metadata or {}).get(NAME_KEY): job for job in _sorted_jobs(client)}
        return [_job(client, name, job) for name, job in reversed(newest.items()) if name is not None]


def print_logs(name: str, dashboard: str, follow: bool) -> None:
    """Print the log of the newest attempt; with `follow`, until it ends."""
    with connection_errors(dashboard):
        client = connect(dashboard)
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
    """Raise UserError for relative paths: the cluster does not have the sender's files."""
    for section, key in (("data", "source"), ("data", "exclude"), ("model", "weights"), ("space", "weights")):
        values = (raw.get(section) or {}).get(key)
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or "://" in value or value in ("none", "imagenet"):
                continue
            if not value.startswith("/"):
                raise UserError(
                    f"{section}.{key}: {value} is a path on this machine, and the sweep runs on the cluster",
                    "put it into a bucket (`binsweep data push`, then s3://...), or give an absolute path there",
                )


def _send(
    client: JobSubmissionClient, attempt: str, name: str, spec: str, options: str, resume: str = ""
) -> str:
    with tempfile.TemporaryDirectory(prefix="binsweep-submit-") as folder:
        shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "sweep.yaml").write_text(spec)
        (Path(folder) / "sent.json").write_text(json.dumps([spec, options]) + "\n")
        jobs = '"$BINSWEEP_HOME/jobs"'
        job = {
            # The home must outlive the job's folder. With exec, the stop signal reaches Python itself.
            "entrypoint": f"{EXPORT_HOME}; mkdir -p {jobs} && cp sent.json {jobs}/{name}.tmp && "
            f"mv {jobs}/{name}.tmp {jobs}/{name}.json && "
            f"exec python -m binsweep sweep sweep.yaml --address auto {options} {resume}".rstrip(),
            "submission_id": attempt,
            "runtime_env": {
                "working_dir": folder,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(MAX_STOP_SECONDS), JOB_VARIABLE: name},
            },
            "metadata": {SPEC_KEY: spec, NAME_KEY: name, OPTIONS_KEY: options},
        }
        return start_job(client, job)


def start_job(client: JobSubmissionClient, job: dict[str, Any]) -> str:
    """Submit a job, also to a head that has just started; returns its id."""
    deadline = time.monotonic() + MAX_AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if NO_AGENT_MESSAGE not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def wait_for_end(client: JobSubmissionClient, attempt: str, seconds: float) -> bool:
    """Wait for a job to end, at most `seconds`; returns whether it did."""
    deadline = time.monotonic() + seconds
    while not client.get_job_status(attempt).is_terminal():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def has_succeeded(client: JobSubmissionClient, job: str) -> bool:
    """Whether a job has ended with exit code 0."""
    return bool(client.get_job_status(job) == JobStatus.SUCCEEDED)


def _read_submission(client: JobSubmissionClient, name: str) -> tuple[str, str] | None:
    """The spec and the options of a sweep that a former head has stored in its home; None if there are none.

    A job reads the file, because only the head has access to it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        return None
    job = start_job(client, {"entrypoint": f'{EXPORT_HOME}; cat "$BINSWEEP_HOME"/jobs/{name}.json'})
    if not wait_for_end(client, job, MAX_READ_SECONDS):
        client.stop_job(job)
        raise TimeoutError(f"the head did not read a file within {MAX_READ_SECONDS:.0f} s")
    log = client.get_job_logs(job)
    client.delete_job(job)
    # Ray may write into a job's log, too; without the file there is no such line.
    line = next((line for line in log.splitlines() if line.startswith('["')), None)
    if line is None:
        return None
    spec, options = json.loads(line)
    return spec, options


def _sorted_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    return sorted(client.list_jobs(), key=lambda job: job.start_time or sys.maxsize)


def _find_attempts(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """The jobs of a sweep that Ray knows, oldest first."""
    return [
        job
        for job in _sorted_jobs(client)
        if (job.metadata or {}).get(NAME_KEY) == name and job.submission_id
    ]


def _attempts(client: JobSubmissionClient, name: str, dashboard: str) -> list[JobDetails]:
    """The jobs of a sweep, oldest first; UserError if there is none."""
    if found := _find_attempts(client, name):
        return found
    raise _unknown_sweep(
        client, name, dashboard, f"if the head was restarted, `binsweep resume {name}` looks on its disk"
    )


def _unknown_sweep(client: JobSubmissionClient, name: str, dashboard: str, hint: str) -> UserError:
    names = sorted({(job.metadata or {}).get(NAME_KEY, "") for job in _sorted_jobs(client)} - {""})
    return UserError(
        f"no sweep {name!r} at {dashboard}", f"sweeps there: {', '.join(names) or 'none'}; {hint}"
    )


def _job(client: JobSubmissionClient, name: str, job: JobDetails) -> Job:
    assert job.submission_id is not None
    end = (job.end_time or time.time() * 1000) if job.start_time else 0
    lines = [line for line in client.get_job_logs(job.submission_id).splitlines() if line.strip()]
    # Only the first line of Ray's message: the rest repeats the log. A success has no message.
    message = (job.message or "").splitlines()[0] if job.message and job.status != JobStatus.SUCCEEDED else ""
    return Job(
        name,
        job.submission_id,
        job.status.value.lower(),
        message,
        max(0, end - (job.start_time or 0)) / 1000,  # the clock may have been set since
        tuple(lines[-MAX_LOG_LINES:]),
    )


def format_job(job: Job) -> str:
    """The status of a job as text."""
    head = (
        f"{job.name}: {job.state} for {format_duration(job.seconds)}"
        if job.state == "running"
        else f"{job.name}: {job.state}"
    )
    attempt = f" (attempt {job.attempt})" if job.attempt != job.name else ""
    return "\n".join(
        [head + attempt, *([f"  {job.message}"] if job.message else []), *(f"  {line}" for line in job.said)]
    )
