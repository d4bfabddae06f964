"""Reading a sweep file: YAML and overrides in, a validated `SweepSpec` out, all mistakes reported at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from binsweep.data.errors import UserError
from binsweep.data.labels import Label
from binsweep.models.health_rules import HealthRule
from binsweep.models.labelling import MIN_CLASSES_FOR_TOP, labelling_of
from binsweep.models.settings import TYPES, Settings
from binsweep.search.spec.checks import (
    SpecContext,
    cross_problems,
    label_problems,
    setting_problems,
    split_health_rule,
    unequal_lists,
)
from binsweep.search.spec.code_checks import code_problems
from binsweep.search.spec.objective import Objective
from binsweep.search.spec.problems import ABSENT, Problem, nearest
from binsweep.search.spec.renamed_keys import RENAMED_KEYS
from binsweep.search.spec.schema import AnySweepFile, CodeFile, RegisterPart, SweepFile, known_keys
from binsweep.search.spec.space import Dimension, SearchSpace
from binsweep.search.spec.space_parser import parse_space
from binsweep.search.spec.sweep_spec import CodeSpec, PhotoSpec, SweepSpec
from binsweep.search.spec.yaml_file import NotYaml, YamlDocument, read_yaml, with_yaml_hint
from binsweep.tracking.promotion.gate import PromotionCriteria

WEIGHTS_KEYWORDS = ("imagenet", "none")  # values of model.weights that are no path
F = TypeVar("F", bound=AnySweepFile)


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
    **dict.fromkeys(("int_type", "int_from_float"), ("must be a whole number", "such as 3")),
    "float_type": ("must be a number", "such as 0.5"),
    "bool_type": ("must be true or false", "write one of the two"),
    "string_type": ("must be text", "write it in quotes"),
    "string_too_long": ("must have at most {max_length} characters", "shorten it"),
    "string_pattern_mismatch": ("must match {pattern}", "use other characters"),
    "literal_error": ("must be {expected}", "write one of these"),
    "too_short": ("must have at least {min_length} items", "add some"),
}


def _is_quoted(value: Any) -> bool:
    """Whether a value is text that YAML would read as a number, true or false without its quotes."""
    if not isinstance(value, str):
        return False
    try:
        return isinstance(read_yaml(value).value, int | float)  # true and false are ints
    except NotYaml:
        return False


def shape_problems(error: ValidationError, kind: type[BaseModel]) -> list[Problem]:
    """The mistakes in a file's shape, in our words."""
    problems = []
    for item in error.errors():
        path = [step for step in item["loc"] if not (isinstance(step, str) and "[" in step)]
        key = ".".join(str(step) for step in path)
        if key in RENAMED_KEYS:
            problems.append(Problem(key, "was renamed", ABSENT, f"write {RENAMED_KEYS[key]}"))
        elif item["type"] == "extra_forbidden":
            known = known_keys(kind, path) + ["trainer"] * (len(path) == 1 and kind is SweepFile)
            hint = nearest(str(path[-1]), known)
            problems.append(Problem(key, "unknown key", ABSENT, hint))
        elif item["type"] == "missing":
            problems.append(Problem(key, "required key is missing", ABSENT, f"add {key}"))
        elif item["type"] in _PYDANTIC_RULES:
            rule, hint = _PYDANTIC_RULES[item["type"]]
            if item["type"] in ("int_type", "float_type", "bool_type") and _is_quoted(item["input"]):
                hint = "write it without quotes"
            problems.append(Problem(key, rule.format(**item.get("ctx", {})), item["input"], hint))
        else:
            message = item["msg"].removeprefix("Value error, ")
            rule = message[0].lower() + message[1:]
            problems.append(Problem(key, rule, item["input"], "sweeps/abid.yaml is an example"))
    return problems


def check_labels(spec: PhotoSpec, classes: Sequence[Label]) -> None:
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
    parse = _parse_code if "trainer" in raw else _parse_photos
    spec, problems = parse(raw)
    problems = [*document.problems, *problems]
    _raise([with_yaml_hint(problem, document.bare_words) for problem in problems], where)
    assert spec is not None
    return spec


def _read_file(kind: type[F], raw: dict[str, Any]) -> tuple[F | None, dict[str, Dimension], list[Problem]]:
    """The sections of a file and its dimensions, with the mistakes in their shape."""
    file, problems = None, []
    try:
        file = kind.model_validate(raw)
    except ValidationError as error:
        problems += shape_problems(error, kind)
    section = raw.get("space")
    dimensions, found = parse_space(section) if isinstance(section, dict) else ({}, [])
    return file, dimensions, [*problems, *found]


def _parse_photos(raw: dict[str, Any]) -> tuple[PhotoSpec | None, list[Problem]]:
    """A sweep over photos; None with its mistakes if it has any."""
    file, dimensions, problems = _read_file(SweepFile, raw)
    model = raw.get("model") if isinstance(raw.get("model"), dict) else {}
    assert isinstance(model, dict)
    problems += setting_problems(model, dimensions)
    unequal = list(unequal_lists(raw.get("fidelity")))
    if file is None or problems:
        return None, [*problems, *unequal]
    context = SpecContext(file, SearchSpace(dimensions))
    problems += [*cross_problems(context), *unequal]
    if problems:
        return None, problems
    typed = {name: TYPES[name](value) for name, value in file.model.items()}
    last = {name: values[-1] for name, values in file.fidelity.lists().items() if name in TYPES}
    return PhotoSpec(
        **_shared_parts(file, context.space, file.objective.resolved(), file.register_),
        data=file.data,
        settings=Settings(**typed, **last),
        fidelity=file.fidelity,
    ), []


def _parse_code(raw: dict[str, Any]) -> tuple[CodeSpec | None, list[Problem]]:
    """A sweep of a person's own training code; None with its mistakes if it has any."""
    file, dimensions, problems = _read_file(CodeFile, raw)
    if file is None or problems:
        return None, problems
    space = SearchSpace(dimensions)
    problems += code_problems(file, space)
    if problems:
        return None, problems
    asked = file.register_.model_dump()
    register = RegisterPart.model_validate({**asked, "model": asked["model"] or file.name})
    objective = Objective(file.objective.goal, file.objective.metric)
    return CodeSpec(
        **_shared_parts(file, space, objective, register),
        trainer=file.trainer,
        params=file.params,
        epochs=file.fidelity.epochs,
    ), []


def _shared_parts(
    file: AnySweepFile, space: SearchSpace, objective: Objective, register: RegisterPart
) -> dict[str, Any]:
    """What every kind of spec is made of."""
    raw = file.model_dump(by_alias=True)
    raw["objective"]["goal"] = objective.goal
    return {
        "name": file.name,
        "space": space,
        "objective": objective,
        "search": file.search,
        "budget": file.budget,
        "resources": file.resources,
        "health": {name: HealthRule(*split_health_rule(rule)) for name, rule in file.health.items()},
        "register": register,
        "gate": PromotionCriteria(**register.gate.model_dump()),
        "notify": tuple(file.notify),
        "raw": raw,
    }


def set_key(raw: dict[str, Any], assignment: str) -> dict[str, str]:
    """Apply one `--set key.path=value`, whose value is YAML. Raises UserError if it is no assignment.

    Returns the bare words that YAML reads as true or false, by their paths.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(
            f"--set {assignment}: not of the form key.path=value", "for example --set budget.trials=8"
        )
    try:
        document = read_yaml(text)
    except NotYaml as error:
        raise UserError(f"--set {assignment}: the value is not YAML", "quote it") from error
    for problem in document.problems:
        raise UserError(f"--set {assignment}: {problem.rule}", problem.hint)
    assign(raw, key, document.value, f"--set {assignment}")
    return {f"{key}.{path}".rstrip("."): word for path, word in document.bare_words.items()}


def assign(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key of a loaded spec. Raises UserError, which begins with `where`, if it leads into a value."""
    *sections, name = key.split(".")
    place = raw
    for step in sections:
        place = place.setdefault(step, {})
        if not isinstance(place, dict):
            raise UserError(f"{where}: {step} is a value, not a section", "name a key of the spec")
    place[name] = value


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


def make_code_paths_absolute(raw: dict[str, Any], folder: Path) -> None:
    """Make the trainer's file, and params that begin with a dot, absolute: they are relative to their spec's folder."""
    place, colon, function = str(raw["trainer"]).rpartition(":")
    if colon and place.endswith(".py"):
        raw["trainer"] = f"{folder / Path(place).expanduser()}:{function}"
    if isinstance(raw.get("params"), dict):
        raw["params"] = _resolve(raw["params"], folder)


def _resolve(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(folder / value)
    if isinstance(value, dict):
        return {name: _resolve(one, folder) for name, one in value.items()}
    return [_resolve(one, folder) for one in value] if isinstance(value, list) else value


def read_file(path: Path) -> YamlDocument:
    """Read a sweep file. Raises UserError if it is not YAML."""
    try:
        return read_yaml(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no sweep file {path}", "examples are in sweeps/") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", "give a YAML file") from error
    except NotYaml as error:
        raise UserError(f"{path}{error.where}: {error.what}", error.hint) from error


def _read(path: Path, assignments: Sequence[str]) -> YamlDocument:
    """Read a sweep file and apply `--set` assignments. Raises UserError if it is not YAML."""
    document = read_file(path)
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
    return parse_document(_read(path, assignments), str(path), path.absolute().parent)


def parse_document(document: YamlDocument, where: str, folder: Path) -> SweepSpec:
    """Validate a document. Its photos are relative to the working directory, its training code to `folder`."""
    if isinstance(document.value, dict):
        if "trainer" in document.value:
            make_code_paths_absolute(document.value, folder)
        else:
            _make_paths_absolute(document.value)
    return parse_spec(document.value, where, document)
