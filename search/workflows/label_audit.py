"""The label audit of a source: its files and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from binsweep.data.banks.pixels import PixelBank, open_pixel_bank
from binsweep.data.banks.store import bank_folder
from binsweep.data.manifest import Manifest
from binsweep.models.backbones.library import interpolation_of
from binsweep.models.label_audit import ExclusionEffect, JudgedLabel, audit
from binsweep.models.labelling import COUNTING, Labelling
from binsweep.models.trial_data import TrialData
from binsweep.tracking.evaluation.figures import MAX_MISTAKES, draw_mistakes, write_csv

MIN_ACCURACY = 0.6  # out of fold; below it, the model's doubts about labels mean little
COLUMNS = ("id", "split", "label", "suggested", "p_label", "p_suggested", "score", "issue")


def run_audit(
    manifest: Manifest, home: Path, out: Path, image_size: int, backbone: str
) -> tuple[list[JudgedLabel], ExclusionEffect]:
    """Audit a manifest's labels. Writes audit.csv (all, ranked), exclude.csv and doubtful.jpg into `out`."""
    interpolation = interpolation_of(backbone)
    banks = {
        name: open_pixel_bank(manifest, name, image_size, home, interpolation=interpolation)
        for name in ("train", "validation")
    }
    data = TrialData(
        manifest.classes,
        image_size,
        banks["train"],
        banks["validation"],
        bank_folder(home),
        interpolation=interpolation,
    )
    doubts, effect = audit(data, backbone)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "audit.csv", COLUMNS, (_row(doubt) for doubt in doubts))
    issues = [doubt for doubt in doubts if doubt.issue]
    write_csv(out / "exclude.csv", COLUMNS, (_row(doubt) for doubt in issues if doubt.split == "train"))
    _draw(issues[:MAX_MISTAKES], banks, out / "doubtful.jpg")
    return doubts, effect


def _row(doubt: JudgedLabel) -> list[object]:
    numbers = (f"{value:.4f}" for value in (doubt.p_label, doubt.p_suggested, doubt.score))
    return [doubt.id, doubt.split, doubt.label, doubt.suggested, *numbers, int(doubt.issue)]


def _draw(doubts: Sequence[JudgedLabel], banks: dict[str, PixelBank], path: Path) -> None:
    """Draw the photos with the most doubtful labels: label, suggestion, and confidence (1 - score)."""
    draw_mistakes(
        lambda place: banks[doubts[place].split].pixels[doubts[place].row],
        [doubt.id for doubt in doubts],
        np.array([doubt.label for doubt in doubts]),
        np.array([doubt.suggested for doubt in doubts]),
        np.array([1 - doubt.score for doubt in doubts]),
        path,
    )


def effect_lines(effect: ExclusionEffect, labelling: Labelling = COUNTING) -> list[str]:
    """The effect of training without the doubtful labels, on validation, as lines of text."""
    shown = labelling.second("accuracy")
    lines = [f"the model is right on {effect.model_accuracy:.1%} of the photos that it has not seen"]
    if effect.model_accuracy < MIN_ACCURACY:
        lines[0] += ": so little that these are photos to look at, not labels known to be wrong"
    if effect.unjudged:
        named = ", ".join(f"{many} of {label}" for label, many in effect.unjudged.items())
        lines.append(f"not judged, because train has no other photo of that {labelling.words.noun}: {named}")
    lines += [f"on {effect.validation} photos of validation (the same linear model each time):"]
    for name, scores in (
        ("trained on all labels", effect.every),
        (f"without the {effect.excluded} doubtful of train", effect.without),
        (f"without {effect.excluded} drawn at random", effect.control),
    ):
        text = f"accuracy {scores['accuracy']:.1%}, {labelling.score_names[shown]} {scores[shown]:.3f}, "
        text += f"loss {scores['loss']:.3f}"
        lines.append(f"  {name}: {text}")
    low, high = effect.interval
    gain = effect.without["accuracy"] - effect.every["accuracy"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "no difference beyond chance"
    lines.append(
        f"  difference {100 * gain:+.1f} points (95 % {100 * low:+.1f} to {100 * high:+.1f}): {verdict}"
    )
    return lines
