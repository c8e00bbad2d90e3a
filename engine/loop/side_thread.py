"""A thread that works beside the engine's, while that one waits without the interpreter's lock.

It is asked through queues in C, not through a pool's futures: those cost the asking thread more, of
a step of little more than 1 ms.

Invariant: between two pieces of work the thread holds nothing of its owner, and ends with it.
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
