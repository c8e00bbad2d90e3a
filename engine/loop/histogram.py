"""A histogram of seconds, fed by one thread and read from anywhere.

Invariant: counts only rise; `counts[i]` holds observations of at most `bounds[i]`, the last bucket
the rest.
"""

from bisect import bisect_left


class Histogram:
    """Buckets by upper bound, and a sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(
        self, bounds: tuple[float, ...], counts: list[int] | None = None, total: float = 0.0
    ) -> None:
        """counts and total: as observed so far."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1) if counts is None else counts
        self.sum = total

    def observe(self, seconds: float, times: int = 1) -> None:
        """`times` observations of the same value; a clock that stood still counts as zero."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)
