"""A failure of the machine is no bad photo: it is retried, reported, and never cached."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from binsweep.data.banks.store import open_bank
from binsweep.data.errors import UserError
from binsweep.data.manifest import load_manifest
from binsweep.data.sources import scan_cache
from binsweep.data.sources.scan_cache import ScanCache, ScanResult, scan_files
from binsweep.data.split import Split

PASSING = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    MemoryError(),
]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "RETRY_DELAYS", (0.0, 0.0, 0.0))


def remembered(home: Path) -> dict[str, object]:
    files = [json.loads(file.read_bytes())["files"] for file in (home / "cache").glob("*.json")]
    return {name: finding for one in files for name, finding in one.items()}


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_an_error_that_passes_costs_nothing(tmp_path: Path, error: Exception) -> None:
    failures = [error, error]

    def read(path: Path) -> ScanResult:
        if failures:
            raise failures.pop()
        return path.read_text(), ""

    file = tmp_path / "a"
    file.write_text("text")
    assert scan_files([file], read, ScanCache(tmp_path, tmp_path / "home")) == [("text", "")]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_permanent_error_is_reported_and_not_cached(tmp_path: Path, error: Exception) -> None:
    def read(path: Path) -> ScanResult:
        if path.name == "b":
            raise error
        return path.read_text(), ""

    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_text("text")
    with pytest.raises(UserError, match="/b: cannot be read: ") as caught:
        scan_files(files, read, ScanCache(tmp_path, tmp_path / "home"))
    assert "again" in caught.value.hint
    assert remembered(tmp_path / "home").keys() == {"a"}


def test_a_disk_that_fails_under_a_photo(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    """A real I/O error, which Linux returns at the beginning of a process's memory."""
    if not Path("/proc/self/mem").is_file():
        pytest.skip("needs Linux")
    root = bins.write_folders(tmp_path / "folders", bins.COUNTS)
    good = load_manifest(str(root), None, Split(), home)
    (root / "1" / "broken.jpg").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"1/broken\.jpg: cannot be read: Input/output error"):
        load_manifest(str(root), None, Split(), home)
    (root / "1" / "broken.jpg").unlink()
    assert load_manifest(str(root), None, Split(), home).fingerprint == good.fingerprint


def test_too_many_open_files(bins: ModuleType, tmp_path: Path, home: Path) -> None:
    from binsweep.data.manifest import _verified_sha256

    bins.paint(tmp_path / "a.jpg", 1)
    cache = ScanCache(tmp_path, home)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(UserError, match=f"cannot be read: {os.strerror(errno.EMFILE)}"):
            scan_files([tmp_path / "a.jpg"], _verified_sha256, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    [(value, reason)] = scan_files([tmp_path / "a.jpg"], _verified_sha256, cache)
    assert value and not reason


def test_no_memory_for_a_picture() -> None:
    """In a process with less memory than the image needs."""
    code = """
import io, resource
from PIL import Image
from binsweep.data.decode import ReadFailed, decode
stream = io.BytesIO()
Image.new("L", (7000, 7000)).save(stream, "PNG")
decode(stream.getvalue(), 8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, -1))
try:
    decode(stream.getvalue(), 8)
except ReadFailed as error:
    print("failed:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("failed: cannot be decoded: "), done


def test_a_file_without_read_permission_is_reported_and_not_cached(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")

    def forbidden(path: Path) -> ScanResult:
        raise PermissionError(errno.EACCES, "Permission denied")

    cache = ScanCache(tmp_path, tmp_path / "home")
    assert scan_files([tmp_path / "a"], forbidden, cache) == [(None, "cannot be read: Permission denied")]
    assert not remembered(tmp_path / "home")


def test_a_bank_that_cannot_be_opened_now_stays(tmp_path: Path) -> None:
    def load(path: Path) -> str:
        return (path / "content").read_text()

    def build(path: Path) -> None:
        (path / "content").write_text("whole")

    def fail(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    assert open_bank(tmp_path / "pixels-a", "bank", load, build) == "whole"
    with pytest.raises(UserError, match=r"cannot read the bank .*: Too many open files"):
        open_bank(tmp_path / "pixels-a", "bank", fail, build)
    assert (tmp_path / "pixels-a" / "content").exists()
