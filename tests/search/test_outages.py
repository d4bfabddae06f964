"""MLflow goes away for BINSWEEP_OUTAGE seconds (20) in the middle of a sweep: no trial notices, nothing is missing."""

import os
import statistics
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from flaky import flaky
from mlflow import MlflowClient
from real_sweeps import RAW, command, environment, runs_of, trials_of

SECONDS = float(os.environ.get("BINSWEEP_OUTAGE", "20"))
AFTER = 15.0  # the sweep goes on for so long behind the outage


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_an_outage_costs_no_trial_and_no_metric(
    bins: Path, server: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    seconds = {}
    for mode in ("pass", "down", "fail", "very slow"):
        name = f"outage-{mode.replace(' ', '-')}"
        raw = {**RAW, "name": name, "data": {**RAW["data"], "source": str(bins)}}
        raw["budget"] = {"trials": 5000, "minutes": (SECONDS + AFTER) / 60}
        spec, home = tmp_path / f"{name}.yaml", tmp_path / name
        spec.write_text(yaml.safe_dump(raw))
        out = threading.Event()
        with flaky(server, lambda mode=mode, out=out: mode if out.is_set() else "pass") as proxy:  # type: ignore[misc]
            process = subprocess.Popen(
                command(spec, "local"), env=environment(home, proxy), stderr=subprocess.PIPE, text=True
            )
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("trial 0 starts"):
                    break
            out.set()
            over = threading.Timer(SECONDS, out.clear)
            over.start()
            try:
                _, errors = process.communicate(timeout=SECONDS + AFTER + 240)
            finally:
                over.cancel()
        assert process.returncode == 0 and "did not reach" not in errors, errors
        study = trials_of(home / "sweeps" / f"{name}-1" / "study.db")
        assert {trial.state.name for trial in study} <= {"COMPLETE", "PRUNED"}
        parent, runs = runs_of(server, name)
        assert parent.info.status == "FINISHED" and len(runs) == len(study)
        client, found = MlflowClient(server), []
        for trial in study:
            run = runs[trial.number]
            assert run.info.status == "FINISHED"
            history = client.get_metric_history(run.info.run_id, "seconds")
            assert sorted(point.step for point in history) == sorted(trial.intermediate_values)
            found += [point.value for point in history]
        seconds[mode] = statistics.median(found)
    for mode, median in seconds.items():
        change = median / seconds["pass"] - 1
        figure(
            f"MLflow {mode:<9} for {SECONDS:g} s: nothing lost, an epoch takes {median:.4f} s ({change:+.1%})"
        )
