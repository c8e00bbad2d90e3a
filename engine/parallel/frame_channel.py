"""The channel between rank 0 and another rank: frames over a stream socket.

A frame is a kind (one byte), a length (four bytes, little-endian) and a body of that length: an
encoded plan or its masks, or a JSON object (messages of the start, and about memory).

Invariant: whatever arrives, at most MAX_BYTES are read for one frame, and a frame is received whole
or RankError is raised.
"""

import contextlib
import json
import select
import socket
import struct
import threading
from enum import IntEnum
from typing import Any

from quire.engine.errors import RankError
from quire.engine.parallel.codec import MAX_BYTES

_HEAD = struct.Struct("<BI")
_CHUNK = 1 << 20


class Kind(IntEnum):
    """Rank 0 sends BUILD, VALUE, BLOCKS, PLAN, MASKS, STOP, JOINED, and to a node also REFUSED and
    STOP. The other ranks and nodes send the rest."""

    BUILD = 1  # {config, rank, threads, address}
    VALUE = 2  # {value}: of a key that was asked for
    BLOCKS = 3  # {blocks}: the least of all ranks'
    PLAN = 4  # a step
    STOP = 5  # {}
    SET = 6  # {key, value}
    GET = 7  # {key}
    PROGRESS = 8  # {stage, share}
    SIZED = 9  # {blocks, fingerprint}: weights are loaded, and this many blocks fit
    READY = 10  # {}
    MEMORY = 11  # {allocated, peak}, bytes
    REFUSED = 12  # {error, message}: it cannot be built
    DIED = 13  # {error_id}
    MASKS = 14  # of the step before, if its plan has masked rows
    JOINED = 15  # {message}: a connection of another node is one of the ranks' from here on
    ENDED = 16  # {rank, how}: of a node, one of its processes
    ASKED = 17  # {}: to a node that has been silent, which then says
    ALIVE = 18  # {}: of a node


# What the others send to rank 0, with the fields that it must have.
_SAID: dict[Kind, dict[str, type | tuple[type, ...]]] = {
    Kind.SET: {"key": str, "value": str},
    Kind.GET: {"key": str},
    Kind.PROGRESS: {"stage": str, "share": (int, float)},
    Kind.SIZED: {"blocks": int, "fingerprint": str},
    Kind.READY: {},
    Kind.MEMORY: {"allocated": int, "peak": int},
    Kind.REFUSED: {"error": str, "message": str},
    Kind.DIED: {"error_id": str},
    Kind.ENDED: {"rank": int, "how": str},
    Kind.ALIVE: {},
}


class FrameChannel:
    """One end. Several threads may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    def send_json(self, kind: Kind, **values: Any) -> None:
        """Send a JSON object. Raises RankError if the other end is gone."""
        self.send(kind, json.dumps(values).encode())

    def send(self, kind: Kind, body: bytes) -> None:
        """Send a frame. Raises RankError if the other end is gone."""
        try:
            with self._sending:
                self._socket.sendall(_HEAD.pack(kind, len(body)) + body)
        except OSError as error:
            raise RankError(f"a rank cannot be told any more: {error}") from error

    def receive(self) -> tuple[Kind, bytes]:
        """The next frame. Raises RankError if the channel is closed or the bytes are no frame."""
        kind, length = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > MAX_BYTES:
            raise RankError(f"a frame of {length} bytes: at most {MAX_BYTES}")
        try:
            return Kind(kind), self._exactly(length)
        except ValueError as error:
            raise RankError(f"a frame of no known kind: {kind}") from error

    def expect(self, kind: Kind) -> dict[str, Any]:
        """The next frame's object, which must be of this kind."""
        heard, body = self.receive()
        if heard is not kind:
            raise RankError(f"{heard.name} was said where {kind.name} was due")
        return values_of(body)

    def is_readable(self, seconds: float) -> bool:
        """Whether data, or the end of the channel, arrives within this many seconds."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def close(self) -> None:
        """Close this end; the other end notices."""
        self._socket.close()

    def end(self) -> None:
        """Shut the connection down; the other end and a thread that receives here notice it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                more = self._socket.recv(min(count - len(data), _CHUNK))
            except OSError:
                more = b""
            if not more:
                raise RankError("the line has ended")
            data += more
        return bytes(data)


def values_of(body: bytes) -> dict[str, Any]:
    """A frame's JSON object. Raises RankError for anything else."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RankError("a frame that is not JSON") from error
    if not isinstance(values, dict):
        raise RankError("a frame that is not a JSON object")
    return values


def checked_values(kind: Kind, body: bytes) -> dict[str, Any]:
    """The JSON object of a frame sent to rank 0, with the fields of its kind checked. Raises
    RankError."""
    if kind not in _SAID:
        raise RankError(f"{kind.name} is not for it to say")
    values = values_of(body)
    for name, types in _SAID[kind].items():
        if not isinstance(values.get(name), types):
            raise RankError(f"{kind.name} was said without {name}")
    return values
