import errno
import math
import os
import resource
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binsweep.data.errors import UserError
from binsweep.tracking.runlog.batching import plan_runs
from binsweep.tracking.runlog.spool import MARK, Record, Spool, encode_record


def ignore(record: Record) -> None:
    pass


def metrics(n: int) -> Record:
    values = {"loss": n / 7, "nan": math.nan, "text\N{PACKAGE}": math.inf}
    return {"kind": "metrics", "at": n, "key": f"trial-{n % 3}", "step": n, "values": values}


def all_waiting(directory: Path) -> tuple[list[Record], int]:
    """What a new owner of the spool would send, and the damaged stretches it found."""
    spool = Spool(directory, ignore)
    batch = []
    while part := spool.take(7):
        batch += part
    assert len(batch) == spool.unsent
    spool.close()
    return batch, spool.damaged


def spool_of(directory: Path, content: bytes) -> None:
    (directory / "runlog-0123456789ab.spool").write_bytes(content)


RECORDS = [{"n": n, **metrics(n)} for n in range(1, 13)]
FRAMES = [encode_record(record) for record in RECORDS]
TEXTS = {record["n"]: str(record) for record in RECORDS}  # as text: a NaN equals itself

# Each example syncs its spool several times: in memory where there is such a folder.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

POSITION = st.integers(0, sum(map(len, FRAMES)) - 1)
WOUND = st.one_of(
    st.tuples(st.just("cut"), POSITION, POSITION),
    st.tuples(st.just("flip"), POSITION, st.integers(0, 7)),
    st.tuples(st.just("double"), POSITION, POSITION),
    st.tuples(st.just("double record"), st.integers(0, 11), st.integers(0, 11)),
    st.tuples(st.just("mark"), POSITION, POSITION),
)


def wounded(content: bytes, kind: str, a: int, b: int) -> bytes:
    low, high = min(a, b), max(a, b)
    match kind:
        case "cut":
            return content[:low] + content[high:]
        case "flip":
            flipped = bytearray(content)
            if flipped:
                flipped[a % len(flipped)] ^= 1 << b
            return bytes(flipped)
        case "double":
            return content[:high] + content[low:high] + content[high:]
        case "double record":
            at = content.find(FRAMES[b])
            return content if at < 0 else content[:at] + FRAMES[a] + content[at:]
        case _:
            return content[:a] + MARK + content[a:]


@settings(max_examples=200, deadline=None)
@given(st.lists(WOUND, max_size=5))
def test_damage_costs_only_what_it_touches(wounds: list[tuple[str, int, int]]) -> None:
    assert_only_damage_is_lost(wounds)


@pytest.mark.integration
def test_a_thousand_damaged_spools(figure: Callable[[str], None]) -> None:
    seen = Counter[str]()

    @settings(max_examples=1000, deadline=None)
    @given(st.lists(WOUND, min_size=1, max_size=5))
    def damage(wounds: list[tuple[str, int, int]]) -> None:
        assert_only_damage_is_lost(wounds)
        seen.update(kind for kind, _, _ in wounds)
        seen["spools"] += 1

    damage()
    assert seen["spools"] >= 1000
    told = ", ".join(f"{seen[kind]} {kind}" for kind in ("cut", "flip", "double", "double record", "mark"))
    figure(f"{seen['spools']} damaged spools ({told}): no crash, no invented value, all that is whole kept")


def assert_only_damage_is_lost(wounds: list[tuple[str, int, int]]) -> None:
    content = b"".join(FRAMES)
    for wound in wounds:
        content = wounded(content, *wound)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        spool_of(Path(folder), content)
        batch, _ = all_waiting(Path(folder))
        taken = [record["n"] for record in batch]
        # Never an invented or a changed value, never one twice.
        assert all(str(record) == TEXTS[record["n"]] for record in batch)
        assert len(taken) == len(set(taken))
        # Whatever is still whole is kept.
        assert {n for n, frame in enumerate(FRAMES, 1) if frame in content} == set(taken)
        plans = plan_runs(batch)
        assert sum(len(plan.metrics) for plan in plans) == 3 * len(batch)
        # And it goes on: a new record is told from all the old ones.
        spool = Spool(Path(folder), ignore)
        spool.append(metrics(99))
        spool.close()
        after, _ = all_waiting(Path(folder))
        assert [record["step"] for record in after if record["n"] not in taken] == [99]


def test_a_torn_tail_is_skipped_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = b"".join(FRAMES[:2])
    for length in range(1, len(FRAMES[2])):
        spool_of(tmp_path, whole + FRAMES[2][:length])
        batch, damaged = all_waiting(tmp_path)
        assert ([record["n"] for record in batch], damaged) == ([1, 2], 1)


def test_a_record_larger_than_any_read_is_found_behind_damage(tmp_path: Path) -> None:
    large = encode_record({"n": 2, "kind": "tags", "key": "sweep", "values": {"note": "x" * 300_000}})
    for pad in range(65536 - 6, 65536 + 6):  # so that marks straddle the ends of chunks
        spool_of(tmp_path, b"?" * pad + FRAMES[0] + large + b"?" * pad + FRAMES[2])
        batch, damaged = all_waiting(tmp_path)
        assert ([record["n"] for record in batch], damaged) == ([1, 2, 3], 2)


def test_what_was_sent_is_not_sent_again_even_if_the_file_was_cut(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ignore)
    for n in range(10):
        spool.append(metrics(n))
    first = spool.take(6)
    spool.acknowledge([record["n"] for record in first])
    assert spool.unsent == 4
    assert [record["step"] for record in spool.take(100)] == [6, 7, 8, 9]
    spool.close()  # the last four were read, but never acknowledged
    content = spool.path.read_bytes()
    spool.path.write_bytes(content[len(encode_record(first[0])) :])
    assert [record["step"] for record in all_waiting(tmp_path)[0]] == [6, 7, 8, 9]
    spool.path.write_bytes(b"")  # all lost: new numbers must still not be taken for sent ones
    again = Spool(tmp_path, ignore)
    again.append(metrics(50))
    again.close()
    assert [record["step"] for record in all_waiting(tmp_path)[0]] == [50]


@pytest.mark.parametrize(
    "note", [b"", b"garbage", encode_record({"n": 5})[:-1], encode_record({"n": 5}).replace(b"5", b"7")]
)
def test_a_damaged_note_of_what_was_sent_means_sending_all(note: bytes, tmp_path: Path) -> None:
    spool_of(tmp_path, b"".join(FRAMES))
    (tmp_path / "runlog-0123456789ab.sent").write_bytes(note)
    assert len(all_waiting(tmp_path)[0]) == 12


def test_many_threads_may_append(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ignore)

    def work(thread: int) -> None:
        for n in range(200):
            spool.append({"kind": "tags", "key": f"trial-{thread}", "values": {"n": n}})

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert spool.unsent == 1600
    spool.close()
    batch, damaged = all_waiting(tmp_path)
    assert damaged == 0
    assert [record["n"] for record in batch] == list(range(1, 1601))
    for thread in range(8):
        mine = [record["values"]["n"] for record in batch if record["key"] == f"trial-{thread}"]
        assert mine == list(range(200))


def test_a_full_disk_is_told_and_costs_only_that_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ignore)
    spool.append(metrics(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.path.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OSError):
            spool.append(metrics(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.append(metrics(3))
    assert [record["step"] for record in spool.take(10)] == [1, 3]
    spool.close()
    batch, damaged = all_waiting(tmp_path)
    assert ([record["step"] for record in batch], damaged) == ([1, 3], 1)


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    spool = Spool(tmp_path, ignore)
    with pytest.raises(UserError, match=r"in use by process [0-9]+"):
        Spool(tmp_path, ignore)
    spool.close()
    Spool(tmp_path, ignore).close()


def test_a_disk_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("binsweep.data.locks.fcntl.flock", flock)
    with pytest.raises(UserError, match=r"runlog\.lock cannot be locked: No locks available") as refused:
        Spool(tmp_path, ignore)
    assert "BINSWEEP_HOME" in refused.value.hint


def test_a_spool_keeps_its_identity(tmp_path: Path) -> None:
    first = Spool(tmp_path, ignore)
    first.append(metrics(1))
    first.close()
    seen: list[Record] = []
    second = Spool(tmp_path, seen.append)
    second.close()
    assert (first.fresh, second.fresh) == (True, False)
    assert first.identity == second.identity != Spool(tmp_path / "other", ignore).identity
    assert [record["step"] for record in seen] == [1]
