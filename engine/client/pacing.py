"""Decides when streams are woken, so that the event loop stays below its share of a core.

Where the loop and the engine's thread share one interpreter, CPU time spent on many small messages
delays the engine's host work; where they do not, the loop itself has only one core. The pacer is a
token bucket of CPU time: it fills with wall time at the loop's share of a core, and is drained by
the CPU time that the loop's thread really used. While there is credit, streams with outputs are
woken, a few per turn of the loop, so that new calls get their turns too; without credit they wait,
and outputs are merged meanwhile. So a lone stream gets each token at once, and a thousand get one
larger delta when there is time for it. The first tokens of a few streams need no credit: it has
been used up by the arrival of their calls.

Calls that are still arriving (`NewCalls`) go before outputs, except for some first tokens: in a
burst of calls half of them would otherwise wait for the last to arrive.

Invariant: an added stream is woken once, in the order of adding, except that those with their first
tokens get three places in four; and within `PATIENCE`, or `FLOOD_PATIENCE` if new calls have held
outputs back in that time. Missing credit, floods and other work of the loop delay that by at most
the one turn of the loop that is running when the time is up.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

# Of one core, for the event loop's thread:
THREAD_SHARE = 0.25  # where the engine's thread is in the same interpreter
PROCESS_SHARE = 0.4  # where it has a process of its own: the rest is for new calls
BURST = 0.004  # seconds of CPU time that can be saved up
LONGEST_PAUSE = 0.01  # seconds; debt beyond it is forgiven
PATIENCE = 0.25  # seconds within which all waiting streams are woken, whatever the loop uses
FLOOD_PATIENCE = 4 * PATIENCE  # the same where new calls have gone first
QUIET = 0.002  # seconds without a new call after which no more are expected
TOGETHER = 0.01  # seconds between two open calls that may be a burst's
LONGEST_QUIET = 0.05  # seconds after which a call is answered, however many more come
SLICE = 8  # streams woken in one turn of the loop, as long as there is credit
FIRST_AT_ONCE = 64  # first tokens that need no credit: this many cost the engine little

_LEAST_PAUSE = 0.0005
_SLICES = 4  # between two readings of the clocks, which cost a system call

_T = TypeVar("_T")


class Wakeable(Protocol):
    """A stream whose reader can be woken."""

    def wake(self) -> None: ...


class Pacer:
    """Wakes streams on the event loop whose call_later it is given. Used on that loop only."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        share: float = THREAD_SHARE,
        calls_come: Callable[[], bool] = lambda: False,
        wall: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        """share: of one core. calls_come: whether new calls are arriving, which go first. wall and
        cpu: clocks in seconds; cpu measures the calling thread's CPU time."""
        self._call_later = call_later
        self._share = share
        self._calls_come = calls_come
        self._wall, self._cpu = wall, cpu
        self._first: deque[tuple[float, Wakeable]] = deque()  # since when each waits
        self._later: deque[tuple[float, Wakeable]] = deque()
        self._credit = BURST
        self._wall_seen, self._cpu_seen = wall(), cpu()
        self._scheduled = False
        self.unbounded = False  # the engine is idle: nothing else needs the time
        self._longest = 0  # the queue, since it was last empty
        self._paid_at = self._turn_at = self._wall_seen  # no words are owed from before
        self._held_at = float("-inf")  # when new calls last went first
        self._unsettled = 0  # slices since the last look at the clocks

    def __len__(self) -> int:
        """Streams that wait to be woken."""
        return len(self._first) + len(self._later)

    def add(self, stream: Wakeable, *, first: bool) -> None:
        """The stream has outputs; first: its first tokens. The caller must then call `run`."""
        now, waiting = self._wall(), len(self)
        if not waiting:
            self._paid_at = now
        (self._first if first else self._later).append((now, stream))
        self._longest = max(self._longest, waiting + 1)

    def run(self) -> None:
        """Wake as many as there is credit for, unless a turn that will do so is scheduled."""
        if not self._scheduled and (self._first or self._later):
            self._turn()

    def forgive(self) -> None:
        """What the loop has used until now was for nobody: it went round instead of sleeping."""
        self._credit = BURST
        self._wall_seen, self._cpu_seen = self._wall(), self._cpu()

    def _turn(self) -> None:
        """One slice; the next follows in the loop's next turn, or when there is credit again."""
        now = self._wall()
        if self._must_hold(now):
            self._held_at = self._paid_at = self._turn_at = now
            self._wake_few_first()
            self._scheduled = True
            self._call_later(QUIET, self._turn)
            return
        self._scheduled = False
        self._wake_overdue(now)
        if self._unsettled == 0:
            self._settle()
        few_first = 0 < len(self._first) <= FIRST_AT_ONCE
        if self._credit > 0 or self.unbounded or few_first:
            self._unsettled = (self._unsettled + 1) % _SLICES
            self._wake(max(SLICE, self._owed(now)))
            pause = 0.0
        else:
            pause = min(max(-self._credit / self._share, _LEAST_PAUSE), LONGEST_PAUSE)
        if self:
            self._scheduled = True
            self._call_later(pause, self._turn if pause == 0 else self._after_pause)
        else:
            self._longest = 0

    def _after_pause(self) -> None:
        """Wake streams whose pause is over, even if the loop was busy throughout."""
        self._unsettled = 0
        self._settle()
        if self._credit <= 0:
            self._credit = 0.0
            self._wake(self._owed(self._wall()))
        self._turn()

    def _must_hold(self, now: float) -> bool:
        """Whether new calls go before streams; until one of those has waited `PATIENCE`."""
        if not self or not self._calls_come():
            return False
        return now - min(queue[0][0] for queue in (self._first, self._later) if queue) < PATIENCE

    def _wake_few_first(self) -> None:
        """While new calls go first: each costs several times as much as a few first tokens."""
        if len(self._first) <= FIRST_AT_ONCE:
            for _ in range(min(SLICE, len(self._first))):
                self._first.popleft()[1].wake()

    def _owed(self, now: float) -> int:
        """How many streams must be woken now so that the longest queue drains within `PATIENCE`."""
        owed = math.ceil(self._longest * (now - self._paid_at) / PATIENCE)
        self._paid_at = now
        return owed

    def _wake_overdue(self, now: float) -> None:
        """Wake streams that would be overdue by the next turn, if it takes as long as the last."""
        in_flood = now - self._held_at < FLOOD_PATIENCE
        patience = FLOOD_PATIENCE if in_flood else PATIENCE
        ahead = min(now - self._turn_at, patience / 2) + LONGEST_PAUSE
        self._turn_at = now
        for queue in (self._first, self._later):
            while queue and queue[0][0] <= now + ahead - patience:
                queue.popleft()[1].wake()

    def _settle(self) -> None:
        wall, cpu = self._wall(), self._cpu()
        self._credit += self._share * (wall - self._wall_seen) - (cpu - self._cpu_seen)
        self._credit = max(min(self._credit, BURST), -self._share * LONGEST_PAUSE)
        self._wall_seen, self._cpu_seen = wall, cpu

    def _wake(self, count: int) -> None:
        for i in range(min(count, len(self))):
            others_turn = i % 4 == 0 and count > 1
            queue = self._later if others_turn or not self._first else self._first
            (queue or self._first).popleft()[1].wake()


class NewCalls(Generic[_T]):
    """Detects bursts of calls as they arrive.

    Two calls that arrive close together are a burst, unless the first has ended by then: a client
    that makes one call after another waits for each, so no other is on its way. In a burst, calls
    go before streams' outputs (the pacer asks `coming`) and before their own acknowledgements: a
    call takes several turns of the loop to arrive, and a turn full of messages delays every call
    behind it. A call that arrives alone delays nobody, and an endless flood is not treated as a
    burst for long.
    """

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        answer: Callable[[list[_T]], None],
        wall: Callable[[], float] = time.monotonic,
    ) -> None:
        """answer: tells the streams, in order, that they are known; none came for a moment."""
        self._call_later = call_later
        self._answer = answer
        self._wall = wall
        self._unanswered: dict[_T, None] = {}  # in order
        self._unanswered_since = 0.0
        self._looking = False
        self._burst_since = self._last_at = wall() - 2 * PATIENCE  # calm until now
        self._follows = False  # the last call came together with one before it
        self._last: _T | None = None  # unless it has ended

    def add(self, stream: _T) -> None:
        """A new call has arrived."""
        now = self._wall()
        gap = now - self._last_at
        self._follows = gap < TOGETHER and self._last is not None
        self._last = stream
        if gap >= QUIET:  # calm is given back twice over, but not the moment that was held up
            self._burst_since = max(self._burst_since, self._last_at - PATIENCE)
            self._burst_since = min(self._burst_since + 2 * (gap - QUIET), now)
        self._last_at = now
        if not self._unanswered:
            self._unanswered_since = now
        self._unanswered[stream] = None
        if not self._looking:
            self._looking = True
            self._call_later(QUIET, self._look)

    def forget(self, stream: _T) -> None:
        """The call has ended, answered or not."""
        self._unanswered.pop(stream, None)
        if self._last is stream:
            self._last = None

    def coming(self) -> bool:
        """Whether more calls are likely right now; for at most `PATIENCE`, which the time that
        calls do not hold up restores twice as fast: so, of a flood, at most half is held up."""
        if not self._follows:
            return False
        now = self._wall()
        lately = now - self._last_at < QUIET
        return lately and now - self._burst_since < PATIENCE

    def _look(self) -> None:
        due = min(self._last_at + QUIET, self._unanswered_since + LONGEST_QUIET)
        wait = due - self._wall()
        if wait > QUIET / 10:
            self._call_later(wait, self._look)
            return
        self._looking = False
        unanswered, self._unanswered = self._unanswered, {}
        self._answer(list(unanswered))
