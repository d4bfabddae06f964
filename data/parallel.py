"""Spread work over all cores: plain processes that import nothing but the function they run."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from binsweep.data.python_process import python_module, subprocess_environment
from binsweep.data.resource_limits import cores

Progress = Callable[[int, int], None]
# Does every `parts`-th unit of a job from number `part` on, and yields after each one.
ParallelTask = Callable[[Any, int, int], Iterator[None]]


def run(step: ParallelTask, job: Any, total: int, least: int, progress: Progress | None = None) -> None:
    """Do a job of `total` units with `step`, on all cores but with at least `least` units for each process.

    `step` is a function at the top of its module and `job` is JSON. The processes are started afresh rather
    than by multiprocessing: forks of a process with threads may hang, and its other ways import the caller's
    main program, and all that it imports, into each of them. They write a byte for each unit done; when this
    process dies, their next byte ends them. Raises OSError with the reason of a process that failed.
    """
    parts = max(1, min(cores(), total // least))
    if parts == 1:
        for done, _ in enumerate(step(job, 0, 1), start=1):
            if progress is not None:
                progress(done, total)
        return
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.json"
        job_file.write_text(json.dumps(job))
        _run_processes([step.__module__, step.__name__, str(job_file)], parts, total, progress)


def _run_processes(arguments: list[str], parts: int, total: int, progress: Progress | None) -> None:
    read_end, write_end = os.pipe()
    workers: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as complaints, os.fdopen(read_end, "rb", buffering=0) as bytes_done:
        try:
            with os.fdopen(write_end, "wb"):  # closed here, so that the reading ends with the workers
                for part in range(parts):
                    command = python_module("binsweep.data.parallel", *arguments, str(part), str(parts))
                    workers.append(
                        subprocess.Popen(
                            command, stdout=write_end, stderr=complaints, env=subprocess_environment()
                        )
                    )
            done = 0
            while chunk := bytes_done.read(4096):
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            failed = [worker for worker in workers if worker.wait() != 0]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        if failed:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), "a process was killed")
            raise OSError(reason.strip())


def _work(module: str, function: str, job_file: str, part: str, parts: str) -> None:
    step: ParallelTask = getattr(importlib.import_module(module), function)
    try:
        for _ in step(json.loads(Path(job_file).read_text()), int(part), int(parts)):
            os.write(1, b".")
    except OSError as error:  # the parent passes this line on
        sys.exit(error.strerror or str(error))


if __name__ == "__main__":
    _work(*sys.argv[1:])
