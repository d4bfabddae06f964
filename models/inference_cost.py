"""What a model costs in use: the latency for one photo, and its size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import torch

from binsweep.data.labels import Label
from binsweep.models.build import build_model
from binsweep.models.settings import Settings

N_WARM_UP, N_REPEATS = 3, 15


def photo_costs(settings: Settings, classes: Sequence[Label], image_size: int) -> dict[str, float]:
    """`latency_ms`: from pixels to counts for one photo, on the CPU with this process's threads; `megabytes`: weights.

    The latency is the minimum of 15 runs, because other trials share the machine. Training does not change it, so a
    process measures each combination of backbone and head once.
    """
    # With trainable="all" the model has a copy of its own: frozen stages are shared with trials, and may be on a GPU.
    measured = Settings(
        backbone=settings.backbone, weights=settings.weights, head=settings.head, trainable="all"
    )
    return _measure(measured, tuple(classes), image_size, torch.get_num_threads())


@lru_cache
def _measure(
    settings: Settings, classes: tuple[Label, ...], image_size: int, threads: int
) -> dict[str, float]:
    model = build_model(settings, classes, image_size).cpu().eval()
    model = model.to(memory_format=torch.channels_last)
    photo = torch.zeros((1, image_size, image_size, 3), dtype=torch.uint8)
    seconds = []
    with torch.inference_mode():
        for _ in range(N_WARM_UP + N_REPEATS):
            start = time.perf_counter()
            model(photo)
            seconds.append(time.perf_counter() - start)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {"latency_ms": 1000 * min(seconds[N_WARM_UP:]), "megabytes": size / 1e6}
