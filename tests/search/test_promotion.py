"""Promotions that meet one another, other divisions of the same photos, and evaluations of what a model has seen."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from test_sweep import spec_of, sweep

import binsweep.tracking.promotion.evidence
from binsweep.data.errors import UserError
from binsweep.data.synthetic.dataset import write_synthetic
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.evaluate import evaluate_source
from binsweep.search.workflows.promote import promote_sweep
from binsweep.tracking.evaluation.predictions import Predictions
from binsweep.tracking.promotion.rollback import rollback
from binsweep.tracking.registry.versions import champion_of

pytestmark = pytest.mark.integration  # sweeps, whose best are evaluated and served


def test_two_promotions_at_once_and_another_division_of_the_photos(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bins, home, name = tmp_path / "bins", tmp_path / "home", "meeting"
    write_synthetic(bins, 240, 0, 64, [0, 1, 2])
    register = {"model": name, "finalists": 0, "gate": {"beats_guess": ["accuracy"]}}
    common: dict[str, Any] = {"budget": {"trials": 1}, "register": register}
    sweep(spec_of(bins, name="first", **common), home, "local", server)
    _, first = promote_sweep("first", home, server)
    assert first.promoted and first.decided == 1 and first.compared == 0
    client = MlflowClient(server)

    # The same photos, divided by another seed. While its candidate is asked, somebody else promotes.
    seeded = spec_of(bins, name="seeded", **common)
    raw = {**seeded.raw, "data": {**seeded.raw["data"], "split": {**seeded.raw["data"]["split"], "seed": 1}}}
    sweep(parse_spec(raw), home, "local", server)
    ask, others = binsweep.tracking.promotion.evidence.query_server, []

    def meanwhile(*arguments: Any) -> Any:
        answer = ask(*arguments)
        tags = client.get_model_version(name, first.version).tags
        kept = {key: tags[key] for key in ("data", "dataset.fingerprint", "data.guess")}
        run, source = (
            getattr(client.get_model_version(name, first.version), key) for key in ("run_id", "source")
        )
        made = client.create_model_version(name, source, run, kept, model_id=source.rpartition("/")[2])
        others.append(made.version)
        client.set_registered_model_alias(name, "champion", others[0])
        return answer

    asked: list[str] = []
    evaluate = binsweep.tracking.promotion.evidence.evaluate

    def counted(uri: str, *arguments: Any) -> Predictions:
        asked.append(uri)
        return evaluate(uri, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(binsweep.tracking.promotion.evidence, "query_server", meanwhile)
        patch.setattr(binsweep.tracking.promotion.evidence, "evaluate", counted)
        _, second = promote_sweep("seeded", home, server)
    (other,) = others
    assert second.version is not None
    assert asked == [f"models:/{name}/{version}" for version in (first.version, second.version, other)]
    assert second.champion_version == other
    # Version `other` keeps no list of its photos: it is known by its data, which lie here as they were.
    (note,) = [note for note in second.notes if "was trained or chosen on" in note]
    assert note.startswith(f"version {other} was") and 0 < second.compared < second.images
    assert f"compared on the {second.compared} that are new to both" in note and "seed 0" in note
    assert second.decided == 1  # by this test split; the other one has decided, too
    tags = client.get_model_version(name, second.version).tags
    assert tags.get("champion.before") == (other if second.promoted else None)
    alias = "champion" if second.promoted else "challenger"
    assert client.get_model_version_by_alias(name, alias).version == second.version
    if second.promoted:
        assert rollback(server, name, "back") == (second.version, other)
    champion = champion_of(server, name)
    assert champion is not None and champion.version == other

    # Once more by the test split of the first one: it says that it has decided before.
    client.set_registered_model_alias(name, "champion", first.version)
    _, again = promote_sweep("first", home, server, dry_run=True)
    assert again.decided == 2 and any("decision 2 by this test split" in note for note in again.notes)
    assert again.compared == again.images and not again.promoted


def test_photos_that_a_model_has_seen_are_left_out_of_an_evaluation(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bins, home, name = tmp_path / "bins", tmp_path / "home", "seeing"
    write_synthetic(bins, 120, 0, 64, [0, 1, 2])
    spec = spec_of(bins, name="seeing", budget={"trials": 1}, register={"model": name, "finalists": 0})
    sweep(spec, home, "local", server)
    promote_sweep("seeing", home, server)
    uri = f"models:/{name}/1"

    own = evaluate_source(uri, str(bins), home, server)
    tested = own.card.images
    assert "the test split" in own.facts["photos"] and "which no trial has seen" in own.facts["photos"]
    learned = evaluate_source(uri, str(bins), home, server, split="train")
    assert f"trained on or chosen by {learned.card.images} of these" in learned.facts["photos"]

    # Copied, renamed, one more and one less: most of it is what it learned from.
    copied = tmp_path / "copied"
    for folder, suffix in (("bin-images", ".jpg"), ("metadata", ".json")):
        (copied / folder).mkdir(parents=True)
        for file in sorted((bins / folder).iterdir())[:-1]:
            shutil.copy(file, copied / folder / f"{file.stem}_r{suffix}")
    write_synthetic(tmp_path / "other", 3, 7, 64, [0, 1, 2])
    for file in sorted((tmp_path / "other").glob("*/*")):
        shutil.copy(file, copied / file.parent.name / f"new{file.name}")
    new = evaluate_source(uri, str(copied), home, server)
    assert tested + 2 <= new.card.images <= tested + 3
    every = evaluate_source(uri, str(copied), home, server, with_seen=True)
    assert every.card.images == 122
    seen = 122 - new.card.images
    assert f"the other {seen}, which it was trained on or chosen by, are left out" in new.facts["photos"]
    assert f"trained on or chosen by {seen} of these 122 photos: not new to it" in every.facts["photos"]
    page = (new.folder / "report.html").read_text()
    assert f"the other {seen}" in page and new.folder != every.folder

    # A folder of nothing else, and a model of which nobody knows what it has seen.
    train = {path.stem for path in (bins / "bin-images").iterdir()} - {row["id"] for row in _rows(own.folder)}
    for stem in train:
        for folder, suffix in (("bin-images", ".jpg"), ("metadata", ".json")):
            (tmp_path / "train" / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(bins / folder / f"{stem}{suffix}", tmp_path / "train" / folder / f"{stem}_t{suffix}")
    with pytest.raises(UserError, match=f"each of these {len(train)} photos"):
        evaluate_source(uri, str(tmp_path / "train"), home, server)
    client = MlflowClient(server)
    first = client.get_model_version(name, "1")
    client.create_model_version(name, first.source, first.run_id, model_id=first.source.rpartition("/")[2])
    unknown = evaluate_source(f"models:/{name}/2", str(tmp_path / "train"), home, server)
    assert unknown.card.images == len(train)
    assert "which photos the model learned from is not known" in unknown.facts["photos"]
    assert json.dumps(dataclasses.asdict(unknown.card))

    # Two photos of one count, one that is broken, one of a count that the model does not know; and no splits at all.
    few = tmp_path / "few"
    for number, (source, count) in enumerate(((12, 2), (13, 2), (14, 7))):
        write_synthetic(tmp_path / f"one-{number}", 1, source, 64, [0, 1, 2])
        (few / str(count)).mkdir(parents=True, exist_ok=True)
        shutil.copy(
            tmp_path / f"one-{number}" / "bin-images" / "00000.jpg", few / str(count) / f"{source}.jpg"
        )
    (few / "2" / "broken.jpg").write_bytes(b"")
    for place in (few, few / "test"):
        found = evaluate_source(uri, str(few), home, server)
        assert found.card.images == 2 and list(found.card.classes) == [2]
        assert "all photos of 0, 1, 2 items in" in found.facts["photos"]
        assert any("2/broken.jpg: empty file" in note for note in found.notes)
        if place == few:  # once more, divided as other tools do, and still without train and validation
            (few / "test").mkdir()
            for folder in ("2", "7"):
                shutil.move(few / folder, few / "test" / folder)
    assert evaluate_source(uri, str(few), home, server, split="test", classes=[2]).card.images == 2
    with pytest.raises(UserError, match="--split train: none of the 2 photos"):
        evaluate_source(uri, str(few), home, server, split="train")
    with pytest.raises(UserError, match="no readable image of class 0, 1 in"):
        evaluate_source(uri, str(few), home, server, classes=[0, 1, 2])


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pd.read_parquet(folder / "predictions.parquet").to_dict("records")
    return rows
