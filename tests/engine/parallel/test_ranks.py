"""Ranks as processes that say what a test wants: what starts, what is refused, who is lost."""

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import torch
from support.patience import PATIENCE

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError, QuireError, RankError
from quire.engine.parallel import ranks as parallel_ranks
from quire.engine.parallel.frame_channel import Kind, checked_values
from quire.engine.parallel.leader import LeadingRunner
from quire.engine.parallel.process import Program
from quire.engine.parallel.rank_handles import LocalRank
from quire.engine.parallel.ranks import Ranks, ended_on_error
from quire.engine.startup import sizing
from quire.engine.startup import start_ranks as start
from quire.engine.startup.build_engine import build_engine

# A rank that needs no torch: `say(kind, **values)`, `hear()`, `rank`, the number that it was given.
_BEGIN = """
import os, socket, sys, time
from quire.engine import lifeline
from quire.engine.parallel.frame_channel import Kind, FrameChannel, values_of
parent = socket.socket(fileno=int(sys.argv[1]))
lifeline.end_with_parent(parent)
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
        (
            "say(Kind.REFUSED, error='ModelError', message='x is missing')",
            ModelError,
            "rank 2: x is",
        ),
        ("say(Kind.REFUSED, error='exec', message='y')", QuireError, "rank 2: y"),
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
        checked_values(kind, body)
    assert checked_values(Kind.READY, b'{"pid": 7}') == {"pid": 7}


def test_who_is_lost_before_the_ranks_meet_ends_the_meeting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the process, where nobody notices."""
    monkeypatch.setattr(parallel_ranks, "NOTICE_SECONDS", 0.0)
    loss = Loss()
    ranks = started("sys.exit(3)", on_loss=loss)
    with pytest.raises(RankError, match="ended by exit code 3"):
        ranks.rendezvous(lambda store: store.get("never"))
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
        ranks.rendezvous(lambda store: store.get("never"), seconds=0)
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
