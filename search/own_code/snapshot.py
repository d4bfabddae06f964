"""A copy of own training code, as it was when its sweep began: editing a file does not change a running sweep."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from binsweep.data.errors import UserError

MAX_FILES = 2000  # of own code; more would be a mistake, such as an environment next to it


@dataclass(frozen=True)
class CodeSnapshot:
    """Own code in a folder of its own. `place` is its file there, or the name of an installed module."""

    place: str
    function: str
    fingerprint: str  # of the code and of the files that it is given
    files: tuple[str, ...]  # relative to the folder of `place`; none of an installed module

    def copy_to(self, folder: Path) -> None:
        """Copy the files into a folder."""
        for name in self.files:
            copied = folder / name
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(self.place).parent / name, copied)


def take_snapshot(trainer: str, params: Mapping[str, Any], home: Path) -> CodeSnapshot:
    """Copy the file of a trainer, and the modules next to it that it imports, into `home`/code.

    The fingerprint also depends on the content of the files that `params` name. Raises UserError if there is no such
    file or module.
    """
    place, _, function = trainer.rpartition(":")
    if not place.endswith(".py"):
        installed = CodeSnapshot(place, function, "", ())
        return replace(installed, fingerprint=code_fingerprint(installed, params))
    file = Path(place)
    if not file.is_file():
        raise UserError(f"trainer: there is no file {file}", "it is looked for next to the spec")
    found = own_files(file)
    present = CodeSnapshot(place, function, "", tuple(str(path.relative_to(file.parent)) for path in found))
    fingerprint = code_fingerprint(present, params)
    target = home / "code" / fingerprint[:16]
    if not target.is_dir():
        _keep_copy(present, target)
    return replace(present, place=str(target / file.name), fingerprint=fingerprint)


def code_fingerprint(code: CodeSnapshot, params: Mapping[str, Any]) -> str:
    """What identifies code and the content of the files that its params name."""
    digest = hashlib.sha256()
    _add_params(digest, params)
    if not code.files:
        digest.update(_installed_file(code.place).read_bytes())
    root = Path(code.place).parent
    for name in sorted(code.files):
        digest.update(f"{name}\0".encode() + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def stored_snapshot(trainer: str, folder: Path, fingerprint: str) -> CodeSnapshot:
    """The code of a sweep that ran, in a `folder` of its own; of an installed module the present one."""
    place, _, function = trainer.rpartition(":")
    if not place.endswith(".py"):
        return CodeSnapshot(place, function, fingerprint, ())
    names = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py")))
    return CodeSnapshot(str(folder / Path(place).name), function, fingerprint, names)


def own_files(file: Path) -> list[Path]:
    """A file and the modules next to it that it imports, directly or not, also inside functions; sorted.

    Of a package all modules are taken. Raises UserError if they are too many.
    """
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if len(found) > MAX_FILES:
            rule = f"trainer: {file.name} imports more than {MAX_FILES:,} files next to it"
            raise UserError(rule, "move it into a folder of its own, with what it needs")
        waiting += [target for name in _imports(path) for target in _modules(file.parent, name)]
    return sorted(found)


def _imports(path: Path) -> Iterator[str]:
    """The first names of the modules that a file imports. A file with a mistake is imported, and reported, later."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _modules(folder: Path, name: str) -> list[Path]:
    """The files of a module in a folder, if it is there."""
    single, package = folder / f"{name}.py", folder / name
    if single.is_file():
        return [single]
    return (
        [path for path in package.rglob("*.py") if "__pycache__" not in path.parts]
        if package.is_dir()
        else []
    )


def _installed_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(
            f"trainer: there is no module {name}", "install it here, or name a file, such as train.py:train"
        )
    return Path(spec.origin)


def _keep_copy(code: CodeSnapshot, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    code.copy_to(temporary)
    try:
        temporary.rename(target)
    except OSError:  # another process has copied the same code
        shutil.rmtree(temporary)
        if not target.is_dir():
            raise


def param_paths(params: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders that params name, by their dotted keys: absolute paths that exist."""
    return {
        key: Path(text) for key, text in _texts("", params) if text.startswith("/") and Path(text).exists()
    }


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(f"{key}.{name}".strip("."), one)
    elif isinstance(value, list):
        for place, one in enumerate(value):
            yield from _texts(f"{key}.{place}", one)


def _add_params(digest: Any, params: Mapping[str, Any]) -> None:
    """Files count by their content, folders by the names, sizes and times of what is in them, other values as such."""
    paths = param_paths(params)
    for key, path in sorted(paths.items()):
        digest.update(f"{key}\0".encode())
        if path.is_file():
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            continue
        for inner in sorted(path.rglob("*")):
            status = inner.lstat()  # a link may point to nothing
            digest.update(f"{inner.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
