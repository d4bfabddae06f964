"""A home, a study and a registered model that the code wrote before it moved to `binsweep` still serve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from binsweep.data.synthetic.dataset import write_synthetic

ROOT = Path(__file__).resolve().parents[2]
LAST = "997d61a83cdd"  # the last commit before the import name
SPEC = """
name: older
data: {{source: {bins}, image_size: 64}}
model: {{trainable: head, epochs: 5}}
space: {{lr: {{low: 0.003, high: 0.03, log: true}}, batch_size: [8, 16]}}
search: {{{points}: [{{lr: 0.02, batch_size: 8}}]}}
budget: {{trials: {trials}}}
resources: {{{at_once}: 1}}
register: {{model: older, finalists: 1, seeds: 1, gate: {{{least}: 0.01}}}}
"""
OLD = {"points": "points", "at_once": "trials_at_once", "least": "class_floor"}
NEW = {"points": "initial_points", "at_once": "max_concurrent_trials", "least": "min_class_accuracy"}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The code of that commit."""
    found = subprocess.run(["git", "-C", ROOT, "archive", LAST], capture_output=True, timeout=60)
    if found.returncode:
        pytest.skip(f"the repository's history does not reach back to {LAST}: git fetch --unshallow")
    (tmp_path / "older").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "older"], input=found.stdout, check=True, timeout=60)
    return tmp_path / "older"


@pytest.mark.night
@pytest.mark.timeout(900)
def test_a_home_of_before_the_import_name_serves_resume_report_promote_and_serve(
    older: Path, tmp_path: Path
) -> None:
    home, bins, spec = tmp_path / "home", tmp_path / "bins", tmp_path / "older.yaml"
    write_synthetic(bins, 240, 0, 64, [0, 1, 2])
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"BINSWEEP_HOME": str(home), "PYTHONSAFEPATH": "1", "PYTHONPATH": str(older)}

    def run(module: str, *words: str) -> str:
        command = [sys.executable, "-m", module, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    spec.write_text(SPEC.format(bins=bins, trials=2, **OLD))
    local = ("--runner", "local", "--json")
    first = json.loads(run("search.cli", "sweep", str(spec), *local, "--promote"))
    assert first["promotion"]["promoted"]
    before = run("search.cli", "status", "older")

    del environment["PYTHONPATH"]
    assert run("binsweep", "status", "older") == before
    report = Path(run("binsweep", "report", "older").strip())
    assert "trial 0" in report.read_text()
    checked = json.loads(run("binsweep", "serve", "older", "--check", "--json"))
    assert checked["rule"]["passed"]
    again = json.loads(run("binsweep", "promote", "older", "--json"))
    assert again["candidate"] == first["promotion"]["candidate"] and not again["promoted"]
    # The same specification in today's words, with a larger budget, goes on with that sweep.
    spec.write_text(SPEC.format(bins=bins, trials=3, **NEW))
    more = json.loads(run("binsweep", "sweep", str(spec), *local, "--resume"))
    assert more["sweep"] == first["sweep"]
    assert {row["trial"] for row in more["leaderboard"]} == {0, 1, 2}
