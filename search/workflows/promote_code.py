"""Promote the best model of a finished sweep of own code."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binsweep.data.atomic_write import write_json
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores
from binsweep.search.execution.code_trial import CodeState, CodeTrainer, CodeTraining, read_code_history
from binsweep.search.execution.controller import trial_seed
from binsweep.search.execution.trial import TrialTask
from binsweep.search.history.run_keys import finalist_key
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_state import load_state
from binsweep.search.own_code.host_process import CodeError, CodeHost, HostKilledError, host_for
from binsweep.search.own_code.snapshot import (
    CodeSnapshot,
    code_fingerprint,
    param_paths,
    stored_snapshot,
    take_snapshot,
)
from binsweep.search.recording.code_records import CODE
from binsweep.search.spec.sweep_spec import CodeSpec
from binsweep.search.workflows.finalists import (
    DONE_FILE,
    Finalist,
    FinalistPlan,
    Training,
    as_searched,
    begin_run,
    describe_finalists,
    finalist_folder,
    fresh_seed,
    rank_finalists,
    sent_run,
)
from binsweep.tracking.promotion.judge import PromotionDecision
from binsweep.tracking.promotion.promote_code import OWN_CODE, CodeCandidate, promote_code
from binsweep.tracking.promotion.registry_run import record_registered, registry_run
from binsweep.tracking.promotion.table import PredictionTable, parse_table
from binsweep.tracking.runlog.run_log import RunLog

TRAINER_FILE, PARAMS_FILE, CHECKPOINT = "trainer.json", "params.json", "checkpoint"  # in a version's OWN_CODE


def promote_code_sweep(
    folder: Path, spec: CodeSpec, home: Path, tracking_uri: str, approved: bool = False, dry_run: bool = False
) -> PromotionDecision:
    """Put the best finalist of the sweep in `folder` through the gate.

    Its code needs two more functions: `predict(checkpoint, split)`, by whose table for the split "test" it is judged,
    and `model(checkpoint)`, which is registered. Raises UserError if it lacks one.
    """
    state = load_state(folder)
    leaders = state["leaderboard"]
    if not leaders:
        raise UserError(f"{folder.name} has no trial with a result", "run the sweep again")
    code = stored_snapshot(spec.trainer, folder / CODE, state["fingerprint"])
    if code_fingerprint(code, spec.params) != state["fingerprint"]:
        raise UserError(
            f"what the params of {folder.name} name has changed since it ran: its test rows may be ones that trials "
            "have seen",
            "run the sweep again",
        )
    params_of = {trial.number: trial.params for trial in read_history(folder).trials}
    judging, host, notes = _judging_host(spec, code, home)
    try:
        runlog = RunLog(folder / "spool", tracking_uri, spec.name)
        try:
            best, note = _best_training(_Finalists(folder, spec, code, runlog, params_of), leaders)
            run_id = sent_run(runlog, best.key, folder, tracking_uri)
        finally:
            runlog.close(0.0)
        params = spec.trial_values(params_of[best.trial])
        model, own = folder / "promotion" / "model", folder / "promotion" / OWN_CODE
        shutil.rmtree(folder / "promotion", ignore_errors=True)
        _write_own_code(own, judging, spec, best.checkpoint, params)
        checkpoint = own / CHECKPOINT
        place = registry_run(tracking_uri, run_id, create=not dry_run)
        candidate = CodeCandidate(
            run_id=place.run_id,
            sweep=folder.name,
            metric=spec.metric,
            fingerprint=code.fingerprint,
            test=_table(host, checkpoint, "test", params),
            validation=_table(host, checkpoint, "validation", params),
            model=model,
            own_code=own,
            predict_again=lambda other: _predict_again(other, spec),
            notes=[note, *notes],
        )
        _call(lambda: host.save_model(checkpoint, params, model, _code_paths(judging)), "model")
        name = spec.model_name()
        decision = promote_code(place.server, name, candidate, spec.gate, approved, dry_run, home)
        if decision.version is not None:
            record_registered(tracking_uri, run_id, place, name, decision.version)
        return decision
    finally:
        host.close()


def _judging_host(spec: CodeSpec, code: CodeSnapshot, home: Path) -> tuple[CodeSnapshot, CodeHost, list[str]]:
    """The code with `predict` and `model`, in its process: as the sweep ran it, or where it had none yet, as it is now;
    with a note on that."""
    host = CodeHost(code.place, code.function, cores())
    if not _missing_functions(host):
        return code, host, []
    host.close()
    present = take_snapshot(spec.trainer, spec.params, home)
    host = CodeHost(present.place, present.function, cores())
    if missing := _missing_functions(host):
        host.close()
        wanted = {"predict": "predict(checkpoint, split)", "model": "model(checkpoint)"}
        name = Path(spec.trainer.rpartition(":")[0]).name
        raise UserError(
            f"{name} has no {' and no '.join(wanted[one] for one in missing)}: the gate judges predictions of test "
            "rows, and registers what serves",
            "add it (docs/own_code.md), then promote again: no trial need be trained anew",
        )
    return present, host, ["predict and model are those of the present file: the sweep ran without them"]


def _missing_functions(host: CodeHost) -> list[str]:
    try:
        found = _call(lambda: host.load("predict", "model"), "trainer")
    except UserError:
        host.close()
        raise
    return [name for name in ("predict", "model") if name not in found]


def _call(function: Any, what: str) -> Any:
    """Call own code; its failure is the person's to mend."""
    try:
        return function()
    except (CodeError, HostKilledError) as error:
        details = f"\n{error.details}" if isinstance(error, CodeError) and error.details else ""
        raise UserError(f"{what}: {error}{details}", "mend it, then run the sweep again") from error


def _table(host: CodeHost, checkpoint: Path, split: str, params: Mapping[str, Any]) -> PredictionTable:
    where = f"predict(checkpoint, {split!r})"
    return parse_table(_call(lambda: host.predict(checkpoint, split, params), where), where)


def _code_paths(code: CodeSnapshot) -> list[Path]:
    """The files and folders of the code, each as a model's `code_paths` names it."""
    root = Path(code.place).parent
    return [root / name for name in dict.fromkeys(Path(name).parts[0] for name in code.files)]


def _write_own_code(
    target: Path, code: CodeSnapshot, spec: CodeSpec, checkpoint: Path, params: Mapping[str, Any]
) -> None:
    """Put together what predicts again with this checkpoint, on any machine with the packages that the code imports."""
    code.copy_to(target / CODE)
    shutil.copytree(checkpoint, target / CHECKPOINT)
    write_json(target / PARAMS_FILE, dict(params))
    place = f"{Path(code.place).name}:{code.function}" if code.files else spec.trainer
    write_json(target / TRAINER_FILE, {"trainer": place})


def _predict_again(own: Path, spec: CodeSpec) -> PredictionTable:
    """The test table of another version; where its params named files, those of this sweep are read."""
    trainer = json.loads((own / TRAINER_FILE).read_text())["trainer"]
    place, _, function = trainer.rpartition(":")
    if place.endswith(".py"):
        place = str(own / CODE / place)
    params = {**json.loads((own / PARAMS_FILE).read_text()), **_path_params(spec.params)}
    host = CodeHost(place, function, cores())
    try:
        where = "predict of the champion"
        found = _call(lambda: host.predict(own / CHECKPOINT, "test", params), where)
        return parse_table(found, where)
    finally:
        host.close()


def _path_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params, at the top, that name files or folders."""
    named = {key.partition(".")[0] for key in param_paths(params)}
    return {name: value for name, value in params.items() if name in named}


@dataclass(frozen=True)
class _Finalists:
    """Trains the leaders of a sweep again with fresh seeds; each training is a child run."""

    folder: Path
    spec: CodeSpec
    code: CodeSnapshot
    runlog: RunLog
    params_of: Mapping[int, Mapping[str, Any]]  # the searched values of each trial

    def train(self, number: int, seed: int) -> Training | None:
        """One training, unless an earlier call has finished it; None if it failed or diverged."""
        key, spec = finalist_key(number, seed), self.spec
        place = finalist_folder(self.folder, number, seed)
        if not (place / DONE_FILE).exists():
            fresh = fresh_seed(trial_seed(spec.search.seed, number), seed)
            sections = spec.sections(self.params_of[number], fresh)
            name, params = f"finalist {number:03d}, seed {seed}", sections[0].settings.run_params()
            begin_run(self.runlog, key, name, "finalist", number, params)
            task = TrialTask(number, sections, place, spec.metric, spec.goal, cores(), rules=spec.health)
            failure = ""

            def send(epoch: int, metrics: dict[str, float]) -> bool:
                self.runlog.metrics(key, epoch, metrics)
                return bool(spec.objective.is_better(spec.objective.value_of(metrics), None))

            try:
                CodeTrainer(self.code, param_paths(spec.params)).train(task, send)
            except RuntimeError as error:
                failure = str(error)
            except BaseException:
                self.runlog.end_run(key, "KILLED")
                raise
            value = _best_value(place, spec)
            failure = failure or ("" if value is not None else "it saved no checkpoint")
            if not failure:
                self.runlog.artifact(key, CodeTraining().best_checkpoint(place), "weights")
            self.runlog.end_run(key, "FAILED" if failure else "FINISHED")
            write_json(place / DONE_FILE, {"failure": failure, "value": value})
        done = json.loads((place / DONE_FILE).read_text())
        if done["failure"]:
            return None
        return Training(key, CodeTraining().best_checkpoint(place), done["value"], number)


def _best_value(place: Path, spec: CodeSpec) -> float | None:
    """The value of the epoch whose checkpoint was kept as the best."""
    state, history = CodeState.read(place), read_code_history(place)
    if state.best is None or state.best_epoch > len(history):
        return None
    return history[state.best_epoch - 1].get(spec.metric)


def _best_training(trainer: _Finalists, leaders: Sequence[Mapping[str, Any]]) -> tuple[Training, str]:
    """The best training of the best finalist by the mean of its fresh seeds, and a note on the choice."""
    folder, spec, code = trainer.folder, trainer.spec, trainer.code
    assert isinstance(spec.register.finalists, int)
    plan = FinalistPlan(spec.register.finalists, spec.register.seeds)
    if plan.finalists:
        finalists = rank_finalists(
            spec,
            leaders[: plan.finalists],
            plan.seeds,
            lambda leader, _: functools.partial(trainer.train, leader["number"]),
            "failed",
        )
        host_for(code.place, code.function, cores()).close()
    else:
        training = as_searched(folder, leaders[0])
        if not training.checkpoint.exists():
            raise UserError(f"trial {training.trial} saved no checkpoint", "give trial.report a `save`")
        finalists = [Finalist(training.trial, training.value, [training])]
    if not finalists:
        raise UserError(
            f"every finalist of {folder.name} failed with a fresh seed, or saved no checkpoint",
            "give trial.report a `save`, narrow the space, or set register.finalists: 0",
        )
    return finalists[0].trainings[0], describe_finalists(spec, plan, finalists)
