"""A follower, and the channel that it hears rank 0 over."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import torch
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError, RankError
from quire.engine.parallel import follower
from quire.engine.parallel.codec import encode, encode_masks
from quire.engine.parallel.frame_channel import MAX_BYTES, FrameChannel, Kind, values_of
from quire.engine.parallel.ranks import Ranks
from quire.engine.parallel.store import ChannelStore
from quire.engine.scheduling.plan import Masks, StepPlan

EMPTY = StepPlan(1, (), (), (), (), 0, 0)


def gone(ranks: Ranks) -> bool:
    return not any(psutil.pid_exists(rank.process.pid) for rank in ranks._ranks)


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
    assert values.get("message", str(error)) == str(error)


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
