"""Calls that may be aborted by name.

Invariant: an abort reaches calls of the same client alone, by the id that they came with; of ids
that are not open it is nothing.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

_WRITE_SECONDS = 1.0  # that the write of a message may take once its call was aborted


class OpenCall:
    """One call; of the task that answers it."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.aborted = False
        self._late: asyncio.TimerHandle | None = None
        self.writing = False  # a message is on its way; the end can be told only behind it

    def abort(self) -> None:
        """End it; again is nothing."""
        if self.aborted:
            return
        self.aborted = True
        if self.writing:
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(_WRITE_SECONDS, self._task.cancel)
        else:
            self._task.cancel()

    def was_cut(self) -> bool:
        """Whether a cancellation came from the abort; if so, it is undone."""
        return self.aborted and not self._task.uncancel()

    def end(self) -> None:
        """Its last message is about to be written, or it is over."""
        if self._late is not None:
            self._late.cancel()


class OpenCalls:
    """The open calls of one server."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, str], set[OpenCall]] = {}

    @contextlib.contextmanager
    def call(self, client: str, request_id: str) -> Iterator[OpenCall]:
        """This task's call, for the duration of the block. Without an id nobody can abort it."""
        call, key = OpenCall(), (client, request_id)
        if request_id:
            self._calls.setdefault(key, set()).add(call)
        try:
            yield call
        finally:
            call.end()
            if request_id:
                named = self._calls[key]
                named.discard(call)
                if not named:
                    del self._calls[key]

    def abort(self, client: str, request_ids: Sequence[str]) -> None:
        """End the client's calls of these ids."""
        for request_id in request_ids:
            for call in tuple(self._calls.get((client, request_id), ())):
                call.abort()
