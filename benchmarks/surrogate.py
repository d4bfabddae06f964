"""Tasks from a directory of learning-curve surrogates in the form that YAHPO Gym publishes.

`model.onnx` with inputs `x_cat` and `x_cont`, whose columns `inputs.json` names; `encoding.json` turns
categories into integers; `outputs.json` names the columns of the answer; `config_space.json` is the space.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from binsweep.search.spec.objective import Goal
from binsweep.search.spec.space import Choice, Dimension, Range, SearchSpace

FRACTION_LEVELS = (
    27  # a fidelity that is a fraction, such as a train size, is divided into this many "epochs"
)


@dataclass(frozen=True)
class Columns:
    """The roles of the surrogate's columns."""

    value: str
    goal: Goal
    cost: str
    fidelity: str
    instance: str


class Surrogate:
    """One surrogate directory, which its instances share."""

    def __init__(self, folder: Path, columns: Columns) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.columns = columns
        inputs = json.loads((folder / "inputs.json").read_text())
        self.categorical, self.continuous = inputs["x_cat"], inputs["x_cont"]
        self.encoding = json.loads((folder / "encoding.json").read_text())
        self.outputs = json.loads((folder / "outputs.json").read_text())
        definition = json.loads((folder / "config_space.json").read_text())
        parameters = {p["name"]: p for p in definition["hyperparameters"]}
        _known("--value", columns.value, self.outputs)
        _known("--cost", columns.cost, self.outputs)
        _known("--fidelity", columns.fidelity, [name for name in self.continuous if name in parameters])
        _known("--instance-column", columns.instance, self.categorical)
        self.fidelities = _levels(parameters.pop(columns.fidelity))
        parameters.pop(columns.instance, None)
        dimensions = {name: _dimension(parameter) for name, parameter in parameters.items()}
        self.conditions = definition.get("conditions", [])
        for condition in self.conditions:
            _depend(dimensions, condition)
        self.space = SearchSpace(dimensions)
        self.instances = [name for name in self.encoding[columns.instance] if name != "#na#"]


class SurrogateTask:
    """One instance (data set) of a surrogate as something to tune; implements `search.strategy.simulator.Task`."""

    def __init__(self, surrogate: Surrogate, instance: str) -> None:
        self.space, self.goal = surrogate.space, surrogate.columns.goal
        self.max_epochs = len(surrogate.fidelities)
        self._surrogate, self._instance = surrogate, instance

    def curve(self, params: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
        values, seconds = self.curves([params])
        return values[0].tolist(), seconds[0].tolist()

    def curves(self, many: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Values and cumulative seconds of many configurations, each of shape [n, max_epochs]."""
        s, levels = self._surrogate, self.max_epochs
        rows = [{**_active(params, s.conditions), s.columns.instance: self._instance} for params in many]
        cat = np.array([[_code(s.encoding[c], row.get(c)) for c in s.categorical] for row in rows], np.int32)
        cont = np.array([[float(row.get(c, 0.0)) for c in s.continuous] for row in rows], np.float32)
        cont = np.repeat(cont, levels, axis=0)
        cont[:, s.continuous.index(s.columns.fidelity)] = np.tile(s.fidelities, len(rows))
        names = [i.name for i in s.session.get_inputs()]
        feed = {names[0]: np.repeat(cat, levels, axis=0), names[1]: cont}
        out = s.session.run(None, feed)[0].reshape(len(rows), levels, -1)
        seconds = np.maximum.accumulate(np.maximum(out[:, :, s.outputs.index(s.columns.cost)], 1e-6), axis=1)
        return out[:, :, s.outputs.index(s.columns.value)].astype(float), seconds.astype(float)


def _depend(space: dict[str, Dimension], condition: Mapping[str, Any]) -> None:
    """Add a condition on a choice to a dimension, if it can be expressed so; `_active` handles all conditions."""
    parent = space.get(condition.get("parent", ""))
    if condition["type"] in ("EQ", "IN") and isinstance(parent, Choice):
        allowed = [str(value) for value in condition.get("values", [condition.get("value")])]
        values = tuple(value for value in parent.values if str(value) in allowed)
        space[condition["child"]] = replace(space[condition["child"]], when=((condition["parent"], values),))


def _known(option: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise SystemExit(f"{option} {name}: the surrogate has no such column; it has {', '.join(known)}")


def _code(encoding: Mapping[str, int], value: Any) -> int:
    """A category's number; an inactive parameter is `#na#`."""
    text = "#na#" if value is None else str(value)
    return int(encoding[text if text in encoding else text.lower()])


def _active(params: Mapping[str, Any], conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Without the parameters whose condition does not hold."""
    active = dict(params)
    changed = True
    while changed:  # a child of an inactive parent is inactive too
        off = {c["child"] for c in conditions if c["child"] in active and not _holds(c, active)}
        changed = bool(off)
        active = {name: value for name, value in active.items() if name not in off}
    return active


def _holds(condition: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    kind = condition["type"]
    if kind in ("AND", "OR"):
        parts = [_holds(part, params) for part in condition["conditions"]]
        return all(parts) if kind == "AND" else any(parts)
    value = params.get(condition["parent"])
    if value is None:
        return False
    if kind == "IN":
        return str(value) in [str(allowed) for allowed in condition["values"]]
    wanted = condition["value"]
    if kind in ("GT", "LT"):
        return bool(value > wanted) if kind == "GT" else bool(value < wanted)
    return (str(value) == str(wanted)) == (kind == "EQ")


def _dimension(parameter: Mapping[str, Any]) -> Dimension:
    kind = parameter["type"]
    if kind == "constant":
        return Choice((parameter["value"],))
    if kind in ("categorical", "ordinal"):
        return Choice(tuple(parameter["choices" if kind == "categorical" else "sequence"]))
    cast = int if kind.endswith("int") else float
    return Range(cast(parameter["lower"]), cast(parameter["upper"]), bool(parameter.get("log", False)))


def _levels(parameter: Mapping[str, Any]) -> list[float]:
    low, high = parameter["lower"], parameter["upper"]
    if parameter["type"].endswith("int"):
        return [float(level) for level in range(low, high + 1)]
    return np.linspace(low, high, FRACTION_LEVELS).tolist()
