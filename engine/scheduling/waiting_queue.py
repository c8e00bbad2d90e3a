"""Requests that wait for a slot, and who goes next.

Rank: priority, then the client that has been served the fewest tokens (`shares`), then arrival. A
request that resumes a broken output goes before its client's others of the same priority, and its
client counts as served HEAD_START tokens less: a reader is waiting in mid-sentence. More than that
nobody gains by it, so shares stay fair whoever says that he resumes.
Every AGEING-th admission goes to the longest waiting request whatever its rank, and lifts it to the
highest waiting priority, so nothing starves for ever.

Invariant: `len` counts exactly the waiting requests, held ones included. Entries of requests that
no longer wait are dropped lazily; a heap never holds many more dead entries than live ones, and
none when nobody waits. An admission costs a time logarithmic in the number of clients and requests
that wait: of each client the first request stands in one heap of all clients, whose ranks only rise
while it waits there, by what the client is served; one that falls comes with a `push`.
"""

import heapq

from quire.engine.scheduling.rising_heap import RisingHeap
from quire.engine.scheduling.sequence import Request, Status
from quire.engine.scheduling.shares import Shares

AGEING = 8
HEAD_START = 16_384  # tokens


class WaitingQueue:
    """Heaps of waiting requests, one a client; and siblings held back for their leader."""

    def __init__(self) -> None:
        self.shares = Shares()
        self._ranked: dict[str, list[tuple[int, bool, int, Request]]] = {}
        self._clients: RisingHeap[str] = RisingHeap(self._rank)
        self._oldest: list[tuple[int, Request]] = []
        self._held: dict[Request, list[Request]] = {}
        self._live = 0
        self._admissions = 0

    def __len__(self) -> int:
        return self._live

    # ------------------------------------------------------------ clients

    def enter(self, client: str) -> None:
        """One more unfinished request of this client."""
        self.shares.enter(client)

    def leave(self, client: str) -> None:
        """One less; a client without any is forgotten."""
        self.shares.leave(client)
        if client not in self.shares:
            self._ranked.pop(client, None)
            self._clients.discard(client)

    # ------------------------------------------------------------ requests

    def push(self, request: Request) -> None:
        """Queue a request under its own arrival: a preempted one comes before later arrivals."""
        request.status = Status.WAITING
        self._live += 1
        self._insert(request)

    def hold(self, leader: Request, follower: Request) -> None:
        """Keep a sibling waiting until `release(leader)`."""
        follower.status = Status.WAITING
        self._live += 1
        self._held.setdefault(leader, []).append(follower)

    def release(self, leader: Request) -> None:
        """Let the siblings held for a leader compete from now on."""
        for follower in self._held.pop(leader, ()):
            if follower.status is Status.WAITING:
                self._insert(follower)

    def head(self) -> Request | None:
        """Who goes next, left where it is; None if nobody can."""
        if self._admissions % AGEING == AGEING - 1:
            return self._first_arrived()
        return self._first_ranked()

    def take(self, request: Request) -> None:
        """The head is admitted (its status says so from now on)."""
        if self._admissions % AGEING == AGEING - 1:
            ranked = self._first_ranked()
            if ranked is not None:
                request.priority = max(request.priority, ranked.priority)
        self._admissions += 1
        request.status = Status.RUNNING
        self._live -= 1
        self._trim()

    def forget(self, request: Request) -> None:
        """A waiting request has ended (its status says so already)."""
        assert request.status is not Status.WAITING
        self._live -= 1
        self._trim()

    # ------------------------------------------------------------ heaps

    def _insert(self, request: Request) -> None:
        self._rank_in(request)
        heapq.heappush(self._oldest, (request.arrival, request))
        self._clients.offer(request.spec.client)

    def _rank_in(self, request: Request) -> None:
        heap = self._ranked.setdefault(request.spec.client, [])
        fresh = not request.resumes
        heapq.heappush(heap, (-request.priority, fresh, request.arrival, request))

    def _rank(self, client: str) -> tuple[int, int, int] | None:
        """Of the client's first waiting request; None if none waits."""
        heap = self._ranked.get(client)
        while heap and heap[0][-1].status is not Status.WAITING:
            heapq.heappop(heap)
        if not heap:
            return None
        priority, fresh, arrival, _ = heap[0]
        served = self.shares.served[client]
        return priority, served if fresh else served - HEAD_START, arrival

    def _first_ranked(self) -> Request | None:
        client = self._clients.first()
        return None if client is None else self._ranked[client][0][-1]

    def _first_arrived(self) -> Request | None:
        while self._oldest and self._oldest[0][-1].status is not Status.WAITING:
            heapq.heappop(self._oldest)
        return self._oldest[0][-1] if self._oldest else None

    def _trim(self) -> None:
        if not self._live:
            self._oldest.clear()
            self._ranked.clear()
        elif len(self._oldest) > 2 * self._live + 64:
            self._sweep()

    def _sweep(self) -> None:
        """Forget entries of requests that no longer wait, and doubles of preempted ones."""
        waiting = {entry[-1]: entry for entry in self._oldest if entry[-1].status is Status.WAITING}
        self._oldest = list(waiting.values())
        heapq.heapify(self._oldest)
        self._ranked = {}
        for request in waiting:
            self._rank_in(request)
