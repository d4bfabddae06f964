"""Checks of this machine, each with a remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from binsweep import __version__
from binsweep.data.banks.store import BANKS_LIMIT, bank_size, banks_in, size_limit
from binsweep.data.errors import UserError
from binsweep.data.resource_limits import cores, memory
from binsweep.models.download import OFFLINE, is_offline
from binsweep.models.precision import has_fast_bf16
from binsweep.models.pretrained import available_offline
from binsweep.tracking.mlflow_server.credentials import REGISTRY
from binsweep.tracking.mlflow_server.embedded import tracking_server
from binsweep.tracking.mlflow_server.named_server import named_registry, named_server, require_reachable
from binsweep.tracking.run_tags import LIBRARIES, version_of

GIB = 2**30


@dataclass(frozen=True)
class CheckResult:
    """One line of the report; `remedy` says what to do, and is empty if nothing is wrong."""

    name: str
    ok: bool
    text: str
    remedy: str = ""


def _python(home: Path) -> CheckResult:
    ok = sys.version_info >= (3, 11)
    return CheckResult("python", ok, platform.python_version(), "" if ok else "install Python 3.11 or later")


def _versions(home: Path) -> CheckResult:
    versions = {"binsweep": __version__} | {library: version_of(library) for library in LIBRARIES}
    text = ", ".join(f"{library} {version}" for library, version in versions.items() if version)
    missing = ", ".join(library for library, version in versions.items() if not version)
    return CheckResult(
        "versions",
        not missing,
        text,
        f"install the versions in constraints.txt: {missing}" if missing else "",
    )


def _cpu(home: Path) -> CheckResult:
    bf16 = has_fast_bf16(torch.device("cpu"))
    have, machine = memory(), os.cpu_count() or 1
    text = f"{cores()} of {machine} cores, {torch.backends.cpu.get_cpu_capability()}, "
    text += f"bf16 {'' if bf16 else 'not '}in hardware, "
    text += f"{have.free / GIB:.1f} of {have.total / GIB:.1f} GiB of memory free"
    if have.free >= 4 * GIB:
        return CheckResult("cpu", True, text)
    more = "close other programs" if have.total >= 4 * GIB else "raise the memory limit of its container"
    return CheckResult("cpu", False, text, f"a sweep needs 4 GiB: {more}")


def _gpu(home: Path) -> CheckResult:
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return CheckResult("gpu", True, names or "none; trials run on the CPU")


def _shared_memory(home: Path) -> CheckResult:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return CheckResult("/dev/shm", True, "not on this system")
    free = shutil.disk_usage(folder).free / GIB
    remedy = "" if free >= 0.25 else "give it 1 GiB (containers: --shm-size 1g), or Ray falls back to disk"
    return CheckResult("/dev/shm", free >= 0.25, f"{free:.1f} GiB free", remedy)


def _disk(home: Path) -> CheckResult:
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free / GIB
    if not os.access(place, os.W_OK | os.X_OK):
        remedy = f"set BINSWEEP_HOME to a writable folder (now {home})"
        return CheckResult("disk", False, f"{place} cannot be written", remedy)
    remedy = "" if free >= 2 else f"free some space, or set BINSWEEP_HOME to a larger disk (now {home})"
    return CheckResult("disk", free >= 2, f"{free:.1f} GiB free at {place}", remedy)


def _banks(home: Path) -> CheckResult:
    folder = home / "banks"
    banks = banks_in(folder)
    text = f"{sum(map(bank_size, banks)) / GIB:.2f} GiB in {len(banks)} bank{'s' if len(banks) != 1 else ''}"
    try:
        return CheckResult(
            "banks", True, f"{text}, at most {size_limit() / GIB:g} GiB ({BANKS_LIMIT}), in {folder}"
        )
    except UserError as error:
        return CheckResult("banks", False, error.message, error.hint)


def _ray(home: Path) -> CheckResult:
    try:
        from binsweep.search.ray_backend.runner import start_ray

        with start_ray(1):
            return CheckResult("ray", True, "starts and stops")
    except Exception as error:  # Ray fails in many ways
        return CheckResult(
            "ray", False, f"{type(error).__name__}: {error}", "sweeps still run with --runner local"
        )


def _mlflow(home: Path) -> CheckResult:
    with tempfile.TemporaryDirectory() as elsewhere:
        # A home without a server is not changed.
        place = home if (home / "mlflow").is_dir() else Path(elsewhere)
        try:
            with tracking_server(place) as uri:
                text = f"{uri} answers" if named_server() else "the embedded server starts and answers"
            if registry := named_registry():
                require_reachable(registry, REGISTRY)
                text += f"; so does the registry {registry}"
            return CheckResult("mlflow", True, text)
        except UserError as error:
            return CheckResult("mlflow", False, error.message, error.hint)


def _weights(home: Path) -> CheckResult:
    have = available_offline()
    text = f"imagenet, on this machine: {', '.join(have) or 'none'}"
    if is_offline():
        remedy = "" if have else f"unset {OFFLINE}, or set model.weights to a folder of BACKBONE.pth files"
        return CheckResult("weights", bool(have), f"{text}; {OFFLINE}: nothing is downloaded", remedy)
    return CheckResult("weights", True, f"{text}; others are downloaded before a sweep")


CHECKS: tuple[Callable[[Path], CheckResult], ...] = (
    _python, _versions, _cpu, _gpu, _shared_memory, _disk, _banks, _ray, _mlflow, _weights
)  # fmt: skip


def examine(home: Path) -> list[CheckResult]:
    """Run every check, in the order of the report."""
    findings = []
    for check in CHECKS:
        try:
            findings.append(check(home))
        except Exception as error:  # such as a broken driver or disk; the other checks still run
            name, text = check.__name__.strip("_"), f"{type(error).__name__}: {error}"
            findings.append(CheckResult(name, False, text, "the check failed: fix the error that it reports"))
    return findings
