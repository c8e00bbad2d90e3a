"""What a link delivers of an engine that has ended, over a thread and over a process."""

import asyncio
import socket
import threading
from typing import Any

import pytest
from support.dying_engine import INFO, Built, batch, end, run
from support.patience import PATIENCE
from support.simulation import Shape
from support.simulator import Simulator

from quire.engine.client import wire
from quire.engine.client.in_process import ProcessLink
from quire.engine.client.in_thread import ThreadLink
from quire.engine.client.link import Receiver
from quire.engine.config import EngineConfig
from quire.engine.loop.core import EngineCore
from quire.engine.loop.heartbeat import Heartbeat


class Heard:
    """A Receiver's side, in order."""

    def __init__(self) -> None:
        self.words: list[Any] = []
        self.receiver = Receiver(
            lambda batches: self.words.extend(o.key for b in batches for o in b.outputs),
            lambda error: self.words.append(error.error_id),
            lambda _stage, _share: None,
        )


def test_a_thread_that_is_given_up_has_delivered_what_it_had_published() -> None:
    async def test() -> None:
        heard = Heard()

        def build(_config: EngineConfig, _progress: Any) -> Any:
            simulator = Simulator(Shape())
            return Built(EngineCore(simulator.scheduler, simulator.device, overlap=False))  # type: ignore[arg-type]

        link = ThreadLink(EngineConfig(), build)
        await link.start(heard.receiver)
        published = threading.Thread(target=lambda: link._publish(batch(end(7))))
        published.start()
        published.join(PATIENCE)
        assert heard.words == [], "the event loop has had no turn since"
        link.give_up()
        assert heard.words == [7]
        await asyncio.sleep(0)
        assert heard.words == [7], "and not twice"
        link._abandoned = False
        await link.stop()

    run(test())


class Closing:
    """An event loop that is closed by another thread after each look at it."""

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, *_: Any) -> None:
        raise RuntimeError("Event loop is closed")


def test_what_a_thread_says_to_a_loop_that_closes_just_now_is_dropped() -> None:
    link: Any = ThreadLink(EngineConfig())
    link._loop, link._receiver = Closing(), Heard().receiver
    link._publish(batch(end(7)))


class Child:
    """A child process's parent side, whose other end the test holds."""

    pid = 0

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.busy = Heartbeat()

    def kill(self) -> None:
        self.theirs.close()

    def wait(self) -> int:
        return 1


async def started(child: Child) -> tuple[Heard, ProcessLink]:
    """A link to it, which has told what its engine is."""
    heard = Heard()
    link = ProcessLink(EngineConfig(), child)  # type: ignore[arg-type]
    starting = asyncio.ensure_future(link.start(heard.receiver))
    await asyncio.sleep(0)
    child.theirs.sendall(wire.frame(wire.pack_info(INFO)))
    await starting
    return heard, link


def test_how_a_process_has_ended_is_told_before_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waits = [threading.Event(), threading.Event()]

    class Slow(Child):
        """Who waits for it first is told last."""

        def wait(self) -> int:
            if waits[0].is_set():
                waits[1].set()
            else:
                waits[0].set()
                assert waits[1].wait(PATIENCE)
            return -9

    async def test() -> None:
        child = Slow()
        _, link = await started(child)
        child.theirs.close()
        assert await asyncio.to_thread(waits[0].wait, PATIENCE)
        await link.stop()
        assert "the engine's process has ended by SIGKILL" in caplog.text

    run(test())


@pytest.mark.parametrize("ending", ("dies", "is killed", "is given up"))
def test_a_process_s_words_all_come_before_its_end(ending: str) -> None:
    async def test() -> None:
        child = Child()
        heard, link = await started(child)
        for key in range(64):
            child.theirs.sendall(wire.frame(wire.pack_batch(batch(end(key)))))
        if ending == "is given up":
            link.give_up()
            assert heard.words == list(range(64)), "told at once; the error is the caller's"
        else:
            if ending == "dies":
                child.theirs.sendall(wire.frame((wire.DIED, "id")))
            child.theirs.close()
            while len(heard.words) < 65:
                await asyncio.sleep(0.001)
            assert heard.words[:64] == list(range(64))
            assert isinstance(heard.words[64], str)
        await link.stop()

    run(test())
