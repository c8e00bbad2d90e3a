"""Connections that mean no good: slow, stalled, broken off, and under foreign names.

Invariant: each attack lasts for the seconds it is given, leaves no connection behind, and tells
what it was answered: a status, or how the connection ended.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from hostility.bodies import Body, asked, chat
from hostility.server import Ports

Ends = Counter[str]
Attack = Callable[[Ports, float], Awaitable[Ends]]
MANY = 30  # connections that are held at once
FEW = 2  # that ask again and again


async def connected(port: int, receive_bytes: int | None = None) -> Any:
    """A connection of reader and writer."""
    own = socket.socket()
    if receive_bytes is not None:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=own, limit=1024)


def posted(body: Body | bytes, host: str = "localhost", kind: str = "application/json") -> bytes:
    """A whole request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}"]
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset, without a word."""
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def streamed(tokens: int) -> Body:
    """With all log-probabilities there can be: much to write for each token."""
    more = {"stream": True, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    return chat() | {"max_tokens": tokens, **more}


async def _while(seconds: float, work: Callable[[], Awaitable[str]]) -> Ends:
    """Again and again, FEW at once."""
    ends: Ends = Counter()
    until = asyncio.get_running_loop().time() + seconds

    async def one() -> None:
        while asyncio.get_running_loop().time() < until:
            try:
                ends[await asyncio.wait_for(work(), 20)] += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                ends[type(error).__name__] += 1

    await asyncio.gather(*(one() for _ in range(FEW)))
    return ends


async def stalled_streams(ports: Ports, seconds: float) -> Ends:
    """Streams whose clients read nothing at all."""
    ends: Ends = Counter()
    held = [await connected(ports.http, 4096) for _ in range(MANY)]
    for _, writer in held:
        writer.write(posted(streamed(400)))
    await asyncio.sleep(seconds)
    for _, writer in held:
        reset(writer)
        ends["held, then reset"] += 1
    return ends


async def broken_streams(ports: Ports, seconds: float) -> Ends:
    """Streams whose clients leave in the midst of them."""

    async def work() -> str:
        reader, writer = await connected(ports.http)
        writer.write(posted(streamed(400)))
        try:
            first = await reader.readuntil(b"\r\n")
            await reader.readexactly(2000)
        finally:
            reset(writer)
        return first.split()[1].decode() + ", then reset"

    return await _while(seconds, work)


async def slow_headers(ports: Ports, seconds: float) -> Ends:
    """A byte now and then."""
    ends: Ends = Counter()
    held = [await connected(ports.http) for _ in range(MANY)]
    text = posted(chat())
    until = asyncio.get_running_loop().time() + seconds
    at = 0
    while asyncio.get_running_loop().time() < until:
        for _, writer in held:
            writer.write(text[at : at + 1])
        at += 1
        await asyncio.sleep(0.2)
    for _, writer in held:
        ends["closed by the server" if writer.is_closing() else "held, then reset"] += 1
        reset(writer)
    return ends


def answered(data: bytes) -> Attack:
    """Requests that are answered at once."""

    async def attack(ports: Ports, seconds: float) -> Ends:
        async def work() -> str:
            reader, writer = await connected(ports.http)
            writer.write(data)
            try:
                first = await reader.readuntil(b"\r\n")
                await reader.read(1 << 16)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            return first.split()[1].decode()

        return await _while(seconds, work)

    return attack


async def stalled_calls(ports: Ports, seconds: float) -> Ends:
    """Calls over gRPC whose clients read nothing, and leave."""
    import grpc.aio

    from quire.v1 import inference_pb2_grpc as pb_grpc

    request = asked()
    request.sampling.max_tokens = 400
    request.sampling.ignore_eos = True
    request.sampling.logprobs = 20
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub: Any = pb_grpc.InferenceServiceStub(channel)
        calls = [stub.Generate(request) for _ in range(MANY)]
        await asyncio.sleep(seconds)
        for call in calls:
            call.cancel()
    return Counter({"held, then cancelled": MANY})


ATTACKS: dict[str, Attack] = {
    "SSE clients that read nothing": stalled_streams,
    "SSE clients that break off": broken_streams,
    "gRPC clients that read nothing": stalled_calls,
    "slow headers": slow_headers,
    "foreign Hosts": answered(posted(chat(), host="evil.example")),
    "a form instead of JSON": answered(posted(b"a=1", kind="application/x-www-form-urlencoded")),
    "headers of 64 KiB": answered(b"GET /health HTTP/1.1\r\nX: " + b"x" * 65_536 + b"\r\n\r\n"),
    "no HTTP at all": answered(b"\x16\x03\x01 hello\r\n\r\n"),
}
