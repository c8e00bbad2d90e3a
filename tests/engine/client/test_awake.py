"""Who polls instead of sleeping, and until when."""

import asyncio
import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paced_streams import Loop as PacedLoop
from support.paced_streams import Stream
from support.scripted_link import INFO, ScriptedLink

from quire.engine.client import awake, wire
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.awake import AWAKE, FEW, SILENT, Awake, seconds_awake
from quire.engine.client.pacing import PROCESS_SHARE
from quire.engine.client.process_main import Channel
from quire.engine.loop.commands import AskBlockMap
from quire.engine.loop.stats import EngineInfo
from quire.engine.request import GenerationRequest, Output, SamplingParams


class Loop:
    """Runs what it is given when the test says so, by a clock that the test sets."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.now = 100.0
        self.busy = False
        self.awake = Awake(self.soon.append, lambda: self.busy, clock=lambda: self.now)
        self.awake.seconds = 0.5

    def goes_round(self) -> bool:
        """One turn; whether there is another one at once."""
        turns, self.soon[:] = list(self.soon), []
        for turn in turns:
            turn()
        assert self.awake.turning == (len(self.soon) == 1)
        return bool(self.soon)


def test_a_loop_goes_round_while_few_streams_are_open_and_a_moment_longer() -> None:
    loop = Loop()
    assert not loop.goes_round()
    loop.awake.begin()
    loop.now += 0.9
    assert loop.goes_round() and loop.goes_round()
    loop.awake.end()
    loop.now += 0.4
    assert loop.goes_round()
    loop.awake.begin()
    loop.awake.end()
    loop.now += 0.4
    assert loop.goes_round(), "the moment counts from the last stream's end"
    loop.now += 0.2
    assert not loop.goes_round() and not loop.goes_round()


def test_a_loop_whose_streams_are_silent_sleeps() -> None:
    """As where nobody reads, or all wait for memory."""
    loop = Loop()
    loop.awake.begin()
    for _ in range(3):
        loop.now += SILENT * 0.9
        assert loop.goes_round()
        loop.awake.stay()
    loop.now += SILENT * 1.1
    assert not loop.goes_round()
    loop.awake.stay()
    assert loop.goes_round(), "there are words again"


def test_it_sleeps_as_it_likes_while_many_are_open() -> None:
    loop = Loop()
    for _ in range(FEW):
        loop.awake.begin()
    assert loop.goes_round()
    loop.awake.begin()
    assert not loop.goes_round()
    loop.awake.begin()
    loop.awake.end()
    assert not loop.goes_round()
    loop.awake.end()
    assert loop.goes_round(), "few again"


def test_it_leaves_the_interpreter_to_threads_that_read_prompts() -> None:
    loop = Loop()
    loop.awake.begin()
    assert loop.goes_round()
    loop.busy = True
    assert not loop.goes_round()
    loop.awake.end()
    assert not loop.goes_round()
    loop.busy = False
    loop.awake.begin()
    assert loop.goes_round()


def test_what_a_loop_that_goes_round_has_used_holds_up_no_words() -> None:
    """Those of the fifth stream, with which it stops."""

    def turn_soon(turn: Callable[[], None]) -> None:
        def after_work() -> None:
            loop.burn(1e-4)
            turn()

        loop.call_later(0.0, after_work)

    loop = PacedLoop(cost=1e-4, share=PROCESS_SHARE)
    goes_round = Awake(turn_soon, on_rest=loop.pacer.forgive, clock=lambda: loop.now)
    goes_round.seconds = AWAKE
    streams = [Stream(loop) for _ in range(FEW + 1)]
    for _ in streams[1:]:
        goes_round.begin()
    loop.run_until(SILENT / 2)
    assert goes_round.turning and loop.used > 0.4 * SILENT
    goes_round.begin()
    loop.run_until(loop.now + 0.01)
    assert not goes_round.turning
    for stream in streams:
        stream.push()
    loop.pacer.run()
    loop.run_until(loop.now + 1)
    assert max(stream.longest_wait for stream in streams) < len(streams) * loop.cost


def test_a_machine_of_few_cores_and_a_cpu_that_computes_have_none_to_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for count, seconds in ((2, 0.0), (3.9, 0.0), (4, AWAKE), (64, AWAKE)):
        monkeypatch.setattr(awake, "cores", lambda count=count: count)
        assert seconds_awake("cuda:0 NVIDIA H200") == seconds
        assert seconds_awake("cpu") == 0.0
    loop = Loop()
    loop.awake = Awake(loop.soon.append)
    loop.awake.begin()
    assert not loop.goes_round()


def test_what_a_container_may_use_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    assert awake.cores(quota) == 8, "no control groups"
    for text, count in (
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("50000 100000\n", 0.5),
        ("1600000 100000\n", 8),
        ("", 8),
        ("0 0\n", 8),
    ):
        quota.write_text(text)
        assert awake.cores(quota) == count, text


class Link(ScriptedLink):
    def __init__(self, *, own_process: bool) -> None:
        super().__init__()
        self.own_process = own_process

    async def start(self, receiver: object) -> EngineInfo:
        await super().start(receiver)  # type: ignore[arg-type]
        return dataclasses.replace(INFO, device="cuda:0")


@pytest.mark.parametrize(
    ("own_process", "reading", "turns"),
    ((True, False, True), (False, False, False), (True, True, False)),
)
def test_a_loop_goes_round_where_no_thread_wants_its_interpreter(
    own_process: bool, reading: bool, turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an engine's, nor one that reads a prompt."""
    monkeypatch.setattr(awake, "cores", lambda: 16)

    async def run() -> None:
        engine = AsyncEngine(link := Link(own_process=own_process))
        engine.others_work = lambda: reading
        await engine.start()
        stream = engine.generate(GenerationRequest(1, (1,), SamplingParams(max_tokens=2)))
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert engine._awake.turning == turns
        monkeypatch.setattr(awake, "SILENT", 60.0)
        before = engine._awake._until
        link.say([])
        assert engine._awake._until == before
        link.say([Output(1, 0, token_ids=[5])])
        assert (engine._awake._until > before + 50) == own_process
        assert [output.token_ids for output in await first] == [[5]]
        await stream.aclose()
        assert engine._awake._open == 0
        await engine.stop()

    asyncio.run(run())


def test_an_idle_engine_polls_before_it_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel, looks = Channel(ours), 0
        receive = channel._receive

        def look() -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                theirs.sendall(wire.frame((wire.COMMANDS, [wire.pack_command(AskBlockMap())])))
            receive()

        def sleep() -> None:
            raise TimeoutError

        monkeypatch.setattr(channel, "_receive", look)
        monkeypatch.setattr(channel, "_wait", sleep)
        with pytest.raises(TimeoutError):
            channel.take(wait=True)
        assert looks == 1
        channel.awake = 60.0
        assert channel.take(wait=True) == [AskBlockMap()]
        assert looks == 3
        ticks = iter(range(10))
        monkeypatch.setattr("time.monotonic", lambda: 30.0 * next(ticks))
        with pytest.raises(TimeoutError):
            channel.take(wait=True)
        assert looks == 3 + 1 + 1, "for its time, and no longer"
