"""A thread that works while the engine's thread waits without holding the interpreter's lock.

Work is handed over through queues written in C instead of a thread pool's futures, which would cost
the engine's thread too much of a step of little more than 1 ms.

Invariant: between two pieces of work the thread holds no reference to its owner's objects. It ends
with its owner.
"""

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], object]


class SideThread:
    """One thread, begun when it is first asked for."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Work | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._begun = False

    def begin(self, work: Work) -> Callable[[], None]:
        """Have work done, which raises nothing, or left undone where the system has no thread for
        it. Returns how to wait for it, which comes next."""
        if not self._begun:
            queues = self._asked, self._done
            thread = threading.Thread(target=_serve, args=queues, name="quire-helper", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return lambda: None
            self._begun = True
            weakref.finalize(self, self._asked.put, None)
        self._asked.put(work)
        return self._done.get


def _serve(asked: "SimpleQueue[Work | None]", done: "SimpleQueue[None]") -> None:
    while (work := asked.get()) is not None:
        try:
            work()
        finally:
            del work
            done.put(None)
