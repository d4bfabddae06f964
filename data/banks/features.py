"""The feature bank: a split's activations at the cut, computed once per machine and view, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from binsweep.data.banks.store import evict_banks, open_bank
from binsweep.data.parallel import Progress

Encode = Callable[[Tensor, Tensor, Tensor], Tensor]
VERSION = 2
# bfloat16 has no numpy name: its bits are stored as 16-bit integers.
_STORED_DTYPES: dict[torch.dtype, Any] = {torch.float32: np.dtype("<f4"), torch.bfloat16: np.dtype("<i2")}
_FEATURES_FILE, _INDEX_FILE = "features.npy", "index.json"


def open_feature_bank(
    pixels: np.ndarray[Any, Any],
    encode: Encode,
    key: str,
    folder: Path,
    views: int,
    progress: Progress | None = None,
    batch: int = 8,
    threads: int = 1,
) -> Tensor:
    """The activations [views, N, ...] of `encode` for uint8 `pixels` [N, S, S, 3].

    `encode` maps a uint8 batch [B, S, S, 3], its rows int64 [B] and the numbers of their views int64 [B] to a
    float32 or bfloat16 batch [B, ...]; `threads` batches run concurrently. `key` must contain everything on which the
    activations depend (data, backbone, weights, cut, number format, augmentation): a key is computed once on a
    machine, also by concurrent processes. All processes share the mapped file. Raises UserError if the bank cannot
    be written.
    """
    full_key = f"features|{VERSION}|{key}|{views}"

    def load(path: Path) -> Tensor:
        if json.loads((path / _INDEX_FILE).read_bytes())["key"] != full_key:
            raise ValueError("it has other content")
        # Copy on write: pages are shared between processes, and torch accepts only arrays it may write to.
        array = np.lib.format.open_memmap(path / _FEATURES_FILE, mode="c")
        if array.shape[:2] != (views, len(pixels)) or array.dtype not in _STORED_DTYPES.values():
            raise ValueError(f"features are {array.dtype} {array.shape} for {len(pixels)} images")
        tensor = torch.from_numpy(array)
        return tensor if array.dtype == np.float32 else tensor.view(torch.bfloat16)

    def build(partial: Path) -> None:
        # Written rather than mapped: a full disk raises an error, where a mapping would kill the process.
        with (partial / _FEATURES_FILE).open("wb") as file:
            done = 0
            for features in _encode_all(pixels, encode, views, batch, threads):
                if not done:
                    _write_header(file, features, (views, len(pixels)), folder)
                raw = features.view(torch.int16) if features.dtype == torch.bfloat16 else features
                file.write(raw.numpy().tobytes())
                done += len(features)
                if progress is not None:
                    progress(done, views * len(pixels))
        (partial / _INDEX_FILE).write_text(json.dumps({"key": full_key}))

    path = folder.absolute() / f"features-{hashlib.sha256(full_key.encode()).hexdigest()[:24]}"
    return open_bank(path, "feature bank", load, build)


def _write_header(file: BinaryIO, features: Tensor, n_rows: tuple[int, int], folder: Path) -> None:
    shape = (*n_rows, *features.shape[1:])
    dtype = _STORED_DTYPES[features.dtype]
    evict_banks(folder, int(np.prod(shape)) * dtype.itemsize)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _encode_all(
    pixels: np.ndarray[Any, Any], encode: Encode, views: int, batch: int, threads: int
) -> Iterator[Tensor]:
    """The activations of every view in order, batch by batch, on the CPU.

    Each thread computes whole batches with one torch thread. Threads that share a batch wait for the slowest at
    every layer (measured: four times slower on a busy machine).
    """

    def encode_batch(view: int, start: int) -> Tensor:
        images = torch.from_numpy(np.array(pixels[start : start + batch]))
        rows = torch.arange(start, start + len(images))
        with torch.inference_mode():
            return encode(images, rows, torch.full_like(rows, view)).cpu().contiguous()

    if threads == 1:
        for view in range(views):
            for start in range(0, len(pixels), batch):
                yield encode_batch(view, start)
        return
    n_torch_threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending: deque[Future[Tensor]] = deque()
        try:
            for view in range(views):
                for start in range(0, len(pixels), batch):
                    pending.append(pool.submit(encode_batch, view, start))
                    if len(pending) > 2 * threads:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(n_torch_threads)
