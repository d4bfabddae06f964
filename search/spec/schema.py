"""The sections of a sweep file, their keys, types and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator

from binsweep.data.labels import Label, LabelKind, kind_of
from binsweep.data.split import SplitBy
from binsweep.models.engines.names import EngineChoice
from binsweep.models.labelling import COUNTING, NAMING, Labelling, Measure
from binsweep.models.levels import Level
from binsweep.models.settings import ABOVE_ONE, BOUNDS, Augment, Settings, Trainable
from binsweep.search.spec.objective import Goal, Objective
from binsweep.tracking.notifications import ChannelKind, EventKind
from binsweep.tracking.promotion.paired_tests import Correction

# Validation metrics only: a sweep must not select by anything else.
METRICS: dict[str, Goal] = {**COUNTING.metrics, **NAMING.metrics}
DEFAULT_MODEL = "bin-counter"  # also the default of the commands `serve`, `predict` and `rollback`
MAX_FINALISTS = 5  # a sweep keeps the weights of so many trials
ENDING_LIMITS = ("trials", "minutes", "epochs", "gpu_hours", "money")  # of a budget


RECEIVERS: tuple[ChannelKind, ...] = get_args(ChannelKind)
ENVIRONMENT_VARIABLE = r"\$[A-Za-z_][A-Za-z0-9_]*"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _within_bounds(name: str) -> Any:
    """The bounds of a number that is also a setting of a trial; see there."""
    low, high = BOUNDS[name]
    return Field(ge=low, le=1) if high == ABOVE_ONE else Field(ge=low, lt=high)


Fraction = Annotated[float, Field(gt=0, lt=1)]


class SplitPart(_Part):
    """Fractions of the three splits; another `seed` gives another split; `by` is what a split keeps together."""

    train: Fraction = 0.6
    validation: Fraction = 0.2
    test: Fraction = 0.2
    seed: int = 0
    by: SplitBy = "id"


def _label(value: Any) -> Any:
    if not (type(value) is int and value >= 0) and not (isinstance(value, str) and value.strip()):
        raise ValueError(
            "must be a count of at least 0, or the name of a class (in quotes, where YAML needs them)"
        )
    return value


def _unique(classes: list[Label]) -> list[Label]:
    if len(set(classes)) < len(classes):
        raise ValueError(
            "must name each count once" if kind_of(classes) == "counts" else "must name each class once"
        )
    if len({type(one) for one in classes}) > 1:
        raise ValueError("must list counts, such as [0, 1, 2], or names, such as [ok, scratched]")
    return classes


def _others_or_counts(value: Any) -> Any:
    is_list = isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)
    if value not in ("others", None) and not (is_list and value and len(set(value)) == len(value)):
        raise ValueError("must be others, or a list of different counts, such as [0, 6, 7]")
    return value


def _auto_or_finalists(value: Any) -> Any:
    if value != "auto" and not (type(value) is int and 0 <= value <= MAX_FINALISTS):
        raise ValueError(f"must be auto, or a whole number from 0 to {MAX_FINALISTS}")
    return value


def _registrable(name: str) -> str:
    """A name that MLflow can register and find again as models:/NAME@ALIAS."""
    if not re.fullmatch(r"[^/:@?\x00-\x1f\x7f]{1,250}", name) or name != name.strip() or name in (".", ".."):
        raise ValueError(
            "must be a name that MLflow can register and find again: 1 to 250 characters without / : @ ? and control "
            "characters, no blank at either end, and not . or .."
        )
    return name


def _loggable(name: str) -> str:
    """A name of a metric or parameter that MLflow takes as it is."""
    if not re.fullmatch(r"\w[\w .:-]{0,199}", name):
        raise ValueError("must be a name of letters, digits and _ - . : and blanks, such as val_loss")
    return name


class DataPart(_Part):
    """Where the photos are and how they are read."""

    source: str
    labels: LabelKind | None = None  # None: counts, if the source has whole numbers
    classes: (
        Annotated[
            list[Annotated[Label, PlainValidator(_label)]], Field(min_length=2), AfterValidator(_unique)
        ]
        | None
    ) = None
    # Other counts whose photos teach, too: "others" or a list. No validation or test photo is of them.
    train_also: Annotated[Literal["others"] | list[int] | None, PlainValidator(_others_or_counts)] = None
    licence: str = "not stated"  # for the model card
    split: SplitPart = SplitPart()
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    exclude: str | None = None  # a CSV file; its column `id` names photos to exclude from training

    @property
    def labelling(self) -> Labelling | None:
        """What to ask about its labels; None if the source decides."""
        if self.labels == "names" or kind_of(self.classes or ()) == "names":
            return NAMING
        return COUNTING if self.labels or self.classes or self.train_also else None


class FidelityPart(_Part):
    """Fidelity levels, from cheap to dear: place by place, what a training's sections are made with. Each section
    begins with the weights of the one before."""

    image_size: Annotated[list[Annotated[int, Field(ge=32, le=1024)]], Field(min_length=2)] | None = None
    train_share: (
        Annotated[list[Annotated[float, _within_bounds("train_share")]], Field(min_length=2)] | None
    ) = None
    trainable: Annotated[list[Trainable], Field(min_length=2)] | None = None
    augment: Annotated[list[Augment], Field(min_length=2)] | None = None
    epochs: Annotated[list[Annotated[int, _within_bounds("epochs")]], Field(min_length=2)] | None = None

    def lists(self) -> dict[str, list[Any]]:
        """The lists that are given."""
        return {
            name: values for name in type(self).model_fields if (values := getattr(self, name)) is not None
        }

    @property
    def n_levels(self) -> int:
        """The number of sections of a training."""
        return len(next(iter(self.lists().values()), [None]))

    def levels(self, settings: Settings, image_size: int) -> tuple[Level, ...]:
        """The sections of a training with these settings, which are those of the last one."""
        found = []
        for place in range(self.n_levels):
            changes = {name: values[place] for name, values in self.lists().items()}
            size = changes.pop("image_size", image_size)
            found.append(Level(replace(settings, **changes), size))
        return tuple(found)


class ObjectivePart(_Part):
    """What the sweep optimises. `goal` defaults to the metric's; trials over a limit are no candidates."""

    metric: str = "val_accuracy"
    goal: Goal | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None  # forward pass of one photo
    max_megabytes: Annotated[float, Field(gt=0)] | None = None  # of the weights
    cost_objective: Literal["latency_ms", "megabytes"] | None = None  # what the metric is traded off against

    def resolved(self) -> Objective:
        """The objective, with the goal and the limits by the names of their costs."""
        limits = {"latency_ms": self.max_latency_ms, "megabytes": self.max_megabytes}
        return Objective(
            METRICS[self.metric],
            self.metric,
            self.cost_objective,
            {name: limit for name, limit in limits.items() if limit is not None},
        )


class SearchPart(_Part):
    """How configurations are chosen and stopped."""

    sampler: Literal["auto", "tpe", "gp", "cmaes", "random", "grid"] = "auto"
    stopping: Literal["auto", "asha", "median", "none"] = "auto"
    # Configurations to try first; None: the recommended ones (search.workflows.first_guesses).
    initial_points: list[dict[str, Any]] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class BudgetPart(_Part):
    """When the sweep ends: at the first limit that is reached. It needs one of ENDING_LIMITS, except for a grid."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None  # configurations that are started
    minutes: Annotated[float, Field(gt=0)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None  # of all trials together
    gpu_hours: Annotated[float, Field(gt=0)] | None = None  # half a GPU counts half
    money: Annotated[float, Field(gt=0)] | None = None  # of all trials together, by the prices of `resources`
    no_improvement: Annotated[int, Field(ge=1)] | None = None  # ended trials since the best value
    target: float | None = None  # a metric value that is good enough
    trial_minutes: Annotated[float, Field(gt=0)] | None = None  # at most, for one trial

    @property
    def counts_work(self) -> bool:
        """Whether trials or epochs are limited, so that the same seed spends the budget on the same work each time."""
        return self.trials is not None or self.epochs is not None


def _whole_if_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("must be a fraction below 1 or a whole number of GPUs")
    return gpus


class ResourceOverridesPart(_Part):
    """Resources for the trials with certain choices. Keys left out are as for the other trials."""

    when: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    cpus_per_trial: Annotated[int, Field(ge=1)] | None = None
    workers_per_trial: Annotated[int, Field(ge=1)] | None = None
    memory_gib_per_trial: Annotated[float, Field(gt=0)] | None = None
    gpus_per_trial: Annotated[float, Field(ge=0), AfterValidator(_whole_if_above_one)] | None = None


class ResourcesPart(_Part):
    """Resources of one trial, or of each of its workers if it has several."""

    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    workers_per_trial: Annotated[int, Field(ge=1)] = 1  # processes that train one trial together
    # Memory that Ray reserves for a trial on its node; None: memory is not considered.
    memory_gib_per_trial: Annotated[float, Field(gt=0)] | None = None
    # For clusters that several sweeps share; None: as many as fit.
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None
    # None: all GPUs, shared by as many trials as the CPUs allow; with `overrides`, none.
    gpus_per_trial: Annotated[float, Field(ge=0), AfterValidator(_whole_if_above_one)] | None = None
    # In any currency: the report then contains the cost of the sweep, and budget.money can limit it.
    cpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    gpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    overrides: ResourceOverridesPart | None = None

    def kinds(self) -> dict[str, ResourcesPart]:
        """The resources of each kind of trial, by their section of the file."""
        if self.overrides is None:
            return {"resources": self}
        others = self.model_copy(update={"gpus_per_trial": self.gpus_per_trial or 0.0})
        return {
            "resources": others,
            "resources.overrides": others.model_copy(
                update=self.overrides.model_dump(exclude={"when"}, exclude_none=True)
            ),
        }

    def price_of(self, cpu_seconds: float, gpu_seconds: float) -> float | None:
        """What so many seconds on CPUs and GPUs cost; None without prices."""
        if self.cpu_hour_price is None and self.gpu_hour_price is None:
            return None
        hourly = cpu_seconds * (self.cpu_hour_price or 0.0) + gpu_seconds * (self.gpu_hour_price or 0.0)
        return hourly / 3600

    def of(self, params: Mapping[str, Any]) -> ResourcesPart:
        """The resources of a trial with these searched values."""
        overridden = self.overrides is not None and all(
            name in params and params[name] in values for name, values in self.overrides.when.items()
        )
        return self.kinds()["resources.overrides" if overridden else "resources"]


class GatePart(_Part):
    """What a candidate must show besides being better than the champion (tracking.promotion.gate)."""

    min_class_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_megabytes: Annotated[float, Field(gt=0)] | None = None
    approval: bool = False
    beats_guess: list[Measure] = []
    correction: Correction = "none"


class RegisterPart(_Part):
    """The registered model that `promote` writes to."""

    model: Annotated[str, AfterValidator(_registrable)] = DEFAULT_MODEL
    # Configurations that are trained again. At most as many as the sweep keeps the weights of
    # (search.recording.recorder); 0: the best trial is taken as it is; auto: as its time allows
    # (search.workflows.promote).
    finalists: Annotated[int | Literal["auto"], PlainValidator(_auto_or_finalists)] = 3
    seeds: Annotated[int, Field(ge=1, le=20)] = 2  # fresh seeds for each finalist
    ensemble: bool = False  # try averaging up to three trainings
    flip: bool = False  # try averaging over the photo and its mirror image
    refit: bool = False  # train once more on train and validation together
    engine: EngineChoice = "auto"  # what computes the served model
    gate: GatePart = GatePart()


class MailPart(_Part):
    """E-mail: its receivers, and the server that takes it (HOST or HOST:PORT)."""

    to: Annotated[list[str], Field(min_length=1)]
    from_: str = Field(alias="from")
    server: Annotated[str, Field(pattern=r"^[^\s:/]+(:[0-9]{1,5})?$")]
    user: str | None = None
    password: str | None = None


class NotifyPart(_Part):
    """Who hears of what: one of RECEIVERS, and the events that it is sent (default: all)."""

    webhook: str | None = None
    slack: str | None = None
    teams: str | None = None
    email: MailPart | None = None
    command: str | None = None
    on: Annotated[list[EventKind], Field(min_length=1)] | None = None

    @property
    def receiver(self) -> ChannelKind:
        """The one that it names."""
        return next(name for name in RECEIVERS if getattr(self, name) is not None)

    @property
    def secrets(self) -> dict[str, str]:
        """What only its owner should know, by its key."""
        found = {name: getattr(self, name) for name in ("webhook", "slack", "teams")}
        if self.email is not None:
            found["email.password"] = self.email.password
        return {name: value for name, value in found.items() if value is not None}

    @model_validator(mode="after")
    def _one_receiver(self) -> NotifyPart:
        named = [name for name in RECEIVERS if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                f"must name one of {', '.join(RECEIVERS)}, and has {' and '.join(named) or 'none'}"
            )
        return self


class SpecNotifyPart(NotifyPart):
    """The same in a spec, which is kept in MLflow for all to read: secrets are in environment variables."""

    @model_validator(mode="after")
    def _no_secrets(self) -> SpecNotifyPart:
        for name, value in self.secrets.items():
            if not re.fullmatch(ENVIRONMENT_VARIABLE, value):
                raise ValueError(
                    f"{name} must be an environment variable, $NAME: specs are kept in MLflow, for all to read"
                )
        return self


class HomeNotifyFile(_Part):
    """The file notify.yaml of a home, which only its owner reads."""

    notify: list[NotifyPart] = []


class AnySweepFile(_Part):
    """The sections of every sweep file, whatever it trains."""

    # Folders and files are named after it, and their names are limited to 255 bytes.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
    space: dict[str, Any]
    search: SearchPart = SearchPart()
    budget: BudgetPart = BudgetPart()
    resources: ResourcesPart = ResourcesPart()
    health: dict[str, Any] = {}  # by rule: an action (note, stop, ignore), or `action` and thresholds
    notify: list[SpecNotifyPart] = []


class SweepFile(AnySweepFile):
    """All sections of a sweep over photos."""

    data: DataPart
    model: dict[str, Any] = {}
    fidelity: FidelityPart = FidelityPart()
    objective: ObjectivePart = ObjectivePart()
    register_: RegisterPart = Field(default=RegisterPart(), alias="register")


class CodeFidelityPart(_Part):
    """How long a training is that a person's own code does."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 1


class CodeObjectivePart(_Part):
    """What a sweep of own code optimises: a metric that it reports."""

    metric: Annotated[str, AfterValidator(_loggable)]
    goal: Goal


class CodeGatePart(_Part):
    """What a candidate must show besides being better than the champion."""

    approval: bool = False
    correction: Correction = "none"


class CodeRegisterPart(_Part):
    """The registered model that `promote` writes to; None: one with the name of the sweep."""

    model: Annotated[str, AfterValidator(_registrable)] | None = None
    finalists: Annotated[int, Field(ge=0, le=MAX_FINALISTS)] = 3
    seeds: Annotated[int, Field(ge=1, le=20)] = 2
    gate: CodeGatePart = CodeGatePart()


class CodeFile(AnySweepFile):
    """All sections of a sweep of a person's own training code."""

    trainer: str
    params: dict[str, Any] = {}
    fidelity: CodeFidelityPart = CodeFidelityPart()
    objective: CodeObjectivePart
    register_: CodeRegisterPart = Field(default=CodeRegisterPart(), alias="register")


def known_keys(part: Any, path: Sequence[Any]) -> list[str]:
    """The keys allowed in the section of `path` of a kind of file."""
    for step in path[:-1]:
        if isinstance(step, int):  # an item of a list, whose type is known by now
            continue
        names = {(f.alias or name): f.annotation for name, f in part.model_fields.items()}
        part = names.get(step)
        part = next((kind for kind in get_args(part) if kind is not type(None)), part)  # optional ones, lists
    return [field.alias or name for name, field in part.model_fields.items()]
