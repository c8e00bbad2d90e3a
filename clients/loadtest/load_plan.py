"""A load test's options as one checked value, and the runs that follow from them.

Invariant: everything that can be refused without a server is refused before one is contacted. Needs
no numpy.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.clients.errors import OptionError

if TYPE_CHECKING:
    from quire.clients.loadtest.workload import Session

WORKLOADS = ("random", "shared-prefix", "chat", "trace")
TRACED = "trace"
_MAX_PROCESSES = 256


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a sweep: closed loop where rate is None."""

    rate: float | None
    concurrency: int | None

    def __str__(self) -> str:
        if self.rate is None:
            return f"concurrency {self.concurrency}"
        return "trace's times" if math.isnan(self.rate) else f"{self.rate:g} sessions/s"


@dataclass(frozen=True, slots=True)
class Plan:
    """The options, but for the server and the sweep."""

    workload: str
    requests: int | None
    prompt: Any
    output: Any
    prefix_share: float
    groups: int
    prompts_per_group: int
    prefix: Any
    question: Any
    turns: int
    trace: Path | None
    arrivals: str
    burstiness: float
    speed: float
    warmup: int
    processes: int
    seed: int
    reuse_cache: bool
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            raise OptionError(f"workload: {self.workload!r}; one of {', '.join(WORKLOADS)}")
        if (self.workload == "trace") != (self.trace is not None):
            raise OptionError("trace: --trace FILE and --workload trace go together")
        if self.arrivals == TRACED and self.trace is None:
            raise OptionError("arrivals: trace's times need --workload trace")
        if self.requests is not None and self.workload == "shared-prefix":
            raise OptionError("requests: shared-prefix sends --groups times --prompts-per-group")
        for name in ("requests", "processes", "turns", "groups", "prompts_per_group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name.replace('_', '-')}: {value}; at least 1")
        if self.processes > _MAX_PROCESSES:
            raise OptionError(f"processes: {self.processes}; at most {_MAX_PROCESSES}")
        if self.warmup < 0:
            raise OptionError(f"warmup: {self.warmup}; at least 0")
        self._check_before_asking()

    def _check_before_asking(self) -> None:
        from quire.clients.loadtest import arrivals
        from quire.clients.loadtest.workload import MAX_TURNS, check_share
        from quire.clients.prompts import build_request

        check_share(self.prefix_share)
        arrivals.check(self.arrivals, self.burstiness, self.speed)
        build_request([0], self.options)
        for names in (("requests", "turns"), ("groups", "prompts_per_group")):
            if math.prod(getattr(self, name) or 1 for name in names) > MAX_TURNS:
                words = " times ".join("--" + name.replace("_", "-") for name in names)
                raise OptionError(f"{names[0]}: {words} is more than {MAX_TURNS:,}")

    def sessions(self, max_model_len: int) -> "list[Session]":
        """The workload, checked against the model's length and the warm-up."""
        from quire.clients.loadtest.workload import check_fits

        sessions = list(self._sessions())
        if len(sessions) <= self.warmup:
            raise OptionError(
                f"warmup: {self.warmup} of {len(sessions)} sessions leaves none to measure"
            )
        check_fits(sessions, max_model_len)
        return sessions

    def _sessions(self) -> "Iterator[Session]":
        from quire.clients.loadtest import workload as w

        lengths = w.Lengths(self.prompt, self.output)
        count = 100 if self.requests is None else self.requests
        if self.trace is not None:
            return w.trace(self.trace, self.requests)
        if self.workload == "chat":
            return w.conversations(count, self.turns, lengths, self.seed)
        if self.workload == "shared-prefix":
            return w.shared_prefix_groups(
                self.groups,
                self.prompts_per_group,
                self.prefix,
                self.question,
                self.output,
                self.seed,
            )
        return w.random_prompts(count, lengths, self.prefix_share, self.seed)


def steps_of(plan: Plan, concurrency: Sequence[int], rates: Sequence[float]) -> Iterator[Step]:
    """The runs of a sweep. Raises OptionError."""
    from quire.clients.loadtest.arrivals import check_rate

    if any(c < 1 for c in concurrency):
        raise OptionError(f"concurrency: {min(concurrency)}; at least 1")
    for one in rates:
        check_rate(one)
    open_loop = bool(rates) or plan.arrivals == TRACED
    if not open_loop:
        yield from (Step(None, c) for c in concurrency or [8])
        return
    if len(concurrency) > 1:
        raise OptionError("concurrency: with --rate it is a cap; give only one")
    if plan.arrivals == TRACED and rates:
        raise OptionError("rate: the trace's times set it; use --speed")
    cap = concurrency[0] if concurrency else None
    yield from (Step(r, cap) for r in rates or [math.nan])
