"""The HTTP API and those who mean it no good: slow, large, half-open, foreign, or not reading."""

import asyncio
import gc
import json
import socket
import struct
import weakref
from typing import Any

import pytest
from support.fake_engine import Device
from support.harness import PATIENCE, Running, run, serving
from support.http1 import CHAT, HELLO, Peer, ask, head, posted

from quire.service.openai.connection import HEADER_SECONDS
from quire.service.openai.http_server import HttpServer


def port(running: Running) -> int:
    return running.server.http_port


async def until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)


class Slow:
    """A server of one page that is held, under a clock of the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.may_answer = asyncio.Event()
        self.server = HttpServer(self.page, 2, 60.0, lambda: self.now)

    async def page(self, _scope: Any, _receive: Any, send: Any) -> None:
        await self.may_answer.wait()
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def open(self) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        await self.server.start([listening], None)
        return self.server.port

    async def pass_over(self, seconds: float) -> None:
        """All that was sent has been read by then."""
        self.now += seconds
        self.server.cut_off_slow()


def test_nothing_is_kept_of_a_connection_that_is_reset() -> None:
    """Its request, its answer and its buffers are gone with it: whoever resets connections without
    an end takes no memory."""

    async def test() -> None:
        slow = Slow()
        slow.may_answer.set()
        peer = await Peer.to(await slow.open())
        assert (await peer.ask(head("GET", "/"))).status == 200
        kept = [weakref.ref(connection) for connection in slow.server._state.connections]
        assert [one() is None for one in kept] == [False]
        own = peer.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.writer.transport.abort()
        await until(lambda: slow.server.connections == 0)
        gc.collect()
        assert [one() is None for one in kept] == [True]
        await slow.server.stop()

    run(test)


def test_slow_headers_are_cut_off_and_slow_answers_are_not() -> None:
    async def test() -> None:
        slow = Slow()
        number = await slow.open()
        waiting, trickling = await Peer.to(number), await Peer.to(number)
        await until(lambda: slow.server.connections == 2)
        waiting.writer.write(head("GET", "/"))
        await until(lambda: len(slow.server._state.tasks) == 1)
        trickling.writer.write(b"GET / HTTP/1.1\r\nHost: 127")
        await slow.pass_over(HEADER_SECONDS / 2)
        trickling.writer.write(b".0.0.1\r\nA: b\r\n")
        assert slow.server.connections == 2
        await slow.pass_over(HEADER_SECONDS / 2)
        assert await trickling.ended() == b""
        slow.may_answer.set()
        assert (await waiting.told()).status == 200
        await slow.pass_over(HEADER_SECONDS * 2)  # it rests, which it may
        assert (await waiting.ask(head("GET", "/"))).status == 200
        waiting.writer.write(b"GET / HT")
        await until(lambda: next(iter(slow.server._state.connections)).since is not None)
        await slow.pass_over(HEADER_SECONDS)
        assert await waiting.ended() == b""
        await slow.server.stop()

    run(test)


def test_connections_are_bounded() -> None:
    async def test() -> None:
        slow = Slow()
        number = await slow.open()
        first, second = await Peer.to(number), await Peer.to(number)
        await until(lambda: slow.server.connections == 2)
        third = await Peer.to(number)
        assert await third.ended() == b""
        await first.close()
        await until(lambda: slow.server.connections == 1)
        slow.may_answer.set()
        assert (await second.ask(head("GET", "/"))).status == 200
        await slow.server.stop()

    run(test)


def test_a_body_that_nobody_has_asked_for_stays_with_the_network() -> None:
    async def test() -> None:
        slow = Slow()
        peer = await Peer.to(await slow.open())
        peer.writer.write(posted("/", b"x", content_length="1000000"))
        await until(lambda: slow.server.connections)
        [connection] = slow.server._state.connections
        await until(lambda: connection.flow.read_paused)  # type: ignore[union-attr]
        slow.may_answer.set()
        assert (await peer.told()).status == 200
        await slow.server.stop()

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_side_has_left(stream: bool) -> None:
    """Who leaves says no more than that: what it has asked for must end, answered or not."""

    async def test() -> None:
        async with serving(http=True) as running:
            running.device.hold()
            peer = await Peer.to(port(running))
            peer.writer.write(posted(CHAT, {**HELLO, "stream": stream}))
            await running.until(lambda stats: stats.requests.running == 1)
            peer.writer.write_eof()
            await until(lambda: running.server.ledger.rpcs["Generate", "CANCELLED"] == 1)
            running.device.release()
            assert (await running.idle()).requests.finished_cancelled == 1
            await peer.close()

    run(test)


def test_a_client_that_leaves_within_its_body_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            peer = await Peer.to(port(running))
            peer.writer.write(posted(CHAT, b"{", content_length="100"))
            await until(lambda: running.server._places.reading == 1)
            await peer.close()
            await until(lambda: running.server._places.reading == 0)

    run(test)
    assert "a call failed" not in caplog.text


def test_a_stream_that_nobody_reads_is_ended_and_gives_back_all_it_held() -> None:
    async def test() -> None:
        async with serving(Device(), http=True, write_stall_seconds=60.0) as running:
            now, watch = [0.0], running.server._servicer._watch
            watch._clock = lambda: now[0]
            peer = await Peer.to(port(running), receive_bytes=4096)
            body = HELLO | {
                "stream": True, "max_tokens": 1900, "ignore_eos": True, "n": 4,
                "logprobs": True, "top_logprobs": 20,
            }  # fmt: skip
            peer.writer.write(posted(CHAT, body))
            assert running.server._http is not None
            connections = running.server._http._state.connections

            def stalled() -> bool:
                paused = any(connection.flow.write_paused for connection in connections)  # type: ignore[union-attr]
                return paused and all(writes.since is not None for writes in watch._open)

            await until(lambda: connections and stalled())
            now[0] = 61.0
            watch.look()
            await until(lambda: running.server.ledger.rpcs["Generate", "RESOURCE_EXHAUSTED"])
            await until(lambda: not connections)  # and its connection with it
            stats = await running.idle()
            assert stats.requests.finished_cancelled == 4
            await peer.close()

    run(test)


def test_what_is_left_unread_after_an_answer_is_cut_off() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            server = running.server._http
            assert server is not None
            now = [0.0]
            server._clock = lambda: now[0]
            peer = await Peer.to(port(running), receive_bytes=4096)
            body = HELLO | {
                "max_tokens": 1900, "ignore_eos": True, "n": 3, "logprobs": True, "top_logprobs": 20
            }  # fmt: skip
            peer.writer.write(posted(CHAT, body))
            await until(lambda: running.server.ledger.rpcs["Generate", "OK"])
            [connection] = server._state.connections
            await until(lambda: connection.cycle.response_complete)  # type: ignore[union-attr]
            server.cut_off_slow()
            now[0] = 66.0
            server.cut_off_slow()
            await until(lambda: not server._state.connections)
            await peer.close()

    run(test)


def test_an_answer_that_is_being_written_at_the_end_is_written_whole() -> None:
    device = Device()

    async def test() -> None:
        async with serving(device, http=True, drain_seconds=PATIENCE) as running:
            device.hold()
            peer = await Peer.to(port(running))
            peer.writer.write(posted(CHAT, HELLO))
            await running.until(lambda stats: stats.requests.running == 1)
            draining = asyncio.create_task(running.server.drain())
            await until(lambda: running.server._lifecycle.refusal() is not None)
            refused = await ask(port(running), posted(CHAT, HELLO))
            assert (refused.status, refused.code) == (503, "draining")
            device.release()
            await draining
            await running.server.stop()
            told = await peer.told()
            assert json.loads(told.body)["choices"][0]["finish_reason"] == "stop"
            assert await peer.ended() == b""

    run(test)
