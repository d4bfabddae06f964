"""Device and number format of a trial's computations."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from binsweep.models.depthwise import FastDepthwise


@dataclass(frozen=True)
class Precision:
    """The device and number format that a trial computes with; `autocast` is None for fp32."""

    device: torch.device
    autocast: torch.dtype | None

    @property
    def name(self) -> str:
        """For tags and bank keys: `cpu-bf16`, `cuda-fp32`."""
        return f"{self.device.type}-{'fp32' if self.autocast is None else 'bf16'}"

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Autocast to the number format, with gradients that are fast in it; a no-op for fp32."""
        if self.autocast is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, dtype=self.autocast))
            if self.device.type == "cpu" and self.autocast is torch.bfloat16:
                stack.enter_context(FastDepthwise())
            yield


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; a copy to a GPU starts from pinned memory, so that the CPU need not wait for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values


def release_gpu_memory() -> None:
    """Return the GPU memory that this process holds but does not use, for other processes on the GPU.

    The objects of a trial refer to one another, so their memory is in use until they are garbage-collected.
    """
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def threads_of(trainable: str, available: int) -> int:
    """The number of CPU threads for one trial: the steps of a head are too small to be shared between threads."""
    return 1 if trainable == "head" else available


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware computes bf16; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def disable_tf32() -> None:
    """Compute fp32 on a GPU exactly: by default cuDNN rounds the factors of a convolution to the 10 bits of TF32.

    Only GPUs with bf16 have TF32, and `auto` chooses bf16 there, so fp32 is used only where it was asked for.
    """
    torch.backends.cudnn.allow_tf32 = False


def choose_precision(precision: str = "auto") -> Precision:
    """The GPU if there is one; `auto` means bf16 where the hardware computes it, and fp32 elsewhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return Precision(device, torch.bfloat16 if bf16 else None)
