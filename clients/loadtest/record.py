"""The record of one request.

Invariant: times are seconds from the start of the run, on the one clock that all client processes
share; latencies count from `intended`, when the request should have been sent, not from `sent`.
"""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

OK = "OK"


@dataclass(slots=True)
class Record:
    """One request. status is OK or the gRPC status' name; `times` and `counts` go together."""

    session: int
    turn: int
    warmup: bool
    intended: float
    sent: float = 0.0
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    """When each message with tokens came."""
    counts: list[int] = field(default_factory=list)
    """The tokens it held."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    status: str = OK
    message: str = ""
    reason: str = ""

    @property
    def completed(self) -> bool:
        """Ended as it should, with at least one token."""
        return self.status == OK and bool(self.times)

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.times[0] - self.intended

    @property
    def latency(self) -> float:
        """From the intended start to the end of the stream."""
        return self.ended - self.intended

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: between one message with tokens and the next."""
        return [b - a for a, b in pairwise(self.times)]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None where there is but one."""
        later = sum(self.counts) - self.counts[0]
        return (self.times[-1] - self.times[0]) / later if later else None


@dataclass(slots=True)
class ClientLoad:
    """How busy one client process was: is it the bottleneck?"""

    cpu_seconds: float
    wall_seconds: float
    loop_lag: float
    """99th percentile of the lateness of its event loop, in seconds."""
    send_lag: float
    """99th percentile of sent - intended, in seconds; 0 in a closed loop."""


def to_plain(record: Record) -> dict[str, Any]:
    """A record as JSON holds it."""
    return asdict(record)


def from_plain(plain: dict[str, Any]) -> Record:
    """The record that `to_plain` was given."""
    return Record(**plain)
