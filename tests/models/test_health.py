"""Every rule fires on numbers made for it and not on healthy ones; some also in real trainings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import binsweep.models.health_monitor
from binsweep.models.health_monitor import HealthMonitor
from binsweep.models.health_rules import (
    RULES,
    HealthFinding,
    HealthRule,
    check_input_images,
    class_imbalance,
    collapsed_prediction,
    confusion,
    dead_relu,
    exploding_tensor,
    loss_not_decreasing,
    overfit,
    overtraining,
    poor_weight_initialization,
    saturated_activation,
    similar_across_runs,
    stalled_training,
    tensor_variance,
    thresholds_of,
    unchanged_tensor,
    vanishing_gradient,
    weight_update_ratio,
)
from binsweep.models.settings import Settings
from binsweep.models.train import Snapshot, TrainOptions, train
from binsweep.models.training_state import TrainingState
from binsweep.models.trial_data import TrialData

FALLING = [2.0 - 0.1 * epoch for epoch in range(15)]
FLAT = [1.0] * 15
GOOD = np.diag([8, 9, 10])
ALWAYS_LAST = np.array([[0, 0, 8], [0, 0, 9], [0, 0, 10]])
ALIVE, DEAD = torch.tensor([0.5, 0.0, 0.3]), torch.tensor([0.0, 0.0, 0.3])
LOSSES = {"train_loss": 1.5, "val_loss": 1.6}

CASES: dict[str, tuple[Callable[..., str], tuple[Any, ...], tuple[Any, ...]]] = {
    "loss_not_decreasing": (loss_not_decreasing, ([1.0, 1.2, 1.1, 1.05],), (FALLING,)),
    "overfit": (overfit, (FALLING, [loss * 1.2 for loss in FALLING]), (FALLING, [x * 1.05 for x in FALLING])),
    "overtraining": (overtraining, (FALLING, FLAT), (FALLING, FALLING)),
    "class_imbalance": (
        class_imbalance,
        ((900, 500, 50), GOOD, (1, 2, 3), False),
        ((90, 50, 50), GOOD, (1, 2, 3), False),
    ),
    "confusion": (confusion, (np.array([[2, 8], [1, 9]]), (1, 2)), (np.array([[6, 4], [1, 9]]), (1, 2))),
    "collapsed_prediction": (collapsed_prediction, (ALWAYS_LAST, (1, 2, 3)), (GOOD, (1, 2, 3))),
    "stalled_training": (stalled_training, (2000.0,), (20.0,)),
    "similar_across_runs": (
        similar_across_runs,
        (LOSSES, {4: dict(LOSSES)}),
        (LOSSES, {4: {**LOSSES, "val_loss": 1.61}}),
    ),
    "vanishing_gradient": (vanishing_gradient, ({"a": 1e-3, "b": 1e-9},), ({"a": 1e-3},)),
    "exploding_tensor": (exploding_tensor, ({"a": math.inf},), ({"a": 1e6},)),
    "dead_relu": (dead_relu, ({"a": DEAD},), ({"a": ALIVE},)),
    "saturated_activation": (saturated_activation, ({"a": torch.tensor([1.0, 1.0, 0.2])},), ({"a": ALIVE},)),
    "poor_weight_initialization": (poor_weight_initialization, (9.0, 5, ()), (1.7, 5, (1.0, 3.0))),
    "weight_update_ratio": (weight_update_ratio, ({"a": 11.0},), ({"a": 1e-3},)),
    "unchanged_tensor": (unchanged_tensor, ([{"a": 1e-7}] * 3,), ([{"a": 1e-7}, {"a": 1e-3}, {"a": 1e-7}],)),
    "tensor_variance": (tensor_variance, (5000.0,), (1.0,)),
    "check_input_images": (check_input_images, (120.0,), (-0.4,)),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_sees_what_it_is_for_and_nothing_else(rule: str) -> None:
    function, ill, healthy = CASES[rule]
    assert function(*ill) and function(*healthy) == ""


def test_the_other_side_of_rules_with_two() -> None:
    assert "raise lr" in weight_update_ratio({"a": 1e-9}) and tensor_variance(1e-7)
    assert "training loss" in overtraining(FLAT, FALLING)
    assert "variances" in poor_weight_initialization(1.6, 5, (0.01, 1.0))
    rare = np.array([[8, 0, 0], [0, 9, 0], [8, 1, 1]])
    assert "rare" in class_imbalance((90, 50, 30), rare, (1, 2, 3), False)
    assert class_imbalance((900, 500, 50), GOOD, (1, 2, 3), True) == ""
    assert class_imbalance((90, 50, 0), rare, (1, 2, 3), False) == "", (
        "no weight helps a class without photos"
    )


def findings(
    data: TrialData, rules: Mapping[str, HealthRule] | None = None, **changes: Any
) -> dict[str, HealthFinding]:
    """The findings in a real training, by rule."""
    found: list[HealthFinding] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        found.extend(finding for finding in snapshot.findings if finding.kind == "health")
        return True

    settings = replace(Settings(batch_size=16, epochs=3, augment="none", precision="fp32"), **changes)
    train(settings, data, report, TrainOptions(rules=rules))
    assert len({finding.rule for finding in found}) == len(found), "each is reported once"
    return {finding.rule: finding for finding in found}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is sampled: the trials here are short."""
    monkeypatch.setattr(binsweep.models.health_monitor, "MIN_STEPS_BETWEEN_SAMPLES", 1)
    monkeypatch.setattr(binsweep.models.health_monitor, "MIN_IMAGES_BETWEEN_SAMPLES", 1)


def test_a_healthy_training_gives_no_alarm(trial_data: TrialData, often: None) -> None:
    assert findings(trial_data, lr=1e-3).keys() <= {"overfit"}  # 54 photos are few


def test_a_far_too_high_rate_shows(trial_data: TrialData, often: None) -> None:
    found = findings(trial_data, lr=30.0, schedule="constant", epochs=5)
    assert {"weight_update_ratio", "loss_not_decreasing"} & found.keys()
    assert {"collapsed_prediction", "dead_relu"} <= found.keys()
    assert found["collapsed_prediction"].epoch >= 2  # once may be chance


def test_a_training_that_is_resumed_after_each_epoch_has_the_same_findings(
    trial_data: TrialData, often: None
) -> None:
    """Some rules must hold in epochs or steps in a row, and the first step of a process is not a training's first."""
    changes: dict[str, Any] = {"lr": 30.0, "schedule": "constant", "epochs": 4}
    settings = replace(Settings(batch_size=16, augment="none", precision="fp32"), **changes)
    found: list[HealthFinding] = []
    states: list[TrainingState] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: Snapshot) -> bool:
        found.extend(finding for finding in snapshot.findings if finding.kind == "health")
        states.append(snapshot.state())
        return False

    for _ in range(4):
        train(settings, trial_data, report, TrainOptions(start_from=states[-1] if states else None))
    whole = findings(trial_data, **changes)
    assert "collapsed_prediction" in whole
    assert {finding.rule: (finding.epoch, finding.text) for finding in found} == {
        rule: (finding.epoch, finding.text) for rule, finding in whole.items()
    }


def test_a_far_too_low_rate_shows(trial_data: TrialData, often: None) -> None:
    assert "unchanged_tensor" in findings(trial_data, lr=1e-9, weight_decay=0.0, schedule="constant")


def test_a_rule_goes_by_the_thresholds_that_are_asked_for(trial_data: TrialData) -> None:
    found = findings(trial_data, rules={"overfit": HealthRule(thresholds={"ratio_threshold": -1.0})}, lr=1e-3)
    assert "overfit" in found and found["overfit"].epoch == 1
    assert thresholds_of("overfit") == {"patience": 1, "ratio_threshold": 0.1}
    later = {"overfit": HealthRule(thresholds={"ratio_threshold": -1.0, "patience": 3})}
    assert findings(trial_data, rules=later, lr=1e-3)["overfit"].epoch == 3
    ignored = {"overfit": HealthRule("ignore", {"ratio_threshold": -1.0})}
    assert "overfit" not in findings(trial_data, rules=ignored, lr=1e-3)


def test_what_is_not_finite_shows(trial_data: TrialData) -> None:
    assert "exploding_tensor" in findings(trial_data, lr=900.0, optimizer="sgd", schedule="constant")


def watched(net: nn.Module, inputs: torch.Tensor, steps: int = 3) -> set[str]:
    """The rules that fire for a network in a few steps on given inputs."""
    labels = torch.arange(len(inputs)) % 3
    monitor = HealthMonitor(net, Settings(weights="none", trainable="all", batch_size=4), labels, (1, 2, 3))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        monitor.before_step(inputs)
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        monitor.after_backward(loss)
        optimizer.step()
        monitor.after_step(1e-3)
    metrics = {"train_loss": 1.0, "val_loss": 1.0}
    indices = labels.numpy()
    return {finding.rule for finding in monitor.epoch_done(1, [metrics], indices, indices)}


@pytest.mark.parametrize("unit", [nn.Tanh(), nn.Sigmoid()])
def test_a_saturated_layer_shows(unit: nn.Module, often: None) -> None:
    torch.manual_seed(0)
    first = nn.Linear(6, 8)
    net = nn.Sequential(first, unit, nn.Linear(8, 3))
    assert watched(net, torch.randn(12, 6)) == set()
    with torch.no_grad():
        first.weight *= 1000
    assert {"saturated_activation", "vanishing_gradient"} <= watched(net, torch.randn(12, 6).sign() * 9)


def test_a_bias_that_a_norm_removes_is_no_finding(often: None) -> None:
    """Its gradient is 0 however well the network learns."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ]
    net = nn.Sequential(*layers)
    assert "vanishing_gradient" not in watched(net, torch.randn(12, 6))
    assert net[1].bias.grad.abs().mean() < 1e-7


def test_inputs_that_are_not_normalised_show(often: None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    assert not {"check_input_images", "tensor_variance"} & watched(net, torch.randn(12, 3, 8, 8))
    assert {"check_input_images", "tensor_variance"} <= watched(net, 255 * torch.rand(12, 3, 8, 8))


def test_a_poorly_drawn_network_shows(often: None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert "poor_weight_initialization" not in watched(net, torch.randn(12, 6))
    with torch.no_grad():
        net[2].weight *= 30
    assert "poor_weight_initialization" in watched(net, torch.randn(12, 6))


def test_the_sampled_steps_are_always_the_same() -> None:
    net = nn.Linear(4, 3)
    monitor = HealthMonitor(net, Settings(batch_size=32), torch.zeros(8, dtype=torch.int64), (1, 2, 3))
    sampled = []
    for step in range(250):
        monitor.before_step(torch.zeros(2, 4))
        sampled += [step] if monitor._due else []
        monitor.after_backward(torch.tensor(1.0, requires_grad=True))
        monitor.after_step(1e-3)
    assert sampled == [0, 100, 200]
