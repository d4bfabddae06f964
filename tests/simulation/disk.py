"""A simulated disk: real files in a temporary folder, and what of them a power cut would leave.

The model is that of ext4, XFS and btrfs at their least careful. `fsync` of a file keeps its content, and it and its
folders are there by the names with which they were created; `fsync` of a folder keeps the renames and removals in it,
too. Everything else is kept, lost or cut off by the dice, each for itself. SQLite writes its file by itself, so of a
study only the write-ahead log is cut: at any byte behind the last checkpoint.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .scheduler import SimulatedCrash


class Node:
    """A file or a folder. `synced` is a file's content on the disk, `left` what it had when its name was taken."""

    def __init__(self, is_folder: bool) -> None:
        self.is_folder = is_folder
        self.parent: Node | None = None
        self.children: dict[str, Node] = {}
        self.kept: dict[str, Node] = {}  # its entries after a power cut
        self.synced = b""
        self.left: bytes | None = None


class Move:
    """A change of folders: `node` comes to the target and leaves the source, each (folder, name) or None."""

    def __init__(self, node: Node, source: tuple[Node, str] | None, target: tuple[Node, str] | None) -> None:
        self.node, self.source, self.target = node, source, target
        places = [place for place in (source, target) if place is not None]
        self.names = {(id(folder), name) for folder, name in places}
        self.folders = {id(folder) for folder, _ in places}


class SimDisk:
    """The disk below `root`. `effect(kind, name)` is called before each effect, and may raise."""

    def __init__(self, root: Path, effect: Callable[[str, str], None], owner: Callable[[], Any]) -> None:
        self.root, self._effect, self._owner = str(root), effect, owner
        self._tree = Node(True)
        self._pending: list[Move] = []
        self.files: dict[int, tuple[Node, str, Any]] = {}  # open files by descriptor: node, path, process
        self.full = False
        self.studies: dict[str, bool] = {}  # the databases, and whether one was ever synced
        self.connections: list[tuple[Any, sqlite3.Connection]] = []
        self._real = SimpleNamespace(**{name: getattr(os, name) for name in _FUNCTIONS}, io_open=io.open)

    # The tree

    def _parts(self, path: Any) -> list[str] | None:
        text = os.fspath(path) if not isinstance(path, int) else ""
        if not isinstance(text, str) or not (text == self.root or text.startswith(self.root + "/")):
            return None
        return [part for part in text[len(self.root) :].split("/") if part]

    def _place(self, path: Any) -> tuple[Node, str] | None:
        """The folder and the name of a path below the root; None elsewhere and for a database."""
        parts = self._parts(path)
        if not parts or parts[-1].startswith("study.db"):
            return None
        folder = self._tree
        for part in parts[:-1]:
            found = folder.children.get(part)
            if found is None:
                return None
            folder = found
        return folder, parts[-1]

    def _node(self, path: Any) -> Node | None:
        parts = self._parts(path)
        node: Node | None = self._tree if parts is not None else None
        for part in parts or ():
            node = node.children.get(part) if node is not None else None
        return node

    def _link(self, node: Node, target: tuple[Node, str]) -> None:
        target[0].children[target[1]] = node
        node.parent = target[0]
        self._pending.append(Move(node, None, target))

    def _apply(self, move: Move) -> None:
        if move.source is not None:
            folder, name = move.source
            if folder.kept.get(name) is not move.node:
                return
            del folder.kept[name]
        if move.target is not None:
            move.target[0].kept[move.target[1]] = move.node

    def _settle(self, chosen: Callable[[Move], bool]) -> None:
        """Bring changes to the disk, and whatever happened to the same names before them."""
        names: set[tuple[int, str]] = set()
        kept: list[Move] = []
        for move in reversed(self._pending):
            if chosen(move) or not names.isdisjoint(move.names):
                names |= move.names
                kept.append(move)
        if not kept:
            return
        for move in reversed(kept):
            self._apply(move)
        settled = {id(move) for move in kept}
        self._pending = [move for move in self._pending if id(move) not in settled]

    def _sync(self, node: Node) -> None:
        """Keep the entries through which a file or folder was created, and those of its folders."""
        wanted, above = set(), node
        while above is not None:
            wanted.add(id(above))
            above = above.parent  # type: ignore[assignment]
        self._settle(lambda move: move.source is None and id(move.node) in wanted)

    # What the functions of `os` and `open` do below the root

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Let this process see the disk."""
        for name in _FUNCTIONS:
            setattr(os, name, getattr(self, f"_{name}"))
        io.open = self._io_open  # type: ignore[assignment]
        builtins.open = self._io_open
        try:
            yield
        finally:
            for name in _FUNCTIONS:
                setattr(os, name, getattr(self._real, name))
            io.open = self._real.io_open
            builtins.open = self._real.io_open

    def _act(self, kind: str, path: Any) -> None:
        self._effect(kind, role(os.fspath(path)))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd in self.files:  # of shutil.rmtree
            path, dir_fd = f"{self.files[dir_fd][1]}/{path}", None  # type: ignore[index]
        place = self._place(path) if dir_fd is None else None
        if place is None:
            return int(self._real.open(path, flags, mode, dir_fd=dir_fd))
        if flags & os.O_CREAT and place[1] not in place[0].children:
            self._act("create", path)
            self._require_room()
        fd = int(self._real.open(path, flags, mode))
        if place[1] not in place[0].children:
            self._link(Node(False), place)
        self.files[fd] = (place[0].children[place[1]], os.fspath(path), self._owner())
        return fd

    def _require_room(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _close(self, fd: int) -> None:
        self.files.pop(fd, None)
        self._real.close(fd)

    def _dup(self, fd: int) -> int:
        copy = self._real.dup(fd)
        if fd in self.files:
            self.files[copy] = self.files[fd]
        return int(copy)

    def _write(self, fd: int, data: Any) -> int:
        if fd not in self.files:
            return int(self._real.write(fd, data))
        self._act("write", self.files[fd][1])
        if self.full:
            half = len(data) // 2
            if half:
                self._real.write(fd, bytes(data)[:half])
            self._require_room()
        return int(self._real.write(fd, data))

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        if fd in self.files:
            self._act("write", self.files[fd][1])
            self._require_room()
        return int(self._real.pwrite(fd, data, offset))

    def _ftruncate(self, fd: int, length: int) -> None:
        if fd in self.files:
            self._act("truncate", self.files[fd][1])
        self._real.ftruncate(fd, length)

    def _fsync(self, fd: int) -> None:
        if fd not in self.files:
            self._real.fsync(fd)
            return
        node, path, _ = self.files[fd]
        self._act("fsync", path)
        if node.is_folder:
            self._settle(lambda move: id(node) in move.folders)
        else:
            node.synced = self._content(fd)
        self._sync(node)

    def _content(self, fd: int) -> bytes:
        size = os.fstat(fd).st_size
        # Opened for writing only, a descriptor cannot be read.
        with self._real.io_open(f"/proc/self/fd/{fd}", "rb") as stream:
            return bytes(stream.read(size))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path)
        if place is not None and not os.path.lexists(path):
            self._act("mkdir", path)
            self._require_room()
        self._real.mkdir(path, mode)
        if place is not None:
            self._link(Node(True), place)

    def _replace(self, source: Any, target: Any, **named: Any) -> None:
        before, after = self._place(source), self._place(target)
        if before is None or after is None:
            self._real.replace(source, target, **named)
            return
        self._act("rename", target)
        self._keep(target, after[0].children.get(after[1]))
        self._real.replace(source, target)
        node = before[0].children.pop(before[1])
        after[0].children[after[1]] = node
        node.parent = after[0]
        self._pending.append(Move(node, before, after))

    _rename = _replace

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(path, dir_fd, self._real.unlink)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove(path, dir_fd, self._real.rmdir)

    def _remove(self, path: Any, dir_fd: int | None, real: Callable[..., None]) -> None:
        if dir_fd is not None and dir_fd in self.files:  # of shutil.rmtree
            path, dir_fd = f"{self.files[dir_fd][1]}/{path}", None
        place = self._place(path)
        if place is None or dir_fd is not None or not os.path.lexists(path):
            real(path, dir_fd=dir_fd)
            return
        self._act("remove", path)
        self._keep(path, place[0].children.get(place[1]))
        real(path)
        node = place[0].children.pop(place[1])
        self._pending.append(Move(node, place, None))

    def _keep(self, path: Any, node: Node | None) -> None:
        """Remember what a file holds whose name is taken away: after a power cut it may have it again."""
        if node is not None and not node.is_folder:
            with self._real.io_open(path, "rb") as stream:
                node.left = stream.read()

    def _io_open(self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None,
                 errors: Any = None, newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        if isinstance(file, int) or opener is not None or self._parts(file) is None:
            return self._real.io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        flags = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND}
        fd = os.open(file, flags[mode[0]], 0o666)
        if mode[0] == "w" and os.fstat(fd).st_size:
            os.ftruncate(fd, 0)
        if mode[0] == "r":
            reader = io.BufferedReader(_Raw(self, fd, reading=True))
            return reader if "b" in mode else io.TextIOWrapper(reader, encoding or "utf-8", errors, newline)
        stream = io.BufferedWriter(_Raw(self, fd))
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding or "utf-8", errors, newline)

    # SQLite

    def connect(self, path: Any, **options: Any) -> sqlite3.Connection:
        """`sqlite3.connect` for a study: its commits and checkpoints are effects."""
        text, disk = os.fspath(path), self
        self.studies.setdefault(text, False)

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, *words: Any) -> sqlite3.Cursor:
                if sql.startswith("PRAGMA wal_checkpoint"):
                    disk._act("checkpoint", text)
                    disk.studies[text] = True
                    if (folder := disk._node(Path(text).parent)) is not None:
                        disk._sync(folder)
                return super().execute(sql, *words)

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def commit(self) -> None:
                if self.in_transaction:
                    disk._act("commit", text)
                    if disk.full:
                        raise sqlite3.OperationalError("database or disk is full")
                super().commit()

        options["timeout"] = 0.0  # who waits for a lock here would wait for ever
        connection = sqlite3.connect(path, factory=Connection, **options)
        self.connections.append((self._owner(), connection))
        return connection

    # The end of a process, and of everything

    def let_go(self, process: Any) -> None:
        """Close what a process that has ended had open: this releases its locks."""
        for fd, (_, _, owner) in list(self.files.items()):
            if owner is process:
                self._close(fd)
        for owner, connection in self.connections:
            if owner is process:
                connection.close()
        self.connections = [(owner, one) for owner, one in self.connections if owner is not process]

    def cut_power(self, dice: random.Random, processes: list[Any]) -> None:
        """What was not synced is kept, lost or cut; the processes must have been unwound."""
        databases = {path: self._cut_study(path, synced, dice) for path, synced in self.studies.items()}
        for process in processes:
            self.let_go(process)
        # Of a folder that is itself lost, nothing is left.
        self._settle(lambda move: dice.random() < 0.5)
        self._pending = []
        contents: dict[str, bytes | None] = {}
        self._survey(self._tree, "", contents, dice)
        shutil.rmtree(self.root)
        Path(self.root).mkdir()
        self._tree = Node(True)
        for name, content in contents.items():
            node = Node(content is None)
            path = f"{self.root}{name}"
            if content is None:
                self._real.mkdir(path)
            else:
                node.synced = content
                with self._real.io_open(path, "wb") as stream:
                    stream.write(content)
            place = self._place(path)
            assert place is not None
            place[0].children[place[1]] = node
            node.parent = place[0]
            place[0].kept[place[1]] = node
        self.studies = {}
        for path, files in databases.items():
            if files is None or not Path(path).parent.is_dir():
                continue
            self.studies[path] = True
            for name, content in files.items():
                with self._real.io_open(name, "wb") as stream:
                    stream.write(content)

    def _survey(self, folder: Node, at: str, contents: dict[str, bytes | None], dice: random.Random) -> None:
        """What is left below a folder: the content of each file, None for a folder."""
        paths = dict(self._paths())
        for name, node in sorted(folder.kept.items()):
            path = f"{at}/{name}"
            if node.is_folder:
                contents[path] = None
                self._survey(node, path, contents, dice)
            else:
                now = self._now(node, paths)
                contents[path] = _cut(node.synced, now, dice)

    def _paths(self) -> Iterator[tuple[int, str]]:
        def walk(folder: Node, at: str) -> Iterator[tuple[int, str]]:
            for name, node in folder.children.items():
                yield id(node), f"{at}/{name}"
                yield from walk(node, f"{at}/{name}")

        return walk(self._tree, self.root)

    def _now(self, node: Node, paths: dict[int, str]) -> bytes:
        if (path := paths.get(id(node))) is None:
            return node.left or b""
        with self._real.io_open(path, "rb") as stream:
            return bytes(stream.read())

    def _cut_study(self, path: str, synced: bool, dice: random.Random) -> dict[str, bytes] | None:
        """The files of a database after a power cut; None if it is lost."""
        if not Path(path).exists() or (not synced and dice.random() < 0.5):
            return None
        files = {}
        for end in ("", "-wal"):
            if Path(path + end).exists():
                with self._real.io_open(path + end, "rb") as stream:
                    files[path + end] = stream.read()
        if (log := files.get(f"{path}-wal")) and dice.random() < 0.7:
            files[f"{path}-wal"] = log[: dice.randrange(len(log) + 1)]
        return files


class _Raw(io.RawIOBase):
    """An open file of the simulated disk."""

    def __init__(self, disk: SimDisk, fd: int, reading: bool = False) -> None:
        self._disk, self._fd, self._reading = disk, fd, reading
        self._process = disk._owner()
        self._entry = disk.files.get(fd)

    def readable(self) -> bool:
        return self._reading

    def writable(self) -> bool:
        return not self._reading

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def seek(self, offset: int, whence: int = 0) -> int:
        return os.lseek(self._fd, offset, whence)

    def readinto(self, buffer: Any) -> int:
        data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        if self._process is not None and self._process.dead:
            return len(data)  # a buffer that is thrown away after the process has died
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._entry is not None and self._disk.files.get(self._fd) is self._entry:
                os.close(self._fd)


_FUNCTIONS = ("open", "close", "dup", "write", "pwrite", "ftruncate", "fsync", "mkdir", "replace", "rename", "unlink",
              "rmdir")  # fmt: skip


def _cut(synced: bytes, now: bytes, dice: random.Random) -> bytes:
    """A file's content after a power cut."""
    if synced == now:
        return now
    chance = dice.random()
    if chance < 0.35:
        return now
    if not now.startswith(synced):
        return synced if chance < 0.7 else now[: int(len(now) * dice.random())]
    rest = now[len(synced) :]
    cut = int(len(rest) * dice.random())
    if chance < 0.6:
        return synced
    # The length may be on the disk before the bytes are.
    return synced + rest[:cut] + (b"\0" * (len(rest) - cut) if chance > 0.9 else b"")


def role(path: str) -> str:
    """What a file is, without what differs from sweep to sweep."""
    return _role(path.rpartition("/")[2])


@functools.lru_cache(10_000)
def _role(name: str) -> str:
    for begin in ("runlog-", "trial-", "checkpoint-"):
        if name.startswith(begin):
            return begin + (name.rpartition(".")[2] if "." in name else "")
    parts = name.split(".")
    return ".".join(part for part in parts if not part.isdigit())


def caller() -> str:
    """The line of the product that an effect comes from."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("binsweep."):
            return f"{name.removeprefix('binsweep.')}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


__all__ = ["SimDisk", "SimulatedCrash", "caller", "role"]
