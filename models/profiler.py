"""Where a trial's time and memory go, always on, and what to change about it in plain words.

On a CPU every step is timed by phase. On a GPU, where the calls return before the work is done, the clock is the
device's own: events among its work, at the end of every step and at each phase of sampled ones, which are read when the
epoch is over. A phase's time is then the device's; what the CPU does meanwhile, and the device need not wait for, is
no part of it.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from binsweep.data.resource_limits import cores
from binsweep.models.health_rules import HealthFinding

log = logging.getLogger(__name__)
PHASES = ("wait", "copy", "forward", "backward", "optimizer")
SAMPLED = 25  # on a GPU one step in so many is timed by phase
SYSTEM_SECONDS = 1.0  # at least so long between two looks at the machine
OUTLIER = 3.0  # a step that takes so many times the median is slow
TRACED = range(3, 8)  # the steps of the first epoch that a trace shows
MEGABYTE = 2**20


def data_bound(shares: Mapping[str, float], threshold: float = 0.5) -> str:
    """More than `threshold` of a step waits for data (reading, augmenting, copying)."""
    share = shares.get("wait", 0.0) + shares.get("copy", 0.0)
    if share <= threshold:
        return ""
    return f"{share:.0%} of a step waits for data: a smaller image_size, augment: flip or none, more cpus_per_trial"


def cpu_bound(cpu: float, gpu: float | None, cpu_threshold: float = 90.0, gpu_threshold: float = 10.0) -> str:
    """The GPU idles while the CPU is full; or, without a GPU, the trial gets less than half of its cores.

    `cpu` is the process's use in percent of the cores it may use, `gpu` the device's, None without one.
    """
    if gpu is not None:
        if cpu > cpu_threshold and gpu < gpu_threshold:
            return f"the CPU is at {cpu:.0f} % and the GPU at {gpu:.0f} %: more cpus_per_trial, or fewer trials at once"
        return ""
    if cpu < 50.0:
        return f"the trial got {cpu:.0f} % of its cores: something else on this machine wants them, or its disk is slow"
    return ""


def low_gpu_utilization(gpu: float | None, threshold: float = 70.0) -> str:
    """The GPU is used less than `threshold` percent."""
    if gpu is None or gpu >= threshold:
        return ""
    return f"the GPU is at {gpu:.0f} %: more trials on it (gpus_per_trial below 1), or a larger batch_size"


def batch_size(gpu: float | None, memory: float | None, parts: int, threshold: float = 70.0) -> str:
    """The batch leaves both the GPU and its memory idle, or did not fit and was cut into `parts` micro-batches."""
    if parts > 1:
        return f"a batch fits into memory only in {parts} parts: lower batch_size, or fewer trials at once"
    if gpu is not None and memory is not None and gpu < threshold and memory < threshold:
        return f"GPU {gpu:.0f} %, its memory {memory:.0f} %: a larger batch_size would use both"
    return ""


def memory_growing(
    megabytes: Sequence[float], increase: float = 0.05, patience: int = 5, least: float = 200.0
) -> str:
    """The process's memory grew from each look to the next, `patience` times, by `increase` and `least` MB in all."""
    last = list(megabytes[-patience - 1 :])
    grows = len(last) > patience and all(after > before for before, after in pairwise(last))
    if not grows or last[-1] < last[0] * (1 + increase) or last[-1] < last[0] + least:
        return ""
    return f"memory grew from {last[0]:.0f} to {last[-1]:.0f} MB in {patience} looks: it may run out"


def slow_start(startup: float, trained: float, threshold: float = 60.0) -> str:
    """It took more than `threshold` seconds, and longer than the first epoch, until the first step."""
    if startup <= max(threshold, trained):
        return ""
    return f"{startup:.0f} s until the first step: keep BINSWEEP_HOME, whose banks are then built only once"


def step_outlier(seconds: Sequence[float], share: float = 0.1, least: float = 1.0) -> str:
    """Steps of more than OUTLIER times the median take more than `share` of an epoch's time, and `least` seconds."""
    slow = slow_steps(seconds)
    if len(slow) < 3 or sum(slow) <= max(share * sum(seconds), least):
        return ""
    return (
        f"{len(slow)} of {len(seconds)} steps took {sum(slow) / sum(seconds):.0%} of the time: something else takes "
        "the machine or the disk now and then"
    )


def slow_steps(seconds: Sequence[float]) -> list[float]:
    """Those that take OUTLIER times the median."""
    limit = OUTLIER * statistics.median(seconds) if seconds else 0.0
    return [value for value in seconds if value > limit]


def nothing(phase: str) -> None:
    """A mark for who does not want to know."""


class Profile:
    """Times one training. `mark` ends a phase; `step_done` a step; `epoch_done` gives the epoch's figures.

    `trace` names a file: torch.profiler then writes what a few steps of the first epoch do, for chrome://tracing
    or ui.perfetto.dev.
    """

    def __init__(self, device: torch.device, threads: int, trace: Path | None = None) -> None:
        self._begun = self._last = time.perf_counter()
        self._cuda, self._threads, self._trace = device.type == "cuda", threads, trace
        self._looked, self._cpu = self._begun, time.process_time()
        self._tracing: Any = None
        self._steps = 0
        self._startup: float | None = None
        self._report = 0.0
        self._memory: list[float] = []
        self._told: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._timed = 0
        self._seconds: list[float] = []
        self._ends: list[Any] = []  # on a GPU: events at the epoch's begin and the end of every step
        self._marks: list[tuple[str, Any]] = []  # and at the end of phases; "" begins

    def epoch_begins(self) -> None:
        """Before the first batch is asked for; what came since the last epoch's end was its report."""
        now = time.perf_counter()
        if self._startup is None:
            self._startup = now - self._begun
        else:
            self._report = now - self._last
        self._last = self._step_began = now
        self._timing = not self._cuda
        if self._cuda:
            self._ends = [_event()]
            self._sample()

    def _sample(self) -> None:
        """On a GPU: whether the coming step is timed by phase. The very first one is not: it chooses kernels."""
        self._timing = self._steps > 0 and self._steps % SAMPLED == 0
        if self._timing:
            self._marks.append(("", self._ends[-1]))

    def mark(self, phase: str) -> None:
        """The time since the last mark belongs to `phase`."""
        if not self._timing:
            return
        if self._cuda:
            self._marks.append((phase, _event()))
            return
        now = time.perf_counter()
        self._phases[phase] += now - self._last
        self._last = now

    def step_done(self) -> None:
        """The step is over; its optimiser has stepped."""
        self.mark("optimizer")
        self._timed += self._timing
        self._steps += 1
        if self._cuda:
            self._ends.append(_event())
            self._sample()
        else:
            now = time.perf_counter()
            self._seconds.append(now - self._step_began)
            self._step_began = self._last = now
        self._follow_trace()

    def _follow_trace(self) -> None:
        if self._trace is not None:
            with _watching(f"the trace {self._trace} is not written", logging.WARNING):
                self._step_trace(self._trace)

    def _step_trace(self, file: Path) -> None:
        if self._steps == TRACED.start:
            self._tracing = torch.profiler.profile(profile_memory=True, record_shapes=True)
            self._tracing.start()
        elif self._steps == TRACED.stop and self._tracing is not None:
            tracing, self._tracing = self._tracing, None
            tracing.stop()
            tracing.export_chrome_trace(str(file))

    def training_done(self) -> None:
        """The epoch's last step is over, on the device, too; validation comes next."""
        self._last = time.perf_counter()
        self._seconds += [before.elapsed_time(after) / 1000 for before, after in pairwise(self._ends)]
        for (_, before), (phase, after) in pairwise(self._marks):
            if phase:
                self._phases[phase] += before.elapsed_time(after) / 1000

    def epoch_done(self, epoch: int, parts: int = 1) -> tuple[dict[str, float], tuple[HealthFinding, ...]]:
        """The epoch's figures, ready to be logged, and what the rules say for the first time; validation is over."""
        if self._tracing is not None:  # an epoch of fewer steps: what there was of it
            self._steps = TRACED.stop
            self._follow_trace()
        now = time.perf_counter()
        timed = max(self._timed, 1)
        total = sum(self._phases.values()) or 1.0
        figures = {f"profile/{phase}_ms": 1000 * spent / timed for phase, spent in self._phases.items()}
        figures["profile/validation_seconds"] = now - self._last
        figures["profile/slow_steps"] = float(len(slow_steps(self._seconds)))
        figures["profile/report_seconds"] = self._report  # of the epoch before
        figures["profile/startup_seconds"] = self._startup or 0.0
        system = self._look(now)
        gpu, cpu = (
            system.get("system/gpu_0_utilization_percentage"),
            system.get("system/cpu_utilization_percentage"),
        )
        shares = {phase: spent / total for phase, spent in self._phases.items()}
        said = {
            "data_bound": data_bound(shares) if self._timed else "",
            "low_gpu_utilization": low_gpu_utilization(gpu),
            "batch_size": batch_size(gpu, system.get("system/gpu_0_memory_usage_percentage"), parts),
            "memory_growing": memory_growing(self._memory),
            "slow_start": slow_start(self._startup or 0.0, sum(self._seconds)),
            "step_outlier": step_outlier(self._seconds),
            "cpu_bound": "" if cpu is None else cpu_bound(cpu, gpu),
        }
        self._last = now
        self._clear()
        found = {rule: text for rule, text in said.items() if text and rule not in self._told}
        self._told |= found.keys()
        return figures | system, tuple(
            HealthFinding(rule, epoch, text, "profile") for rule, text in found.items()
        )

    def _look(self, now: float) -> dict[str, float]:
        """CPU, memory and GPU now, under the names of MLflow's own system metrics; nothing if just looked."""
        if now - self._looked < SYSTEM_SECONDS:
            return {}
        memory, cpu = _memory(), time.process_time()
        self._memory.append(memory)
        used = (cpu - self._cpu) / (now - self._looked) / min(self._threads, cores())
        self._looked, self._cpu = now, cpu
        look = {
            "system/cpu_utilization_percentage": 100 * used,
            "system/process_memory_usage_megabytes": memory,
        }
        return look | (_gpu_look() if self._cuda else {})


def _memory() -> float:
    """Megabytes of memory that this process holds; where the system has no /proc, the most it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MEGABYTE
    return pages * resource.getpagesize() / MEGABYTE


def _gpu_look() -> dict[str, float]:
    """What the GPU tells of itself. A slice of one (MIG), a virtual one, a driver that fails for a moment or a machine
    without nvidia-ml-py tell less, each by an exception of its own."""
    look: dict[str, float] = {}
    for ask in (_gpu_memory, _gpu_utilization):
        with _watching(ask.__name__):
            look |= ask()
    return look


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
def _watching(what: str, level: int = logging.DEBUG) -> Iterator[None]:
    """What fails in this block is logged: watching must never end what it watches. A GPU that is really broken fails
    the next step of the training as well."""
    try:
        yield
    except Exception as error:
        log.log(level, "%s: %s: %s", what, type(error).__name__, error)


Mark = Callable[[str], None]
