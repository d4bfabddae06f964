"""Steering a submitted sweep: a job on the head, where the sweep's files are, runs the command and gives its answer."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from binsweep.data.errors import UserError
from binsweep.data.python_process import PACKAGE
from binsweep.search.ray_backend import jobs
from binsweep.search.steering.request import requester

MAX_ANSWER_SECONDS = 120.0
MARK = "binsweep-answer: "  # begins each line of the answer in the job's log, which Ray writes into, too


def steer_job(name: str, dashboard: str, command: Sequence[str], assignments: Sequence[str]) -> str:
    """Run `binsweep COMMAND NAME ASSIGNMENTS` on the head of the cluster that a sweep was submitted to; returns its
    answer. Raises UserError with the reason if the sweep refuses."""
    with jobs.connection_errors(dashboard), tempfile.TemporaryDirectory(prefix="binsweep-steer-") as folder:
        client = jobs.connect(dashboard)
        jobs.require_submitted(client, name, dashboard)
        shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        kind, *trial = command
        words = [kind, name, *trial, *assignments]
        job = jobs.start_job(
            client,
            {
                # The command's own exit code, not that of sed.
                "entrypoint": f"{jobs.EXPORT_HOME}; unset RAY_API_SERVER_ADDRESS; "
                f"answer=$(python -m binsweep {shlex.join(words)} 2>&1); code=$?; "
                f"printf '%s\\n' \"$answer\" | sed 's/^/{MARK}/'; exit $code",
                "runtime_env": {"working_dir": folder, "env_vars": {"BINSWEEP_USER": requester()}},
            },
        )
        if not jobs.wait_for_end(client, job, MAX_ANSWER_SECONDS):
            client.stop_job(job)
            raise TimeoutError(f"the head did not answer within {MAX_ANSWER_SECONDS:.0f} s")
        lines: list[str] = client.get_job_logs(job).splitlines()
        answer = "\n".join(line.removeprefix(MARK) for line in lines if line.startswith(MARK))
        succeeded = jobs.has_succeeded(client, job)
        client.delete_job(job)
    if not succeeded:
        message, _, hint = answer.removeprefix("binsweep: ").partition("\n  hint: ")
        raise UserError(message or "the job on the head failed", hint)
    return answer
