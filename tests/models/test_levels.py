"""A training in sections: small photos and a head first, then more of the network on larger ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from binsweep.data.banks.pixels import open_pixel_bank
from binsweep.data.manifest import Manifest
from binsweep.models.checkpoint import load_checkpoint, model_from_checkpoint
from binsweep.models.levels import Level, ending_at, total_epochs
from binsweep.models.sampling import epoch_rows, shared_rows
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import load_training_state
from binsweep.models.trial_data import TrialData

TOP = Settings(
    backbone="resnet18", weights="none", trainable="all", epochs=2, batch_size=16, lr=1e-3, ema=0.9
)
EARLIER = (
    Level(replace(TOP, trainable="head", epochs=3, train_share=0.5), 48),
    Level(replace(TOP, trainable="last_stage", epochs=2), 48),
)


@pytest.fixture(scope="module")
def data(manifest: Manifest, trial_data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> TrialData:
    """The photos of `trial_data`, and the same ones with 48 pixels a side."""
    home = tmp_path_factory.mktemp("small")
    small = replace(
        trial_data,
        image_size=48,
        train=open_pixel_bank(manifest, "train", 48, home),
        validation=open_pixel_bank(manifest, "validation", 48, home),
    )
    return replace(trial_data, other_sizes=(small,))


@pytest.fixture(scope="module")
def whole(data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """An uninterrupted training: the folder of its states and checkpoints, and what it reported."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(data, folder)


def run(
    data: TrialData,
    folder: Path | None,
    settings: Settings = TOP,
    earlier: tuple[Level, ...] = EARLIER,
    until: int = 99,
    start: Path | None = None,
) -> list[dict[str, float]]:
    """Train, keeping the state and the checkpoint of each epoch in a folder; the metrics that were reported."""
    reported: list[dict[str, float]] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        reported.append(metrics)
        if folder is not None:
            snapshot.state().save(folder / f"state-{epoch}.pt")
            snapshot.checkpoint().save(folder / f"best-{epoch}.pt")
        return epoch < until

    state = None if start is None else load_training_state(start)
    train(settings, data, report, TrainOptions(start_from=state, earlier=earlier))
    return reported


def test_each_section_begins_with_the_weights_of_the_one_before(
    data: TrialData, tmp_path: Path, whole: tuple[Path, list[dict[str, float]]]
) -> None:
    folder, curve = whole
    assert [metrics["level"] for metrics in curve] == [1, 1, 1, 2, 2, 3, 3]
    rates = [metrics["lr"] for metrics in curve]
    assert rates[2] < 1e-4 < rates[3] and rates[4] < 1e-4 < rates[5], "each has its own schedule"
    head, stage, top = (load_checkpoint(folder / f"best-{epoch}.pt") for epoch in (3, 5, 7))
    assert (head.epoch, head.image_size, head.earlier) == (3, 48, ())
    assert stage.earlier == EARLIER[:1] and top.earlier == EARLIER
    assert top.image_size == data.image_size and top.settings == TOP
    # At a learning rate of 0 nothing changes: the last section answers as the one before it, at its own size.
    still = replace(TOP, lr=0.0, weight_decay=0.0, ema=0.0, epochs=1)
    run(data, tmp_path, still, EARLIER, start=folder / "state-5.pt")
    last = load_checkpoint(tmp_path / "best-6.pt")
    trained = {key: value for key, value in last.state.items() if key in stage.state and "running" not in key}
    assert {key.split(".")[0] for key in trained} == {"backbone", "head"}
    for key, value in trained.items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, stage.state[key], msg=key)


# Within a section and at the end of one; the others of the same kind take a minute more.
@pytest.mark.parametrize(
    "at", [at if at in (4, 5) else pytest.param(at, marks=pytest.mark.night) for at in range(1, 7)]
)
def test_a_training_in_sections_resumes_anywhere_with_the_same_curve(
    data: TrialData, whole: tuple[Path, list[dict[str, float]]], at: int
) -> None:
    folder, curve = whole
    rest = run(data, None, start=folder / f"state-{at}.pt")
    keys = ("train_loss", "val_loss", "val_accuracy", "lr", "level")
    assert [[m[k] for k in keys] for m in rest] == [[m[k] for k in keys] for m in curve[at:]]


def test_a_checkpoint_of_each_section_answers_as_its_validation_did(
    data: TrialData, whole: tuple[Path, list[dict[str, float]]]
) -> None:
    folder, _ = whole
    for epoch in (3, 5, 7):
        checkpoint = load_checkpoint(folder / f"best-{epoch}.pt")
        model = model_from_checkpoint(checkpoint)
        photos = torch.tensor(data.at_size(checkpoint.image_size).validation.pixels[:8])
        with torch.no_grad():
            torch.testing.assert_close(model(photos), checkpoint.log_probabilities[:8], atol=2e-4, rtol=0)


def test_a_training_that_ends_earlier_leaves_out_later_sections(data: TrialData) -> None:
    levels = (*EARLIER, Level(TOP, data.image_size))
    assert total_epochs(levels) == 7 and ending_at(levels, 7) == levels
    assert ending_at(levels, 3) == levels[:1]
    short = ending_at(levels, 4)
    assert [level.settings.epochs for level in short] == [3, 1]
    curve = run(data, None, short[-1].settings, short[:-1])
    assert [metrics["level"] for metrics in curve] == [1, 1, 1, 2]
    assert str(EARLIER[0]) == "head at 48 px, 50% of the photos, 3 epochs"


@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_a_share_of_the_photos_has_all_classes_and_is_part_of_a_larger_one(balance: str) -> None:
    labels = torch.tensor([0] * 50 + [1] * 9 + [2])
    small, large = shared_rows(labels, 0.1), shared_rows(labels, 0.5)
    assert labels[small].bincount().tolist() == [5, 1, 1] and labels[large].bincount().tolist() == [25, 5, 1]
    assert set(small.tolist()) <= set(large.tolist())
    settings = Settings(train_share=0.1, batch_size=4, balance=balance)  # type: ignore[arg-type]
    rows = torch.cat(epoch_rows(labels, settings, torch.Generator().manual_seed(1)))
    assert len(rows) == 7 and set(rows.tolist()) <= set(small.tolist())
