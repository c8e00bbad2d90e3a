"""Ranks as processes that say what a test wants: what starts, what is refused, who is lost."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError, QuireError, RankError
from quire.engine.parallel import follower
from quire.engine.parallel import ranks as parallel_ranks
from quire.engine.parallel.codec import encode, encode_masks
from quire.engine.parallel.frame_channel import MAX_BYTES, FrameChannel, Kind, said, values_of
from quire.engine.parallel.group_exchange import GroupExchange, over_gloo
from quire.engine.parallel.leader import LeadingRunner
from quire.engine.parallel.process import Program
from quire.engine.parallel.rank_handles import LocalRank
from quire.engine.parallel.ranks import Ranks, ended_on_error
from quire.engine.parallel.store import Board, BoardStore, ChannelStore
from quire.engine.scheduling.plan import Masks, StepPlan
from quire.engine.startup import sizing
from quire.engine.startup import start_ranks as start
from quire.engine.startup.build_engine import build_engine

EMPTY = StepPlan(1, (), (), (), (), 0, 0)
# A rank that needs no torch: `say(kind, **values)`, `hear()`, `rank`, the number that it was given.
_BEGIN = """
import os, socket, sys, time
from quire.engine import lifeline
from quire.engine.parallel.frame_channel import Kind, FrameChannel, values_of
parent = socket.socket(fileno=int(sys.argv[1]))
lifeline.hold_to(parent)
channel = FrameChannel(parent)
say, hear = channel.send_json, channel.receive
rank = channel.expect(Kind.BUILD)["rank"]
"""


def program(body: str) -> list[str]:
    return [sys.executable, "-P", "-c", _BEGIN + body]


@dataclass
class Loss:
    """What is called when a rank is lost."""

    told: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.told.set()


def started(body: str, size: int = 3, on_loss: Any = None) -> Ranks:
    ranks = Ranks(Program(program(body)), size, on_loss or Loss())
    ranks.build({}, 1)
    return ranks


def gone(ranks: Ranks) -> bool:
    return not any(psutil.pid_exists(rank.process.pid) for rank in ranks._ranks)


STAYS = "hear()\n"


def test_processes_started_ahead_become_the_first_ranks() -> None:
    others = {child.pid for child in psutil.Process().children()}
    ahead = Program(program(STAYS), ahead=2)
    waiting = {child.pid for child in psutil.Process().children()} - others
    ranks = Ranks(ahead, 4, Loss())
    assert {rank.process.pid for rank in ranks._ranks[:2]} == waiting
    ranks.end()
    assert gone(ranks)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("say(Kind.REFUSED, error='ModelError', words='x is missing')", ModelError, "rank 2: x is"),
        ("say(Kind.REFUSED, error='exec', words='y')", QuireError, "rank 2: y"),
        ("os.kill(os.getpid(), 9)", RankError, r"rank 2 \(process \d+\) ended by SIGKILL"),
        ("say(Kind.DIED, error_id='ab')", RankError, r"rank 2 \(.*\) died by a fault \(ab\)"),
        ("sys.exit(7)", RankError, "ended by exit code 7"),
        ("parent.sendall(bytes(5))", RankError, "rank 2"),
        ("say(Kind.SET, key='k')", RankError, r"rank 2 \(.*\): SET was said without value"),
        ("channel.send(Kind.READY, b'[' * 200_000)", RankError, "a frame that is not JSON"),
    ],
)
def test_what_keeps_a_rank_from_starting_is_raised(
    body: str, kind: type[QuireError], words: str
) -> None:
    ranks = started(f"if rank == 2:\n    {body}\nelse:\n    {STAYS}")
    with pytest.raises(kind, match=words) as raised:
        with ended_on_error(ranks):
            ranks.wait_for(Kind.READY)
    assert "\n" not in str(raised.value)
    with pytest.raises(kind, match=words):
        ranks.check()  # as progress does
    assert gone(ranks)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (Kind.SET, b'{"key": "k"}', "SET was said without value"),
        (Kind.SIZED, b'{"blocks": "9", "fingerprint": "f"}', "SIZED was said without blocks"),
        (Kind.DIED, b"{}", "DIED was said without error_id"),
        (Kind.STOP, b"{}", "STOP is not for it to say"),
        (Kind.READY, b"[]", "a frame that is not a JSON object"),
        (Kind.READY, b"[" * 200_000, "a frame that is not JSON"),
    ],
)
def test_what_is_said_to_rank_0_is_looked_at_whole(kind: Kind, body: bytes, words: str) -> None:
    with pytest.raises(RankError, match=words):
        said(kind, body)
    assert said(Kind.READY, b'{"pid": 7}') == {"pid": 7}


def test_who_is_lost_before_the_ranks_meet_ends_the_meeting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the process, where nobody notices."""
    monkeypatch.setattr(parallel_ranks, "NOTICE_SECONDS", 0.0)
    loss = Loss()
    ranks = started("sys.exit(3)", on_loss=loss)
    with pytest.raises(RankError, match="ended by exit code 3"):
        ranks.meet(lambda store: store.get("never"))
    assert loss.told.wait(PATIENCE)
    assert "ended by exit code 3: without it nothing can be computed" in caplog.text
    ranks.end()


def test_who_does_not_come_to_the_meeting_is_named() -> None:
    come = "say(Kind.SET, key=f'r{rank}', value='00')\nsay(Kind.READY)\n"
    ranks = started(
        f"if rank != 2:\n    {come.replace(chr(10), chr(10) + '    ')}\n{STAYS}", size=4
    )
    assert [ranks.board.get(key) for key in ("r1", "r3")] == ["00", "00"]
    with pytest.raises(RankError, match="rank 2 did not come within 0 s"):
        ranks.meet(lambda store: store.get("never"), seconds=0)
    ranks.end()


def test_ranks_take_the_least_number_of_blocks_of_all() -> None:
    told = []
    ranks = started(
        "say(Kind.PROGRESS, stage='weights', share=rank / 4)\n"
        "say(Kind.SIZED, blocks=100 - rank, fingerprint='f')\n"
        "say(Kind.READY, blocks=channel.expect(Kind.BLOCKS)['blocks'])\n" + STAYS
    )
    progress, agree = start.leading(ranks, lambda stage, share: told.append((stage, share)))
    assert agree(200, "f") == 98
    assert [ready["blocks"] for ready in ranks.wait_for(Kind.READY)] == [98, 98]
    progress("weights", 0.1)
    progress("weights", 1.0)
    progress("graphs", 1.0)
    assert told == [("weights", 0.1), ("weights", 0.25), ("graphs", 1.0)]  # of the slowest
    ranks.end()
    assert gone(ranks)


def test_a_rank_with_another_model_is_refused() -> None:
    ranks = started("say(Kind.SIZED, blocks=9, fingerprint='gg' if rank == 2 else 'f')\n" + STAYS)
    _, agree = start.leading(ranks, lambda _stage, _share: None)
    with pytest.raises(ConfigError, match="rank 2 has another model than rank 0: fingerprint gg"):
        agree(9, "f")
    ranks.end()


@pytest.mark.parametrize("dies", [1, 2])
def test_a_rank_that_is_lost_takes_the_others_along(dies: int) -> None:
    """Idle, too: nothing has to be sent for it."""
    loss = Loss()
    ranks = started("say(Kind.READY)\n" + STAYS, on_loss=loss)
    ranks.wait_for(Kind.READY)
    ranks.serving()
    assert not loss.told.is_set()
    os.kill(ranks._ranks[dies - 1].process.pid, signal.SIGKILL)
    assert loss.told.wait(PATIENCE)
    with pytest.raises(RankError, match=rf"rank {dies} \(process \d+\) ended by SIGKILL"):
        ranks.send(Kind.PLAN, b"")
    for rank in ranks._ranks:
        assert rank.process.wait(PATIENCE) == -signal.SIGKILL


def test_who_is_lost_is_known_before_the_engine_ends_by_what_the_exchange_says_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ranks, waits = started("say(Kind.READY)\n" + STAYS, on_loss=Loss()), threading.Event()
    wait_for, how_it_ended = ranks._changed.wait_for, LocalRank.how_it_ended

    def waited_for(*given: Any) -> bool:
        waits.set()
        return wait_for(*given)

    def late(rank: LocalRank) -> str:
        """By a thread that has its turn only when the engine's waits."""
        waits.wait(PATIENCE)
        return how_it_ended(rank)

    monkeypatch.setattr(ranks._changed, "wait_for", waited_for)
    monkeypatch.setattr(LocalRank, "how_it_ended", late)
    ranks.wait_for(Kind.READY)
    ranks.serving()
    os.kill(ranks._ranks[0].process.pid, signal.SIGKILL)
    runner: Any = None
    assert LeadingRunner(runner, ranks).is_fatal(RankError("the ranks do not exchange any more"))
    assert "ended by SIGKILL: without it nothing can be computed" in caplog.text
    ranks.end()


def test_an_end_that_is_meant_is_no_loss() -> None:
    loss = Loss()
    ranks = started("say(Kind.READY)\n" + STAYS, on_loss=loss)
    ranks.wait_for(Kind.READY)
    ranks.serving()
    ranks.end()
    for thread in threading.enumerate():
        if thread.name.startswith("quire-rank-"):
            thread.join(PATIENCE)
    assert not loss.told.is_set()


def test_memory_is_what_was_said_last() -> None:
    ranks = started(
        "say(Kind.MEMORY, allocated=1, peak=2)\nsay(Kind.MEMORY, allocated=rank, peak=9)\n"
        "say(Kind.READY)\n" + STAYS
    )
    ranks.wait_for(Kind.READY)
    assert ranks.memory == [(1, 9), (2, 9)]
    ranks.end()


def test_a_split_that_cannot_be_and_an_engine_without_ranks_start_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "Ranks", None)
    config = EngineConfig(model="random:tiny", device="cpu", tensor_parallel_size=3)
    with pytest.raises(
        ConfigError, match=r"size = 3: must be a multiple of .* num_key_value_heads = 2"
    ):
        build_engine(config, lambda _stage, _share: None, rank_program=Program(["none"]))
    config = config.replace(tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="engine_process = on"):
        build_engine(config, lambda _stage, _share: None)


def test_ranks_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "Ranks", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    config = EngineConfig(model="random:tiny", tensor_parallel_size=4)
    with pytest.raises(ConfigError, match="tensor_parallel_size = 4: at most 3 ranks a node"):
        build_engine(config, lambda _stage, _share: None, rank_program=Program(["none"]))
    assert sizing.resolve_device(config.replace(tensor_parallel_size=3), rank=2).index == 2


# ---------------------------------------------------------------- the channel


@pytest.fixture
def channels() -> Iterator[tuple[FrameChannel, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield FrameChannel(one), other


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the line has ended"),
        (b"\x04\x09\x00\x00\x00abc", "the line has ended"),
        (b"\x63\x00\x00\x00\x00", "no known kind: 99"),
        (b"\x04" + (MAX_BYTES + 1).to_bytes(4, "little"), "at most"),
        (b"\x05\x02\x00\x00\x00{}", "STOP was said where BUILD was due"),
        (b"\x01\x02\x00\x00\x00[]", "not a JSON object"),
        (b"\x01\x02\x00\x00\x00{{", "not JSON"),
    ],
)
def test_what_is_no_frame_is_refused(
    channels: tuple[FrameChannel, socket.socket], data: bytes, words: str
) -> None:
    channel, other = channels
    other.sendall(data)
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(RankError, match=words):
        channel.expect(Kind.BUILD)


def test_who_hears_nothing_is_noticed(channels: tuple[FrameChannel, socket.socket]) -> None:
    channel, other = channels
    other.close()
    with pytest.raises(RankError, match="cannot be told"):
        channel.send_json(Kind.STOP)


# ---------------------------------------------------------------- a follower


@dataclass
class Scripted:
    """A follower whose steps are noted."""

    executed: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    masks: list[Masks] = field(default_factory=list)

    def execute(self, plan: StepPlan) -> "Step | None":
        if plan.step_id == 13:
            raise ValueError("unlucky")
        self.executed.append(plan.step_id)
        return None if plan.masked else Step(plan.step_id, self)

    def sample(self, masks: Masks) -> "Step":
        self.masks.append(masks)
        return Step(self.executed[-1], self)

    def memory(self) -> tuple[int, int]:
        return 5, 6


@dataclass
class Step:
    number: int
    whose: Scripted

    def wait(self) -> None:
        self.whose.waited.append(self.number)


def follow(
    frames: list[tuple[Kind, bytes]], channels: tuple[FrameChannel, socket.socket]
) -> Scripted:
    channel, other = channels
    sender = FrameChannel(other)
    for kind, body in frames:
        sender.send(kind, body)
    scripted = Scripted()
    follower.follow(scripted, channel)
    return scripted


def plan(number: int, *masked: int) -> tuple[Kind, bytes]:
    return Kind.PLAN, encode(EMPTY._replace(step_id=number, masked=masked))


def test_a_step_with_masked_rows_is_sampled_when_its_masks_have_come(
    channels: tuple[FrameChannel, socket.socket],
) -> None:
    masks = ((4, b"x"),)
    frames = [plan(1, 4), (Kind.MASKS, encode_masks(masks)), plan(2), (Kind.STOP, b"{}")]
    scripted = follow(frames, channels)
    assert (scripted.executed, scripted.waited, scripted.masks) == ([1, 2], [1], [masks])


def test_a_follower_executes_in_order_and_is_one_step_ahead_at_most(
    channels: tuple[FrameChannel, socket.socket],
) -> None:
    scripted = follow([plan(1), plan(2), plan(3), (Kind.STOP, b"{}")], channels)
    assert (scripted.executed, scripted.waited) == ([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ((Kind.BLOCKS, b"{}"), "BLOCKS was said where PLAN was due"),
        ((Kind.PLAN, b"x"), "no plan"),
        (plan(1, 4), "STOP was said where MASKS was due"),
    ],
)
def test_a_follower_takes_plans_alone(
    frame: tuple[Kind, bytes], words: str, channels: tuple[FrameChannel, socket.socket]
) -> None:
    with pytest.raises(RankError, match=words):
        follow([frame, (Kind.STOP, b"{}")], channels)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ModelError("x is missing"), follower.EXIT_REFUSED, Kind.REFUSED),
        (RankError("gone"), follower.EXIT_DEAD, None),
        (ValueError("unlucky"), follower.EXIT_DEAD, Kind.DIED),
    ],
)
def test_why_a_follower_ends_is_said(
    error: Exception,
    code: int,
    said: Kind | None,
    channels: tuple[FrameChannel, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel, other = channels

    def build(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(follower, "build", build)
    assert follower.serve(build, channel) == code
    other.setblocking(False)
    if said is None:
        with pytest.raises(BlockingIOError):
            other.recv(1)
        return
    values = FrameChannel(other).expect(said)
    assert values.get("words", str(error)) == str(error)


def test_a_follower_is_built_as_rank_0_says(channels: tuple[FrameChannel, socket.socket]) -> None:
    """Alone in its world here: it meets nobody but rank 0's board."""
    channel, other = channels
    rank_0, made, before = FrameChannel(other), [], torch.get_num_threads()

    def builder(config: EngineConfig, rank: int, meet: Any, progress: Any, agree: Any) -> Scripted:
        made.append(rank)
        world = meet()
        made.append((config, world.rank, world.size, torch.get_num_threads()))
        progress("weights", 0.5)
        made.append(agree(70, "print"))
        return Scripted()

    def lead() -> list[dict[str, Any]]:
        asked = {"rank": 0, "threads": 1, "address": "127.0.0.1"}
        rank_0.send_json(Kind.BUILD, config={"model": "m", "seed": 4}, **asked)
        board: dict[str, str] = {}
        while (heard := rank_0.receive())[0] is not Kind.SIZED:
            values = values_of(heard[1])
            if heard[0] is Kind.SET:
                board[values["key"]] = values["value"]
            elif heard[0] is Kind.GET:
                rank_0.send_json(Kind.VALUE, value=board[values["key"]])
        assert values_of(heard[1]) == {"blocks": 70, "fingerprint": "print"}
        rank_0.send_json(Kind.BLOCKS, blocks=60)
        return [rank_0.expect(Kind.MEMORY), rank_0.expect(Kind.READY)]

    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(lead)
        try:
            follower.build(builder, channel)
        finally:
            torch.set_num_threads(before)
        assert said.result(PATIENCE) == [{"allocated": 5, "peak": 6}, {}]
    assert made == [0, (EngineConfig(model="m", seed=4), 0, 1, 1), 60]


# ---------------------------------------------------------------- the exchange


def together(size: int, run: Any) -> list[Any]:
    """Of each rank, on a thread, what `run` returns of its exchange."""
    board = Board()

    def one(rank: int) -> Any:
        return run(rank, over_gloo(BoardStore(board), rank, size))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_what_is_gathered_stands_in_rank_order_whatever_it_is(size: int) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.bool)

    def run(rank: int, exchange: GroupExchange) -> list[torch.Tensor]:
        wide = [torch.full((3, 4), rank + 1).to(dtype).t() for dtype in dtypes]
        return [exchange.gather(x) for x in (*wide, torch.tensor([float(rank)]).log())]

    first, *others = together(size, run)
    for mine, dtype in zip(first, dtypes, strict=False):
        expected = torch.stack([torch.full((4, 3), rank + 1).to(dtype) for rank in range(size)])
        assert mine.dtype is dtype and mine.equal(expected)
    assert first[-1][:2].tolist() == [[float("-inf")], [0.0]]
    for other in others:
        assert all(map(torch.equal, first, other))


def test_an_exchange_whose_other_end_is_gone_is_fatal() -> None:
    class Broken:
        def _allgather_base(self, *_: object) -> None:
            raise RuntimeError("Connection closed by peer\nC++ trace")

    exchange = GroupExchange(Broken(), 2, BoardStore(Board()))  # type: ignore[arg-type]
    with pytest.raises(RankError) as raised:
        exchange.gather(torch.ones(1))
    assert str(raised.value) == "the ranks do not exchange any more: Connection closed by peer"
    told: list[bool] = []
    ranks: Any = SimpleNamespace(wait_told=lambda: told.append(True))
    assert LeadingRunner(ranks, ranks).is_fatal(raised.value) and told == [True]
    assert LeadingRunner(ranks, ranks).is_fatal(ValueError("unlucky")) and told == [True]


def test_a_channel_is_a_store_too(channels: tuple[FrameChannel, socket.socket]) -> None:
    channel, other = channels
    store, rank_0 = ChannelStore(channel), FrameChannel(other)
    store.set("k", b"\x00\xff")
    asked = rank_0.expect(Kind.SET)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(store.get, "k")
        assert rank_0.expect(Kind.GET) == {"key": "k"}
        rank_0.send_json(Kind.VALUE, value=asked["value"])
        assert got.result(PATIENCE) == b"\x00\xff"
