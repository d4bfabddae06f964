"""The sweep specification of own code: what is right is read, what is wrong is said, all of it at once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import load_spec, parse_spec
from binsweep.search.spec.sweep_spec import CodeSpec
from binsweep.search.workflows.preflight import check_code
from binsweep.search.workflows.prepare import prepare

GOOD: dict[str, Any] = {
    "name": "digits",
    "trainer": "train.py:train",
    "params": {"size": 3, "nested": {"list": [1, 2.5, "three", None, True]}},
    "space": {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "kind": ["a", "b"]},
    "objective": {"metric": "val_accuracy", "goal": "maximize"},
    "fidelity": {"epochs": 9},
    "budget": {"trials": 4},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The good spec with other values by dotted paths; None removes a key."""
    raw = copy.deepcopy(GOOD)
    for path, value in changes.items():
        place = raw
        *steps, last = path.split("/")
        for step in steps:
            place = place.setdefault(step, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return raw


def message(raw: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_spec(raw)
    return str(caught.value)


def code_spec(raw: Any) -> CodeSpec:
    spec = parse_spec(raw)
    assert isinstance(spec, CodeSpec)
    return spec


def test_a_good_spec_is_read() -> None:
    spec = code_spec(GOOD)
    assert (spec.metric, spec.goal, spec.max_epochs) == ("val_accuracy", "maximize", 9)
    assert spec.model_name() == "digits", "the registered model has the sweep's name"
    (section,) = spec.sections({"lr": 0.01, "kind": "a"}, seed=5)
    assert section.settings.params == {**GOOD["params"], "lr": 0.01, "kind": "a"}
    assert (section.settings.epochs, section.settings.seed) == (9, 5)


def test_epochs_can_be_searched_and_default_to_one() -> None:
    spec = code_spec(changed({"fidelity": None, "space/epochs": [3, 6]}))
    assert spec.max_epochs == 6 and spec.sections({"epochs": 3}, 0)[0].settings.epochs == 3
    assert code_spec(changed({"fidelity": None})).max_epochs == 1


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no function": ({"trainer": "train.py"}, "trainer: must be FILE.py:FUNCTION or MODULE:FUNCTION, but got"),
    "another language": ({"trainer": "train-it.sh:train"}, "trainer: must be FILE.py:FUNCTION"),
    "a call": ({"trainer": "train.py:train()"}, "trainer: must be FILE.py:FUNCTION"),
    "a number": ({"trainer": 3}, "trainer: must be text"),
    "no space": ({"space": None}, "space: required key is missing"),
    "an empty space": ({"space": {}}, "space: must search at least one dimension"),
    "no objective": ({"objective": None}, "objective: required key is missing (add objective)"),
    "no goal": ({"objective/goal": None}, "objective.goal: required key is missing"),
    "another goal": ({"objective/goal": "max"}, "objective.goal: must be 'maximize' or 'minimize'"),
    "a metric that MLflow refuses": (
        {"objective/metric": "acc (%)"},
        "objective.metric: must be a name of letters",
    ),
    "a name in both": (
        {"params/lr": 0.1},
        "params.lr: also in space, but got 0.1 (keep it in one of the two)",
    ),
    "a param that MLflow refuses": (
        {"params/a+b": 1},
        "params.a+b: must be a name of letters, digits and _ - . :",
    ),
    "a dimension that MLflow refuses": (
        {"space/%": [1, 2]},
        "space.%: must be a name of letters, digits and",
    ),
    "a seed": ({"params/seed": 1}, "params.seed: cannot be given (each trial has its own, trial.seed"),
    "a searched seed": ({"space/seed": [1, 2]}, "space.seed: cannot be given"),
    "epochs in params": (
        {"params/epochs": 5},
        "params.epochs: belongs into fidelity (write fidelity: {epochs: 5})",
    ),
    "epochs twice": ({"space/epochs": [3, 6]}, "fidelity.epochs: also in space, but got 9"),
    "half epochs": (
        {"fidelity": None, "space/epochs": [0.5, 2]},
        "space.epochs: must be whole numbers from 1",
    ),
    "epochs with a condition": (
        {"fidelity": None, "space/epochs": {"values": [1, 2], "when": {"kind": ["a"]}}},
        "space.epochs.when: epochs cannot depend on a choice",
    ),
    "no epochs": ({"fidelity/epochs": 0}, "fidelity.epochs: must be at least 1"),
    "no budget": (
        {"budget": None},
        "budget: sets no limit that is surely reached: the sweep would never end",
    ),
    "a typo": ({"budget/trails": 3}, "budget.trails: unknown key (did you mean 'trials'?)"),
    "a section of photos": ({"data": {"source": "x"}}, "data: unknown key (known: budget, fidelity, health"),
    "levels of photos": (
        {"fidelity/image_size": [32, 64]},
        "fidelity.image_size: unknown key (known: epochs)",
    ),
    "an engine": ({"register": {"engine": "onnx"}}, "register.engine: unknown key"),
    "a group": (
        {"resources": {"workers_per_trial": 2}},
        "resources.workers_per_trial: own code trains in one process",
    ),
    "a rule of networks": (
        {"health": {"dead_units": "stop"}},
        "health.dead_units: no such rule (known: exploding_",
    ),
    "a rule's typo": (
        {"health": {"overfitt": "stop"}},
        "health.overfitt: no such rule (did you mean 'overfit'?)",
    ),
    "bytes": (
        {"params/raw": b"x"},
        "params.raw: must be text, a number, true, false, a list or a section of these",
    ),
    "not a number": (
        {"params/nested": {"x": [float("nan")]}},
        "params.nested.x[0]: must be text, a number, true",
    ),
    "an unknown condition": (
        {"space/x": {"values": [1], "when": {"sort": ["a"]}}},
        "space.x.when.sort: is no list of choices in the space (choices here: kind)",
    ),
    "a point outside": (
        {"search": {"initial_points": [{"lr": 5.0, "kind": "a"}]}},
        "search.initial_points.0.lr: lies outside of the space",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_key(case: str) -> None:
    changes, expected = MISTAKES[case]
    found = message(changed(changes))
    assert expected in found and ": 1 mistake\n" in found, found


def test_all_mistakes_are_named_at_once() -> None:
    changes = [
        "no function",
        "a seed",
        "a name in both",
        "no budget",
        "a group",
        "a rule of networks",
        "bytes",
    ]
    raw = changed({path: value for name in changes for path, value in MISTAKES[name][0].items()})
    found = message(raw)
    assert f": {len(changes)} mistakes\n" in found
    assert all(MISTAKES[name][1] in found for name in changes), found


def test_a_misspelt_trainer_is_recognised() -> None:
    raw = changed({"trainer": None, "trainr": "train.py:train"})
    assert "trainr: unknown key (did you mean 'trainer'?)" in message(raw)


def write(folder: Path, changes: dict[str, Any]) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(changed(changes)))
    return file


def test_paths_are_relative_to_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("def train(trial): ...")
    spec = load_spec(
        write(tmp_path, {"params": {"a": "./b/c.csv", "d": [{"e": "../f"}], "g": "h/i", "j": "."}})
    )
    assert isinstance(spec, CodeSpec)
    assert spec.trainer == f"{tmp_path}/train.py:train" and spec.trainer_file == tmp_path / "train.py"
    parent = tmp_path.parent
    assert spec.params == {"a": f"{tmp_path}/b/c.csv", "d": [{"e": f"{parent}/f"}], "g": "h/i", "j": "."}
    monkeypatch.chdir(parent)
    assert load_spec(tmp_path / "sweep.yaml").raw == spec.raw
    check_code(spec)


CODE = {
    "no such file": (None, "there is no file {file}"),
    "a mistake": (
        "import json\nx = 1 +\n",
        "{file} cannot be imported: SyntaxError: invalid syntax (train.py, line 2)",
    ),
    "a package that is missing": (
        "import nowhere",
        "{file} cannot be imported: ModuleNotFoundError: No module named",
    ),
    "another function": ("def fit(trial): ...", "{file} has no function train: it has fit"),
    "no function": ("train = 5", "{file} has no function train: it has none at all"),
    "an exit": ("exit(3)", "{file} cannot be imported: SystemExit: 3 (train.py, line 1)"),
    "a crash": ("import os\nos._exit(5)", "its process ended with exit code 5"),
    "what is not copied": (
        "import importlib\nimportlib.import_module('hid' + 'den')",
        "{file} cannot be imported: ModuleNotFoundError: No module named 'hidden' (train.py, line 2)",
    ),
}


@pytest.mark.parametrize("case", CODE)
def test_code_that_no_trial_could_begin_with_is_named_before_the_sweep(case: str, tmp_path: Path) -> None:
    code, expected = CODE[case]
    if code is not None:
        (tmp_path / "train.py").write_text(code)
    (tmp_path / "hidden.py").touch()
    spec = load_spec(write(tmp_path, {}))
    assert isinstance(spec, CodeSpec)
    with pytest.raises(UserError) as caught:
        check_code(spec)
    assert f"trainer: {expected.format(file=tmp_path / 'train.py')}" in str(caught.value)


@pytest.mark.parametrize("module", ["nowhere", "nowhere.train", "json.nowhere"])
def test_a_module_that_is_not_installed_is_named(module: str, tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, {"trainer": f"{module}:train"}))
    assert isinstance(spec, CodeSpec)
    with pytest.raises(UserError, match=f"trainer: there is no module {module}"):
        check_code(spec)


def test_the_fingerprint_is_of_the_code_and_of_the_files_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def f():\n    import helper\ndef train(trial): ...")
    (tmp_path / "helper.py").write_text("import package.inner")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").touch()
    (tmp_path / "other.py").touch()
    (tmp_path / "table.csv").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dangling").symlink_to(tmp_path / "nowhere")
    spec = load_spec(write(tmp_path, {"params": {"table": "./table.csv", "images": "./images"}}))

    def fingerprint() -> str:
        return prepare(spec, tmp_path / "home").fingerprint

    seen = [fingerprint()]
    (tmp_path / "other.py").write_text("# not imported")
    assert fingerprint() == seen[0]
    for name in ("train.py", "helper.py", "package/inner.py", "table.csv", "images/new.png"):
        with (tmp_path / name).open("a") as stream:
            stream.write("\n# changed")
        assert fingerprint() not in seen, name
        seen.append(fingerprint())
