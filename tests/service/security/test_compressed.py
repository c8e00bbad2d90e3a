"""A compressed message counts as what it is when inflated, and is refused before it is that.

gRPC is to do so; older versions inflate first (see grpcio's lower bound in pyproject.toml).
"""

import asyncio
import contextlib
import struct
import zlib
from pathlib import Path

from support import http2
from support.harness import run, serving

GENERATE = "/quire.v1.InferenceService/Generate"
INFLATED = 60 << 20  # bytes: deflated, they fit the first window of a stream, 65,535 bytes
MAX_GROWTH = 24 << 20
RESOURCE_EXHAUSTED = b"grpc-status\x018"


def bomb() -> bytes:
    """A gRPC message that says it is gzipped: zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    parts = [deflate.compress(bytes(1 << 20)) for _ in range(INFLATED >> 20)]
    body = b"".join(parts) + deflate.flush()
    return b"\1" + struct.pack(">I", len(body)) + body


def attack(port: int, message: bytes) -> bytes:
    """Send it in a call of its own; the headers that answer."""
    client = http2.Rude(f"127.0.0.1:{port}", window=65535)
    try:
        stream = client.open(GENERATE, {"grpc-encoding": "gzip"})
        while message:
            part, message = message[:16384], message[16384:]
            flags = 0 if message else http2.END_STREAM
            client.socket.sendall(http2.frame(http2.DATA, flags, stream, part))
        return client.until(http2.HEADERS, stream)
    finally:
        client.close()


def peak() -> int:
    """Most bytes that were resident; 0 where the system does not say so."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


def forget_peak() -> None:
    """Resident memory's peak begins anew, where the system lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def test_a_message_that_inflates_beyond_the_limit_is_refused_before_it_does() -> None:
    message = bomb()
    assert len(message) < 65536

    async def test() -> None:
        async with serving() as running:
            await running.idle()
            forget_peak()
            before = peak()
            answer = await asyncio.to_thread(attack, running.server.port, message)
            assert RESOURCE_EXHAUSTED in answer
            assert str(INFLATED).encode() not in answer  # who can tell its size has inflated it
            assert peak() - before < MAX_GROWTH
            assert (await running.stats()).requests.accepted == 0

    run(test)
