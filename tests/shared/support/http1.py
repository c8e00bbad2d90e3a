"""A client of HTTP/1.1 that may behave as badly as a test wants."""

import asyncio
import contextlib
import json
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from support.harness import PATIENCE

CHAT = "/v1/chat/completions"
HELLO = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass(frozen=True)
class Told:
    """An answer. headers: names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of its error."""
        return str(self.json["error"]["code"])


def head(method: str, path: str, **headers: str) -> bytes:
    """A request's first lines; `_` in a header's name stands for `-`."""
    given = {"host": "127.0.0.1", **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items() if v)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def posted(path: str, value: Any, **headers: str) -> bytes:
    """A whole request with a body of JSON, or of these bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    given = {"content_type": "application/json", "content_length": str(len(body)), **headers}
    return head("POST", path, **given) + body


class Peer:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(
        cls, port: int, receive_bytes: int | None = None, context: ssl.SSLContext | None = None
    ) -> "Peer":
        """receive_bytes: of its buffer."""
        own = socket.socket()
        if receive_bytes is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
        name = None if context is None else "localhost"
        limit = 2**16 if receive_bytes is None else 1024
        return cls(
            *await asyncio.open_connection(sock=own, ssl=context, server_hostname=name, limit=limit)
        )

    async def ask(self, data: bytes) -> Told:
        self.writer.write(data)
        return await self.told()

    async def told(self) -> Told:
        """The next whole answer."""
        async with asyncio.timeout(PATIENCE):
            raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = raw.strip().split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Told(int(first.split()[1]), headers, body)

    async def ended(self) -> bytes:
        """What still comes before the server closes the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


async def ask(port: int, data: bytes) -> Told:
    """One request over a connection of its own."""
    peer = await Peer.to(port)
    try:
        return await peer.ask(data)
    finally:
        await peer.close()
