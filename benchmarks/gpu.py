"""Photos a second on a GPU, ours against a plain PyTorch loop in the same run, and what ours spends beside the steps.

    python -m pytest tests/gpu --confcutdir tests/gpu -q -s --tb=short --timeout 90
    python benchmarks/gpu.py --out gpu.json --seconds 105

    python benchmarks/gpu.py [--out FILE] [--rounds N] [--photos N] [--size N] [--batch-size N] [--seconds N]

It needs of this repository only data and models, and makes its photos itself. The plain side is what PyTorch's
tutorials say: a Dataset that opens, resizes, mirrors and normalises each JPEG in each epoch, a DataLoader with a
worker on each core and pinned memory, bf16 autocast, channels_last, and one loss read in every step. Ours is
binsweep.models.train, whose banks are built before its clock starts (`bank`: in how many seconds). Both train the
same network with the same batches and AdamW; each round measures both in turn, one epoch after one that warms up, and
the best of the rounds counts.

`others`: ours again, best over best: with banks that stay in the host's memory (streamed), with cuDNN's own search for
kernels, with kernels that are deterministic, and without health rules and profile (what these cost). Whatever does not
fit into `--seconds` is left out, the last first, and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import binsweep.models.batches
import binsweep.models.train
from binsweep.data.banks.pixels import PixelBank
from binsweep.data.resource_limits import cores
from binsweep.models.build import build_model
from binsweep.models.precision import choose_precision, release_gpu_memory
from binsweep.models.settings import Settings
from binsweep.models.train import train
from binsweep.models.trial_data import TrialData, build_banks

CLASSES = (1, 2, 3, 4, 5)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = ("efficientnet_lite0", "resnet50")
TRAINABLE = ("all", "last_stage", "head")


def make_photos(folder: Path, photos: int, size: int) -> list[tuple[str, int]]:
    """Smooth noise as JPEGs of about a phone's compression, twice as large as what is learnt from."""
    folder.mkdir()

    def one(row: int) -> tuple[str, int]:
        random = np.random.default_rng(row)
        coarse = Image.fromarray(random.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        file = folder / f"{row:05d}.jpg"
        coarse.resize((2 * size, 2 * size), Image.Resampling.BICUBIC).save(file, quality=85)
        return str(file), int(random.integers(len(CLASSES)))

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(one, range(photos)))


def make_bank(folder: Path, photos: list[tuple[str, int]], size: int) -> PixelBank:
    """What data.pixels would make of them."""
    folder.mkdir()

    def one(file: str) -> np.ndarray[Any, Any]:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor(cores()) as pool:
        np.save(folder / "pixels.npy", np.stack(list(pool.map(one, [file for file, _ in photos]))))
    labels = [label for _, label in photos]
    index = {"key": folder.name, "ids": [file for file, _ in photos], "labels": labels}
    (folder / "index.json").write_text(json.dumps(index))
    return PixelBank(folder)


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos as the PyTorch tutorials read them."""

    def __init__(self, photos: list[tuple[str, int]], size: int) -> None:
        self.photos = photos
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.photos[index]
        with Image.open(file) as image:
            return self.transform(image.convert("RGB")), label


class Network(nn.Module):
    """Our own network, as a plain loop calls it: frozen parts run in every step, without gradients."""

    def __init__(self, settings: Settings, size: int) -> None:
        super().__init__()
        counter = build_model(settings, CLASSES, size)
        cut = counter.cut(settings.trainable)
        self.frozen, self.learns = counter.prefix(cut), counter.suffix(cut)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            images = self.frozen(images)
        out: Tensor = self.learns(images)
        return out


def plain(settings: Settings, size: int, loader: DataLoader[Any]) -> float:
    """Photos a second of the second epoch."""
    net = Network(settings, size).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.learns.parameters(), settings.lr)
    steps = 2 * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps, cycle_momentum=False
    )
    speed = 0.0
    for _ in range(2):
        start, total, seen = time.perf_counter(), 0.0, 0
        for images, labels in loader:
            images = images.to(DEVICE, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(DEVICE, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                loss = F.nll_loss(net(images).float(), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        speed = seen / (time.perf_counter() - start)
    return speed


def ours(settings: Settings, data: TrialData) -> float:
    """Photos a second of all epochs but the first, which chooses kernels."""
    seconds: list[float] = []

    def report(epoch: int, metrics: dict[str, float], snapshot: object) -> bool:
        seconds.append(len(data.train) / metrics["images_per_second"])
        return True

    train(settings, data, report)
    return len(data.train) * (len(seconds) - 1) / sum(seconds[1:])


class Nothing:
    """Stands for health rules or a profile that do nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def nothing(self, *arguments: Any) -> None:
        return None

    before_step = after_backward = after_step = epoch_begins = mark = step_done = training_done = nothing

    def epoch_done(self, *arguments: Any) -> Any:
        return ()


class NoProfile(Nothing):
    def epoch_done(self, *arguments: Any) -> Any:
        return {}, ()


@contextlib.contextmanager
def swapped(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def without_insight() -> contextlib.AbstractContextManager[None]:
    return swapped(binsweep.models.train, HealthMonitor=Nothing, Profile=NoProfile)


def streamed() -> contextlib.AbstractContextManager[None]:
    return swapped(binsweep.models.batches, fits_on_gpu=lambda size, device: False)


def searched() -> contextlib.AbstractContextManager[None]:
    return swapped(torch.backends.cudnn, benchmark=True)


def deterministic() -> contextlib.AbstractContextManager[None]:
    return swapped(torch.backends.cudnn, deterministic=True)


Way = Callable[[], contextlib.AbstractContextManager[None]]
# In this order: backbone, trainable, what is otherwise, epochs.
OTHERS: list[tuple[str, str, str, Way, int]] = [
    ("efficientnet_lite0", "all", "without health and profile", without_insight, 6),
    ("efficientnet_lite0", "head", "without health and profile", without_insight, 31),
    ("resnet50", "all", "cuDNN searches", searched, 3),
    ("efficientnet_lite0", "all", "cuDNN searches", searched, 3),
    ("resnet50", "all", "streamed", streamed, 3),
    ("efficientnet_lite0", "last_stage", "streamed", streamed, 3),
    ("resnet50", "all", "deterministic", deterministic, 3),
    ("efficientnet_lite0", "all", "deterministic", deterministic, 3),
    ("resnet50", "all", "without health and profile", without_insight, 4),
    ("resnet50", "head", "streamed", streamed, 11),
]


class Clock:
    """What is still to come, as long as there is time for it."""

    def __init__(self, seconds: float) -> None:
        self._end, self.left_out = time.monotonic() + seconds, list[str]()

    def has_time(self, what: str) -> bool:
        if time.monotonic() < self._end:
            return True
        self.left_out.append(what)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--photos", type=int, default=3072)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0, help="what then has not begun is left out")
    chosen = parser.parse_args()
    clock = Clock(chosen.seconds)
    memory = Path("/dev/shm")  # banks of 3 GB: the disk is not what is measured
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 16 * 2**30
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as name:
        result: dict[str, Any] = {"rows": [], "others": []}
        try:
            measure(chosen, Path(name), clock, result)
        finally:  # whatever went wrong, what was measured stays
            if chosen.out:
                chosen.out.write_text(json.dumps(result, indent=1))


def measure(chosen: argparse.Namespace, folder: Path, clock: Clock, result: dict[str, Any]) -> None:
    size = chosen.size
    gpu = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU"
    print(
        f"{gpu}, {cores()} cores, torch {torch.__version__}, {choose_precision().name}, {size} px",
        flush=True,
    )
    result |= {"gpu": gpu, "torch": torch.__version__}
    photos = make_photos(folder / "photos", chosen.photos + 256, size)
    learn, check = photos[: chosen.photos], photos[chosen.photos :]
    data = TrialData(
        CLASSES,
        size,
        make_bank(folder / "train", learn, size),
        make_bank(folder / "validation", check, size),
        folder / "banks",
    )
    loader = DataLoader(
        Photos(learn, size),
        chosen.batch_size,
        shuffle=True,
        num_workers=cores(),
        pin_memory=DEVICE.type == "cuda",
        persistent_workers=True,
        drop_last=True,
    )
    base = Settings(weights="none", batch_size=chosen.batch_size, epochs=3)
    print(f"{'':<31}{'plain':>8}{'ours':>9}  photos/s  ratio   bank", flush=True)
    for trainable in TRAINABLE:
        for backbone in PLAIN:
            if not clock.has_time(f"{backbone} {trainable}"):
                continue
            settings = replace(base, backbone=backbone, trainable=trainable)  # type: ignore[arg-type]
            row = against_plain(settings, data, loader, chosen.rounds)
            result["rows"].append(row)
            print(
                f"{backbone:<19} {trainable:<10} {row['plain']:>8.0f} {row['ours']:>8.0f}"
                f"{row['ratio']:>16.2f} {row['bank_seconds']:>5.1f} s",
                flush=True,
            )
    print("\nours, otherwise, over ours as it is", flush=True)
    for backbone, trainable, name, way, epochs in OTHERS:
        if not clock.has_time(f"{backbone} {trainable} {name}"):
            continue
        settings = replace(base, backbone=backbone, trainable=trainable, epochs=epochs)  # type: ignore[arg-type]
        row = compare(settings, data, way, chosen.rounds)
        result["others"].append({"backbone": backbone, "trainable": trainable, "otherwise": name, **row})
        print(
            f"{backbone:<19} {trainable:<10} {name:<27} {row['ratio']:.3f}"
            f"  (pairs {min(row['pairs']):.3f} to {max(row['pairs']):.3f})",
            flush=True,
        )
    result["left_out"] = clock.left_out
    for what in clock.left_out:
        print(f"left out, no time: {what}")


def against_plain(
    settings: Settings, data: TrialData, loader: DataLoader[Any], rounds: int
) -> dict[str, Any]:
    start = time.perf_counter()
    build_banks(settings, data)
    seconds = time.perf_counter() - start
    longer = replace(settings, epochs=11 if settings.trainable == "head" else settings.epochs)
    by_plain, by_ours = interleaved(
        rounds,
        functools.partial(plain, settings, data.image_size, loader),
        functools.partial(ours, longer, data),
    )
    return {
        "backbone": settings.backbone,
        "trainable": settings.trainable,
        "bank_seconds": seconds,
        "plain": max(by_plain),
        "ours": max(by_ours),
        "ratio": max(by_ours) / max(by_plain),
        "rounds": [by_plain, by_ours],
    }


def interleaved(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    speeds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for place, side in zip(speeds, sides, strict=True):
            place.append(side())
            release_gpu_memory()
    return speeds


def compare(settings: Settings, data: TrialData, way: Way, rounds: int) -> dict[str, Any]:
    def otherwise() -> float:
        with way():
            return ours(settings, data)

    as_it_is, other = interleaved(rounds + 1, functools.partial(ours, settings, data), otherwise)
    pairs = [there / here for here, there in zip(as_it_is, other, strict=True)]
    ratio = max(other) / max(as_it_is)
    return {
        "ratio": ratio,
        "median_of_pairs": statistics.median(pairs),
        "pairs": pairs,
        "speeds": [as_it_is, other],
    }


if __name__ == "__main__":
    main()
