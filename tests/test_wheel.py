"""The wheel installs the one name `binsweep`: it runs next to a project that has modules of the four folders' names."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("data", "models", "tracking", "search", "src", "pyproject.toml", "README.md", "LICENSE")
MINE = ("data.py", "models/__init__.py", "models/train.py", "search/__init__.py", "tracking.py")
BOTH = """
import data, models.train, search, tracking
import binsweep.data.manifest, binsweep.models.train, binsweep.search.cli.main, binsweep.tracking.promotion.promote
print(data.MINE, models.train.MINE, search.MINE, tracking.MINE, binsweep.models.train.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves folders next to what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
    ]
    subprocess.run([*command, folder / "source"], check=True, timeout=200)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_has_all_of_the_code_under_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"binsweep"}
    code = {f"binsweep/{p.relative_to(ROOT)}" for f in SHIPPED[:4] for p in (ROOT / f).rglob("*.py")}
    assert code | {"binsweep/__init__.py", "binsweep/__main__.py"} <= set(names)
    assert "binsweep/search/report/report.html.jinja" in names
    static = {f"binsweep/{file.relative_to(ROOT)}" for file in (ROOT / "search/ui/static").iterdir()}
    assert static and static <= set(names)


@pytest.mark.night  # two sweeps in an environment of their own
def test_a_project_with_modules_of_the_same_names_runs_sweeps(
    wheel: Path, bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True, timeout=60)
    python = tmp_path / "env" / "bin" / "python"
    scheme = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages = Path(sysconfig.get_path("purelib", vars=scheme))
    zipfile.ZipFile(wheel).extractall(packages)
    # The dependencies of this environment. Its own .pth files are not read there, so not its binsweep either.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    project = tmp_path / "project"
    for name in MINE:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("MINE = 'mine'\n")
    (project / "both.py").write_text(BOTH)
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    environment = {**os.environ, "PYTHONPATH": str(project), "BINSWEEP_HOME": str(tmp_path / "home")}

    def run(*words: object) -> str:
        command = [python, *map(str, words)]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    *mine, ours = run("both.py").split()
    assert mine == ["mine"] * 4 and ours == str(packages / "binsweep" / "models" / "train.py")
    spec = project / "sweep.yaml"
    spec.write_text(
        f"name: beside\ndata: {{source: {bins}, image_size: 64}}\nmodel: {{weights: none}}\n"
        "space: {lr: [0.01, 0.02]}\nbudget: {trials: 2}\n"
    )
    for runner in ("local", "ray"):
        assert "ended by" in run("-m", "binsweep", "sweep", spec, "--runner", runner, "--new")
