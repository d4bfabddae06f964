"""How fast this machine trains, before a sweep with a limit on time begins.

Until an epoch has ended nothing would be known but relations between configurations, and of a short budget the first
epoch may be all: its training would be planned for too many epochs, and cut off while its learning rate is high.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from statistics import mean
from typing import Any

import torch

from binsweep.models.backbones.library import interpolation_of
from binsweep.models.precision import threads_of
from binsweep.models.train import measure_epoch
from binsweep.models.trial_data import TrialData
from binsweep.search.execution.photo_trial import out_of_memory
from binsweep.search.spec.space import values_of
from binsweep.search.spec.sweep_spec import PhotoSpec
from binsweep.search.strategy.optuna_strategy import OptunaStrategy
from binsweep.search.terminal.format import format_duration
from binsweep.search.workflows.finalists import restored_threads
from binsweep.search.workflows.first_guesses import initial_points

MAX_SECONDS = 10.0
MAX_AT_ONCE = 4
MAX_SHARE = 0.02  # of the time that the sweep has


def try_first_steps(
    spec: PhotoSpec, data: TrialData, strategy: OptunaStrategy, seconds_left: float, at_once: int = 1
) -> None:
    """Train the first configuration for a few steps, and tell the strategy how long its epoch would take.

    It is trained `at_once` times (at most MAX_AT_ONCE), as trials that run at once slow each other down. A head on
    stored features is not tried, because its epochs are short; nor is anything on a GPU, whose memory this process
    would keep, nor what does not fit into memory as it is.
    """
    params = _first_params(spec)
    level = spec.sections(params, spec.search.seed)[-1]
    settings = level.settings
    if settings.trainable == "head" or torch.cuda.is_available():
        return
    own = data.at_size(level.image_size, interpolation_of(settings.backbone))
    cpus = spec.resources.of(spec.trial_values(params)).cpus_per_trial
    limit = min(MAX_SECONDS, MAX_SHARE * seconds_left)

    def measured(_: int) -> float:
        torch.set_num_threads(threads_of(settings.trainable, cpus))
        return measure_epoch(settings, own, limit)

    count = min(at_once, MAX_AT_ONCE)
    try:
        with restored_threads(), ThreadPoolExecutor(count) as pool:
            seconds = mean(pool.map(measured, range(count)))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return
    strategy.assume_seconds(params, seconds)
    print(
        f"tried a few steps: an epoch of {settings.backbone} takes about {format_duration(seconds)}",
        file=sys.stderr,
    )


def _first_params(spec: PhotoSpec) -> dict[str, Any]:
    """The configuration that is trained first, or else the first value of everything that is searched."""
    points = initial_points(spec)
    if points:
        return dict(points[0].params)
    params: dict[str, Any] = {}
    for name in spec.space:
        if spec.space.is_active(name, params):
            params[name] = values_of(spec.space[name])[0]
    return params
