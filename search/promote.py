"""From a finished sweep to a decision about its best model."""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError
from data.manifest import Manifest, load_manifest
from models.build import counter_from, load_checkpoint
from search.recorder import trial_key
from search.spec import SweepSpec, parse_spec
from search.state import STATE, find_folder, load_state
from tracking.promotion import Candidate, Decision, promote
from tracking.runlog import RunLog

SEND_SECONDS = 60.0


def sweep_manifest(sweep: str, home: Path) -> tuple[SweepSpec, Manifest]:
    """A sweep's specification and its data, which must be what the sweep learned from."""
    folder = find_folder(home, sweep)
    state = load_state(folder)
    spec = parse_spec(state["spec"], str(folder / STATE))
    manifest = load_manifest(spec.data.source, spec.data.classes, spec.split, home)
    if manifest.fingerprint != state["fingerprint"]:
        raise UserError(
            f"{spec.data.source} has changed since {folder.name} ran: its test split may hold what trials learned from",
            "run the sweep again on the data as it is now",
        )
    return spec, manifest


def _late_run_id(folder: Path, spec: SweepSpec, number: int, tracking_uri: str) -> str:
    """The run of a trial that the tracking server had not heard of when the sweep ended. What waits is sent."""
    runlog = RunLog(folder / "spool", tracking_uri, spec.name)
    try:
        runlog.flush(SEND_SECONDS)
        run_id = runlog.sent_run_id(trial_key(number))
    finally:
        runlog.close(0.0)
    if run_id is None:
        raise UserError(
            f"the run of trial {number} of {folder.name} has not reached {tracking_uri}",
            "try again when that server answers; nothing is lost",
        )
    return run_id


def promote_sweep(
    sweep: str, home: Path, tracking_uri: str, approved: bool = False, dry_run: bool = False
) -> tuple[str, Decision]:
    """Let the sweep's best trial face the gate; returns the model's name and the decision."""
    folder = find_folder(home, sweep)
    spec, manifest = sweep_manifest(sweep, home)
    state = load_state(folder)
    if not state["leaderboard"]:
        raise UserError(f"{folder.name} has no trial with a result", "run the sweep again")
    best = state["leaderboard"][0]
    run_id = best["run_id"] or _late_run_id(folder, spec, best["number"], tracking_uri)
    counter = counter_from(load_checkpoint(folder / best["checkpoint"]))
    candidate = Candidate(run_id, counter, manifest, spec.metric, folder.name)
    decision = promote(
        tracking_uri, spec.model_name, candidate, spec.gate, folder / "test", approved, dry_run
    )
    return spec.model_name, decision
