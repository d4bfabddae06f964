"""A sweep whose trainings climb fidelity levels: from the file to the champion."""

import csv
from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_sweep import children, spec_of, sweep

from binsweep.models.checkpoint import load_checkpoint
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.report.fidelity import summaries
from binsweep.search.workflows.promote import promote_sweep


@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.integration)])
def test_from_small_photos_and_heads_to_a_champion(
    runner: str,
    bins: Path,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    home, name = tmp_path / "home", f"levels-{runner}"
    spec = spec_of(
        bins,
        name=name,
        data={"source": "", "image_size": 64},
        space={"lr": {"low": 1e-4, "high": 0.01, "log": True}, "batch_size": [8, 16]},
        fidelity={
            "image_size": [48, 64],
            "train_share": [0.5, 1.0],
            "trainable": ["head", "last_stage"],
            "epochs": [3, 2],
        },
        objective={"metric": "val_accuracy"},
        budget={"trials": 6},
        register={"model": name, "finalists": 1, "seeds": 1, "ensemble": True},
    )
    result = sweep(spec, home, runner, server)  # type: ignore[arg-type]
    assert len(result.leaderboard) == 6 and not result.failed
    built = [line for line in capsys.readouterr().err.splitlines() if line.startswith("features of ")]
    assert [line.partition(":")[0].partition(" for ")[2] for line in built] == [
        "head at 48 px",
        "last_stage at 64 px",
    ]
    rows = list(csv.DictReader((result.folder / "leaderboard.csv").open()))
    reached = {trial.number: trial.level.name for trial in result.leaderboard}
    assert {int(row["trial"]): row["level"] for row in rows} == reached and len(set(reached.values())) == 2
    done = {trial.number: trial.epochs_done for trial in result.leaderboard}
    assert max(done.values()) == 5 and set(done.values()) <= {3, 4, 5}, "trials pause between levels"

    _, runs = children(server, name)
    for run in runs:
        params, number = run.data.params, int(run.data.tags["optuna.trial"])
        assert params["level_1"] == "head at 48 px, 50% of the photos, 3 epochs"
        assert params["level_2"] == "last_stage at 64 px, 2 epochs" and params["epochs"] == "3, 2"
        assert (params["trainable"], params["image_size"]) == ("head, last_stage", "48, 64")
        history = MlflowClient(server).get_metric_history(run.info.run_id, "level")
        assert [point.value for point in history] == [1, 1, 1, 2, 2][: done[number]]

    course = read_history(result.folder)
    first, last = summaries(course)
    assert first.reached == 6 and last.reached == sum(epochs == 5 for epochs in done.values())
    assert first.name == "head at 48 px, 50% of the photos" and (first.seconds or 0) > 0
    page = (result.folder / "report.html").read_text()
    assert "Fidelity levels" in page and "last_stage at 64 px" in page

    _, decision = promote_sweep(name, home, server)
    assert decision.version is not None, decision.notes
    best = result.leaderboard[0]
    (again,) = (result.folder / "finalists").glob("*/best.pt")
    checkpoint = load_checkpoint(again)
    assert (checkpoint.image_size, len(checkpoint.earlier)) in ((48, 0), (64, 1))
    assert checkpoint.settings.lr == best.params["lr"]
    version = MlflowClient(server).get_model_version(name, decision.version)
    client = MlflowClient(server)
    (run,) = client.search_runs([runs[0].info.experiment_id], "tags.`binsweep.kind` = 'finalist'")
    climbed = {key: text for key, text in run.data.params.items() if key.startswith("level_")}
    assert climbed == (
        {f"level_{n}": str(one) for n, one in enumerate(checkpoint.levels, 1)} if checkpoint.earlier else {}
    )
    assert run.data.params["image_size"] == ("48, 64" if checkpoint.earlier else "48")
    card = "trained in sections: head at 48 px, 50% of the photos, 3 epochs, then last_stage"
    assert (card in version.description) == (len(checkpoint.earlier) == 1)
