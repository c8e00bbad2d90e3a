"""Requests that wait for a slot, in rank: priority, then arrival.

Invariant: `len` counts exactly the waiting requests; one that ended while it waited is forgotten
lazily, and the heap never holds more dead entries than live ones.
"""

import heapq

from quire.engine.request import Request, Status


class WaitingQueue:
    """A heap of waiting requests."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Request]] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, request: Request) -> None:
        """Queue a request under its own arrival: a preempted one comes before later arrivals."""
        request.status = Status.WAITING
        self._live += 1
        heapq.heappush(self._heap, (-request.priority, request.arrival, request))

    def pop(self) -> Request | None:
        """The first in rank, or None."""
        while self._heap:
            request = heapq.heappop(self._heap)[-1]
            if request.status is Status.WAITING:
                self._live -= 1
                return request
        return None

    def forget(self, request: Request) -> None:
        """A waiting request has ended (its status says so already)."""
        assert request.status is not Status.WAITING
        self._live -= 1
        if len(self._heap) > 2 * self._live + 16:
            self._heap = [entry for entry in self._heap if entry[-1].status is Status.WAITING]
            heapq.heapify(self._heap)
