"""On a GPU a trial learns what it learns on a CPU, no step waits for the device, and trials share it."""

import contextlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import binsweep.models.batches
import binsweep.models.profiler
import binsweep.models.train
from binsweep.models.augment import augment_images
from binsweep.models.batches import FeatureBatches, PixelBatches
from binsweep.models.checkpoint import model_from_checkpoint
from binsweep.models.levels import Level
from binsweep.models.precision import Precision, disable_tf32, release_gpu_memory
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import TrainingState, load_training_state
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.photo_trial import out_of_memory, run_trial
from binsweep.search.execution.resources import TrialResources
from binsweep.search.execution.trial import TrialTask

Curve = list[dict[str, float]]
Measured = Callable[[str], None]

# Plain gradient descent: AdamW's first steps are as large for a gradient that is nothing but rounding.
SGD = Settings(
    backbone="resnet18", weights="none", optimizer="sgd", lr=0.01, batch_size=32, epochs=2, precision="fp32"
)
# How far the losses on a GPU may be from a CPU's, in parts of them.
HEAD, DEEP, BF16 = 1e-4, 2e-3, 0.05
# Training all of a network from random weights is chaotic at SGD's rate. On a CPU, weights that differ in the seventh
# digit give the same first loss, a third one that differs by 3e-4 and a ninth by 6e-2: so does whatever is rounded in
# another way, and the curves of two devices, or of two runs on a GPU, prove nothing. So `all` is compared by its first
# step, whose loss and gradients nothing has magnified yet, and by a curve at a hundredth of that rate: there the same
# change moves the losses of both epochs by 1.4e-4, and what is learned is 1.1e-2 of them.
CALM = replace(SGD, trainable="all", lr=1e-4)
# Of one step. Gradients jump where a unit lies on the other side of its ReLU: on a CPU with another number of threads
# ResNet-18's differ by 1.1e-2, and in bf16 instead of fp32 by 0.27; EfficientNet-Lite0's by 1.3e-2 where weights differ
# in the seventh digit, and in bf16 by 0.83. What is forgotten or counted twice makes them differ by parts of 1.
STEP = 1e-5
GRADIENTS = {"resnet18": 0.05, "efficientnet_lite0": 0.2}
BF16_STEP, BF16_GRADIENTS = 1e-2, 0.5


def curve_of(settings: Settings, data: TrialData, **options: Any) -> Curve:
    curve: Curve = []
    train(
        settings,
        data,
        lambda epoch, metrics, snapshot: curve.append(metrics) is None,
        TrainOptions(**options),
    )
    return curve


def losses(curve: Curve) -> np.ndarray[Any, Any]:
    return np.array([[metrics["train_loss"], metrics["val_loss"]] for metrics in curve])


def learned(curve: Curve) -> float:
    """By how much the training loss fell, in parts of it."""
    return 1 - curve[-1]["train_loss"] / curve[0]["train_loss"]


def apart(one: Curve, other: Curve) -> float:
    """The largest difference of two curves' losses, in parts of them."""
    return float(np.max(np.abs(losses(one) / losses(other) - 1)))


@dataclass(frozen=True)
class Step:
    """A training's first step: its loss, and the gradients of each parameter."""

    loss: float
    gradients: list[Tensor]

    def apart(self, other: "Step") -> tuple[float, float, float]:
        """By how much the losses differ, all gradients as one, and those of the parameter that differ most, in parts
        of what `other` has."""
        pairs = list(zip(self.gradients, other.gradients, strict=True))
        each = [float((mine - its).norm() / its.norm()) for mine, its in pairs]
        whole = torch.cat([mine - its for mine, its in pairs]).norm() / torch.cat(other.gradients).norm()
        return abs(self.loss / other.loss - 1), float(whole), max(each)


def first_step(settings: Settings, data: TrialData) -> Step:
    """Of all photos as one batch. What gradient descent has for a momentum after one step is the gradient."""
    steps: list[Step] = []

    def keep(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        momenta = [entry["momentum_buffer"] for entry in snapshot.state().optimizer["state"].values()]
        steps.append(Step(metrics["train_loss"], [values.cpu().double().flatten() for values in momenta]))
        return True

    once = {"epochs": 1, "batch_size": len(data.train), "schedule": "constant", "weight_decay": 0.0}
    train(replace(settings, **once), data, keep)  # type: ignore[arg-type]
    return steps[0]


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """Trainings compute there, in fp32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            binsweep.models.train,
            "choose_precision",
            lambda precision: Precision(torch.device("cpu"), None),
        )
        yield


@pytest.mark.parametrize("backbone", GRADIENTS)
@pytest.mark.parametrize(("trainable", "most"), [("head", HEAD), ("last_stage", DEEP)])
def test_losses_are_those_of_a_cpu(
    backbone: str, trainable: str, most: float, little: TrialData, measured: Measured
) -> None:
    settings = replace(SGD, backbone=backbone, trainable=trainable)  # type: ignore[arg-type]
    here = curve_of(settings, little)
    with on_the_cpu():
        there = curve_of(settings, little)
    measured(f"{backbone} {trainable}: fp32 losses differ from the CPU's by {apart(here, there):.1e}")
    assert apart(here, there) < most


@pytest.mark.parametrize("backbone", GRADIENTS)
def test_the_first_step_of_all_is_that_of_a_cpu(backbone: str, little: TrialData, measured: Measured) -> None:
    settings = replace(SGD, backbone=backbone, trainable="all")
    here = first_step(settings, little)
    with on_the_cpu():
        there = first_step(settings, little)
    loss, gradients, worst = here.apart(there)
    measured(
        f"{backbone} all, one step: loss {loss:.1e}, gradients {gradients:.1e}, of one parameter at most {worst:.1e}"
    )
    assert loss < STEP and gradients < GRADIENTS[backbone]


def test_a_calm_training_of_all_has_the_losses_of_a_cpu(little: TrialData, measured: Measured) -> None:
    here = curve_of(CALM, little)
    with on_the_cpu():
        there = curve_of(CALM, little)
    measured(
        f"all, calm: losses differ by {apart(here, there):.1e}; what was learned is {learned(there):.1e} of them"
    )
    assert learned(there) > 2 * DEEP > 2 * apart(here, there)


def test_losses_in_bf16_are_close(little: TrialData, measured: Measured) -> None:
    settings = replace(SGD, trainable="last_stage")
    close, exact = curve_of(replace(settings, precision="bf16"), little), curve_of(settings, little)
    measured(f"last_stage: bf16 losses differ from fp32's by {apart(close, exact):.1e}")
    assert 0 < apart(close, exact) < BF16


def test_the_first_step_of_all_in_bf16_is_close(little: TrialData, measured: Measured) -> None:
    settings = replace(SGD, trainable="all")
    close, exact = first_step(replace(settings, precision="bf16"), little), first_step(settings, little)
    loss, gradients, worst = close.apart(exact)
    measured(
        f"all, one step in bf16: loss {loss:.1e}, gradients {gradients:.1e}, of one parameter {worst:.1e}"
    )
    assert loss < BF16_STEP and GRADIENTS["resnet18"] < gradients < BF16_GRADIENTS, "neither fp32 nor wrong"


@pytest.mark.parametrize("augment", ["flip", "flip_shift", "full"])
def test_a_photo_is_augmented_as_on_a_cpu(augment: str, little: TrialData, measured: Measured) -> None:
    disable_tf32()
    images = torch.from_numpy(np.array(little.train.pixels[:64]))
    rows = torch.arange(64)
    there = augment_images(images, rows, rows % 5, augment).int()  # type: ignore[arg-type]
    here = augment_images(images.cuda(), rows, rows % 5, augment).cpu().int()  # type: ignore[arg-type]
    other = float((here != there).float().mean())
    measured(f"{augment}: {other:.1e} of the values differ, by at most {int((here - there).abs().max())}")
    assert (here - there).abs().max() <= 1 and other < (1e-3 if augment == "full" else 1e-9)


@pytest.mark.parametrize("trainable", ["head", "last_stage"])
def test_streamed_banks_give_the_losses_of_resident_ones(
    trainable: str, little: TrialData, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SGD, trainable=trainable)  # type: ignore[arg-type]
    curves = []
    for fits in (True, False):
        monkeypatch.setattr(binsweep.models.batches, "fits_on_gpu", lambda size, device, fits=fits: fits)
        curves.append(curve_of(settings, little))
    measured(f"{trainable}: streamed and resident differ by {apart(*curves):.1e}")
    assert apart(*curves) < 1e-4


@pytest.mark.parametrize("trainable", ["head", "last_stage", "all"])
def test_streamed_batches_are_the_resident_ones(
    trainable: str, many: TrialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, at every step of a training: kernels that are not deterministic come behind them."""
    settings = replace(SGD, trainable=trainable, augment="full", views=3)  # type: ignore[arg-type]
    plain, taken = binsweep.models.train.training_batches, list[list[tuple[Tensor, ...]]]()

    def kept(*arguments: Any) -> Iterator[Any]:
        for batch in plain(*arguments):
            taken[-1].append(tuple(values.clone() for values in batch))
            yield batch

    monkeypatch.setattr(binsweep.models.train, "training_batches", kept)
    for fits in (True, False):
        monkeypatch.setattr(binsweep.models.batches, "fits_on_gpu", lambda size, device, fits=fits: fits)
        taken.append([])
        curve_of(settings, many)
    resident, streamed = taken
    assert len(resident) == len(streamed) == 2 * 60
    for here, there in zip(resident, streamed, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_what_fits_is_resident(little: TrialData) -> None:
    device = torch.device("cuda")
    pixels = PixelBatches(little.train.pixels, little.train.labels, lambda images: images, device, "none", 1)
    features = FeatureBatches(torch.zeros(2, 200, 8), little.train.labels, device)
    assert pixels._resident is not None and pixels._resident.is_cuda and features._features.is_cuda
    release_gpu_memory()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        assert binsweep.models.batches.fits_on_gpu(10**6, device)
        assert not binsweep.models.batches.fits_on_gpu(total // 100, device), (
            "more than this process may take"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """From an epoch's first batch to the end of its last step, whatever waits for the GPU raises. Counts the steps."""
    plain, steps = binsweep.models.train.training_batches, [0]

    def watched(*arguments: Any) -> Iterator[Any]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in plain(*arguments):
                steps[0] += 1
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(binsweep.models.train, "training_batches", watched)
    yield steps
    torch.cuda.set_sync_debug_mode("default")


def test_what_waits_for_the_gpu_raises() -> None:
    """As the next test takes for granted."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("fits", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": "head"},
        {"trainable": "last_stage", "augment": "flip_shift", "views": 3, "balance": "sampler"},
        {"trainable": "all", "augment": "full", "balance": "weights", "optimizer": "adamw"},
        {"trainable": "all", "head": "ordinal", "backbone": "efficientnet_lite0", "precision": "bf16"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_no_step_waits_for_the_gpu(
    changes: dict[str, Any], fits: bool, many: TrialData, strict: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binsweep.models.batches, "fits_on_gpu", lambda size, device: fits)
    settings = replace(SGD, batch_size=64, **changes)
    # Steps 0 and 50 are those that health rules look at, 25 and 50 those that are timed by phase.
    curve_of(settings, many, micro_batches=1 if fits else 2, refit=not fits)
    assert strict[0] >= 60


def test_the_phases_are_the_device_s(many: TrialData, measured: Measured) -> None:
    settings = replace(SGD, trainable="all", batch_size=64, epochs=3, precision="bf16")
    last = curve_of(settings, many)[-1]
    phases = {phase: last[f"profile/{phase}_ms"] for phase in binsweep.models.profiler.PHASES}
    step = 1000 * 64 / last["images_per_second"]
    times = ", ".join(f"{phase} {spent:.2f}" for phase, spent in phases.items())
    measured(f"a step {step:.2f} ms: {times}; slow steps {last['profile/slow_steps']:.0f} of 30")
    assert 0.5 * step < sum(phases.values()) < 2 * step
    assert phases["backward"] > 0 and last["profile/slow_steps"] <= 3


def test_a_gpu_that_does_not_tell_its_use_ends_no_trial(
    little: TrialData, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    pynvml = pytest.importorskip("pynvml")
    measured(f"the GPU tells {binsweep.models.profiler._gpu_metrics()}")
    monkeypatch.setattr(binsweep.models.profiler, "MIN_SYSTEM_INTERVAL", 0.0)

    def refusing(code: int) -> Callable[..., None]:
        def refuse(*arguments: Any) -> None:
            raise pynvml.NVMLError(code)

        return refuse

    for name, code in (
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),  # no NVML: WSL, Jetson
        ("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_NOT_SUPPORTED),  # MIG, vGPU
    ):
        with monkeypatch.context() as patch:
            patch.setattr(pynvml, name, refusing(code))
            last = curve_of(replace(SGD, trainable="head"), little)[-1]
            assert "system/gpu_0_utilization_percentage" not in last
            assert last["system/gpu_0_memory_usage_percentage"] > 0


def task_of(settings: Settings, data: TrialData, folder: Path, gpus: float) -> TrialTask:
    resources = TrialResources({"CPU": 1.0, "GPU": gpus})
    sections = (Level(settings, data.image_size),)
    return TrialTask(0, sections, folder, "val_loss", "minimize", 1, resources=resources)


def test_out_of_memory_goes_to_micro_batches(many: TrialData, tmp_path: Path, measured: Measured) -> None:
    settings = replace(SGD, backbone="resnet50", trainable="all", batch_size=512, epochs=1)
    release_gpu_memory()
    total = torch.cuda.mem_get_info()[1]
    before = torch.cuda.memory_allocated()
    curve: Curve = []
    try:
        gib = 1.5 + before / 2**30
        run_trial(
            task_of(settings, many, tmp_path, gib * 2**30 / total),
            many,
            lambda epoch, metrics: curve.append(metrics) is None,
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    left = (torch.cuda.memory_allocated() - before) / 2**20
    measured(
        f"in {curve[0].get('micro_batches', 1):.0f} micro-batches within 1.5 GiB; {left:.0f} MiB are left in use"
    )
    assert curve[0]["micro_batches"] >= 2 and math.isfinite(curve[0]["train_loss"])
    assert not (tmp_path / "error.txt").exists()
    assert left < 64, "what the failed attempts held is free"


def test_what_a_full_gpu_says_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, device="cuda")
    assert out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46, dtype=torch.uint8, pin_memory=True)
    print(f"\n    pinned memory: {type(caught.value).__name__}: {str(caught.value).splitlines()[0]}", end="")
    assert out_of_memory(caught.value)


def start(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    words = [sys.executable, Path(__file__).with_name("member.py"), folder, *map(str, arguments)]
    return subprocess.Popen(words, env=environment)


def curves_of_two(folder: Path, data: TrialData, settings: Settings, *group: object) -> list[Curve]:
    (folder / "job").write_bytes(pickle.dumps((data, settings)))
    processes = [start(folder, rank, *group) for rank in range(2)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"curve-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("trainable", ["last_stage", "all"])
def test_two_trials_share_a_gpu(trainable: str, many: TrialData, tmp_path: Path, measured: Measured) -> None:
    """Each within its half, and the last stage learns what it learns alone; `all` is chaotic over so many steps."""
    settings = replace(SGD, trainable=trainable)  # type: ignore[arg-type]
    alone = curve_of(settings, many)
    both = curves_of_two(tmp_path, many, settings)
    half = torch.cuda.mem_get_info()[1] / 2
    for curve in both:
        last = curve[-1]
        measured(
            f"beside another, {trainable}: losses differ by {apart(curve, alone):.1e}, most memory "
            f"{last['most_memory'] / 2**20:.0f} MiB, kept {last['kept'] / 2**20:.0f}, of it not cuBLAS's "
            f"{last['left'] / 2**20:.0f}"
        )
        assert len(curve) == len(alone) and np.isfinite(losses(curve)).all()
        assert trainable == "all" or apart(curve, alone) < DEEP
        assert last["most_memory"] <= half and last["left"] < 32 * 2**20


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_processes_learn_what_one_does(
    backend: str, little: TrialData, tmp_path: Path, measured: Measured
) -> None:
    """Over gloo on the same GPU; NCCL wants a GPU each. Batches are normalised together."""
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants two GPUs")
    curve, nothing = curves_of_two(tmp_path, little, CALM, 2, backend)
    alone = curve_of(CALM, little)
    measured(f"{backend}: losses of two processes differ from one's by {apart(curve, alone):.1e}")
    assert not nothing and learned(alone) > 2 * DEEP > 2 * apart(curve, alone)


@pytest.mark.parametrize(
    "settings",
    [CALM, replace(SGD, trainable="last_stage", optimizer="adamw", lr=1e-4)],
    ids=["all-sgd", "last_stage-adamw"],
)
def test_a_resumed_training_has_the_curve_of_an_undisturbed_one(
    settings: Settings, little: TrialData, tmp_path: Path, measured: Measured
) -> None:
    """Also on a CPU, from what a GPU has left."""
    whole, again = curve_of(settings, little), curve_of(settings, little)
    measured(f"twice the same training: losses differ by {apart(whole, again):.1e}")

    def first(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        snapshot.state().save(tmp_path / "last.pt")
        return False

    train(settings, little, first)

    def later(state: TrainingState | None) -> Curve:
        assert state is not None
        return curve_of(settings, little, start_from=state)

    state = load_training_state(tmp_path / "last.pt")
    resumed = later(state)
    with on_the_cpu():
        elsewhere = later(load_training_state(tmp_path / "last.pt"))
    measured(
        f"resumed: {apart(resumed, whole[1:]):.1e}; resumed on the CPU: {apart(elsewhere, whole[1:]):.1e}"
    )
    assert apart(resumed, whole[1:]) < DEEP and apart(elsewhere, whole[1:]) < DEEP


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_a_checkpoint_of_a_gpu_counts_the_same_on_a_cpu(trainable: str, little: TrialData) -> None:
    kept = []

    def keep(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        kept.append(snapshot.checkpoint())
        return True

    train(replace(SGD, trainable=trainable, epochs=1), little, keep)  # type: ignore[arg-type]
    with torch.no_grad():
        log_probabilities = model_from_checkpoint(kept[0])(
            torch.from_numpy(np.array(little.validation.pixels))
        )
    torch.testing.assert_close(log_probabilities, kept[0].log_probabilities, rtol=1e-3, atol=1e-3)
