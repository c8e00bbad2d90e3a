"""The slow twin of the waiting queue: the same rule, by looking at everybody each time."""

from collections import Counter

from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.waiting_queue import AGEING, HEAD_START


class SlowShares:
    """See Shares."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self.served_users: dict[tuple[str, str], int] = {}
        self._unfinished: Counter[str] = Counter()
        self._unfinished_users: Counter[tuple[str, str]] = Counter()

    def enter(self, client: str, user: str = "") -> None:
        if not self._unfinished[client]:
            self.served[client] = min(self.served.values(), default=0)
        if not self._unfinished_users[client, user]:
            others = [tokens for (who, _), tokens in self.served_users.items() if who == client]
            self.served_users[client, user] = min(others, default=0)
        self._unfinished[client] += 1
        self._unfinished_users[client, user] += 1

    def leave(self, client: str, user: str = "") -> None:
        self._unfinished[client] -= 1
        self._unfinished_users[client, user] -= 1
        if not self._unfinished[client]:
            del self.served[client]
        if not self._unfinished_users[client, user]:
            del self.served_users[client, user]

    def charge(self, client: str, tokens: int, user: str = "") -> None:
        self.served[client] += tokens
        self.served_users[client, user] += tokens


class SlowQueue:
    """See WaitingQueue."""

    def __init__(self) -> None:
        self.shares = SlowShares()
        self.enter, self.leave = self.shares.enter, self.shares.leave
        self._waiting: list[Request] = []
        self._held: dict[Request, list[Request]] = {}
        self._admissions = 0

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(held) for held in self._held.values())

    def push(self, request: Request) -> None:
        request.status = Status.WAITING
        self._waiting.append(request)

    def hold(self, leader: Request, follower: Request) -> None:
        follower.status = Status.WAITING
        self._held.setdefault(leader, []).append(follower)

    def release(self, leader: Request) -> None:
        self._waiting += self._held.pop(leader, [])

    def head(self) -> Request | None:
        if self._admissions % AGEING == AGEING - 1:
            return min(self._waiting, key=lambda r: r.arrival, default=None)
        return self._first_ranked()

    def take(self, request: Request) -> None:
        ranked = self._first_ranked()
        if self._admissions % AGEING == AGEING - 1 and ranked is not None:
            request.priority = max(request.priority, ranked.priority)
        self._admissions += 1
        request.status = Status.RUNNING
        self._waiting.remove(request)

    def forget(self, request: Request) -> None:
        for requests in (self._waiting, *self._held.values()):
            if request in requests:
                requests.remove(request)

    def _first_ranked(self) -> Request | None:
        def own(request: Request) -> tuple[int, bool, int, int]:
            served = self.shares.served_users[request.spec.client, request.spec.user]
            fresh = not request.spec.resume_token_ids
            return -request.priority, fresh, served, request.arrival

        def rank(request: Request) -> tuple[int, int, int]:
            served = self.shares.served[request.spec.client]
            if request.spec.resume_token_ids:
                served -= HEAD_START
            return -request.priority, served, request.arrival

        clients = {request.spec.client for request in self._waiting}
        firsts = [
            min((r for r in self._waiting if r.spec.client == client), key=own)
            for client in clients
        ]
        return min(firsts, key=rank, default=None)
