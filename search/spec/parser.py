"""The sweep specification: YAML in, validated data out, every mistake of the file reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from binsweep.data.errors import UserError
from binsweep.data.split import Split, SplitBy
from binsweep.models.health_rules import RULES, Action, HealthRule, thresholds_of
from binsweep.models.network import ARCHITECTURES
from binsweep.models.settings import BOUNDS, CHOICES, TYPES, Settings
from binsweep.search.spec.space import (
    ABSENT,
    Choice,
    Dimension,
    Problem,
    Range,
    contains,
    is_active,
    parse_space,
    when_problems,
)
from binsweep.search.spec.yaml_file import NotYaml, YamlDocument, hinted, read_yaml
from binsweep.tracking.promotion.gate import Correction, Measure, PromotionCriteria

# Selection uses validation only.
METRICS = {"val_accuracy": "maximize", "val_loss": "minimize", "val_rmse": "minimize", "val_mae": "minimize"}


WORDS = ("imagenet", "none")  # what model.weights may be beside a path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(gt=0, lt=1)]


class SplitPart(_Part):
    """Fractions of the three splits; `seed` draws another division; `by` says what is kept together."""

    train: Fraction = 0.6
    validation: Fraction = 0.2
    test: Fraction = 0.2
    seed: int = 0
    by: SplitBy = "id"


def _each_once(classes: list[int]) -> list[int]:
    if len(set(classes)) < len(classes):
        raise ValueError("must name each count once")
    return classes


def _registrable(name: str) -> str:
    """What MLflow registers, and finds again by the address models:/NAME@ALIAS."""
    if not re.fullmatch(r"[^/:@?\x00-\x1f\x7f]{1,250}", name) or name != name.strip() or name in (".", ".."):
        raise ValueError(
            "must be a name that MLflow can register and find again: 1 to 250 characters, none of them / : @ ? or "
            "a control character, without a blank at either end, and not . or .."
        )
    return name


class DataPart(_Part):
    """Where the bins are and how they are read."""

    source: str
    classes: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2), AfterValidator(_each_once)] | None
    ) = None
    licence: str = "not stated"  # for the model card
    split: SplitPart = SplitPart()
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    exclude: str | None = None  # a CSV file whose column `id` names photos to leave out of training


class ObjectivePart(_Part):
    """What the sweep optimises. `goal` follows from the metric unless given; what breaks a limit is no candidate."""

    metric: str = "val_accuracy"
    goal: Literal["maximize", "minimize"] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None  # of one photo through the network
    max_megabytes: Annotated[float, Field(gt=0)] | None = None  # of the weights
    against: Literal["latency_ms", "megabytes"] | None = (
        None  # the cost that the report sets the metric against
    )


class SearchPart(_Part):
    """How configurations are chosen and stopped."""

    sampler: Literal["auto", "tpe", "gp", "cmaes", "random", "grid"] = "auto"
    stopping: Literal["auto", "asha", "median", "none"] = "auto"
    points: list[dict[str, Any]] = []  # configurations to try first
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class BudgetPart(_Part):
    """When the sweep ends: whichever comes first."""

    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    minutes: Annotated[float, Field(gt=0)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None  # of all trials together
    gpu_hours: Annotated[float, Field(gt=0)] | None = (
        None  # a trial that has half a GPU spends half of its time
    )
    no_improvement: Annotated[int, Field(ge=1)] | None = None  # trials that ended since the best value
    target: float | None = None  # a value of the metric that is good enough
    trial_minutes: Annotated[float, Field(gt=0)] | None = None  # the longest that one trial may take


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("must be a fraction below 1 or a whole number of GPUs")
    return gpus


class LargePart(_Part):
    """What the trials of certain choices get; what is left out is as for the others."""

    when: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    cpus_per_trial: Annotated[int, Field(ge=1)] | None = None
    workers_per_trial: Annotated[int, Field(ge=1)] | None = None
    memory_gib_per_trial: Annotated[float, Field(gt=0)] | None = None
    gpus_per_trial: Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)] | None = None


class ResourcesPart(_Part):
    """What one trial gets; what each of its workers gets, where it has several."""

    cpus_per_trial: Annotated[int, Field(ge=1)] = 1
    workers_per_trial: Annotated[int, Field(ge=1)] = 1  # processes that train one trial together
    # What Ray keeps free for a trial on its node; None: it is not looked at.
    memory_gib_per_trial: Annotated[float, Field(gt=0)] | None = None
    # The most trials of this sweep that run at once, for clusters that several sweeps share; None: what fits.
    trials_at_once: Annotated[int, Field(ge=1)] | None = None
    # None: what there is, shared by as many trials as the CPUs allow; beside `large`, none.
    gpus_per_trial: Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)] | None = None
    # What an hour of one costs, in any currency: the report then says what the sweep cost.
    cpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    gpu_hour_price: Annotated[float, Field(ge=0)] | None = None
    large: LargePart | None = None

    def kinds(self) -> dict[str, ResourcesPart]:
        """By the section of the file that says it, what every kind of trial gets: most, and `large` ones."""
        if self.large is None:
            return {"resources": self}
        others = self.model_copy(update={"gpus_per_trial": self.gpus_per_trial or 0.0})
        return {
            "resources": others,
            "resources.large": others.model_copy(
                update=self.large.model_dump(exclude={"when"}, exclude_none=True)
            ),
        }

    def of(self, settings: Settings) -> ResourcesPart:
        """What a trial with these settings gets."""
        large = self.large is not None and all(
            getattr(settings, name) in values for name, values in self.large.when.items()
        )
        return self.kinds()["resources.large" if large else "resources"]


class GatePart(_Part):
    """What a champion must show beyond being better than the one before (tracking.gate.Gate)."""

    class_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_megabytes: Annotated[float, Field(gt=0)] | None = None
    approval: bool = False
    beats_guess: list[Measure] = []
    correction: Correction = "none"


class RegisterPart(_Part):
    """The registered model that `promote` writes to."""

    model: Annotated[str, AfterValidator(_registrable)] = "bin-counter"
    # As many as the sweep's folder keeps weights of (recorder.MAX_KEPT_CHECKPOINTS); 0: the best trial as it is.
    finalists: Annotated[int, Field(ge=0, le=5)] = 3  # configurations that are trained again
    seeds: Annotated[int, Field(ge=1, le=20)] = 2  # fresh ones for each
    ensemble: bool = False  # try the mean of the seeds' predictions
    flip: bool = False  # try the mean over the photo and its mirror image
    refit: bool = False  # train once more on train and validation together
    gate: GatePart = GatePart()


class _File(_Part):
    # Folders and files are named after it, and their names may have 255 bytes.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]
    data: DataPart
    model: dict[str, Any] = {}
    space: dict[str, Any]
    objective: ObjectivePart = ObjectivePart()
    search: SearchPart = SearchPart()
    budget: BudgetPart = BudgetPart()
    resources: ResourcesPart = ResourcesPart()
    health: dict[str, Any] = {}  # by rule: note, stop or ignore, or that as `action` beside thresholds
    register_: RegisterPart = Field(default=RegisterPart(), alias="register")


@dataclass(frozen=True)
class SweepSpec:
    """A valid sweep: `settings` are the fixed values, `space` the searched ones, `raw` the resolved file."""

    name: str
    data: DataPart
    settings: Settings
    space: dict[str, Dimension]
    metric: str
    goal: Literal["maximize", "minimize"]
    objective: ObjectivePart
    search: SearchPart
    budget: BudgetPart
    resources: ResourcesPart
    health: dict[str, HealthRule]
    register: RegisterPart
    gate: PromotionCriteria
    raw: dict[str, Any]

    @property
    def model_name(self) -> str:
        """The registered model that `promote` writes to."""
        return self.register.model

    @property
    def split(self) -> Split:
        """The division of the data."""
        return Split(**self.data.split.model_dump())

    @property
    def limits(self) -> dict[str, float]:
        """The most that a candidate may cost, by the cost's name."""
        asked = {"latency_ms": self.objective.max_latency_ms, "megabytes": self.objective.max_megabytes}
        return {name: limit for name, limit in asked.items() if limit is not None}

    @property
    def max_epochs(self) -> int:
        """The longest that a trial may train."""
        return int(max(values_of(self.space["epochs"]))) if "epochs" in self.space else self.settings.epochs

    def values(self, name: str) -> list[Any]:
        """Every value a setting may take in this sweep; of a range, its two ends."""
        fixed = [getattr(self.settings, name)]
        if name not in self.space:
            return fixed
        searched = values_of(self.space[name])
        return searched + [value for value in fixed if self.space[name].when and value not in searched]

    def trial_settings(self, params: Mapping[str, Any], seed: int) -> Settings:
        """The settings of one trial: fixed values, then suggested ones, then its own seed."""
        names = {field.name for field in fields(Settings)}
        fixed = {name: getattr(self.settings, name) for name in names}
        return Settings(**{**fixed, **params, "seed": seed})


def values_of(dimension: Dimension) -> list[Any]:
    """A choice's values; a range's two ends."""
    return list(dimension.values) if isinstance(dimension, Choice) else [dimension.low, dimension.high]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _known_keys(path: Sequence[Any]) -> list[str]:
    """The keys allowed beside the one at `path`."""
    part: Any = _File
    for step in path[:-1]:
        names = {(f.alias or name): f.annotation for name, f in part.model_fields.items()}
        part = names.get(step)
        part = next(
            (kind for kind in get_args(part) if kind is not type(None)), part
        )  # of what may be left out
    return [field.alias or name for name, field in part.model_fields.items()]


# What pydantic tells by the names of our classes, or without what would be right.
_KINDS = {
    **dict.fromkeys(
        ("model_type", "dict_type"),
        ("must be a section of keys", "write its keys below it, indented, or leave it out"),
    ),
    "list_type": ("must be a list", "in brackets, such as [1, 2, 3]"),
}


def _shape_problems(error: ValidationError) -> list[Problem]:
    problems = []
    for item in error.errors():
        path = [step for step in item["loc"] if not (isinstance(step, str) and "[" in step)]
        key = ".".join(str(step) for step in path)
        if item["type"] == "extra_forbidden":
            hint = _nearest(str(path[-1]), _known_keys(path))
            problems.append(Problem(key, "unknown key", ABSENT, hint))
        elif item["type"] == "missing":
            problems.append(Problem(key, "required key is missing", ABSENT, f"add {key}"))
        elif item["type"] in _KINDS:
            problems.append(Problem(key, _KINDS[item["type"]][0], item["input"], _KINDS[item["type"]][1]))
        else:
            said = item["msg"].removeprefix("Value error, ")
            rule = said[0].lower() + said[1:]
            problems.append(Problem(key, rule, item["input"], "see README.md for an example"))
    return problems


def _setting_problem(path: str, name: str, value: Any) -> Problem | None:
    """The mistake in one value of one setting, fixed or searched; None when it is fine."""
    kind = TYPES[name]
    right = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not right:
        return Problem(path, f"must be of type {kind.__name__}", value, f"for example {_example(name)!r}")
    if name == "backbone" and value not in ARCHITECTURES:
        return Problem(path, "unknown backbone", value, _nearest(value, list(ARCHITECTURES)))
    if name in CHOICES and value not in CHOICES[name]:
        return Problem(
            path, f"must be one of {', '.join(CHOICES[name])}", value, _nearest(value, CHOICES[name])
        )
    if name in BOUNDS and not BOUNDS[name][0] <= value < BOUNDS[name][1]:
        low, high = BOUNDS[name]
        return Problem(
            path, f"must be at least {low:g} and below {high:g}", value, f"for example {_example(name)!r}"
        )
    return None


def _example(name: str) -> Any:
    return getattr(Settings(), name)


def _settings_problems(model: Mapping[str, Any], space: Mapping[str, Dimension]) -> list[Problem]:
    problems = []
    for section, values in (("model", {k: [v] for k, v in model.items()}), ("space", space)):
        for name, value in values.items():
            path = f"{section}.{name}"
            if name not in TYPES or name == "seed":
                known = [known for known in TYPES if known != "seed"]
                hint = "trials draw theirs from search.seed" if name == "seed" else _nearest(str(name), known)
                problems.append(Problem(path, "no such setting", ABSENT, hint))
                continue
            options = value if isinstance(value, list) else values_of(value)
            if isinstance(value, Range) and TYPES[name] is str:
                problems.append(Problem(path, "cannot be a range", options, "list the choices"))
                continue
            found = [_setting_problem(path, name, option) for option in options]
            problems += [problem for problem in found if problem is not None]
    both = sorted(name for name in set(model) & set(space) if not space[name].when)
    problems += [Problem(f"model.{k}", "also in space", model[k], "keep it in one of the two") for k in both]
    return problems


def _health_problems(health: Mapping[str, Any]) -> Iterator[Problem]:
    for name, asked in health.items():
        if name not in RULES:
            yield Problem(f"health.{name}", "no such rule", ABSENT, _nearest(name, list(RULES)))
            continue
        action, thresholds = _asked(asked)
        if action not in get_args(Action):
            yield Problem(f"health.{name}", "no such action", action, f"one of {', '.join(get_args(Action))}")
        defaults = thresholds_of(name)
        for key, value in thresholds.items():
            path = f"health.{name}.{key}"
            if key not in defaults:
                yield Problem(path, "no such threshold", ABSENT, _nearest(key, ["action", *defaults]))
                continue
            hint = f"the default is {defaults[key]}"
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                yield Problem(path, "must be a number, zero or more", value, hint)
            elif isinstance(defaults[key], int) and not (isinstance(value, int) and value > 0):
                yield Problem(path, "must be a whole number above zero", value, hint)


def _asked(asked: Any) -> tuple[Any, dict[str, Any]]:
    """Action and thresholds of a rule, from either way to write them."""
    if not isinstance(asked, dict):
        return asked, {}
    return asked.get("action", "note"), {key: value for key, value in asked.items() if key != "action"}


def _cross_problems(file: _File, space: Mapping[str, Dimension], model: Mapping[str, Any]) -> list[Problem]:
    problems = []
    metric = file.objective.metric
    if metric not in METRICS:
        problems.append(
            Problem("objective.metric", "no such metric", metric, _nearest(metric, list(METRICS)))
        )
    elif file.objective.goal not in (None, METRICS[metric]):
        hint = f"{METRICS[metric]} it, or leave goal out"
        problems.append(Problem("objective.goal", f"wrong way round for {metric}", file.objective.goal, hint))
    problems += _health_problems(file.health)
    split = file.data.split
    total = split.train + split.validation + split.test
    if abs(total - 1) > 1e-6:
        hint = "for example 0.6, 0.2, 0.2"
        problems.append(
            Problem("data.split", "train + validation + test must add up to 1", round(total, 6), hint)
        )
    for number, point in enumerate(file.search.points):
        path = f"search.points.{number}"
        wanted = {name for name, dimension in space.items() if is_active(dimension, point)}
        for name in sorted(point.keys() ^ wanted):
            rule = (
                "is not searched there" if name in point else "is missing: a point names every searched value"
            )
            problems.append(Problem(f"{path}.{name}", rule, ABSENT, f"searched: {', '.join(space)}"))
        outside = [name for name in point.keys() & wanted if not contains(space[name], point[name])]
        problems += [
            Problem(
                f"{path}.{name}", "lies outside of the space", point[name], f"space.{name} says what may be"
            )
            for name in sorted(outside)
        ]
    if "epochs" in space and space["epochs"].when:
        hint = "leave out the condition"
        problems.append(Problem("space.epochs.when", "epochs cannot depend on a choice", ABSENT, hint))
    if file.search.sampler == "grid":
        endless = [k for k, v in space.items() if isinstance(v, Range) and v.step is None and not v.is_int]
        hint = "list the values, or give a step"
        problems += [
            Problem(f"space.{k}", "a grid needs finitely many values", ABSENT, hint) for k in endless
        ]

    def may(name: str) -> list[Any]:
        return values_of(space[name]) if name in space else [model.get(name, _example(name))]

    for path, kind in file.resources.kinds().items():
        workers, gpus = kind.workers_per_trial, kind.gpus_per_trial or 0.0
        if workers > 1 and gpus != int(gpus):
            rule = "must be whole beside workers_per_trial: each worker needs a GPU of its own"
            problems.append(
                Problem(f"{path}.gpus_per_trial", rule, gpus, "1 for each, or 0 to train on CPUs")
            )
        only = (
            large.when.get("batch_size") if (large := file.resources.large) and path != "resources" else None
        )
        smallest = min(only or may("batch_size"))
        if workers > 1 and smallest < 2 * workers:
            rule = f"must be at least 2 for each of {workers} workers_per_trial, which share a batch"
            problems.append(Problem("batch_size", rule, smallest, f"at least {2 * workers}"))
    if file.resources.large is not None:
        problems += when_problems("resources.large", tuple(file.resources.large.when.items()), space)
    # From there on a network's last stage has more than one position, and batch norm something to compare.
    least = 107 if "inception_v3" in may("backbone") else 33
    if min(may("batch_size")) < 2 and file.data.image_size < least and set(may("trainable")) != {"head"}:
        rule = f"must be at least 2 where more than the head is trained at data.image_size {file.data.image_size}"
        hint = (
            f"batch norm has nothing to compare within one so small photo: 2, or data.image_size from {least}"
        )
        problems.append(Problem("batch_size", rule, min(may("batch_size")), hint))
    if "inception_v3" in may("backbone") and file.data.image_size < 75:
        hint = "raise it, or leave inception_v3 out"
        problems.append(
            Problem("data.image_size", "inception_v3 needs at least 75", file.data.image_size, hint)
        )
    return problems


def _raise(problems: Sequence[Problem], where: str) -> None:
    if problems:
        lines = [str(problem) for problem in problems]
        many = f"{len(lines)} mistakes" if len(lines) > 1 else "1 mistake"
        raise UserError("\n  ".join([f"{where}: {many}", *lines]))


def parse_spec(raw: Any, where: str = "spec", document: YamlDocument | None = None) -> SweepSpec:
    """Validate a loaded YAML document; raises one UserError that lists every mistake with key, rule and value.

    `document` is the YAML that it comes from, with the mistakes that were found in reading it.
    """
    if raw is None:
        raise UserError(f"{where}: is empty", "see sweeps/quickstart.yaml")
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: must be a mapping of keys, not {type(raw).__name__}", "see sweeps/quickstart.yaml"
        )
    document = document or YamlDocument(raw)
    problems = list(document.problems)
    file = None
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        problems += _shape_problems(error)
    section = raw.get("space")
    space, found = parse_space(section) if isinstance(section, dict) else ({}, [])
    problems += found
    model = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    assert isinstance(model, dict)
    problems += _settings_problems(model, space)
    if file is not None and not problems:
        problems += _cross_problems(file, space, model)
    _raise([hinted(problem, document.words) for problem in problems], where)
    assert file is not None
    typed = {name: TYPES[name](value) for name, value in file.model.items()}
    resolved = file.model_dump(by_alias=True)
    resolved["objective"]["goal"] = METRICS[file.objective.metric]
    return SweepSpec(
        name=file.name,
        data=file.data,
        settings=Settings(**typed),
        space=space,
        metric=file.objective.metric,
        goal=resolved["objective"]["goal"],
        objective=file.objective,
        search=file.search,
        budget=file.budget,
        resources=file.resources,
        health={name: HealthRule(*_asked(asked)) for name, asked in file.health.items()},
        register=file.register_,
        gate=PromotionCriteria(**file.register_.gate.model_dump()),
        raw=resolved,
    )


def set_key(raw: dict[str, Any], assignment: str) -> dict[str, str]:
    """Apply one `--set key.path=value`; the value is read as YAML. Raises UserError when it is no assignment.

    Returns the words by path that YAML takes for true or false.
    """
    key, equals, text = assignment.partition("=")
    steps = key.split(".")
    if not equals or not all(steps):
        raise UserError(
            f"--set {assignment}: not of the form key.path=value", "for example --set budget.trials=8"
        )
    try:
        document = read_yaml(text)
    except NotYaml as error:
        raise UserError(f"--set {assignment}: the value is not YAML", "quote it") from error
    for problem in document.problems:
        raise UserError(f"--set {assignment}: {problem.rule}", problem.hint)
    place = raw
    for step in steps[:-1]:
        place = place.setdefault(step, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {assignment}: {step} is a value, not a section", "name a key of the spec")
    place[steps[-1]] = document.value
    return {f"{key}.{path}".rstrip("."): word for path, word in document.words.items()}


def _absolute(value: Any, words: Sequence[str] = ()) -> Any:
    if not isinstance(value, str) or value in words or "://" in value:
        return value
    return str(Path(value).expanduser().absolute())


def _make_paths_absolute(raw: dict[str, Any]) -> None:
    """Workers run in other folders, and `promote` may: a path must mean the same file there."""
    for section, key, words in (
        ("data", "source", ()),
        ("data", "exclude", ()),
        ("model", "weights", WORDS),
        ("space", "weights", WORDS),
        ("resources.large.when", "weights", WORDS),
    ):
        part: Any = raw
        for step in section.split("."):
            part = part.get(step) if isinstance(part, dict) else None
        if isinstance(part, dict) and key in part:
            value = part[key]
            part[key] = (
                [_absolute(v, words) for v in value] if isinstance(value, list) else _absolute(value, words)
            )


def _read(path: Path, assignments: Sequence[str]) -> YamlDocument:
    """A sweep file with `--set` assignments; raises UserError when it is not YAML."""
    try:
        document = read_yaml(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no sweep file {path}", "shipped ones lie in sweeps/") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", "give a YAML file") from error
    except NotYaml as error:
        raise UserError(f"{path}{error.where}: {error.what}", error.hint) from error
    if isinstance(document.value, dict):
        for assignment in assignments:
            document.words |= set_key(document.value, assignment)
    return document


def read_raw(path: Path, assignments: Sequence[str] = ()) -> Any:
    """A sweep file as it is written, with `--set` assignments; raises UserError for what is wrong in its YAML."""
    document = _read(path, assignments)
    _raise(document.problems, str(path))
    return document.value


def load_spec(path: Path, assignments: Sequence[str] = ()) -> SweepSpec:
    """Read, override with `--set` assignments, and validate a sweep file."""
    document = _read(path, assignments)
    if isinstance(document.value, dict):
        _make_paths_absolute(document.value)
    return parse_spec(document.value, str(path), document)
