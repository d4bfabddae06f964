"""One process of a home at a time moves the alias `champion`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from binsweep.data.locks import locked_or_refused

LOCK_TIMEOUT_SECONDS = 60.0


@contextmanager
def promotion_lock(home: Path | None) -> Iterator[None]:
    """Hold the lock of the promotions and rollbacks of `home` for the block; no lock without a home.

    MLflow cannot move an alias on condition that it has not moved since it was read. This lock closes the gap for
    processes that share a home; for others it stays as long as one request takes. Raises UserError if another
    process holds the lock for more than 60 s.
    """
    if home is None:
        yield
        return
    home.mkdir(parents=True, exist_ok=True)
    with locked_or_refused(
        home / "promotion.lock",
        LOCK_TIMEOUT_SECONDS,
        "another promotion or rollback is in progress",
        "try again when that process has ended, or end it",
    ):
        yield
