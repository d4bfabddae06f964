"""Tags that tell what a run was made with: code version, library versions, machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from binsweep import __version__

LIBRARIES = ("torch", "torchvision", "timm", "optuna", "mlflow", "ray")


def _git(*arguments: str) -> str:
    """A git command's output in the current folder; empty if there is no git or no repository."""
    try:
        process = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, cwd=Path.cwd()
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""


def version_of(library: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def environment_tags() -> dict[str, str]:
    """Tags for the sweep and its trials; git tags only inside a repository."""
    tags = {f"version.{library}": found for library in LIBRARIES if (found := version_of(library))}
    tags["version.binsweep"] = __version__
    tags["version.python"] = platform.python_version()
    gpu = torch.cuda.is_available()
    tags["device"] = (
        torch.cuda.get_device_name(0) if gpu else f"cpu ({platform.processor() or platform.machine()})"
    )
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags
