"""The tags of a registered version that record its promotion."""

from datetime import UTC, datetime

CHAMPION_BEFORE = "champion.before"  # the version that it replaced as champion
CHAMPION_AGAIN = "champion.again"  # the rollback that made it champion again
DECISION, REASON = "decision", "decision.reason"
TEST_SPLIT = "test.split"  # the digest of the test split that decided
TEST_DECISIONS = "test.decisions"  # how many decisions about this model that split had made by then

NOT_JUDGED, WAITING = "not judged", "waiting for approval"  # values of DECISION


def timestamp() -> str:
    """The present time in UTC, as tags and files record it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
