"""The event loop under gRPC, mended where gRPC holds it up.

grpc.aio has a thread that waits for what the transport has done. For each event it writes a byte
into a socket, which wakes the loop; the loop then takes all events there are, but reads one byte.
Bytes so pile up under load: each is one more turn of the loop with nothing to do, and when the
socket is full, after some 300, the thread waits until a byte is read. From then on gRPC hears of
one event a turn, and a new call waits behind every message written: seconds, with the loop half
idle. So where gRPC reads its one byte it is given all that are there, in the same call of the
kernel: the loop wakes several times a call, and each look at the socket by itself would cost more
than taking the event.

Invariant: bytes are read only together with a look at the events behind them. Each is written after
its event was queued, so none is missed.
"""

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any

_TAKES_EVENTS = "_handle_events"  # the name of gRPC's reader
_ALL = 4096  # bytes: more than the socket holds of them


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
        if getattr(named, "__name__", "") == _TAKES_EVENTS and type(fd) is socket.socket:
            fd.__class__ = _Wakes  # gRPC keeps the object, and lets nobody have it but here
        return super().add_reader(fd, callback, *args)  # type: ignore[misc]


class _Wakes(socket.socket):
    """A socket whose bytes only wake the loop: a read of one byte consumes all of them."""

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """At least one byte; waits for it."""
        return super().recv(max(bufsize, _ALL), flags)
