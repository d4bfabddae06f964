"""The phases of a step, and the recommendations of the profile's rules for trials with and without a problem."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
from torch import Tensor

import binsweep.models.profiler
from binsweep.models.batches import FeatureBatches
from binsweep.models.health_rules import HealthFinding
from binsweep.models.profile_rules import (
    batch_size,
    cpu_bound,
    data_bound,
    low_gpu_utilization,
    memory_growing,
    slow_start,
    step_outlier,
)
from binsweep.models.profiler import (
    MEGABYTE,
    PHASE_TIMING_INTERVAL,
    PHASES,
    Profile,
)
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.trial_data import TrialData

EVEN = [0.01] * 50
CASES: list[tuple[Callable[..., str], tuple[Any, ...], tuple[Any, ...], str]] = [
    (data_bound, ({"wait": 0.6, "forward": 0.4},), ({"wait": 0.2, "forward": 0.8},), "waits for data"),
    (cpu_bound, (95.0, 5.0), (95.0, 80.0), "more cpus_per_trial"),
    (cpu_bound, (30.0, None), (97.0, None), "30 % of its cores"),
    (low_gpu_utilization, (20.0,), (90.0,), "larger batch_size"),
    (low_gpu_utilization, (20.0,), (None,), "20 %"),
    (batch_size, (20.0, 30.0, 1), (90.0, 30.0, 1), "a larger batch_size"),
    (batch_size, (90.0, 90.0, 4), (None, None, 1), "only as 4 micro-batches"),
    (
        memory_growing,
        ([1000.0 + 100 * look for look in range(7)],),
        ([1000.0, 1900, 1000, 1001, 1000, 1003, 1000],),
        "1600 MB",
    ),
    (slow_start, (100.0, 20.0), (100.0, 300.0), "until the first step"),
    (step_outlier, ([*EVEN, 0.5, 0.5, 0.5],), (EVEN,), "3 of 53 steps"),
]


@pytest.mark.parametrize(("rule", "ill", "healthy", "said"), CASES)
def test_a_rule_recommends_where_it_should_and_nothing_else(
    rule: Callable[..., str], ill: tuple[Any, ...], healthy: tuple[Any, ...], said: str
) -> None:
    assert said in rule(*ill) and rule(*healthy) == ""


def trained(data: TrialData, **options: Any) -> tuple[list[dict[str, float]], list[HealthFinding]]:
    seen: list[dict[str, float]] = []
    found: list[HealthFinding] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        seen.append(metrics)
        found.extend(snapshot.findings)
        return True

    train(replace(Settings(), batch_size=8, epochs=3), data, report, TrainOptions(**options))
    return seen, found


def test_the_phases_add_up_to_the_step(trial_data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binsweep.models.profiler, "MIN_SYSTEM_INTERVAL", 0.0)
    seen, _ = trained(trial_data)
    for metrics in seen:
        steps = -(-len(trial_data.train) // 8)
        phases = sum(metrics[f"profile/{phase}_ms"] for phase in PHASES) / 1000 * steps
        trained_seconds = len(trial_data.train) / metrics["images_per_second"]
        assert 0.5 * trained_seconds < phases <= trained_seconds
        assert metrics["system/process_memory_usage_megabytes"] > 100
        assert metrics["system/cpu_utilization_percentage"] > 0
    assert seen[0]["profile/startup_seconds"] > 0 and seen[1]["profile/report_seconds"] > 0


def test_slow_data_is_found(trial_data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    take = FeatureBatches.take

    def slowly(self: FeatureBatches, rows: Tensor, *others: Any) -> Tensor:
        time.sleep(0.02)
        return take(self, rows, *others)

    monkeypatch.setattr(FeatureBatches, "take", slowly)
    seen, found = trained(trial_data)
    assert [finding.name for finding in found].count("profile.data_bound") == 1
    assert seen[0]["profile/wait_ms"] >= 20


@pytest.mark.parametrize(
    "error",
    [pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), RuntimeError("no driver"), ImportError("pynvml")],
)
def test_a_gpu_that_may_not_be_asked_is_trained_on_all_the_same(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise error

    monkeypatch.setattr(binsweep.models.profiler, "MIN_SYSTEM_INTERVAL", 0.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (MEGABYTE, 4 * MEGABYTE))
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 60)
    monkeypatch.setattr(torch.cuda, "Event", LateDevice)
    profile = Profile(torch.device("cuda"), 1)

    def epoch(number: int) -> dict[str, float]:
        profile.epoch_begins()
        profile.training_done()
        return profile.epoch_done(number)[0]

    whole = epoch(1)
    assert whole["system/gpu_0_memory_usage_percentage"] == 75.0
    assert whole["system/gpu_0_utilization_percentage"] == 60.0
    monkeypatch.setattr(torch.cuda, "utilization", refuse)  # also after it has answered once
    part = epoch(2)
    assert part.keys() == whole.keys() - {"system/gpu_0_utilization_percentage"}
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    assert not any("gpu" in name for name in epoch(3))


def test_a_tracer_that_may_not_run_ends_no_trial(
    trial_data: TrialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**options: Any) -> Any:
        raise RuntimeError("CUPTI: not permitted")

    monkeypatch.setattr(torch.profiler, "profile", refuse)
    seen, _ = trained(trial_data, trace=tmp_path / "trace.json")
    assert len(seen) == 3 and "not permitted" in caplog.text


def test_a_trace_shows_a_few_steps(trial_data: TrialData, tmp_path: Path) -> None:
    trained(trial_data, trace=tmp_path / "trace.json")
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "aten::addmm" in names
    assert torch.autograd._profiler_enabled() is False


class LateDevice:
    """Simulates a GPU: calls return at once, and the device's clock advances by the time given for each phase."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = LateDevice.now

    def elapsed_time(self, other: "LateDevice") -> float:
        return 1000 * (other.at - self.at)


@pytest.mark.parametrize(
    "steps", [PHASE_TIMING_INTERVAL, 10]
)  # also where the sampled step is an epoch's first one
def test_on_a_gpu_the_clock_is_the_device_s(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampled steps are no slower than others, and nothing waits for them."""
    monkeypatch.setattr(torch.cuda, "Event", LateDevice)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("waits"))
    profile = Profile(torch.device("cuda"), 1)
    timed = []
    for epoch in range(1, 7):
        profile.epoch_begins()
        for _ in range(steps):
            for phase, seconds in zip(PHASES, (0.0, 0.001, 0.01, 0.02, 0.003), strict=True):
                LateDevice.now += seconds
                if phase != "optimizer":
                    profile.mark(phase)
            profile.step_done()
        profile.training_done()
        assert sum(profile._seconds) == pytest.approx(steps * 0.034)
        figures, findings = profile.epoch_done(epoch)
        assert figures["profile/slow_steps"] == 0 and not findings
        timed.append([round(figures[f"profile/{phase}_ms"], 6) for phase in PHASES])
    times = [0.0, 1.0, 10.0, 20.0, 3.0]
    nothing = [0.0] * 5
    assert timed == [
        times if n in (range(2, 7) if steps == PHASE_TIMING_INTERVAL else (3, 6)) else nothing
        for n in range(1, 7)
    ]
