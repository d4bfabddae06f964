"""A valid sweep file as the rest of the product reads it: a `PhotoSpec`, or a `CodeSpec` for own training code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from binsweep.data.labels import Label, kind_of
from binsweep.data.split import Split
from binsweep.models.health_rules import HealthRule
from binsweep.models.levels import Level, Section
from binsweep.models.settings import Settings
from binsweep.search.spec.objective import Goal, Objective
from binsweep.search.spec.schema import (
    DEFAULT_MODEL,
    BudgetPart,
    DataPart,
    FidelityPart,
    NotifyPart,
    RegisterPart,
    ResourcesPart,
    SearchPart,
)
from binsweep.search.spec.space import SearchSpace, values_of
from binsweep.tracking.promotion.gate import PromotionCriteria


@dataclass(frozen=True)
class SweepSpec:
    """A valid sweep, whatever it trains: `space` has the searched values, `raw` is the resolved file.

    An interface; not of ABCMeta, whose method `register` dataclasses would take for a field's default.
    """

    name: str
    space: SearchSpace
    objective: Objective
    search: SearchPart
    budget: BudgetPart
    resources: ResourcesPart
    health: dict[str, HealthRule]
    register: RegisterPart
    gate: PromotionCriteria
    notify: tuple[NotifyPart, ...]
    raw: dict[str, Any]

    @property
    def metric(self) -> str:
        """The metric that is optimised."""
        return self.objective.metric

    @property
    def goal(self) -> Goal:
        """Whether the metric is maximised or minimised."""
        return self.objective.goal

    def model_name(self, classes: Sequence[Label] = ()) -> str:
        """The registered model that `promote` writes to."""
        return self.register.model

    @property
    def limits(self) -> Mapping[str, float]:
        """The upper limits of a candidate's costs, by their names."""
        return self.objective.limits

    @property
    def source(self) -> str:
        """What is trained on or with, for people: the photos, or the training code."""
        raise NotImplementedError

    @property
    def max_epochs(self) -> int:
        """The longest training of any trial; with fidelity levels, of those whose epochs `fidelity` does not list."""
        raise NotImplementedError

    @property
    def level_epochs(self) -> tuple[int | None, ...]:
        """The epochs of each fidelity level; None where they are the configuration's own."""
        raise NotImplementedError

    def sections(self, params: Mapping[str, Any], seed: int) -> tuple[Section, ...]:
        """The sections of a trial's training: fixed values, overridden by suggested ones and its own seed."""
        raise NotImplementedError

    def trial_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that a trial is given, by name: fixed values, overridden by suggested ones."""
        raise NotImplementedError


@dataclass(frozen=True)
class CodeSettings:
    """What a person's own training code is given: fixed `params` and searched values together."""

    params: Mapping[str, Any]
    epochs: int
    seed: int

    def run_params(self) -> dict[str, Any]:
        """The parameters of its run in MLflow."""
        return {**self.params, "epochs": self.epochs, "seed": self.seed}


@dataclass(frozen=True)
class CodeSection:
    """The one section of a training by a person's own code."""

    settings: CodeSettings
    name: str = "training"


@dataclass(frozen=True)
class CodeSpec(SweepSpec):
    """A sweep of a person's own training code.

    `trainer` is FILE.py:FUNCTION with the absolute path of the file, or package.module:FUNCTION. `params` are fixed
    values; relative paths among them (./... and ../...) are absolute here.
    """

    trainer: str
    params: dict[str, Any]
    epochs: int  # of a training, where the space does not have them

    @property
    def source(self) -> str:
        return self.trainer

    @property
    def trainer_file(self) -> Path | None:
        """The file of the training function; None if it is in an installed package."""
        place, _, _ = self.trainer.rpartition(":")
        return Path(place) if place.endswith(".py") else None

    @property
    def max_epochs(self) -> int:
        return int(max(values_of(self.space["epochs"]))) if "epochs" in self.space else self.epochs

    @property
    def level_epochs(self) -> tuple[int | None, ...]:
        return (None,)

    def sections(self, params: Mapping[str, Any], seed: int) -> tuple[CodeSection, ...]:
        epochs = int(params.get("epochs", self.epochs))
        return (CodeSection(CodeSettings(self.trial_values(params), epochs, seed)),)

    def trial_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.params, **params}


@dataclass(frozen=True)
class PhotoSpec(SweepSpec):
    """A sweep of networks that learn from photos; `settings` has the fixed values."""

    data: DataPart
    settings: Settings
    fidelity: FidelityPart

    def model_name(self, classes: Sequence[Label] = ()) -> str:
        """The registered model that `promote` writes to; where classes have names, the default is the sweep's name."""
        named = kind_of(classes) == "names" and self.register.model == DEFAULT_MODEL
        return self.name if named else self.register.model

    @property
    def source(self) -> str:
        return self.data.source

    @property
    def split(self) -> Split:
        """How the data are split."""
        return Split(**self.data.split.model_dump())

    @property
    def max_epochs(self) -> int:
        return int(max(values_of(self.space["epochs"]))) if "epochs" in self.space else self.settings.epochs

    @property
    def level_epochs(self) -> tuple[int | None, ...]:
        return tuple(self.fidelity.epochs or [None] * self.fidelity.n_levels)

    @property
    def image_sizes(self) -> list[int]:
        """The sizes that photos are decoded at, that of the last fidelity level first."""
        return list(dict.fromkeys([self.data.image_size, *(self.fidelity.image_size or [])]))

    def levels(self, settings: Settings) -> tuple[Level, ...]:
        """The sections of a training with these settings; one without fidelity levels."""
        return self.fidelity.levels(settings, self.data.image_size)

    def values(self, name: str) -> list[Any]:
        """Every value that a setting may take in this sweep; of a range, its two ends."""
        if (listed := self.fidelity.lists().get(name)) is not None:
            return list(dict.fromkeys(listed))
        fixed = [getattr(self.settings, name)]
        if name not in self.space:
            return fixed
        searched = values_of(self.space[name])
        return searched + [value for value in fixed if self.space[name].when and value not in searched]

    def sections(self, params: Mapping[str, Any], seed: int) -> tuple[Level, ...]:
        return self.levels(self.trial_settings(params, seed))

    def trial_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**asdict(self.settings), **params}

    def trial_settings(self, params: Mapping[str, Any], seed: int) -> Settings:
        """The settings of one trial: fixed values, overridden by suggested ones and its own seed."""
        names = {field.name for field in fields(Settings)}
        fixed = {name: getattr(self.settings, name) for name in names}
        return Settings(**{**fixed, **params, "seed": seed})
