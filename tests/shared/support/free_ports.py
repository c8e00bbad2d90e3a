"""Ports that a test has to name before somebody listens there, or nobody does."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Of those that no system gives out by itself: whoever asks it for any port, or connects, is
    given none of these meanwhile."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = random.SystemRandom().randrange(20_000, 32_000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


def free_port() -> int:
    """One of these."""
    return free_ports(1)[0]
