"""From records to the figures that people compare, under the field names of `vllm bench serve`.

Invariant: warm-up requests count nowhere; failed ones count as failed and nowhere else; a rate
is over the time from the first measured intended start to the last measured end.

Milliseconds where a name says so, otherwise seconds and tokens. TTFT and end-to-end latency count
from the intended start. ITL is the time between consecutive messages with tokens, as that tool
counts it; TPOT is the mean over a request's tokens after the first.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from quire.clients import digits
from quire.clients.errors import OptionError
from quire.clients.loadtest.drive import Outcome
from quire.clients.loadtest.record import OK, ClientLoad, Record
from quire.clients.loadtest.statistics import deviation, mean, percentile

PERCENTILES = (50, 90, 99)
LIMITS = ("ttft", "tpot", "itl", "e2el")
_BUSY = 0.9
_LATE = 0.05


def parse_limits(words: Sequence[str]) -> dict[str, float]:
    """`ttft:500` (milliseconds) … to seconds by name."""
    limits = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            seconds = digits.read(float, value) / 1e3
        except ValueError:
            seconds = math.nan
        if name not in LIMITS or not seconds > 0:
            raise OptionError(f"goodput: {word!r}; NAME:MILLISECONDS, of {', '.join(LIMITS)}")
        limits[name] = seconds
    return limits


def keeps(record: Record, limits: Mapping[str, float]) -> bool:
    """Whether a completed request kept every limit; itl: 99% of its gaps did."""
    gaps = sorted(record.gaps)
    measured = {
        "ttft": record.ttft,
        "tpot": record.tpot or 0.0,
        "itl": percentile(gaps, 99) if gaps else 0.0,
        "e2el": record.latency,
    }
    return all(measured[name] <= limit for name, limit in limits.items())


def summarize(outcome: Outcome, limits: Mapping[str, float], detailed: bool) -> dict[str, Any]:
    """The figures of one run."""
    measured = [r for r in outcome.records if not r.warmup]
    done = [r for r in measured if r.completed]
    span = _duration(measured)
    outputs = sum(r.output_tokens for r in done)
    inputs = sum(r.prompt_tokens for r in done)
    cached = sum(r.cached_tokens for r in done)
    summary: dict[str, Any] = {
        "duration": span,
        "completed": len(done),
        "failed": len(measured) - len(done),
        "errors_by_status": dict(Counter(_status(r) for r in measured if not r.completed)),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "total_cached_tokens": cached,
        "prefix_hit_rate": cached / inputs if inputs else None,
        "request_throughput": _rate(len(done), span),
        "request_goodput": _goodput(done, limits, span),
        "output_throughput": _rate(outputs, span),
        "total_token_throughput": _rate(inputs + outputs, span),
        "max_output_tokens_per_s": _peak_rate(done),
        "max_concurrent_requests": _peak_concurrency(measured),
    }
    for name, values in _latencies(done).items():
        summary |= _spread(name, values)
    summary |= _client_limits(outcome.clients)
    if detailed:
        summary |= _details(measured)
    return {key: _finite(value) for key, value in summary.items()}


def _status(record: Record) -> str:
    return record.status if record.status != OK else "no tokens"


def _duration(measured: Sequence[Record]) -> float:
    if not measured:
        return 0.0
    return max(r.ended for r in measured) - min(r.intended for r in measured)


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _goodput(done: Sequence[Record], limits: Mapping[str, float], span: float) -> float | None:
    return _rate(sum(keeps(r, limits) for r in done), span) if limits else None


def _peak_rate(done: Sequence[Record]) -> float:
    """Most tokens that came in one second of the clock."""
    seconds: Counter[int] = Counter()
    for record in done:
        for time, count in zip(record.times, record.counts, strict=True):
            seconds[int(time)] += count
    return float(max(seconds.values(), default=0))


def _peak_concurrency(measured: Sequence[Record]) -> int:
    changes = sorted(
        [(r.sent, 1) for r in measured] + [(r.ended, -1) for r in measured],
    )
    peak = now = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def _latencies(done: Sequence[Record]) -> dict[str, list[float]]:
    return {
        "ttft": [r.ttft for r in done],
        "tpot": [t for r in done if (t := r.tpot) is not None],
        "itl": [gap for r in done for gap in r.gaps],
        "e2el": [r.latency for r in done],
    }


def _spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(1e3 * s for s in seconds)
    spread = {
        f"mean_{name}_ms": mean(ordered),
        f"median_{name}_ms": percentile(ordered, 50),
        f"std_{name}_ms": deviation(ordered),
    }
    return spread | {f"p{q}_{name}_ms": percentile(ordered, q) for q in PERCENTILES}


def _client_limits(clients: Sequence[ClientLoad]) -> dict[str, Any]:
    """Whether the client, not the server, set the pace; and by which sign."""
    shares = [_rate(c.cpu_seconds, c.wall_seconds) for c in clients]
    lag = max((c.loop_lag for c in clients), default=0.0)
    late = max((c.send_lag for c in clients), default=0.0)
    signs = []
    if max(shares, default=0) > _BUSY:
        signs.append(f"a client process used {max(shares):.0%} of a core: add --processes")
    if lag > _LATE:
        signs.append(f"a client's event loop was {1e3 * lag:.0f} ms late: add --processes")
    if late > _LATE and lag <= _LATE:
        signs.append(f"requests were sent {1e3 * late:.0f} ms late: raise the concurrency cap")
    return {
        "client_processes": len(clients),
        "client_cpu_share": max(shares, default=0.0),
        "client_loop_lag_ms": 1e3 * lag,
        "client_send_lag_ms": 1e3 * late,
        "client_is_the_limit": bool(signs),
        "client_limits": signs,
    }


def _details(measured: Sequence[Record]) -> dict[str, Any]:
    return {
        "input_lens": [r.prompt_tokens for r in measured],
        "output_lens": [r.output_tokens for r in measured],
        "ttfts": [r.ttft if r.times else 0.0 for r in measured],
        "itls": [r.gaps for r in measured],
        "start_times": [r.intended for r in measured],
        "errors": [f"{r.status}: {r.message}" if r.status != OK else "" for r in measured],
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what cannot be said is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
