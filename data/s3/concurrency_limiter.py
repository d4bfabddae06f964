"""An adaptive limit of concurrent requests."""

import threading


class ConcurrencyLimiter:
    """A context manager that admits at most `limit` threads at once.

    The limit shrinks each time a server asks to slow down, and grows slowly again.
    """

    def __init__(self, limit: int) -> None:
        self.limit: float = limit
        self._max_limit, self._active, self._condition = limit, 0, threading.Condition()

    def __enter__(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._active < self.limit)
            self._active += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._active -= 1
            self._condition.notify()

    def record(self, slow_down: bool) -> None:
        """Adapt the limit to a response: additive increase, multiplicative decrease (Chiu and Jain, 1989)."""
        with self._condition:
            change = -0.3 * self.limit if slow_down else 1 / self.limit
            self.limit = min(float(self._max_limit), max(1.0, self.limit + change))
