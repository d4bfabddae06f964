"""Checks of a sweep file beyond its shape: single settings, and sections against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from binsweep.models.health_rules import RULES, Action, thresholds_of
from binsweep.models.labelling import NAMING, Labelling, Measure
from binsweep.models.settings import ABOVE_ONE, BOUNDS, CHOICES, TYPES, Settings
from binsweep.search.spec.backbone_checks import (
    backbone_problems,
    batch_of_one_problem,
    is_backbone,
    near_backbones,
)
from binsweep.search.spec.problems import ABSENT, Problem, nearest
from binsweep.search.spec.schema import ENDING_LIMITS, METRICS, AnySweepFile, FidelityPart, SweepFile
from binsweep.search.spec.space import Dimension, Range, SearchSpace, values_of
from binsweep.search.spec.space_parser import when_problems


def setting_problems(model: Mapping[str, Any], space: Mapping[str, Dimension]) -> Iterator[Problem]:
    """The mistakes in fixed and searched settings, each for itself."""
    for name, value in model.items():
        yield from _setting_problems(f"model.{name}", name, [value])
    for name, dimension in space.items():
        if isinstance(dimension, Range) and TYPES.get(name) is str:
            yield Problem(f"space.{name}", "cannot be a range", values_of(dimension), "list the choices")
        else:
            yield from _setting_problems(f"space.{name}", name, values_of(dimension))
    for name in sorted(name for name in set(model) & set(space) if not space[name].when):
        yield Problem(f"model.{name}", "also in space", model[name], "keep it in one of the two")


def unequal_lists(fidelity: Any) -> list[Problem]:
    """The mistake of a section `fidelity`, as it is written, whose lists differ in length."""
    if not isinstance(fidelity, dict):
        return []
    known = (name for name in FidelityPart.model_fields if isinstance(fidelity.get(name), list))
    lengths = {name: len(fidelity[name]) for name in known}
    if len(set(lengths.values())) < 2:
        return []
    rule = f"the lists go together, but are {', '.join(f'{n} ({name})' for name, n in lengths.items())} long"
    hint = "give each a value for every level: repeat one that stays the same"
    return [Problem("fidelity", rule, ABSENT, hint)]


def _setting_problems(path: str, name: Any, values: list[Any]) -> Iterator[Problem]:
    if name == "seed":
        yield Problem(path, "no such setting", ABSENT, "trials draw theirs from search.seed")
    elif name not in TYPES:
        known = [known for known in TYPES if known != "seed"]
        yield Problem(path, "no such setting", ABSENT, nearest(str(name), known))
    else:
        for value in values:
            if (problem := _value_problem(path, name, value)) is not None:
                yield problem


def _value_problem(path: str, name: str, value: Any) -> Problem | None:
    """The mistake in one value of a setting, None if it is valid."""
    kind: type = TYPES[name]
    example = f"for example {default_of(name)!r}"
    is_valid_type = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not is_valid_type:
        return Problem(path, f"must be of type {kind.__name__}", value, example)
    if name == "backbone" and not is_backbone(value):
        return Problem(path, "unknown backbone", value, near_backbones(value))
    if name in CHOICES and value not in CHOICES[name]:
        rule = f"must be one of {', '.join(CHOICES[name])}"
        return Problem(path, rule, value, nearest(value, CHOICES[name]))
    if name in BOUNDS and not BOUNDS[name][0] <= value < BOUNDS[name][1]:
        low, high = BOUNDS[name]
        upper = "at most 1" if high == ABOVE_ONE else f"below {high:g}"
        return Problem(path, f"must be at least {low:g} and {upper}", value, example)
    return None


def default_of(name: str) -> Any:
    """The default of a setting."""
    return getattr(Settings(), name)


def split_health_rule(rule: Any) -> tuple[Any, dict[str, Any]]:
    """Action and thresholds of a health rule, which is written as an action or as a section."""
    if not isinstance(rule, dict):
        return rule, {}
    return rule.get("action", "note"), {key: value for key, value in rule.items() if key != "action"}


@dataclass(frozen=True)
class SpecContext:
    """A sweep file of the right shape, with its parsed space."""

    file: SweepFile
    space: SearchSpace

    def values(self, name: str) -> list[Any]:
        """The values that a setting may take, of a range its two ends."""
        if (listed := self.file.fidelity.lists().get(name)) is not None:
            return listed
        if name in self.space:
            return values_of(self.space[name])
        return [self.file.model.get(name, default_of(name))]


def cross_problems(context: SpecContext) -> list[Problem]:
    """The mistakes in how the sections of a sweep file fit together."""
    return [problem for check in CHECKS for problem in check(context)]


def _check_objective(context: SpecContext) -> Iterator[Problem]:
    metric, goal = context.file.objective.metric, context.file.objective.goal
    if metric not in METRICS:
        yield Problem("objective.metric", "no such metric", metric, nearest(metric, list(METRICS)))
    elif goal not in (None, METRICS[metric]):
        hint = f"{METRICS[metric]} it, or leave goal out"
        yield Problem("objective.goal", f"wrong way round for {metric}", goal, hint)


def _check_labels(context: SpecContext) -> Iterator[Problem]:
    data, labelling = context.file.data, context.file.data.labelling
    if data.labels == "counts" and labelling is NAMING:
        yield Problem("data.classes", "names classes, and data.labels is counts", data.classes, "list counts")
    if labelling is not None and context.file.objective.metric in METRICS:
        beats_guess = context.file.register_.gate.beats_guess
        yield from label_problems(
            labelling, context.file.objective.metric, context.values("head"), beats_guess
        )


def label_problems(
    labelling: Labelling, metric: str, heads: Sequence[str], beats_guess: Sequence[Measure]
) -> Iterator[Problem]:
    """The mistakes in what a sweep asks for, given whether its labels are counts or names."""
    nouns = f"where labels are {labelling.words.kind}"
    if metric not in labelling.metrics:
        known = list(labelling.metrics)
        yield Problem(
            "objective.metric", f"there is no such metric {nouns}", metric, f"one of {', '.join(known)}"
        )
    for head in heads:
        if head not in labelling.heads:
            hint = f"{', '.join(labelling.heads)}: the others need numbers in an order"
            yield Problem("model.head", f"there is no such head {nouns}", head, hint)
    for measure in beats_guess:
        if measure not in labelling.tested:
            hint = f"one of {', '.join(labelling.tested)}"
            yield Problem("register.gate.beats_guess", f"there is no such score {nouns}", measure, hint)


def _check_health(context: SpecContext) -> Iterator[Problem]:
    yield from health_problems(context.file.health, RULES)


def health_problems(health: Mapping[str, Any], known: Iterable[str]) -> Iterator[Problem]:
    """The mistakes in the section `health`, in which the rules `known` may be configured."""
    for name, rule in health.items():
        if name not in known:
            yield Problem(f"health.{name}", "no such rule", ABSENT, nearest(name, list(known)))
            continue
        action, thresholds = split_health_rule(rule)
        if action not in get_args(Action):
            yield Problem(f"health.{name}", "no such action", action, f"one of {', '.join(get_args(Action))}")
        yield from _threshold_problems(name, thresholds)


def _threshold_problems(rule: str, thresholds: Mapping[str, Any]) -> Iterator[Problem]:
    defaults = thresholds_of(rule)
    for key, value in thresholds.items():
        path = f"health.{rule}.{key}"
        if key not in defaults:
            yield Problem(path, "no such threshold", ABSENT, nearest(key, ["action", *defaults]))
            continue
        hint = f"the default is {defaults[key]}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            yield Problem(path, "must be a number, zero or more", value, hint)
        elif isinstance(defaults[key], int) and not (isinstance(value, int) and value > 0):
            yield Problem(path, "must be a whole number above zero", value, hint)


def _check_split(context: SpecContext) -> Iterator[Problem]:
    split = context.file.data.split
    total = split.train + split.validation + split.test
    if abs(total - 1) > 1e-6:
        rule = "train + validation + test must add up to 1"
        yield Problem("data.split", rule, round(total, 6), "for example 0.6, 0.2, 0.2")


def _check_train_also(context: SpecContext) -> Iterator[Problem]:
    classes, also = context.file.data.classes, context.file.data.train_also
    if also is None:
        return
    if context.file.data.labelling is NAMING:
        rule = "teaches other counts, and the labels are names"
        yield Problem("data.train_also", rule, also, "leave it out, and name all classes in data.classes")
        return
    if classes is None:
        rule = "needs data.classes: without it, every count of the source is a class"
        yield Problem(
            "data.train_also", rule, also, "list the counts that models shall answer in data.classes"
        )
    elif also != "others" and (twice := sorted(set(also) & set(classes))):
        rule = f"names {', '.join(map(str, twice))}, which data.classes has as well"
        yield Problem("data.train_also", rule, also, "name other counts: the classes are trained on anyway")


def _check_fidelity(context: SpecContext) -> Iterator[Problem]:
    lists, data = context.file.fidelity.lists(), context.file.data
    for name in sorted(lists.keys() & (context.file.model.keys() | context.space.keys())):
        place = "space" if name in context.space else "model"
        yield Problem(f"fidelity.{name}", f"also in {place}", ABSENT, f"leave {name} out of {place}")
    orders: dict[str, Sequence[Any]] = {"trainable": CHOICES["trainable"]}
    for name in lists.keys() & {"image_size", "train_share", "trainable"}:
        ranks = [orders[name].index(value) if name in orders else value for value in lists[name]]
        if ranks != sorted(ranks):
            hint = f"in the order {', '.join(orders[name])}" if name in orders else "the smallest first"
            yield Problem(f"fidelity.{name}", "must go from cheap to dear", lists[name], hint)
    if data.image_size != (sizes := lists.get("image_size", [data.image_size]))[-1]:
        rule = f"must end with data.image_size, which is {data.image_size}"
        yield Problem("fidelity.image_size", rule, sizes, f"set data.image_size: {sizes[-1]}")
    if (shares := lists.get("train_share", [1.0]))[-1] != 1:
        yield Problem("fidelity.train_share", "must end with all photos", shares, "for example [0.3, 1.0]")


def _check_initial_points(context: SpecContext) -> Iterator[Problem]:
    yield from initial_point_problems(context.file, context.space)


def initial_point_problems(file: AnySweepFile, space: SearchSpace) -> Iterator[Problem]:
    """The mistakes in the configurations to try first."""
    for number, point in enumerate(file.search.initial_points or []):
        path = f"search.initial_points.{number}"
        searched = {name for name in space if space.is_active(name, point)}
        for name in sorted(point.keys() ^ searched):
            rule = "is missing: a point must give every searched value"
            rule = "is not searched there" if name in point else rule
            yield Problem(f"{path}.{name}", rule, ABSENT, f"searched: {', '.join(space)}")
        for name in sorted(point.keys() & searched):
            if not space.contains(name, point[name]):
                hint = f"space.{name} has the range or choices"
                yield Problem(f"{path}.{name}", "lies outside of the space", point[name], hint)


def _check_epochs(context: SpecContext) -> Iterator[Problem]:
    if "epochs" in context.space and context.space["epochs"].when:
        rule = "epochs cannot depend on a choice"
        yield Problem("space.epochs.when", rule, ABSENT, "leave out the condition")


def _check_grid(context: SpecContext) -> Iterator[Problem]:
    yield from grid_problems(context.file, context.space)


def grid_problems(file: AnySweepFile, space: SearchSpace) -> Iterator[Problem]:
    """The dimensions that no grid can have."""
    if file.search.sampler == "grid":
        for name, dimension in space.items():
            if isinstance(dimension, Range) and dimension.step is None and not dimension.is_int:
                hint = "list the values, or give a step"
                yield Problem(f"space.{name}", "a grid needs finitely many values", ABSENT, hint)


def _check_budget(context: SpecContext) -> Iterator[Problem]:
    yield from budget_problems(context.file)


def budget_problems(file: AnySweepFile) -> Iterator[Problem]:
    """The mistakes in the budget."""
    budget, resources = file.budget, file.resources
    # A grid ends when it is used up. A target and the like end nothing for sure: neither may ever be reached.
    endless = all(getattr(budget, name) is None for name in ENDING_LIMITS)
    if endless and file.search.sampler != "grid":
        rule = "sets no limit that is surely reached: the sweep would never end"
        yield Problem(
            "budget", rule, ABSENT, "add minutes: 60; trials, epochs, gpu_hours or money will do, too"
        )
    if budget.money is not None and not (resources.cpu_hour_price or resources.gpu_hour_price):
        rule = "nothing has a price, so it would never be spent"
        hint = "add resources.cpu_hour_price or resources.gpu_hour_price"
        yield Problem("budget.money", rule, budget.money, hint)


def _check_workers(context: SpecContext) -> Iterator[Problem]:
    overrides = context.file.resources.overrides
    for path, kind in context.file.resources.kinds().items():
        workers, gpus = kind.workers_per_trial, kind.gpus_per_trial or 0.0
        if workers == 1:
            continue
        if gpus != int(gpus):
            rule = "must be whole with several workers_per_trial: each worker needs a GPU of its own"
            yield Problem(f"{path}.gpus_per_trial", rule, gpus, "1 for each, or 0 to train on CPUs")
        condition = overrides.when.get("batch_size") if overrides and path != "resources" else None
        smallest = min(condition or context.values("batch_size"))
        if smallest < 2 * workers:
            rule = f"must be at least 2 for each of {workers} workers_per_trial, which share a batch"
            yield Problem("batch_size", rule, smallest, f"at least {2 * workers}")


def _check_overrides(context: SpecContext) -> Iterator[Problem]:
    yield from override_problems(context.file, context.space)


def override_problems(file: AnySweepFile, space: SearchSpace) -> Iterator[Problem]:
    """The mistakes in the condition of `resources.overrides`."""
    overrides = file.resources.overrides
    if overrides is not None:
        yield from when_problems("resources.overrides", tuple(overrides.when.items()), space)


def _check_batch_of_one(context: SpecContext) -> Iterator[Problem]:
    size, smallest = min(_sizes(context)), min(context.values("batch_size"))
    if smallest < 2 and set(context.values("trainable")) != {"head"}:
        hint = batch_of_one_problem(context.values("backbone"), size)
        if hint:
            rule = f"must be at least 2 where more than the head is trained at data.image_size {size}"
            yield Problem("batch_size", rule, smallest, hint)


def _sizes(context: SpecContext) -> list[int]:
    return context.file.fidelity.image_size or [context.file.data.image_size]


def _check_backbones(context: SpecContext) -> Iterator[Problem]:
    path = f"{'space' if 'backbone' in context.space else 'model'}.backbone"
    size_path = "fidelity.image_size" if context.file.fidelity.image_size else "data.image_size"
    yield from backbone_problems(path, size_path, context.values("backbone"), _sizes(context))


CHECKS = (
    _check_objective,
    _check_labels,
    _check_health,
    _check_split,
    _check_train_also,
    _check_fidelity,
    _check_initial_points,
    _check_epochs,
    _check_grid,
    _check_budget,
    _check_workers,
    _check_overrides,
    _check_backbones,
    _check_batch_of_one,
)
