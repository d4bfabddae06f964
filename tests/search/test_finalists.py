"""Finalists: trained again with fresh seeds, taken up where they were cut short, and what answers in the end."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from binsweep.data.errors import UserError
from binsweep.models.batches import JoinedBatches
from binsweep.models.checkpoint import Checkpoint, load_checkpoint
from binsweep.models.levels import Level
from binsweep.models.settings import Settings
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.controller import Controller
from binsweep.search.execution.photo_trial import run_trial
from binsweep.search.execution.trial import ONE_CORE, TrialTask
from binsweep.search.history.run_keys import trial_key, trial_number
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.schema import BudgetPart
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.workflows.final_model import build_final_model, choose_inference
from binsweep.search.workflows.finalists import (
    Finalist,
    FinalistPlan,
    Training,
    plan_finalists,
    promotion_seconds,
    train_finalists,
)
from binsweep.tracking.runlog.run_log import RunLog
from binsweep.tracking.runlog.spool import read_spool

NOBODY = "http://127.0.0.1:9"  # the run log keeps everything until a server answers


def spec_of(metric: str = "val_accuracy", **register: Any) -> SweepSpec:
    return parse_spec(
        {
            "name": "small",
            "data": {"source": "none", "image_size": 64},
            "space": {"lr": [0.01], "epochs": [4]},
            "objective": {"metric": metric},
            "budget": {"trials": 2},
            "register": {"finalists": 2, "seeds": 2, **register},
        }
    )


@pytest.fixture(scope="module")
def swept(
    trial_data: TrialData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Two trials' checkpoints, as a sweep leaves them, and its leaderboard."""
    folder = tmp_path_factory.mktemp("swept")
    leaders = []
    for number in (0, 1):
        settings = Settings(lr=0.01, batch_size=16, epochs=4, seed=number)
        place = folder / f"trial-000{number}"
        run_trial(
            TrialTask(
                number, (Level(settings, trial_data.image_size),), place, "val_accuracy", "maximize", 1
            ),
            trial_data,
            lambda e, m: True,
        )
        best = f"{place.name}/best.pt"
        value = load_checkpoint(folder / best).metrics["val_accuracy"]
        leaders.append({"number": number, "value": value, "checkpoint": best})
    return folder, leaders


class Cut(RunLog):
    """A run log whose process is interrupted while the given number of epochs is told."""

    left = 10**9

    def metrics(self, key: str, step: int, values: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        super().metrics(key, step, values)


def test_they_are_trained_again_and_go_on_where_they_were_cut_short(
    swept: tuple[Path, list[dict[str, Any]]], trial_data: TrialData, tmp_path: Path
) -> None:
    folder, leaders = swept
    log = Cut(tmp_path / "a", NOBODY, "small")
    log.left = 7  # within the second epoch of the second training
    with pytest.raises(KeyboardInterrupt):
        train_finalists(folder, spec_of(), trial_data, leaders, FinalistPlan(2, 2), log)
    assert len(list(folder.glob("finalists/*/done.json"))) == 1
    (cut,) = folder.glob("finalists/*/last.pt")
    log.left = 10**9
    finalists = train_finalists(folder, spec_of(), trial_data, leaders, FinalistPlan(2, 2), log)
    assert not cut.exists() and len(list(folder.glob("finalists/*/done.json"))) == 4
    assert finalists[0].mean >= finalists[1].mean
    seeds = {load_checkpoint(one.checkpoint).settings.seed for f in finalists for one in f.trainings}
    assert len(seeds) == 4 and not seeds & {0, 1}

    # As if nothing had happened.
    again = Settings(**{**vars(load_checkpoint(cut.with_name("best.pt")).settings)})
    whole = tmp_path / "whole"
    run_trial(
        TrialTask(0, (Level(again, trial_data.image_size),), whole, "val_accuracy", "maximize", 1),
        trial_data,
        lambda e, m: True,
    )
    first, second = load_checkpoint(whole / "best.pt"), load_checkpoint(cut.with_name("best.pt"))
    assert first.epoch == second.epoch
    torch.testing.assert_close(first.log_probabilities, second.log_probabilities)

    # And what is done is not done again.
    log.left = 0
    assert train_finalists(folder, spec_of(), trial_data, leaders, FinalistPlan(2, 2), log) == finalists
    log.close(0.0)


def test_an_answer_of_all_options(
    swept: tuple[Path, list[dict[str, Any]]], trial_data: TrialData, tmp_path: Path
) -> None:
    folder, leaders = swept
    log = RunLog(tmp_path / "b", NOBODY, "small")
    spec = spec_of(finalists=1, ensemble=True, flip=True, refit=True)
    (finalist,) = train_finalists(folder, spec, trial_data, leaders, FinalistPlan(1, 2), log)
    answer = build_final_model(folder, spec, trial_data, finalist.trainings, log)
    log.close(0.0)
    text = "\n".join(answer.notes)
    for tried in (
        "mean of 2 trainings",
        "mirror image",
        "median instead",
        "mean instead",
        "validation together",
    ):
        assert tried in text
    assert answer.key.startswith("refit-")
    epochs = round(np.mean([load_checkpoint(one.checkpoint).epoch for one in finalist.trainings]))
    assert f"for {epochs} epoch" in text
    # It learned from the validation split as well.
    one = load_checkpoint(finalist.trainings[0].checkpoint)
    labels = torch.tensor(trial_data.validation.labels)
    before = torch.nn.functional.nll_loss(one.log_probabilities, labels)
    after = torch.nn.functional.nll_loss(torch.from_numpy(answer.validation).log(), labels)
    assert after != before and len(answer.validation) == len(labels)


def test_a_refit_of_a_trial_as_it_is_leaves_the_trials_own_run_alone(
    swept: tuple[Path, list[dict[str, Any]]], trial_data: TrialData, tmp_path: Path
) -> None:
    """`finalists: 0` with `refit: true`."""
    folder, leaders = swept
    log = RunLog(tmp_path / "c", NOBODY, "small")
    training = Training(trial_key(0), folder / leaders[0]["checkpoint"], leaders[0]["value"], 0)
    answer = build_final_model(folder, spec_of(finalists=0, refit=True), trial_data, [training], log)
    log.close(0.0)
    keys = {record["key"] for record in read_spool(tmp_path / "c")}
    assert keys == {answer.key} and trial_number(answer.key) is None


def test_weights_that_are_gone_are_named(
    swept: tuple[Path, list[dict[str, Any]]], trial_data: TrialData, tmp_path: Path
) -> None:
    folder, leaders = swept
    log = RunLog(tmp_path / "d", NOBODY, "small")
    gone = {**leaders[0], "checkpoint": "trial-0009/best.pt"}
    with pytest.raises(UserError, match=r"trial-0009/best\.pt: the weights of finalist 1 are gone"):
        train_finalists(folder, spec_of(), trial_data, [gone], FinalistPlan(1, 1), log)
    log.close(0.0)


def test_every_finalist_diverged(trial_data: TrialData, tmp_path: Path) -> None:
    settings = Settings(
        lr=900.0, weight_decay=900.0, optimizer="sgd", schedule="constant", batch_size=8, epochs=3
    )
    checkpoint = Checkpoint(1, {}, settings, trial_data.classes, 64, {}, torch.zeros(1, 3))
    checkpoint.save(tmp_path / "best.pt")
    leaders = [{"number": 0, "value": 0.5, "checkpoint": "best.pt"}]
    log = RunLog(tmp_path / "c", NOBODY, "small")
    with pytest.raises(UserError, match="every finalist"):
        train_finalists(tmp_path, spec_of(), trial_data, leaders, FinalistPlan(1, 1), log)
    log.close(0.0)


def made_up(trial_data: TrialData, table: np.ndarray) -> Checkpoint:
    log_probabilities = torch.from_numpy(np.log(table)).float()
    return Checkpoint(1, {}, Settings(), trial_data.classes, 64, {}, log_probabilities)


def test_another_decoding_is_taken_only_beyond_chance(trial_data: TrialData) -> None:
    """Torn between 0 and 2 about every photo with 1 item: argmax is always off, the mean never."""
    actual = trial_data.validation.labels
    table = np.full((len(actual), 3), 0.02)
    table[np.arange(len(actual)), actual] = 0.96
    table[actual == 1] = [0.45, 0.15, 0.4]
    *_, decoding, notes = choose_inference(spec_of("val_rmse"), trial_data, [made_up(trial_data, table)])
    assert decoding == "mean" and len(notes) == 4
    sure = np.full((len(actual), 3), 0.02)
    sure[np.arange(len(actual)), actual] = 0.96
    choice = choose_inference(spec_of(), trial_data, [made_up(trial_data, sure)])
    assert (choice.members, choice.flip, choice.decoding) == ([0], False, "argmax")
    assert "not taken" in choice.notes[-1]


def test_the_smaller_mistake_is_taken_where_accuracy_is_the_same(trial_data: TrialData) -> None:
    """Half of the photos with 0 and with 2 items are taken for the other, with 1 in between nearly as likely."""
    actual = trial_data.validation.labels
    table = np.full((len(actual), 3), 0.02)
    table[np.arange(len(actual)), actual] = 0.96
    for row, label in enumerate(actual):
        if label != 1 and row % 2:
            table[row] = [0.31, 0.29, 0.4] if label == 0 else [0.4, 0.29, 0.31]
    choice = choose_inference(spec_of(), trial_data, [made_up(trial_data, table)])
    assert choice.decoding in ("median", "mean", "compromise"), choice.notes
    assert any("rmse" in note and "better" in note for note in choice.notes)
    # Not where it costs accuracy.
    table[actual == 1] = [0.02, 0.96, 0.02]
    table[actual != 1] = [0.32, 0.28, 0.4]
    table[actual == 0] = [0.4, 0.28, 0.32]
    assert choose_inference(spec_of(), trial_data, [made_up(trial_data, table)]).decoding == "argmax"


@pytest.mark.parametrize(
    ("seconds", "register", "expected"),
    [
        (500.0, {}, FinalistPlan(2, 2)),  # no more than there are leaders
        (30.0, {}, FinalistPlan(1, 2)),
        (15.0, {}, FinalistPlan(1, 1)),
        (5.0, {}, FinalistPlan(0, 0)),
        (25.0, {"refit": True}, FinalistPlan(1, 1)),
        (45.0, {"refit": True, "ensemble": True}, FinalistPlan(1, 2)),
    ],
)
def test_a_plan_that_fits_the_time(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    register: dict[str, Any],
    expected: FinalistPlan,
) -> None:
    """Each training takes 10 s: five epochs of 2 s."""
    checkpoint = Checkpoint(3, {"seconds": 2.0}, Settings(epochs=5), (0, 1), 64, {}, torch.zeros(1, 2))
    checkpoint.save(tmp_path / "best.pt")
    leaders = [{"number": number, "value": 0.5, "checkpoint": "best.pt"} for number in (0, 1)]
    spec = spec_of(**{**register, "finalists": "auto"})
    assert plan_finalists(tmp_path, spec, leaders, seconds) == expected
    assert "one training takes about 10 s" in capsys.readouterr().err
    assert plan_finalists(tmp_path, spec_of(), leaders, seconds) == FinalistPlan(2, 2)


@pytest.mark.parametrize(
    ("register", "seconds"),
    [
        ({"finalists": 3, "seeds": 2}, 60 + 6 * 10),
        ({"finalists": 0}, 60),
        ({"finalists": "auto", "seeds": 2}, 60 + 2 * 10),  # a third of a minute: one finalist, two seeds
    ],
)
def test_a_sweep_keeps_the_time_that_its_promotion_will_take(
    tmp_path: Path, register: dict[str, Any], seconds: float
) -> None:
    """The leader has five epochs of 2 s."""
    spec = replace(spec_of(**register), budget=BudgetPart(minutes=1.0))
    controller = Controller(spec, None, tmp_path, lambda settings: ONE_CORE)  # type: ignore[arg-type]
    assert promotion_seconds(spec, controller) == 60, "no leader yet"
    trial = controller._add(0, {"lr": 0.01}, "")
    trial.value, trial.state = 0.5, "completed"
    controller.training_seconds = lambda number=None: 10.0  # type: ignore[method-assign]
    assert promotion_seconds(spec, controller) == pytest.approx(seconds)


def test_a_mean_of_trainings_is_taken_only_beyond_chance(trial_data: TrialData) -> None:
    actual = trial_data.validation.labels
    wrong = np.full((len(actual), 3), 0.01)
    wrong[np.arange(len(actual)), (actual + 1) % 3] = 0.98
    right = np.full((len(actual), 3), 0.001)
    right[np.arange(len(actual)), actual] = 0.998
    poor, good = made_up(trial_data, wrong), made_up(trial_data, right)
    spec = spec_of(ensemble=True)
    assert choose_inference(spec, trial_data, [poor, good]).members == [0, 1]
    assert choose_inference(spec, trial_data, [good, good]).members == [0]
    # The better one joins first, and the worst of all never.
    fair = made_up(trial_data, 0.5 * right + 0.5 * wrong)
    choice = choose_inference(spec, trial_data, [fair, poor, good])
    assert choice.members == [0, 2], choice.notes
    assert choose_inference(spec_of(), trial_data, [poor, good]).members == [0]


def test_two_more_trainings_may_show_what_one_more_does_not(trial_data: TrialData) -> None:
    """Each of the two knows half of the photos, and is wrong about the other half."""
    actual = trial_data.validation.labels
    first_half = np.arange(len(actual)) % 2 == 0

    def sure_of(chances: np.ndarray) -> Checkpoint:
        table = np.repeat((1 - chances)[:, None] / 2, 3, axis=1)
        table[np.arange(len(actual)), actual] = chances
        return made_up(trial_data, table)

    base = sure_of(np.linspace(0.49, 0.51, len(actual)))
    one, other = (sure_of(np.where(half, 0.9, 0.3)) for half in (first_half, ~first_half))
    spec = spec_of(ensemble=True)
    assert choose_inference(spec, trial_data, [base, one]).members == [0]
    choice = choose_inference(spec, trial_data, [base, one, other])
    assert sorted(choice.members) == [0, 1, 2], choice.notes


def test_two_splits_as_one_keep_each_rows_place() -> None:
    class Rows:
        def __init__(self, start: int, end: int) -> None:
            self.values = torch.arange(start, end)
            self.labels, self.views = self.values % 3, 2

        def take(self, rows: torch.Tensor, views: torch.Tensor, mark: Any = None) -> torch.Tensor:
            return torch.stack([self.values[rows], views], dim=1)

    joined = JoinedBatches(Rows(0, 5), Rows(5, 8))
    rows = torch.tensor([7, 0, 5, 4, 1])
    views = torch.tensor([1, 0, 0, 1, 0])
    assert joined.take(rows, views).tolist() == [[7, 1], [0, 0], [5, 0], [4, 1], [1, 0]]
    assert joined.take(torch.tensor([6]), torch.tensor([0])).tolist() == [[6, 0]]
    assert joined.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_finalists_mean_is_of_its_fresh_seeds() -> None:
    trainings = [Training("a", Path(), 0.3, 3), Training("b", Path(), 0.2, 3)]
    assert Finalist(3, 0.9, trainings).mean == pytest.approx(0.25)
