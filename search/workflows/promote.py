"""Promote the best model of a finished sweep."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest
from binsweep.models.checkpoint import load_checkpoint
from binsweep.models.pretrained import weights_licence
from binsweep.models.trial_data import TrialData
from binsweep.search.history.run_keys import SWEEP
from binsweep.search.history.sweep_state import STATE, find_folder, load_state
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.schema import MAX_FINALISTS
from binsweep.search.spec.sweep_spec import CodeSpec, PhotoSpec
from binsweep.search.steering.inbox import read_answers
from binsweep.search.steering.state import state_after
from binsweep.search.terminal.format import format_duration, format_value
from binsweep.search.workflows.final_model import build_final_model
from binsweep.search.workflows.finalists import (
    GATE_SECONDS,
    Finalist,
    FinalistPlan,
    as_searched,
    describe_finalists,
    plan_finalists,
    sent_run,
    train_finalists,
)
from binsweep.search.workflows.notify import decided, notify
from binsweep.search.workflows.prepare import open_data
from binsweep.search.workflows.promote_code import promote_code_sweep
from binsweep.search.workflows.sweep_data import spec_manifest
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.judge import PromotionDecision
from binsweep.tracking.promotion.promote import promote
from binsweep.tracking.promotion.registry_run import record_registered, registry_run
from binsweep.tracking.runlog.run_log import RunLog


def sweep_manifest(sweep: str, home: Path) -> tuple[PhotoSpec, Manifest]:
    """The spec and the data of a sweep. Raises UserError if the data have changed since it ran."""
    folder = find_folder(home, sweep)
    state = load_state(folder)
    spec = parse_spec(state["spec"], str(folder / STATE))
    if not isinstance(spec, PhotoSpec):
        raise UserError(f"{folder.name} trains own code: it has no photos", "name a sweep over photos")
    manifest = spec_manifest(spec, home)
    if manifest.fingerprint != state["fingerprint"]:
        raise UserError(
            f"{spec.data.source} has changed since {folder.name} ran: its test split may contain photos that trials "
            "have seen",
            "run the sweep again on the present data",
        )
    return spec, manifest


def promote_sweep(
    sweep: str,
    home: Path,
    tracking_uri: str,
    approved: bool = False,
    dry_run: bool = False,
    in_budget: bool = False,
) -> tuple[str, PromotionDecision]:
    """Put the sweep's best finalist through the promotion gate; returns the model's name and the decision.

    Finalists are trained first, also for a dry run, unless an earlier call has trained them. With `in_budget`, what the
    sweep has left of its `budget.minutes` is for `finalists: auto`; else half of the time that the sweep took.
    """
    folder = find_folder(home, sweep)
    state = load_state(folder)
    spec = parse_spec(state["spec"], str(folder / STATE))
    if isinstance(spec, CodeSpec):
        name = spec.model_name()
        decision = promote_code_sweep(folder, spec, home, tracking_uri, approved, dry_run)
    else:
        name, decision = _promote_photos(folder, state, home, tracking_uri, approved, dry_run, in_budget)
    if not dry_run and (event := decided(name, folder.name, decision)) is not None:
        notify(event, spec, home)
    return name, decision


def _promote_photos(
    folder: Path,
    state: dict[str, Any],
    home: Path,
    tracking_uri: str,
    approved: bool,
    dry_run: bool,
    in_budget: bool,
) -> tuple[str, PromotionDecision]:
    spec, manifest = sweep_manifest(folder.name, home)
    if not state["leaderboard"]:
        raise UserError(f"{folder.name} has no trial with a result", "run the sweep again")
    seconds = state["seconds"] / 2
    minutes = state_after(read_answers(folder)).budget_of(spec.budget).minutes
    if in_budget and minutes is not None:
        seconds = max(0.0, 60 * minutes - state["seconds"] - GATE_SECONDS)
    data = open_data(spec, manifest, home)
    plan = plan_finalists(folder, spec, state["leaderboard"], seconds)
    candidate = _candidate(folder, spec, manifest, data, state, tracking_uri, plan)
    name = spec.model_name(manifest.classes)
    place = registry_run(tracking_uri, candidate.run_id, create=not dry_run)
    there = replace(candidate, run_id=place.run_id)
    decision = promote(place.server, name, there, spec.gate, folder / "test", approved, dry_run, home)
    if decision.version is not None:
        record_registered(tracking_uri, candidate.run_id, place, name, decision.version)
    return name, decision


def _candidate(
    folder: Path,
    spec: PhotoSpec,
    manifest: Manifest,
    data: TrialData,
    state: dict[str, Any],
    tracking_uri: str,
    plan: FinalistPlan,
) -> Candidate:
    """The model of the finalist with the best mean, after MLflow has received its run."""
    runlog = RunLog(folder / "spool", tracking_uri, spec.name)
    try:
        if plan.finalists:
            finalists = train_finalists(folder, spec, data, state["leaderboard"], plan, runlog)
        else:
            best = state["leaderboard"][0]
            finalists = [Finalist(best["number"], best["value"], [as_searched(folder, best)])]
        trainings = finalists[0].trainings[:1]
        if spec.register.ensemble:
            trainings = [one for finalist in finalists for one in finalist.trainings]
            known = {one.key for one in trainings}
            own = [as_searched(folder, leader) for leader in state["leaderboard"][:MAX_FINALISTS]]
            trainings += [one for one in own if one.key not in known and one.checkpoint.exists()]
        final = build_final_model(folder, spec, data, trainings, runlog)
        run_id, page = sent_run(runlog, final.key, folder, tracking_uri), runlog.sent_page(SWEEP)
    finally:
        runlog.close(0.0)
    checkpoint = load_checkpoint(finalists[0].trainings[0].checkpoint)
    settings, levels = checkpoint.settings, checkpoint.levels
    origin = {
        "sweep": f"[{folder.name}]({page})" if page else folder.name,
        "searched": f"{spec.goal} {spec.metric} over {', '.join(spec.space)}",
        "cost": f"{len(state['leaderboard'])} trials with a result in {format_duration(state['seconds'])}",
        "settings": ", ".join(f"{name} {format_value(value)}" for name, value in asdict(settings).items()),
        **({"trained in sections": ", then ".join(map(str, levels))} if len(levels) > 1 else {}),
        "licence of the data": spec.data.licence,
        "licence of the weights": weights_licence(settings.backbone, settings.weights),
    }
    photos = {
        "source": spec.data.source,
        # The model's classes, also if the spec does not list them.
        "classes": list(manifest.classes),
        "train_also": spec.data.train_also,
        "split": spec.data.split.model_dump(),
        # Later evaluations read the whole source: data.exclude applies to train only.
        "fingerprint": manifest.full_fingerprint or manifest.fingerprint,
    }
    notes = [describe_finalists(spec, plan, finalists), *final.notes]
    return Candidate(
        run_id,
        final.predictor,
        manifest,
        spec.metric,
        folder.name,
        final.validation,
        notes,
        origin,
        photos,
        spec.register.engine,
    )
