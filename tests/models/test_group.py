"""Two processes that train one trial together learn the same as one alone."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from binsweep.models.distributed import ProcessGroup, _synchronize_batch_norms
from binsweep.models.precision import choose_precision
from binsweep.models.settings import Settings
from binsweep.models.train import TrainOptions, _predict, train
from binsweep.models.training_state import load_training_state
from binsweep.models.trial_data import BatchFactory, TrialData, build_trial_model

# A head has neither dropout nor batch normalisation: two processes must learn what one does.
# Plain gradient descent, as AdamW would hide gradients that are too large by a factor.
HEAD = Settings(optimizer="sgd", lr=0.03, batch_size=16, epochs=3, precision="fp32")
# Gradients are summed in another order: the losses of one process and of two differ by rounding.
TOLERANCE = 1e-5
Curve = list[dict[str, float]]
Case = tuple[Settings, int, int]  # micro-batches; the epoch after which training is cut short, 0 for none


def cases_for(photos: int) -> dict[str, Case]:
    """By name, for a training split of `photos` photos."""
    too_few = next(
        size for size in range(8, photos) if photos % size in (2, 3)
    )  # in the last batch for two shards
    uneven = next(size for size in range(9, photos) if size % 2 and photos % size > 3)
    weighted = replace(HEAD, batch_size=uneven, balance="weights", label_smoothing=0.1)
    whole = replace(HEAD, trainable="all", epochs=2, batch_size=too_few)
    return {
        "even": (HEAD, 1, 0),
        "uneven": (replace(HEAD, batch_size=uneven), 1, 0),
        "an empty shard": (replace(HEAD, batch_size=too_few), 1, 0),
        "class weights": (weighted, 1, 0),
        "micro-batches": (replace(weighted, batch_size=too_few), 3, 0),
        "drawn by class": (replace(HEAD, balance="sampler", optimizer="adamw"), 1, 0),
        "cut short": (HEAD, 1, 2),
        "all": (whole, 1, 0),
        "all, cut short": (whole, 1, 1),
        "all, bf16": (replace(whole, precision="bf16", epochs=1), 2, 0),
    }


LIKE_ONE = (
    "even",
    "uneven",
    "an empty shard",
    "class weights",
    "micro-batches",
    "drawn by class",
    "cut short",
)


def alone(case: Case, data: TrialData) -> Curve:
    settings, micro_batches, _ = case
    options = TrainOptions(micro_batches=micro_batches)
    curve: Curve = []
    train(settings, data, lambda epoch, metrics, snapshot: curve.append(metrics) is None, options)
    return curve


@pytest.fixture(scope="module")
def group_folder(trial_data: TrialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the curves of two processes for every case, and the states from which they resumed."""
    folder = tmp_path_factory.mktemp("group")
    (folder / "cases").write_bytes(pickle.dumps((trial_data, cases_for(len(trial_data.train)))))
    script = Path(__file__).with_name("group_member.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    processes = [
        subprocess.Popen([sys.executable, script, folder, str(rank), "2"], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


def curves_of(folder: Path, rank: int = 0) -> dict[str, Curve]:
    curves: dict[str, Curve] = pickle.loads((folder / f"curves-{rank}").read_bytes())
    return curves


@pytest.mark.parametrize("name", LIKE_ONE)
def test_two_processes_learn_what_one_does(name: str, group_folder: Path, trial_data: TrialData) -> None:
    together, single = (
        curves_of(group_folder)[name],
        alone(cases_for(len(trial_data.train))[name], trial_data),
    )
    assert len(together) == len(single) == HEAD.epochs
    for here, there in zip(together, single, strict=True):
        assert here["val_accuracy"] == there["val_accuracy"] and here["lr"] == there["lr"]
        assert here["train_accuracy"] == there["train_accuracy"]
        for loss in ("train_loss", "val_loss"):
            assert here[loss] == pytest.approx(there[loss], rel=TOLERANCE), loss


def test_only_the_first_process_reports(group_folder: Path) -> None:
    assert not any(curves_of(group_folder, 1).values())


@pytest.mark.parametrize(("cut", "undisturbed"), [("cut short", "even"), ("all, cut short", "all")])
def test_a_group_that_goes_on_has_the_curve_of_an_undisturbed_one(
    cut: str, undisturbed: str, group_folder: Path
) -> None:
    curves = curves_of(group_folder)
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "lr")
    for here, there in zip(curves[cut], curves[undisturbed], strict=True):
        assert [here[name] for name in names] == [there[name] for name in names]


def test_what_is_kept_is_what_the_group_validated(group_folder: Path, trial_data: TrialData) -> None:
    """Each process normalises its own shards, but the saved network must be the one that all of them validated."""
    settings, _, _ = cases_for(len(trial_data.train))["all, cut short"]
    precision = choose_precision(settings.precision)
    model = build_trial_model(settings, trial_data, precision)
    state = load_training_state(group_folder / "all, cut short.pt")
    assert state is not None
    model.suffix(0).load_state_dict(state.net)
    val_batches = BatchFactory(model, settings, trial_data.banks, precision).open(
        trial_data.validation, "none"
    )
    log_probabilities = _predict(model.suffix(0), val_batches, precision)
    loss = F.nll_loss(log_probabilities, val_batches.labels)
    assert float(loss) == pytest.approx(state.history[0]["val_loss"], rel=TOLERANCE)


def test_fast_gradients_and_empty_shards_go_together(group_folder: Path) -> None:
    """bf16 with empty last micro-batches: PyTorch's and our own gradients accept inputs without rows."""
    (metrics,) = curves_of(group_folder)["all, bf16"]
    assert all(np.isfinite([metrics["train_loss"], metrics["val_loss"]]))


def test_normalising_together_keeps_the_network_and_the_names_in_its_checkpoints(
    trial_data: TrialData,
) -> None:
    net = (
        build_trial_model(replace(HEAD, trainable="all"), trial_data, choose_precision("fp32"))
        .suffix(0)
        .eval()
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        names, output = list(net.state_dict()), net(images)
        _synchronize_batch_norms(net)
        kinds = {type(layer) for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
        assert kinds and all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
        assert list(net.state_dict()) == names
        torch.testing.assert_close(net(images), output)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17])
def test_shards_are_the_rows_in_order_and_none_has_one_alone(rows: int, size: int) -> None:
    shards = [torch.arange(rows)[ProcessGroup(rank, size).shard(rows)] for rank in range(size)]
    assert torch.cat(shards).tolist() == list(range(rows))
    lengths = [len(shard) for shard in shards]
    assert lengths[0] > 0 and (1 not in lengths or rows == 1)
    filled = [length for length in lengths if length]
    assert max(filled) - min(filled) <= 1
