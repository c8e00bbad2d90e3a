"""How many tokens each client has been served: virtual token counters (Sheng et al., 2024).

Invariant: counters are of clients with unfinished requests. One that comes, or comes back from
idleness, starts level with the least served of the others, so it neither owes nor owns. Shares are
counted in tokens, never in time.
"""

from quire.engine.scheduling.rising_heap import RisingHeap


class Shares:
    """A counter a client."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self._unfinished: dict[str, int] = {}
        self._least: RisingHeap[str] = RisingHeap(self.served.get)

    def __contains__(self, client: str) -> bool:
        """Whether the client has unfinished requests."""
        return client in self._unfinished

    def enter(self, client: str) -> None:
        """One more unfinished request of this client."""
        if client not in self._unfinished:
            least = self._least.first()
            self.served[client] = 0 if least is None else self.served[least]
            self._unfinished[client] = 0
            self._least.offer(client)
        self._unfinished[client] += 1

    def leave(self, client: str) -> None:
        """One less; a client without any is forgotten."""
        self._unfinished[client] -= 1
        if not self._unfinished[client]:
            del self._unfinished[client], self.served[client]
            self._least.discard(client)

    def charge(self, client: str, tokens: int) -> None:
        """Count tokens computed for a client."""
        self.served[client] += tokens
