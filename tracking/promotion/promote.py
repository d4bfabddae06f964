"""Promotion: a candidate becomes champion only if it counts better on photos that no trial has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from binsweep.data.decode import ImageError, decode
from binsweep.data.errors import UserError
from binsweep.data.manifest import Item
from binsweep.models.decoding import answer_rows
from binsweep.models.engines.choice import ServingEngine, choose_engine
from binsweep.tracking.evaluation.predictions import answer_of
from binsweep.tracking.monitoring.note import shadow_notes
from binsweep.tracking.monitoring.reference import (
    Reference,
    build_reference,
    reference_items,
    store_reference,
)
from binsweep.tracking.promotion.candidate import Candidate
from binsweep.tracking.promotion.evidence import collect_champion_evidence, collect_evidence
from binsweep.tracking.promotion.gate import PromotionCriteria
from binsweep.tracking.promotion.judge import PromotionDecision, judge
from binsweep.tracking.promotion.publish import initial_tags, move_alias, publish, record_not_judged
from binsweep.tracking.registry.photo_splits import new_test_photos, store_photos
from binsweep.tracking.registry.registration import register, saved_model
from binsweep.tracking.registry.versions import champion_of

N_ENGINE_PHOTOS = 32  # test photos on which the engine must agree with the trained network


def promote(
    tracking_uri: str,
    model_name: str,
    candidate: Candidate,
    gate: PromotionCriteria,
    folder: Path,
    approved: bool = False,
    dry_run: bool = False,
    home: Path | None = None,
) -> PromotionDecision:
    """Register the candidate as a new version and make it champion if it passes every rule of the gate.

    Candidate and champion are evaluated now, each in its own process, on the test photos that are new to both;
    without a champion, the bar is the constant guess. The candidate is evaluated as the engine computes it that will
    serve it, is also served, and must answer as it was evaluated. If the alias moves in the meantime, the candidate
    is judged against the new champion. A candidate that is refused gets the alias `challenger`, and its reason. A
    `dry_run` registers nothing and moves no alias.

    An older champion did not store its training photos: they are read again from its data, with the caches of `home`.
    """
    items = new_test_photos(candidate.manifest)
    engine = _choose_engine(candidate, items[:N_ENGINE_PHOTOS])
    shadowed = shadow_notes(tracking_uri, model_name, candidate.run_id)
    candidate = replace(candidate, notes=[*candidate.notes, engine.reason, *shadowed])
    current = champion_of(tracking_uri, model_name)
    champion = collect_champion_evidence(tracking_uri, model_name, current, items, home)
    if dry_run:
        with saved_model(candidate.predictor, engine) as path:
            evidence = collect_evidence(tracking_uri, model_name, candidate, items, str(path), champion)
        return judge(candidate, gate, evidence, approved, version=None)
    # Registered only now: a champion that cannot be evaluated must not leave a version that is never judged.
    tags = initial_tags(candidate)
    registered = register(tracking_uri, candidate.run_id, model_name, candidate.predictor, tags, engine)
    version = str(registered.version)
    try:
        store_photos(tracking_uri, registered, candidate.manifest)
        store_reference(tracking_uri, registered, _reference(candidate))
        uri = f"models:/{model_name}/{version}"
        evidence = collect_evidence(tracking_uri, model_name, candidate, items, uri, champion)
        while True:
            decision = judge(candidate, gate, evidence, approved, version)
            publish(tracking_uri, model_name, candidate, evidence, decision, folder)
            if move_alias(tracking_uri, model_name, decision, home):
                return decision
            current = champion_of(tracking_uri, model_name)
            champion = collect_champion_evidence(tracking_uri, model_name, current, items, home)
            evidence = replace(evidence, champion=champion)
    except BaseException as error:
        record_not_judged(tracking_uri, model_name, version, error)
        raise


def _reference(candidate: Candidate) -> Reference:
    """The figures of the validation photos, with which what the served version sees will be compared."""
    items, model = candidate.manifest.split("validation"), candidate.predictor
    rows = reference_items(items)
    answers = answer_rows(candidate.validation[rows], model.classes, model.decoding)
    return build_reference(
        [items[row] for row in rows], [(answer_of(row), row["confidence"]) for row in answers]
    )


def _choose_engine(candidate: Candidate, items: Sequence[Item]) -> ServingEngine:
    """The engine that serves the candidate; it agrees with the trained network about the photos `items`.

    Raises UserError if none of them can be read; that some cannot, the evaluation reports.
    """
    images, size = [], candidate.predictor.image_size
    for item in items:
        try:
            images.append(decode(item.path, size, candidate.predictor.interpolation))
        except ImageError as error:
            if item is items[-1] and not images:
                raise UserError(
                    f"{item.path}: {error}", "have the photos changed since they were read?"
                ) from error
    return choose_engine(candidate.engine, candidate.predictor, np.stack(images))
