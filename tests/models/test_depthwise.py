"""The fast gradients of depthwise convolutions equal the library's, for every shape that they replace."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binsweep.models.depthwise import FastDepthwise, _Depthwise


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 9), (12, 7)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (1, 2)])
def test_gradients_are_those_of_the_library(
    kernel: int, stride: int, size: tuple[int, int], padding: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, 16, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(inputs, weight, None, stride, padding, 1, 16)
    found = _Depthwise.apply(inputs, weight, stride, padding)
    assert torch.equal(found, expected)
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (inputs, weight), gradient),
        torch.autograd.grad(expected, (inputs, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bias", [False, True])
def test_a_network_in_bf16_learns_the_same_with_it(bias: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.Conv2d(32, 32, 5, 2, 2, groups=32, bias=bias),
        nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False),
        nn.Conv2d(32, 8, 1),
    ).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 33, 33)
    seen: list[object] = []

    def gradients(mode: FastDepthwise | None) -> list[Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if mode is None:
                out = net(images)
            else:
                with mode:
                    out = net(images)
        node = out.grad_fn
        while node is not None:  # the names of the operations, from the last to the first
            seen.append(node.name())
            node = next((parent for parent, _ in node.next_functions if parent is not None), None)
        out.float().square().sum().backward()
        return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]

    plain = gradients(None)
    assert not any("_Depthwise" in str(name) for name in seen)
    fast = gradients(FastDepthwise())
    assert sum("_Depthwise" in str(name) for name in seen) == 1  # the 3 x 3 of stride 1 stays as it is
    for ours, theirs in zip(fast, plain, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()
