"""The training loop learns and is reproducible, and the feature bank changes nothing but the time."""

import copy
import math
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import binsweep.models.train
from binsweep.data.banks.features import open_feature_bank
from binsweep.data.errors import UserError
from binsweep.models.build import build_model
from binsweep.models.checkpoint import Checkpoint, load_checkpoint, model_from_checkpoint
from binsweep.models.network import HEADS
from binsweep.models.optimization import build_optimizer, build_schedule, end_schedule_at
from binsweep.models.precision import Precision
from binsweep.models.sampling import epoch_rows
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import TrainingState, load_training_state
from binsweep.models.trial_data import TrialData, build_banks

SETTINGS = Settings(lr=0.01, batch_size=16, epochs=3, precision="fp32")
Kept = list[tuple[dict[str, float], Checkpoint]]


def run(settings: Settings, data: TrialData, use_bank: bool = True, stop_after: int = 99) -> Kept:
    kept: Kept = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        assert epoch == len(kept) + 1
        kept.append((metrics, snapshot.checkpoint()))
        return epoch < stop_after

    train(settings, data, report, TrainOptions(use_bank))
    return kept


def losses(kept: Kept) -> list[float]:
    return [metrics[key] for metrics, _ in kept for key in ("train_loss", "val_loss")]


@pytest.mark.parametrize(
    "backbone",
    [
        "efficientnet_lite0",
        pytest.param("efficientnet_lite1", marks=pytest.mark.night),
        pytest.param("efficientnet_lite2", marks=pytest.mark.night),
    ],
)
@pytest.mark.parametrize("trainable", ["head", "last_stage", "later_stages"])
def test_training_with_and_without_the_feature_bank_gives_the_same_losses(
    trial_data: TrialData, backbone: str, trainable: str
) -> None:
    # A rate at which training is stable: a chaotic run blows up the last bit of any two convolution kernels.
    settings = replace(SETTINGS, backbone=backbone, trainable=trainable, lr=5e-4)  # type: ignore[arg-type]
    with_bank, without = (losses(run(settings, trial_data, use_bank)) for use_bank in (True, False))
    assert len(with_bank) == 6
    np.testing.assert_allclose(with_bank, without, rtol=1e-4)


@pytest.mark.parametrize("augment", ["none", "flip_shift", "full"])
def test_the_bank_is_exact_for_sampled_views(trial_data: TrialData, augment: str) -> None:
    settings = replace(SETTINGS, augment=augment, views=5, lr=5e-4, epochs=2)  # type: ignore[arg-type]
    with_bank, without = (losses(run(settings, trial_data, use_bank)) for use_bank in (True, False))
    np.testing.assert_allclose(with_bank, without, rtol=1e-4)


@pytest.mark.parametrize("backbone", [pytest.param("resnet18", marks=pytest.mark.night), "mobilenet_v2"])
def test_the_bank_is_exact_for_other_families_too(trial_data: TrialData, backbone: str) -> None:
    settings = replace(SETTINGS, backbone=backbone, weights="none", trainable="last_stage", epochs=2)
    with_bank, without = (losses(run(settings, trial_data, use_bank)) for use_bank in (True, False))
    np.testing.assert_allclose(with_bank, without, rtol=1e-4)


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_one_seed_repeats_and_another_differs(trial_data: TrialData, trainable: str) -> None:
    settings = replace(SETTINGS, trainable=trainable, epochs=2, augment="flip")  # type: ignore[arg-type]
    first = losses(run(settings, trial_data))
    assert losses(run(settings, trial_data)) == first
    assert losses(run(replace(settings, seed=1), trial_data)) != first


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": "head", "augment": "flip"},
        {"trainable": "last_stage", "optimizer": "sgd", "balance": "sampler"},
        {"trainable": "all", "augment": "full", "backbone": "mobilenet_v2", "weights": "none"},
        {"trainable": "last_stage", "ema": 0.9},
    ],
)
def test_a_resumed_training_has_the_curve_of_an_undisturbed_one(
    trial_data: TrialData, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, **changes)
    whole = run(settings, trial_data)
    file = tmp_path / "last.pt"

    def until_two(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        snapshot.state().save(file)
        return epoch < 2

    train(settings, trial_data, until_two)
    torch.manual_seed(99)  # whatever happened in the process meanwhile
    state = load_training_state(file)
    assert state is not None and state.epoch == 2
    later: list[dict[str, float]] = []
    options = TrainOptions(start_from=state)
    train(settings, trial_data, lambda epoch, metrics, _: later.append(metrics) is None, options)
    assert len(later) == 1
    clocks = {name for name in later[0] if name.startswith(("profile/", "system/"))}
    for name in set(later[0]) - clocks - {"images_per_second", "seconds"}:
        assert later[0][name] == whole[2][0][name], name
    assert [m["train_loss"] for m in state.history] == [m["train_loss"] for m, _ in whole[:2]]


@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
def test_a_shortened_training_comes_down_by_its_new_end(
    trial_data: TrialData, tmp_path: Path, schedule: str
) -> None:
    """Nine epochs were planned; after four, three are left, and a resumption of the rest changes nothing."""
    settings = replace(SETTINGS, epochs=9, schedule=schedule)  # type: ignore[arg-type]
    states: dict[int, Path] = {}

    def run_to(settings: Settings, last: int, start: int | None = None) -> list[dict[str, float]]:
        metrics_of: list[dict[str, float]] = []

        def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
            states[epoch] = tmp_path / f"{epoch}.pt"
            snapshot.state().save(states[epoch])
            metrics_of.append(metrics)
            return epoch < last

        state = None if start is None else load_training_state(states[start])
        train(settings, trial_data, report, TrainOptions(start_from=state))
        return metrics_of

    before = run_to(settings, 4)
    short = replace(settings, epochs=7)
    after = run_to(short, 99, start=4)
    rates = [metrics["lr"] for metrics in before + after]
    assert len(rates) == 7
    if schedule == "constant":
        assert set(rates) == {SETTINGS.lr}
    else:
        planned = [metrics["lr"] for metrics, _ in run(settings, trial_data)]
        assert rates[:4] == planned[:4] and rates[4] < planned[4]
        assert rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] < 1e-4
    again = run_to(short, 99, start=5)
    assert [m["train_loss"] for m in again] == [m["train_loss"] for m in after[1:]]


@pytest.mark.parametrize("now", [30, 60, 90])
def test_a_shortened_schedule_goes_on_from_its_present_rate(now: int) -> None:
    optimizer = build_optimizer(nn.Linear(1, 1), SETTINGS)
    schedule = build_schedule(optimizer, SETTINGS, 100)
    rates = []
    for step in range(now + 8):
        rates.append(schedule.get_last_lr()[0])
        if step == now:
            end_schedule_at(schedule, now + 8)
        optimizer.step()
        if step < now + 7:
            schedule.step()
    assert rates[now:] == sorted(rates[now:], reverse=True)
    steepest = SETTINGS.lr * math.pi / 2 / 7  # of a cosine from the top, in seven steps
    assert max(a - b for a, b in pairwise(rates[now:])) <= steepest
    assert rates[-1] == pytest.approx(SETTINGS.lr / 25 / 1e4)


def with_others(data: TrialData) -> TrialData:
    """Models answer with 0 and 2 only; the photos with 1 item teach as well (and here are all the photos there are)."""
    classes, places = (0, 2), np.array([0, 0, 1])
    splits = []
    for bank in (data.train, data.validation):
        split = copy.copy(bank)
        rows = np.flatnonzero(bank.labels != 1)
        split.labels, split.pixels = places[bank.labels[rows]], bank.pixels[rows]
        split.ids, split.key = tuple(bank.ids[row] for row in rows), f"{bank.key} 0 and 2"
        splits.append(split)
    others = copy.copy(data.train)
    rows = np.flatnonzero(data.train.labels == 1)
    others.labels, others.pixels = data.train.labels[rows], data.train.pixels[rows]
    others.ids, others.key = tuple(data.train.ids[row] for row in rows), f"{data.train.key} 1"
    return TrialData(classes, data.image_size, *splits, data.banks, others, (0, 1, 2))


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("trainable", ["head", "all"])
def test_other_counts_teach_and_are_no_answer(
    trial_data: TrialData, tmp_path: Path, trainable: str, head: str
) -> None:
    data = with_others(trial_data)
    settings = replace(SETTINGS, trainable=trainable, head=head, lr=1e-3, balance="weights")  # type: ignore[arg-type]
    kept = run(settings, data)
    metrics, checkpoint = kept[-1]
    assert checkpoint.log_probabilities.shape == (len(data.validation.labels), 2)
    torch.testing.assert_close(
        checkpoint.log_probabilities.exp().sum(1), torch.ones(len(data.validation.labels))
    )
    assert set(per_class_names(metrics)) == {"0", "2"}
    checkpoint.save(tmp_path / "best.pt")
    model = model_from_checkpoint(load_checkpoint(tmp_path / "best.pt"))
    pixels = torch.from_numpy(np.array(data.validation.pixels))
    with torch.no_grad():
        answers = model(pixels)
    torch.testing.assert_close(answers, checkpoint.log_probabilities, rtol=1e-3, atol=1e-3)
    # The probabilities are those of the head, given that one of the answers is right.
    with torch.no_grad():
        whole = model.suffix(0)(model.normalise(pixels)).exp()
    given = whole[:, [0, 2]] / whole[:, [0, 2]].sum(1, keepdim=True)
    torch.testing.assert_close(answers.exp(), given, rtol=1e-4, atol=1e-5)
    if trainable == "head":
        np.testing.assert_allclose(losses(run(settings, data, use_bank=False)), losses(kept), rtol=1e-4)


def per_class_names(metrics: dict[str, float]) -> list[str]:
    prefix = "val_accuracy_class_"
    return [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]


def test_a_refit_with_other_counts_trains_on_every_photo(trial_data: TrialData) -> None:
    data = with_others(trial_data)
    seen: list[float] = []
    options = TrainOptions(refit=True)
    settings = replace(SETTINGS, batch_size=1, epochs=1)
    train(settings, data, lambda epoch, metrics, _: seen.append(metrics["train_accuracy"]) is None, options)
    photos = sum(len(bank.labels) for bank in (data.train, data.validation, data.train_also or data.train))
    assert seen[0] * photos == pytest.approx(round(seen[0] * photos))


def test_the_average_of_the_weights_is_judged_and_kept(trial_data: TrialData) -> None:
    """By hand: after each step, decay times the average and the rest of the weights; at first the weights."""
    decay, trained = 0.7, []
    settings = replace(SETTINGS, epochs=1, ema=decay)
    ours: list[Checkpoint] = []

    def keep(net: torch.nn.Module) -> None:
        trained.append({name: value.clone() for name, value in net.state_dict().items()})

    original = AveragedModel.update_parameters

    def update(self: AveragedModel, net: torch.nn.Module) -> None:
        keep(net)
        original(self, net)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AveragedModel, "update_parameters", update)
        train(settings, trial_data, lambda e, m, snapshot: ours.append(snapshot.checkpoint()) is None)
    expected = trained[0]
    for weights in trained[1:]:
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in weights}
    for name, value in ours[0].state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    model = model_from_checkpoint(ours[0])
    with torch.no_grad():
        answers = model(torch.from_numpy(np.array(trial_data.validation.pixels)))
    torch.testing.assert_close(answers, ours[0].log_probabilities, rtol=1e-3, atol=1e-3)


def test_a_damaged_or_absent_state_is_none(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    assert load_training_state(file) is None
    TrainingState(1, [{"a": 1.0}], {}, {}, {}, []).save(file)
    assert load_training_state(file) is not None
    whole = file.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"x" * len(whole)):
        file.write_bytes(broken)
        assert load_training_state(file) is None


@pytest.mark.parametrize("changes", [{}, {"balance": "weights", "label_smoothing": 0.1}])
def test_micro_batches_add_up_to_the_whole_batch(trial_data: TrialData, changes: dict[str, object]) -> None:
    settings = replace(SETTINGS, lr=1e-3, **changes)  # type: ignore[arg-type]
    kept: list[float] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        kept.extend([metrics["train_loss"], metrics["val_loss"]])
        return True

    train(settings, trial_data, report, TrainOptions(micro_batches=3))
    np.testing.assert_allclose(kept, losses(run(settings, trial_data)), rtol=1e-4)


def test_prediction_is_cut_as_batches_are(trial_data: TrialData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation may run out of memory as training does, so it has the same number of micro-batches."""
    monkeypatch.setattr(binsweep.models.train, "INFERENCE_BATCH", 8)
    forward, sizes = binsweep.models.train._forward, list[int]()

    def seen(net: torch.nn.Module, inputs: torch.Tensor, precision: Precision) -> torch.Tensor:
        if not net.training:
            sizes.append(len(inputs))
        return forward(net, inputs, precision)

    monkeypatch.setattr(binsweep.models.train, "_forward", seen)
    photos, curves = len(trial_data.validation), list[float]()
    for micro_batches, most in ((1, 8), (4, 2), (16, 1)):
        sizes.clear()
        settings, options = replace(SETTINGS, epochs=1), TrainOptions(micro_batches=micro_batches)
        train(settings, trial_data, lambda _, metrics, __: bool(curves.append(metrics["val_loss"])), options)
        assert max(sizes) == most and sum(sizes) == photos
    np.testing.assert_allclose(curves[1:], curves[0], rtol=1e-4)


def test_a_head_on_imagenet_features_learns(trial_data: TrialData) -> None:
    kept = run(replace(SETTINGS, epochs=15), trial_data)
    assert kept[-1][0]["train_loss"] < 0.6 * kept[0][0]["train_loss"]
    assert max(metrics["val_accuracy"] for metrics, _ in kept) > 0.6  # three classes


def test_metrics_are_complete_and_consistent(trial_data: TrialData) -> None:
    (metrics, _), *_ = run(replace(SETTINGS, epochs=1), trial_data)
    names = {f"{split}_{name}" for split in ("train", "val") for name in ("loss", "accuracy", "rmse", "mae")}
    names |= {f"val_accuracy_class_{count}" for count in trial_data.classes}
    assert {name for name in metrics if "/" not in name} == names | {"lr", "images_per_second", "seconds"}
    support = np.bincount(trial_data.validation.labels)
    accuracies = [metrics[f"val_accuracy_class_{count}"] for count in trial_data.classes]
    assert metrics["val_accuracy"] == pytest.approx(np.average(accuracies, weights=support))
    assert metrics["val_mae"] <= metrics["val_rmse"]


@pytest.mark.parametrize("trainable", ["head", "last_stage", "all"])
def test_the_checkpoint_rebuilds_the_counter_that_was_evaluated(
    trial_data: TrialData, tmp_path: Path, trainable: str
) -> None:
    _, checkpoint = run(replace(SETTINGS, trainable=trainable, epochs=1), trial_data)[0]  # type: ignore[arg-type]
    checkpoint.save(tmp_path / "best.pt")
    counter = model_from_checkpoint(load_checkpoint(tmp_path / "best.pt"))
    images = torch.from_numpy(np.array(trial_data.validation.pixels))
    with torch.inference_mode():
        torch.testing.assert_close(counter(images), checkpoint.log_probabilities, rtol=1e-3, atol=1e-4)


def test_what_is_frozen_stays_as_it_was(trial_data: TrialData) -> None:
    settings = replace(SETTINGS, trainable="last_stage", epochs=1)
    counter = build_model(settings, trial_data.classes, trial_data.image_size)
    before = {key: value.clone() for key, value in counter.state_dict().items()}
    _, checkpoint = run(settings, trial_data)[0]
    for other in (
        replace(SETTINGS, trainable="head", epochs=1),
        replace(SETTINGS, trainable="all", epochs=1),
    ):
        run(other, trial_data)  # they share with one another what they do not train
    trained = model_from_checkpoint(checkpoint).state_dict()
    changed = {key for key in trained if not torch.equal(trained[key], before[key])}
    assert changed and all(
        key.startswith(("backbone.blocks5", "backbone.blocks6", "backbone.tail", "head")) for key in changed
    )
    assert any("running_mean" in key for key in changed)
    again = build_model(settings, trial_data.classes, trial_data.image_size).state_dict()
    assert all(torch.equal(again[key], before[key]) for key in before)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_head_and_optimizer_trains(trial_data: TrialData, head: str, optimizer: str) -> None:
    settings = replace(SETTINGS, head=head, optimizer=optimizer, schedule="constant", label_smoothing=0.1)  # type: ignore[arg-type]
    kept = run(settings, trial_data)
    assert all(math.isfinite(value) for metrics, _ in kept for value in metrics.values())
    assert {metrics["lr"] for metrics, _ in kept} == {0.01}


def test_one_cycle_rises_and_falls(trial_data: TrialData) -> None:
    rates = [metrics["lr"] for metrics, _ in run(replace(SETTINGS, epochs=10), trial_data)]
    assert max(rates) == pytest.approx(0.01, rel=0.05) and rates[0] < 0.008 and rates[-1] < 1e-4


def test_a_stop_ends_the_trial_at_that_epoch(trial_data: TrialData) -> None:
    assert len(run(replace(SETTINGS, epochs=9), trial_data, stop_after=2)) == 2


def test_a_diverging_trial_reports_nan_instead_of_raising(trial_data: TrialData) -> None:
    settings = replace(SETTINGS, optimizer="sgd", lr=900.0, schedule="constant", trainable="all", epochs=3)
    kept = run(settings, trial_data)
    assert not math.isfinite(kept[-1][0]["train_loss"])


def test_balanced_sampling_draws_rare_classes_as_often() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    settings = replace(SETTINGS, balance="sampler", batch_size=100)
    drawn = [labels[epoch_rows(labels, settings, torch.Generator().manual_seed(i))[0]] for i in range(20)]
    assert torch.cat(drawn).float().mean() == pytest.approx(0.5, abs=0.05)


def test_balanced_weights_change_what_is_learned(trial_data: TrialData) -> None:
    plain, weighted = (
        losses(run(replace(SETTINGS, balance=b, epochs=1), trial_data)) for b in ("none", "weights")
    )  # type: ignore[arg-type]
    assert plain != weighted


def test_a_last_batch_of_one_joins_its_neighbour() -> None:
    rows = epoch_rows(torch.zeros(33, dtype=torch.long), SETTINGS, torch.Generator())
    assert sorted(len(batch) for batch in rows) == [16, 17]
    assert torch.cat(rows).unique().numel() == 33


def encode(images: torch.Tensor, rows: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    return torch.where(views.view(-1, 1, 1, 1) == 1, images.flip(2), images).float().flatten(1)


PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feature_bank_holds_image_and_mirror(tmp_path: Path, threads: int, dtype: torch.dtype) -> None:
    def typed(images: torch.Tensor, rows: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        assert torch.equal(images, torch.from_numpy(PIXELS)[rows])
        return encode(images, rows, views).to(dtype)

    before = torch.get_num_threads()
    bank = open_feature_bank(PIXELS, typed, "key", tmp_path, 2, batch=3, threads=threads)
    assert bank.dtype == dtype and torch.get_num_threads() == before
    for view, pixels in enumerate((PIXELS, PIXELS[:, :, ::-1].copy())):
        assert torch.equal(bank[view], torch.from_numpy(pixels).flatten(1).to(dtype))


@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish", "other version", "other shape", "no index"])
def test_a_damaged_or_foreign_feature_bank_is_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    bank = open_feature_bank(PIXELS, encode, "key", tmp_path, views=2).clone()
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    features, index = folder / "features.npy", folder / "index.json"
    if damage == "other version":
        index.write_text(index.read_text().replace("features|", "features|0"))
    elif damage == "other shape":
        np.save(features, np.zeros((2, 9, 48), np.float32))
    elif damage == "no index":
        index.unlink()
    else:
        content = {"cut": features.read_bytes()[:-100], "empty": b"", "rubbish": b"\x93NUMPY rubbish"}[damage]
        features.write_bytes(content)
    assert torch.equal(open_feature_bank(PIXELS, encode, "key", tmp_path, views=2), bank)
    assert [record.message.count("is built again") for record in caplog.records] == [1]
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".lock", ".use"}


def test_a_full_disk_leaves_no_feature_bank(tmp_path: Path) -> None:
    pixels = np.zeros((400, 4, 4, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot build the feature bank in .*: File too large"):
            open_feature_bank(pixels, encode, "key", tmp_path, views=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert open_feature_bank(pixels, encode, "key", tmp_path, views=2).shape == (2, 400, 48)


def test_an_error_while_encoding_is_raised_and_leaves_nothing(tmp_path: Path) -> None:
    def failing(images: torch.Tensor, rows: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    for threads in (1, 2):
        with pytest.raises(RuntimeError, match="no such kernel"):
            open_feature_bank(PIXELS, failing, "key", tmp_path, 2, batch=2, threads=threads)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_head_whose_features_are_stored_needs_no_backbone(trial_data: TrialData, tmp_path: Path) -> None:
    build_banks(SETTINGS, trial_data)
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps((SETTINGS, trial_data)))
    code = """if True:
        import pickle, sys
        from pathlib import Path
        from binsweep.models.train import train
        epochs = []
        train(*pickle.loads(Path(sys.argv[1]).read_bytes()), lambda epoch, *_: epochs.append(epoch) or True)
        print(epochs, {"timm", "torchvision"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"{list(range(1, SETTINGS.epochs + 1))} set()", done.stderr
