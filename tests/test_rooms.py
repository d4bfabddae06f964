"""The house rules: data <- models <- tracking <- search, and who may import the big frameworks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
ROOMS = ("data", "models", "tracking", "search")
FILES = sorted(path for room in ROOMS for path in (HOUSE / room).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names of all imports, also those inside functions; relative ones belong to the room."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
            "importorskip",
        ):
            yield from (str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant))


def broken_rules(file: str, source: str) -> list[str]:
    """What a file (named from the top of the house) imports although its room may not."""
    room, name = file.split("/")[0], file.split("/")[-1]
    forbidden = set(ROOMS[ROOMS.index(room) + 1 :])
    if room != "tracking":
        forbidden.add("mlflow")
    if room in ("data", "models"):
        forbidden.add("optuna")
    if room != "search" or not name.startswith("ray_"):
        forbidden.add("ray")
    return sorted(forbidden & set(imported(ast.parse(source))))


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(HOUSE).as_posix() for path in FILES])
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    assert broken_rules(path.relative_to(HOUSE).as_posix(), path.read_text()) == []


@pytest.mark.parametrize("path", sorted((HOUSE / "search").glob("ray_*.py")), ids=lambda path: path.name)
def test_ray_is_imported_behind_what_it_reads_then(path: Path) -> None:
    names = [
        name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    ]
    rays = [place for place, name in enumerate(names) if name is not None and name.split(".")[0] == "ray"]
    # What asks a cluster about its jobs starts no Ray, and decides by itself whether it has a token.
    if rays and path.name != "ray_jobs.py":
        assert "search.ray_environment" in names[: rays[0]]


@pytest.mark.parametrize(
    ("file", "source", "broken"),
    [
        ("data/a.py", "import models.network", ["models"]),
        ("models/a.py", "def f():\n    from tracking import log", ["tracking"]),
        ("models/a.py", "from data.pixels import PixelBank", []),
        ("tracking/a.py", "import importlib\nimportlib.import_module('search.cli')", ["search"]),
        ("tracking/a.py", "import mlflow.pyfunc, optuna", []),
        ("data/a.py", "import optuna, ray, mlflow", ["mlflow", "optuna", "ray"]),
        ("search/a.py", "import mlflow", ["mlflow"]),
        ("search/a.py", "import optuna\nfrom ray import tune", ["ray"]),
        ("search/ray_runner.py", "from ray import tune", []),
        ("search/strategy/ray_like.py", "from . import mlflow", []),
    ],
)
def test_the_rules_see_what_they_should(file: str, source: str, broken: list[str]) -> None:
    assert broken_rules(file, source) == broken
