"""What a counter costs where it is used: the time for one photo, and its size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import torch

from binsweep.models.build import build_model
from binsweep.models.settings import Settings

WARM_UP, REPEATS = 3, 15


def photo_costs(settings: Settings, classes: Sequence[int], image_size: int) -> dict[str, float]:
    """`latency_ms`: one decoded photo, from pixels to counts, on the CPU with this process's threads; `megabytes`:
    all weights.

    The least of 15 times, because other trials share the machine. What training changes costs nothing more, so the
    time is measured once in a process for each backbone and head.
    """
    # Trainable as a whole, it is a copy of its own: frozen stages are shared with the trials, and may be on a GPU.
    kept = Settings(backbone=settings.backbone, weights=settings.weights, head=settings.head, trainable="all")
    return _measured(kept, tuple(classes), image_size, torch.get_num_threads())


@lru_cache
def _measured(
    settings: Settings, classes: tuple[int, ...], image_size: int, threads: int
) -> dict[str, float]:
    counter = build_model(settings, classes, image_size).cpu().eval()
    counter = counter.to(memory_format=torch.channels_last)
    photo = torch.zeros((1, image_size, image_size, 3), dtype=torch.uint8)
    times = []
    with torch.inference_mode():
        for _ in range(WARM_UP + REPEATS):
            began = time.perf_counter()
            counter(photo)
            times.append(time.perf_counter() - began)
    size = sum(tensor.numel() * tensor.element_size() for tensor in counter.state_dict().values())
    return {"latency_ms": 1000 * min(times[WARM_UP:]), "megabytes": size / 1e6}
