"""The live view: rates, recent latencies, the block map."""

from typing import Any

from rich.console import Console
from support import programs
from support.patience import PATIENCE

from quire.clients.commands.stats import rows
from quire.clients.commands.top import View, block_map, sparkline
from quire.v1 import inference_pb2 as pb


def snapshot(uptime: float, delivered: int, counts: list[int]) -> pb.StatsResponse:
    return pb.StatsResponse(
        uptime_seconds=uptime,
        tokens=pb.TokenStats(delivered=delivered),
        inter_token_latency_seconds=pb.Histogram(
            bounds=[0.01, 0.1], counts=counts, sum=sum(counts) * 0.05
        ),
        cache=pb.CacheStats(block_size=16, blocks_total=3, block_map=bytes([0, 1, 3])),
    )


def drawn(renderable: Any, width: int = 100, height: int = 40) -> str:
    console = Console(width=width, height=height, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_rates_are_differences_over_the_servers_clock() -> None:
    view = View()
    for uptime, delivered in ((10.0, 100), (12.0, 300), (12.5, 300), (14.5, 500)):
        view.add(snapshot(uptime, delivered, [0, 0, 0]))
    assert view.rates("delivered") == [100.0, 0.0, 100.0]


def test_a_restarted_server_begins_anew() -> None:
    view = View()
    view.add(snapshot(100.0, 5000, [9, 9, 9]))
    view.add(snapshot(1.0, 10, [1, 0, 0]))
    view.add(snapshot(2.0, 30, [3, 0, 0]))
    assert view.rates("delivered") == [20.0]
    assert list(view.recent("inter_token_latency_seconds").counts) == [2, 0, 0]


def test_recent_is_what_the_window_gained() -> None:
    view = View()
    view.add(snapshot(1.0, 0, [5, 5, 5]))
    assert list(view.recent("inter_token_latency_seconds").counts) == [5, 5, 5]
    view.add(snapshot(2.0, 0, [5, 9, 5]))
    recent = view.recent("inter_token_latency_seconds")
    assert list(recent.counts) == [0, 4, 0]
    assert abs(recent.sum - 0.2) < 1e-9


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 4, 8], 10) == " ▁▂▄█"
    assert sparkline([8, 1, 2], 2) == "▄█"
    assert sparkline([0.0, 0.0], 5) == "  "
    assert sparkline([], 5) == ""


def test_the_map_shows_each_block_or_the_busiest_of_several() -> None:
    small = pb.CacheStats(block_map=bytes([0, 1, 2, 3]))
    assert drawn(block_map(small, 10, 2)).startswith("·▪■■")
    large = pb.CacheStats(block_map=bytes([0, 0, 0, 1, 2, 0, 0, 0]))
    lines = drawn(block_map(large, 2, 2)).splitlines()
    assert [line.rstrip() for line in lines[:2]] == ["·▪", "■·"]
    assert "a cell is 2 blocks" in drawn(block_map(large, 2, 2))


def test_ranks_and_their_memory_have_a_line_where_there_are_several() -> None:
    view, one = View(), snapshot(1.0, 0, [1, 1, 1])
    view.add(one)
    console = Console(width=80, height=24)
    alone = drawn(view.render(console), 80, 24)
    assert "ranks" not in alone
    one.memory.ranks.add(allocated_bytes=3 << 30)
    one.memory.ranks.add(allocated_bytes=5 << 20)
    view.add(one)
    shown = drawn(view.render(console), 80, 24)
    assert "2: 3.0 GiB, 5.0 MiB" in shown
    assert len(shown.splitlines()) == len(alone.splitlines()) + 1 <= 24
    assert ("ranks", "2: 3.0 GiB, 5.0 MiB") in rows(one)
    one.memory.ranks.extend([pb.RankMemory(allocated_bytes=7 << 30)] * 62)
    view.add(one)
    assert len(drawn(view.render(console), 80, 24).splitlines()) == len(shown.splitlines())


def test_the_view_holds_everything_at_any_size() -> None:
    view = View()
    view.add(snapshot(1.0, 0, [1, 1, 1]))
    view.add(snapshot(2.0, 640, [1, 5, 1]))
    for width, height in ((100, 40), (40, 10), (200, 80)):
        console = Console(width=width, height=height)
        shown = drawn(view.render(console), width, height)
        assert "640" in shown and "▪" in shown and "prefix cache" in shown


def test_top_as_a_command(server: Any) -> None:
    """Whoever reads a pipe gets each view as it comes, and not the last one at the end."""
    import sys

    words = ["top", "--count", "2", "--interval", "0.1", "-a", server.address]
    done = programs.run([sys.executable, "-m", "quire.clients.cli", *words], timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("■■▪··■") == 2 and done.stdout.endswith("╯\n")
