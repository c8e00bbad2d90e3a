"""`quire top` on a terminal: everything at 80 × 24, and ways to leave that set it back."""

import signal
from typing import Any

import pytest
from rich.console import Console
from support.terminal_session import TerminalSession

from quire.clients.commands.top import View, pooled, short
from quire.v1 import inference_pb2 as pb

BOUNDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0]
REFUSED = {
    "RESOURCE_EXHAUSTED": 123_456_789,
    "INVALID_ARGUMENT": 98_765_432,
    "UNAUTHENTICATED": 12_345_678,
    "DEADLINE_EXCEEDED": 5_000,
}


def busy(step: int, blocks: int = 131_072) -> pb.StatsResponse:
    """A server of large numbers. step: how often it was asked before."""
    counts = [step * 123_456 + 7 for _ in range(len(BOUNDS) + 1)]
    histogram = pb.Histogram(bounds=BOUNDS, counts=counts, sum=sum(counts) * 1.234)
    big = 987_654_321_012
    return pb.StatsResponse(
        uptime_seconds=1e6 + step,
        model=pb.ModelInfo(name="Qwen/Qwen3-30B-A3B-Instruct-2507", device="NVIDIA H100 80GB HBM3"),
        requests=pb.RequestStats(running=4096, waiting=65_536, finished_stop=big, refused=REFUSED),
        tokens=pb.TokenStats(delivered=step * 234_567, prefill_computed=step * 1_234_567),
        cache=pb.CacheStats(
            block_size=16,
            blocks_total=blocks,
            blocks_in_use=blocks // 2,
            prefix_tokens_queried=big,
            prefix_tokens_hit=big // 2,
            evictions=big,
            preemptions=big,
            block_map=(bytes(range(4)) * blocks)[:blocks],
        ),
        time_to_first_token_seconds=histogram,
        inter_token_latency_seconds=histogram,
        queue_time_seconds=histogram,
    )


def frame(width: int, height: int, view: View) -> list[str]:
    """The lines of the view on a console of this size."""
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123
        console = Console(width=width, height=height, file=nowhere)
        with console.capture() as capture:
            console.print(view.render(console, "press q to leave"))
    return capture.get().splitlines()


@pytest.mark.parametrize("blocks", [3, 500, 131_072])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (200, 60)])
def test_a_busy_server_fits_and_nothing_is_cut(width: int, height: int, blocks: int) -> None:
    view = View()
    for step in range(150):
        view.add(busy(step, blocks))
    lines = frame(width, height, view)
    whole = "\n".join(lines)
    assert len(lines) <= height
    assert all(len(line) == width for line in lines)
    assert "…" not in whole
    for words in (
        "Qwen/Qwen3-30B-A3B-Instruct-2507 on NVIDIA H100 80GB HBM3", "output tokens/s", "234,567",
        "prefill tokens/s", "1,234,567", "4,096 running, 65.5k waiting, 987.7G finished",
        "50.0 % of 987.7G tokens cached, 987.7G evictions", "987,654,321,012",
        "234.6M: RESOURCE_EXHAUSTED 123.5M", "p50", "p90", "p99", "mean", "count", "first token",
        "between tokens", "≤ 250 ms", "> 60.00 s", "in use", "shared", "press q to leave",
    ):  # fmt: skip
        assert words in whole, words


def test_statuses_without_room_are_counted() -> None:
    view = View()
    view.add(busy(0))
    text = "\n".join(frame(80, 24, view))
    assert "234.6M: RESOURCE_EXHAUSTED 123.5M, 3 more" in text
    assert "DEADLINE_EXCEEDED 5,000" in "\n".join(frame(140, 24, view))


def test_short_counts() -> None:
    given = (0, 9_999, 10_000, 999_949, 999_950, 1_234_567, 2**63)
    assert [short(count) for count in given] == [
        "0", "9,999", "10.0k", "999.9k", "1.0M", "1.2M", "9223.4P",
    ]  # fmt: skip


def test_buckets_without_room_are_added_up() -> None:
    assert pooled([1, 2, 3], 3) == [1.0, 2.0, 3.0]
    assert pooled([1, 2, 3, 4, 5], 3) == [3.0, 7.0, 5.0]


def test_a_models_name_is_no_markup() -> None:
    view = View()
    view.add(pb.StatsResponse(model=pb.ModelInfo(name="[red]a[/]", device="cpu")))
    assert "[red]a[/] on cpu" in frame(80, 24, view)[0]


@pytest.mark.parametrize("key", ["q", "\x04", "xQ"])
def test_a_key_leaves_at_once_and_the_terminal_is_as_before(server: Any, key: str) -> None:
    with TerminalSession("top", "--interval", "3600", "-a", server.address) as session:
        session.wait_for("press q to leave")
        assert session.settings() != session.before
        session.write(key)
        assert session.exit_code() == 0
        assert session.settings() == session.before
        assert session.shown.index("\x1b[?1049h") < session.shown.index("\x1b[?1049l")
        assert "\x1b[?25h" in session.shown.rpartition("\x1b[?25l")[2]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_terminal_is_as_before(
    server: Any, sent: signal.Signals, code: int
) -> None:
    with TerminalSession("top", "--interval", "3600", "-a", server.address) as session:
        session.wait_for("press q to leave")
        session.process.send_signal(sent)
        assert session.exit_code() == code
        assert session.settings() == session.before
        assert "\x1b[?1049l" in session.shown and "Traceback" not in session.shown
        assert "\x1b[?25h" in session.shown.rpartition("\x1b[?25l")[2]
