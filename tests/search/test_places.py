"""Whatever lies in the working folder, and wherever temporary files go: Ray's workers run our code."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from binsweep.data.errors import UserError
from binsweep.search.execution.resources import LONGEST_PLACE, ray_place
from binsweep.search.ray_backend.source_folders import ROOMS

OURS = ("data", "models", "search", "tracking")
ASK = """
import importlib, sys
from binsweep.search.ray_backend.runner import start_ray
import ray

def of_a_worker():
    return [importlib.import_module(room).__path__[0] for room in %r], [p for p in sys.path if p == %r]

with start_ray(1) as has:
    print(*ray.get(ray.remote(of_a_worker).remote()), sep="\\n")
    print(ray._private.worker._global_node.get_session_dir_path())
"""


def hostile(folder: Path) -> Path:
    """A working folder where everything is called as something of ours, or of Python's."""
    for name in OURS:
        (folder / f"{name}.py").write_text("raise SystemExit('mine')\n")
    (folder / "random.py").write_text("raise SystemExit('mine')\n")
    return folder


def odd(folder: Path, kind: str) -> Path:
    place = folder / {"long": "tmp.t0016/" * 8, "blank": "t m p", "letter": "tmpü"}[kind]
    place.mkdir(parents=True)
    return place


@pytest.mark.parametrize("kind", ["long", "blank", "letter"])
def test_ray_gets_a_place_with_a_short_and_plain_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(odd(tmp_path, kind)))
    assert ray_place() in ("/tmp", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as short:
        assert len(short) <= LONGEST_PLACE
        monkeypatch.setenv("RAY_TMPDIR", short)
        assert ray_place() == short, "what will do is taken"


def test_without_a_place_for_ray_it_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(odd(tmp_path, "long")))
    monkeypatch.setattr("os.access", lambda place, mode: place not in ("/tmp", "/var/tmp"))
    with pytest.raises(UserError, match="RAY_TMPDIR"):
        ray_place()


def test_a_worker_of_ray_takes_our_code_though_the_working_folder_has_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    here = hostile(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", str(odd(tmp_path, "long")))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOMS[0].parent))
    script = tmp_path / "ask.py"
    script.write_text(ASK % (OURS, str(here)))
    done = subprocess.run([sys.executable, script], cwd=here, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    rooms, looked_in, session = done.stdout.splitlines()
    assert rooms == str([str(ROOMS[0].parent / name) for name in OURS])
    assert looked_in == "[]"
    assert not Path(session).exists(), "what Ray wrote goes with it"


@pytest.mark.parametrize("name", ["data.py", "models.py", "tracking/__init__.py"])
def test_another_module_of_our_name_is_told_by_its_place(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("print('mine')\n")
    done = subprocess.run(
        [sys.executable, "-c", "from binsweep.search.cli.main import main; main()", "status"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOMS[0].parent}", "PYTHONSAFEPATH": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and not done.stdout
    assert str(tmp_path / name) in done.stderr and "PYTHONPATH" in done.stderr
    assert "Traceback" not in done.stderr
