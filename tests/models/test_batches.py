"""Which batches stay on a GPU, here with a simulated one; tests/gpu uses a real one."""

import pytest
import torch

from binsweep.models.batches import fits_on_gpu


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 1,000 bytes with 800 free on each. The process may use half of the current one, number 1, and holds
    100 bytes there. PyTorch's own functions check their arguments."""
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 1000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch._C, "_cuda_getMemoryFraction", lambda index: (1.0, 0.5)[index], raising=False)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("device", "most"), [("cuda", (500 - 100) // 4), ("cuda:0", 800 // 4), ("cuda:1", 100), ("cpu", -1)]
)
def test_a_quarter_of_what_the_process_may_still_have_stays_on_the_gpu(device: str, most: int) -> None:
    """A trial's device is "cuda" without an index: the current GPU, which differs between the processes of a group."""
    assert not fits_on_gpu(most + 1, torch.device(device))
    assert most < 0 or fits_on_gpu(most, torch.device(device))
