"""`quire top`: a live view of a server, from Stats alone.

Invariant: rates are differences of two snapshots over the time between them on the server's own
clock (its uptime), so that a slow terminal cannot bend them.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from quire.clients.commands import common
from quire.clients.commands.stats import milliseconds, rows, share
from quire.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

_HISTORY = 120
_BARS = " ▁▂▃▄▅▆▇█"
_RATES = (("output tokens/s", "delivered"), ("prefill tokens/s", "prefill_computed"))
_STATES = (("free", "·", "grey42"), ("cached", "▪", "cyan"), ("in use", "■", "green"),
           ("shared", "■", "yellow"))  # fmt: skip


@common.one_line_errors
def top(
    interval: Annotated[float, typer.Option(help="Seconds between views.", min=0.1)] = 1.0,
    count: Annotated[
        int | None, typer.Option(help="Stop after so many views (default: at Ctrl-C).", min=1)
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
    """Watch throughput, latencies, streams and the map of cache blocks."""
    from rich.console import Console
    from rich.live import Live

    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    console = Console()
    view = View()
    with common.make_client(address, api_key, secure, timeout) as client:
        with common.errors_at(client.connection):
            view.add(client.stats(include_block_map=True))
            screen = console.is_terminal and count is None
            with Live(
                view.render(console), console=console, screen=screen, auto_refresh=False
            ) as live:
                shown = 1
                while count is None or shown < count:
                    time.sleep(interval)
                    view.add(client.stats(include_block_map=True))
                    live.update(view.render(console), refresh=True)
                    shown += 1


class View:
    """The snapshots seen so far, and what is drawn of them."""

    def __init__(self) -> None:
        self._snapshots: deque[pb.StatsResponse] = deque(maxlen=_HISTORY + 1)

    def add(self, snapshot: pb.StatsResponse) -> None:
        """Takes a snapshot; one of a server that has started anew drops those before."""
        if self._snapshots and snapshot.uptime_seconds < self._snapshots[-1].uptime_seconds:
            self._snapshots.clear()
        self._snapshots.append(snapshot)

    def copy(self) -> "View":
        """The view as it is now; what is added later leaves it alone."""
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
        """What a histogram has gained since the oldest snapshot; all of it, if there is but one."""
        first, last = (getattr(self._snapshots[i], histogram) for i in (0, -1))
        if len(self._snapshots) == 1 or list(first.counts) == list(last.counts):
            return pb.Histogram.FromString(last.SerializeToString())
        counts = [b - a for a, b in zip(first.counts, last.counts, strict=True)]
        return pb.Histogram(bounds=last.bounds, counts=counts, sum=last.sum - first.sum)

    def render(self, console: "Console") -> "Group":
        """The view, for a console's width and height."""
        from rich.console import Group
        from rich.panel import Panel

        now = self._snapshots[-1]
        width = max(console.width - 4, 20)
        height = max(console.height - 22, 3)
        parts: Sequence[RenderableType] = (
            Panel(self._load(now, width), title=f"{now.model.name} on {now.model.device}"),
            Panel(self._latencies(), title="latency"),
            Panel(block_map(now.cache, width, height), title=_map_title(now.cache)),
        )
        return Group(*parts)

    def _load(self, now: pb.StatsResponse, width: int) -> "RenderableType":
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for name, counter in _RATES:
            rates = self.rates(counter)
            latest = f"{rates[-1]:,.0f}" if rates else "–"
            grid.add_row(name, latest, sparkline(rates, max(width - 34, 8)))
        facts = dict(rows(now))
        for name in ("requests", "prefix cache", "preemptions", "refused"):
            grid.add_row(name, "", facts[name])
        return grid

    def _latencies(self) -> "RenderableType":
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for name, histogram in (
            ("first token", "time_to_first_token_seconds"),
            ("between tokens", "inter_token_latency_seconds"),
            ("queue", "queue_time_seconds"),
        ):
            recent = self.recent(histogram)
            grid.add_row(name, sparkline([float(c) for c in recent.counts], 24), _range(recent))
        return grid


def _range(histogram: pb.Histogram) -> str:
    from quire.clients.commands.stats import quantiles

    if not histogram.bounds:
        return "–"
    low, high = milliseconds(histogram.bounds[0]), milliseconds(histogram.bounds[-1])
    return f"{quantiles(histogram)}   (bars: ≤ {low} … > {high})"


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
    """A cell a block; where they do not fit, a cell stands for several and shows the busiest."""
    from rich.text import Text

    states = bytes(cache.block_map)
    legend = Text("\n")
    for name, sign, colour in _STATES:
        legend.append(f"{sign} ", colour)
        legend.append(f"{name}   ")
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
        legend.append(f"a cell is {per_cell} blocks, and shows the busiest")
    return Text.assemble(text, "\n", legend)
