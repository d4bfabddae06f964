"""A sweep's specification from Python: a dict or a file, with changed sections and keys, and functions as trainers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError
from binsweep.search.spec.parser import assign, parse_document, read_file
from binsweep.search.spec.problems import ABSENT, Problem
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.spec.yaml_file import YamlDocument


def spec_from_python(
    spec: str | Path | Mapping[str, Any], sections: Mapping[str, Any], keys: Mapping[str, Any]
) -> SweepSpec:
    """Validate a sweep file, or a dict with the same keys, after changes.

    Of `sections`, a mapping is merged into the section of its name, key by key; any other value replaces it. Then the
    dotted `keys` are set. A dict's relative paths are relative to the working directory. The given dicts stay as they
    are. Raises one UserError that lists every mistake.
    """
    where, folder = "spec", Path.cwd()
    problems: list[Problem] = []
    if isinstance(spec, Mapping):
        document = YamlDocument(_plain(spec, "", problems))
    elif isinstance(spec, str | Path):
        path = Path(spec).expanduser()
        where, folder = str(path), path.absolute().parent
        document = read_file(path)
    else:
        raise UserError(f"spec: {type(spec).__name__} is no spec", "give a dict, or the path of a YAML file")
    document.problems += problems
    if isinstance(document.value, dict):
        _change(document, sections, keys)
    return parse_document(document, where, folder)


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a file would hold them. Raises UserError for those that it could not."""
    problems: list[Problem] = []
    found = {str(name): _plain(value, str(name), problems) for name, value in values.items()}
    if problems:
        raise UserError("\n  ".join(map(str, problems)))
    return found


def _change(document: YamlDocument, sections: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    raw = document.value
    for name, value in sections.items():
        new = _plain(value, name, document.problems)
        merges = isinstance(new, dict) and isinstance(raw.get(name), dict)
        raw[name] = {**raw[name], **new} if merges else new
        _forget_words(document, [f"{name}.{key}" for key in new] if merges else [name])
    for key, value in keys.items():
        if not isinstance(key, str) or not all(key.split(".")):
            raise UserError(f"set: {key!r} is no dotted key", "such as budget.trials")
        assign(raw, key, _plain(value, key, document.problems), f"set: {key}")
        _forget_words(document, [key])


def _forget_words(document: YamlDocument, paths: list[str]) -> None:
    """Bare words of the file that were replaced are no longer the reason for a mistake."""
    for word in list(document.bare_words):
        if any(f"{word}.".startswith(f"{path}.") for path in paths):
            del document.bare_words[word]


def _plain(value: Any, path: str, problems: list[Problem]) -> Any:
    """A value as YAML would have it: a copy, of plain types only. What has none is added to `problems`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one, f"{path}.{key}".lstrip("."), problems) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(one, f"{path}[{place}]", problems) for place, one in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if path == "trainer" and callable(value):
        return trainer_of(value)
    if callable(getattr(value, "tolist", None)):  # NumPy's numbers and arrays
        return _plain(value.tolist(), path, problems)
    rule = f"{type(value).__name__} is not a value that a file could hold"
    problems.append(Problem(path, rule, ABSENT, "write a number, a text, a list or a dict"))
    return None


def trainer_of(function: Callable[..., Any]) -> str:
    """FILE.py:FUNCTION, or MODULE:FUNCTION for one of a package: what a spec calls a function of a module.

    Raises UserError for a function that a process of its own could not import.
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    if not inspect.isfunction(function) or not name.isidentifier():
        rule = f"trainer: {name} is not a function at the top of a module, so that no trial could import it"
        raise UserError(rule, "give a function that is defined with `def` at the top of a file")
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    is_main = function.__module__ == "__main__"
    is_file = (
        file is not None and Path(file).is_file()
    )  # a program that is piped into Python is called <stdin>
    # A notebook may run a script into its own namespace, and define functions next to those of the script.
    if not is_file or (is_main and inspect.getsourcefile(inspect.unwrap(function)) != file):
        raise UserError(
            f"trainer: {name} is defined in a notebook or at a prompt, and trials train in processes of their own, "
            "which cannot import it",
            f"write it into a file, such as train.py, and give trainer: 'train.py:{name}'",
        )
    if module is not None and module.__package__ and not is_main:
        return f"{module.__name__}:{name}"
    return f"{Path(str(file)).absolute()}:{name}"
