"""Fast gradients of depthwise convolutions in bf16 on a CPU.

oneDNN has slow fall-backs for two of them: the input's gradient at stride 2 and the weight's gradient of kernels
above 3 x 3, each up to a hundred times slower than similar gradients (measured with torch 2.14.1 on a CPU with
AVX512-BF16: 400 and 250 ms in layers whose forward pass takes 2 ms). Fast kernels of oneDNN can compute both. The
first is a convolution of the gradient, dilated by the stride, with the flipped kernel (Dumoulin & Visin 2016,
chapter 4); the second is composed of gradients of 3 x 3 kernels over shifted inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FastDepthwise(TorchFunctionMode):
    """Within this mode, convolutions with a slow gradient under autocast have a fast one with the same value."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Layers pass all arguments by position; other calls stay as they are.
        if func is F.conv2d and len(args) == 7 and torch.is_grad_enabled() and _is_slow(*args):
            inputs, weight, bias, stride, padding = args[:5]
            out = _Depthwise.apply(inputs.bfloat16(), weight.bfloat16(), stride[0], padding)
            return out if bias is None else out + bias.bfloat16()[:, None, None]
        return func(*args, **(kwargs or {}))


def _is_slow(
    inputs: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    channels, channels_per_group, height, width = weight.shape
    return (
        channels == groups
        and channels_per_group == 1
        and height == width
        and height in (3, 5, 7)
        and stride in ((1, 1), (2, 2))
        and dilation == (1, 1)
        and (height > 3 or stride == (2, 2))
        and isinstance(padding, tuple)
        and max(padding) < height
    )


class _Depthwise(torch.autograd.Function):
    """Inputs [B, C, H, W] and weight [C, 1, K, K] in bf16; `stride` in both directions, `padding` (y, x)."""

    @staticmethod
    def forward(
        context: Any, inputs: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        context.save_for_backward(inputs, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(inputs, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        inputs, weight = context.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        input_gradient = weight_gradient = None
        if context.needs_input_grad[0]:
            input_gradient = _input_gradient(gradient, weight, inputs.shape, context.stride, context.padding)
        if context.needs_input_grad[1]:
            weight_gradient = _weight_gradient(gradient, weight, inputs, context.stride, context.padding)
        return input_gradient, weight_gradient, None, None


def _input_gradient(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: tuple[int, int]
) -> Tensor:
    kernel = weight.shape[-1]
    full_padding = [kernel - 1 - pad for pad in padding]
    if stride > 1:
        size = [n + 2 * pad - kernel + 1 for n, pad in zip(shape[2:], padding, strict=True)]
        dilated = torch.empty(
            (*gradient.shape[:2], *size),
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=torch.channels_last,
        ).zero_()
        dilated[:, :, ::stride, ::stride] = gradient
        gradient = dilated
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, full_padding, 1, len(weight))


def _weight_gradient(
    gradient: Tensor, weight: Tensor, inputs: Tensor, stride: int, padding: tuple[int, int]
) -> Tensor:
    channels, kernel = len(weight), weight.shape[-1]
    up, left = padding
    if up or left:
        inputs = F.pad(inputs, (left, left, up, up))
    height, width = (stride * (n - 1) + 3 for n in gradient.shape[2:])
    result = torch.empty_like(weight)
    corners = [*range(0, kernel - 3, 3), kernel - 3]
    for y in corners:
        for x in corners:
            window = inputs[:, :, y : y + height, x : x + width]
            _, block, _ = torch.ops.aten.convolution_backward(
                gradient,
                window.contiguous(memory_format=torch.channels_last),
                weight[:, :, :3, :3],
                None,
                [stride, stride],
                [0, 0],
                [1, 1],
                False,
                [0, 0],
                channels,
                [False, True, False],
            )
            result[:, :, y : y + 3, x : x + 3] = block
    return result
