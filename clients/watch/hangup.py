"""Hearing that a browser has left while nothing is being written to it."""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def hearing(connection: socket.socket, on_hangup: Callable[[], None]) -> Iterator[None]:
    """Inside it on_hangup is called once, from another thread, if the other side ends the
    connection. Nothing is read from it; the thread has ended when the block has been left."""
    ours, theirs = socket.socketpair()

    def listen() -> None:
        ready, _, _ = select.select([connection, theirs], [], [])
        if connection in ready and theirs not in ready and _has_left(connection):
            on_hangup()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ours.close()  # which wakes the thread
        thread.join()
        theirs.close()


def _has_left(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
