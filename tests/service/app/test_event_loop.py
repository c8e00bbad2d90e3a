"""The loop under the server: gRPC's wake-up bytes do not pile up."""

import asyncio
import fcntl
import functools
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.harness import ask, generate, serving
from support.patience import PATIENCE

from quire.service.app import event_loop
from quire.service.app.event_loop import new_event_loop


@pytest.fixture(params=["uvloop", "asyncio"])
def make_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """On each of the two loops."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    return new_event_loop


@contextmanager
def wakes() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What gRPC's thread writes to, and what the loop reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def waiting(sock: socket.socket) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    return int(count)


def test_all_bytes_are_read_with_one_look_at_the_events(make_loop: Callable[[], Any]) -> None:
    left: list[int] = []

    async def test() -> None:
        with wakes() as (ours, theirs):
            loop, looked = asyncio.get_running_loop(), asyncio.Event()

            def _handle_events(_loop: Any) -> None:
                ours.recv(1)  # it blocks where there is nothing: as gRPC's does
                left.append(waiting(ours))
                looked.set()

            theirs.sendall(b"1" * 200)
            loop.add_reader(ours, functools.partial(_handle_events, loop))
            for _ in range(2):
                await asyncio.wait_for(looked.wait(), PATIENCE)
                looked.clear()
                theirs.sendall(b"1")
            loop.remove_reader(ours)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(test())
    assert left == [0, 0]


def test_other_readers_are_left_alone(make_loop: Callable[[], Any]) -> None:
    async def test() -> None:
        with wakes() as (ours, theirs):
            loop, read = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(ours, read.set)
            theirs.sendall(b"123")
            await asyncio.wait_for(read.wait(), PATIENCE)
            loop.remove_reader(ours)
            assert waiting(ours) == 3

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(test())


def test_grpc_takes_its_events_in_the_way_that_is_mended(
    make_loop: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release of gRPC that does it otherwise would leave the mend without effect."""
    drained: list[int] = []
    real = event_loop._Wakes.recv

    def counted(wakes: Any, size: int) -> bytes:
        drained.append(size)
        return real(wakes, size)

    monkeypatch.setattr(event_loop._Wakes, "recv", counted)

    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask([300], max_tokens=2))
            assert answer.ids() == [300, 2]

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(test(), PATIENCE))
    assert drained
