"""Threads for the work on calls' prompts: rendering, tokenizing, replaying.

Invariant: this work waits for nothing else, and nothing else waits for it. A call that ends leaves
no job behind: a waiting job is removed at once, a running one is asked to stop (`wanted` returns
false) and its result is dropped. The threads are daemons: neither shutdown nor the process's end
waits for them. What waits is bounded in bytes; clients take turns, and large prompts never get the
last thread.
"""

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from quire.service import malloc_memory
from quire.service.errors import Refusal, prompts_waiting, shutting_down
from quire.service.panics import as_exception

T = TypeVar("T")
Wanted = Callable[[], bool]

THREADS = 3
LARGE_BYTES = 64 << 10  # a larger prompt leaves one thread to the others
MAX_WAITING_BYTES = 128 << 20  # of all prompts that wait


class NotWanted(Exception):
    """The call has ended, so the rest of its work is not needed."""


def check_wanted(wanted: Wanted) -> None:
    """Between two stages of work: raise NotWanted for a call that has ended."""
    if not wanted():
        raise NotWanted


class _Job:
    """One call's work. `wanted` turns false when the call has ended."""

    __slots__ = ("client", "done", "loop", "size", "wanted", "work")

    def __init__(self, work: Callable[[Wanted], Any], client: str, size: int) -> None:
        self.work = work
        self.client = client
        self.size = size
        self.wanted = True
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()

    def run(self) -> None:
        """On a thread."""
        try:
            result = self.work(lambda: self.wanted)
        except BaseException as error:  # it holds this frame, so no name here may hold it
            self._tell(None, as_exception(error))
        else:
            self._tell(result, None)

    def _tell(self, result: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(result)


class _Lane:
    """Jobs by client; clients take turns, each with its oldest."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, OrderedDict[_Job, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, job: _Job) -> None:
        self._queues.setdefault(job.client, OrderedDict())[job] = None

    def take(self) -> _Job:
        client, queue = next(iter(self._queues.items()))
        job, _ = queue.popitem(last=False)
        if queue:
            self._queues.move_to_end(client)
        else:
            del self._queues[client]
        return job

    def remove(self, job: _Job) -> bool:
        """False: it is not here."""
        queue = self._queues.get(job.client, OrderedDict())
        if job not in queue:
            return False
        del queue[job]
        if not queue:
            del self._queues[job.client]
        return True


class PromptWorkers:
    """A few threads and two lanes: small prompts, and large ones."""

    def __init__(self, threads: int = THREADS, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        """threads: at least 2; they start with the first job."""
        self._count = threads
        self._max_bytes = max_waiting_bytes
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._small, self._large = _Lane(), _Lane()
        self._closed = False
        self._open: set[_Job] = set()  # jobs whose call is still open
        self.waiting = 0  # jobs
        self.waiting_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether a call waits for a job."""
        return bool(self._open)

    async def run(self, work: Callable[[Wanted], T], client: str = "", size: int = 0) -> T:
        """What work(wanted) returns or raises; it must check `wanted()` between its stages. client:
        whose turn it takes. size: the prompt's bytes. Raises Refusal if too many wait."""
        job = _Job(work, client, size)
        self._put(job)
        self._open.add(job)
        try:
            result: T = await job.done
            return result
        finally:
            self._drop(job)

    def close(self) -> None:
        """Start nothing more, and wait for nothing: calls whose prompts wait, or are being read,
        end with UNAVAILABLE at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in self._open:
            if not job.done.done():
                job.done.set_exception(_closing())

    def _put(self, job: _Job) -> None:
        with self._changed:
            if self._closed:
                raise _closing()
            if self.waiting and self.waiting_bytes + job.size > self._max_bytes:
                raise prompts_waiting(self.waiting_bytes, job.size, self._max_bytes)
            self._lane_of(job).put(job)
            self.waiting += 1
            self.waiting_bytes += job.size
            self._changed.notify_all()
        while len(self._threads) < self._count:
            self._start_thread(any_size=bool(self._threads))

    def _drop(self, job: _Job) -> None:
        """Remove a job that is not wanted any more."""
        job.wanted = False
        self._open.discard(job)
        with self._changed:
            if self._lane_of(job).remove(job):
                self.waiting -= 1
                self.waiting_bytes -= job.size

    def _lane_of(self, job: _Job) -> _Lane:
        return self._large if job.size > LARGE_BYTES else self._small

    def _taken(self, lane: _Lane) -> _Job:
        job = lane.take()
        self.waiting -= 1
        self.waiting_bytes -= job.size
        return job

    def _start_thread(self, *, any_size: bool) -> None:
        name = f"quire-prompts-{len(self._threads)}"
        thread = threading.Thread(target=self._serve, args=(any_size,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, any_size: bool) -> None:
        """A thread's life."""
        lanes = (self._large, self._small) if any_size else (self._small,)
        while True:
            with self._changed:
                while not self._closed and not any(lanes):
                    self._changed.wait()
                if self._closed:
                    return
                job = self._taken(next(lane for lane in lanes if lane))
            job.run()
            large = job.size > LARGE_BYTES
            del job  # its prompt is not to be kept until the next one comes
            if large:
                malloc_memory.give_back()


def _closing() -> Refusal:
    return shutting_down()
