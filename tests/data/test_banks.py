"""Banks are complete or absent, kept within their limit, and built in memory if the home is read-only."""

import ctypes
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from binsweep.data.banks.store import bank_folder, banks_in, evict_banks, open_bank, size_limit
from binsweep.data.errors import UserError

# Opens (or builds, with 1,000 bytes) the bank argv[1], prints what it did, and waits for a line.
OPENER = """
import sys, time
from pathlib import Path
from binsweep.data.banks.store import open_bank
built = []
def build(beside):
    (beside / "content").write_bytes(b"x" * 1000)
    built.append(1)
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
open_bank(Path(sys.argv[1]), "bank", lambda path: (path / "content").read_bytes(), build)
print("built" if built else "found", flush=True)
sys.stdin.readline()
"""

# The same user without the right to overrule permission bits, which root has.
READ_ONLY = """
import ctypes, os, sys
if len(sys.argv) == 2:
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE: counts from the next exec on
    os.execv(sys.executable, [sys.executable, "-c", open("/proc/self/cmdline").read().split("\\0")[2], sys.argv[1], ""])
from pathlib import Path
from binsweep.data.banks.store import bank_folder, open_bank
home = Path(sys.argv[1])
folders = {bank_folder(home), bank_folder(home)}
(folder,) = folders
load = lambda path: (path / "content").read_bytes()
old = open_bank(folder / "pixels-old", "bank", load, lambda beside: sys.exit("built again"))
new = open_bank(folder / "pixels-new", "bank", load, lambda beside: (beside / "content").write_bytes(b"new") and None)
print(folder, old, new)
"""


def build(path: Path, size: int = 1000) -> bytes:
    def fill(beside: Path) -> None:
        evict_banks(path.parent, size)
        (beside / "content").write_bytes(b"x" * size)

    return open_bank(path, "bank", lambda path: (path / "content").read_bytes(), fill)


def release() -> None:
    """Release all banks of this process, as if it had ended."""
    from binsweep.data.banks import store as banks

    for fd in banks._use_locks.values():
        os.close(fd)
    banks._use_locks.clear()


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    release()


def start(path: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPENER, str(path), str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def age(folder: Path, *names: str) -> None:
    """Make these banks the least recently opened ones, in this order."""
    for seconds, name in enumerate(names):
        os.utime(folder / f"{name}.use", (seconds, seconds))


def test_the_least_recently_opened_banks_are_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pixels-a", "pixels-b", "features-c"):
        build(tmp_path / name)
    release()
    age(tmp_path, "features-c", "pixels-a", "pixels-b")
    monkeypatch.setenv("BINSWEEP_BANKS_GIB", str(2500 / 2**30))
    build(tmp_path / "pixels-d")
    assert {path.name for path in banks_in(tmp_path)} == {"pixels-b", "pixels-d"}


def test_opening_a_bank_makes_it_the_last_to_be_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pixels-a", "pixels-b"):
        build(tmp_path / name)
    age(tmp_path, "pixels-a", "pixels-b")
    build(tmp_path / "pixels-a")
    release()
    monkeypatch.setenv("BINSWEEP_BANKS_GIB", str(2000 / 2**30))
    build(tmp_path / "pixels-c")
    assert {path.name for path in banks_in(tmp_path)} == {"pixels-a", "pixels-c"}


def test_a_bank_in_use_is_never_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "pixels-mine")
    with start(tmp_path / "pixels-theirs", 0) as other:
        assert line_of(other) == "building" and line_of(other) == "built"
        monkeypatch.setenv("BINSWEEP_BANKS_GIB", "0")
        build(tmp_path / "pixels-new")
        names = {path.name for path in banks_in(tmp_path)}
        other.kill()
    assert names == {"pixels-mine", "pixels-theirs", "pixels-new"}
    build(tmp_path / "pixels-next")
    assert "pixels-theirs" not in {path.name for path in banks_in(tmp_path)}


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_invalid_limits(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINSWEEP_BANKS_GIB", value)
    with pytest.raises(UserError, match="BINSWEEP_BANKS_GIB: must be a number of GiB"):
        size_limit()


def test_the_partial_bank_of_a_killed_builder_is_built_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start(tmp_path / "pixels-a", 60) as builder, start(tmp_path / "pixels-b", 60) as other:
        assert line_of(builder) == "building" and line_of(other) == "building"
        builder.kill()
        other.kill()
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path / "pixels-a") == b"x" * 1000
    assert [record.message.count("process was killed") for record in caplog.records] == [1]
    assert not list(tmp_path.glob(".*.partial"))  # the other one's, too


def test_the_half_built_bank_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with start(tmp_path / "pixels-a", 60) as builder:
        assert line_of(builder) == "building"
        build(tmp_path / "pixels-b")
        assert (tmp_path / ".pixels-a.partial" / "content").exists()
        builder.kill()


def test_two_processes_build_one_bank(tmp_path: Path) -> None:
    with start(tmp_path / "pixels-a", 1) as first, start(tmp_path / "pixels-a", 1) as second:
        said = [line_of(process) for process in (first, second)]
        last = [
            line_of(process) if text == "building" else text
            for process, text in zip((first, second), said, strict=True)
        ]
        first.kill()
        second.kill()
    assert sorted(last) == ["built", "found"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot build the bank in .*: File too large") as caught:
            build(tmp_path / "pixels-a", 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "BINSWEEP_HOME" in caught.value.hint
    assert not banks_in(tmp_path) and not list(tmp_path.glob(".*.partial"))
    assert len(build(tmp_path / "pixels-a", 200_000)) == 200_000


def test_a_folder_that_cannot_be_written_falls_back_to_memory(tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "prctl"):
        pytest.skip("needs Linux")
    folder = tmp_path / "banks"
    open_bank(folder / "pixels-old", "bank", lambda path: None, lambda beside: None)
    (folder / "pixels-old" / "content").write_bytes(b"old")
    folder.chmod(0o555)
    try:
        command = [sys.executable, "-c", READ_ONLY, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    place, old, new = done.stdout.split()
    assert (old, new) == ("b'old'", "b'new'")
    assert done.stderr.count("cannot be written") == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "binsweep-banks-" in place and not Path(place).exists()


def test_a_writable_folder_is_the_homes_own(tmp_path: Path) -> None:
    assert bank_folder(tmp_path) == tmp_path / "banks"
    assert not list((tmp_path / "banks").iterdir())


def test_waiting_is_bounded_by_the_builder(tmp_path: Path) -> None:
    with start(tmp_path / "pixels-a", 1) as builder:
        assert line_of(builder) == "building"
        begin = time.monotonic()
        assert build(tmp_path / "pixels-a") == b"x" * 1000
        assert time.monotonic() - begin > 0.5 and line_of(builder) == "built"
        builder.kill()
