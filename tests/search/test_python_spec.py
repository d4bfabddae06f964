"""A sweep's specification from Python: dicts, changed sections and keys, functions as trainers."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import load_spec
from binsweep.search.spec.python_spec import spec_from_python, trainer_of
from binsweep.search.spec.sweep_spec import CodeSpec, PhotoSpec

PHOTOS: dict[str, Any] = {
    "name": "dict",
    "data": {"source": "bins", "image_size": 64},
    "space": {"lr": {"low": 1e-4, "high": 0.1, "log": True}},
    "budget": {"trials": 3, "minutes": 5.0},
}
CODE: dict[str, Any] = {
    "name": "own",
    "trainer": "train.py:train",
    "params": {"file": "./table.csv"},
    "space": {"lr": [0.1, 0.2]},
    "objective": {"metric": "val_loss", "goal": "minimize"},
    "budget": {"trials": 1},
}
TRAIN = "def train(trial):\n    return 1.0\n\ndef outer():\n    def inner(trial): ...\n    return inner\n"


def test_a_dict_is_read_as_the_file_with_the_same_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for raw in (PHOTOS, CODE):
        Path("spec.yaml").write_text(yaml.safe_dump(raw))
        assert spec_from_python(raw, {}, {}) == load_spec(Path("spec.yaml"))
        assert spec_from_python("spec.yaml", {}, {}) == load_spec(Path("spec.yaml"))


def test_sections_are_merged_key_by_key_and_dotted_keys_set_last() -> None:
    before = yaml.safe_dump(PHOTOS)
    sections = {"budget": {"trials": 8}, "space": {"lr": [0.5]}, "name": "changed", "search": {"seed": 1}}
    spec = spec_from_python(PHOTOS, sections, {"budget.minutes": 7.5, "register.gate.approval": True})
    assert spec.name == "changed" and spec.budget.trials == 8 and spec.budget.minutes == 7.5
    assert list(spec.space["lr"].values) == [0.5] and spec.search.seed == 1 and spec.gate.approval
    assert yaml.safe_dump(PHOTOS) == before, "the caller's dict was changed"


def test_values_of_python_and_numpy_are_those_of_yaml(tmp_path: Path) -> None:
    sections = {
        "data": {"source": tmp_path, "classes": range(3)},
        "space": {"lr": (np.float64(0.1), 0.2), "batch_size": np.array([8, 16])},
        "budget": {"trials": np.int64(4)},
    }
    spec = spec_from_python(PHOTOS, sections, {})
    assert isinstance(spec, PhotoSpec) and spec.source == str(tmp_path) and spec.data.classes == [0, 1, 2]
    assert list(spec.space["batch_size"].values) == [8, 16] and spec.budget.trials == 4
    assert [type(value) for value in spec.space["lr"].values] == [float, float]


def test_paths_are_relative_to_the_file_or_else_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "spec.yaml").write_text(yaml.safe_dump(CODE))
    for given, folder in ((CODE, tmp_path), ("below/spec.yaml", tmp_path / "below")):
        spec = spec_from_python(given, {}, {})
        assert isinstance(spec, CodeSpec) and spec.trainer == f"{folder / 'train.py'}:train"
        assert spec.params == {"file": str(folder / "table.csv")}


def test_all_mistakes_are_reported_at_once() -> None:
    sections = {"budget": {"trials": object()}, "budgets": {}, "space": {"lr": [0.1, 0.1 + 2j]}}
    with pytest.raises(UserError) as caught:
        spec_from_python(PHOTOS, sections, {"search.seed": -1})
    message = str(caught.value)
    for part in (
        "budget.trials: object is not a value",
        "space.lr[1]: complex is not",
        "budgets: unknown key (did you mean 'budget'?)",
        "search.seed: must be at least 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("spec", "sections", "keys", "part"),
    [
        (3, {}, {}, "int is no spec"),
        ("none.yaml", {}, {}, "no sweep file none.yaml"),
        (PHOTOS, {}, {"name.first": 1}, "set: name.first: name is a value, not a section"),
        (PHOTOS, {}, {"budget..trials": 1}, "is no dotted key"),
        ({}, {}, {}, "name: required key is missing"),
    ],
)
def test_what_is_no_spec_is_refused(spec: Any, sections: Any, keys: Any, part: str) -> None:
    with pytest.raises(UserError, match=part):
        spec_from_python(spec, sections, keys)


def test_a_bare_word_that_was_replaced_is_no_hint_any_more(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(PHOTOS) + "search: {seed: no}\n")
    with pytest.raises(UserError, match="YAML reads no as false"):
        spec_from_python(file, {}, {})
    with pytest.raises(UserError) as caught:
        spec_from_python(file, {"search": {"seed": False}}, {})
    assert "YAML reads" not in str(caught.value)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "train_of_api.py").write_text(TRAIN)
    package = tmp_path / "package_of_api"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text(TRAIN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("train_of_api", "package_of_api", "package_of_api.train"):  # those of another test's folder
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("train_of_api")


def test_a_function_of_a_module_is_a_trainer(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_from_python(CODE, {"trainer": module.train}, {})
    assert isinstance(spec, CodeSpec) and spec.trainer == f"{tmp_path / 'train_of_api.py'}:train"
    packaged = importlib.import_module("package_of_api.train")
    assert trainer_of(packaged.train) == "package_of_api.train:train"
    # A script that starts a sweep of its own function.
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(module.train, "__module__", "__main__")
    assert trainer_of(module.train) == f"{tmp_path / 'train_of_api.py'}:train"


def test_a_decorated_function_is_found_where_it_is_written(module: ModuleType, tmp_path: Path) -> None:
    @functools.wraps(module.train)
    def wrapped(trial: Any) -> Any:
        return module.train(trial)

    assert trainer_of(wrapped) == f"{tmp_path / 'train_of_api.py'}:train"


def test_a_function_that_trials_cannot_import_is_refused(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer:
        def train(self, trial: Any) -> None: ...

    no_names: list[Callable[..., Any]] = [
        lambda trial: 1.0,
        module.outer(),
        Trainer().train,
        functools.partial(module.train, 1),
        print,
    ]
    for function in no_names:
        with pytest.raises(UserError, match="not a function at the top of a module"):
            trainer_of(function)
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    exec(compile("def train(trial): ...", "/tmp/ipykernel_1/2.py", "exec"), vars(notebook))
    with pytest.raises(UserError, match=r"defined in a notebook(.|\n)*hint: write it into a file"):
        trainer_of(notebook.train)
    for file in (
        module.__file__,
        "<stdin>",
    ):  # a script was run in the notebook; a program was piped into Python
        notebook.__file__ = file
        with pytest.raises(UserError, match="defined in a notebook"):
            trainer_of(notebook.train)
