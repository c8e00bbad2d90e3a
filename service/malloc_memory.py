"""Returns freed memory to the system, instead of leaving it with malloc.

Large texts are read on several threads, and for each of them glibc keeps as much memory as its
largest text took. A server that strangers send such texts would hold hundreds of megabytes unused.
So all threads share two arenas: with more of them, memory in use would keep each from returning the
rest.
"""

import ctypes
import os
import sys
import threading
import time
from typing import Any

ARENAS = 2
_ARENA_MAX = -8  # of mallopt
PAUSE = 5.0  # seconds between two times: each takes malloc's locks for some milliseconds

_lock = threading.Lock()
_next = 0.0  # on time.monotonic()
_waiting = False  # until then, for what was freed since


def few_arenas() -> None:
    """Call it before threads are started. No effect if malloc is another one, or MALLOC_ARENA_MAX
    is set."""
    mallopt = _of_malloc("mallopt")
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Call it after large work, not on an event loop. Memory freed during the pause is returned at
    its end. No effect if malloc is another one."""
    global _next, _waiting
    with _lock:
        now = time.monotonic()
        if now < _next:
            if not _waiting:
                _waiting = True
                _later(_next - now)
            return
        _next = now + PAUSE
    trim = _of_malloc("malloc_trim")
    if trim is not None:
        trim(0)  # lets other threads run meanwhile


def _of_malloc(name: str) -> Any:
    """glibc's function; None where malloc is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _later(seconds: float) -> None:
    timer = threading.Timer(seconds, _due)
    timer.daemon = True
    timer.start()


def _due() -> None:
    global _waiting
    _waiting = False
    give_back()
