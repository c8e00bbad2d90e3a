"""The store over which the ranks of a process group exchange their addresses.

Invariant: it lives in rank 0's memory; the others reach it over their channel. It opens no port and
leaves nothing behind. It offers only what forming a process group needs.
"""

import threading
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

from quire.engine.errors import RankError
from quire.engine.parallel.frame_channel import FrameChannel, Kind


class Board:
    """Values by key, in rank 0's memory. Of any thread."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()
        self._closed = ""

    def put(self, key: str, value: str) -> None:
        """Set a value and wake whoever waits for it."""
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> str:
        """Wait for a value. Raises RankError once the board is closed."""
        with self._changed:
            while key not in self._values:
                if self._closed:
                    raise RankError(self._closed)
                self._changed.wait()
            return self._values[key]

    def close(self, reason: str) -> None:
        """End all waits."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify_all()


class _Store(Store):
    """The part of torch's Store interface that is needed, with bytes as hexadecimal text."""

    def put(self, key: str, value: str) -> None:
        raise NotImplementedError

    def fetch(self, key: str) -> str:
        raise NotImplementedError

    def set(self, key: str, value: bytes | str) -> None:
        """A key that is new."""
        self.put(key, (value if isinstance(value, bytes) else value.encode()).hex())

    def get(self, key: str) -> bytes:
        """Waits for it."""
        return bytes.fromhex(self.fetch(key))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for all keys. Torch's timeout is ignored: the start has its own limit."""
        del timeout
        for key in keys:
            self.fetch(key)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Waits for all."""
        return [self.get(key) for key in keys]

    def has_extended_api(self) -> bool:
        """No: set, get and wait are all there is."""
        return False


class BoardStore(_Store):
    """Rank 0's own."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    def put(self, key: str, value: str) -> None:
        self._board.put(key, value)

    def fetch(self, key: str) -> str:
        return self._board.get(key)


class ChannelStore(_Store):
    """Another rank's: while the group comes together, nothing else comes over its channel."""

    def __init__(self, channel: FrameChannel) -> None:
        super().__init__()
        self._channel = channel

    def put(self, key: str, value: str) -> None:
        self._channel.send_json(Kind.SET, key=key, value=value)

    def fetch(self, key: str) -> str:
        self._channel.send_json(Kind.GET, key=key)
        value: Any = self._channel.expect(Kind.VALUE)["value"]
        return str(value)
