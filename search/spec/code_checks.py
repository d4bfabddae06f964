"""Checks of a sweep file of own training code, beyond its shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from binsweep.search.spec.checks import (
    budget_problems,
    grid_problems,
    health_problems,
    initial_point_problems,
    override_problems,
)
from binsweep.search.spec.problems import ABSENT, Problem
from binsweep.search.spec.schema import CodeFile
from binsweep.search.spec.space import Range, SearchSpace

# Rules that need no more than the losses that own code reports.
LOSS_RULES = ("loss_not_decreasing", "overfit", "overtraining", "similar_across_runs", "exploding_tensor")
TRAINER_HINT = "such as train.py:train, or package.module:train"
NAME = re.compile(r"\w[\w .:-]{0,199}")


def code_problems(file: CodeFile, space: SearchSpace) -> list[Problem]:
    """The mistakes in a sweep file of own code."""
    return [
        *_trainer_problems(file.trainer),
        *_name_problems(file, space),
        *_value_problems("params", file.params),
        *_epoch_problems(file, space),
        *_resource_problems(file),
        *health_problems(file.health, LOSS_RULES),
        *initial_point_problems(file, space),
        *grid_problems(file, space),
        *budget_problems(file),
        *override_problems(file, space),
    ]


def _trainer_problems(trainer: str) -> Iterator[Problem]:
    place, colon, function = trainer.rpartition(":")
    is_module = all(part.isidentifier() for part in place.split("."))
    if not colon or not (place.endswith(".py") or is_module) or not function.isidentifier():
        yield Problem("trainer", "must be FILE.py:FUNCTION or MODULE:FUNCTION", trainer, TRAINER_HINT)


def _name_problems(file: CodeFile, space: SearchSpace) -> Iterator[Problem]:
    for section, names in (("params", file.params), ("space", space)):
        for name in names:
            if not NAME.fullmatch(str(name)):
                rule = "must be a name of letters, digits and _ - . : and blanks"
                yield Problem(f"{section}.{name}", rule, ABSENT, "MLflow takes no others")
            elif name == "seed":
                hint = "each trial has its own, trial.seed, drawn from search.seed"
                yield Problem(f"{section}.{name}", "cannot be given", ABSENT, hint)
    for name in sorted(file.params.keys() & set(space) - {"epochs"}):
        yield Problem(f"params.{name}", "also in space", file.params[name], "keep it in one of the two")


def _value_problems(path: str, value: Any) -> Iterator[Problem]:
    """The values in params that cannot be kept with a sweep, and compared when it is resumed."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _value_problems(f"{path}.{name}", one)
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from _value_problems(f"{path}[{place}]", one)
    elif value is not None and (not isinstance(value, str | int | float) or value != value):
        rule = "must be text, a number, true, false, a list or a section of these"
        yield Problem(path, rule, value, "write a plain value")


def _epoch_problems(file: CodeFile, space: SearchSpace) -> Iterator[Problem]:
    if "epochs" in file.params:
        hint = f"write fidelity: {{epochs: {file.params['epochs']}}}"
        yield Problem("params.epochs", "belongs into fidelity", ABSENT, hint)
    if "epochs" not in space:
        return
    if "epochs" in file.fidelity.model_fields_set:
        yield Problem("fidelity.epochs", "also in space", file.fidelity.epochs, "keep it in one of the two")
    dimension = space["epochs"]
    values = [dimension.low, dimension.high] if isinstance(dimension, Range) else list(dimension.values)
    if any(type(value) is not int or value < 1 for value in values):
        yield Problem("space.epochs", "must be whole numbers from 1", values, "such as [10, 30]")
    if dimension.when:
        rule = "epochs cannot depend on a choice"
        yield Problem("space.epochs.when", rule, ABSENT, "leave out the condition")


def _resource_problems(file: CodeFile) -> Iterator[Problem]:
    for path, kind in file.resources.kinds().items():
        if kind.workers_per_trial > 1:
            rule = "own code trains in one process, which may start more of them"
            hint = "give it more cpus_per_trial or gpus_per_trial"
            yield Problem(f"{path}.workers_per_trial", rule, kind.workers_per_trial, hint)
