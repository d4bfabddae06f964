"""The trial that own training code is given. `from binsweep import Trial` names its type."""

from __future__ import annotations

import math
import operator
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsFloat

Save = Callable[[Path], object]


class ReportError(Exception):
    """A report, or another call of the trial, that cannot be taken. The trial fails, and the others go on."""


class TrialEnded(BaseException):
    """Ends training code that goes on although its trial is over. Code should let it pass."""


@dataclass(frozen=True)
class TrialStart:
    """What a process needs to begin or resume a trial; small and picklable."""

    number: int
    params: dict[str, Any]
    seed: int
    metric: str  # the sweep's objective, which every report must have
    first_epoch: int  # from 1; behind the checkpoint, if there is one
    last_epoch: int
    folder: Path  # of the trial
    checkpoint: Path | None
    cpus: int
    gpus: float


class Trial:
    """One trial: its values, and how its results are reported.

    `params` has the searched values and the fixed ones of the spec's `params`. `seed` is the trial's own, `number` its
    place in the sweep, `folder` the working directory, in which it may write what it likes. `metric` is what the sweep
    optimises, `last_epoch` is where its training ends, `cpus` and `gpus` what it may use.
    """

    def __init__(self, start: TrialStart, send: Callable[[int, dict[str, float], bool], bool]) -> None:
        """`send(epoch, metrics, saved)` reports an epoch and returns whether the trial goes on."""
        self._start, self._send = start, send
        self._epoch = start.first_epoch - 1  # the last one that was reported
        self._current = 0  # the one that `epochs` is at; 0 outside of it
        self._goes_on = True
        self.params: Mapping[str, Any] = MappingProxyType(start.params)
        self.number, self.seed, self.metric = start.number, start.seed, start.metric
        self.folder = start.folder / "work"
        self.last_epoch = start.last_epoch
        self.cpus, self.gpus = start.cpus, start.gpus

    def checkpoint(self) -> Path | None:
        """The folder that was saved with the last report that counted; None if the training begins."""
        return self._start.checkpoint

    def epochs(self) -> Iterator[int]:
        """The epochs to train, counted from 1. They begin behind the checkpoint, and end when the trial does."""
        while self._goes_on and self._epoch < self.last_epoch:
            self._current = self._epoch + 1
            yield self._current
            if self._goes_on and self._epoch < self._current:
                raise ReportError(
                    f"epoch {self._current} ended without a report: call trial.report in each epoch"
                )
        self._current = 0

    def report(
        self, metrics: Mapping[str, SupportsFloat], save: Save | None = None, epoch: int | None = None
    ) -> bool:
        """Report the metrics of an epoch; returns whether the trial goes on, which it does not after the last one.

        `save` is called with an empty folder, in which it writes whatever `checkpoint()` shall give back later. The
        epoch is the one of `epochs()`, or one more than that of the last report. Raises ReportError for metrics that
        are no numbers or lack the sweep's objective, and for an epoch that is not above the last one.
        """
        if not self._goes_on:
            raise TrialEnded
        number = self._next_epoch(epoch)
        values = _checked(metrics, self._start.metric)
        if save is not None:
            self._save(save)
        self._epoch = number
        self._goes_on = self._send(number, values, save is not None) and number < self.last_epoch
        return self._goes_on

    def artifact(self, path: str | Path) -> None:
        """Keep a file, or a folder, with the trial's run in MLflow. Raises ReportError if it does not exist."""
        source = Path(path)
        target = self._start.folder / ARTIFACTS / source.resolve().name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, target)
        else:
            raise ReportError(f"trial.artifact: there is no file {source}")

    def _next_epoch(self, epoch: int | None) -> int:
        expected = self._current or self._epoch + 1
        number = expected if epoch is None else epoch
        try:
            number = operator.index(number)  # NumPy's integers, too
        except TypeError as error:
            raise ReportError(f"trial.report: epoch {number!r} is no whole number") from error
        if number == self._epoch and number > 0:
            raise ReportError(f"trial.report: epoch {number} was reported twice")
        if number < max(1, self._epoch):
            raise ReportError(
                f"trial.report: epoch {number} was reported after epoch {self._epoch}: they must go up from 1"
            )
        if number > self.last_epoch:
            raise ReportError(
                f"trial.report: epoch {number} was reported, and the training ends at {self.last_epoch}: "
                "raise fidelity.epochs"
            )
        return number

    def _save(self, save: Save) -> None:
        folder = self._start.folder / SAVING
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save(folder)
        if not any(folder.iterdir()):
            raise ReportError(
                "save wrote nothing into the folder that it was given: write the checkpoint there"
            )


ARTIFACTS = "artifacts"
METRIC_NAME = re.compile(r"\w[\w .:-]*(/\w[\w .:-]*)*")  # as MLflow takes them
SAVING = "checkpoint.tmp"  # a checkpoint that is not complete; renamed when its epoch is reported


def _checked(metrics: Any, metric: str) -> dict[str, float]:
    """The metrics as numbers. Raises ReportError if they cannot be."""
    if not isinstance(metrics, Mapping):
        raise ReportError(
            f"trial.report: {type(metrics).__name__} is no dict of metrics, such as {{{metric!r}: 0.5}}"
        )
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if not METRIC_NAME.fullmatch(str(name)) or len(str(name)) > 200:
            rule = "is no name that MLflow takes: use up to 200 letters, digits and _ - . : / and blanks"
            raise ReportError(f"trial.report: {name!r:.60} {rule}")
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            values[str(name)] = float(value)
        except Exception as error:  # PyTorch raises a RuntimeError for a tensor of two numbers
            text = " ".join(repr(value).split())
            given = f"{text:.60} ({type(value).__name__})"
            raise ReportError(f"trial.report: {name} is {given}, not a number") from error
    if metric not in values:
        have = ", ".join(values) or "nothing"
        raise ReportError(
            f"trial.report: {have} was reported; objective.metric is {metric}, which is missing"
        )
    return values


def returned_metrics(value: Any, metric: str) -> dict[str, float] | None:
    """What a training function returned as metrics: a number is the sweep's objective. None if it is neither."""
    if isinstance(value, Mapping):
        return _checked(value, metric)
    if value is None or isinstance(value, str | bytes | bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return {metric: number if math.isfinite(number) else math.nan}
