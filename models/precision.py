"""The arithmetic that suits this machine: device and number format."""

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
    """Where and in which number format a trial computes."""

    device: torch.device
    autocast: torch.dtype | None

    @property
    def name(self) -> str:
        """For tags and bank keys: `cpu-bf16`, `cuda-fp32`."""
        return f"{self.device.type}-{'fp32' if self.autocast is None else 'bf16'}"

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Autocast to the number format, with gradients that are fast in it; or nothing."""
        if self.autocast is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, dtype=self.autocast))
            if self.device.type == "cpu" and self.autocast is torch.bfloat16:
                stack.enter_context(FastDepthwise())
            yield


def send(values: Tensor, device: torch.device) -> Tensor:
    """What lies on the CPU, on the device: to a GPU from pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values


def release_gpu_memory() -> None:
    """What this process holds of a GPU's memory and does not use, to whoever shares the GPU. A trial's objects refer to
    one another, and are memory in use until they are collected."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def threads_of(trainable: str, available: int) -> int:
    """The threads that one trial computes with: a head's steps are too small to share, its threads would only wait
    for one another."""
    return 1 if trainable == "head" else available


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed in hardware; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def disable_tf32() -> None:
    """fp32 on a GPU is fp32: cuDNN would by default round what a convolution multiplies to the 10 bits of TF32.

    Only GPUs that have bf16 have TF32, and `auto` takes bf16 there: who asks for fp32 wants its digits.
    """
    torch.backends.cudnn.allow_tf32 = False


def choose_precision(precision: str = "auto") -> Precision:
    """`auto` takes the GPU where there is one, and bf16 where the hardware has it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return Precision(device, torch.bfloat16 if bf16 else None)
