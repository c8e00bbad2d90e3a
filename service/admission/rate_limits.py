"""What one client may have: calls a second, tokens a second, streams at a time.

Invariant: over any time a client gets at most `burst + rate * time` calls and tokens (and one call
more, whatever its size), and never more than `max_streams_per_client` open calls. A client that
owes and holds nothing is forgotten, so what is kept does not grow with the clients that have ever
been seen.

Tokens are taken from a bucket (Turner, 1986) that may go into debt. A call is let in while the
bucket is above zero. It takes its prompt and all the tokens it may make, and gives back at its end
those that it did not make. So a call larger than the burst is not refused for ever.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quire.service.errors import invalid_field, rate_limited, too_many_streams

Clock = Callable[[], float]

_SWEEP = 1024  # clients, at least, before anyone is forgotten
_STREAM_RETRY = 1.0  # seconds: when a stream of its own ends only the client can know


class TokenBucket:
    """Holds at most `burst`, gains `rate` a second; may be overdrawn."""

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def level(self, now: float) -> float:
        """What the bucket holds at a time; below zero it is in debt."""
        self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take an amount, into debt if need be; a negative one gives back."""
        self._level = min(self.burst, self.level(now) - amount)

    def wait(self, least: float, now: float) -> float:
        """Seconds until it holds `least`; 0 if it does."""
        return max(0.0, (least - self.level(now)) / self.rate)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of each client: per second, with bursts worth this many seconds; None: no
    limit."""

    requests: float | None = None
    tokens: float | None = None
    burst_seconds: float = 10.0
    streams: int | None = None

    @property
    def any(self) -> bool:
        return not (self.requests is None and self.tokens is None and self.streams is None)


class _Account:
    __slots__ = ("requests", "streams", "tokens")

    def __init__(self, limits: Limits, now: float) -> None:
        self.streams = 0
        self.requests = _bucket(limits.requests, limits.burst_seconds, now)
        self.tokens = _bucket(limits.tokens, limits.burst_seconds, now)

    def idle(self, now: float) -> bool:
        buckets = (self.requests, self.tokens)
        return not self.streams and all(b is None or b.level(now) >= b.burst for b in buckets)


def _bucket(rate: float | None, seconds: float, now: float) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate, _burst(rate, seconds), now)


def _burst(rate: float, seconds: float) -> float:
    return max(1.0, rate * seconds)


class Permit:
    """A call's right to run; `end` is to be called once it is over, repeatedly if need be."""

    __slots__ = ("_account", "_clock", "_ended", "_taken")

    def __init__(self, account: _Account | None, clock: Clock) -> None:
        self._account = account
        self._clock = clock
        self._taken = 0
        self._ended = False

    def take(self, tokens: int) -> None:
        """Pay for the prompt and all that may be made. Raises Refusal."""
        bucket = None if self._account is None else self._account.tokens
        if bucket is None:
            return
        now = self._clock()
        wait = bucket.wait(math.ulp(1.0), now)
        if wait > 0:
            raise rate_limited("tokens", bucket.rate, wait)
        bucket.take(tokens, now)
        self._taken = tokens

    def end(self, used: int) -> None:
        """The call is over and has used this many tokens; the rest of what it was charged is
        returned."""
        if self._ended or self._account is None:
            return
        self._ended = True
        self._account.streams -= 1
        if self._account.tokens is not None and self._taken:
            self._account.tokens.take(used - self._taken, self._clock())


class ClientLimits:
    """The accounts of all clients."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = _SWEEP
        self._unlimited = None if limits.any else Permit(None, clock)  # everybody's

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._accounts)

    def enter(self, client: str) -> Permit:
        """Let a call begin, before anything is spent on it. Raises Refusal."""
        if self._unlimited is not None:
            return self._unlimited
        now = self._clock()
        account = self._accounts.get(client)
        if account is None:
            self._forget_idle(now)
            account = self._accounts[client] = _Account(self._limits, now)
        most = self._limits.streams
        if most is not None and account.streams >= most:
            raise too_many_streams(most, _STREAM_RETRY)
        if account.requests is not None:
            wait = account.requests.wait(1.0, now)
            if wait > 0:
                raise rate_limited("requests", account.requests.rate, wait)
            account.requests.take(1, now)
        account.streams += 1
        return Permit(account, self._clock)

    def most_at_once(self) -> Iterator[tuple[int, str]]:
        """Calls that a client may begin together, by each limit, which is named. Tokens are taken
        later, when some have come back."""
        limits, seconds = self._limits, f"rate_limit_burst_seconds = {self._limits.burst_seconds:g}"
        if limits.streams is not None:
            yield limits.streams, f"max_streams_per_client = {limits.streams}"
        if limits.requests is not None:
            most = _burst(limits.requests, limits.burst_seconds)
            yield int(most), f"rate_limit_requests = {limits.requests:g}, {seconds}"

    def _forget_idle(self, now: float) -> None:
        """Called now and then, checking a bounded number of clients each time."""
        if len(self._accounts) < self._sweep_at:
            return
        self._accounts = {k: a for k, a in self._accounts.items() if not a.idle(now)}
        self._sweep_at = max(_SWEEP, 2 * len(self._accounts))


class Throttle:
    """Limits how often each client gets answers that are as cheap as a refusal would be.

    Answers are immediate until the client's burst is used up, then they wait their turn. So a
    client that asks again as soon as it is answered is slowed down to the rate; a refusal would
    only be followed by its next call. rate: per second. patience: in seconds; a call that would
    have to wait longer is refused.
    """

    def __init__(
        self, rate: float, burst: float, patience: float, clock: Clock = time.monotonic
    ) -> None:
        self.rate = rate
        self._burst = burst
        self._patience = patience
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._buckets)

    def turn(self, client: str) -> tuple[float, bool]:
        """Seconds until its turn, and whether it has one: if not, nothing is taken."""
        now = self._clock()
        bucket = self._buckets.get(client)
        if bucket is None:
            self._forget_full(now)
            bucket = self._buckets[client] = TokenBucket(self.rate, self._burst, now)
        wait = bucket.wait(1.0, now)
        if wait > self._patience:
            return wait, False
        bucket.take(1.0, now)
        return wait, True

    def _forget_full(self, now: float) -> None:
        """Called now and then, as in ClientLimits."""
        if len(self._buckets) < self._sweep_at:
            return
        self._buckets = {k: b for k, b in self._buckets.items() if b.level(now) < b.burst}
        self._sweep_at = max(_SWEEP, 2 * len(self._buckets))


def check_priority(asked: int, highest: int) -> None:
    """highest: what the client's key allows, else the option max_priority. Raises Refusal."""
    if asked > highest:
        limit = f"at most {highest} for this client (max_priority)"
        raise invalid_field("priority", f"{asked}: {limit}")
