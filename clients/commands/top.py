"""`quire top`: a live view of a server, from Stats alone.

Invariant: rates are differences of two snapshots over the time between them on the server's own
clock (its uptime), so that a slow terminal cannot bend them. On 80 columns and 24 lines, or more,
everything is shown, and whole.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from quire.clients.client import Client
from quire.clients.commands import common
from quire.clients.commands.keys import keys
from quire.clients.commands.stats import bucket_bound, milliseconds, ranks, share
from quire.clients.commands.terminal import views
from quire.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

_HISTORY = 120
_BARS = " ▁▂▃▄▅▆▇█"
_RATES = (("output tokens/s", "delivered"), ("prefill tokens/s", "prefill_computed"))
_LATENCIES = (
    ("first token", "time_to_first_token_seconds"),
    ("between tokens", "inter_token_latency_seconds"),
    ("queue", "queue_time_seconds"),
)
_QUANTILES = (50, 90, 99)
_NAME_WIDTH = 18
_BARS_LEAVE = 61
"""Columns of a line of latencies beside its bars: the name, three bounds, mean, count, gaps."""
_UNITS = "kMGTP"
_LEAVE = "press q to leave"
_FIXED_LINES = 17
"""Lines of the view beside the map's cells: three frames, the load, the latencies, the legend; one
more where several ranks share the model."""
_STATES = (("free", "·", "grey42"), ("cached", "▪", "cyan"), ("in use", "■", "green"),
           ("shared", "■", "yellow"))  # fmt: skip


@common.one_line_errors
def top(
    interval: Annotated[
        float, typer.Option(help="Seconds between updates.", min=0.1, max=86400)
    ] = 1.0,
    count: Annotated[
        int | None,
        typer.Option(help="Stop after this many updates (default: at q or Ctrl-C).", min=1),
    ] = None,
    address: common.Address = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = 10.0,
) -> None:
    """Watch throughput, latencies, streams and the cache. Leave with q."""
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    with common.connected(address, api_key, secure, timeout) as client:
        _watch(client, interval, count)


def _watch(client: Client, interval: float, count: int | None) -> None:
    from rich.console import Console

    console = Console()
    screen = console.is_terminal and count is None
    view = View()
    view.add(client.stats(include_block_map=True))
    with (
        keys() as pressed,
        views(console, screen=screen) as show,
    ):
        hint = _LEAVE if pressed.are_read else None
        show(view.render(console, hint))
        shown = 1
        while count is None or shown < count:
            if pressed.wait(interval, "qQ"):
                return
            view.add(client.stats(include_block_map=True))
            show(view.render(console, hint))
            shown += 1


class View:
    """The snapshots seen so far, and how to draw them."""

    def __init__(self) -> None:
        self._snapshots: deque[pb.StatsResponse] = deque(maxlen=_HISTORY + 1)

    def add(self, snapshot: pb.StatsResponse) -> None:
        """Takes a snapshot; one of a server that has started anew drops those before."""
        if self._snapshots and snapshot.uptime_seconds < self._snapshots[-1].uptime_seconds:
            self._snapshots.clear()
        self._snapshots.append(snapshot)

    def copy(self) -> "View":
        """A copy that later snapshots do not change."""
        other = View()
        other._snapshots.extend(self._snapshots)
        return other

    def rates(self, counter: str) -> list[float]:
        """Tokens a second between each two snapshots, of a field of TokenStats; oldest first."""
        found = []
        pairs = zip(self._snapshots, list(self._snapshots)[1:], strict=False)
        for before, after in pairs:
            seconds = after.uptime_seconds - before.uptime_seconds
            if seconds > 0:
                more = getattr(after.tokens, counter) - getattr(before.tokens, counter)
                found.append(more / seconds)
        return found

    def recent(self, histogram: str) -> pb.Histogram:
        """A histogram's counts since the oldest snapshot; all of them, if there is only one
        snapshot."""
        first, last = (getattr(self._snapshots[i], histogram) for i in (0, -1))
        if len(self._snapshots) == 1 or list(first.counts) == list(last.counts):
            return pb.Histogram.FromString(last.SerializeToString())
        counts = [b - a for a, b in zip(first.counts, last.counts, strict=True)]
        return pb.Histogram(bounds=last.bounds, counts=counts, sum=last.sum - first.sum)

    def render(self, console: "Console", hint: str | None = None) -> "Group":
        """The view for a console's width and height. hint: the text on the lower frame."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        now = self._snapshots[-1]
        width = max(console.width - 4, 20)
        height = max(console.height - _FIXED_LINES - bool(now.memory.ranks), 1)
        title = Text(f"{now.model.name} on {now.model.device}")  # as it is: no markup
        parts: Sequence[RenderableType] = (
            Panel(self._load(now, width), title=title),
            Panel(self._latencies(max(width - _BARS_LEAVE, 8)), title="latency"),
            Panel(block_map(now.cache, width, height), title=_map_title(now.cache), subtitle=hint),
        )
        return Group(*parts)

    def _load(self, now: pb.StatsResponse, width: int) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table

        rates = Table.grid(padding=(0, 2))
        for name, counter in _RATES:
            found = self.rates(counter)
            latest = f"{found[-1]:,.0f}" if found else "–"
            rates.add_row(name, latest, sparkline(found, max(width - 34, 8)))
        facts = Table.grid(padding=(0, 2))
        for name, fact in _facts(now, max(width - _NAME_WIDTH, 8)):
            facts.add_row(name.ljust(_NAME_WIDTH - 2), fact)
        return Group(rates, facts)

    def _latencies(self, bars_width: int) -> "RenderableType":
        from rich.table import Table

        grid = Table.grid(padding=(0, 1))
        for column in range(len(_QUANTILES) + 4):
            grid.add_column(justify="left" if column < 2 else "right")
        grid.add_row("", "", *(f"p{q}" for q in _QUANTILES), "mean", "count")
        for name, histogram in _LATENCIES:
            recent = self.recent(histogram)
            bars = sparkline(pooled(recent.counts, bars_width), bars_width)
            grid.add_row(name, bars, *_columns(recent))
        return grid


def _facts(now: pb.StatsResponse, width: int) -> list[tuple[str, str]]:
    requests, cache = now.requests, now.cache
    finished = (
        requests.finished_stop
        + requests.finished_length
        + requests.finished_cancelled
        + requests.finished_error
    )
    return [
        (
            "requests",
            f"{short(requests.running)} running, {short(requests.waiting)} waiting,"
            f" {short(finished)} finished",
        ),
        (
            "prefix cache",
            f"{share(cache.prefix_tokens_hit, cache.prefix_tokens_queried)} of"
            f" {short(cache.prefix_tokens_queried)} tokens cached,"
            f" {short(cache.evictions)} evictions",
        ),
        ("preemptions", f"{cache.preemptions:,}"),
        ("refused", _refused(requests.refused, width)),
        *([("ranks", _cut(ranks(now.memory), width))] if now.memory.ranks else []),
    ]


def _cut(words: str, width: int) -> str:
    return words if len(words) <= width else words[: width - 1] + "…"


def _refused(refused: Mapping[str, int], width: int) -> str:
    """All refusals, then by status, the most frequent first, as many as there is room for."""
    words = f"{short(sum(refused.values()))}"
    left = len(refused)
    for status, count in sorted(refused.items(), key=lambda item: (-item[1], item[0])):
        longer = f"{words}{': ' if left == len(refused) else ', '}{status} {short(count)}"
        rest = f", {left - 1} more" if left > 1 else ""
        if len(longer + rest) > width:
            return words if left == len(refused) else f"{words}, {left} more"
        words, left = longer, left - 1
    return words


def short(count: int) -> str:
    """A count in six characters at most: 9,999, then 10.0k, 3.4M."""
    if count < 10_000:
        return f"{count:,}"
    value, power = count / 1000, 0
    while value >= 999.95 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.1f}{_UNITS[power]}"


def _columns(histogram: pb.Histogram) -> list[str]:
    """The quantiles' bounds, the mean and the count, as text; dashes for no values."""
    count = sum(histogram.counts)
    if not count:
        return ["–"] * (len(_QUANTILES) + 2)
    bounds = [bucket_bound(histogram, q / 100) for q in _QUANTILES]
    return [*bounds, milliseconds(histogram.sum / count), short(count)]


def pooled(counts: Sequence[int], most: int) -> list[float]:
    """The counts, neighbours added up in equal groups so that there are not more than `most`."""
    group = max(1, -(-len(counts) // most))
    return [float(sum(counts[i : i + group])) for i in range(0, len(counts), group)]


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars, the highest one full."""
    shown = list(values)[-width:]
    most = max(shown, default=0.0)
    if most <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[-(-int(8 * 1000 * v / most) // 1000)] for v in shown)


def _map_title(cache: pb.CacheStats) -> str:
    used = share(cache.blocks_in_use, cache.blocks_total)
    return f"{cache.blocks_total:,} cache blocks of {cache.block_size} tokens, {used} in use"


def block_map(cache: pb.CacheStats, width: int, height: int) -> "RenderableType":
    """One cell per block; if they do not fit, a cell stands for several blocks and shows the
    busiest."""
    from rich.text import Text

    states = bytes(cache.block_map)
    legend = Text()
    for name, sign, colour in _STATES:
        legend.append(f"{sign} ", colour)
        legend.append(f"{name}  ")
    if not states:
        return Text("the server has sent no map")
    per_cell = max(1, -(-len(states) // (width * height)))
    text = Text(no_wrap=True)
    for place in range(0, len(states), per_cell):
        if place and place // per_cell % width == 0:
            text.append("\n")
        state = min(max(states[place : place + per_cell]), len(_STATES) - 1)
        text.append(_STATES[state][1], _STATES[state][2])
    if per_cell > 1:
        legend.append(f"a cell is {per_cell} blocks (the busiest)")
    return Text.assemble(text, "\n", legend)
