"""Which part of a training recipe makes a whole backbone count better: an ablation, judged on validation alone.

    python benchmarks/recipe.py pack FOLDER PACK [--size 224]     # needs the installed project
    python benchmarks/recipe.py run PACK --out results.jsonl [--only NAME ...] [--seeds 3] [--workers 5] [--minutes 8]
    python benchmarks/recipe.py table results.jsonl

`pack` writes what training and validation need of a folder in the public bucket's layout: the photos of the train and
validation splits of `sweeps/abid.yaml`, the bins with other counts (for training alone), and three numbers of each
bin's metadata. The test split is not in it. `run` trains each recipe with each seed in worker processes that share a
GPU (or, without one, the CPU) and writes one line for each training; `data/` and `models/` with torch, timm and
Pillow are enough for it. `table` prints the mean over the seeds with its standard error.

Every recipe differs from `base` in what its line in RECIPES says. The network is EfficientNet-Lite0 with a head of
128 hidden units over eleven count classes (0 to 9, and 10 or more) of which 1 to 5 are kept at the answer.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from binsweep.data.resource_limits import cores
from binsweep.models.precision import choose_precision

BACKBONE = "efficientnet_lite0"
ANSWERS = (1, 2, 3, 4, 5)
MOST = 10  # the last count class is "so many or more"
SHIFT = 0.06


@dataclass(frozen=True)
class Recipe:
    """One way to train; the defaults are `base`."""

    epochs: float = 10  # passes over the 5,841 training photos of base, whatever the recipe trains on
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    smoothing: float = 0.1
    soft: float = 0.0  # width, in counts, of a normal density around the true count as the target
    extra: bool = True  # bins with 0 or more than 5 items
    auxiliary: float = 0.3  # weight of the loss of the second head
    frozen: int = 0  # so many stages (stem, blocks0, ...) keep their weights and statistics
    views: int = 0  # so many fixed views of each photo instead of endless ones
    head_first: float = 0.0  # epochs in which the head alone is trained
    depth_decay: float = 1.0  # each stage's learning rate, as a part of that of the stage behind it
    clip: float = 0.0
    drop_path: float = 0.0
    dropout: float = 0.0
    zoom: float = 0.0  # photos are scaled by 1 - zoom to 1 + zoom
    rotate: float = 0.0  # and turned by up to so many degrees
    colour: float = 0.0  # brightness, contrast, saturation change by up to this factor
    erase: float = 0.0  # chance that a rectangle of 2 to 15 % of the photo is grey
    mixup: float = 0.0  # parameter of the beta distribution
    cutmix: float = 0.0
    sizes: tuple[int, ...] = (224,)  # of equal parts of the training; judged at the last one
    norms: str = "train"  # or "frozen": batch norms keep ImageNet's statistics
    optimizer: str = "adamw"
    pretrain: int = 0  # rendered bins that the backbone learns to count first
    pretrain_epochs: float = 3.0
    warm: float = 0.3  # part of the steps in which the learning rate rises
    weights: str = "imagenet"


RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "frozen3": {"frozen": 3},
    "size160": {"sizes": (160,)},
    "no_auxiliary": {"auxiliary": 0.0},
    "no_extra": {"extra": False},
    "mixup": {"mixup": 0.2},
    "zoom": {"zoom": 0.15, "rotate": 5.0},
    "soft": {"soft": 0.7, "smoothing": 0.0},
    "drop": {"drop_path": 0.2, "dropout": 0.3},
    "colour": {"colour": 0.3},
    "lr_5e-4": {"lr": 5e-4},
    "lr_2e-3": {"lr": 2e-3},
    "depth_decay": {"depth_decay": 0.75},
    "head_first": {"head_first": 2.0},
    "epochs_20": {"epochs": 20},
    "epochs_5": {"epochs": 5},
    "grow": {"sizes": (128, 160, 224)},
    "frozen4": {"frozen": 4},
    "frozen3_views8": {"frozen": 3, "views": 8},
    "decay_0.1": {"weight_decay": 0.1},
    "batch_128": {"batch": 128, "lr": 2e-3},
    "cutmix": {"cutmix": 1.0},
    "erase": {"erase": 0.5},
    "clip": {"clip": 1.0},
    "auxiliary_1": {"auxiliary": 1.0},
    "smoothing_0": {"smoothing": 0.0},
    "norms_frozen": {"norms": "frozen"},
    "pretrain": {"pretrain": 20_000},
    "size160_epochs_20": {"sizes": (160,), "epochs": 20},
    "scratch": {"weights": "none"},
}
DECAYS = (0.0, 0.99, 0.998)  # of the averages of the weights; 0: the weights themselves
EACH_EPOCH = 0.99  # the one that is judged after every epoch, the others after the last


# ---------------------------------------------------------------------------------------------------------- pack


def pack(folder: Path, out: Path, half: bool) -> None:
    """Write photos, labels, splits and auxiliary numbers of everything but the test split into `out`."""
    from binsweep.data.split import Split, assign
    from binsweep.models.pretrained import load_state, weights_file

    split = Split()
    photos, rows = [], []
    for file in sorted((folder / "metadata").glob("*.json")):
        raw = json.loads(file.read_bytes())
        count, name = int(raw["EXPECTED_QUANTITY"]), file.stem
        place = assign(split, name, count) if count in ANSWERS else "extra"
        if place == "test":
            continue
        goods = raw["BIN_FCSKU_DATA"].values()
        sides = [
            [good[side]["value"] for side in ("length", "width", "height") if good.get(side)]
            for good in goods
        ]
        volume = sum(math.prod(s) * g["quantity"] for s, g in zip(sides, goods, strict=True) if len(s) == 3)
        weight = sum(g["weight"]["value"] * g["quantity"] for g in goods if g.get("weight"))
        data = (folder / "bin-images" / f"{name}.jpg").read_bytes()
        photos.append(data)
        rows.append([place, count, math.log1p(volume), math.log1p(weight), math.log1p(len(goods)), len(data)])
    out.mkdir(parents=True, exist_ok=True)
    (out / "photos.bin").write_bytes(b"".join(photos))
    (out / "rows.json").write_text(json.dumps(rows))
    state = load_state(BACKBONE, weights_file(BACKBONE, "imagenet"))  # type: ignore[arg-type]
    if half:  # to be carried elsewhere: rounds each weight by at most 0.05 %
        state = {key: v.half() if v.is_floating_point() else v for key, v in state.items()}
    torch.save(state, out / "weights.pth")
    kinds: dict[str, int] = defaultdict(int)
    for row in rows:
        kinds[row[0]] += 1
    print(f"{len(rows)} photos, {sum(map(len, photos)) / 1e6:.0f} MB: {dict(kinds)}")


@dataclass(frozen=True)
class Photos:
    """`pixels` uint8 [N, S, S, 3]; `counts` int64 [N]; `numbers` float32 [N, 3], standardised on training."""

    pixels: Tensor
    counts: Tensor
    numbers: Tensor


def _decoded(photos: list[bytes]) -> Tensor:
    with ThreadPoolExecutor(cores()) as pool:
        arrays = list(pool.map(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), photos))
    return torch.from_numpy(np.stack(arrays))


def _load(folder: Path, device: torch.device) -> dict[str, Photos]:
    rows = json.loads((folder / "rows.json").read_bytes())
    blob, start, photos = (folder / "photos.bin").read_bytes(), 0, []
    for row in rows:
        photos.append(blob[start : start + row[-1]])
        start += row[-1]
    pixels = _decoded(photos)
    places = np.array([row[0] for row in rows])
    counts = torch.tensor([row[1] for row in rows])
    numbers = torch.tensor([row[2:5] for row in rows], dtype=torch.float32)
    learnt = torch.from_numpy(places != "validation")
    numbers = (numbers - numbers[learnt].mean(0)) / numbers[learnt].std(0)

    def part(*names: str) -> Photos:
        here = torch.from_numpy(np.isin(places, names).nonzero()[0])
        return Photos(*(tensor[here].to(device) for tensor in (pixels, counts, numbers)))

    return {"train": part("train"), "more": part("train", "extra"), "validation": part("validation")}


# --------------------------------------------------------------------------------------------------------- train


class Network(nn.Module):
    """Stages of the backbone, the head over the count classes, and the second head over the three numbers."""

    def __init__(self, recipe: Recipe, state: dict[str, Tensor] | None, answers: int) -> None:
        super().__init__()
        import timm

        net = timm.create_model(
            f"tf_{BACKBONE}", pretrained=False, drop_path_rate=recipe.drop_path, num_classes=0
        )
        if state is not None:
            own = net.state_dict()
            net.load_state_dict({key: state[key] for key in own})
        stem = nn.Sequential(net.conv_stem, net.bn1)
        tail = nn.Sequential(net.conv_head, net.bn2, net.global_pool)
        self.stages = nn.ModuleList([stem, *net.blocks, tail])
        self.drop = nn.Dropout(recipe.dropout)
        self.head = nn.Sequential(nn.Linear(1280, 128), nn.ReLU(), nn.Linear(128, answers))
        self.second = nn.Sequential(nn.Linear(1280, 64), nn.ReLU(), nn.Linear(64, 3))
        self.frozen, self.norms_frozen = recipe.frozen, recipe.norms == "frozen"
        for stage in self.stages[: self.frozen]:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for number, stage in enumerate(self.stages):
            for module in stage.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                    self.norms_frozen or number < self.frozen
                ):
                    module.eval()
            if number < self.frozen:
                stage.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, 3, S, S] in -1..1 -> logits [B, K] and numbers [B, 3]."""
        for stage in self.stages:
            images = stage(images)
        features = self.drop(images)
        return self.head(features).float(), self.second(features).float()


def _augmented(images: Tensor, recipe: Recipe, draws: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in -1..1; `draws` uniform [B, 12] in 0..1."""
    batch, size = images.shape[:2]
    device = images.device
    if recipe.zoom or recipe.rotate:
        seen = images.permute(0, 3, 1, 2).float()
        scale = 1 + recipe.zoom * (2 * draws[:, 0] - 1)
        angle = math.radians(recipe.rotate) * (2 * draws[:, 1] - 1)
        sign = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        move = 2 * SHIFT * (2 * draws[:, 3:5] - 1)
        theta = torch.stack(
            [torch.stack([cos * sign, -sin, move[:, 0]], 1), torch.stack([sin * sign, cos, move[:, 1]], 1)], 1
        )
        grid = F.affine_grid(theta, list(seen.shape), align_corners=False)
        seen = F.grid_sample(seen, grid, padding_mode="border", align_corners=False)
    else:
        reach = int(SHIFT * size)
        shifts = (draws[:, 3:5] * (2 * reach + 1)).long() - reach
        steps = torch.arange(size, device=device)
        y = (steps - shifts[:, :1]).clamp(0, size - 1)
        x = (steps - shifts[:, 1:]).clamp(0, size - 1)
        x = torch.where(draws[:, 2:3] < 0.5, x, x.flip(1))
        rows = torch.arange(batch, device=device)[:, None, None]
        seen = images[rows, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).float()
    if recipe.colour:
        factors = 1 + recipe.colour * (2 * draws[:, 5:8] - 1)
        one, two, three = (f.view(-1, 1, 1, 1) for f in factors.unbind(1))
        seen = seen * one
        weights = torch.tensor((0.299, 0.587, 0.114), device=device).view(1, 3, 1, 1)
        level = (seen * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        seen = level + two * (seen - level)
        gray = (seen * weights).sum(1, keepdim=True)
        seen = (gray + three * (seen - gray)).clamp(0, 255)
    if recipe.erase:
        side = (0.02 + 0.13 * draws[:, 8]).sqrt() * (draws[:, 9] < recipe.erase)
        top, left = draws[:, 10] * (1 - side), draws[:, 11] * (1 - side)
        steps = torch.linspace(0, 1, size, device=device)
        inside_y = (steps >= top[:, None]) & (steps < (top + side)[:, None])
        inside_x = (steps >= left[:, None]) & (steps < (left + side)[:, None])
        seen = torch.where((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 127.5, seen)
    return seen / 127.5 - 1


def _mixed(
    images: Tensor, targets: Tensor, numbers: Tensor, recipe: Recipe, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch with itself in another order."""
    if not (recipe.mixup or recipe.cutmix):
        return images, targets, numbers
    other = torch.from_numpy(random.permutation(len(images))).to(images.device)
    part = float(random.beta(recipe.mixup or recipe.cutmix, recipe.mixup or recipe.cutmix))
    if recipe.mixup:
        images = part * images + (1 - part) * images[other]
    else:
        size = images.shape[-1]
        side = int(size * math.sqrt(1 - part))
        top, left = (int(random.integers(0, size - side + 1)) for _ in range(2))
        images = images.clone()
        images[:, :, top : top + side, left : left + side] = images[
            other, :, top : top + side, left : left + side
        ]
        part = 1 - side * side / size / size
    return images, part * targets + (1 - part) * targets[other], part * numbers + (1 - part) * numbers[other]


def _targets(recipe: Recipe, answers: int, device: torch.device) -> Tensor:
    """[K, K]: row = true class, columns = the probabilities that training asks for."""
    counts = torch.arange(answers, device=device).float()
    if recipe.soft:
        rows = torch.exp(-((counts[:, None] - counts) ** 2) / (2 * recipe.soft**2))
        return rows / rows.sum(1, keepdim=True)
    return (1 - recipe.smoothing) * torch.eye(answers, device=device) + recipe.smoothing / answers


def _rate(step: int, steps: int, warm: float) -> float:
    """One cycle (Smith & Topin 2017), as torch's OneCycleLR: from 1/25 up by a cosine, and down to nothing."""
    rise = max(1.0, warm * steps)
    if step < rise:
        return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * step / rise))
    return 1e-5 + (1 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _optimizer(net: Network, recipe: Recipe) -> torch.optim.Optimizer:
    groups = []
    depth = len(net.stages)
    for number, stage in enumerate(net.stages):
        scale = recipe.depth_decay ** (depth - number)
        groups.append({"params": [p for p in stage.parameters() if p.requires_grad], "scale": scale})
    groups.append({"params": [*net.head.parameters(), *net.second.parameters()], "scale": 1.0})
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)


def _scores(probabilities: Tensor, counts: Tensor) -> dict[str, float]:
    """Scores over the answers, from probabilities [N, K] that add up to 1 over the K answers."""
    values = torch.tensor(ANSWERS, device=counts.device)
    first = values[probabilities.argmax(1)]
    median = values[(probabilities.cumsum(1) < 0.5).sum(1).clamp(max=len(ANSWERS) - 1)]
    centre = probabilities @ values.float()
    rounded = centre.round().clamp(ANSWERS[0], ANSWERS[-1])
    said = {"argmax": first, "median": median, "rounded": rounded}
    scores = {}
    for name, guess in said.items():
        off = guess.float() - counts
        scores[f"accuracy_{name}"] = float((off == 0).float().mean())
        scores[f"rmse_{name}"] = float((off**2).mean().sqrt())
    scores["rmse_mean"] = float(((centre - counts) ** 2).mean().sqrt())
    here = (counts[:, None] == values).float().argmax(1)
    scores["loss"] = float(F.nll_loss(probabilities.clamp(min=1e-9).log(), here))
    return scores


class Averages:
    """Exponential moving averages of a network's weights and statistics, one for each decay."""

    def __init__(self, net: nn.Module, decays: tuple[float, ...]) -> None:
        self._of = [v for v in net.state_dict().values() if v.is_floating_point()]
        self.decays = decays
        self.sets = {decay: [v.detach().clone() for v in self._of] for decay in decays if decay}
        self.steps = 0

    def update(self) -> None:
        self.steps += 1
        for decay, values in self.sets.items():
            # Early on the average is over what there is, as the first weights are not worth remembering.
            now = min(decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(values, self._of, 1 - now)

    def swap(self, decay: float) -> None:
        """Exchange the network's values with those of an average; called again, back."""
        if decay:
            kept = [v.clone() for v in self._of]
            torch._foreach_copy_(self._of, self.sets[decay])
            torch._foreach_copy_(self.sets[decay], kept)


def _answers(net: Network, photos: Photos, size: int, context: Any, mirrored: bool) -> Tensor:
    net.eval()
    parts = []
    for start in range(0, len(photos.counts), 256 if photos.counts.is_cuda else 32):
        images = photos.pixels[start : start + (256 if photos.counts.is_cuda else 32)]
        seen = _sized(images.permute(0, 3, 1, 2).float() / 127.5 - 1, size)
        with torch.no_grad(), context():
            logits = net(seen.contiguous(memory_format=torch.channels_last))[0]
            chosen = logits[:, list(ANSWERS)].softmax(1)
            if mirrored:
                other = net(seen.flip(3).contiguous(memory_format=torch.channels_last))[0]
                chosen = (chosen + other[:, list(ANSWERS)].softmax(1)) / 2
            parts.append(chosen)
    return torch.cat(parts)


def _sized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def train(
    recipe: Recipe,
    seed: int,
    data: dict[str, Photos],
    state: dict[str, Tensor] | None,
    renders: Photos | None = None,
    steps_of_an_epoch: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Train once; the scores after every epoch for each average, and the last probabilities [N, 5]."""
    device = data["train"].counts.device
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    net = Network(recipe, state, MOST + 1).to(device).to(memory_format=torch.channels_last)
    lines: list[dict[str, Any]] = []
    if renders is not None:
        first = replace(recipe, epochs=recipe.pretrain_epochs, auxiliary=0.0, head_first=0.0)
        per_epoch = math.ceil(len(renders.counts) / recipe.batch)
        _fit(net, first, random, renders, None, per_epoch, lines)
        lines.clear()
        # The heads start anew: rendered bins hold other numbers.
        for module in (*net.head, *net.second):
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    photos = data["more" if recipe.extra else "train"]
    per_epoch = steps_of_an_epoch or math.ceil(len(data["more"].counts) / recipe.batch)
    final = _fit(net, recipe, random, photos, data["validation"], per_epoch, lines)
    return lines, final


def _fit(
    net: Network,
    recipe: Recipe,
    random: np.random.Generator,
    photos: Photos,
    check: Photos | None,
    per_epoch: int,
    lines: list[dict[str, Any]],
) -> dict[str, np.ndarray[Any, Any]]:
    device = photos.counts.device

    context = choose_precision("auto").context
    optimizer = _optimizer(net, recipe)
    averages = Averages(net, DECAYS)
    targets = _targets(recipe, MOST + 1, device)
    classes = photos.counts.clamp(max=MOST)
    steps, head_steps = round(recipe.epochs * per_epoch), round(recipe.head_first * per_epoch)
    order: list[int] = []
    final: dict[str, np.ndarray[Any, Any]] = {}
    losses = []
    start = time.perf_counter()
    net.train()
    for step in range(steps):
        if len(order) < recipe.batch:
            order = [*order, *random.permutation(len(classes)).tolist()]
        picked, order = order[: recipe.batch], order[recipe.batch :]
        rows = torch.tensor(picked)
        drawn = random.random((len(picked), 12), dtype=np.float32)
        if recipe.views:  # a fixed draw for each photo and each of its views
            view = random.integers(0, recipe.views, len(picked))
            drawn = np.stack(
                [
                    np.random.default_rng((p, int(v))).random(12, np.float32)
                    for p, v in zip(picked, view, strict=True)
                ]
            )
        draws = torch.from_numpy(drawn)
        if device.type == "cuda":
            rows, draws = (t.pin_memory().to(device, non_blocking=True) for t in (rows, draws))
        size = recipe.sizes[step * len(recipe.sizes) // steps]
        images = _sized(_augmented(photos.pixels[rows], recipe, draws), size)
        images, wanted, numbers = _mixed(images, targets[classes[rows]], photos.numbers[rows], recipe, random)
        if step < head_steps:
            rate = _rate(step, head_steps, recipe.warm)
        else:
            rate = _rate(step - head_steps, steps - head_steps, recipe.warm)
        for group in optimizer.param_groups:
            head = group["params"][0] is net.head[0].weight
            group["lr"] = 0.0 if step < head_steps and not head else recipe.lr * group["scale"] * rate
        images = images.contiguous(memory_format=torch.channels_last)
        with context():
            if step < head_steps:  # the backbone as it is: neither gradients nor statistics
                net.eval()
                with torch.no_grad():
                    features = images
                    for stage in net.stages:
                        features = stage(features)
                net.train()
                logits, second = net.head(features).float(), net.second(features).float()
            else:
                logits, second = net(images)
        loss = -(wanted * logits.log_softmax(1)).sum(1).mean()
        whole = loss + recipe.auxiliary * F.mse_loss(second, numbers) if recipe.auxiliary else loss
        optimizer.zero_grad(set_to_none=True)
        whole.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip, foreach=True)
        optimizer.step()
        averages.update()
        losses.append(loss.detach())
        if check is not None and ((step + 1) % per_epoch == 0 or step + 1 == steps):
            line: dict[str, Any] = {"epoch": (step + 1) / per_epoch}
            line["train_loss"] = float(torch.stack(losses).mean())
            line["seconds"] = time.perf_counter() - start
            losses = []
            for decay in DECAYS if step + 1 == steps else (EACH_EPOCH,):
                averages.swap(decay)
                said = _answers(net, check, recipe.sizes[-1], context, False)
                line[f"ema_{decay}"] = _scores(said, check.counts)
                if step + 1 == steps:
                    both = _answers(net, check, recipe.sizes[-1], context, True)
                    line[f"ema_{decay}_two_views"] = _scores(both, check.counts)
                    final[f"ema_{decay}"] = both.half().cpu().numpy()
                averages.swap(decay)
            net.train()
            lines.append(line)
    return final


# ----------------------------------------------------------------------------------------------------------- run


def _work(
    number: int,
    jobs: Any,
    folder: Path,
    out: Path,
    until: float,
    renders: Path | None,
    steps_of_an_epoch: int | None,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1 if device.type == "cuda" else cores())
    torch.backends.cudnn.benchmark = True
    data = _load(folder, device)
    state = {
        key: v.float() if v.is_floating_point() else v
        for key, v in torch.load(folder / "weights.pth", weights_only=True).items()
    }
    rendered: Photos | None = None
    while True:
        try:
            name, overrides, seed = jobs.get(timeout=2)
        except Exception:  # queue.Empty of a manager's queue: nothing is left
            return
        recipe = Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()})
        if recipe.pretrain and rendered is None and renders is not None:
            rendered = _rendered(renders, recipe.pretrain, device, until)
        start = time.time()
        if start > until:
            return
        lines, final = train(
            recipe,
            seed,
            data,
            None if recipe.weights == "none" else state,
            rendered if recipe.pretrain else None,
            steps_of_an_epoch,
        )
        result = {
            "name": name,
            "seed": seed,
            "recipe": asdict(recipe),
            "seconds": time.time() - start,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "epochs": lines,
        }
        with (out.parent / f"{out.stem}-{number}{out.suffix}").open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        np.savez(out.parent / f"{out.stem}-{name}-{seed}.npz", **final)
        best = lines[-1]["ema_0.99"]
        print(
            f"{time.strftime('%X')} worker {number}: {name} seed {seed}: {result['seconds']:.0f} s, accuracy "
            f"{best['accuracy_argmax']:.3f} rmse {best['rmse_median']:.3f}",
            flush=True,
        )


def _render(folder: Path, images: int) -> None:
    from binsweep.data.synthetic.dataset import write_synthetic

    write_synthetic(folder, images, seed=1, size=224, classes=tuple(range(6)))


def _rendered(folder: Path, images: int, device: torch.device, until: float) -> Photos:
    while not (folder / "synthetic.json").exists() and time.time() < until:
        time.sleep(1)
    names = [f"{number:05d}" for number in range(images)]
    photos = _decoded([(folder / "bin-images" / f"{name}.jpg").read_bytes() for name in names])
    counts = torch.tensor(
        [
            json.loads((folder / "metadata" / f"{name}.json").read_bytes())["EXPECTED_QUANTITY"]
            for name in names
        ]
    )
    return Photos(photos.to(device), counts.to(device), torch.zeros(len(names), 3, device=device))


def run(chosen: argparse.Namespace) -> None:
    """Train every recipe with every seed, in their order, in processes that share the device."""
    until = time.time() + 60 * chosen.minutes
    wanted = dict(RECIPES)
    if chosen.recipes:
        wanted = json.loads(Path(chosen.recipes).read_text())
    if chosen.only:
        wanted = {name: wanted[name] for name in chosen.only}
    known = {field.name for field in fields(Recipe)}
    if unknown := sorted({key for overrides in wanted.values() for key in overrides} - known):
        sys.exit(f"no such part of a recipe: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    context = multiprocessing.get_context("spawn")
    renders, painter = None, None
    most = max((overrides.get("pretrain", 0) for overrides in wanted.values()), default=0)
    if most:
        renders = Path(chosen.renders)
        painter = context.Process(target=_render, args=(renders, most))
        painter.start()
    with context.Manager() as manager:
        jobs = manager.Queue()
        for name, overrides in wanted.items():
            for seed in range(chosen.seeds):
                jobs.put((name, overrides, seed))
        workers = [
            context.Process(
                target=_work,
                args=(number, jobs, chosen.pack, chosen.out, until, renders, chosen.steps_of_an_epoch),
            )
            for number in range(chosen.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(1.0, until - time.time()) + chosen.grace)
            if worker.is_alive():
                worker.terminate()
    if painter is not None:
        painter.join(1)
        if painter.is_alive():
            painter.terminate()
    lines = [
        line
        for file in sorted(chosen.out.parent.glob(f"{chosen.out.stem}-[0-9]*{chosen.out.suffix}"))
        for line in file.read_text().splitlines()
    ]
    chosen.out.write_text("\n".join(lines) + "\n")
    for file in chosen.out.parent.glob(f"{chosen.out.stem}-[0-9]*{chosen.out.suffix}"):
        file.unlink()
    merged = {
        f"{file.stem.removeprefix(chosen.out.stem + '-')}/{key}": values
        for file in sorted(chosen.out.parent.glob(f"{chosen.out.stem}-*.npz"))
        for key, values in np.load(file).items()
    }
    for file in chosen.out.parent.glob(f"{chosen.out.stem}-*.npz"):
        file.unlink()
    np.savez_compressed(chosen.out.with_suffix(".npz"), **merged)  # type: ignore[arg-type]
    table(chosen.out)


# --------------------------------------------------------------------------------------------------------- table


def _spread(values: list[float]) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.4f}±{error:.4f}"


def table(file: Path) -> None:
    """Means over the seeds, with standard errors: after the last epoch, and at each training's best epoch."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in file.read_text().splitlines():
        result = json.loads(line)
        groups[result["name"]].append(result)
    columns = ("raw argmax", "ema argmax", "ema median", "rmse median", "rmse rounded", "best argmax (epoch)")
    print(f"{'recipe':18} n {'s':>4} train {' '.join(f'{c:>16}' for c in columns)}  two views")
    for name, results in groups.items():
        last = [result["epochs"][-1] for result in results]
        ema = [line["ema_0.99"] for line in last]
        best = [max(result["epochs"], key=lambda e: e["ema_0.99"]["accuracy_argmax"]) for result in results]
        cells = [
            _spread([line["ema_0.0"]["accuracy_argmax"] for line in last]),
            _spread([line["accuracy_argmax"] for line in ema]),
            _spread([line["accuracy_median"] for line in ema]),
            _spread([line["rmse_median"] for line in ema]),
            _spread([line["rmse_rounded"] for line in ema]),
            f"{mean(b['ema_0.99']['accuracy_argmax'] for b in best):.4f} ({mean(b['epoch'] for b in best):.1f})",
        ]
        two = mean(line["ema_0.99_two_views"]["accuracy_argmax"] for line in last)
        print(
            f"{name:18} {len(results)} {mean(r['seconds'] for r in results):4.0f} "
            f"{mean(line['train_loss'] for line in last):.2f} {' '.join(f'{c:>16}' for c in cells)}  {two:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("out", type=Path)
    packing.add_argument("--half", action="store_true", help="weights in 16 bits, to carry them")
    running = commands.add_parser("run")
    running.add_argument("pack", type=Path)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--only", nargs="*")
    running.add_argument("--recipes", help="a JSON file of recipes instead of those here")
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--workers", type=int, default=5)
    running.add_argument("--minutes", type=float, default=8.0, help="no training begins afterwards")
    running.add_argument("--grace", type=float, default=60.0, help="seconds for those that have begun")
    running.add_argument("--renders", default="/tmp/rendered-bins")
    running.add_argument("--steps-of-an-epoch", type=int, help="fewer, to try the script")
    commands.add_parser("table").add_argument("results", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "pack":
        pack(chosen.folder, chosen.out, chosen.half)
    elif chosen.command == "run":
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        run(chosen)
    else:
        table(chosen.results)


if __name__ == "__main__":
    main()
