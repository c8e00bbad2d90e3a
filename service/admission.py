"""Who may wait, and for how long it is worth waiting.

Invariant: `waiting` is the number of indices accepted and not yet scheduled for the first time; a
call is let in only while it is below `max_waiting`. Own code rather than gRPC's limits, which would
also count Stats and health checks.
"""

from quire.service.errors import queue_full

_MIN_RETRY, _MAX_RETRY = 0.1, 30.0
_SMOOTHING = 0.1  # weight of the newest queue time in the mean


class Place:
    """A call's place in the queue: given up index by index as they start, or all at once."""

    __slots__ = ("_admission", "_left")

    def __init__(self, admission: "Admission", n: int) -> None:
        self._admission = admission
        self._left = n

    def started(self) -> None:
        """One index has been scheduled."""
        if self._left:
            self._left -= 1
            self._admission.waiting -= 1

    def leave(self) -> None:
        """The call has ended. Repeated calls are nothing."""
        self._admission.waiting -= self._left
        self._left = 0


class Admission:
    """The queue's doorkeeper."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.waiting = 0
        self._mean_wait = 0.0

    def enter(self, n: int) -> Place:
        """Take a place for n indices. Raises Refusal when the queue is full."""
        if self.waiting >= self.max_waiting:
            raise queue_full(self.waiting, self.max_waiting, self.retry_after())
        self.waiting += n
        return Place(self, n)

    def observe_wait(self, seconds: float) -> None:
        """How long an index has waited that now starts."""
        self._mean_wait += _SMOOTHING * (seconds - self._mean_wait)

    def retry_after(self) -> float:
        """Seconds after which there may be room: about as long as the queue takes now."""
        return min(max(self._mean_wait, _MIN_RETRY), _MAX_RETRY)
