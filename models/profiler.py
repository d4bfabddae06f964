"""Measures how each training spends time and memory, and recommends changes.

On a CPU every step is timed by phase. On a GPU, where calls return before the work is done, the device's own clock is
used: events at the end of every step, and of each phase of sampled steps, which are read at the end of the epoch. The
time of a phase is then the device's; work of the CPU that the device need not wait for is not part of it.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from binsweep.data.resource_limits import cores
from binsweep.models.health_rules import HealthFinding
from binsweep.models.profile_rules import (
    batch_size,
    cpu_bound,
    data_bound,
    low_gpu_utilization,
    memory_growing,
    slow_start,
    slow_steps,
    step_outlier,
)

log = logging.getLogger(__name__)
Mark = Callable[[str], None]
PHASES = ("wait", "copy", "forward", "backward", "optimizer")
PHASE_TIMING_INTERVAL = 25  # on a GPU one of this many steps is timed by phase
MIN_SYSTEM_INTERVAL = 1.0  # seconds between two measurements of the machine
TRACED_STEPS = range(3, 8)  # of the first epoch
MEGABYTE = 2**20


def no_mark(phase: str) -> None:
    """A no-op mark."""


class Profile:
    """Times one training. `mark` ends a phase; `step_done` a step; `epoch_done` returns the epoch's figures.

    `trace` names a file for a torch.profiler trace of a few steps of the first epoch, for chrome://tracing or
    ui.perfetto.dev.
    """

    def __init__(self, device: torch.device, threads: int, trace: Path | None = None) -> None:
        self._created = self._last = time.perf_counter()
        self._cuda, self._threads, self._trace = device.type == "cuda", threads, trace
        self._measured, self._cpu_seconds = self._created, time.process_time()
        self._tracing: Any = None
        self._steps = 0
        self._startup: float | None = None
        self._report = 0.0
        self._memory: list[float] = []
        self._reported: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._timed_steps = 0
        self._seconds: list[float] = []
        self._step_events: list[Any] = []  # on a GPU: at the start of the epoch and the end of every step
        self._phase_events: list[tuple[str, Any]] = []  # at the end of each phase; "" is the start of a step

    def epoch_begins(self) -> None:
        """Called before the first batch is requested; the time since the last epoch's end went to its report."""
        now = time.perf_counter()
        if self._startup is None:
            self._startup = now - self._created
        else:
            self._report = now - self._last
        self._last = self._step_began = now
        self._timing = not self._cuda
        if self._cuda:
            self._step_events = [_event()]
            self._sample_gpu_step()

    def _sample_gpu_step(self) -> None:
        """Decide whether the next step is timed by phase. The very first one is not, because it selects kernels."""
        self._timing = self._steps > 0 and self._steps % PHASE_TIMING_INTERVAL == 0
        if self._timing:
            self._phase_events.append(("", self._step_events[-1]))

    def mark(self, phase: str) -> None:
        """Assign the time since the last mark to `phase`."""
        if not self._timing:
            return
        if self._cuda:
            self._phase_events.append((phase, _event()))
            return
        now = time.perf_counter()
        self._phases[phase] += now - self._last
        self._last = now

    def step_done(self) -> None:
        """Called after the optimiser's step."""
        self.mark("optimizer")
        self._timed_steps += self._timing
        self._steps += 1
        if self._cuda:
            self._step_events.append(_event())
            self._sample_gpu_step()
        else:
            now = time.perf_counter()
            self._seconds.append(now - self._step_began)
            self._step_began = self._last = now
        self._update_trace()

    def _update_trace(self) -> None:
        if self._trace is not None:
            with _log_errors(f"the trace {self._trace} is not written", logging.WARNING):
                self._start_or_stop_trace(self._trace)

    def _start_or_stop_trace(self, file: Path) -> None:
        if self._steps == TRACED_STEPS.start:
            self._tracing = torch.profiler.profile(profile_memory=True, record_shapes=True)
            self._tracing.start()
        elif self._steps == TRACED_STEPS.stop and self._tracing is not None:
            tracing, self._tracing = self._tracing, None
            tracing.stop()
            tracing.export_chrome_trace(str(file))

    def training_done(self) -> None:
        """Called when the device, too, has finished the epoch's last step, before validation."""
        self._last = time.perf_counter()
        self._seconds += [before.elapsed_time(after) / 1000 for before, after in pairwise(self._step_events)]
        for (_, before), (phase, after) in pairwise(self._phase_events):
            if phase:
                self._phases[phase] += before.elapsed_time(after) / 1000

    def epoch_done(
        self, epoch: int, micro_batches: int = 1
    ) -> tuple[dict[str, float], tuple[HealthFinding, ...]]:
        """Called after validation; returns the epoch's figures as metrics, and the findings not reported before."""
        if self._tracing is not None:  # an epoch with fewer steps: the trace ends here
            self._steps = TRACED_STEPS.stop
            self._update_trace()
        now = time.perf_counter()
        timed = max(self._timed_steps, 1)
        figures = {f"profile/{phase}_ms": 1000 * seconds / timed for phase, seconds in self._phases.items()}
        figures["profile/validation_seconds"] = now - self._last
        figures["profile/slow_steps"] = float(len(slow_steps(self._seconds)))
        figures["profile/report_seconds"] = self._report  # of the epoch before
        figures["profile/startup_seconds"] = self._startup or 0.0
        system = self._system_metrics(now)
        texts = self._apply_rules(system, micro_batches)
        self._last = now
        self._clear()
        found = {rule: text for rule, text in texts.items() if text and rule not in self._reported}
        self._reported |= found.keys()
        findings = tuple(HealthFinding(rule, epoch, text, "profile") for rule, text in found.items())
        return figures | system, findings

    def _apply_rules(self, system: dict[str, float], micro_batches: int) -> dict[str, str]:
        """The text of every rule; empty if there is nothing to recommend."""
        gpu = system.get("system/gpu_0_utilization_percentage")
        gpu_memory = system.get("system/gpu_0_memory_usage_percentage")
        cpu = system.get("system/cpu_utilization_percentage")
        total = sum(self._phases.values()) or 1.0
        shares = {phase: seconds / total for phase, seconds in self._phases.items()}
        return {
            "data_bound": data_bound(shares) if self._timed_steps else "",
            "low_gpu_utilization": low_gpu_utilization(gpu),
            "batch_size": batch_size(gpu, gpu_memory, micro_batches),
            "memory_growing": memory_growing(self._memory),
            "slow_start": slow_start(self._startup or 0.0, sum(self._seconds)),
            "step_outlier": step_outlier(self._seconds),
            "cpu_bound": "" if cpu is None else cpu_bound(cpu, gpu),
        }

    def _system_metrics(self, now: float) -> dict[str, float]:
        """CPU, memory and GPU use, under the names of MLflow's system metrics; empty if measured just before."""
        if now - self._measured < MIN_SYSTEM_INTERVAL:
            return {}
        memory, cpu_seconds = _process_memory(), time.process_time()
        self._memory.append(memory)
        available = min(self._threads, cores())
        used = (cpu_seconds - self._cpu_seconds) / (now - self._measured) / available
        self._measured, self._cpu_seconds = now, cpu_seconds
        metrics = {
            "system/cpu_utilization_percentage": 100 * used,
            "system/process_memory_usage_megabytes": memory,
        }
        return metrics | (_gpu_metrics() if self._cuda else {})


def _process_memory() -> float:
    """Megabytes of memory that this process holds; the most that it has held where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MEGABYTE
    return pages * resource.getpagesize() / MEGABYTE


def _gpu_metrics() -> dict[str, float]:
    """Memory use and utilization of the GPU, as far as it reports them.

    A slice of a GPU (MIG), a virtual GPU, a driver that fails for a moment and a machine without nvidia-ml-py report
    less, and each raises exceptions of its own.
    """
    metrics: dict[str, float] = {}
    for measure in (_gpu_memory, _gpu_utilization):
        with _log_errors(measure.__name__):
            metrics |= measure()
    return metrics


def _gpu_memory() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    return {
        "system/gpu_0_memory_usage_megabytes": (total - free) / MEGABYTE,
        "system/gpu_0_memory_usage_percentage": 100 * (total - free) / total,
    }


def _gpu_utilization() -> dict[str, float]:
    return {"system/gpu_0_utilization_percentage": float(torch.cuda.utilization())}


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@contextlib.contextmanager
def _log_errors(what: str, level: int = logging.DEBUG) -> Iterator[None]:
    """Log the errors of this block: profiling must never end a training. A broken GPU also fails the next step."""
    try:
        yield
    except Exception as error:
        log.log(level, "%s: %s: %s", what, type(error).__name__, error)
