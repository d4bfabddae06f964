"""What a run was made with is told also where Binsweep was not installed as a package."""

import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from binsweep import __version__
from binsweep.search.cli.main import cli
from binsweep.search.workflows.doctor import examine
from binsweep.tracking.run_tags import environment_tags


@pytest.mark.parametrize("missing", ["binsweep", "ray"])
def test_a_package_that_is_not_installed_ends_nothing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.distribution

    def some(name: str) -> Any:
        if name == missing:  # as where PYTHONPATH names the code, or a job brought it to a cluster
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "distribution", some)
    tags = environment_tags()
    assert tags["version.binsweep"] == __version__ and tags["version.torch"]
    assert ("version.ray" in tags) == (missing != "ray")
    said = CliRunner().invoke(cli, ["--version"])
    assert (said.exit_code, said.output) == (0, f"binsweep, version {__version__}\n")


def test_doctor_goes_on_behind_a_check_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(home: Path) -> Any:
        raise RuntimeError("no driver")

    monkeypatch.setattr("binsweep.search.workflows.doctor.CHECKS", (broken, broken))
    assert [(one.name, one.ok, one.text) for one in examine(tmp_path)] == [
        ("broken", False, "RuntimeError: no driver")
    ] * 2


def test_the_package_has_the_codes_version() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "binsweep.__version__"}
