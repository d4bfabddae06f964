"""Download the selected images of a bucket in parallel; an interrupted pull is resumed."""

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
from binsweep.data.labels import Label
from binsweep.data.locks import LockTimeout, locked
from binsweep.data.s3.bucket import Bucket
from binsweep.data.s3.download import download
from binsweep.data.s3.listing import PARTIAL, STATE, PhaseProgress, Selection
from binsweep.data.s3.parquet_manifest import manifest_rows, write_table
from binsweep.data.s3.pull_state import PullState, is_damage, remove_pull_state
from binsweep.data.sources.folder import PULL_OUTPUTS
from binsweep.data.sources.object_names import Layout

MANIFEST, PROBLEMS = PULL_OUTPUTS


@dataclass(frozen=True, slots=True)
class PullResult:
    """The result of a pull: `fetched` objects of `bytes` were downloaded; the folder has `images`."""

    images: int
    fetched: int
    bytes: int
    problems: int
    disagreements: int
    classes: dict[Label, int]


def pull(
    bucket: Bucket, dest: Path, selection: Selection, progress: PhaseProgress, workers: int = 32
) -> PullResult:
    """Download a selection into `dest`, in the bucket's layout, with manifest.parquet and problems.csv.

    An interrupted pull continues where it stopped; a finished one fetches what has changed since. The manifest is
    written last: a folder without it is incomplete. Raises UserError if the bucket cannot be read, or if `dest`
    holds something else, is in use by another pull, or cannot be written.
    """
    if dest.exists() and (not dest.is_dir() or (any(dest.iterdir()) and not (dest / STATE).is_dir())):
        raise UserError(f"{dest} exists and holds something else", "another folder, or delete this one")
    with open_pull_state(dest, wait=False) as state:
        _keep_selection(dest, state, bucket.address.uri, selection)
        (dest / MANIFEST).unlink(missing_ok=True)
        layout, fetched, size = download(bucket, dest, state, selection, progress, workers)
        _remove_unchosen(dest, state, layout)
        progress("writing the manifest", 0, 0)
        with atomic_path(dest / MANIFEST, dest / PARTIAL) as manifest:
            counts = write_table(manifest, manifest_rows(state, layout, bucket.address.uri), selection.labels)
            if not counts:
                problem = _first_problem(state)
                raise UserError(
                    f"{bucket.address.uri} has no image that matches{problem}",
                    "credentials that may read objects (s3:GetObject), not only list them"
                    if "answers 403" in problem
                    else "other classes or ids",
                )
            disagreements = state.scalar(
                "select count(*) from documents join chosen using (id) where disagreement != ''"
            )
            _write_problems(dest, state)
        problems = state.scalar("select count(*) from problems")
        return PullResult(sum(counts.values()), fetched, size, problems, disagreements, counts)


@contextmanager
def open_pull_state(dest: Path, wait: bool) -> Iterator[PullState]:
    """Open the state of a folder, locked for this process.

    If another process holds the lock, wait for it or, without `wait`, raise UserError. Errors of the disk become
    UserError, too.
    """
    try:
        partial = dest / PARTIAL
        (dest / STATE).mkdir(parents=True, exist_ok=True)
        with locked(dest / STATE / "lock", timeout=-1 if wait else 0):
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            with closing(PullState(dest / STATE)) as state:
                yield state
            shutil.rmtree(partial, ignore_errors=True)
    except LockTimeout as error:
        raise UserError(
            f"another pull is writing to {dest}", "wait for it, or name another folder"
        ) from error
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            remove_pull_state(dest / STATE)
            raise UserError(
                f"the state of the pull into {dest} was damaged ({error}): {dest / STATE}/ledger.db is removed",
                "run the same command again: it fetches again what is no longer recorded",
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
        "a place with enough room where you may write; the same command continues where this one stopped",
    )


def _keep_selection(dest: Path, state: PullState, uri: str, selection: Selection) -> None:
    """Raise UserError if the folder holds another selection, whose files would contradict the manifest."""
    chosen = asdict(selection)
    if selection.labels == "counts":  # as it is recorded in the folders of earlier versions
        del chosen["labels"]
    asked = json.dumps({"uri": uri, **chosen}, sort_keys=True)
    before = state.fact("selection")
    if before is None:
        state.fact("selection", asked)
    elif json.loads(before) != json.loads(asked):
        raise UserError(
            f"{dest} holds the pull of another selection: {before}", "another folder, or the same options"
        )


def _remove_unchosen(dest: Path, state: PullState, layout: Layout) -> None:
    """Remove images that an earlier run chose and this one does not because the bucket has changed."""
    stale = (
        "select name from images where name not in (select l.name from listed l join chosen using (id) "
        "where l.layout = ? and l.kind = 'image')"
    )
    for (name,) in list(state.rows(stale, (layout,))):
        (dest / name).unlink(missing_ok=True)
        (dest / "metadata" / f"{Path(name).stem}.json").unlink(missing_ok=True)
        state.write("delete from images where name = ?", (name,))


def _write_problems(dest: Path, state: PullState) -> None:
    state.write(
        "insert or ignore into problems select id, disagreement from documents join chosen using (id) "
        "where disagreement != ''"
    )
    with (
        atomic_path(dest / PROBLEMS, dest / PARTIAL) as file,
        file.open("w", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["id", "reason"])
        writer.writerows(state.rows("select id, reason from problems order by id, reason"))


def _first_problem(state: PullState) -> str:
    for id, reason in state.rows("select id, reason from problems order by id, reason limit 1"):
        return f" (the first problem: {id}, {reason})"
    return ""
