"""The kinds of training, by the spec of a sweep."""

from __future__ import annotations

from binsweep.search.execution.photo_trial import PhotoTraining
from binsweep.search.execution.trial import TrainingKind
from binsweep.search.spec.sweep_spec import CodeSpec, SweepSpec


def kind_of(spec: SweepSpec) -> TrainingKind:
    """The kind of training that a spec is about."""
    if isinstance(spec, CodeSpec):
        from binsweep.search.execution.code_trial import CodeTraining

        return CodeTraining()
    return PhotoTraining()
