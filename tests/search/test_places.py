"""Whatever lies in the working folder, and wherever temporary files go: Ray's workers run our code."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from binsweep.data.errors import UserError
from binsweep.data.python_process import PACKAGE
from binsweep.search.execution.resources import MAX_RAY_FOLDER_LENGTH, ray_temp_folder

NAMES = ("data", "models", "search", "tracking", "binsweep")
ASK = """
import sys
from binsweep.search.ray_backend.runner import start_ray
import ray

def of_a_worker():
    import binsweep
    return binsweep.__path__[0], [p for p in sys.path if p == %r]

with start_ray(1) as has:
    print(*ray.get(ray.remote(of_a_worker).remote()), sep="\\n")
    print(ray._private.worker._global_node.get_session_dir_path())
"""


def hostile(folder: Path) -> Path:
    """A working folder where everything is called as something of ours, or of Python's."""
    for name in NAMES:
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
    assert ray_temp_folder() in ("/tmp", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as short:
        assert len(short) <= MAX_RAY_FOLDER_LENGTH
        monkeypatch.setenv("RAY_TMPDIR", short)
        assert ray_temp_folder() == short, "what will do is taken"


def test_without_a_place_for_ray_it_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(odd(tmp_path, "long")))
    monkeypatch.setattr("os.access", lambda place, mode: place not in ("/tmp", "/var/tmp"))
    with pytest.raises(UserError, match="RAY_TMPDIR"):
        ray_temp_folder()


@pytest.mark.integration
def test_a_worker_of_ray_takes_our_code_though_the_working_folder_has_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    here = hostile(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", str(odd(tmp_path, "long")))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE.parent))
    script = tmp_path / "ask.py"
    script.write_text(ASK % str(here))
    done = subprocess.run([sys.executable, script], cwd=here, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    package, looked_in, session = done.stdout.splitlines()
    assert package == str(PACKAGE)
    assert looked_in == "[]"
    assert not Path(session).exists(), "what Ray wrote goes with it"
