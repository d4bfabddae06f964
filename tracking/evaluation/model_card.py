"""The model card: what a registered version is, how well it counts, and how to call it, in Markdown.

The headings are those of Mitchell et al., Model cards for model reporting (FAT* 2019), as far as they apply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from binsweep.data.decode import MAX_BYTES, MAX_PIXELS
from binsweep.data.manifest import Manifest
from binsweep.models.decoding import MAX_ROWS, answer_columns
from binsweep.models.labelling import labelling_of
from binsweep.models.predictor import Predictor
from binsweep.tracking.evaluation.report import format_score
from binsweep.tracking.evaluation.scorecard import Scorecard


@dataclass(frozen=True)
class ModelCard:
    """The facts of a version's card.

    `verdict` is the gate's decision, `warning` the scores in which the version is no better than the guess. `origin`
    tells how the sweep found it, `notes` how it was chosen and compared.
    """

    model: str
    version: str
    predictor: Predictor
    manifest: Manifest
    scorecard: Scorecard
    verdict: str
    warning: str
    origin: Mapping[str, str]
    notes: Sequence[str]

    def to_markdown(self) -> str:
        sections = (
            self._summary(),
            self._data(),
            self._results(),
            self._limits(),
            self._origin(),
            self._usage(),
        )
        return "\n\n".join("\n".join(lines) for lines in sections) + "\n"

    def _summary(self) -> list[str]:
        predictor = self.predictor
        networks = ", ".join(f"{one.backbone} with head {one.head}" for one in predictor.configs)
        views = "photo and mirror image" if predictor.flip else "one view"
        words = labelling_of(predictor.classes).words
        return [
            f"# {self.model} version {self.version}",
            "",
            f"{words.does}: {networks}, {predictor.image_size} px, {views}, "
            f"{words.answer} by {predictor.decoding}.",
            f"Knows the {words.plural} {', '.join(escape(str(label)) for label in predictor.classes)}; "
            "it cannot predict any other.",
        ]

    def _data(self) -> list[str]:
        manifest = self.manifest
        sizes = ", ".join(f"{name} {len(manifest.split(name)):,}" for name in ("train", "validation", "test"))
        lines = [
            "## Data",
            f"{manifest.source}: {len(manifest.items):,} photos ({sizes}), "
            f"fingerprint `{manifest.fingerprint[:16]}`.",
        ]
        if others := manifest.other_counts():
            counts = ", ".join(map(str, others))
            lines.append(f"It learned from {sum(others.values()):,} photos of other counts, too ({counts}).")
        return lines

    def _results(self) -> list[str]:
        card = self.scorecard
        columns = card.labelling.class_scores
        lines = [
            f"## Results on {card.images:,} test photos, which no trial has seen",
            f"| | model | 95 % interval | always {escape(str(card.guess))} |",
            "| --- | --- | --- | --- |",
        ]
        for key, name in card.score_names.items():
            low, high = card.intervals[key]
            guess = f" {format_score(key, card.guess_scores[key])}" if key in card.guess_scores else ""
            lines.append(
                f"| {name} | {format_score(key, card.scores[key])} "
                f"| {format_score(key, low)} to {format_score(key, high)} "
                f"|{guess} |"
            )
        lines += [f"| calibration error | {card.calibration_error:.3f} | | |", ""]
        lines += [
            f"| {card.labelling.words.column} | photos | {' | '.join(columns.values())} |",
            f"| --- | --- {'| --- ' * len(columns)}|",
        ]
        for label, row in card.classes.items():
            scores = " | ".join(format_score(key, row[key]) for key in columns)
            lines.append(f"| {escape(str(label))} | {row['support']:.0f} | {scores} |")
        return [*lines, "", f"The gate: {self.verdict}."]

    def _limits(self) -> list[str]:
        classes = self.scorecard.classes
        worst = min(classes, key=lambda count: classes[count]["accuracy"])
        return [
            "## Limits",
            *([f"- It is {self.warning}."] if self.warning else []),
            f"- Weakest at {escape(self.scorecard.labelling.describe(worst))} "
            f"({classes[worst]['accuracy']:.1%} right).",
            "- Measured on photos of the same kind as the training photos only; other cameras or "
            f"{self.scorecard.labelling.words.subjects} are untested.",
            "- Labels are taken as they are; public data sets contain wrong ones.",
        ]

    def _origin(self) -> list[str]:
        return [
            "## How it was found",
            *(f"- {name}: {text}" for name, text in self.origin.items()),
            *(f"- {note}" for note in self.notes),
        ]

    def _usage(self) -> list[str]:
        columns = (*answer_columns(self.predictor.classes), "model_version", "error")
        return [
            "## How to call it",
            f"`mlflow models serve -m models:/{self.model}/{self.version} --env-manager local`, "
            "then POST to `/invocations`:",
            "",
            '    {"dataframe_records": [{"image": "<base64 of a JPEG, PNG, WebP, TIFF, AVIF or HEIC>"}]}',
            "",
            f"Each row is answered with {', '.join(f'`{name}`' for name in columns)}.",
            f"A request has at most {MAX_ROWS} rows, a photo {MAX_BYTES // 10**6} MB and "
            f"{MAX_PIXELS // 10**6} megapixels.",
        ]


def escape(label: str) -> str:
    """A name in Markdown: characters that would end a table's cell or format the text are taken literally."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", label)
