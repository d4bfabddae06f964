"""The parameters of a training's run in MLflow: of a trial, a finalist and a refit alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from binsweep.models.levels import Level


def run_params(levels: Sequence[Level]) -> dict[str, Any]:
    """The settings of a training and its `image_size` in pixels.

    What differs between fidelity levels is listed in their order, such as "head, all"; `level_1`, `level_2`, ... say
    each level in words.
    """
    each = [{**asdict(level.settings), "image_size": level.image_size} for level in levels]
    params = {}
    for name, last in each[-1].items():
        values = [level[name] for level in each]
        params[name] = last if len(set(values)) == 1 else ", ".join(map(str, values))
    if len(levels) > 1:
        params |= {f"level_{number}": str(level) for number, level in enumerate(levels, 1)}
    return params
