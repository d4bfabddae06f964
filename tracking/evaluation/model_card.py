"""The model card: what a registered version is, how well it counts, and how to call it, in Markdown.

The headings are those of Mitchell et al., Model cards for model reporting (FAT* 2019), as far as they apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from binsweep.data.decode import MAX_BYTES, MAX_PIXELS
from binsweep.data.manifest import Manifest
from binsweep.models.predictor import MAX_ROWS, Predictor
from binsweep.tracking.evaluation.report import NAMES, show
from binsweep.tracking.evaluation.scorecard import Scorecard


def write_model_card(
    model: str,
    version: str,
    predictor: Predictor,
    manifest: Manifest,
    card: Scorecard,
    verdict: str,
    origin: Mapping[str, str],
    notes: Sequence[str],
    warning: str,
) -> str:
    """The card of a version: `origin` says how the sweep found it, `notes` how it was chosen and compared, `verdict`
    what the gate said, and `warning` in which scores it is no better than the guess."""
    networks = ", ".join(f"{one.backbone} with head {one.head}" for one in predictor.configs)
    sizes = ", ".join(f"{name} {len(manifest.split(name)):,}" for name in ("train", "validation", "test"))
    worst = min(card.classes, key=lambda count: card.classes[count]["accuracy"])
    lines = [
        f"# {model} version {version}",
        "",
        f"Counts the items in the photo of one bin: {networks}, {predictor.image_size} px, "
        f"{'photo and mirror image' if predictor.flip else 'one view'}, count by {predictor.decoding}.",
        f"Knows the counts {', '.join(map(str, predictor.classes))}; it cannot say any other.",
        "",
        "## Data",
        f"{manifest.source}: {len(manifest.items):,} photos ({sizes}), fingerprint `{manifest.fingerprint[:16]}`.",
        "",
        f"## Results on {card.images:,} test photos, which no trial has seen",
        f"| | model | 95 % interval | always {card.guess} |",
        "| --- | --- | --- | --- |",
    ]
    for key, name in NAMES.items():
        low, high = card.intervals[key]
        lines.append(
            f"| {name} | {show(key, card.scores[key])} | {show(key, low)} to {show(key, high)} "
            f"| {show(key, card.guess_scores[key])} |"
        )
    lines += [f"| calibration error | {card.calibration_error:.3f} | | |", ""]
    lines += ["| items | photos | accuracy | RMSE |", "| --- | --- | --- | --- |"]
    for count, row in card.classes.items():
        lines.append(f"| {count} | {row['support']:.0f} | {row['accuracy']:.1%} | {row['rmse']:.3f} |")
    lines += ["", f"The gate: {verdict}.", "", "## Limits"]
    lines += [f"- It is {warning}."] if warning else []
    lines += [
        f"- Weakest at {worst} items ({card.classes[worst]['accuracy']:.1%} right).",
        "- Measured on photos of the same kind as the training photos only; nothing is known of other cameras or bins.",
        "- Labels were taken as they are; some of a public data set's are wrong.",
        "",
        "## How it was found",
        *(f"- {name}: {text}" for name, text in origin.items()),
        *(f"- {note}" for note in notes),
        "",
        "## How to call it",
        f"`mlflow models serve -m models:/{model}/{version} --env-manager local`, then POST to `/invocations`:",
        "",
        '    {"dataframe_records": [{"image": "<base64 of a JPEG, PNG, WebP, TIFF, AVIF or HEIC>"}]}',
        "",
        "Each row is answered with `count`, `expected_count`, `confidence`, `probabilities`, `model_version`, `error`.",
        f"A request has at most {MAX_ROWS} rows, a photo {MAX_BYTES // 10**6} MB and "
        f"{MAX_PIXELS // 10**6} megapixels.",
    ]
    return "\n".join(lines) + "\n"
