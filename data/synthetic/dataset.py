"""Synthetic bins on disk, in the layout of the public bucket."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from binsweep.data.atomic_write import atomic_path
from binsweep.data.errors import UserError
from binsweep.data.locks import locked
from binsweep.data.parallel import Progress, run
from binsweep.data.synthetic.products import Product
from binsweep.data.synthetic.scene import CLASSES, MAX_COUNT, VERSION, render

__all__ = ["SyntheticSource", "is_synthetic", "parse_source", "render", "render_source", "write_synthetic"]

_SCHEME = "synthetic://"
_EXAMPLE = "synthetic://?images=600&seed=0&classes=0-5&size=224"
_STAMP_FILE = "synthetic.json"
_PARAMETER_RANGES = {"images": (1, 1_000_000), "seed": (0, 2**63), "size": (32, 2048)}


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """The parameters of a synthetic:// source; `size` is the side of the square images in pixels."""

    images: int = 600
    seed: int = 0
    size: int = 224
    classes: tuple[int, ...] = CLASSES

    def __post_init__(self) -> None:
        for key, (low, high) in _PARAMETER_RANGES.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise _invalid(f"{key} must be from {low} to {high}, and is {value}")
        if not self.classes or not all(0 <= label <= MAX_COUNT for label in self.classes):
            raise _invalid(f"classes must be counts from 0 to {MAX_COUNT}, and are {list(self.classes)}")
        if len(set(self.classes)) < len(self.classes):
            raise _invalid(f"classes must differ, and are {list(self.classes)}")


def is_synthetic(source: str) -> bool:
    """Whether a data.source is a synthetic:// address."""
    return source.startswith(_SCHEME)


def parse_source(source: str, default_classes: Sequence[int] | None = None) -> SyntheticSource:
    """Parse synthetic://?images=600&seed=0&classes=0-5&size=224; every part is optional.

    `default_classes` are rendered if the address names none. Raises UserError for unknown parts and for values out
    of range.
    """
    n_workers = urlsplit(source)
    values: dict[str, Any] = {}
    if n_workers.netloc or n_workers.path or n_workers.fragment:
        raise _invalid(f"nothing may stand between {_SCHEME} and ?, received {source}")
    for key, text in parse_qsl(n_workers.query, keep_blank_values=True):
        if key not in (*_PARAMETER_RANGES, "classes") or key in values:
            raise _invalid(f"{'repeated' if key in values else 'unknown'} part {key!r} in {source}")
        try:
            values[key] = _parse_classes(text) if key == "classes" else int(text)
        except ValueError:
            raise _invalid(f"{key} is {text!r} in {source}") from None
    if default_classes is not None:
        values.setdefault("classes", tuple(default_classes))
    return SyntheticSource(**values)


def render_source(
    source: str, home: Path, progress: Progress | None = None, default_classes: Sequence[int] | None = None
) -> Path:
    """The folder under `home`/datasets with the bins of a synthetic:// source, which are rendered once."""
    parameters = parse_source(source, default_classes)
    classes = "-".join(map(str, parameters.classes))
    name = (
        f"synthetic-v{VERSION}-{parameters.images}x{parameters.size}-seed{parameters.seed}-classes{classes}"
    )
    dest = home / "datasets" / name
    write_synthetic(dest, parameters.images, parameters.seed, parameters.size, parameters.classes, progress)
    return dest


def write_synthetic(
    dest: Path,
    images: int,
    seed: int = 0,
    size: int = 224,
    classes: Sequence[int] = CLASSES,
    progress: Progress | None = None,
) -> None:
    """Render bins 00000, 00001, ... of a seed into bin-images/ and metadata/ under `dest`, on all cores.

    The folder appears when all bins are complete; the next call resumes an interrupted one. Raises UserError if
    `dest` holds something else or cannot be written.
    """
    requested = SyntheticSource(images, seed, size, tuple(classes))
    stamp = json.dumps({"renderer": VERSION, **asdict(requested)}, indent=1)
    partial = dest.with_name(f".{dest.name}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with locked(dest.with_name(f".{dest.name}.lock")):
            if _stamp_of(dest) == stamp:
                return
            if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
                raise UserError(
                    f"{dest} exists and holds something else", "another folder, or delete this one"
                )
            if _stamp_of(partial) != stamp:
                shutil.rmtree(partial, ignore_errors=True)
                for folder in ("bin-images", "metadata"):
                    (partial / folder).mkdir(parents=True)
                (partial / _STAMP_FILE).write_text(stamp)
            for half_written in partial.glob("bin-images/*.tmp"):
                half_written.unlink()
            job = {"folder": str(partial), **asdict(requested)}
            run(_render_part, job, images, min_units=8, progress=progress)
            partial.replace(dest)
    except OSError as error:
        raise UserError(
            f"cannot write synthetic bins to {dest}: {error.strerror or error}",
            "a place with enough room where you may write",
        ) from error


def _stamp_of(folder: Path) -> str | None:
    try:
        return (folder / _STAMP_FILE).read_text()
    except OSError:
        return None


def _render_part(job: dict[str, Any], worker: int, n_workers: int) -> Iterator[None]:
    """Write every `n_workers`-th bin that does not exist yet; the image is written last and atomically."""
    folder = Path(job["folder"])
    for index in range(worker, job["images"], n_workers):
        image_path = folder / "bin-images" / f"{index:05d}.jpg"
        if not image_path.exists():
            image, label, products = render(job["seed"], index, job["size"], job["classes"])
            document = {"BIN_FCSKU_DATA": _listing(products), "EXPECTED_QUANTITY": label}
            (folder / "metadata" / f"{index:05d}.json").write_text(json.dumps(document, indent=1))
            with atomic_path(image_path) as temporary:
                image.save(temporary, "JPEG", quality=92)
        yield


def _listing(products: Sequence[Product]) -> dict[str, Any]:
    """The products in the format of the public bucket's metadata: each one once, with its quantity."""
    quantities = Counter(products)
    return {
        product.code: {
            "asin": product.code,
            "name": f"Synthetic {product.kind}",
            "normalizedName": f"Synthetic {product.kind}",
            "quantity": quantity,
            "length": {"unit": "IN", "value": product.depth},
            "width": {"unit": "IN", "value": product.width},
            "height": {"unit": "IN", "value": product.height},
            "weight": {"unit": "pounds", "value": product.weight},
        }
        for product, quantity in quantities.items()
    }


def _parse_classes(text: str) -> tuple[int, ...]:
    """Parse counts such as 0,1,2 or 0-5."""
    first, separator, last = text.partition("-")
    if separator:
        return tuple(range(int(first), int(last) + 1))
    return tuple(int(worker) for worker in text.split(","))


def _invalid(message: str) -> UserError:
    return UserError(f"synthetic bins: {message}", f"for example {_EXAMPLE}")
