"""The space section: values read right, every mistake reported at once."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from binsweep.search.spec.space import (
    Choice,
    Range,
    SearchSpace,
    grid_size,
    grid_values,
    to_distribution,
)
from binsweep.search.spec.space_parser import parse_space


def problems_of(dimension: Any) -> list[tuple[str, str]]:
    dimensions, problems = parse_space({"x": dimension})
    assert ("x" in dimensions) == (not problems)
    assert all(problem.hint for problem in problems)
    return [(problem.path, problem.rule) for problem in problems]


def test_lists_are_choices_and_mappings_are_ranges() -> None:
    raw = {
        "backbone": ["resnet18", "resnet34"],
        "flip": [True, False],
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "epochs": {"low": 4, "high": 32},
        "constant": {"low": 3, "high": 3},
    }
    dimensions, problems = parse_space(raw)
    assert not problems
    assert dimensions == {
        "backbone": Choice(("resnet18", "resnet34")),
        "flip": Choice((True, False)),
        "lr": Range(1e-4, 0.1, log=True),
        "epochs": Range(4, 32),
        "constant": Range(3, 3),
    }
    assert dimensions["epochs"].is_int  # type: ignore[union-attr]
    assert not dimensions["lr"].is_int  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("dimension", "path", "rule"),
    [
        ([], "space.x", "must not be empty"),
        ([1, 2, 1], "space.x[2]", "must differ"),
        ([1, True], "space.x[1]", "must differ"),
        ([[1]], "space.x[0]", "text, a finite number"),
        ([float("nan")], "space.x[0]", "finite"),
        (0.1, "space.x", "list of choices or a range"),
        (None, "space.x", "list of choices or a range"),
        ({}, "space.x.low", "low and high"),
        ({"low": 1}, "space.x.high", "low and high"),
        ({"low": 5, "high": 1}, "space.x.low", "must not exceed high (1)"),
        ({"low": 0, "high": 1, "log": True}, "space.x.low", "above 0"),
        ({"low": -1.0, "high": 1.0, "log": True}, "space.x.low", "above 0"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "space.x.step", "no step"),
        ({"low": 1, "high": 9, "step": 0}, "space.x.step", "above 0"),
        ({"low": 1, "high": 9, "step": 0.5}, "space.x.step", "must be whole"),
        ({"low": "1e-4", "high": 1}, "space.x.low", "finite number"),
        ({"low": True, "high": 1}, "space.x.low", "finite number"),
        ({"low": 0.0, "high": float("inf")}, "space.x.high", "finite number"),
        ({"low": 0, "high": 1, "log": "yes"}, "space.x.log", "true or false"),
    ],
)
def test_each_mistake_names_its_path_and_rule(dimension: Any, path: str, rule: str) -> None:
    found = problems_of(dimension)
    assert any(path == where and rule in said for where, said in found), found


def test_an_unknown_key_gets_the_nearest_one() -> None:
    _, problems = parse_space({"lr": {"low": 1, "hihg": 2, "high": 3}})
    assert [(p.path, p.value, p.hint) for p in problems] == [("space.lr.hihg", 2, "did you mean high?")]


def test_a_number_that_yaml_reads_as_text_gets_its_right_spelling() -> None:
    _, problems = parse_space({"lr": {"low": "1e-4", "high": 0.1}})
    assert "1.0e-4" in problems[0].hint


def test_all_mistakes_come_at_once() -> None:
    raw = {"a": [], "b": {"low": 2, "high": 1}, "c": 7, "d": {"low": 0, "high": 0.5, "log": True}, "ok": [1]}
    dimensions, problems = parse_space(raw)
    assert list(dimensions) == ["ok"]
    assert [p.path for p in problems] == ["space.a", "space.b.low", "space.c", "space.d.low"]


def test_a_dimension_may_depend_on_choices_and_comes_behind_them() -> None:
    raw = {
        "momentum": {"low": 0.5, "high": 0.99, "when": {"optimizer": ["sgd"]}},
        "nesterov": {"values": [True, False], "when": {"optimizer": ["sgd"], "kind": ["x"]}},
        "kind": ["x", "y"],
        "optimizer": ["adamw", "sgd"],
    }
    dimensions, problems = parse_space(raw)
    assert not problems
    assert list(dimensions) == ["kind", "optimizer", "momentum", "nesterov"]
    assert dimensions["momentum"] == Range(0.5, 0.99, when=(("optimizer", ("sgd",)),))
    params = {"kind": "y", "optimizer": "sgd", "momentum": 0.9, "nesterov": True}
    assert SearchSpace(dimensions).active(params) == {"kind": "y", "optimizer": "sgd", "momentum": 0.9}
    assert SearchSpace(dimensions).active({**params, "optimizer": "adamw"}) == {
        "kind": "y",
        "optimizer": "adamw",
    }


@pytest.mark.parametrize(
    ("when", "path", "rule"),
    [
        ({"optimiser": ["sgd"]}, "space.x.when.optimiser", "no list of choices"),
        ({"lr": [0.1]}, "space.x.when.lr", "no list of choices"),
        ({"optimizer": ["sgdd"]}, "space.x.when.optimizer", "no choice of optimizer"),
        ({"optimizer": "sgd"}, "space.x.when.optimizer", "list of values"),
        ({"optimizer": []}, "space.x.when.optimizer", "list of values"),
        ({}, "space.x.when", "must name another choice"),
        ({"x": [1]}, "space", "depend on each other"),
    ],
)
def test_a_condition_that_cannot_hold_is_a_mistake(when: Any, path: str, rule: str) -> None:
    raw = {"x": {"values": [1, 2], "when": when}, "optimizer": ["sgd"], "lr": {"low": 0.1, "high": 1.0}}
    _, problems = parse_space(raw)
    assert [(problem.path, rule in problem.rule) for problem in problems] == [(path, True)]


@pytest.mark.parametrize("raw", [{}, [], None])
def test_an_empty_space_is_a_mistake(raw: Any) -> None:
    dimensions, problems = parse_space(raw)
    assert not dimensions
    assert [p.path for p in problems] == ["space"]


def test_distributions_hold_exactly_the_values_of_the_dimension() -> None:
    assert to_distribution(Choice(("a", 2))) == CategoricalDistribution(("a", 2))
    assert to_distribution(Range(1e-4, 0.1, log=True)) == FloatDistribution(1e-4, 0.1, log=True)
    assert to_distribution(Range(4, 32)) == IntDistribution(4, 32)
    assert to_distribution(Range(16, 512, log=True)) == IntDistribution(16, 512, log=True)
    assert to_distribution(Range(3, 3)).single()


@pytest.mark.filterwarnings("error")
def test_a_step_that_misses_high_ends_at_its_last_value() -> None:
    assert to_distribution(Range(1, 10, step=4)) == IntDistribution(1, 9, step=4)
    assert to_distribution(Range(0.1, 0.35, step=0.1)) == FloatDistribution(0.1, 0.3, step=0.1)


def test_grid_values_end_unless_the_range_is_continuous() -> None:
    assert grid_values(Choice(("a", "b"))) == ("a", "b")
    assert grid_values(Range(1, 10, step=4)) == (1, 5, 9)
    assert grid_values(Range(0.1, 0.35, step=0.1)) == (0.1, 0.2, 0.3)
    assert grid_values(Range(0.5, 0.5)) == (0.5,)
    assert grid_size(Range(0.1, 0.3)) is None
    assert grid_size(Range(0, 10**12)) == 10**12 + 1
    with pytest.raises(ValueError, match="continuous"):
        grid_values(Range(0.1, 0.3))
