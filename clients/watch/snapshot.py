"""A server's Stats as the page reads them: plain values that become JSON.

Invariant: the size of a snapshot is bounded, whatever the size of the cache: the map has MAX_CELLS
cells at most. Times are in seconds, memory in bytes, counters as they are.
"""

from typing import Any

from quire.v1 import inference_pb2 as pb

MAX_CELLS = 3072
_STATES = "0123"  # free, cached, in use, shared


def as_plain(stats: pb.StatsResponse, *, operator: bool) -> dict[str, Any]:
    """operator: whether the server has told counters, too."""
    plain: dict[str, Any] = {
        "operator": operator,
        "version": stats.version,
        "uptime": stats.uptime_seconds,
        "model": _fields(
            stats.model, "name", "architecture", "parameters", "dtype", "device", "max_model_len"
        ),
        "cache": _fields(stats.cache, "block_size", "blocks_total"),
        "memory": _memory(stats.memory),
    }
    return plain | _told(stats) if operator else plain


def _told(stats: pb.StatsResponse) -> dict[str, Any]:
    """The part that only operators get."""
    requests = stats.requests
    return {
        "requests": {
            **_fields(requests, "running", "waiting", "accepted"),
            "finished": requests.finished_stop + requests.finished_length,
            "cancelled": requests.finished_cancelled,
            "failed": requests.finished_error,
            "refused": sum(requests.refused.values()),
        },
        "tokens": _fields(stats.tokens, "prefill_computed", "delivered"),
        "cache": _fields(
            stats.cache,
            *("block_size", "blocks_total", "blocks_free", "blocks_cached", "blocks_in_use"),
            *("blocks_shared", "prefix_tokens_queried", "prefix_tokens_hit", "evictions"),
            "preemptions",
        ),
        "map": _map(stats.cache.block_map),
        "steps": {
            **_fields(stats.steps, "total", "graph", "eager", "mixed", "failed"),
            "kinds": {
                kind: {"count": sum(times.counts), "seconds": times.sum}
                for kind, times in sorted(stats.steps.duration_seconds.items())
            },
        },
        "open": [_open(row) for row in stats.open_requests],
    }


def _fields(message: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names}


def _memory(memory: pb.DeviceMemory) -> dict[str, Any]:
    return {
        **_fields(
            memory,
            *("total_bytes", "weights_bytes", "kv_cache_bytes", "allocated_bytes", "peak_bytes"),
        ),
        "ranks": [_fields(rank, "allocated_bytes", "peak_bytes") for rank in memory.ranks],
    }


def _map(states: bytes) -> dict[str, Any]:
    """A cell a block; where there are more blocks, a cell shows the busiest of several."""
    per_cell = max(1, -(-len(states) // MAX_CELLS))
    busiest = (max(states[i : i + per_cell]) for i in range(0, len(states), per_cell))
    cells = "".join(_STATES[min(state, len(_STATES) - 1)] for state in busiest)
    return {"cells": cells, "per_cell": per_cell}


def _open(row: pb.OpenRequest) -> dict[str, Any]:
    return {
        **_fields(row, "request_id", "client", "open_seconds", "started", "n", "prompt_tokens"),
        **_fields(row, "cached_tokens", "completion_tokens", "preemptions"),
    }
