"""The pixel bank: a split decoded once per machine, memory-mapped and shared by all trials."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from binsweep.data.banks.store import bank_folder, evict_banks, open_bank
from binsweep.data.decode import VERSION, ImageError, decode, read
from binsweep.data.manifest import Manifest
from binsweep.data.parallel import Progress, run
from binsweep.data.split import SplitName

_PIXELS_FILE = "pixels.npy"
_INDEX_FILE = "index.json"


class PixelBank:
    """A split as arrays.

    `pixels`: uint8 [N, size, size, 3] RGB, read-only and mapped from the file; `labels`: int64 [N], the index
    of each image's class in the manifest's classes (for `train_also`, in its `head_classes`); `ids`: the N image ids
    in ascending order; `key`: identifies the content (manifest, split, size, decoder) for derived data. A bank
    pickles as its `path`, so that other processes of the machine share its memory.
    """

    def __init__(self, path: Path) -> None:
        """Map the bank in the folder `path`; raises OSError, ValueError or KeyError if it is damaged."""
        index = json.loads((path / _INDEX_FILE).read_bytes())
        self.path = path
        self.key: str = index["key"]
        self.ids: tuple[str, ...] = tuple(index["ids"])
        self.labels = np.array(index["labels"], np.int64)
        self.pixels: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(
            path / _PIXELS_FILE, mode="r"
        )
        if self.pixels.dtype != np.uint8 or {len(self.ids), len(self.labels)} != {len(self.pixels)}:
            raise ValueError(f"pixels are {self.pixels.dtype} {self.pixels.shape} for {len(self.ids)} images")

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[type["PixelBank"], tuple[Path]]:
        return PixelBank, (self.path,)


def open_pixel_bank(
    manifest: Manifest,
    split_name: SplitName | Literal["train_also"],
    size: int,
    home: Path,
    progress: Progress | None = None,
    interpolation: str = "bilinear",
) -> PixelBank:
    """The bank of a manifest's split, or of its photos of other counts, resized to `size` x `size` pixels.

    It comes from `home`/banks or is built there on all cores. Concurrent processes build it once; a damaged bank is
    built again. `progress(done, total)` counts images. Raises UserError if an image no longer matches the manifest,
    or if the bank cannot be written.
    """
    items = manifest.train_also if split_name == "train_also" else manifest.split(split_name)
    classes = manifest.head_classes if split_name == "train_also" else manifest.classes
    key = f"pixels|{manifest.fingerprint}|{split_name}|{size}|decoder {VERSION}"
    key += "" if interpolation == "bilinear" else f"|{interpolation}"

    def load(path: Path) -> PixelBank:
        bank = PixelBank(path)
        if bank.key != key or bank.pixels.shape != (len(items), size, size, 3):
            raise ValueError("it has other content")
        return bank

    def build(partial: Path) -> None:
        evict_banks(partial.parent, len(items) * size * size * 3)
        images = [[str(item.path), item.sha256] for item in items]
        _decode_all(images, size, interpolation, partial / _PIXELS_FILE, progress)
        places = {label: place for place, label in enumerate(classes)}
        labels = [places[manifest.head_class(item.label)] for item in items]
        index = {"key": key, "ids": [item.id for item in items], "labels": labels}
        (partial / _INDEX_FILE).write_text(json.dumps(index))

    path = bank_folder(home) / f"pixels-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    return open_bank(path, f"pixel bank of {manifest.source} ({split_name})", load, build)


def _decode_all(
    images: list[list[str]], size: int, interpolation: str, file: Path, progress: Progress | None
) -> None:
    with file.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(images), size, size, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        stream.truncate(start + len(images) * size * size * 3)
    job = {"file": str(file), "start": start, "size": size, "interpolation": interpolation, "images": images}
    run(_decode_part, job, len(images), min_units=100, progress=progress)


def _decode_part(job: dict[str, Any], worker: int, n_workers: int) -> Iterator[None]:
    """Decode every `n_workers`-th image into its place in the file.

    Written rather than mapped: a full disk raises an error, where a mapping would kill the process.
    """
    size = job["size"]
    with Path(job["file"]).open("rb+") as file:
        for row in range(worker, len(job["images"]), n_workers):
            path, sha256 = job["images"][row]
            try:
                data = read(Path(path))
                if hashlib.sha256(data).hexdigest() != sha256:
                    raise ImageError("changed since it was read for the manifest")
                pixels = decode(data, size, job["interpolation"])
            except ImageError as error:
                raise OSError(f"{path}: {error}") from error
            file.seek(job["start"] + row * size * size * 3)
            file.write(pixels.tobytes())
            yield
