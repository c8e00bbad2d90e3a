"""A client of HTTP/2 that keeps to no manners: frames by hand, over a socket.

It asks and does not read: its windows for the server's data are what it says they are, 0 if that
is said. Headers are literals without compression, which every server has to take.
"""

import socket
import struct
from collections.abc import Mapping
from types import MappingProxyType

from support.patience import PATIENCE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4  # the setting's number
CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of up to 2^14 bytes."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload: bytes) -> bytes:
    """A gRPC message as it stands in DATA frames."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


def _text(value: str) -> bytes:
    raw = value.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw


def headers(path: str, more: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The header block of a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **more,
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


class Rude:
    """One connection; each call gets the next odd stream."""

    def __init__(self, address: str, window: int = 0) -> None:
        """window: bytes of each stream that the server may send."""
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.socket.sendall(
            PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window))
        )
        self._next = 1
        self.until(SETTINGS)
        self.socket.sendall(frame(SETTINGS, ACK, 0))

    def open(self, path: str, more: Mapping[str, str] = MappingProxyType({})) -> int:
        """Begin a call, with more headers, and leave its body open."""
        stream, self._next = self._next, self._next + 2
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, headers(path, more)))
        return stream

    def call(self, path: str, payload: bytes = b"") -> int:
        """A whole call of one message."""
        stream = self.open(path)
        self.socket.sendall(frame(DATA, END_STREAM, stream, message(payload)))
        return stream

    def until(self, kind: int, stream: int | None = None) -> bytes:
        """The payload of the next frame of this kind; others are passed over."""
        while True:
            found, number, payload = self.next()
            if found == kind and stream in (None, number):
                return payload

    def next(self) -> tuple[int, int, bytes]:
        """Kind, stream and payload of the next frame. Raises EOFError at the connection's end."""
        head = self._exactly(9)
        size, kind, number = int.from_bytes(head[:3], "big"), head[3], head[5:]
        return kind, int.from_bytes(number, "big") & 0x7FFFFFFF, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self) -> None:
        self.socket.close()
