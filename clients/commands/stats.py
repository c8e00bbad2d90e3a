"""`quire stats`: what the server holds and has done; `quire health`: whether it serves."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from quire.clients.client import Client
from quire.clients.commands import common
from quire.clients.commands.keys import Keys
from quire.clients.commands.terminal import views
from quire.clients.errors import InvalidRequest
from quire.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Group

Watch = Annotated[
    float | None,
    typer.Option(help="Repeat every so many seconds, until Ctrl-C.", min=0.05, max=86400),
]


@common.one_line_errors
def stats(
    as_json: common.AsJson = False,
    watch: Watch = None,
    address: common.Address = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = 10.0,
) -> None:
    """Show what the server holds and has done."""
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    with common.connected(address, api_key, secure, timeout) as client:
        if watch is None:
            _show_once(client, as_json)
        elif as_json:
            _watch_json(client, watch)
        else:
            _watch_table(client, watch)


@common.one_line_errors
def health(
    service: Annotated[
        str, typer.Argument(help="Nothing or quire.v1.InferenceService for readiness, or liveness.")
    ] = "",
    address: common.Address = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = 5.0,
) -> None:
    """Ask for the server's health; exit 0 if SERVING, else 1."""
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    with common.connected(address, api_key, secure, timeout) as client:
        answer = _ask_health(client, service)
    print(answer)
    if answer != "SERVING":
        raise typer.Exit(1)


def _ask_health(client: Client, service: str) -> str:
    try:
        return client.health(service)
    except InvalidRequest as error:
        if error.code.name != "NOT_FOUND":
            raise
        common.fail(
            f"the server knows no service {service!r}: leave it out, or ask for"
            " quire.v1.InferenceService or liveness"
        )


def _show_once(client: Client, as_json: bool) -> None:
    response = client.stats()
    if as_json:
        print(json.dumps(as_dict(response), indent=2))
        return
    from rich.console import Console

    Console().print(table(response))


def _watch_json(client: Client, seconds: float) -> None:
    while True:
        print(json.dumps(as_dict(client.stats())), flush=True)
        Keys(None).wait(seconds, "")


def _watch_table(client: Client, seconds: float) -> None:
    from rich.console import Console

    with views(Console()) as show:
        while True:
            show(table(client.stats()))
            Keys(None).wait(seconds, "")


def as_dict(response: pb.StatsResponse) -> dict[str, object]:
    """The message with the contract's names: 64-bit integers as numbers, and zeros included if they
    were counted."""
    from google.protobuf.json_format import MessageToDict

    found = MessageToDict(
        response,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=tells_counters(response),
    )
    return {key: _numbers(value, key) for key, value in found.items()}


def _numbers(value: object, key: str = "") -> object:
    """protobuf's JSON writes 64-bit integers as text; a reader of statistics wants numbers."""
    if isinstance(value, dict):
        text = key == "engine_config"
        return {k: v if text else _numbers(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value.isdecimal() and key not in _TEXT:
        return int(value)
    return value


_TEXT = frozenset({"name", "fingerprint", "architecture", "dtype", "device", "version"})


def table(response: pb.StatsResponse) -> "Group":
    """The statistics as rich shows them."""
    from rich.console import Group
    from rich.table import Table

    grid = Table(title=_title(response), show_header=False, title_justify="left")
    grid.add_column(style="bold", overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in rows(response):
        grid.add_row(name, value)
    return Group(grid)


def _title(response: pb.StatsResponse) -> str:
    model = response.model
    return f"{model.name} on {model.device}, up {_span(response.uptime_seconds)}"


def tells_counters(response: pb.StatsResponse) -> bool:
    """Whether the server has included its counters, as it does for operators."""
    return response.HasField("requests")


def rows(response: pb.StatsResponse) -> list[tuple[str, str]]:
    """Name and value of each line of the table."""
    model, cache, memory = response.model, response.cache, response.memory
    told = tells_counters(response)
    counters = (
        _counters(response)
        if told
        else [
            ("cache blocks", f"{cache.blocks_total:,} × {cache.block_size} tokens"),
            ("counters", common.FOR_OPERATORS),
        ]
    )
    return [
        (
            "model",
            f"{model.architecture}, {model.parameters / 1e6:,.1f} M parameters, {model.dtype},"
            f" up to {model.max_model_len:,} tokens",
        ),
        *counters,
        (
            "memory",
            f"weights {size(memory.weights_bytes)}, KV cache {size(memory.kv_cache_bytes)}"
            f"{f' ({cache.dtype})' if cache.dtype else ''}"
            f"{f', {_peak(response)}' if told else ''}, total {size(memory.total_bytes)}",
        ),
        *([("ranks", ranks(memory))] if memory.ranks else []),
    ]


def _counters(response: pb.StatsResponse) -> list[tuple[str, str]]:
    requests, tokens, steps = response.requests, response.tokens, response.steps
    refused = sum(requests.refused.values())
    by_status = ", ".join(f"{name} {count}" for name, count in sorted(requests.refused.items()))
    return [
        ("requests", f"{requests.running} running, {requests.waiting} waiting"),
        (
            "finished",
            f"stop {requests.finished_stop:,}, length {requests.finished_length:,},"
            f" cancelled {requests.finished_cancelled:,}, error {requests.finished_error:,}"
            f" of {requests.accepted:,} accepted",
        ),
        ("refused", f"{refused:,}{f' ({by_status})' if by_status else ''}"),
        *_cache_counters(response.cache),
        (
            "tokens",
            f"prompt {tokens.prompt:,} (computed {tokens.prefill_computed:,}),"
            f" generated {tokens.generated:,}, delivered {tokens.delivered:,},"
            f" discarded {tokens.discarded:,}",
        ),
        (
            "steps",
            f"{steps.total:,}: graph {steps.graph:,}, eager {steps.eager:,},"
            f" mixed {steps.mixed:,}, failed {steps.failed:,}",
        ),
        ("first token", quantiles(response.time_to_first_token_seconds)),
        ("between tokens", quantiles(response.inter_token_latency_seconds)),
        ("queue", quantiles(response.queue_time_seconds)),
    ]


def _cache_counters(cache: pb.CacheStats) -> list[tuple[str, str]]:
    return [
        (
            "cache blocks",
            f"{cache.blocks_in_use:,} in use ({cache.blocks_shared:,} shared),"
            f" {cache.blocks_free:,} free ({cache.blocks_cached:,} cached)"
            f" of {cache.blocks_total:,} × {cache.block_size} tokens",
        ),
        (
            "prefix cache",
            f"{cache.prefix_tokens_hit:,} of {cache.prefix_tokens_queried:,} prompt tokens cached"
            f" ({share(cache.prefix_tokens_hit, cache.prefix_tokens_queried)}),"
            f" {cache.evictions:,} evictions",
        ),
        ("preemptions", f"{cache.preemptions:,}"),
    ]


def _peak(response: pb.StatsResponse) -> str:
    """The most memory used. On a CPU it is the whole process's, with as much of the cache as has
    been written so far."""
    peak = size(response.memory.peak_bytes)
    if response.model.device == "cpu":
        return f"process peak {peak} (cache counted as it fills)"
    return f"peak {peak}"


def ranks(memory: pb.DeviceMemory) -> str:
    """The memory of each of the processes that share the model, from rank 0 on."""
    held = ", ".join(size(rank.allocated_bytes) for rank in memory.ranks)
    return f"{len(memory.ranks)}: {held}"


def share(part: int, whole: int) -> str:
    """A percentage; a dash for nothing of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def size(count: int) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def quantiles(histogram: pb.Histogram) -> str:
    """Mean and p50, p90, p99 of a histogram, read off its buckets."""
    count = sum(histogram.counts)
    if not count:
        return "–"
    found = ", ".join(f"p{q} {bucket_bound(histogram, q / 100)}" for q in (50, 90, 99))
    return f"{found}, mean {milliseconds(histogram.sum / count)} ({count:,})"


def bucket_bound(histogram: pb.Histogram, q: float) -> str:
    """`≤ x`: the upper bound of the bucket that holds the quantile: no more is known."""
    wanted = q * sum(histogram.counts)
    seen = 0
    for i, count in enumerate(histogram.counts):
        seen += count
        if seen >= wanted and i < len(histogram.bounds):
            return f"≤ {milliseconds(histogram.bounds[i])}"
    return f"> {milliseconds(histogram.bounds[-1])}"


def milliseconds(seconds: float) -> str:
    """A time for people, from seconds."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
