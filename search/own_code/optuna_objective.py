"""An existing Optuna objective as a training function: `train = from_optuna(objective)` in the file of a trainer.

Nothing of Optuna is imported here: an objective needs it only if it raises `optuna.TrialPruned`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from binsweep.search.own_code.trial import ReportError, Trial, returned_metrics

USER_ATTRS = "user_attrs.json"
SCALARS = (str, int, float, bool)  # that a YAML list of choices can have


def from_optuna(objective: Callable[[Any], Any]) -> Callable[[Trial], None]:
    """A training function for a sweep, of a function that takes an Optuna trial and returns a value.

    What the objective suggests, the sweep decides: its spec's `space` (or `params`) has each name, within what the
    objective asks for. What it reports at a step is the sweep's metric at an epoch; its value counts if it reports
    nothing. An objective keeps no checkpoint: when its trial is resumed, it begins again. What it sets as user
    attributes is an artifact, user_attrs.json.
    """

    def train(trial: Trial) -> None:
        adapted = _OptunaTrial(trial)
        try:
            value = objective(adapted)
        except Exception as error:
            if not _is_pruned(error):
                raise
            if not adapted.reported:
                raise ReportError("TrialPruned was raised before trial.report(value, step)") from error
            return
        finally:
            adapted.keep_user_attrs()
        if adapted.reported:
            return
        metrics = returned_metrics(value, trial.metric)
        if metrics is None:
            given = f"{value!r:.60} ({type(value).__name__})"
            raise ReportError(f"the objective returned {given}, not the number that is {trial.metric}")
        trial.report(metrics)

    return train


def _is_pruned(error: BaseException) -> bool:
    """Whether an exception is optuna.TrialPruned, or of a class that is derived from it."""
    return any(
        kind.__name__ == "TrialPruned" and kind.__module__.startswith("optuna")
        for kind in type(error).__mro__
    )


class _OptunaTrial:
    """What an objective takes for an `optuna.Trial`, except for its study.

    The methods do what those of Optuna's documentation do: https://optuna.readthedocs.io/en/stable/reference/trial.html
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.number = trial.number
        self.params: dict[str, Any] = {}  # suggested until now
        self.user_attrs: dict[str, Any] = {}
        self.reported = False
        self._first_step = 0
        self._last_step = -1
        self._goes_on = True

    def __getattr__(self, name: str) -> NoReturn:
        methods = [method for method in vars(_OptunaTrial) if not method.startswith(("_", "keep"))]
        have = ", ".join([*methods, "user_attrs", "params", "number"])
        raise AttributeError(f"trial.{name}: of an Optuna trial, a sweep has {have}")

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The trial's value, which must be between `low` and `high`, and a number of steps from `low`."""
        line = _range_line(name, float(low), float(high), step, log)
        value = self._value(name, line)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        near = 1e-9 * max(abs(low), abs(high))
        is_asked = is_number and low - near <= value <= high + near
        if is_asked and step is not None:
            steps = (value - low) / step
            is_asked = math.isclose(steps, round(steps), abs_tol=1e-6)
        if not is_asked:
            self._refuse(name, value, line)
        self.params[name] = float(value)
        return float(value)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The trial's value, which must be between `low` and `high`, and a number of steps from `low`."""
        line = _range_line(name, low, high, step if step != 1 else None, log)
        value = self._value(name, line)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not (is_whole and low <= value <= high and (value - low) % step == 0):
            self._refuse(name, value, line)
        self.params[name] = value
        return int(value)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The trial's value, which must be one of `choices`."""
        if odd := [choice for choice in choices if not isinstance(choice, SCALARS)]:
            rule = f"{odd[0]!r:.60} cannot be a choice in a spec: suggest names for the choices, and look them up"
            raise ReportError(f"trial.suggest_categorical: {name}: {rule}")
        line = f"{name}: [{', '.join(map(_yaml, choices))}]"
        value = self._value(name, line)
        if value not in choices:
            self._refuse(name, value, line)
        self.params[name] = value
        return value

    def report(self, value: float, step: int) -> None:
        """Report the sweep's metric at a step: steps are epochs, counted from 0, or from what the first one is."""
        if not self.reported:
            self.reported, self._first_step = True, 1 if step == 0 else 0
        if step == self._last_step:
            return  # as in Optuna, the first value of a step counts
        epoch = step + self._first_step
        goes_on = self._trial.report({self._trial.metric: value}, epoch=epoch)
        self._last_step = step
        # After the last epoch it has ended, and is not pruned.
        self._goes_on = goes_on or epoch == self._trial.last_epoch

    def should_prune(self) -> bool:
        """Whether the sweep has stopped or paused the trial."""
        return not self._goes_on

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a value, of types that JSON has, with the trial."""
        json.dumps(value)
        self.user_attrs[key] = value

    def keep_user_attrs(self) -> None:
        """Keep what was set, as an artifact of the trial."""
        if self.user_attrs:
            file = self._trial.folder / USER_ATTRS
            file.write_text(json.dumps(self.user_attrs, indent=1))
            self._trial.artifact(file)

    def _value(self, name: str, line: str) -> Any:
        if name not in self._trial.params:
            raise ReportError(f"the objective suggests {name}, which the spec lacks: add to space:  {line}")
        return self._trial.params[name]

    def _refuse(self, name: str, value: Any, line: str) -> NoReturn:
        rule = f"{name} is {value!r} by the spec, which the objective does not ask for"
        raise ReportError(f"{rule}: write into space:  {line}")


def _range_line(name: str, low: float, high: float, step: float | None, log: bool) -> str:
    """The line of a range in a spec's space."""
    parts = [f"low: {_yaml(low)}", f"high: {_yaml(high)}"]
    if step is not None:
        parts.append(f"step: {_yaml(step)}")
    if log:
        parts.append("log: true")
    return f"{name}: {{{', '.join(parts)}}}"


def _yaml(value: Any) -> str:
    """A value as YAML reads it back: a float with a point, which 1e-05 lacks; text in quotes where it needs them."""
    if isinstance(value, float):
        text = repr(value)
        mantissa, e, exponent = text.partition("e")
        return f"{mantissa}.0e{exponent}" if e and "." not in mantissa else text
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum() and value[0].isalpha():
        plain = value.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
        return value if plain else json.dumps(value)
    return json.dumps(value)
