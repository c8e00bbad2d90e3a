"""The event loop under gRPC, mended where gRPC holds it up.

grpc.aio has a thread that waits for what the transport has done. For each event it writes a byte
into a socket, which wakes the loop; the loop then takes all events there are, but reads one byte.
Bytes so pile up under load: each is one more turn of the loop with nothing to do, and when the
socket is full, after some 300, the thread waits until a byte is read. From then on gRPC hears of
one event a turn, and a new call waits behind every message written: seconds, with the loop half
idle. So the bytes that are there are read before the events are taken.

Invariant: a byte is read only together with a look at the events. It is written after its event was
queued, so none is missed; at least one byte is left for gRPC's own read, which would block.
"""

import asyncio
import fcntl
import functools
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

_TAKES_EVENTS = "_handle_events"  # the name of gRPC's reader


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else asyncio's."""
    base: Any
    try:
        from uvloop import Loop as base
    except ImportError:
        base = asyncio.SelectorEventLoop
    loop: asyncio.AbstractEventLoop = type("Loop", (_Draining, base), {})()
    return loop


class _Draining:
    """Part of an event loop."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> Any:
        """See asyncio."""
        named = callback.func if isinstance(callback, functools.partial) else callback
        if getattr(named, "__name__", "") == _TAKES_EVENTS and isinstance(fd, socket.socket):
            callback = functools.partial(_drained, fd, callback)
        return super().add_reader(fd, callback, *args)  # type: ignore[misc]


def _drained(wakes: socket.socket, take_events: Callable[..., Any], *args: Any) -> None:
    """Read all bytes but one, then let gRPC read that one and take the events."""
    (waiting,) = struct.unpack("i", fcntl.ioctl(wakes, termios.FIONREAD, bytes(4)))
    if waiting > 1:
        wakes.recv(waiting - 1)
    take_events(*args)
