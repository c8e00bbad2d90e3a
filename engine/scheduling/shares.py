"""How many tokens each client has been served: virtual token counters (Sheng et al., 2024).

A client may serve users of its own: they divide the client's share by counters of the same kind, so
naming users gains a client nothing.

Invariant: only clients and users with unfinished requests have counters. One that arrives, or
returns after being idle, starts level with the least served of the others: it has neither debt nor
credit. Shares are counted in tokens, never in time.
"""

from quire.engine.scheduling.rising_heap import RisingHeap


class Counters:
    """One a name."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self._unfinished: dict[str, int] = {}
        self._least: RisingHeap[str] = RisingHeap(self.served.get)  # not the first, while alone

    def __contains__(self, name: str) -> bool:
        """Whether it has unfinished requests."""
        return name in self._unfinished

    def enter(self, name: str) -> None:
        """One more unfinished request."""
        if not self._unfinished:
            self.served[name], self._unfinished[name] = 0, 0
        elif name not in self._unfinished:
            if len(self._unfinished) == 1:  # which came alone
                self._least.offer(*self._unfinished)
            least = self._least.first()
            assert least is not None
            self.served[name], self._unfinished[name] = self.served[least], 0
            self._least.offer(name)
        self._unfinished[name] += 1

    def leave(self, name: str) -> None:
        """One request fewer; forget the counter after the last."""
        self._unfinished[name] -= 1
        if not self._unfinished[name]:
            del self._unfinished[name], self.served[name]
            self._least.discard(name)


class Shares:
    """Token counters: one per client, and one per user of a client."""

    def __init__(self) -> None:
        self._clients = Counters()
        self._users: dict[str, Counters] = {}

    @property
    def served(self) -> dict[str, int]:
        """Tokens by client."""
        return self._clients.served

    def __contains__(self, client: str) -> bool:
        """Whether the client has unfinished requests."""
        return client in self._clients

    def users(self, client: str) -> Counters:
        """The counters of a client's users. The client has unfinished requests."""
        return self._users[client]

    def enter(self, client: str, user: str = "") -> None:
        """One more unfinished request of this user of the client."""
        self._clients.enter(client)
        if client not in self._users:
            self._users[client] = Counters()
        self._users[client].enter(user)

    def leave(self, client: str, user: str = "") -> None:
        """One request fewer; forget the client and the user after their last."""
        self._clients.leave(client)
        if client in self._clients:
            self._users[client].leave(user)
        else:
            del self._users[client]

    def charge(self, client: str, tokens: int, user: str = "") -> None:
        """Count tokens computed for a user of a client."""
        self._clients.served[client] += tokens
        self._users[client].served[user] += tokens
