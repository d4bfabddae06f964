"""MLflow goes away for BINSWEEP_OUTAGE seconds (20) in the middle of a sweep: no trial notices, nothing is missing."""

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flaky import flaky
from mlflow import MlflowClient
from real_sweeps import SLOW, runs_of, spec_file, started, trials_of

SECONDS = float(os.environ.get("BINSWEEP_OUTAGE", "20"))
AROUND = max(15.0, SECONDS / 2)  # the sweep goes on for so long before the outage, and behind it


@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_an_outage_costs_no_trial_and_no_metric(
    bins: Path, server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    for mode in ("pass", "down", "fail", "very slow"):
        name = f"outage-{mode.replace(' ', '-')}"
        # One trial at once and in a process of its own: of two cores, one is left to the driver and MLflow's server.
        alone = {"max_concurrent_trials": 1}
        budget = {"trials": 5000, "minutes": (AROUND + SECONDS + AROUND) / 60}
        spec = spec_file(tmp_path, bins, name, 5000, model=SLOW, resources=alone, budget=budget)
        home, out = tmp_path / name, threading.Event()
        with flaky(server, lambda mode=mode, out=out: mode if out.is_set() else "pass") as proxy:  # type: ignore[misc]
            process = started(spec, "ray", home, proxy)
            began = time.time() + AROUND
            changes = [threading.Timer(AROUND, out.set), threading.Timer(AROUND + SECONDS, out.clear)]
            for change in changes:
                change.start()
            try:
                _, errors = process.communicate(timeout=SECONDS + 2 * AROUND + 240)
            finally:
                for change in changes:
                    change.cancel()
        assert process.returncode == 0 and "did not reach" not in errors, errors
        study = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
        assert {trial.state.name for trial in study} <= {"COMPLETE", "PRUNED"}
        parent, runs = runs_of(server, name)
        assert parent.info.status == "FINISHED" and len(runs) == len(study)
        client = MlflowClient(server)
        epochs: dict[str, list[float]] = {"before": [], "during": [], "after": []}
        for trial in study:
            run = runs[trial.number]
            assert run.info.status == "FINISHED"
            history = client.get_metric_history(run.info.run_id, "seconds")
            assert sorted(point.step for point in history) == sorted(trial.intermediate_values)
            for point in history:
                since = point.timestamp / 1000 - began
                phase = "before" if since < 0 else "during" if since < SECONDS else "after"
                epochs[phase].append(point.value)
        assert epochs["during"], "no epoch fell into the outage: it proves nothing"
        if not (epochs["before"] and epochs["after"]):  # a busy machine started late, or ended early
            figure(
                f"MLflow {mode:<9} for {SECONDS:g} s: nothing lost; no epochs on both sides to compare with"
            )
            continue
        before, during, after = (statistics.median(values) for values in epochs.values())
        figure(
            f"MLflow {mode:<9} for {SECONDS:g} s: nothing lost; an epoch took {before:.4f} s before, "
            f"{during / before - 1:+.1%} during, {after / before - 1:+.1%} afterwards"
        )
