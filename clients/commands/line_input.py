"""A line of input that Ctrl-C and SIGTERM end at any moment.

The interpreter notices a signal while its line editor sleeps, but not just before that: a Ctrl-C
then would wait for the next key. So a thread is notified of each signal, through the descriptor
that the interpreter's own handler writes to, and wakes the main thread until it has noticed.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE = 0.02  # seconds that the main thread gets to notice by itself
_ENDS = {signal.SIGINT, signal.SIGTERM}


def read_line(prompt: str) -> str:
    """As input(). Raises KeyboardInterrupt at Ctrl-C, EOFError at the end of input."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return input(prompt)
    with _woken():
        return input(prompt)


@contextmanager
def _woken() -> Iterator[None]:
    noticed = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        noticed.set()
        signal.default_int_handler(number, frame)

    told, tells = os.pipe()
    os.set_blocking(tells, False)
    waker = threading.Thread(target=_wake, args=(told, noticed), daemon=True)
    before = signal.signal(signal.SIGURG, lambda _number, _frame: None)
    others = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, interrupt)
    waker.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(others)
        noticed.set()
        os.close(tells)
        waker.join()
        os.close(told)
        signal.signal(signal.SIGURG, before)


def _wake(told: int, noticed: threading.Event) -> None:
    """Runs until the descriptor's other end is closed. SIGURG only ends a sleep."""
    while signals := os.read(told, 64):
        while _ENDS.intersection(signals) and not noticed.wait(_PATIENCE):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
