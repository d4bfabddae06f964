"""What a scripted strategy says about time: nothing."""


class Untimed:
    """Of a strategy that measures nothing, so that no budget changes what it does."""

    is_used_up = True  # when it has nothing more to suggest

    def note_seconds(self, number: int, seconds: float, start: float | None = None) -> None: ...

    def note_time_left(self, seconds: float, whole: float) -> None: ...

    def training_seconds(self, number: int | None = None, done: int = 0) -> float | None:
        return None

    def reachable(self, number: int, seconds: float) -> int:
        raise AssertionError("what was not measured is not shortened")

    def end_at(self, number: int, last_epoch: int) -> None:
        raise AssertionError("what was not measured is not shortened")

    def recall(self, number: int, epoch: int, value: float) -> None:
        raise AssertionError("there was no earlier process")
