"""What trials of own code need on nodes without a disk in common with the driver: the code, and files of its params."""

from __future__ import annotations

import binsweep.search.ray_backend.environment  # noqa: F401 (before Ray)

# isort: split
import functools
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from binsweep.data.locks import locked
from binsweep.search.execution.code_trial import CodeTrainer
from binsweep.search.execution.trial import TrialTask
from binsweep.search.own_code.snapshot import CodeSnapshot
from binsweep.search.ray_backend.file_transfer import (
    DriverFiles,
    FileServer,
    fetch_file,
    file_part,
    node_home,
    start_file_server,
)


@dataclass(frozen=True)
class CodeDriverFiles(DriverFiles):
    """The files of a sweep of own code: the code, and the files that its params name."""

    node: str
    code: CodeSnapshot
    paths: tuple[tuple[str, Path], ...]  # of the params, by their keys, on the driver's node
    stamps: tuple[
        tuple[str, tuple[int, int]], ...
    ]  # size and modification time (s) of each file, by its name
    file_server: Any = None
    what: ClassVar[str] = "code"
    in_own_process: ClassVar[bool] = True

    def trainer(self) -> CodeTrainer:
        if self.is_on_driver():
            return CodeTrainer(self.code, dict(self.paths))
        target = self._folder()
        with locked(target.with_suffix(".lock")):
            if not target.exists():
                temporary = target.with_suffix(".tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                for name, (size, _) in self.stamps:
                    if not self._is_here(name):
                        file = temporary / name
                        file.parent.mkdir(parents=True, exist_ok=True)
                        fetch_file(file, size, functools.partial(self.file_server.input_part.remote, name))
                temporary.mkdir(exist_ok=True)
                temporary.rename(target)
        place = self.code.place
        if self.code.files:
            place = str(target / CODE / Path(place).name)
        return CodeTrainer(replace(self.code, place=place), dict(self.paths))

    def here(self, task: TrialTask) -> TrialTask:
        """The task with the paths of this node in its params."""
        *earlier, last = task.sections
        params = last.settings.params
        for key, path in self.paths:
            copied = self._folder() / PARAMS / key / path.name
            if copied.exists():
                params = _with_value(params, key.split("."), str(copied))
        section = replace(last, settings=replace(last.settings, params=params))
        return replace(task, sections=(*earlier, section))

    def _folder(self) -> Path:
        # The fingerprint does not have the names of the params' files.
        names = "\0".join([self.code.fingerprint, *(name for name, _ in self.stamps)])
        folder = node_home() / "inputs" / hashlib.sha256(names.encode()).hexdigest()[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder

    def _is_here(self, name: str) -> bool:
        """Whether a file of the params is on this node as well, such as on a disk that the nodes share."""
        kind, _, rest = name.partition("/")
        key, _, inner = rest.partition("/")
        path = dict(self.paths).get(key)
        if kind != PARAMS or path is None:
            return False
        file = path.parent / inner
        return file.is_file() and _stamp(file) == dict(self.stamps)[name]


CODE, PARAMS = "code", "params"


def open_code_files(
    code: CodeSnapshot, paths: Mapping[str, Path], folder: Path, node: str, shared: bool
) -> CodeDriverFiles:
    inputs = {f"{CODE}/{name}": Path(code.place).parent / name for name in code.files}
    for key, path in paths.items():
        found = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
        for file in found:
            inner = file.relative_to(path.parent)
            if not any(part.startswith(".") for part in inner.parts):  # hidden files may be secrets
                inputs[f"{PARAMS}/{key}/{inner}"] = file
    file_server = start_file_server(CodeFileServer, folder, inputs) if shared else None
    stamps = tuple((name, _stamp(file)) for name, file in inputs.items()) if shared else ()
    return CodeDriverFiles(node, code, tuple(paths.items()), stamps, file_server)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, int(status.st_mtime)


def _with_value(values: Any, steps: Sequence[str], value: Any) -> Any:
    """A copy of nested params with one value replaced."""
    if not steps:
        return value
    step, *rest = steps
    if isinstance(values, list):
        return [
            _with_value(one, rest, value) if place == int(step) else one for place, one in enumerate(values)
        ]
    return {**values, step: _with_value(values[step], rest, value)}


class CodeFileServer(FileServer):
    """Serves own code and the files that its params name, too."""

    def __init__(self, folder: Path, inputs: dict[str, Path]) -> None:
        super().__init__(folder)
        self._inputs = inputs

    def input_part(self, name: str, start: int) -> bytes:
        """A chunk of a file."""
        return file_part(self._inputs[name], start)
