"""The feature bank: a split's activations at the cut, computed once per machine and view, memory-mapped."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

log = logging.getLogger(__name__)

Encode = Callable[[Tensor], Tensor]
# bfloat16 has no numpy name: its bits are stored as 16-bit integers.
_STORED: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.bfloat16: np.int16}


def _load(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The bank at `path` as a tensor that shares the mapped file, or None when it is missing or broken."""
    if not path.exists():
        return None
    try:
        # Copy on write: pages are shared between processes, and torch accepts only arrays it may write to.
        array = np.load(path, mmap_mode="c")
    except (ValueError, OSError, EOFError):
        array = None
    if array is None or array.shape[:2] != shape[:2] or array.dtype not in (np.float32, np.int16):
        log.warning("feature bank %s is unreadable or of another shape: it is built again", path.name)
        return None
    tensor = torch.from_numpy(array)
    return tensor if array.dtype == np.float32 else tensor.view(torch.bfloat16)


def open_feature_bank(
    pixels: np.ndarray[Any, Any],
    encode: Encode,
    key: str,
    folder: Path,
    views: int,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 64,
) -> Tensor:
    """Activations [views, N, ...] of uint8 `pixels` [N, S, S, 3]; view 0 is the image, view 1 its mirror.

    `encode` maps a uint8 batch [B, S, S, 3] to a float32 or bfloat16 batch [B, ...]. `key` must name all that
    the activations depend on (data, backbone, weights, cut, number format): the same key is never computed
    twice on a machine, also not by two processes at once. Written beside, then renamed.
    """
    path = folder / f"features-{hashlib.sha256(f'{key}|{views}'.encode()).hexdigest()[:24]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    shape = (views, len(pixels))
    with FileLock(f"{path}.lock"):
        bank = _load(path, shape)
        if bank is None:
            _build(path, pixels, encode, views, progress, batch)
            bank = _load(path, shape)
    assert bank is not None, path
    return bank


def _build(
    path: Path,
    pixels: np.ndarray[Any, Any],
    encode: Encode,
    views: int,
    progress: Callable[[int, int], None] | None,
    batch: int,
) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    out = None
    try:
        for view in range(views):
            for start in range(0, len(pixels), batch):
                images = torch.from_numpy(np.array(pixels[start : start + batch]))
                with torch.inference_mode():
                    codes = encode(images.flip(2) if view else images).cpu()
                if out is None:
                    shape = (views, len(pixels), *codes.shape[1:])
                    stored = _STORED[codes.dtype]
                    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=stored, shape=shape)
                raw = codes.view(torch.int16) if codes.dtype == torch.bfloat16 else codes
                out[view, start : start + len(codes)] = raw.numpy()
                if progress is not None:
                    progress(view * len(pixels) + start + len(codes), views * len(pixels))
        assert out is not None, "a bank needs at least one image"
        out.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
