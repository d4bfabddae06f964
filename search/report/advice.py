"""Conclusions from a sweep's results: importances, the position of the good trials, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from binsweep.search.history.sweep_history import SweepHistory, TrialHistory
from binsweep.search.report.axis import axis_of, axis_value
from binsweep.search.spec.space import Choice
from binsweep.search.terminal.format import format_duration, format_metric, format_value

MIN_TRIALS = 10  # for any statement about the space
MIN_TRIALS_TO_FIX = 30  # for the statement that a parameter is unimportant
EDGE_WIDTH = 0.1  # relative to a range; the best trials lie "at the edge" within it
MAX_NARROW_WIDTH = 0.6  # relative to a range; it should be narrowed if the good trials cover less
MIN_IMPORTANCE = 0.05  # of the total; less important parameters should be fixed


def importances(history: SweepHistory) -> dict[str, float]:
    """Each searched parameter's importance, the largest first; empty below MIN_TRIALS trials.

    By Optuna's default evaluator, PED-ANOVA (Watanabe et al. 2023): how much a parameter decides whether a trial is
    among the best. A trial counts with its best epoch, even if it was stopped early.
    """
    sound = history.leaders
    if len(sound) < MIN_TRIALS or len({trial.value for trial in sound}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=history.spec.goal)
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params,
                distributions={name: history.spec.space.distributions[name] for name in trial.params},
                value=trial.value,
            )
            for trial in sound
        ]
    )
    found: dict[str, float] = optuna.importance.get_param_importances(study)
    return found


def verdict(history: SweepHistory) -> list[str]:
    """The sweep in a few sentences."""
    leaders, metric = history.leaders, history.spec.metric
    commonest = f"the commonest {history.labelling.words.noun}"
    many = f"{len(history.trials)} trial{'s' if len(history.trials) != 1 else ''}"
    if not leaders:
        return [f"{many}, none with a result yet."]
    best = leaders[0]
    which = "Best so far:" if history.status == "running" else f"The best of {many} is"
    at = f"at epoch {best.epoch} of {best.epochs}"
    lines = [f"{which} trial {best.number} with {metric} {format_metric(metric, best.value)}, {at}."]
    if metric == "val_accuracy" and history.guess is not None and best.value is not None:
        gain = 100 * (best.value - history.guess)
        side = "above" if gain >= 0 else "BELOW"
        lines.append(
            f"Always guessing {commonest} is right for {history.guess:.1%}: "
            f"the best trial is {abs(gain):.1f} points {side} that."
        )
    for name, error in history.guess_errors.items():
        if (reached := best.best.get(name, -math.inf)) >= error:
            lines.append(
                f"Always guessing {commonest} has a {name} of {format_metric(name, error)}: "
                f"the best trial, with {format_metric(name, reached)}, is no better."
            )
    if len(leaders) >= MIN_TRIALS:
        fifth = leaders[4]
        lines.append(f"Five trials reached {format_metric(metric, fifth.value)} or better.")
        latest = improvements(history)[-1][0]
        share = latest / max(history.seconds, 1e-9)
        if history.status == "finished" and share < 0.5:
            lines.append(
                f"Nothing better was found in the last {1 - share:.0%} of the time: more of the same would gain little."
            )
        elif history.status == "finished" and share > 0.8:
            lines.append("The best came late: a larger budget may well find better ones.")
    return lines


def improvements(history: SweepHistory) -> list[tuple[float, int, float, int]]:
    """Each new best value: (active seconds, epochs trained by all trials, value, trial), in order."""
    epochs_in_order = sorted(
        (at, trial.number, trial.curve[epoch])
        for trial in history.trials
        for epoch, at in trial.times.items()
        if trial.state != "failed" and trial.feasible
    )
    found: list[tuple[float, int, float, int]] = []
    for epochs, (at, number, value) in enumerate(epochs_in_order, 1):
        if math.isfinite(value) and history.spec.objective.is_better(value, found[-1][2] if found else None):
            found.append((history.active_seconds_until(at), epochs, value, number))
    return found


def next_steps(history: SweepHistory, weights: Mapping[str, float]) -> list[str]:
    """Advice on changes of the space, from the best fifth of the trials compared with all."""
    leaders = history.leaders
    if len(leaders) < MIN_TRIALS:
        have = "1 trial has" if len(leaders) == 1 else f"{len(leaders)} trials have"
        return [f"Only {have} a result: too few to say anything about the space (at least {MIN_TRIALS})."]
    good = leaders[: max(3, len(leaders) // 5)]
    idle = [
        name
        for name, weight in weights.items()
        if weight < MIN_IMPORTANCE and len(leaders) >= MIN_TRIALS_TO_FIX
    ]
    steps = []
    for name, dimension in history.spec.space.items():
        if name in idle or len({trial.params.get(name) for trial in leaders}) < 2:
            continue
        steps += (
            _on_choice(name, dimension, good, leaders)
            if isinstance(dimension, Choice)
            else _on_range(name, good, history)
        )
    if idle:
        values = ", ".join(f"{name} at {format_value(leaders[0].params.get(name))}" for name in idle)
        steps.append(f"Hardly any importance (each below {MIN_IMPORTANCE:.0%}): fix {values}.")
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


def _on_range(name: str, good: Sequence[TrialHistory], history: SweepHistory) -> list[str]:
    dimension = history.spec.space[name]
    axis = axis_of(dimension)
    good = [trial for trial in good if name in trial.params]  # it may be inactive
    if not good:
        return []
    places = sorted(axis.place(axis_value(dimension, trial.params[name])) for trial in good)
    low, high = places[0], places[-1]
    best: Any = good[0].params[name]
    if axis.place(axis_value(dimension, best)) <= EDGE_WIDTH and places[len(places) // 2] <= 2 * EDGE_WIDTH:
        return [
            f"{name}: the best lies at the lower edge ({format_value(best)}); "
            f"search below {format_value(axis.low)} too."
        ]
    if (
        axis.place(axis_value(dimension, best)) >= 1 - EDGE_WIDTH
        and places[len(places) // 2] >= 1 - 2 * EDGE_WIDTH
    ):
        return [
            f"{name}: the best lies at the upper edge ({format_value(best)}); "
            f"search above {format_value(axis.high)} too."
        ]
    if high - low < MAX_NARROW_WIDTH and len(good) >= 4:
        ends = [
            min(axis_value(dimension, t.params[name]) for t in good),
            max(axis_value(dimension, t.params[name]) for t in good),
        ]
        return [
            f"{name}: the best {len(good)} trials lie between {ends[0]:.3g} and {ends[1]:.3g}; narrow the range."
        ]
    return []


def balance(history: SweepHistory) -> str:
    """A warning if the workers were busy for very different times; otherwise, or with one worker, empty."""
    loads = [0.0] * history.slots
    for trial in history.trials:
        for interval in trial.intervals:
            if interval.lane < len(loads):
                loads[interval.lane] += interval.end - interval.start
    if len(loads) < 2 or max(loads) == 0 or min(loads) >= 0.7 * max(loads):
        return ""
    return (
        f"Unbalanced workers: the busiest worked {format_duration(max(loads))}, "
        f"the idlest {format_duration(min(loads))}. "
        "Shorter trials, or more of them, fill the gaps at the end."
    )
