"""Bring a bucket's images to a disk: only the wanted ones, many at a time, resumed after any interruption."""

import csv
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from binsweep.data.atomic_write import atomic_path
from binsweep.data.errors import UserError
from binsweep.data.locks import LockTimeout, locked
from binsweep.data.s3.bucket import Bucket
from binsweep.data.s3.download import fetch
from binsweep.data.s3.listing import PARTIAL, STATE, PhaseProgress, Selection
from binsweep.data.s3.parquet_manifest import ledger_rows, write_table
from binsweep.data.s3.pull_state import PullState, is_damage, remove_ledger
from binsweep.data.sources.folder import PULL_OUTPUTS
from binsweep.data.sources.object_names import Layout

MANIFEST, PROBLEMS = PULL_OUTPUTS


@dataclass(frozen=True, slots=True)
class PullResult:
    """How a pull ended: `fetched` objects (of `bytes`) came over the network, `images` lie in the folder."""

    images: int
    fetched: int
    bytes: int
    problems: int
    disagreements: int
    classes: dict[int, int]


def pull(
    bucket: Bucket, dest: Path, wanted: Selection, report: PhaseProgress, workers: int = 32
) -> PullResult:
    """Fetch what is wanted into `dest`, in the bucket's layout, with manifest.parquet and problems.csv.

    A pull that was interrupted goes on where it stopped, and a finished one fetches what has changed since.
    The manifest is written last: a folder without one is not complete. Raises UserError when the bucket
    cannot be read, when `dest` holds something else, is being pulled into, or cannot be written.
    """
    if dest.exists() and (not dest.is_dir() or (any(dest.iterdir()) and not (dest / STATE).is_dir())):
        raise UserError(f"{dest} exists and holds something else", "another folder, or delete this one")
    with open_pull_state(dest, wait=False) as ledger:
        _keep_selection(dest, ledger, bucket.address.uri, wanted)
        (dest / MANIFEST).unlink(missing_ok=True)
        layout, fetched, size = fetch(bucket, dest, ledger, wanted, report, workers)
        _remove_unchosen(dest, ledger, layout)
        report("writing the manifest", 0, 0)
        with atomic_path(dest / MANIFEST, dest / PARTIAL) as manifest:
            counts = write_table(manifest, ledger_rows(ledger, layout, bucket.address.uri))
            if not counts:
                raise UserError(
                    f"{bucket.address.uri} has no image that matches{_first_problem(ledger)}",
                    "other classes or ids",
                )
            disagreements = ledger.number(
                "select count(*) from documents join chosen using (id) where disagreement != ''"
            )
            _write_problems(dest, ledger)
        problems = ledger.number("select count(*) from problems")
        return PullResult(sum(counts.values()), fetched, size, problems, disagreements, counts)


@contextmanager
def open_pull_state(dest: Path, wait: bool) -> Iterator[PullState]:
    """The ledger of a folder into which this process alone writes meanwhile.

    `wait` for another process that does, or raise UserError; which is also what a full or forbidden disk
    becomes.
    """
    try:
        partial = dest / PARTIAL
        (dest / STATE).mkdir(parents=True, exist_ok=True)
        with locked(dest / STATE / "lock", timeout=-1 if wait else 0):
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            with closing(PullState(dest / STATE)) as ledger:
                yield ledger
            shutil.rmtree(partial, ignore_errors=True)
    except LockTimeout as error:
        raise UserError(
            f"another pull is writing to {dest}", "wait for it, or name another folder"
        ) from error
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            remove_ledger(dest / STATE)
            raise UserError(
                f"what was known of {dest} is damaged ({error}): {dest / STATE}/ledger.db is removed",
                "run the same command again: it fetches anew what it no longer knows",
            ) from error
        if not isinstance(error, sqlite3.OperationalError):
            raise
        raise _cannot_write(dest, error) from error
    except OSError as error:
        raise _cannot_write(dest, error) from error


def _cannot_write(dest: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"cannot write to {dest}: {reason}",
        "a place with enough room where you may write; the same command goes on where this one stopped",
    )


def _keep_selection(dest: Path, ledger: PullState, uri: str, wanted: Selection) -> None:
    """One folder holds one selection: a folder with the rest of another one would contradict its manifest."""
    asked = json.dumps({"uri": uri, **asdict(wanted)}, sort_keys=True)
    before = ledger.fact("selection")
    if before is None:
        ledger.fact("selection", asked)
    elif json.loads(before) != json.loads(asked):
        raise UserError(
            f"{dest} holds the pull of another selection: {before}", "another folder, or the same options"
        )


def _remove_unchosen(dest: Path, ledger: PullState, layout: Layout) -> None:
    """Take away what an earlier run chose and this one does not, because the bucket has changed."""
    stale = (
        "select name from images where name not in (select l.name from listed l join chosen using (id) "
        "where l.layout = ? and l.kind = 'image')"
    )
    for (name,) in list(ledger.rows(stale, (layout,))):
        (dest / name).unlink(missing_ok=True)
        (dest / "metadata" / f"{Path(name).stem}.json").unlink(missing_ok=True)
        ledger.write("delete from images where name = ?", (name,))


def _write_problems(dest: Path, ledger: PullState) -> None:
    ledger.write(
        "insert or ignore into problems select id, disagreement from documents join chosen using (id) "
        "where disagreement != ''"
    )
    with (
        atomic_path(dest / PROBLEMS, dest / PARTIAL) as file,
        file.open("w", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["id", "reason"])
        writer.writerows(ledger.rows("select id, reason from problems order by id, reason"))


def _first_problem(ledger: PullState) -> str:
    for id, reason in ledger.rows("select id, reason from problems order by id, reason limit 1"):
        return f" (the first problem: {id}, {reason})"
    return ""
