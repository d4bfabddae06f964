"""A warm start: what a new sweep may take from earlier ones (`--warm-start`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError
from binsweep.models.levels import level_at
from binsweep.search.history.sweep_state import find_folder, load_state
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import PhotoSpec, SweepSpec
from binsweep.search.strategy.base import Record
from binsweep.search.strategy.earlier_sweeps import (
    EarlierSweep,
    EarlierTrial,
    FirstGuesses,
    InitialPoint,
    best_configurations,
)
from binsweep.search.strategy.encoding import Encoder
from binsweep.search.strategy.factory import open_strategy
from binsweep.search.strategy.lengths import TrainingLengths, shortened
from binsweep.search.workflows.strategy_options import strategy_options

MAX_POINTS = 3  # configurations to try first if no earlier value counts


@dataclass(frozen=True)
class EarlierResults:
    """The trials of one earlier sweep: those that the new one could suggest, and how many it could not."""

    sweep: str
    spec: SweepSpec
    fingerprint: str  # of its data
    fitting: list[tuple[Record, dict[str, Any]]]  # with parameters of the new space, and all settings
    outside: int


@dataclass(frozen=True)
class WarmStart:
    """What a new sweep knows, and a line about each earlier one: what is taken of it, what is not, and why."""

    guesses: FirstGuesses
    lines: list[str]


def earlier_folders(home: Path, sweeps: Sequence[str]) -> list[Path]:
    """The folders of sweeps by their ids or names. Raises UserError if one does not exist or is named twice."""
    folders = [find_folder(home, sweep) for sweep in sweeps]
    for folder, count in Counter(folders).items():
        if count > 1:
            raise UserError(f"--warm-start: {folder.name} is named {count} times", "name each sweep once")
    return folders


def read_earlier(folders: Sequence[Path], spec: SweepSpec) -> list[EarlierResults]:
    """Read earlier sweeps for a new one. Raises UserError for one of which nothing can be used, and says why."""
    return [_read(folder, spec) for folder in folders]


def _read(folder: Path, spec: SweepSpec) -> EarlierResults:
    state = load_state(folder)
    before = parse_spec(state["spec"])
    hint = "leave it out of --warm-start"
    if not (folder / "study.db").is_file():
        raise UserError(f"--warm-start: {folder.name} has no study.db", hint)
    options = replace(strategy_options(before), sampler="random", stopping="none")  # it is only read
    strategy = open_strategy(folder / "study.db", state["id"], options)
    records = [record for record in strategy.trials() if record.value is not None and record.feasible]
    if not records:
        raise UserError(f"--warm-start: no trial of {folder.name} has a value yet", hint)
    fitting, misfits = [], Counter[str]()
    for record in records:
        settings = before.trial_values(record.params)
        # With the same levels it is the same climb; else what its values are of: the level that it has reached.
        same = (
            isinstance(before, PhotoSpec) and isinstance(spec, PhotoSpec) and before.fidelity == spec.fidelity
        )
        if isinstance(before, PhotoSpec) and not same:
            settings = asdict(level_at(before.sections(record.params, seed=0), max(record.values)).settings)
        params = spec.space.active(settings)
        misfit = next((name for name in params if not spec.space.contains(name, params[name])), None)
        if misfit is None:
            fitting.append((replace(record, params=params), settings))
        else:
            misfits[f"space.{misfit} ({settings[misfit]!r})"] += 1
    if not fitting:
        where = ", ".join(name for name, _ in misfits.most_common(3))
        rule = f"--warm-start: {folder.name} has nothing in common with this sweep: all of its {len(records)} trials"
        raise UserError(f"{rule} lie outside of the space, such as by {where}", f"widen the space, or {hint}")
    return EarlierResults(state["id"], before, state["fingerprint"], fitting, sum(misfits.values()))


def make_warm_start(earlier: Sequence[EarlierResults], spec: SweepSpec, fingerprint: str) -> WarmStart:
    """What a new sweep on data with this fingerprint may take.

    A trial counts as a result if it was measured on the same data by the same metric, with all settings that are not
    searched as in the new sweep. Of the others, the order of their configurations is a prior, and if no trial counts,
    the best configurations of the sweeps are tried first.
    """
    results: list[tuple[str, Record]] = []
    others: list[EarlierSweep] = []
    lines = []
    for one in earlier:
        reasons = _differences(one, spec, fingerprint)
        count = [
            record for record, settings in one.fitting if not (reasons or _other_settings(settings, spec))
        ]
        rest = [item for item in one.fitting if reasons or _other_settings(item[1], spec)]
        results += [(one.sweep, record) for record in count]
        if rest:
            others.append(_as_prior(one, rest))
            reasons = reasons or sorted(
                {text for _, settings in rest for text in _other_settings(settings, spec)}
            )
        lines.append(_line(one, len(count), len(rest), reasons))
    points = [] if results else best_configurations(others, Encoder(spec.space), MAX_POINTS)
    if points:
        names = ", ".join(dict.fromkeys(name for name, _ in points))
        lines.append(f"the best {len(points)} configurations of {names} are tried first")
    if others and spec.search.sampler != "auto":
        lines.append(f"search.sampler: {spec.search.sampler} takes nothing else from them; auto would")
        others = []
    first = [InitialPoint(params, f"one of the best of {name}") for name, params in points]
    return WarmStart(FirstGuesses(first, results, others), lines)


def _differences(earlier: EarlierResults, spec: SweepSpec, fingerprint: str) -> list[str]:
    """Why no value of an earlier sweep counts in the new one."""
    reasons = []
    if earlier.fingerprint != fingerprint:
        reasons.append("other data" if isinstance(spec, PhotoSpec) else "other code or data")
    before = earlier.spec
    if type(before) is not type(spec):
        reasons.append("another kind of training")
    if isinstance(before, PhotoSpec) and isinstance(spec, PhotoSpec):
        if before.data.image_size != spec.data.image_size:
            reasons.append(f"data.image_size {before.data.image_size}")
        if before.fidelity != spec.fidelity:
            reasons.append("other fidelity levels")
    if earlier.spec.metric != spec.metric:
        reasons.append(f"objective.metric {earlier.spec.metric}")
    return reasons


def _other_settings(settings: dict[str, Any], spec: SweepSpec) -> list[str]:
    """The settings of an earlier trial that differ from those that the new sweep fixes."""
    searched, fixed = spec.space.active(settings), spec.trial_values({})
    names = [name for name in fixed if name != "seed" and name not in searched]
    return [f"{name} {settings.get(name)}" for name in names if settings.get(name) != fixed[name]]


def _as_prior(earlier: EarlierResults, trials: list[tuple[Record, dict[str, Any]]]) -> EarlierSweep:
    sign, spec = earlier.spec.objective.sign, earlier.spec
    lengths = TrainingLengths(spec.max_epochs, sections=spec.level_epochs)
    found = [
        EarlierTrial(
            record.params,
            shortened(lengths.ends(settings), record.last_epoch or lengths.of(settings)),
            {epoch: sign * value for epoch, value in record.values.items()},
        )
        for record, settings in trials
    ]
    ranked = sorted(found, key=lambda trial: -trial.best)
    return EarlierSweep(earlier.sweep, lengths.longest, ranked).thinned()


def _line(earlier: EarlierResults, count: int, rest: int, reasons: Sequence[str]) -> str:
    parts = [f"{count} results of {earlier.sweep} are known"] if count else []
    if rest:
        parts.append(f"{rest} trials of {earlier.sweep} say only where to look first: {', '.join(reasons)}")
    if earlier.outside:
        parts.append(f"{earlier.outside} lie outside of the space")
    return "; ".join(parts)
