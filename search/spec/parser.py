"""Reading a sweep file: YAML and overrides in, a validated `SweepSpec` out, all mistakes reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from binsweep.data.errors import UserError
from binsweep.data.labels import Label, kind_of
from binsweep.data.split import Split
from binsweep.models.health_rules import HealthRule
from binsweep.models.labelling import MIN_CLASSES_FOR_TOP, labelling_of
from binsweep.models.levels import Level
from binsweep.models.settings import TYPES, Settings
from binsweep.search.spec.checks import (
    SpecContext,
    cross_problems,
    label_problems,
    setting_problems,
    split_health_rule,
)
from binsweep.search.spec.objective import Goal, Objective
from binsweep.search.spec.problems import ABSENT, Problem, nearest
from binsweep.search.spec.renamed_keys import RENAMED_KEYS
from binsweep.search.spec.schema import (
    DEFAULT_MODEL,
    BudgetPart,
    DataPart,
    FidelityPart,
    RegisterPart,
    ResourcesPart,
    SearchPart,
    SweepFile,
    known_keys,
)
from binsweep.search.spec.space import SearchSpace, values_of
from binsweep.search.spec.space_parser import parse_space
from binsweep.search.spec.yaml_file import NotYaml, YamlDocument, read_yaml, with_yaml_hint
from binsweep.tracking.promotion.gate import PromotionCriteria

WEIGHTS_KEYWORDS = ("imagenet", "none")  # values of model.weights that are no path


@dataclass(frozen=True)
class SweepSpec:
    """A valid sweep: `settings` has the fixed values, `space` the searched ones, `raw` is the resolved file."""

    name: str
    data: DataPart
    settings: Settings
    space: SearchSpace
    objective: Objective
    search: SearchPart
    budget: BudgetPart
    resources: ResourcesPart
    health: dict[str, HealthRule]
    register: RegisterPart
    gate: PromotionCriteria
    fidelity: FidelityPart
    raw: dict[str, Any]

    @property
    def metric(self) -> str:
        """The metric that is optimised."""
        return self.objective.metric

    @property
    def goal(self) -> Goal:
        """Whether the metric is maximised or minimised."""
        return self.objective.goal

    def model_name(self, classes: Sequence[Label]) -> str:
        """The registered model that `promote` writes to; where classes have names, the default is the sweep's name."""
        named = kind_of(classes) == "names" and self.register.model == DEFAULT_MODEL
        return self.name if named else self.register.model

    @property
    def split(self) -> Split:
        """How the data are split."""
        return Split(**self.data.split.model_dump())

    @property
    def limits(self) -> Mapping[str, float]:
        """The upper limits of a candidate's costs, by their names."""
        return self.objective.limits

    @property
    def max_epochs(self) -> int:
        """The longest training of any trial; with fidelity levels, of those whose epochs `fidelity` does not list."""
        return int(max(values_of(self.space["epochs"]))) if "epochs" in self.space else self.settings.epochs

    @property
    def level_epochs(self) -> tuple[int | None, ...]:
        """The epochs of each fidelity level; None where they are the configuration's own."""
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

    def trial_settings(self, params: Mapping[str, Any], seed: int) -> Settings:
        """The settings of one trial: fixed values, overridden by suggested ones and its own seed."""
        names = {field.name for field in fields(Settings)}
        fixed = {name: getattr(self.settings, name) for name in names}
        return Settings(**{**fixed, **params, "seed": seed})


# Pydantic errors in our words, with the correction. The braces are filled from the error.
_PYDANTIC_RULES = {
    **dict.fromkeys(
        ("model_type", "dict_type"),
        ("must be a section of keys", "write its keys below it, indented, or leave it out"),
    ),
    "list_type": ("must be a list", "in brackets, such as [1, 2, 3]"),
    "greater_than_equal": ("must be at least {ge}", "choose a larger number"),
    "greater_than": ("must be above {gt}", "choose a larger number"),
    "less_than_equal": ("must be at most {le}", "choose a smaller number"),
    "less_than": ("must be below {lt}", "choose a smaller number"),
    "finite_number": ("must be a finite number", "write it with digits"),
    **dict.fromkeys(("int_type", "int_from_float"), ("must be a whole number", "write it without quotes")),
    "float_type": ("must be a number", "write it without quotes"),
    "bool_type": ("must be true or false", "write it without quotes"),
    "string_type": ("must be text", "write it in quotes"),
    "string_too_long": ("must have at most {max_length} characters", "shorten it"),
    "string_pattern_mismatch": ("must match {pattern}", "use other characters"),
    "literal_error": ("must be {expected}", "write one of these"),
    "too_short": ("must have at least {min_length} items", "add some"),
}


def _shape_problems(error: ValidationError) -> list[Problem]:
    problems = []
    for item in error.errors():
        path = [step for step in item["loc"] if not (isinstance(step, str) and "[" in step)]
        key = ".".join(str(step) for step in path)
        if key in RENAMED_KEYS:
            problems.append(Problem(key, "was renamed", ABSENT, f"write {RENAMED_KEYS[key]}"))
        elif item["type"] == "extra_forbidden":
            hint = nearest(str(path[-1]), known_keys(path))
            problems.append(Problem(key, "unknown key", ABSENT, hint))
        elif item["type"] == "missing":
            problems.append(Problem(key, "required key is missing", ABSENT, f"add {key}"))
        elif item["type"] in _PYDANTIC_RULES:
            rule, hint = _PYDANTIC_RULES[item["type"]]
            problems.append(Problem(key, rule.format(**item.get("ctx", {})), item["input"], hint))
        else:
            message = item["msg"].removeprefix("Value error, ")
            rule = message[0].lower() + message[1:]
            problems.append(Problem(key, rule, item["input"], "sweeps/abid.yaml is an example"))
    return problems


def check_labels(spec: SweepSpec, classes: Sequence[Label]) -> None:
    """Raise UserError for what a spec asks for that the classes of its data, which are known now, do not have."""
    labelling = labelling_of(classes)
    problems = list(label_problems(labelling, spec.metric, spec.values("head"), spec.gate.beats_guess))
    if spec.metric == "val_top3_accuracy" and len(classes) < MIN_CLASSES_FOR_TOP:
        rule = f"needs at least {MIN_CLASSES_FOR_TOP} classes, and {spec.data.source} has {len(classes)}"
        problems.append(Problem("objective.metric", rule, spec.metric, "val_accuracy, or another"))
    _raise(problems, spec.name)


def _raise(problems: Sequence[Problem], where: str) -> None:
    if problems:
        lines = [str(problem) for problem in problems]
        count = f"{len(lines)} mistakes" if len(lines) > 1 else "1 mistake"
        raise UserError("\n  ".join([f"{where}: {count}", *lines]))


def parse_spec(raw: Any, where: str = "spec", document: YamlDocument | None = None) -> SweepSpec:
    """Validate a loaded YAML document. Raises one UserError that lists every mistake with key, rule and value.

    `document` is the YAML that `raw` was read from, with the mistakes found while reading it.
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
        file = SweepFile.model_validate(raw)
    except ValidationError as error:
        problems += _shape_problems(error)
    section = raw.get("space")
    dimensions, found = parse_space(section) if isinstance(section, dict) else ({}, [])
    problems += found
    model = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    assert isinstance(model, dict)
    problems += setting_problems(model, dimensions)
    context = None
    if file is not None and not problems:
        context = SpecContext(file, SearchSpace(dimensions))
        problems += cross_problems(context)
    _raise([with_yaml_hint(problem, document.bare_words) for problem in problems], where)
    assert file is not None and context is not None
    typed = {name: TYPES[name](value) for name, value in file.model.items()}
    last = {name: values[-1] for name, values in file.fidelity.lists().items() if name in TYPES}
    resolved = file.model_dump(by_alias=True)
    objective = file.objective.resolved()
    resolved["objective"]["goal"] = objective.goal
    return SweepSpec(
        name=file.name,
        data=file.data,
        settings=Settings(**typed, **last),
        space=context.space,
        objective=objective,
        search=file.search,
        budget=file.budget,
        resources=file.resources,
        health={name: HealthRule(*split_health_rule(rule)) for name, rule in file.health.items()},
        register=file.register_,
        gate=PromotionCriteria(**file.register_.gate.model_dump()),
        fidelity=file.fidelity,
        raw=resolved,
    )


def set_key(raw: dict[str, Any], assignment: str) -> dict[str, str]:
    """Apply one `--set key.path=value`, whose value is YAML. Raises UserError if it is no assignment.

    Returns the bare words that YAML reads as true or false, by their paths.
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
    return {f"{key}.{path}".rstrip("."): word for path, word in document.bare_words.items()}


def _absolute(value: Any, keywords: Sequence[str] = ()) -> Any:
    if not isinstance(value, str) or value in keywords or "://" in value:
        return value
    return str(Path(value).expanduser().absolute())


def _make_paths_absolute(raw: dict[str, Any]) -> None:
    """Workers and `promote` run in other folders, where a path must mean the same file."""
    for section, key, keywords in (
        ("data", "source", ()),
        ("data", "exclude", ()),
        ("model", "weights", WEIGHTS_KEYWORDS),
        ("space", "weights", WEIGHTS_KEYWORDS),
        ("resources.overrides.when", "weights", WEIGHTS_KEYWORDS),
    ):
        part: Any = raw
        for step in section.split("."):
            part = part.get(step) if isinstance(part, dict) else None
        if isinstance(part, dict) and key in part:
            value = part[key]
            part[key] = (
                [_absolute(v, keywords) for v in value]
                if isinstance(value, list)
                else _absolute(value, keywords)
            )


def _read(path: Path, assignments: Sequence[str]) -> YamlDocument:
    """Read a sweep file and apply `--set` assignments. Raises UserError if it is not YAML."""
    try:
        document = read_yaml(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no sweep file {path}", "examples are in sweeps/") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", "give a YAML file") from error
    except NotYaml as error:
        raise UserError(f"{path}{error.where}: {error.what}", error.hint) from error
    if isinstance(document.value, dict):
        for assignment in assignments:
            document.bare_words |= set_key(document.value, assignment)
    return document


def read_raw(path: Path, assignments: Sequence[str] = ()) -> Any:
    """A sweep file as written, with `--set` assignments. Raises UserError for mistakes in its YAML."""
    document = _read(path, assignments)
    _raise(document.problems, str(path))
    return document.value


def load_spec(path: Path, assignments: Sequence[str] = ()) -> SweepSpec:
    """Read, override with `--set` assignments, and validate a sweep file."""
    document = _read(path, assignments)
    if isinstance(document.value, dict):
        _make_paths_absolute(document.value)
    return parse_spec(document.value, str(path), document)
