"""The waiting requests of one client, and which of them is next.

Rank: priority, then requests that resume a broken output, then the user who has been served the
fewest tokens, then arrival.

Invariant: `first` is the lowest-ranked of the requests that were pushed and still wait, in time
logarithmic in the number of users and requests. The first request of each user is in one heap.
Ranks in it only rise while a request waits; where one falls, a `push` comes with it.
"""

import heapq

from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.rising_heap import RisingHeap
from quire.engine.scheduling.shares import Counters


class ClientQueue:
    """Heaps of waiting requests, one a user."""

    def __init__(self, shares: Counters) -> None:
        """shares: of the client's users."""
        self._shares = shares
        self._ranked: dict[str, list[tuple[int, bool, int, Request]]] = {}
        self._users: RisingHeap[str] = RisingHeap(self._rank)

    def push(self, request: Request) -> None:
        """It waits."""
        user = request.spec.user
        heap = self._ranked.setdefault(user, [])
        fresh = not request.resumes
        heapq.heappush(heap, (-request.priority, fresh, request.arrival, request))
        self._users.offer(user)

    def first(self) -> Request | None:
        """The next request, left in the queue; None if the queue is empty."""
        user = self._users.first()
        return None if user is None else self._ranked[user][0][-1]

    def forget(self, user: str) -> None:
        """The user has no unfinished request."""
        self._ranked.pop(user, None)
        self._users.discard(user)

    def _rank(self, user: str) -> tuple[int, bool, int, int] | None:
        """The rank of a user's first waiting request; None if there is none."""
        heap = self._ranked.get(user)
        while heap and heap[0][-1].status is not Status.WAITING:
            heapq.heappop(heap)
        if not heap:
            return None
        priority, fresh, arrival, _ = heap[0]
        return priority, fresh, self._shares.served[user], arrival
