"""When a call may be tried again, and when.

Invariant: a call is repeated only where not one message of it was received, at most
`attempts - 1` times, and never past its deadline. UNAVAILABLE waits by exponential backoff with
jitter (so that clients of a restarted server do not return in step); RESOURCE_EXHAUSTED is
repeated only if the server says when, and then waits at least that long.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from quire.clients.arguments import MAX_SECONDS, integer, kind, number, seconds
from quire.clients.errors import CallError, OptionError, Overloaded, Unavailable

MAX_ATTEMPTS = 1_000_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of retrying. attempts counts the first try; seconds."""

    attempts: int = 4
    first_backoff: float = 0.1
    max_backoff: float = 2.0
    max_pushback: float = 30.0
    """A server that asks for a longer wait than this is not waited for."""

    def __post_init__(self) -> None:
        integer("retry.attempts", self.attempts, 1, MAX_ATTEMPTS)
        for name in ("first_backoff", "max_backoff", "max_pushback"):
            value = number(f"retry.{name}", getattr(self, name))
            if not 0 <= value <= MAX_SECONDS:
                raise OptionError(
                    f"retry.{name}: {value:g}; seconds, at least 0 and at most {MAX_SECONDS:g}"
                )


NO_RETRY = RetryPolicy(attempts=1)


def as_policy(value: RetryPolicy | None) -> RetryPolicy:
    """The policy given, or the usual one."""
    if value is not None and not isinstance(value, RetryPolicy):
        raise OptionError(f"retry: a RetryPolicy or None, not {kind(value)}")
    return value or RetryPolicy()


class RetryState:
    """The attempts of one call: counts them, and keeps its deadline (timeout: seconds or None)."""

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        timeout = seconds("timeout", timeout)
        self._policy = policy
        self._clock, self._uniform = clock, uniform
        self._deadline = None if timeout is None else clock() + timeout
        self._made = 0

    def begin(self) -> float | None:
        """Counts a try; returns the seconds left for it, None for no limit."""
        self._made += 1
        return self.left()

    def left(self) -> float | None:
        """Seconds to the deadline; None: there is none."""
        if self._deadline is None:
            return None
        return max(self._deadline - self._clock(), 0.001)

    def start_over(self) -> None:
        """Forget the attempts so far; the deadline stays."""
        self._made = 0

    def in_time(self, wait: float) -> bool:
        """Whether the deadline leaves room for a wait of this many seconds."""
        return self._deadline is None or self._clock() + wait < self._deadline

    def wait_after(self, error: CallError) -> float | None:
        """Seconds to wait before the next try, or None: give the error to the caller."""
        if self._made >= self._policy.attempts:
            return None
        wait = self._wait(error)
        if wait is None:
            return None
        return wait if self.in_time(wait) else None

    def _wait(self, error: CallError) -> float | None:
        pushback = error.details.retry_after
        if pushback is not None and pushback > self._policy.max_pushback:
            return None
        growth = 2.0 ** min(self._made - 1, 1000)  # the largest power that is a double, nearly
        backoff = min(self._policy.first_backoff * growth, self._policy.max_backoff)
        jittered = backoff * self._uniform(0.5, 1.0)
        if isinstance(error, Unavailable):
            return max(jittered, pushback or 0.0)
        if isinstance(error, Overloaded) and pushback is not None:
            return pushback + jittered
        return None
