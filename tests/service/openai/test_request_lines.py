"""What RFC 9112 has a server take before a path: empty lines, and a target with its host."""

import asyncio
import json

import h11
import pytest
from support.harness import PATIENCE, run, serving
from support.http1 import CHAT, HELLO, Peer, ask, head, posted

from quire.service.openai.connection import MAX_HEADER_BYTES

PIECES = [[b"\r\n"], [b"\r", b"\n"], [b"\r\n\r\n\r", b"\n"], [b"\n"]]


@pytest.mark.parametrize("pieces", PIECES)
def test_empty_lines_before_a_request_are_passed_over(pieces: list[bytes]) -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            peer = await Peer.to(running.server.http_port)
            for _ in range(2):  # the second is behind an answer
                for piece in pieces:
                    peer.writer.write(piece)
                    await peer.writer.drain()
                assert (await peer.ask(head("GET", "/health"))).status == 200
            # Behind a body that ends with a line, as old clients end theirs, and before its turn.
            line = b"".join(pieces)
            peer.writer.write(posted(CHAT, HELLO) + line + head("GET", "/health") + line)
            assert [(await peer.told()).status for _ in range(2)] == [200, 200]
            assert (await peer.ask(head("GET", "/nowhere"))).status == 404
            await peer.close()

    run(test)


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://127.0.0.1:8000/v1/models", "127.0.0.1", 200),
        ("HTTP://localhost/v1/models?limit=2", "evil.example", 200),
        ("https://localhost/v1/models/fake", "127.0.0.1", 200),
        ("http://localhost/v1/models/f%61ke", "127.0.0.1", 200),
        ("http://localhost", "127.0.0.1", 404),
        ("http://evil.example/v1/models", "127.0.0.1", 403),
        ("http://localhost@evil.example/v1/models", "127.0.0.1", 403),
        ("http://evil.example#@localhost/v1/models", "127.0.0.1", 403),
        ("http://localhost:1@evil.example/v1/models", "127.0.0.1", 403),
        ("http://[::1]@evil.example/v1/models", "127.0.0.1", 403),
        ("http://[::1]:8000/v1/models", "evil.example", 200),
        ("/v1/models", "localhost:1@evil.example", 403),
        ("/v1/models", "[::1].evil.example", 403),
        ("/http://localhost/v1/models", "127.0.0.1", 404),
    ],
)
def test_of_a_target_with_a_host_that_host_counts(target: str, host: str, status: int) -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            port = running.server.http_port
            assert (await ask(port, head("GET", target, host=host))).status == status

    run(test)


def test_what_is_posted_to_a_target_with_a_host_is_read() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            port = running.server.http_port
            told = await ask(port, posted(f"http://127.0.0.1:{port}{CHAT}", HELLO))
            assert told.status == 200 and told.json["choices"]

    run(test)


def test_behind_a_body_with_two_ends_nothing_is_a_request() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            peer = await Peer.to(running.server.http_port)
            fields = {"content_type": "application/json", "transfer_encoding": "chunked"}
            chunked = head("POST", CHAT, content_length="4", **fields) + b"2\r\n{}\r\n0\r\n\r\n"
            peer.writer.write(chunked + head("GET", "/health"))
            told = await peer.told()
            assert told.status == 400 and told.headers["connection"] == "close"
            assert await peer.ended() == b""

    run(test)


CHUNKED = {"content_type": "application/json", "transfer_encoding": "chunked"}


def chunked(body: bytes, size: int) -> bytes:
    """A whole request whose body comes in chunks of so many bytes."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head("POST", CHAT, **CHUNKED) + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("spaces", "size", "taken"),
    [(0, 1, True), (900, 1, True), (20_000, 1, False), (400_000, 128, True), (400_000, 16, False)],
)
def test_a_body_comes_in_as_many_chunks_as_its_bytes_need(
    spaces: int, size: int, taken: bool
) -> None:
    """A chunk of a byte takes as long to read as one of a thousand: 256 KiB of such held up all
    streams for more than a second."""

    async def test() -> None:
        body = b" " * spaces + json.dumps(HELLO).encode()
        async with serving(http=True) as running:
            peer = await Peer.to(running.server.http_port)
            peer.writer.write(chunked(body, size) + head("GET", "/health"))
            if taken:
                assert [(await peer.told()).status for _ in range(2)] == [200, 200]
                assert (await peer.ask(chunked(body, size))).status == 200  # counted anew
            else:
                told = await peer.told()
                assert told.status == 400 and told.headers["connection"] == "close"
                assert "at most" in told.json["error"]["message"]
                assert await peer.ended() == b""
            await peer.close()
            assert (await running.idle()).requests.finished_cancelled == 0

    run(test)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"2;" + b"a" * 40_000 + b"\r\n{}\r\n", id="an extension too long"),
        pytest.param(b"2" * 40_000 + b"\r\n{}\r\n", id="a size too long"),
        pytest.param(b"two\r\n{}\r\n", id="no size"),
    ],
)
def test_a_chunk_that_is_none_is_answered_and_its_request_ends(line: bytes) -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            peer = await Peer.to(running.server.http_port)
            whole = b"1\r\n \r\n"
            peer.writer.write(head("POST", CHAT, **CHUNKED) + whole + line)
            told = await peer.told()
            assert (told.status, told.code, told.headers["connection"]) == (400, "http", "close")
            assert await peer.ended() == b""
            await peer.close()
            http = running.server._http
            assert http is not None
            async with asyncio.timeout(PATIENCE):
                while http.connections or http._state.tasks:  # it reads no body any more
                    await asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_chunk_that_is_none_is_answered_whatever_the_method(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A HEAD's answer has no content, whatever its length says."""

    async def test() -> None:
        async with serving(http=True) as running:
            peer = await Peer.to(running.server.http_port)
            peer.writer.write(head(method, CHAT, **CHUNKED) + b"1\r\n \r\n" + b"two\r\n{}\r\n")
            assert (await peer.reader.readline()).startswith(b"HTTP/1.1 400")
            assert (b'"code"' in await peer.reader.read()) is (method != "HEAD")
            await peer.close()

    run(test)
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def test_headers_that_come_all_at_once_are_read_as_far_as_they_may_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fed: list[int] = []
    receive = h11.Connection.receive_data
    monkeypatch.setattr(
        h11.Connection,
        "receive_data",
        lambda conn, data: fed.append(len(data)) or receive(conn, data),
    )

    async def test() -> None:
        async with serving(http=True) as running:
            peer = await Peer.to(running.server.http_port)
            peer.writer.write(head("GET", "/health")[:-2] + b"A:b\r\n" * 40_000 + b"\r\n")
            told = await peer.told()
            assert (told.status, told.json["error"]["code"]) == (400, "http")
            assert max(fed) <= MAX_HEADER_BYTES and sum(fed) <= 3 * MAX_HEADER_BYTES
            await peer.close()

    run(test)
