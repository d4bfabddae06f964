"""The promises of docs/reliability.md, as code: what must be true of a sweep whatever has happened to it."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from binsweep.search.execution.controller import trial_seed
from binsweep.search.history.decisions import read_decisions
from binsweep.search.history.run_keys import trial_number
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_state import load_state
from binsweep.search.steering.inbox import read_answers, waiting_requests
from binsweep.search.strategy.base import Decision, Outcome, Record
from binsweep.search.strategy.factory import open_strategy
from binsweep.search.workflows.strategy_options import strategy_options
from binsweep.tracking.runlog.spool import read_spool

from . import people
from .fake_mlflow import KEY, StoredRun
from .plan import Life, Plan
from .workers import curve
from .world import IO_ERROR, World

TABLES = ("trials", "trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes")
NEVER_RESUMED = ("the sweep ended", "others did better until the sweep ended", "stopped by")
ENDS = ("completed", "stopped", "failed")


def check_end(world: World, result: Any) -> None:
    """The promises about a sweep that has ended."""
    if result.unsent:
        world.sync(result.folder)
    for problem in _broken(world, result.folder):
        world._problem(problem)


def check_repeated(world: World, result: Any) -> None:
    """The same command again changes nothing, and neither does sending everything again."""
    if waiting_requests(result.folder):
        return  # of commands that were killed when it was over: they extend it now
    before = _whole(world, result.folder)
    if faults := world.plan.afterwards:
        world.live(Life(faults), asked=True)
    again = world.live(Life(), asked=True)
    if again is None or again.folder != result.folder:
        world._problem("resume: the finished sweep was not opened again")
        return
    for name, value in _whole(world, result.folder).items():
        if before[name] != value:
            world._problem(f"resume is not idempotent: {name} was {before[name]}, is {value}")
    world.sync(result.folder, everything=True)
    for name, value in _whole(world, result.folder).items():
        if before[name] != value:
            world._problem(
                f"sending everything again is not idempotent: {name} was {before[name]}, is {value}"
            )


def records_of(world: World, folder: Path) -> list[Record]:
    """The trials of the study, as a process that opens it sees them."""
    strategy = open_strategy(folder / "study.db", folder.name, strategy_options(world.spec))
    found = strategy.trials()
    world.disk.let_go(None)
    return found


def _whole(world: World, folder: Path) -> dict[str, Any]:
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as study:
        tables = {name: study.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in TABLES}
    runs = {run.tags[KEY]: sorted(run.points) for run in world.mlflow.active()}
    ends = [(one["trial"], one["what"]) for one in read_decisions(folder) if one["what"] in ENDS]
    return {
        "study": tables,
        "points": runs,
        "ends": ends,
        "answers": [one.as_json() for one in read_answers(folder)],
        "state": load_state(folder)["status"],
        "leaderboard": (folder / "leaderboard.csv").read_text(),
    }


def _broken(world: World, folder: Path) -> Iterator[str]:
    records, plan = records_of(world, folder), world.plan
    yield from _trials(world, records)
    yield from _configurations(plan, world, records)
    yield from _budget(plan, records, folder)
    yield from _limits(plan, folder)
    yield from _decisions(folder, records)
    yield from _history(folder, records, world)
    yield from _time(folder, world)
    yield from people.broken(world, folder, records)
    yield from _run_log(folder, records, world)
    yield from _mlflow(folder, records, world)
    state = load_state(folder)
    if state["status"] != "finished":
        yield f"state: sweep.json says {state['status']}"
    # A folder without a state was lost before the sweep had begun.
    folders = sorted(path.parent.name for path in (world.home / "sweeps").glob("*/sweep.json"))
    if folders != [folder.name]:
        yield f"state: there are the sweeps {folders}"


def expected(world: World, record: Record) -> dict[int, dict[str, float]]:
    """The metrics of each epoch of an undisturbed training of a trial, as far as it trains at all."""
    plan, seed = world.plan, trial_seed(world.spec.search.seed, record.number)
    found = dict(enumerate(curve(record.params, seed, plan.epochs), 1))
    how, when = plan.bad.get(record.number, ("", 0))
    if how == "raises":
        found = {epoch: metrics for epoch, metrics in found.items() if epoch < when}
    if how == "diverges":
        found = {epoch: metrics for epoch, metrics in found.items() if epoch <= when}
        if when in found:
            found[when] = {**found[when], "val_score": math.nan}
    return found


def _trials(world: World, records: list[Record]) -> Iterator[str]:
    """Every trial has ended, with the curve of an undisturbed training and the best of its values."""
    plan = world.plan
    for record in records:
        name, whole = f"trial {record.number}", expected(world, record)
        if record.state not in ENDS:
            yield f"{name}: is still {record.state}"
        if not record.ended_because:
            yield f"{name}: ended without a reason"
        values = {epoch: metrics["val_score"] for epoch, metrics in whole.items()}
        finite = {epoch: value for epoch, value in values.items() if math.isfinite(value)}
        for epoch, value in record.values.items():
            if finite.get(epoch) != value:
                yield f"{name}: the value of epoch {epoch} is {value}, undisturbed {finite.get(epoch)}"
        if sorted(record.values) != list(range(1, len(record.values) + 1)):
            yield f"{name}: its epochs are {sorted(record.values)}"
        last = record.last_epoch or plan.epochs
        if record.state == "completed" and plan.stopping == "none" and len(record.values) != last:
            yield f"{name}: completed with {len(record.values)} of {last} epochs: {record.ended_because}"
        if last != plan.epochs and "minutes" not in plan.budget:
            yield f"{name}: was shortened to {last} epochs"
        if record.state == "failed" and record.number not in plan.bad and not _may_fail(world, record):
            yield f"{name}: failed: {record.ended_because}"
        if record.values and record.value != max(record.values.values()):
            yield f"{name}: its best is {record.value}"


def _may_fail(world: World, record: Record) -> bool:
    injected = world.outcome.injected
    if IO_ERROR in record.ended_because and injected["eio"]:
        return True
    if not record.values and record.ended_because.startswith(("the sweep ended", "stopped by")):
        return True  # it was interrupted in its first epoch, and then the budget was spent
    if (
        "are long over" in record.ended_because
        and injected["worker hangs"]
        and "minutes" in world.plan.budget
    ):
        return True
    deaths = injected["worker dies"] + injected["report after death"]
    return "3 times" in record.ended_because and deaths >= 3


def _configurations(plan: Plan, world: World, records: list[Record]) -> Iterator[str]:
    tried = Counter(json.dumps(record.params, sort_keys=True) for record in records)
    for params, times in tried.items():
        if times > 1:
            yield f"the configuration {params} was tried {times} times"
    if plan.is_steered:
        return
    if plan.stopping == "none" and (plan.workers <= 1 or plan.sampler in ("random", "grid")):
        alone = [record.params for record in undisturbed(world)]
        for record, params in zip(records, alone, strict=False):
            if record.params != params:
                yield f"trial {record.number} has {record.params}, undisturbed {params}"


def undisturbed(world: World) -> list[Record]:
    """The trials of the same sweep where nothing goes wrong, one after the other."""
    strategy = open_strategy(None, "alone", strategy_options(world.spec))
    for _ in range(world.plan.trials):
        suggestion = strategy.suggest()
        if suggestion is None:
            break
        record = strategy.trials()[-1]
        for epoch, metrics in expected(world, record).items():
            if strategy.observe(record.number, epoch, metrics["val_score"]).decision is Decision.STOP:
                break
        strategy.finish(record.number, Outcome("completed"))
    return strategy.trials()


def _budget(plan: Plan, records: list[Record], folder: Path) -> Iterator[str]:
    asked = sum(one.granted and one.request.kind == "budget" for one in read_answers(folder))
    if len(records) > plan.trials + asked:
        yield f"budget.trials: {len(records)} of {plan.trials} began"
    limit = plan.budget.get("epochs")
    trained = sum(len(record.values) for record in records)
    if limit is not None and trained > limit + max(1, plan.workers) - 1:
        yield f"budget.epochs: {trained} of {limit:g} were trained"
    if (
        plan.budget.keys() == {"trials"}
        and not asked
        and len(records) != plan.trials
        and plan.stopping == "none"
    ):
        yield f"budget.trials: only {len(records)} of {plan.trials} began"


def _limits(plan: Plan, folder: Path) -> Iterator[str]:
    """No trial begins once the target is reached, or so many have ended since the best value, as the run log tells."""
    target, patience = plan.budget.get("target", math.inf), plan.budget.get("no_improvement", math.inf)
    best, best_trial, since = -math.inf, -1, 0
    begun, ended = set[int](), set[int]()
    for record in read_spool(folder / "spool"):
        if (number := trial_number(record["key"])) is None:
            continue
        if record["kind"] == "start":
            if number not in begun and (best >= target or since >= patience):
                yield f"budget: trial {number} began after {best} was reached and {since} trials had ended since"
            begun.add(number)
        values = record.get("values", {})
        if record["kind"] == "metrics" and values.get("val_score", -math.inf) > best:
            best, best_trial, since = values["val_score"], number, 0
        if record["kind"] == "tags" and values.get("state") in ENDS and number not in ended:
            ended.add(number)
            # The end of the best trial counts anew, unless it was stopped because the others have ended.
            since = since + 1 if number != best_trial else since if since >= patience else 0


def _decisions(folder: Path, records: list[Record]) -> Iterator[str]:
    """Each trial begins and ends once in the decision log, with the reason that the study has."""
    lines = read_decisions(folder)
    ends = [(one["trial"], one["what"], one["reason"]) for one in lines if one["what"] in ENDS]
    wanted = [(record.number, record.state, record.ended_because) for record in records]
    if sorted(ends) != wanted:
        yield f"decisions: the trials ended {sorted(ends)}, in the study {wanted}"
    begins = sorted(one["trial"] for one in lines if one["what"] == "begin")
    if begins != [record.number for record in records]:
        yield f"decisions: the trials {begins} began, in the study {len(records)}"


def _history(folder: Path, records: list[Record], world: World) -> Iterator[str]:
    """What is read back from the run log is what the study says."""
    history = {trial.number: trial for trial in read_history(folder).trials}
    if sorted(history) != [record.number for record in records]:
        yield f"history: has the trials {sorted(history)}, the study {[record.number for record in records]}"
        return
    for record in records:
        trial = history[record.number]
        name = f"history of trial {record.number}"
        finite = {epoch: value for epoch, value in trial.curve.items() if math.isfinite(value)}
        lost = world.outcome.injected["power"] and record.ended_because.startswith(NEVER_RESUMED)
        if finite != record.values and not (lost and finite.items() <= record.values.items()):
            yield f"{name}: epochs {sorted(finite)}, in the study {sorted(record.values)}"
        if trial.params != record.params:
            yield f"{name}: {trial.params}, in the study {record.params}"
        if (trial.state, trial.reason) != (record.state, record.ended_because):
            yield f"{name}: {trial.state} ({trial.reason}), in the study {record.state} ({record.ended_because})"


def _time(folder: Path, world: World) -> Iterator[str]:
    """What the sweep is said to have taken is no more than its processes have lived, and no less than its epochs took,
    but for those that a process was at when it ended, whatever the wall clock said."""
    found = read_history(folder).usage.seconds
    if found > world.awake + 1:
        yield f"time: {found:.1f} s were counted, the processes lived for {world.awake:.1f} s"
    points = [found for points in _logged(folder).values() for found in points.items()]
    took = [value for (name, _), values in points if name == "seconds" for value in values]
    workers = max(1, world.plan.workers)
    least = sum(took) / workers - world.outcome.lives * max(took, default=0.0) - 1
    if not world.outcome.injected["power"] and found < least:
        yield f"time: {found:.1f} s were counted, the epochs took {sum(took):.1f} s on {workers} workers"


def _logged(folder: Path) -> dict[str, dict[tuple[str, int], list[float]]]:
    points: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    seen: set[int] = set()
    for record in read_spool(folder / "spool"):
        if record["n"] in seen:
            continue
        seen.add(record["n"])
        if record["kind"] == "metrics":
            for name, value in record["values"].items():
                points[record["key"]][name, record["step"]].append(value)
    return points


def _run_log(folder: Path, records: list[Record], world: World) -> Iterator[str]:
    """Each metric of each epoch is in the run log once, with the value of an undisturbed training."""
    points = _logged(folder)
    for record in records:
        found = points[f"trial-{record.number:04d}"]
        for (name, step), values in found.items():
            if len(values) > 1:
                yield f"trial {record.number}: the run log has {name} of epoch {step} {len(values)} times"
        yield from _points(record, {key: values[0] for key, values in found.items()}, world, "the run log")


def _points(record: Record, found: dict[tuple[str, int], float], world: World, where: str) -> Iterator[str]:
    whole = expected(world, record)
    name = f"trial {record.number}: {where}"
    reported = {step for metric, step in found if metric == "val_score"}
    missing = set(record.values) - reported
    # The one loss that docs/reliability.md names: the study alone has kept an epoch, and the trial never went on.
    lost = missing and world.outcome.injected["power"] and record.ended_because.startswith(NEVER_RESUMED)
    if missing and not lost:
        yield f"{name} lacks the epochs {sorted(missing)}"
    for (metric, step), value in sorted(found.items()):
        if metric in ("val_score", "val_loss"):
            wanted = whole.get(step, {}).get(metric)
            if wanted is None or not (value == wanted or (math.isnan(value) and math.isnan(wanted))):
                yield f"{name} has {metric} {value} at epoch {step}, undisturbed {wanted}"
    if record.values and record.value is not None and not lost:
        best = {step: value for (metric, step), value in found.items() if metric == "best_val_score"}
        if list(best.values()) != [record.value]:
            yield f"{name} has best_val_score {best}, in the study {record.value}"


def _weights(record: Record, run: StoredRun, world: World) -> Iterator[str]:
    """MLflow has the checkpoint of a trial's best epoch, where each epoch has one."""
    if world.plan.saves_every != 1 or record.epoch is None or record.state == "failed" or world.must_send_all:
        return
    stored = run.artifacts.get("weights/state.json")
    if stored is None or json.loads(stored)["epoch"] != record.epoch:
        yield f"MLflow has for trial {record.number} the weights {stored}, its best epoch is {record.epoch}"


def _mlflow(folder: Path, records: list[Record], world: World) -> Iterator[str]:
    """MLflow has one run for each trial, ended, with every point of the run log once and no other."""
    if world.must_send_all:
        world.sync(folder, everything=True)
    by_key: dict[str, list[StoredRun]] = defaultdict(list)
    for run in world.mlflow.active():
        by_key[run.tags[KEY].partition("/")[2]].append(run)
    wanted = {"sweep": "FINISHED"}
    for record in records:
        wanted[f"trial-{record.number:04d}"] = "FAILED" if record.state == "failed" else "FINISHED"
    if by_key.keys() != wanted.keys():
        yield f"MLflow has the runs {sorted(by_key)}, not {sorted(wanted)}"
    points = _logged(folder)
    for key, runs in sorted(by_key.items()):
        if len(runs) > 1:
            yield f"MLflow has {len(runs)} runs of {key}"
        run = runs[0]
        if run.status != wanted.get(key):
            yield f"MLflow has {key} as {run.status}, not {wanted.get(key)}"
        if (number := trial_number(key)) is not None and number < len(records):
            yield from _weights(records[number], run, world)
        times = Counter((name, step) for name, step, *_ in run.points)
        for (name, step), count in times.items():
            if count > 1:
                yield f"MLflow has {name} of {key} at step {step} {count} times"
        stored = {(name, step): repr(value) for name, step, _, value in run.points}
        logged = {place: repr(values[0]) for place, values in points[key].items()}
        if differ := sorted(dict(stored.items() ^ logged.items())):
            yield f"MLflow and the run log differ about {key}: {differ[:5]}"
