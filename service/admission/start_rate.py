"""How fast the queue moves: completions started a second while others wait.

Two things are known. What runs and how long a completion takes: by Little's law a full machine
starts `running / duration` a second; known before anyone has ever waited, but late where durations
change. And the starts counted while somebody waited: the truth, but rare. They are joined as a
gamma prior worth `_PRIOR_STARTS` starts and the counts that update it. Counts fade with a time
constant of `_MEMORY` seconds, so the estimate follows the load.

Invariant: a clock is read by the caller and handed in; nothing here waits or reads one.
"""

import math

_PRIOR_STARTS = 4.0
_MEMORY = 10.0  # seconds
_SMOOTHING = 0.1  # weight of the newest duration in the mean
_MAX_OF_ONE = 20  # weights of the mean's first values: 1/1, 1/2, ... until it is smooth


class StartRate:
    """Starts a second of a queue that is not empty."""

    def __init__(self, now: float) -> None:
        self._duration = 0.0
        self._ended = 0
        self._starts = 0.0  # counted while others waited, faded
        self._waited = 0.0  # seconds with a queue, faded alike
        self._at = now
        self._queue = False

    def queue(self, present: bool, now: float) -> None:
        """Note whether somebody waits who cannot start at once."""
        if present != self._queue:
            self._fade(now)
            self._queue = present

    def started(self, now: float) -> None:
        """One has started."""
        self._fade(now)
        if self._queue:
            self._starts += 1

    def ended(self, duration: float) -> None:
        """A completion has ended, this many seconds after it started."""
        self._ended += 1
        weight = max(_SMOOTHING, 1 / min(self._ended, _MAX_OF_ONE))
        self._duration += weight * (duration - self._duration)

    def per_second(self, running: int, now: float) -> float | None:
        """Starts a second that a queue may count on; None: nothing is known yet."""
        self._fade(now)
        starts, seconds = self._starts, self._waited
        if self._ended and self._duration > 0 and running:
            starts += _PRIOR_STARTS
            seconds += _PRIOR_STARTS * self._duration / running
        if not starts or not seconds:
            return None
        return starts / seconds

    def _fade(self, now: float) -> None:
        passed = max(now - self._at, 0.0)
        self._at = now
        kept = math.exp(-passed / _MEMORY)
        self._starts *= kept
        self._waited *= kept
        if self._queue:
            self._waited += _MEMORY * (1 - kept)
