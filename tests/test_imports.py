"""Who may import whom: one table of packages in order, no circles among files, and frameworks only in their place."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import binsweep

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data", "models", "tracking", "search")

# Each line may import from the lines above it, and from its own package. A package stands for those of its modules
# that have no line of their own; packages of one line do not import each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("",),  # binsweep/__init__.py: the version, and the names of LAZY
    ("data",),
    ("data.sources",),
    ("data.s3", "data.synthetic", "data.near_duplicates"),
    ("data.split_groups", "data.source_checks"),
    ("data.manifest",),
    ("data.s3.push", "data.banks"),
    ("data.report",),
    ("models",),
    ("tracking",),
    ("tracking.mlflow_server", "tracking.runlog", "tracking.registry"),
    ("tracking.monitoring",),
    ("tracking.evaluation", "tracking.serving"),
    ("tracking.promotion",),
    ("search", "search.terminal", "search.own_code", "search.history.run_keys"),
    ("search.spec",),
    ("search.steering",),
    ("search.strategy",),
    ("search.execution",),
    ("search.ray_backend", "search.history"),
    ("search.report",),
    ("search.recording",),
    ("search.workflows",),
    ("search.ui",),
    ("search.api", "search.cli"),
    ("__main__",),
)
# The modules whose names binsweep/__init__.py offers, imported when one is first asked for. Importing the package
# imports none of them, so they are no imports of what imports the package; a test of its own keeps that true.
LAZY = {
    "data.errors",
    "search.api.comparison",
    "search.api.models",
    "search.api.sweeps",
    "search.own_code.optuna_objective",
    "search.own_code.trial",
    "search.workflows.launch",
}
LEVELS = {package: level for level, line in enumerate(ORDER) for package in line}

# Who may import a framework, as prefixes of module names.
FRAMEWORKS = {
    "ray": ("search.ray_backend",),
    "mlflow": ("tracking",),
    "optuna": ("search.spec", "search.strategy", "search.report"),
}


def module_of(path: Path) -> str:
    """A file's module below `binsweep`, by its place in the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[2:] if parts[:2] == ("src", "binsweep") else parts
    return ".".join(part for part in parts if part != "__init__")


def code() -> dict[str, str]:
    """The source of each module, by its name below `binsweep`."""
    files = [*(ROOT / "src" / "binsweep").glob("*.py")]
    files += [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    return {module_of(file): file.read_text() for file in sorted(files)}


CODE = code()


def imported(source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The absolute imports of a source, also inside functions: (module, names that are taken from it)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
            "importorskip",
        ):
            yield from ((str(arg.value), ()) for arg in node.args if isinstance(arg, ast.Constant))


def own_imports(sources: Mapping[str, str], module: str) -> set[str]:
    """The modules below `binsweep` that a module imports; a package's __init__ is left out where only a module of it
    is taken."""
    found = set()
    for name, taken in imported(sources[module]):
        if name.split(".")[0] != "binsweep":
            continue
        base = name.partition(".")[2]
        below = {f"{base}.{part}".lstrip(".") for part in taken}
        known = {part for part in below if part in sources}
        found |= known if known and known == below else known | {base}
    return found - {module} - (LAZY if module == "" else set())


def place(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    while module not in LEVELS and "." in module:
        module = module.rpartition(".")[0]
    assert module in LEVELS, f"{module} has no line in ORDER"
    return module


def forbidden(module: str, source: str, sources: Mapping[str, str]) -> list[str]:
    """What a module imports although it may not."""
    mine, wrong = place(module), []
    for other in own_imports({**sources, module: source}, module):
        theirs = place(other)
        if theirs != mine and LEVELS[theirs] >= LEVELS[mine]:
            wrong.append(other)
    for name, _ in imported(source):
        top = name.split(".")[0]
        allowed = FRAMEWORKS.get(top)
        if allowed is not None and not any(f"{module}.".startswith(f"{part}.") for part in allowed):
            wrong.append(top)
        if top in FOLDERS:  # that is a user's own module, or nothing
            wrong.append(name)
    return sorted(set(wrong))


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules that import each other, directly or through others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    return {module: own_imports(sources, module) for module in sources}


@pytest.mark.parametrize("module", sorted(CODE), ids=lambda module: module or "binsweep")
def test_a_module_imports_only_what_it_may(module: str) -> None:
    assert forbidden(module, CODE[module], CODE) == []


def test_the_package_imports_none_of_its_modules_before_it_is_asked() -> None:
    names = {name.partition(".")[2] for name, _ in imported(CODE[""]) if name.startswith("binsweep.")}
    assert names == LAZY
    code = "import sys, binsweep; print(*(name for name in sys.modules if name.startswith('binsweep')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["binsweep"]
    assert set(binsweep._EXPORTS) <= set(dir(binsweep))
    assert all(getattr(binsweep, name).__name__ == name for name in binsweep._EXPORTS)


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(graph_of(CODE)) == []


def test_a_circle_that_is_put_in_is_found() -> None:
    changed = {**CODE, "data.errors": "from binsweep.data.manifest import load_manifest\n"}
    (group,) = circles(graph_of(changed))
    assert {"data.errors", "data.manifest"} <= set(group)


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "deploy"])
def test_nothing_takes_the_folders_for_packages(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        names = {name.split(".")[0] for name, _ in imported(file.read_text())}
        assert not names & set(FOLDERS), file


@pytest.mark.parametrize("module", sorted(m for m in CODE if m.startswith("search.ray_backend.")))
def test_ray_is_imported_behind_what_it_reads_then(module: str) -> None:
    names = [
        name
        for node in ast.parse(CODE[module]).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    ]
    rays = [at for at, name in enumerate(names) if name is not None and name.split(".")[0] == "ray"]
    # What asks a cluster about its jobs starts no Ray, and decides by itself whether it has a token.
    if rays and module != "search.ray_backend.jobs":
        assert "binsweep.search.ray_backend.environment" in names[: rays[0]]


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("data.a", "import binsweep.models.network", ["models.network"]),
        ("data.a", "from binsweep.data import manifest", ["data.manifest"]),
        ("data.a", "from binsweep.data.banks.store import evict_banks", ["data.banks.store"]),
        ("data.s3.a", "from binsweep.data.synthetic import dataset", ["data.synthetic.dataset"]),
        ("models.a", "def f():\n    from binsweep.tracking import run_tags", ["tracking.run_tags"]),
        ("models.a", "from binsweep.data.banks.pixels import PixelBank", []),
        (
            "tracking.a",
            "import importlib\nimportlib.import_module('binsweep.search.cli.main')",
            ["search.cli.main"],
        ),
        ("tracking.a", "import mlflow.pyfunc, optuna", ["optuna"]),
        ("data.a", "import optuna, ray, mlflow", ["mlflow", "optuna", "ray"]),
        ("search.spec.a", "import mlflow", ["mlflow"]),
        ("search.workflows.a", "import optuna\nfrom ray import tune", ["optuna", "ray"]),
        ("search.ray_backend.runner", "from ray import tune", []),
        ("search.strategy.ray_like", "from . import mlflow", []),
        ("search.cli.a", "import data\nfrom models.train import train", ["data", "models.train"]),
    ],
)
def test_the_rules_see_what_they_should(module: str, source: str, wrong: list[str]) -> None:
    assert forbidden(module, source, CODE) == wrong
