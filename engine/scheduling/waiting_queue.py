"""Requests waiting for a slot, and which one is next.

Order: priority, then the client that has been served the fewest tokens (`shares`), then arrival.
Within a client, `client_queue` decides. A request that resumes a broken output comes before the
client's others, because a reader waits in mid-sentence, and its client counts as served HEAD_START
tokens less. Claiming to resume gains no more than that: shares stay fair. Every AGEING-th admission
goes to the longest waiting request whatever its rank, and raises it to the highest waiting
priority, so nothing starves.

Invariant: `len` counts exactly the waiting requests, held ones included. Entries of requests that
no longer wait are dropped lazily; a heap never holds many more dead entries than live ones, and
none when nobody waits. An admission takes time logarithmic in the number of waiting clients and
requests: one heap holds the first request of each client. A client's rank there only rises, as it
is served. Where it would fall (a `push`, or a request of another user that becomes its first) the
client is offered again. A request that waits alone is first by any rule, and in no heap.
"""

import heapq

from quire.engine.scheduling.client_queue import ClientQueue
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.rising_heap import RisingHeap
from quire.engine.scheduling.shares import Shares

AGEING = 8
HEAD_START = 16_384  # tokens


class WaitingQueue:
    """Waiting requests by client; and siblings held back for their leader."""

    def __init__(self) -> None:
        self.shares = Shares()
        self._ranked: dict[str, ClientQueue] = {}
        self._clients: RisingHeap[str] = RisingHeap(self._rank)
        self._oldest: list[tuple[int, Request]] = []
        self._held: dict[Request, list[Request]] = {}
        self._alone: Request | None = None
        self._live = 0
        self._admissions = 0

    def __len__(self) -> int:
        return self._live

    # ------------------------------------------------------------ clients

    def enter(self, client: str, user: str = "") -> None:
        """One more unfinished request of this user of the client."""
        self.shares.enter(client, user)

    def leave(self, client: str, user: str = "") -> None:
        """One less; a client without any is forgotten."""
        self.shares.leave(client, user)
        if client not in self.shares:
            self._ranked.pop(client, None)
            self._clients.discard(client)
        elif user not in self.shares.users(client) and client in self._ranked:
            self._ranked[client].forget(user)

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
        """The next request, not removed; None if there is none."""
        if self._alone is not None or not self._live:
            return self._alone
        if self._admissions % AGEING == AGEING - 1:
            return self._first_arrived()
        return self._first_ranked()

    def take(self, request: Request) -> None:
        """Admit the head; sets its status."""
        if self._alone is None and self._admissions % AGEING == AGEING - 1:
            ranked = self._first_ranked()
            if ranked is not None:
                request.priority = max(request.priority, ranked.priority)
        self._admissions += 1
        request.status = Status.RUNNING
        self._left(request)

    def forget(self, request: Request) -> None:
        """A waiting request has ended; its status is set already."""
        assert request.status is not Status.WAITING
        self._left(request)

    # ------------------------------------------------------------ heaps

    def _insert(self, request: Request) -> None:
        """One of those that wait competes from now on."""
        if self._live == 1:
            self._alone = request
            return
        if self._alone is not None:
            self._push(self._alone)
            self._alone = None
        self._push(request)

    def _push(self, request: Request) -> None:
        self._queue_of(request.spec.client).push(request)
        heapq.heappush(self._oldest, (request.arrival, request))
        self._clients.offer(request.spec.client)

    def _queue_of(self, client: str) -> ClientQueue:
        if client not in self._ranked:
            self._ranked[client] = ClientQueue(self.shares.users(client))
        return self._ranked[client]

    def _left(self, request: Request) -> None:
        """A request no longer waits; another one of its client may now be first."""
        self._live -= 1
        if request is self._alone:
            self._alone = None
        elif self._rank(request.spec.client) is not None:
            self._clients.offer(request.spec.client)
        self._trim()

    def _rank(self, client: str) -> tuple[int, int, int] | None:
        """The rank of the client's first waiting request; None if none waits."""
        queue = self._ranked.get(client)
        first = None if queue is None else queue.first()
        if first is None:
            return None
        served = self.shares.served[client] - (HEAD_START if first.resumes else 0)
        return -first.priority, served, first.arrival

    def _first_ranked(self) -> Request | None:
        client = self._clients.first()
        return None if client is None else self._ranked[client].first()

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
        """Drop entries of requests that no longer wait, and duplicates of preempted ones."""
        waiting = {entry[-1]: entry for entry in self._oldest if entry[-1].status is Status.WAITING}
        self._oldest = list(waiting.values())
        heapq.heapify(self._oldest)
        self._ranked = {}
        for request in waiting:
            self._queue_of(request.spec.client).push(request)
