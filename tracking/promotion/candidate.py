"""A candidate for champion, as a sweep hands it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binsweep.data.labels import Label
from binsweep.data.manifest import Manifest
from binsweep.models.engines.names import EngineChoice
from binsweep.models.labelling import Labelling, Measure, labelling_of
from binsweep.models.metrics import commonest
from binsweep.models.predictor import Predictor


@dataclass(frozen=True)
class Candidate:
    """The model of a trial's run, from a sweep over the photos of `manifest`.

    `validation` holds the trained model's probabilities on the validation split, [N, K] in the manifest's order.
    `notes` tell how the candidate was chosen, `origin` how the sweep found it, in words for people, and `data` how
    its photos were selected and divided, for later evaluations. `engine` is the specification's `register.engine`.
    """

    run_id: str
    predictor: Predictor
    manifest: Manifest
    metric: str  # the sweep's objective
    sweep: str
    validation: NDArray[np.float32]
    notes: list[str] = field(default_factory=list)
    origin: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineChoice = "auto"

    @property
    def measure(self) -> Measure:
        """The score on the test split that decides."""
        return self.labelling.measure_of(self.metric)

    @property
    def labelling(self) -> Labelling:
        """What to ask about the labels of its photos."""
        return labelling_of(self.manifest.classes)

    @property
    def guess(self) -> Label:
        """The constant guess: the most common label of the training photos."""
        return commonest(np.array([item.label for item in self.manifest.split("train")]))
