"""What a sweep's results say about its space: importances, where the good trials lie, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.report.svg_charts import axis_of, on_axis
from binsweep.search.spec.space import Choice, to_distribution
from binsweep.search.terminal.format import format_duration, format_metric, format_value

ENOUGH = 10  # trials below which nothing is said about the space
SURE = 30  # trials below which no parameter is said to matter little
EDGE = 0.1  # the outer part of a range in which its best trials lie "at the edge"
NARROW = 0.6  # a range is worth narrowing where the good trials cover less of it
MATTERS_LITTLE = 0.05  # of all importance


def importances(course: SweepHistory) -> dict[str, float]:
    """Each searched parameter's share of what decides over the value, most first; empty below ENOUGH trials.

    Optuna's default evaluator, PED-ANOVA (Watanabe et al. 2023): how much a parameter decides whether a trial
    is among the best. A trial counts with its best epoch, also one that was stopped early.
    """
    sound = course.leaders
    if len(sound) < ENOUGH or len({trial.value for trial in sound}) < 2:
        return {}
    distributions = {name: to_distribution(dimension) for name, dimension in course.spec.space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=course.spec.goal)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params,
                distributions={name: distributions[name] for name in trial.params},
                value=trial.value,
            )
            for trial in sound
        ]
    )
    found: dict[str, float] = optuna.importance.get_param_importances(study)
    return found


def verdict(course: SweepHistory) -> list[str]:
    """The sweep in a few sentences."""
    leaders, metric = course.leaders, course.spec.metric
    many = f"{len(course.trials)} trial{'s' if len(course.trials) != 1 else ''}"
    if not leaders:
        return [f"{many}, none with a result yet."]
    best = leaders[0]
    which = "Best so far:" if course.status == "running" else f"The best of {many} is"
    at = f"at epoch {best.epoch} of {best.epochs}"
    lines = [f"{which} trial {best.number} with {metric} {format_metric(metric, best.value)}, {at}."]
    if metric == "val_accuracy" and course.guess is not None and best.value is not None:
        gain = 100 * (best.value - course.guess)
        side = "above" if gain >= 0 else "BELOW"
        lines.append(
            f"Always guessing the commonest count is right for {course.guess:.1%}: "
            f"the best trial is {abs(gain):.1f} points {side} that."
        )
    for name, error in course.guess_errors.items():
        if (reached := best.best.get(name, -math.inf)) >= error:
            lines.append(
                f"Always guessing the commonest count has a {name} of {format_metric(name, error)}: "
                f"the best trial, with {format_metric(name, reached)}, is no better."
            )
    if len(leaders) >= ENOUGH:
        fifth = leaders[4]
        lines.append(f"Five trials reached {format_metric(metric, fifth.value)} or better.")
        latest = improvements(course)[-1][0]
        share = latest / max(course.seconds, 1e-9)
        if course.status == "finished" and share < 0.5:
            lines.append(
                f"Nothing better was found in the last {1 - share:.0%} of the time: more of the same would gain little."
            )
        elif course.status == "finished" and share > 0.8:
            lines.append("The best came late: a larger budget may well find better ones.")
    return lines


def improvements(course: SweepHistory) -> list[tuple[float, int, float, int]]:
    """Each new best: (seconds from the start, epochs trained by all trials, value, trial), in order.

    Breaks of the sweep do not count as time.
    """
    sign = 1 if course.spec.goal == "maximize" else -1
    told = sorted(
        (at, trial.number, trial.curve[epoch])
        for trial in course.trials
        for epoch, at in trial.times.items()
        if trial.state != "failed" and trial.feasible
    )
    found: list[tuple[float, int, float, int]] = []
    for epochs, (at, number, value) in enumerate(told, 1):
        if math.isfinite(value) and (not found or sign * value > sign * found[-1][2]):
            found.append((course.since_start(at), epochs, value, number))
    return found


def next_steps(course: SweepHistory, weights: Mapping[str, float]) -> list[str]:
    """What to change in the spec's space, in words; from the best fifth of the trials against all."""
    leaders = course.leaders
    if len(leaders) < ENOUGH:
        have = "1 trial has" if len(leaders) == 1 else f"{len(leaders)} trials have"
        return [f"Only {have} a result: too few to say anything about the space (at least {ENOUGH})."]
    good = leaders[: max(3, len(leaders) // 5)]
    idle = [name for name, weight in weights.items() if weight < MATTERS_LITTLE and len(leaders) >= SURE]
    steps = []
    for name, dimension in course.spec.space.items():
        if name in idle or len({trial.params.get(name) for trial in leaders}) < 2:
            continue
        steps += (
            _on_choice(name, dimension, good, leaders)
            if isinstance(dimension, Choice)
            else _on_range(name, good, course)
        )
    if idle:
        values = ", ".join(f"{name} at {format_value(leaders[0].params.get(name))}" for name in idle)
        steps.append(f"Hardly any importance (each below {MATTERS_LITTLE:.0%}): fix {values}.")
    return steps or [
        "The good trials are spread over the whole space: nothing to narrow, and none at an edge."
    ]


def _on_choice(
    name: str, dimension: Choice, good: Sequence[TrialHistory], leaders: Sequence[TrialHistory]
) -> list[str]:
    poor = [
        value
        for value in dimension.values
        if sum(trial.params.get(name) == value for trial in leaders) >= 3
        and all(trial.params.get(name) != value for trial in leaders[: len(leaders) // 2])
    ]
    if poor and len(poor) < len(dimension.values):
        which = ", ".join(map(str, poor))
        return [
            f"{name}: no trial of the better half has {which}; leave {'it' if len(poor) == 1 else 'them'} out."
        ]
    chosen = {trial.params.get(name) for trial in good}
    if len(chosen) == 1 and len(good) >= 5:
        return [f"{name}: all {len(good)} best trials have {chosen.pop()}; fix it."]
    return []


def _on_range(name: str, good: Sequence[TrialHistory], course: SweepHistory) -> list[str]:
    dimension = course.spec.space[name]
    axis = axis_of(dimension)
    good = [trial for trial in good if name in trial.params]  # it may depend on another one's value
    if not good:
        return []
    places = sorted(axis.place(on_axis(dimension, trial.params[name])) for trial in good)
    low, high = places[0], places[-1]
    best: Any = good[0].params[name]
    if axis.place(on_axis(dimension, best)) <= EDGE and places[len(places) // 2] <= 2 * EDGE:
        return [
            f"{name}: the best lies at the lower edge ({format_value(best)}); "
            f"search below {format_value(axis.low)} too."
        ]
    if axis.place(on_axis(dimension, best)) >= 1 - EDGE and places[len(places) // 2] >= 1 - 2 * EDGE:
        return [
            f"{name}: the best lies at the upper edge ({format_value(best)}); "
            f"search above {format_value(axis.high)} too."
        ]
    if high - low < NARROW and len(good) >= 4:
        ends = [
            min(on_axis(dimension, t.params[name]) for t in good),
            max(on_axis(dimension, t.params[name]) for t in good),
        ]
        return [
            f"{name}: the best {len(good)} trials lie between {ends[0]:.3g} and {ends[1]:.3g}; narrow the range."
        ]
    return []


def balance(course: SweepHistory) -> str:
    """Whether the workers were busy alike; empty where there is one, or they were."""
    loads = [0.0] * course.slots
    for trial in course.trials:
        for stretch in trial.stretches:
            if stretch.lane < len(loads):
                loads[stretch.lane] += stretch.end - stretch.start
    if len(loads) < 2 or max(loads) == 0 or min(loads) >= 0.7 * max(loads):
        return ""
    return (
        f"Unbalanced workers: the busiest worked {format_duration(max(loads))}, "
        f"the idlest {format_duration(min(loads))}. "
        "Shorter trials, or more of them, fill the gaps at the end."
    )
