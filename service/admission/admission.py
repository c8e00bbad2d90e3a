"""Admission to the queue: bounded by the clients' deadlines and kept short.

A call is admitted if there is room by number and by prompt tokens, and if it can be expected to
start in time: before its deadline, and within `max_queue_seconds`. A short-lived queue is a burst,
which is fine. A standing queue, longer than `queue_burst_seconds`, only adds latency without
serving more: from then on a call is admitted only if it can start within `queue_target_seconds`,
until nothing had to be refused for as long (controlled delay: Nichols & Jacobson, 2012; for servers
Maurer, 2015). So a server at three times its capacity answers admitted calls as fast as when idle.

A call that resumes a broken stream goes before new ones of its priority, as in the engine: somebody
has read the beginning. A full or standing queue still admits some of them: half as many as may wait
at all.

Clients share. The engine serves first the client that it has served least; so a call waits behind
higher priorities, and behind as many calls of each other client as its own client has waiting. A
client that holds less than its share of the machine is admitted whatever the others have queued.

A place is taken before any work is done for a call; its prompt's tokens are added once they are
known. Open calls are bounded too, to as many as may run and wait: a call that the engine has served
stays open until its client has read it.

Invariant: each admitted index counts as waiting until it has started, then as held until its call
ends; all counts return to zero. Own code rather than gRPC's limits, which would also count Stats
and health checks. Runs only on the event loop; the clock and the engine's numbers are passed in.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from quire.service.admission.counts import Counts, add
from quire.service.admission.start_rate import StartRate
from quire.service.errors import (
    Refusal,
    calls_open,
    queue_full,
    queue_too_long,
    tokens_waiting,
)

_MIN_RETRY, _MAX_RETRY = 0.1, 30.0
_UNKNOWN_RETRY = 1.0  # clients try two or three times: at 0.1 s they would soon have given up
_SHED_RETRY = 1.0  # seconds, at least, while a standing queue is reduced
_STALLED = 0.5  # seconds: a call that waited this long waits for memory, even if slots are free


def _level(priority: int, resumes: bool) -> int:
    """The order: by priority, and within one, resumed calls before new ones."""
    return 2 * priority + resumes


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits. slots: completions that the engine runs at once. Times in seconds."""

    slots: int
    max_waiting: int = 1024
    max_waiting_tokens: int | None = None
    max_queue_seconds: float = 60.0
    queue_target_seconds: float = 0.02
    queue_burst_seconds: float = 5.0


class Place:
    """A call's place: released index by index as they start, and wholly at its end."""

    __slots__ = (
        "_admission",
        "_left",
        "client",
        "entered_at",
        "level",
        "n",
        "started_at",
        "tokens",
    )

    def __init__(
        self, admission: "Admission", client: str, level: int, n: int, tokens: int, now: float
    ) -> None:
        self._admission = admission
        self.client = client
        self.level = level
        self.n = n
        self.tokens = tokens
        self.entered_at = now  # or when its prompt had been read
        self.started_at: float | None = None
        self._left = n

    def read(self, tokens: int) -> None:
        """The prompt has this many tokens: from now on the call only waits for the engine. Raises
        Refusal if too many tokens wait."""
        self._admission._read(self, tokens)

    def started(self) -> None:
        """One index has been scheduled."""
        if self._left:
            self._left -= 1
            self._admission._started(self)

    def leave(self) -> None:
        """The call has ended. Repeated calls have no effect."""
        if self.n:
            left, self._left = self._left, 0
            n, self.n = self.n, 0
            self._admission._left(self, left, n)


class Admission:
    """Decides which calls may enter the queue."""

    def __init__(
        self,
        policy: Policy,
        running: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """running: number of completions that the engine reports as running."""
        self.policy = policy
        self._engine_running = running
        self._clock = clock
        self.waiting = 0
        self.waiting_tokens = 0
        self._held: Counts = {}  # indices let in and not ended, by client
        self._open = 0  # all of them
        self._queues: dict[int, Counts] = {}  # waiting indices by level and client
        self._in_line: dict[Place, None] = {}  # places with waiting indices, oldest first
        now = clock()
        self._rate = StartRate(now)
        self._short_at = now  # when the queue was last short
        self._refused_at = float("-inf")  # when a call was last refused because it was too long

    # ------------------------------------------------------------ in

    def enter(
        self,
        client: str = "",
        n: int = 1,
        priority: int = 0,
        tokens: int | None = 0,
        remaining: float | None = None,
        *,
        resumes: bool = False,
    ) -> Place:
        """Take a place for n indices of a prompt of `tokens` tokens; None: `Place.read` will say
        how many.

        remaining: seconds to the call's deadline; None: it has none. resumes: the call continues
        from outputs that its client holds. Raises Refusal.
        """
        now = self._clock()
        level = _level(priority, resumes)
        free = self._look(now)
        at_once = self.waiting < min(free, self.policy.max_waiting)
        if not at_once:
            self._check_room(client, n, level, now)
        self._check_open(client, n, level, now)
        if tokens is not None:
            self._check_tokens(client, level, tokens, now)
        if not at_once:
            self._check_wait(client, n, level, remaining, now)
        place = Place(self, client, level, n, 0, now)
        self.waiting += n
        self._open += n
        add(self._held, client, n)
        add(self._queues.setdefault(level, {}), client, n)
        if tokens is not None:
            self._line_up(place, tokens)
        if self.waiting > free:  # otherwise the queue is as short as it was
            self._note(free, now)
        return place

    def _line_up(self, place: Place, tokens: int) -> None:
        place.tokens = tokens
        self.waiting_tokens += tokens
        self._in_line[place] = None

    def _check_room(self, client: str, n: int, level: int, now: float) -> None:
        """Beyond max_waiting only a client with less than its share of the places may wait, and
        nobody beyond twice as many: so one client cannot keep the others out."""
        most = self.policy.max_waiting
        if self.waiting < most or self._reserved(n, level):
            return
        own = sum(queue.get(client, 0) for queue in self._queues.values())
        clients = len({name for queue in self._queues.values() for name in queue} | {client})
        if self.waiting >= 2 * most or (own + n) * clients > most:
            retry = self._retry(self.estimate(client, level, now))
            raise queue_full(self.waiting, most, retry)

    def _reserved(self, n: int, level: int) -> bool:
        """Whether one of the places reserved for resumed calls is free."""
        resumed = sum(sum(queue.values()) for other, queue in self._queues.items() if other % 2)
        return level % 2 == 1 and resumed + n <= self.policy.max_waiting // 2

    def _check_open(self, client: str, n: int, level: int, now: float) -> None:
        """Like _check_room, for everything that is open, whether it waits, runs, or waits to be
        read."""
        most = self.policy.slots + self.policy.max_waiting
        if self._open < most or (self._open < 2 * most and self._reserved(n, level)):
            return
        clients = len(self._held.keys() | {client})
        if self._open >= 2 * most or (self._held.get(client, 0) + n) * clients > most:
            raise calls_open(self._open, most, self._retry(self.estimate(client, level, now)))

    def _check_tokens(self, client: str, level: int, tokens: int, now: float) -> None:
        most = self.policy.max_waiting_tokens
        if most is not None and self.waiting_tokens and self.waiting_tokens + tokens > most:
            retry = self._retry(self.estimate(client, level, now))
            raise tokens_waiting(self.waiting_tokens, tokens, most, retry)

    def _check_wait(
        self, client: str, n: int, level: int, remaining: float | None, now: float
    ) -> None:
        estimate = self.estimate(client, level, now)
        limit, option = self.policy.max_queue_seconds, "max_queue_seconds"
        spared = self._reserved(n, level) or self._below_share(client, n, now)
        standing = self.standing(now) and not spared
        if standing and self.policy.queue_target_seconds < limit:
            limit, option = self.policy.queue_target_seconds, "queue_target_seconds"
        late = remaining is not None and estimate > remaining
        if estimate > limit:
            self._refused_at = now
            retry = max(self._retry(estimate), _SHED_RETRY if standing else 0.0)
            raise queue_too_long(estimate, limit, option, retry)
        if late:
            assert remaining is not None
            retry = self._retry(estimate - remaining)
            raise queue_too_long(estimate, remaining, "the call's deadline", retry)

    # ------------------------------------------------------------ the estimate

    def estimate(self, client: str, level: int, now: float) -> float:
        """Seconds until one more call of this client would start, with its first index; 0 if at
        once, or if nothing is known about how fast the queue moves."""
        excess = self._ahead(client, level) + 1 - self._free(now)
        if excess <= 0:
            return 0.0
        rate = self._rate.per_second(self._running(), now)
        return 0.0 if rate is None else excess / rate

    def estimated_wait(self) -> float:
        """The estimated wait of one more call of a client that has none."""
        return self.estimate("", 0, self._clock())

    def _ahead(self, client: str, level: int) -> int:
        """Waiting indices that go first: all of higher levels; of this one, each client's up to
        as many as this client then has. (Ageing lets one in eight through earlier.)"""
        ahead = 0
        for other, queue in self._queues.items():
            if other > level:
                ahead += sum(queue.values())
            elif other == level:
                own = queue.get(client, 0)
                ahead += sum(min(count, own + 1) for name, count in queue.items() if name != client)
                ahead += own
        return ahead

    def _running(self) -> int:
        """Running completions: the engine's count, or those that were admitted and not seen to
        end, whichever is less. The engine does not count a stream whose reader has yet to take
        its end."""
        mine = self._open - self.waiting
        return mine if self._engine_running is None else min(mine, self._engine_running())

    def _free(self, now: float) -> int:
        """Slots that no one has: those waiting are about to take theirs."""
        return 0 if self._stalled(now) else max(self.policy.slots - self._running(), 0)

    def _stalled(self, now: float) -> bool:
        """Whether requests wait although slots are free: the cache is full."""
        oldest = next(iter(self._in_line), None)
        return oldest is not None and now - oldest.entered_at > _STALLED

    def _below_share(self, client: str, n: int, now: float) -> bool:
        """Whether the client would hold no more than its share of what runs at once."""
        slots = self._running() if self._stalled(now) else self.policy.slots
        others = len(self._held) - (client in self._held)
        return others > 0 and (self._held.get(client, 0) + n) * (others + 1) <= slots

    # ------------------------------------------------------------ bursts and standing queues

    def standing(self, now: float) -> bool:
        """Whether there is a standing queue, or was until a moment ago."""
        moment = self.policy.queue_burst_seconds
        return now - self._short_at > moment or now - self._refused_at < moment

    def _look(self, now: float) -> int:
        """Note whether the queue is short, after every change of it. Returns the slots free."""
        free = self._free(now)
        self._note(free, now)
        return free

    def _note(self, free: int, now: float) -> None:
        queued = self.waiting > free
        self._rate.queue(queued, now)
        if not queued:
            self._short_at = now

    def _retry(self, seconds: float) -> float:
        """Seconds after which asking again makes sense. seconds: as estimated; 0: not known."""
        return min(max(seconds, _MIN_RETRY), _MAX_RETRY) if seconds else _UNKNOWN_RETRY

    # ------------------------------------------------------------ what places tell

    def _read(self, place: Place, tokens: int) -> None:
        now = self._clock()
        if self.policy.max_waiting_tokens is not None:
            self._check_tokens(place.client, place.level, tokens, now)
        place.entered_at = now  # the engine has let it wait from now on only
        self._line_up(place, tokens)

    def _started(self, place: Place) -> None:
        now = self._clock()
        if place.started_at is None:
            place.started_at = now
            self.waiting_tokens -= place.tokens  # siblings share the prompt
            place.tokens = 0
        self._rate.started(now)
        self._unqueue(place, 1)
        self._look(now)

    def _left(self, place: Place, unstarted: int, n: int) -> None:
        now = self._clock()
        if unstarted:
            self._unqueue(place, unstarted)
        self.waiting_tokens -= place.tokens
        place.tokens = 0
        self._open -= n
        add(self._held, place.client, -n)
        if place.started_at is not None:
            for _ in range(n - unstarted):
                self._rate.ended(now - place.started_at)
        self._look(now)

    def _unqueue(self, place: Place, count: int) -> None:
        self.waiting -= count
        queue = self._queues[place.level]
        add(queue, place.client, -count)
        if not queue:
            del self._queues[place.level]
        if not place._left:
            self._in_line.pop(place, None)


__all__ = ["Admission", "Place", "Policy", "Refusal"]
