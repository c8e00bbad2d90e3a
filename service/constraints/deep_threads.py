"""Threads with a deep stack for llguidance's compiling, which recurses deeply and cannot be
interrupted.

Invariant: a caller waits no longer than `seconds`. Work that takes longer continues alone and is
counted until it ends; while MAX_STUCK pieces of work are in that state, nothing new is started. So
the resources that hostile texts can take are bounded. The threads are daemons: the process does not
wait for them when it ends.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from quire.service import malloc_memory
from quire.service.panics import as_exception

T = TypeVar("T")

COMPILE_SECONDS = 10.0
MAX_STUCK = 2
STACK_BYTES = 256 << 20  # of a thread; only what is used takes memory

_stack_lock = threading.Lock()  # the size of new threads' stacks is the process's


class TooSlow(Exception):
    """The work was given up; the message is for the caller. own: this piece of work itself took too
    long."""

    def __init__(self, words: str, *, own: bool) -> None:
        super().__init__(words)
        self.own = own


class DeepThreads:
    """Any thread may call."""

    def __init__(self, seconds: float = COMPILE_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._given_up: set[Future[object]] = set()

    @property
    def stuck(self) -> int:
        """Pieces of work that were given up and still go on."""
        with self._lock:
            self._given_up = {work for work in self._given_up if not work.done()}
            return len(self._given_up)

    def run(self, work: Callable[[], T]) -> T:
        """What work() returns or raises. Raises TooSlow."""
        if self.stuck >= MAX_STUCK:
            words = "cannot be compiled now, since others take too long: try again later"
            raise TooSlow(words, own=False)
        done: Future[T] = Future()
        _start(partial(_settle, done, work))
        try:
            return done.result(self._seconds)
        except TimeoutError:
            if done.done():  # it was the work's own, or the work has ended just now
                return done.result()
            with self._lock:
                self._given_up.add(done)  # type: ignore[arg-type]  # whatever its result is
        finally:
            del done  # it holds what was raised, which holds this frame
        raise TooSlow(f"takes more than {self._seconds:g} seconds to compile", own=True)


def _settle(done: "Future[T]", work: Callable[[], T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(as_exception(error))
    finally:
        del done, work  # as above
    malloc_memory.give_back()


def _start(run: Callable[[], None]) -> None:
    thread = threading.Thread(target=run, name="quire-compile", daemon=True)
    with _stack_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
