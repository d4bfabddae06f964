"""Named classes from their pictures to a served champion, with every report on the way; on digits of scikit-learn."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from PIL import Image
from sklearn.datasets import load_digits

from binsweep.data.errors import UserError
from binsweep.search.cli.main import cli
from binsweep.search.history.run_log_reader import read_history
from binsweep.search.history.sweep_state import find_folder
from binsweep.search.report.sweep_report import describe
from binsweep.search.spec.parser import parse_spec
from binsweep.search.workflows.evaluate import evaluate_source
from binsweep.search.workflows.export import export_model
from binsweep.search.workflows.prepare import prepare
from binsweep.search.workflows.promote import promote_sweep
from binsweep.search.workflows.serving_check import check_serving
from binsweep.search.workflows.sweep import run_sweep
from binsweep.tracking.evaluation.validation_reference import late_reference
from binsweep.tracking.monitoring.reference import load_reference
from binsweep.tracking.registry.versions import champion_of
from binsweep.tracking.serving.model_server import predict, serve_model

pytestmark = pytest.mark.integration  # sweeps, whose best are evaluated and served

WORDS = ("zero <0>", "one, uno", "two")
# What has no place where classes have names.
COUNTING = re.compile(r"\b(counts?|counting|items?|bins?|RMSE|rmse|MAE|within one)\b")


def draw_digits(folder: Path, photos: int = 240) -> Path:
    """Pictures of the first three digits in folders named after them; 64 pixels a side."""
    digits = load_digits(n_class=len(WORDS))
    for number in range(photos):
        picture = Image.fromarray((255 - digits.images[number] * 255 / 16).astype(np.uint8)).resize((64, 64))
        place = folder / WORDS[digits.target[number]]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_digits(tmp_path_factory.mktemp("data") / "digits")


def raw_of(source: Path, **changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "name": "digit-names",
        "data": {"source": str(source), "image_size": 64},
        "model": {"augment": "none", "batch_size": 16},
        "space": {"lr": [0.003, 0.01], "epochs": [6]},
        "objective": {"metric": "val_balanced_accuracy"},
        "search": {"stopping": "none"},
        "budget": {"trials": 2},
        "register": {"finalists": 1, "seeds": 1, "flip": True, "gate": {"min_class_accuracy": 0.2}},
    }
    return raw | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"objective": {"metric": "val_rmse"}},
            "objective.metric: there is no such metric where labels are names",
        ),
        ({"model": {"head": "ordinal"}}, "model.head: there is no such head where labels are names"),
        (
            {"register": {"gate": {"beats_guess": ["mae"]}}},
            "register.gate.beats_guess: there is no such score",
        ),
        ({"objective": {"metric": "val_top3_accuracy"}}, "needs at least 11 classes, and .* has 3"),
    ],
)
def test_what_only_counts_have_is_refused_before_the_sweep(
    digits: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """Also where the source alone says that its labels are names; nothing is decoded for it."""
    with pytest.raises(UserError, match=says):
        prepare(parse_spec(raw_of(digits, **changes)), tmp_path / "home")
    assert not (tmp_path / "home" / "banks").exists()


def test_all_mistakes_of_a_spec_with_names_at_once(digits: Path) -> None:
    raw = raw_of(digits, objective={"metric": "val_mae"}, model={"head": "regress"})
    raw["data"] |= {"labels": "names", "train_also": "others"}
    with pytest.raises(UserError, match="3 mistakes") as caught:
        parse_spec(raw)
    assert "data.train_also: teaches other counts, and the labels are names" in caught.value.message
    counts = raw_of(digits, objective={"metric": "val_macro_f1"})
    counts["data"]["classes"] = [1, 2]
    with pytest.raises(UserError, match="there is no such metric where labels are counts"):
        parse_spec(counts)


@pytest.fixture(scope="module")
def promoted(
    digits: Path, server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, Any]]:
    """A home with the sweep, the address of its server, and the gate's decision."""
    home = tmp_path_factory.mktemp("home-names")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        patch.setenv("BINSWEEP_HOME", str(home))
        run_sweep(prepare(parse_spec(raw_of(digits)), home), "local", server)
        name, decision = promote_sweep("digit-names", home, server)
        assert name == "digit-names"
        yield home, server, decision


def names_of(text: str, digits: Path) -> str:
    """A report without what it must name: the source, the sweep, and embedded pictures, styles and scripts."""
    text = re.sub(r"(?s)<(style|script).*?</\1>|base64,[A-Za-z0-9+/=]+|<svg.*?</svg>", "", text)
    return text.replace(str(digits), "")


@pytest.mark.timeout(900)
def test_the_gate_promotes_it_in_words_of_classes(promoted: tuple[Path, str, Any], digits: Path) -> None:
    home, server, decision = promoted
    assert decision.promoted, decision.reason
    assert set(decision.candidate) == {"accuracy", "balanced_accuracy", "macro_f1", "log_loss"}
    assert decision.guess["guess"] in WORDS
    text = " ".join([*decision.notes, *(rule.text + rule.name for rule in decision.rules)])
    assert "balanced_accuracy" in decision.rules[0].text and not COUNTING.search(text), text
    version = champion_of(server, "digit-names")
    assert version is not None and not COUNTING.search(names_of(version.description, digits))
    assert "zero \\<0\\>" in version.description and "`label`" in version.description
    reference = load_reference(server, version)  # what it will be compared with once it is served
    assert reference is not None and reference.photos == sum(reference.counts["answer"].values())
    assert {json.loads(label) for label in reference.counts["answer"]} <= set(WORDS)
    page = (find_folder(home, "digit-names") / "test" / "report.html").read_text()
    assert "zero &lt;0&gt;" in page and "<0>" not in page
    assert not COUNTING.search(names_of(page, digits))
    metrics = MlflowClient(server).get_run(version.run_id or "").data.metrics
    assert {"test_macro_f1", "test_accuracy_class_zero _0_", "test_accuracy_class_one_ uno"} <= set(metrics)


@pytest.mark.integration  # the version is evaluated once more
@pytest.mark.timeout(900)
def test_a_version_without_a_reference_gets_the_same_from_its_data(promoted: tuple[Path, str, Any]) -> None:
    home, server, _ = promoted
    version = champion_of(server, "digit-names")
    assert version is not None
    stored = load_reference(server, version)
    made, problem = late_reference(server, version, home)
    assert stored is not None and made is not None and not problem
    assert made.photos == stored.photos
    for figure in ("answer", "brightness", "sharpness", "width", "bytes"):
        assert made.counts[figure] == stored.counts[figure]


@pytest.mark.timeout(600)
def test_it_is_served_as_it_was_evaluated(promoted: tuple[Path, str, Any], digits: Path) -> None:
    home, server, _ = promoted
    photos = [next((digits / word).iterdir()) for word in WORDS]
    with serve_model("models:/digit-names@champion", server) as served:
        rows = predict(served.url, [photo.read_bytes() for photo in photos], 60)
    for row in rows:
        assert set(row) == {"label", "confidence", "probabilities", "model_version", "error"}
        assert set(row["probabilities"]) == set(WORDS) and not row["error"]
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["confidence"] == pytest.approx(row["probabilities"][row["label"]])
    assert sum(row["label"] == word for row, word in zip(rows, WORDS, strict=True)) >= 2
    checked = check_serving("models:/digit-names@champion", home, server)
    assert checked.rule.passed and "0 other labels" in checked.rule.text


@pytest.mark.timeout(600)
def test_the_sweeps_records_and_later_evaluations(
    promoted: tuple[Path, str, Any], digits: Path, tmp_path: Path
) -> None:
    home, server, decision = promoted
    folder = find_folder(home, "digit-names")
    history = read_history(folder)
    shown = {name for name in history.leaders[0].best if name.startswith("val_")}
    assert shown >= {
        "val_accuracy",
        "val_balanced_accuracy",
        "val_macro_f1",
        "val_loss",
        "val_accuracy_class_two",
    }
    assert "val_rmse" not in shown and "the commonest class is right" not in describe(folder)
    for page in ("report.html", "data/report.html"):
        text = names_of((folder / page).read_text(), digits)
        assert not COUNTING.search(text), (page, COUNTING.search(text))
    for number in (0, 1):
        figures = folder / f"trial-{number:04}" / "validation"
        assert (figures / "per_class.csv").read_text().startswith("class,accuracy,precision,f1,photos")
    own = evaluate_source("models:/digit-names@champion", str(digits), home, server)
    assert own.card.scores["macro_f1"] == pytest.approx(decision.candidate["macro_f1"])
    assert not COUNTING.search(names_of((own.folder / "report.html").read_text(), digits))
    some = evaluate_source(
        "models:/digit-names@champion", str(digits), home, server, classes=["two", WORDS[0]], with_seen=True
    )
    assert set(some.card.classes) == {"two", WORDS[0]}
    with pytest.raises(UserError, match="--classes: no readable image of class seven") as caught:
        evaluate_source("models:/digit-names@champion", str(digits), home, server, classes=["two", "seven"])
    assert "two" in caught.value.hint
    out, _ = export_model("models:/digit-names@champion", "onnx", tmp_path / "export", server)
    assert json.loads((out / "labels.json").read_text())["classes"] == sorted(WORDS)
    assert not COUNTING.search((out / "README.md").read_text())


@pytest.mark.timeout(600)
def test_the_commands_speak_of_classes(
    promoted: tuple[Path, str, Any], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, server, _ = promoted
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("BINSWEEP_HOME", str(home))
    photo = str(next((digits / "two").iterdir()))
    for words in (
        ["status"],
        ["data", "report", str(digits), "--out", str(tmp_path / "data.html")],
        ["data", "audit", str(digits), "--out", str(tmp_path / "audit"), "--image-size", "64"],
        ["predict", photo, "--model", "digit-names"],
        [
            "evaluate",
            "digit-names",
            str(digits),
            "--classes",
            "two",
            "--seen",
            "--out",
            str(tmp_path / "seen"),
        ],
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, (words, done.output)
        said = done.output.replace(str(digits), "").replace(str(tmp_path), "")
        assert not COUNTING.search(said), (words, said)
    assert (tmp_path / "audit" / "audit.csv").read_text().count('"one, uno"') > 10


@pytest.mark.timeout(600)
def test_a_sweep_of_counts_cannot_follow_a_champion_of_names(
    promoted: tuple[Path, str, Any], bins: Path, tmp_path: Path
) -> None:
    _, server, _ = promoted
    raw = raw_of(bins, name="counts", objective={"metric": "val_accuracy"})
    raw["register"] = {"model": "digit-names", "finalists": 0}
    run_sweep(prepare(parse_spec(raw), tmp_path), "local", server)
    with pytest.raises(UserError, match="answers with labels, and the candidate with counts") as caught:
        promote_sweep("counts", tmp_path, server)
    assert "register.model" in caught.value.hint
