"""The sweep specification: what is right is read, what is wrong is said, all of it at once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import load_spec, parse_spec
from binsweep.search.spec.renamed_keys import translate_renamed_keys
from binsweep.search.spec.schema import ENDING_LIMITS

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "bins",
    "data": {"source": "./bins", "classes": [1, 2, 3]},
    "model": {"trainable": "head"},
    "space": {
        "lr": {"low": 1e-4, "high": 0.1, "log": True},
        "batch_size": [32, 64],
        "epochs": {"low": 4, "high": 8},
    },
    "budget": {"minutes": 60},
}


def broken(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    place = raw
    *steps, last = path.split(".")
    for step in steps:
        place = place.setdefault(step, {})
    place[last] = value
    return raw


def message(raw: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_spec(raw)
    return str(caught.value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert {"lr", "batch_size", "epochs", "backbone"} <= set(spec.space)


def test_fidelity_levels_are_settings_of_their_own_from_cheap_to_dear() -> None:
    raw = broken("fidelity", {"image_size": [112, 160, 224], "trainable": ["head", "last_stage", "all"]})
    del raw["model"]
    spec = parse_spec(raw)
    assert spec.image_sizes == [224, 112, 160] and spec.level_epochs == (None, None, None)
    assert spec.settings.trainable == "all" and spec.values("trainable") == ["head", "last_stage", "all"]
    trial = spec.trial_settings({"lr": 0.01, "batch_size": 32, "epochs": 6}, seed=1)
    names = [
        (level.settings.trainable, level.image_size, level.settings.epochs) for level in spec.levels(trial)
    ]
    assert names == [("head", 112, 6), ("last_stage", 160, 6), ("all", 224, 6)]
    assert spec.levels(trial)[-1].settings == trial
    again = parse_spec(spec.raw)
    assert again.levels(trial) == spec.levels(trial), "as it is stored"
    assert len(parse_spec(GOOD).levels(trial)) == 1


def test_lists_of_different_lengths_are_reported_with_the_other_mistakes() -> None:
    for size in (16, 112):  # a mistake in a value, and one between sections
        text = message(broken("fidelity", {"image_size": [size, 160], "trainable": ["head", "head", "all"]}))
        assert "fidelity: the lists go together, but are 2 (image_size), 3 (trainable) long" in text
        assert "fidelity.image_size" in text and "mistakes" in text


def test_defaults_are_filled_in_and_the_goal_follows_the_metric() -> None:
    spec = parse_spec(GOOD)
    assert (spec.metric, spec.goal) == ("val_accuracy", "maximize")
    assert spec.settings.trainable == "head" and spec.max_epochs == 8
    assert parse_spec(broken("objective.metric", "val_rmse")).goal == "minimize"
    assert parse_spec(GOOD).resources.gpus_per_trial is None


def test_a_trial_takes_fixed_values_then_suggested_ones() -> None:
    spec = parse_spec(broken("model.weight_decay", 0.5))
    chosen = spec.trial_settings({"lr": 0.02, "batch_size": 64, "epochs": 5}, seed=7)
    assert (chosen.lr, chosen.batch_size, chosen.epochs, chosen.weight_decay, chosen.seed) == (
        0.02,
        64,
        5,
        0.5,
        7,
    )


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("budgett", {}, "did you mean 'budget'"),
        ("data.sauce", "x", "did you mean 'source'"),
        ("data.split.trian", 0.5, "did you mean 'train'"),
        ("health.overfitt", "stop", "did you mean 'overfit'"),
        ("health.overfit", "halt", "health.overfit: no such action"),
        ("health.overfit", {"action": "halt"}, "one of note, stop, ignore"),
        ("health.overfit", {"ratio_treshold": 0.5}, "did you mean 'ratio_threshold'"),
        ("health.overfit", {"ratio_threshold": "much"}, "health.overfit.ratio_threshold: must be a number"),
        ("health.overfit", {"patience": 0.5}, "must be a whole number above zero"),
        ("health.overfit", ["stop"], "health.overfit"),
        ("resources.cpu_hour_price", -1.0, "must be at least 0"),
        ("model.lerning_rate", 0.1, "model.lerning_rate: no such setting"),
        ("space.batchsize", [1], "did you mean 'batch_size'"),
        ("budget.trials", "many", "budget.trials"),
        ("budget.trials", 0, "must be at least 1"),
        ("budget.minutes", -1, "must be above 0"),
        ("budget.epochs", 0, "must be at least 1"),
        ("budget.gpu_hours", 0, "must be above 0"),
        ("budget.money", 0, "must be above 0"),
        ("budget.money", 12, "budget.money: nothing has a price, so it would never be spent, but got 12.0"),
        (
            "budget",
            {},
            "budget: sets no limit that is surely reached: the sweep would never end (add minutes",
        ),
        ("budget", {"target": 0.9, "no_improvement": 3, "trial_minutes": 5}, "the sweep would never end"),
        ("objective.max_latency_ms", 0, "must be above 0"),
        ("objective.cost_objective", "price", "objective.cost_objective"),
        (
            "space.epochs",
            {"values": [4, 8], "when": {"batch_size": [32]}},
            "epochs cannot depend on a choice",
        ),
        (
            "space.momentum",
            {"low": 0.5, "high": 0.9, "when": {"optimizer": ["sgd"]}},
            "momentum.when.optimizer",
        ),
        ("budget.no_improvement", 0, "must be at least 1, but got 0 (choose a larger number)"),
        ("budget.target", "high", "budget.target"),
        ("search.sampler", "magic", "search.sampler: must be 'auto', 'tpe'"),
        ("model.train_share", 2.0, "model.train_share: must be at least 0.01 and at most 1, but got 2.0"),
        ("fidelity.depth", [1, 2], "fidelity.depth: unknown key"),
        ("fidelity.trainable", ["head", "tail"], "fidelity.trainable.1: must be 'head'"),
        (
            "fidelity.trainable",
            ["last_stage", "all", "head"],
            "fidelity.trainable: must go from cheap to dear",
        ),
        ("fidelity.trainable", ["last_stage", "all"], "fidelity.trainable: also in model"),
        ("fidelity.epochs", [4, 5], "fidelity.epochs: also in space"),
        ("fidelity.epochs", [4], "fidelity.epochs: must have at least 2 items"),
        ("fidelity.image_size", [224, 112], "fidelity.image_size: must go from cheap to dear"),
        (
            "fidelity.image_size",
            [112, 160],
            "fidelity.image_size: must end with data.image_size, which is 224",
        ),
        ("fidelity.image_size", [16, 224], "fidelity.image_size.0: must be at least 32"),
        ("fidelity.train_share", [0.2, 0.5], "fidelity.train_share: must end with all photos"),
        (
            "fidelity.train_share",
            [0.001, 1.0],
            "fidelity.train_share.0: must be at least 0.01, but got 0.001",
        ),
        ("fidelity.train_share", [0.0, 1.0], "fidelity.train_share.0: must be at least 0.01"),
        (
            "fidelity",
            {"image_size": [112, 160, 224], "train_share": [0.5, 1.0]},
            "fidelity: the lists go together, but are 3 (image_size), 2 (train_share) long",
        ),
        ("data.train_also", "all", "data.train_also: must be others, or a list of different counts"),
        ("data.train_also", [0, 0], "data.train_also: must be others, or a list of different counts"),
        ("data", {"source": "x", "train_also": "others"}, "data.train_also: needs data.classes"),
        ("data", {"source": "x", "classes": [1, 2], "train_also": [0, 2]}, "names 2, which data.classes has"),
        ("register.finalists", "all", "register.finalists: must be auto, or a whole number from 0 to 5"),
        ("register.finalists", 6, "register.finalists: must be auto, or a whole number from 0 to 5"),
        ("model.ema", 1.0, "model.ema: must be at least 0 and below 1"),
        ("search.seed", "1", "search.seed: must be a whole number, but got '1' (write it without quotes)"),
        ("search.seed", None, "search.seed: must be a whole number, but got null (such as 3)"),
        ("search.seed", [1, None], "search.seed: must be a whole number, but got [1, null] (such as 3)"),
        ("budget.minutes", "many", "budget.minutes: must be a number, but got 'many' (such as 0.5)"),
        ("budget.minutes", "1e1", "must be a number, but got '1e1' (write it without quotes)"),
        ("register.flip", "true", "must be true or false, but got 'true' (write it without quotes)"),
        ("register.flip", 1, "must be true or false, but got 1 (write one of the two)"),
        ("model.epochs", None, "model.epochs: must be of type int, but got null"),
        ("search.stopping", "never", "search.stopping"),
        ("search.initial_points", [{"lr": 1e9}], "search.initial_points.0.lr: lies outside of the space"),
        ("search.initial_points", [{"speed": 1}], "search.initial_points.0.speed: is not searched"),
        ("search.initial_points", [{}], "search.initial_points.0.lr: is missing"),
        ("data.classes", [3], "at least 2 items"),
        ("data.classes", "1-3", "data.classes: must be a list, but got '1-3' (in brackets"),
        ("budget", None, "budget: must be a section of keys, but got null"),
        ("data.classes", [1, 2, 1], "data.classes: must name each count once"),
        ("name", "n" * 201, "name: must have at most 200 characters"),
        ("register.model", " ", "register.model: must be a name that MLflow can register"),
        ("register.model", "..", "register.model: must be a name"),
        ("register.model", "a?b", "register.model: must be a name"),
        ("register.model", "a\n", "register.model: must be a name"),
        ("data.image_size", 8, "data.image_size"),
        ("data.split", {"train": 0.6, "validation": 0.3, "test": 0.2}, "must add up to 1, but got 1.1"),
        ("space", {}, "at least one dimension"),
        ("space.lr", {"low": 0.1, "high": 0.01}, "space.lr"),
        ("space.lr", {"low": 0, "high": 0.01, "log": True}, "space.lr"),
        ("space.lr", {"low": -0.1, "high": 0.01}, "space.lr: must be at least"),
        ("space.lr", "0.1", "space.lr"),
        ("space.batch_size", [16, 0], "space.batch_size: must be at least 1"),
        ("space.batch_size", [16.5], "must be of type int"),
        ("space.backbone", ["resnet81"], "did you mean 'resnet18'"),
        ("space.optimizer", {"low": 1, "high": 2}, "cannot be a range"),
        (
            "space.trainable",
            ["head", "tail"],
            "space.trainable: must be one of head, last_stage, later_stages, all",
        ),
        ("model.lr", 0.1, "model.lr: also in space"),
        ("model.epochs", True, "model.epochs"),
        ("objective.metric", "val_acuracy", "did you mean 'val_accuracy'"),
        ("objective.goal", "minimize", "wrong way round"),
        ("objective.metric", "train_accuracy", "no such metric"),
        ("model.seed", 3, "search.seed"),
        ("model", {1: 2}, "model.1: no such setting"),
        ("model", {"augment": "flip_shift", "trainable": ["head"]}, "model.trainable"),
        ("resources.gpus_per_trial", 1.5, "whole number of GPUs"),
        ("register.model", "a@b", "register.model"),
        ("search.sampler", "tpee", "search.sampler"),
        ("search.sampler", "grid", "space.lr: a grid needs finitely many values"),
        ("model.augment", "flips", "did you mean 'flip'"),
        ("model.views", 2, "model.views"),
        ("resources.gpus_per_trial", -1, "resources.gpus_per_trial"),
        ("resources.workers_per_trial", 0, "must be at least 1"),
        ("resources", {"workers_per_trial": 2, "gpus_per_trial": 0.5}, "a GPU of its own"),
        ("resources.workers_per_trial", 1000, "at least 2 for each of 1000 workers_per_trial"),
        ("resources.overrides", {"gpus_per_trial": 1}, "resources.overrides.when: required key is missing"),
        ("resources.overrides", {"when": {}}, "resources.overrides.when"),
        ("resources.overrides", {"when": {"batch_size": []}}, "resources.overrides.when.batch_size"),
        ("resources.overrides", {"when": {"backbone": ["resnet50"]}}, "when.backbone: is no list of choices"),
        ("resources.overrides", {"when": {"batch_size": [48]}}, "is no choice of batch_size, but got 48"),
        (
            "resources.overrides",
            {"when": {"batch_size": [64]}, "gpu_per_trial": 1},
            "did you mean 'gpus_per_trial'",
        ),
        (
            "resources.overrides",
            {"when": {"batch_size": [64]}, "workers_per_trial": 2, "gpus_per_trial": 0.5},
            "resources.overrides.gpus_per_trial: must be whole",
        ),
        ("register.model", "a/b", "register.model"),
        ("register.model", "a?b", "register.model"),
        ("register.gate", {"beats_guess": ["f1"]}, "register.gate.beats_guess.0: must be 'accuracy'"),
        ("register.gate", {"correction": "ladder"}, "register.gate.correction: must be 'none'"),
        (
            "register.engine",
            "tensorrt",
            "register.engine: must be 'auto', 'openvino', 'onnxruntime' or 'torch'",
        ),
        ("name", "a b", "name"),
    ],
)
def test_each_mistake_is_named(path: str, value: Any, said: str) -> None:
    assert said in message(broken(path, value))


@pytest.mark.parametrize("name", ENDING_LIMITS)
def test_one_limit_that_is_surely_reached_suffices(name: str) -> None:
    raw = broken("resources.gpu_hour_price", 2.5)
    raw["budget"] = {name: 3}
    spec = parse_spec(raw)
    assert {key: value for key, value in spec.budget.model_dump().items() if value is not None} == {name: 3}


def test_a_spec_without_a_budget_is_refused_unless_it_is_a_grid() -> None:
    raw = broken("register.model", "counter")
    del raw["budget"]
    raw["objective"] = {"metric": "val_loss", "goal": "maximize"}
    text = message(raw)
    assert "2 mistakes" in text and "objective.goal: wrong way round" in text
    assert "budget: sets no limit" in text
    del raw["objective"]
    raw["search"], raw["space"] = {"sampler": "grid"}, {"lr": [0.01, 0.1]}
    assert parse_spec(raw).budget.trials is None


def test_prices_of_nothing_spend_no_money() -> None:
    raw = broken("resources", {"cpu_hour_price": 0.0, "gpu_hour_price": 0.0})
    raw["budget"] = {"minutes": 60, "money": 5}
    assert "budget.money: nothing has a price" in message(raw)


def test_a_spec_that_was_stored_when_trials_had_a_default_is_read() -> None:
    stored = copy.deepcopy(parse_spec(broken("budget.trials", 20)).raw)
    stored["budget"]["minutes"] = None
    del stored["budget"]["money"]
    assert parse_spec(stored).budget.trials == 20


def test_overrides_are_checked_against_the_trials_that_they_apply_to(tmp_path: Path) -> None:
    raw = broken("resources.overrides", {"when": {"batch_size": [64]}, "workers_per_trial": 20})
    assert parse_spec(raw).resources.of({"batch_size": 64}).workers_per_trial == 20
    assert parse_spec(raw).resources.of({"batch_size": 32}).workers_per_trial == 1
    raw["resources"]["overrides"]["when"] = {"weights": ["own.pth"]}  # of this file's folder, as in the space
    raw["space"]["weights"] = ["imagenet", "own.pth"]
    raw["resources"]["overrides"]["workers_per_trial"] = 2
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(raw))
    spec = load_spec(file)
    assert spec.resources.overrides is not None
    assert (
        spec.resources.overrides.when == {"weights": [spec.values("weights")[1]]} != {"weights": ["own.pth"]}
    )


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("objective.against", "latency_ms", "cost_objective"),
        ("resources.large", {"when": {"batch_size": [64]}}, "overrides"),
        ("resources.trials_at_once", 2, "max_concurrent_trials"),
        ("search.points", [], "initial_points"),
        ("register.gate.class_floor", 0.1, "min_class_accuracy"),
    ],
)
def test_a_renamed_key_is_refused_and_the_new_one_named(old: str, value: Any, new: str) -> None:
    raw = broken(old, value)
    raw["budgett"] = {}
    text = message(raw)
    assert "2 mistakes" in text and f"{old}: was renamed (write {new})" in text
    del raw["budgett"]
    expected = parse_spec(broken(f"{old.rpartition('.')[0]}.{new}", value))
    assert parse_spec(translate_renamed_keys(raw)) == expected
    assert raw == broken(old, value), "the stored spec itself is left as it is"


def test_a_spec_without_renamed_keys_is_not_changed() -> None:
    for raw in (GOOD, {}, None, [], {"objective": None, "register": {"gate": 3}}):
        assert translate_renamed_keys(raw) == raw


def test_all_mistakes_are_reported_at_once() -> None:
    raw = broken("budgett", {})
    raw["space"]["lr"] = {"low": 1, "high": 0.1}
    raw["model"]["head"] = "regres"
    text = message(raw)
    assert "3 mistakes" in text and "budgett" in text and "space.lr" in text and "'regress'" in text


@pytest.mark.parametrize("raw", [None, [], "text", 3, {"name": "x"}, {"space": []}, {"data": 1, "model": 2}])
def test_documents_of_another_shape_are_refused(raw: Any) -> None:
    message(raw)


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD).replace("0.0001", "1e-4")
    assert "1e-4" in text
    (tmp_path / "s.yaml").write_text(text)
    assert load_spec(tmp_path / "s.yaml").values("lr") == [1e-4, 0.1]


def test_set_overrides_and_reports_its_own_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    spec = load_spec(file, ["budget.trials=3", "space.batch_size=[8, 16]", "data.source=bins here"])
    assert (spec.budget.trials, spec.values("batch_size"), spec.data.source) == (
        3,
        [8, 16],
        str(Path("bins here").absolute()),
    )
    for bad in ("budget.trials", "=3", "name.x=3", "budget.trials=[", "a..b=1"):
        with pytest.raises(UserError, match="--set"):
            load_spec(file, [bad])


def test_unreadable_files_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load_spec(tmp_path)
    (tmp_path / "bad.yaml").write_text("name: [\n")
    with pytest.raises(UserError, match=r"bad\.yaml, line"):
        load_spec(tmp_path / "bad.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(UserError):
        load_spec(tmp_path / "bytes.yaml")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_paths = st.sampled_from(
    [
        *("data", "data.classes", "data.split", "model", "model.lr", "space", "space.lr", "space.epochs"),
        *("space.backbone", "budget", "search", "objective.metric", "name", "register"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(_paths, _json)
def test_no_document_raises_anything_but_the_users_error(path: str, value: Any) -> None:
    try:
        parse_spec(broken(path, value))
    except UserError as error:
        assert error.message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_the_users_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "s.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError):
        load_spec(file)


def test_a_value_that_is_not_searched_there_is_the_models() -> None:
    raw = broken("space.momentum", {"low": 0.5, "high": 0.95, "when": {"optimizer": ["sgd"]}})
    raw["space"]["optimizer"] = ["adamw", "sgd"]
    raw["model"]["momentum"] = 0.25
    raw["search"] = {"initial_points": [{"lr": 0.01, "batch_size": 32, "epochs": 4, "optimizer": "adamw"}]}
    spec = parse_spec(raw)
    assert spec.trial_settings(spec.search.initial_points[0], 0).momentum == 0.25
    assert spec.values("momentum") == [0.5, 0.95, 0.25]
    raw["search"]["initial_points"][0]["momentum"] = 0.9
    assert "search.initial_points.0.momentum: is not searched there" in message(raw)
    raw["search"]["initial_points"][0]["optimizer"] = "sgd"
    assert parse_spec(raw).search.initial_points[0]["momentum"] == 0.9


def mistakes(tmp_path: Path, text: str | bytes, *assignments: str) -> str:
    file = tmp_path / "s.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as caught:
        load_spec(file, assignments)
    return str(caught.value)


def test_a_key_that_is_written_twice_is_a_mistake_among_the_others(tmp_path: Path) -> None:
    text = yaml.safe_dump({key: value for key, value in GOOD.items() if key != "budget"})
    last = text.count("\n")
    said = mistakes(tmp_path, text + "budget: {trials: 5}\nbudget: {trials: 2}\nbudgett: {}\n")
    assert "2 mistakes" in said and "budgett: unknown key" in said
    assert f"budget: written twice, in lines {last + 1} and {last + 2} (keep one of them)" in said
    nested = text.replace("  lr:", "  lr: [0.5]\n  lr: [0.5]\n  lr:")
    assert "space.lr: written 3 times, in lines" in mistakes(tmp_path, nested)
    # Once, also where aliases repeat it; and a key that overrides a merged one is none.
    aliased = "x: &x\n  epochs: [2]\n" + text.replace("space:", "space:\n  <<: *x")
    said = mistakes(tmp_path, aliased)
    assert "1 mistake\n" in said and "x: unknown key" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "name: bins",
            "name: no",
            "name: must be text, but got false (YAML reads no as false",
        ),
        (
            "name: bins",
            "name: 2024-01-01",
            "name: YAML reads 2024-01-01 as a date (write '2024-01-01', with the",
        ),
        ("low: 4", "low: 010", "space.epochs.low: YAML reads 010 as 8 (write 10, or 8 if that is meant)"),
        ("low: 4", "low: 1:30", "space.epochs.low: YAML reads 1:30 as 90"),
        ("name: bins", "name: bins\non: 1", "on: YAML reads this key in line"),
        (
            "  lr:",
            "  weights: [none, off]\n  lr:",
            "but got false (YAML reads off as false: write 'off', with",
        ),
        ("  lr:", "\tlr:", "hint: indent with blanks: YAML takes no tabs"),
        ("name: bins", "name: &a [*a]", "an alias that contains itself"),
        ("name: bins", "name: bins\n---\nname: bins", "found another document"),
    ],
)
def test_what_yaml_reads_otherwise_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = yaml.safe_dump(GOOD)
    assert old in text
    assert said in mistakes(tmp_path, text.replace(old, new, 1))


def test_what_yaml_reads_as_it_is_meant_stays(tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD).replace("- 1\n", "- 01\n") + "register: {flip: yes, ensemble: off}\n"
    for content in (text, text.replace("\n", "\r\n"), "\ufeff" + text):
        (tmp_path / "s.yaml").write_bytes(content.encode())
        spec = load_spec(tmp_path / "s.yaml")
        assert (spec.data.classes, spec.register.flip, spec.register.ensemble) == ([1, 2, 3], True, False)


def test_files_that_are_no_sweeps(tmp_path: Path) -> None:
    latin = yaml.safe_dump(GOOD, allow_unicode=True).encode() + "# für später\n".encode("latin1")
    assert f"line {latin.count(bytes([10]))}: no text in UTF-8" in mistakes(tmp_path, latin)
    assert "s.yaml: is empty" in mistakes(tmp_path, "# nothing\n")
    assert "must be a mapping of keys, not list" in mistakes(tmp_path, "- a")
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    assert "aliases unfold to over 50,000 values" in mistakes(tmp_path, laughs)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("budget.trials=010", "YAML reads 010 as 8"),
        ("register.model=no", "YAML reads no as false"),
        ("budget.minutes=.inf", "a finite number"),
        ("budget.target=.nan", "a finite number"),
        ("budget.trials=99999999999999999999999", "must be at most 1000000"),
        ("search.seed=-1", "must be at least 0"),
    ],
)
def test_values_of_set_that_mean_something_else(tmp_path: Path, assignment: str, said: str) -> None:
    assert said in mistakes(tmp_path, yaml.safe_dump(GOOD), assignment)


def test_a_batch_of_one_that_batch_norm_cannot_compare() -> None:
    raw = broken("space.batch_size", [1, 16])
    raw["data"]["image_size"] = 32
    assert parse_spec(raw).values("batch_size") == [1, 16]  # the head has no batch norm
    raw["model"]["trainable"] = "last_stage"
    assert "batch_size: must be at least 2 where more than the head is trained" in message(raw)
    raw["data"]["image_size"] = 64
    assert parse_spec(raw).values("batch_size") == [1, 16]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.backbone": "convnext_tny"}, ("unknown backbone", "did you mean 'convnext_tiny'")),
        ({"model.backbone": "timm/test_vitt"}, ("did you mean 'timm/test_vit'",)),
        ({"model.backbone": "xyzzy"}, ("a network of torchvision or timm, such as",)),
        (
            {"model.backbone": "timm/convnext_tiny.in12kk"},
            ("did you mean 'timm/convnext_tiny.in12k'",),
        ),
        (
            {"model.backbone": "timm/crossvit_9_240", "data.image_size": 240},
            ("model.backbone: the stages of timm/crossvit_9_240 cannot be found",),
        ),
        (
            {"model.backbone": "vit_b_32", "data.image_size": 100},
            ("data.image_size: vit_b_32 takes no photos of this size", "got 100", "trained at 224 px"),
        ),
        (
            {
                "model.backbone": "timm/test_vit",
                "data.image_size": 96,
                "fidelity": {"image_size": [64, 96]},
            },
            ("fidelity.image_size: the shapes of timm/test_vit's weights depend on it",),
        ),
        (
            {
                "model": {"backbone": "mobilenet_v3_small", "trainable": "all", "batch_size": 1},
                "data.image_size": 32,
            },
            ("batch_size: must be at least 2", "batch norm of mobilenet_v3_small"),
        ),
    ],
)
def test_networks_that_cannot_be_used_are_named_with_a_remedy(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    raw: dict[str, Any] = {
        "name": "x",
        "data": {"source": "photos"},
        "model": {},
        "space": {"lr": {"low": 1e-4, "high": 0.1, "log": True}},
        "budget": {"minutes": 1},
    }
    for path, value in changes.items():
        section, _, key = path.partition(".")
        raw[section] = {**raw.get(section, {}), key: value} if key else value
    found = message(raw)
    assert "1 mistake" in found and all(word in found for word in words), found
    assert len(found) < 600  # no list of all names


def test_a_network_without_batch_norm_trains_on_single_photos() -> None:
    raw = broken("model", {"backbone": "timm/test_vit", "trainable": "all", "batch_size": 1})
    del raw["space"]["batch_size"]
    raw["data"] = {**raw["data"], "image_size": 32}
    assert parse_spec(raw).values("batch_size") == [1]
