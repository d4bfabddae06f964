"""The pixel bank: a split decoded once per machine, mapped into memory, shared by all trials."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from data.crew import Progress, run
from data.decode import VERSION, ImageError, decode, read
from data.errors import UserError
from data.manifest import Manifest
from data.split import SplitName

log = logging.getLogger(__name__)

_PIXELS = "pixels.npy"
_INDEX = "index.json"


class PixelBank:
    """A split as arrays.

    `pixels`: uint8 [N, size, size, 3] RGB, read-only and mapped from the file; `labels`: int64 [N], the index
    of each image's class in the manifest's classes; `ids`: the N image ids in ascending order; `key`: names
    the content (manifest, split, size, decoder), for whatever is derived from it. Pickles as its `path`, so
    that handing a bank to another process of the machine costs nothing and shares the memory.
    """

    def __init__(self, path: Path) -> None:
        """Map the bank in the folder `path`; raises OSError, ValueError or KeyError when it is damaged."""
        index = json.loads((path / _INDEX).read_bytes())
        self.path = path
        self.key: str = index["key"]
        self.ids: tuple[str, ...] = tuple(index["ids"])
        self.labels = np.array(index["labels"], np.int64)
        self.pixels: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(path / _PIXELS, mode="r")
        if self.pixels.dtype != np.uint8 or {len(self.ids), len(self.labels)} != {len(self.pixels)}:
            raise ValueError(f"pixels are {self.pixels.dtype} {self.pixels.shape} for {len(self.ids)} images")

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[type["PixelBank"], tuple[Path]]:
        return PixelBank, (self.path,)


def open_pixel_bank(
    manifest: Manifest, split_name: SplitName, size: int, home: Path, progress: Progress | None = None
) -> PixelBank:
    """The bank of a manifest's split at `size` x `size` pixels, from `home`/banks or built there on all cores.

    Built once, also when several processes ask at the same time: written beside, then renamed. A bank that is
    damaged is built again. `progress(done, total)` counts images while building. Raises UserError when an
    image is no longer what the manifest says, or when the bank cannot be written.
    """
    key = f"pixels|{manifest.fingerprint}|{split_name}|{size}|decoder {VERSION}"
    path = (home / "banks" / f"pixels-{hashlib.sha256(key.encode()).hexdigest()[:24]}").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            bank = _load(path, key, (len(manifest.split(split_name)), size, size, 3))
            if bank is None:
                _build(path, key, manifest, split_name, size, progress)
                bank = PixelBank(path)
            return bank
    except OSError as error:
        raise UserError(
            f"cannot build the pixel bank of {manifest.source} ({split_name}) in {path.parent}: "
            f"{error.strerror or error}",
            "an unchanged source and a place with enough room where you may write; then run it again",
        ) from error


def _load(path: Path, key: str, shape: tuple[int, ...]) -> PixelBank | None:
    if not path.exists():
        return None
    try:
        bank = PixelBank(path)
        if bank.key == key and bank.pixels.shape == shape:
            return bank
        reason = "it holds something else"
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = str(error) or type(error).__name__
    log.warning("the pixel bank %s is built again: %s", path, reason)
    return None


def _build(
    path: Path, key: str, manifest: Manifest, split_name: SplitName, size: int, progress: Progress | None
) -> None:
    items = manifest.split(split_name)
    beside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed
    beside.mkdir()
    try:
        with (beside / _PIXELS).open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(items), size, size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            file.truncate(start + len(items) * size * size * 3)
        images = [[str(item.path), item.sha256] for item in items]
        job = {"file": str(beside / _PIXELS), "start": start, "size": size, "images": images}
        run(_fill, job, len(items), least=100, progress=progress)
        labels = [manifest.classes.index(item.label) for item in items]
        index = {"key": key, "ids": [item.id for item in items], "labels": labels}
        (beside / _INDEX).write_text(json.dumps(index))
        for name in (_PIXELS, _INDEX):  # on the disk before the name is: a bank that exists is whole
            with (beside / name).open("rb+") as file:
                os.fsync(file.fileno())
        shutil.rmtree(path, ignore_errors=True)
        beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _fill(job: dict[str, Any], part: int, parts: int) -> Iterator[None]:
    """Decode every `parts`-th image into its place in the file.

    Written rather than mapped: a full disk is then an error, where a mapping would kill the process.
    """
    size = job["size"]
    with Path(job["file"]).open("rb+") as file:
        for row in range(part, len(job["images"]), parts):
            path, sha256 = job["images"][row]
            try:
                data = read(Path(path))
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise ImageError("changed since it was read for the manifest")
                pixels = decode(data, size)
            except ImageError as error:
                raise OSError(f"{path}: {error}") from error
            file.seek(job["start"] + row * size * size * 3)
            file.write(pixels.tobytes())
            yield
