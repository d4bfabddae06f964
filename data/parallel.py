"""Work in parallel processes that import only the function they run."""

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
# (job, worker, n_workers): does every `n_workers`-th unit of the job from number `worker` on; yields after each.
ParallelTask = Callable[[Any, int, int], Iterator[None]]


def run(task: ParallelTask, job: Any, total: int, min_units: int, progress: Progress | None = None) -> None:
    """Run a job of `total` units on all cores, with at least `min_units` units for each process.

    `task` is a top-level function of a module, and `job` is JSON. The processes are not started by multiprocessing:
    a fork of a process with threads may deadlock, and spawn imports the caller's main module into each process. Each
    writes a byte for each unit done; if this process dies, their next byte ends them. Raises OSError with the reason
    of a process that failed.
    """
    n_workers = max(1, min(cores(), total // min_units))
    if n_workers == 1:
        for done, _ in enumerate(task(job, 0, 1), start=1):
            if progress is not None:
                progress(done, total)
        return
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.json"
        job_file.write_text(json.dumps(job))
        _run_processes([task.__module__, task.__name__, str(job_file)], n_workers, total, progress)


def _run_processes(arguments: list[str], n_workers: int, total: int, progress: Progress | None) -> None:
    read_end, write_end = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as stderr, os.fdopen(read_end, "rb", buffering=0) as unit_bytes:
        try:
            with os.fdopen(write_end, "wb"):  # closed here, so that the reading ends with the workers
                for worker in range(n_workers):
                    command = python_module("binsweep.data.parallel", *arguments, str(worker), str(n_workers))
                    processes.append(
                        subprocess.Popen(
                            command, stdout=write_end, stderr=stderr, env=subprocess_environment()
                        )
                    )
            done = 0
            while chunk := unit_bytes.read(4096):
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            failed = [process for process in processes if process.wait() != 0]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").split("\n")
            reason = next((line for line in reversed(lines) if line.strip()), "a process was killed")
            raise OSError(reason.strip())


def _run_worker(module: str, function: str, job_file: str, worker: str, n_workers: str) -> None:
    task: ParallelTask = getattr(importlib.import_module(module), function)
    try:
        for _ in task(json.loads(Path(job_file).read_text()), int(worker), int(n_workers)):
            os.write(1, b".")
    except OSError as error:  # the parent passes this line on
        sys.exit(error.strerror or str(error))


if __name__ == "__main__":
    _run_worker(*sys.argv[1:])
