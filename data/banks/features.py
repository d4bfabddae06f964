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

Encode = Callable[[Tensor, Tensor, Tensor], Tensor]
Progress = Callable[[int, int], None]
VERSION = 2
# bfloat16 has no numpy name: its bits are stored as 16-bit integers.
_STORED: dict[torch.dtype, Any] = {torch.float32: np.dtype("<f4"), torch.bfloat16: np.dtype("<i2")}
_FEATURES, _INDEX = "features.npy", "index.json"


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
    """Activations [views, N, ...] of uint8 `pixels` [N, S, S, 3], as `encode` gives them.

    `encode` maps a uint8 batch [B, S, S, 3], its rows int64 [B] and the numbers of their views int64 [B] to a
    float32 or bfloat16 batch [B, ...]; `threads` of them run at once. `key` must name all that the activations
    depend on (data, backbone, weights, cut, number format, augmentation): the same key is never computed twice
    on a machine, also not by two processes at once. The tensor shares the mapped file with every process that
    opens it. Raises UserError when the bank cannot be written.
    """
    whole = f"features|{VERSION}|{key}|{views}"

    def load(path: Path) -> Tensor:
        if json.loads((path / _INDEX).read_bytes())["key"] != whole:
            raise ValueError("it holds something else")
        # Copy on write: pages are shared between processes, and torch accepts only arrays it may write to.
        array = np.lib.format.open_memmap(path / _FEATURES, mode="c")
        if array.shape[:2] != (views, len(pixels)) or array.dtype not in _STORED.values():
            raise ValueError(f"features are {array.dtype} {array.shape} for {len(pixels)} images")
        tensor = torch.from_numpy(array)
        return tensor if array.dtype == np.float32 else tensor.view(torch.bfloat16)

    def build(beside: Path) -> None:
        # Written rather than mapped: a full disk is then an error, where a mapping would kill the process.
        with (beside / _FEATURES).open("wb") as file:
            done = 0
            for codes in _encoded(pixels, encode, views, batch, threads):
                if not done:
                    _write_header(file, codes, (views, len(pixels)), folder)
                raw = codes.view(torch.int16) if codes.dtype == torch.bfloat16 else codes
                file.write(raw.numpy().tobytes())
                done += len(codes)
                if progress is not None:
                    progress(done, views * len(pixels))
        (beside / _INDEX).write_text(json.dumps({"key": whole}))

    path = folder.absolute() / f"features-{hashlib.sha256(whole.encode()).hexdigest()[:24]}"
    return open_bank(path, "feature bank", load, build)


def _write_header(file: BinaryIO, codes: Tensor, rows: tuple[int, int], folder: Path) -> None:
    shape = (*rows, *codes.shape[1:])
    stored = _STORED[codes.dtype]
    evict_banks(folder, int(np.prod(shape)) * stored.itemsize)
    header = {"descr": stored.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _encoded(
    pixels: np.ndarray[Any, Any], encode: Encode, views: int, batch: int, threads: int
) -> Iterator[Tensor]:
    """The activations of every view in order, batch by batch, on the CPU.

    Each thread computes whole batches with one thread of torch: they never wait for one another, where threads
    that share a batch wait at every layer for the slowest (measured: four times as fast on a busy machine).
    """

    def one(view: int, start: int) -> Tensor:
        images = torch.from_numpy(np.array(pixels[start : start + batch]))
        rows = torch.arange(start, start + len(images))
        with torch.inference_mode():
            return encode(images, rows, torch.full_like(rows, view)).cpu().contiguous()

    if threads == 1:
        for view in range(views):
            for start in range(0, len(pixels), batch):
                yield one(view, start)
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Tensor]] = deque()
        try:
            for view in range(views):
                for start in range(0, len(pixels), batch):
                    waiting.append(pool.submit(one, view, start))
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)
