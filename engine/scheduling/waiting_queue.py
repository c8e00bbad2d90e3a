"""Requests that wait for a slot, and who goes next.

Rank: priority, then the client that has been served the fewest tokens, then arrival. Shares are
counted in tokens, never in time (Sheng et al., 2024: virtual token counters): a client that comes
back from idleness starts level with the least served of the others, so it neither owes nor owns.
Every AGEING-th admission goes to the longest waiting request whatever its rank, and lifts it to the
highest waiting priority, so nothing starves for ever.

Invariant: `len` counts exactly the waiting requests, held ones included. Entries of requests that
no longer wait are dropped lazily; a heap never holds many more dead entries than live ones, and
none when nobody waits.
"""

import heapq

from quire.engine.scheduling.sequence import Request, Status

AGEING = 8


class WaitingQueue:
    """Heaps of waiting requests, one a client; and siblings held back for their leader."""

    def __init__(self) -> None:
        self._ranked: dict[str, list[tuple[int, int, Request]]] = {}
        self._oldest: list[tuple[int, Request]] = []
        self._held: dict[Request, list[Request]] = {}
        self._served: dict[str, int] = {}  # tokens, of clients with unfinished requests
        self._unfinished: dict[str, int] = {}
        self._live = 0
        self._admissions = 0

    def __len__(self) -> int:
        return self._live

    # ------------------------------------------------------------ clients

    def enter(self, client: str) -> None:
        """One more unfinished request of this client."""
        if client not in self._unfinished:
            self._served[client] = min(self._served.values(), default=0)
        self._unfinished[client] = self._unfinished.get(client, 0) + 1

    def leave(self, client: str) -> None:
        """One less; a client without any is forgotten."""
        self._unfinished[client] -= 1
        if not self._unfinished[client]:
            del self._unfinished[client], self._served[client]
            if not self._ranked.get(client):
                self._ranked.pop(client, None)

    def charge(self, client: str, tokens: int) -> None:
        """Count tokens computed for a client."""
        self._served[client] += tokens

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
        heap = self._ranked.setdefault(request.spec.client, [])
        heapq.heappush(heap, (-request.priority, request.arrival, request))
        heapq.heappush(self._oldest, (request.arrival, request))

    def _first_ranked(self) -> Request | None:
        best: tuple[int, int, int] | None = None
        first: Request | None = None
        for client in tuple(self._ranked):
            heap = self._ranked[client]
            while heap and heap[0][-1].status is not Status.WAITING:
                heapq.heappop(heap)
            if not heap:
                del self._ranked[client]
                continue
            priority, arrival, request = heap[0]
            rank = (priority, self._served[client], arrival)
            if best is None or rank < best:
                best, first = rank, request
        return first

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
            heap = self._ranked.setdefault(request.spec.client, [])
            heapq.heappush(heap, (-request.priority, request.arrival, request))
