"""How many tokens each client has been served: virtual token counters (Sheng et al., 2024).

A client may serve users of its own: they share what the client gets, by counters of the same kind,
and nobody gets more by naming users.

Invariant: counters are of clients, and of users, with unfinished requests. One that comes, or comes
back from idleness, starts level with the least served of the others, so it neither owes nor owns.
Shares are counted in tokens, never in time.
"""

from quire.engine.scheduling.rising_heap import RisingHeap


class Counters:
    """One a name."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self._unfinished: dict[str, int] = {}
        self._least: RisingHeap[str] = RisingHeap(self.served.get)

    def __contains__(self, name: str) -> bool:
        """Whether it has unfinished requests."""
        return name in self._unfinished

    def enter(self, name: str) -> None:
        """One more unfinished request."""
        if name not in self._unfinished:
            least = self._least.first()
            self.served[name] = 0 if least is None else self.served[least]
            self._unfinished[name] = 0
            self._least.offer(name)
        self._unfinished[name] += 1

    def leave(self, name: str) -> None:
        """One less; a name without any is forgotten."""
        self._unfinished[name] -= 1
        if not self._unfinished[name]:
            del self._unfinished[name], self.served[name]
            self._least.discard(name)


class Shares:
    """A counter a client, and one a user of it."""

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
        """Of a client that has unfinished requests."""
        return self._users[client]

    def enter(self, client: str, user: str = "") -> None:
        """One more unfinished request of this user of the client."""
        self._clients.enter(client)
        self._users.setdefault(client, Counters()).enter(user)

    def leave(self, client: str, user: str = "") -> None:
        """One less; who has none is forgotten."""
        self._clients.leave(client)
        if client in self._clients:
            self._users[client].leave(user)
        else:
            del self._users[client]

    def charge(self, client: str, tokens: int, user: str = "") -> None:
        """Count tokens computed for a user of a client."""
        self._clients.served[client] += tokens
        self._users[client].served[user] += tokens
