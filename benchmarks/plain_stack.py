"""What a person writes today from the documentation of Ray Tune, Optuna and MLflow: the other side of trials.py.

A function trainable, a torch Dataset that opens and transforms each photo in each epoch, a DataLoader, the whole
network in every step in fp32, a process for each trial, and metrics to an MLflow server once an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import ray
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from binsweep.models.pretrained import (
    load_state,
    weights_file,
)  # no model hub is assumed: the weights come from a package

Photo = tuple[str, int]  # path, index of the class
LAST_STAGE = ("blocks.5", "blocks.6", "conv_head", "bn2")


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos as the PyTorch tutorials read them."""

    def __init__(self, photos: Sequence[Photo], size: int, train: bool) -> None:
        flip = [transforms.RandomHorizontalFlip()] if train else []
        scale = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.transform = transforms.Compose(
            [transforms.Resize((size, size)), *flip, transforms.ToTensor(), scale]
        )
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.photos[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


class Network(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights and the same head as Binsweep's."""

    def __init__(self, trainable: str, classes: int) -> None:
        super().__init__()
        self.body = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        file = weights_file("efficientnet_lite0", "imagenet")
        assert file is not None
        self.body.load_state_dict(load_state("efficientnet_lite0", file), strict=False)
        for name, parameter in self.body.named_parameters():
            trained = trainable == "all" or (trainable == "last_stage" and name.startswith(LAST_STAGE))
            parameter.requires_grad = trained
        self.trainable = trainable
        self.head = nn.Sequential(nn.Linear(1280, 128), nn.ReLU(), nn.Linear(128, classes))

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for name, module in self.body.named_modules():  # what is frozen keeps its batch statistics
            if self.trainable == "head" or (
                self.trainable == "last_stage" and not name.startswith(LAST_STAGE)
            ):
                module.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images))
        return out


def trainable(config: dict[str, Any], job: dict[str, Any]) -> None:
    """One trial."""
    torch.manual_seed(config["seed"])
    cores = int(job["cpus_per_trial"])
    torch.set_num_threads(cores)
    train = DataLoader(
        Photos(job["train"], job["size"], True), config["batch_size"], shuffle=True, num_workers=cores
    )
    validation = DataLoader(Photos(job["validation"], job["size"], False), 256, num_workers=cores)
    net = Network(job["trainable"], job["classes"])
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], config["lr"])
    steps = job["epochs"] * len(train)
    best = 0.0
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config["lr"], total_steps=steps, cycle_momentum=False
    )
    mlflow.set_tracking_uri(job["uri"])
    mlflow.set_experiment("plain")
    with mlflow.start_run():
        mlflow.log_params(config)
        for epoch in range(1, job["epochs"] + 1):
            start = time.perf_counter()
            net.train()
            total = 0.0
            for images, labels in train:
                loss = F.cross_entropy(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(labels)
            seconds = time.perf_counter() - start
            net.eval()
            right = 0
            with torch.no_grad():
                for images, labels in validation:
                    right += int((net(images).argmax(1) == labels).sum())
            metrics = {
                "train_loss": total / len(job["train"]),
                "val_accuracy": right / len(job["validation"]),
                "best": max(best, right / len(job["validation"])),
                "images_per_second": len(job["train"]) / seconds,
            }
            best = metrics["best"]
            mlflow.log_metrics(metrics, step=epoch)
            tune.report(metrics)


def run_plain(configs: Sequence[dict[str, Any]], job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train the given configurations; `seconds` counts from Tuner.fit on, without starting Ray or the server."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    space = {
        "lr": tune.loguniform(1e-6, 1.0),
        "batch_size": tune.choice([8, 16, 32, 64, 128, 256]),
        "seed": tune.randint(0, 2**31),
    }
    try:
        start = time.perf_counter()
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, job=job), {"cpu": job["cpus_per_trial"]}),
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(points_to_evaluate=list(configs)),
                metric="val_accuracy",
                mode="max",
                num_samples=len(configs),
            ),
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        ).fit()
        seconds = time.perf_counter() - start
    finally:
        ray.shutdown()
    if results.errors:
        raise RuntimeError(f"the plain side failed: {results.errors[0]}")
    return {
        "seconds": seconds,
        "accuracies": {result.config["seed"]: result.metrics["best"] for result in results},
        "images_per_second": results[0].metrics["images_per_second"],
    }
