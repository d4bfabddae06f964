"""The profile rules: pure functions from the figures of a profile to a recommendation, or an empty text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

SLOW_STEP_FACTOR = 3.0  # a step that takes this many times the median is slow
MIN_SLOW_STEPS = 3
MIN_CPU_PERCENT = 50.0  # that a trial without a GPU should get of its cores


def data_bound(shares: Mapping[str, float], threshold: float = 0.5) -> str:
    """More than `threshold` of a step waits for data (reading, augmenting, copying)."""
    share = shares.get("wait", 0.0) + shares.get("copy", 0.0)
    if share <= threshold:
        return ""
    return f"{share:.0%} of a step waits for data: a smaller image_size, augment: flip or none, more cpus_per_trial"


def cpu_bound(cpu: float, gpu: float | None, cpu_threshold: float = 90.0, gpu_threshold: float = 10.0) -> str:
    """The GPU is idle while the CPU is fully used; or, without a GPU, the trial gets less than half of its cores.

    `cpu` is the process's utilization in percent of the cores that it may use, `gpu` that of the device.
    """
    if gpu is not None:
        if cpu > cpu_threshold and gpu < gpu_threshold:
            return f"the CPU is at {cpu:.0f} % and the GPU at {gpu:.0f} %: more cpus_per_trial, or fewer trials at once"
        return ""
    if cpu < MIN_CPU_PERCENT:
        return (
            f"the trial got {cpu:.0f} % of its cores: other processes on this machine use them, "
            "or its disk is slow"
        )
    return ""


def low_gpu_utilization(gpu: float | None, threshold: float = 70.0) -> str:
    """The GPU's utilization is below `threshold` percent."""
    if gpu is None or gpu >= threshold:
        return ""
    return f"the GPU is at {gpu:.0f} %: more trials on it (gpus_per_trial below 1), or a larger batch_size"


def batch_size(gpu: float | None, memory: float | None, micro_batches: int, threshold: float = 70.0) -> str:
    """The batch leaves both the GPU and its memory idle, or had to be split to fit into memory."""
    if micro_batches > 1:
        return (
            f"a batch fits into memory only as {micro_batches} micro-batches: "
            "lower batch_size, or fewer trials at once"
        )
    if gpu is not None and memory is not None and gpu < threshold and memory < threshold:
        return f"GPU {gpu:.0f} %, its memory {memory:.0f} %: a larger batch_size would use both"
    return ""


def memory_growing(
    megabytes: Sequence[float], increase: float = 0.05, patience: int = 5, least: float = 200.0
) -> str:
    """The process's memory grew in each of the last `patience` measurements, by `increase` and `least` MB in all."""
    last = list(megabytes[-patience - 1 :])
    grows = len(last) > patience and all(after > before for before, after in pairwise(last))
    if not grows or last[-1] < last[0] * (1 + increase) or last[-1] < last[0] + least:
        return ""
    return (
        f"memory grew from {last[0]:.0f} to {last[-1]:.0f} MB in {patience} measurements in a row: "
        "it may run out"
    )


def slow_start(startup: float, trained: float, threshold: float = 60.0) -> str:
    """The first step began after more than `threshold` seconds, and later than the first epoch is long."""
    if startup <= max(threshold, trained):
        return ""
    return f"{startup:.0f} s until the first step: keep BINSWEEP_HOME, whose banks are then built only once"


def step_outlier(seconds: Sequence[float], share: float = 0.1, least: float = 1.0) -> str:
    """Slow steps take more than `share` of an epoch's time, and more than `least` seconds."""
    slow = slow_steps(seconds)
    if len(slow) < MIN_SLOW_STEPS or sum(slow) <= max(share * sum(seconds), least):
        return ""
    return (
        f"{len(slow)} of {len(seconds)} steps took {sum(slow) / sum(seconds):.0%} of the time: other processes use "
        "the machine or the disk now and then"
    )


def slow_steps(seconds: Sequence[float]) -> list[float]:
    """The steps that take more than SLOW_STEP_FACTOR times the median."""
    limit = SLOW_STEP_FACTOR * statistics.median(seconds) if seconds else 0.0
    return [value for value in seconds if value > limit]
