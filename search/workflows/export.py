"""`binsweep export`: a registered model's network as a file for other programs, with a test vector."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from binsweep.data.errors import UserError, first_line
from binsweep.data.output_path import require_folder
from binsweep.models.engines.choice import MAX_ENGINE_DIFFERENCE, open_engine
from binsweep.models.engines.names import EngineName
from binsweep.models.engines.onnx_file import to_onnx
from binsweep.models.labelling import labelling_of
from binsweep.models.predictor import Predictor
from binsweep.tracking.registry.registration import load_network
from binsweep.tracking.serving.model_server import registered_version, require_photos

ExportFormat = Literal["onnx", "openvino"]
N_VECTOR_IMAGES = 4
ENGINES: dict[ExportFormat, EngineName] = {"onnx": "onnxruntime", "openvino": "openvino"}
FILES: dict[ExportFormat, str] = {"onnx": "network.onnx", "openvino": "network.xml"}
USE: dict[ExportFormat, str] = {
    "onnx": """import onnxruntime

    session = onnxruntime.InferenceSession("network.onnx")
    (probabilities,) = session.run(None, {"images": images})""",
    "openvino": """import openvino

    network = openvino.Core().compile_model("network.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    probabilities = network(images)[0]""",
}


def export_model(
    model_uri: str, file_format: ExportFormat, out: Path | None, tracking_uri: str
) -> tuple[Path, float]:
    """Write a registered model's network into the new folder `out`; returns it, and the largest error of the file.

    The folder (default: NAME-VERSION-FORMAT in the working directory) gets the network with its preprocessing, a test
    vector, `labels.json` and a README. The written file is run on the test vector: the error is the largest difference
    of a probability from PyTorch's. Raises UserError if there is no such model, its network cannot be converted, or
    `out` exists.
    """
    version = registered_version(model_uri, tracking_uri)
    require_photos(version)
    name = f"{version.name} version {version.version}"
    folder = out or Path(f"{version.name}-{version.version}-{file_format}")
    if os.path.lexists(folder):
        raise UserError(
            f"{folder} exists already, and nothing is overwritten", "give another folder with --out"
        )
    require_folder(folder)
    stored = load_network(f"models:/{version.name}/{version.version}", tracking_uri)
    try:
        onnx = stored.onnx or to_onnx(stored.predictor)
    except Exception as failure:  # the exporter has errors of any type
        what = f"{name} cannot be converted: {first_line(failure)}"
        raise UserError(what, "`binsweep serve` serves it") from failure
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".binsweep-export-") as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        error = _write(files, file_format, name, stored.predictor, onnx)
        files.rename(folder)
    return folder, error


def _write(folder: Path, file_format: ExportFormat, name: str, predictor: Predictor, onnx: bytes) -> float:
    """Write all files; returns the largest error of the network's file on the test vector."""
    file = folder / FILES[file_format]
    if file_format == "onnx":
        file.write_bytes(onnx)
    else:
        import openvino

        # Half the digits would save half the space, and differ from what was evaluated.
        openvino.save_model(openvino.Core().read_model(onnx), file, compress_to_fp16=False)
    images = _test_images(predictor.image_size)
    with torch.inference_mode():
        expected = predictor(torch.from_numpy(images)).numpy()
    error = float(np.abs(open_engine(ENGINES[file_format], {"network": file})(images) - expected).max())
    if not error <= MAX_ENGINE_DIFFERENCE:
        raise UserError(
            f"the {file_format} file of {name} computes something else: probabilities differ by {error:.1e} from "
            f"PyTorch's ({MAX_ENGINE_DIFFERENCE:g} allowed)",
            f"try --format {'onnx' if file_format == 'openvino' else 'openvino'}",
        )
    np.savez(folder / "test_vector.npz", images=images, probabilities=expected)
    labels = {
        "classes": list(predictor.classes),
        labelling_of(predictor.classes).words.answer: predictor.decoding,
        "image_size": predictor.image_size,
        "interpolation": predictor.interpolation,
    }
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(file_format, name, predictor, error), encoding="utf-8")
    return error


def _test_images(size: int) -> np.ndarray:
    """uint8 RGB [N, S, S, 3]: noise on ramps, the same for each model of this size."""
    noise = np.random.default_rng(0).integers(0, 128, (N_VECTOR_IMAGES, size, size, 3))
    ramp = np.linspace(0, 127, size)[:, None]
    turned = [np.rot90(np.broadcast_to(ramp, (size, size)), turns) for turns in range(N_VECTOR_IMAGES)]
    images: np.ndarray = (noise + np.stack(turned)[..., None]).astype(np.uint8)
    return images


def _readme(file_format: ExportFormat, name: str, predictor: Predictor, error: float) -> str:
    size, classes = predictor.image_size, list(predictor.classes)
    words = labelling_of(classes).words
    of_classes = f"for the {words.plural} {classes}"
    decodings = {
        "argmax": "the class with the highest probability",
        "median": "the smallest class with at least half of the probability at or below it",
        "mean": "the class nearest to the sum of class times probability",
        "compromise": "the class c with the least sum of p(k) * (1 + |k - c|) over the other classes k",
    }
    return f"""# {name}

`{FILES[file_format]}` {words.does[0].lower()}{words.does[1:]}; its preprocessing is inside.

- Input `images`: uint8 [N, {size}, {size}, 3], any N: RGB pixels of decoded photos, rows from the top, upright (apply
  the EXIF orientation), resized to {size} x {size} with antialiased {predictor.interpolation} filtering (Pillow's
  `Image.{predictor.interpolation.upper()}`), without keeping the aspect ratio. No scaling, no mean, no change of the
  channels' order.
- Output `probabilities`: float32 [N, {len(classes)}], {of_classes} in this order; each row adds up to 1.
- The {words.noun} that the model answers with: {decodings[predictor.decoding]} (`{predictor.decoding}`).

`labels.json` has the {words.plural} and the size for programs. Resizing by another library changes the pixels, and with
them the probabilities, a little.

## Run it

    import numpy as np
    {USE[file_format]}

For photos:

    from PIL import Image, ImageOps

    photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
    images = np.asarray(photo.resize(({size}, {size}), Image.{predictor.interpolation.upper()}))[None]

## Test it
`test_vector.npz` has `images` and the `probabilities` that PyTorch computes for them. This file's differed by at most
{error:.1e} where it was written; more than {MAX_ENGINE_DIFFERENCE:g} is an error:

    vector = np.load("test_vector.npz")
    images = vector["images"]
    ...  # run it, as above
    assert np.abs(probabilities - vector["probabilities"]).max() <= {MAX_ENGINE_DIFFERENCE:g}
"""
