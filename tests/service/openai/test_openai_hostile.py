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
from support.harness import PATIENCE, Running, generate, run, serving
from support.http1 import CHAT, HELLO, Peer, ask, head, posted

from quire.service.openai import bodies
from quire.service.openai.answer_room import Room
from quire.service.openai.connection import HEADER_SECONDS
from quire.service.openai.http_server import HttpServer
from quire.v1 import inference_pb2 as pb


async def until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.005)


def port(running: Running) -> int:
    return running.server.http_port


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


@pytest.mark.parametrize("begun", [b"GET / HT", b"\r\n"])
def test_slow_headers_are_cut_off_and_slow_answers_are_not(begun: bytes) -> None:
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
        waiting.writer.write(begun)
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


@pytest.mark.parametrize(
    ("host", "names", "status"),
    [
        ("127.0.0.1:8000", None, 200),
        ("LOCALHOST", None, 200),
        ("[::1]:8000", None, 200),
        ("attacker.example:8000", None, 403),
        ("127.0.0.1.attacker.example", None, 403),
        ("10.0.0.1", None, 403),
        ("attacker.example", "models.example", 403),
        ("models.example", "a.example, models.example", 200),
        ("any.example", "*", 200),
    ],
)
def test_a_foreign_host_gets_no_answer(host: str, names: str | None, status: int) -> None:
    async def test() -> None:
        async with serving(http=True, load=False, http_names=names) as running:
            told = await ask(port(running), head("GET", "/version", host=host))
            assert told.status == status
            if status == 403:
                assert told.code == "foreign_host"

    run(test)


def test_only_json_is_read_and_only_what_is_not_too_large() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            number, most = port(running), running.server.max_message
            for kind in ("text/plain", "", "application/x-www-form-urlencoded"):
                told = await ask(number, posted(CHAT, HELLO, content_type=kind))
                assert (told.status, told.code) == (415, "content_type")
            told = await ask(number, posted(CHAT, HELLO, content_encoding="gzip"))
            assert (told.status, told.code) == (415, "content_encoding")
            utf8 = posted(CHAT, HELLO, content_type="application/json; charset=utf-8")
            assert (await ask(number, utf8)).status == 200
            told = await ask(number, posted(CHAT, b"", content_length=str(most + 1)))
            assert (told.status, told.code) == (413, "body_too_large")
            peer = await Peer.to(number)
            peer.writer.write(
                head("POST", CHAT, content_type="application/json", transfer_encoding="chunked")
            )
            chunk = b"%x\r\n" % (1 << 16) + b" " * (1 << 16) + b"\r\n"
            for _ in range(most // (1 << 16) + 1):
                peer.writer.write(chunk)
            assert (await peer.told()).code == "body_too_large"
            await peer.close()
            for body in (b'{"model": "a", "model": "b"}', b'{"n": NaN}', b"["):
                told = await ask(number, posted(CHAT, body))
                assert (told.status, told.code) == (400, "malformed")
            stats = await running.idle()
            assert stats.requests.refused["INVALID_ARGUMENT"] == 7
            assert stats.requests.refused["RESOURCE_EXHAUSTED"] == 2

    run(test)


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)

    async def test() -> None:
        async with serving(http=True) as running:
            told = await ask(port(running), posted(CHAT, b"{", content_length="100"))
            assert (told.status, told.code) == (408, "slow_request")

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


def test_large_headers_and_what_is_no_http_are_refused() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            told = await ask(port(running), head("GET", "/version", x="y" * (20 << 10)))
            assert (told.status, told.code) in ((431, "headers_too_large"), (400, "http"))
            told = await ask(port(running), b"nonsense\r\n\r\n")
            assert (told.status, told.code) == (400, "http")
            told = await ask(port(running), head("GET", CHAT))
            assert (told.status, told.code, told.headers["allow"]) == (405, "method", "POST")
            told = await ask(port(running), head("POST", "/chat/completions"))
            assert (told.status, told.code) == (404, "unknown_path")
            assert "base URL ends in /v1" in told.json["error"]["message"]

    run(test)


def test_a_large_body_is_read_on_a_thread_and_refused_with_the_prompt_s_name() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            content = "a b " * 20_000
            body = HELLO | {"messages": [{"role": "user", "content": content}]}
            told = await ask(port(running), posted(CHAT, body))
            assert (told.status, told.json["error"]["param"]) == (400, "messages")

    run(test)


def test_no_page_of_the_web_may_call_unless_its_origin_is_named() -> None:
    async def test() -> None:
        asked = {"origin": "https://page.example", "access_control_request_method": "POST"}
        async with serving(http=True) as running:
            told = await ask(port(running), head("OPTIONS", CHAT, **asked))
            assert told.status == 405
            told = await ask(port(running), posted(CHAT, HELLO, origin="https://page.example"))
            assert "access-control-allow-origin" not in told.headers
        async with serving(http=True, cors_origin="https://page.example") as running:
            told = await ask(port(running), head("OPTIONS", CHAT, **asked))
            assert told.headers["access-control-allow-origin"] == "https://page.example"
            other = {**asked, "origin": "https://other.example"}
            told = await ask(port(running), head("OPTIONS", CHAT, **other))
            assert "access-control-allow-origin" not in told.headers

    run(test)


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


def test_an_answer_that_would_be_too_large_whole_is_refused_and_not_when_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Room.__init__, "__defaults__", (100, 1 << 20))

    async def test() -> None:
        async with serving(http=True) as running:
            body = HELLO | {
                "max_tokens": 20, "ignore_eos": True, "logprobs": True, "top_logprobs": 20
            }  # fmt: skip
            told = await ask(port(running), posted(CHAT, body))
            assert (told.status, told.json["error"]["param"]) == (400, "logprobs")
            few = await ask(port(running), posted(CHAT, body | {"max_tokens": 4}))
            assert few.status == 200
            peer = await Peer.to(port(running))
            streamed = posted(CHAT, body | {"stream": True}, connection="close")
            assert (await peer.ask(streamed)).status == 200
            assert b"[DONE]" in await peer.ended()
            assert (await running.idle()).requests.finished_cancelled <= 1

    run(test)


def test_what_is_nested_too_deep_is_refused_by_its_fields_name() -> None:
    """In the words that gRPC has for it."""

    async def test() -> None:
        schema: Any = {}
        for _ in range(200):
            schema = {"items": schema}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        tool = {"type": "function", "function": {"name": "x", "parameters": schema}}
        async with serving(http=True) as running:
            body = {**HELLO, "response_format": wanted}
            told = await ask(port(running), posted(CHAT, body))
            request = pb.GenerateRequest(text="Hello")
            request.constraint.json_schema = json.dumps(schema)
            answer = await generate(running, request)
            field, words = "constraint.json_schema", "201 brackets inside one another: at most 64"
            assert words in answer.violations[field]
            assert told.status == 400
            error = told.json["error"]
            assert error["param"] == "response_format.json_schema.schema"
            assert error["message"].endswith(answer.violations[field])
            told = await ask(port(running), posted(CHAT, {**HELLO, "tools": [tool]}))
            assert told.status == 400
            assert told.json["error"]["param"] == "tools[0].function.parameters"

    run(test)
