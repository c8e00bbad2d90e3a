"""The asyncio interface of an engine, wherever it runs.

Invariant: only plain data crosses the link: commands in, batches out, one call per step however
many streams there are. On this side each stream joins its outputs until its reader takes them, so a
slow reader gets larger updates, never a longer queue; and the pacer wakes readers only as fast as
the event loop can afford, with the same effect for many streams. A reader that wants few updates
sets the interval between them: outputs within it are joined, except for the first tokens and ends.

`generate` is an async generator whose `finally` always aborts: the normal end, a cancelled call and
an error are one path, and a stale abort has no effect.
"""

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from quire.engine.client.awake import Awake, seconds_awake
from quire.engine.client.kv_hub import KvHub
from quire.engine.client.link import Link, Receiver
from quire.engine.client.pacing import NewCalls, Pacer
from quire.engine.client.stream import Stream
from quire.engine.errors import EngineDeadError
from quire.engine.loop.commands import (
    Abort,
    AskBlockMap,
    Finish,
    FlushCache,
    SetVocabulary,
    Submit,
    UnwatchBlocks,
    WatchBlocks,
)
from quire.engine.loop.loop import Batch
from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import GenerationRequest, Output, Vocabulary
from quire.engine.scheduling.kv_events import KvEvents
from quire.engine.scheduling.limits import RequestLimits

Result = TypeVar("Result")


class AsyncEngine:
    """One engine behind one link. All methods must be called on one event loop."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.others_work: Callable[[], bool] = lambda: False  # on threads; set before the start
        self._streams: dict[int, Stream] = {}
        self._keys = itertools.count(1)
        self._stats = EngineStats()
        self._step_times: StepTimes | None = None
        self._info: EngineInfo | None = None
        self._limits: RequestLimits | None = None
        self._asked: deque[asyncio.Future[Any]] = deque()  # in the order of their commands
        self._dead: EngineDeadError | None = None
        self._hub = KvHub(lambda: link.send(WatchBlocks()), lambda: link.send(UnwatchBlocks()))
        self.abandoned = False  # given up: its step may never end

    # ------------------------------------------------------------ life

    async def start(self, progress: Callable[[str, float], None] | None = None) -> None:
        """Load, size and warm up the engine at the other end of the link.

        progress(stage, share) is called on the event loop, share from 0 to 1. Raises QuireError.
        """
        loop = asyncio.get_running_loop()

        def later(seconds: float, call: Callable[[], None]) -> None:
            """From the loop's next turn on: a new call's Submit does not wait for its timer."""
            loop.call_soon(loop.call_later, seconds, call)

        self._new_calls = NewCalls(later, self._answer)
        self._pacer = Pacer(loop.call_later, self._link.loop_share, self._new_calls.coming)
        self._died: asyncio.Future[str] = loop.create_future()
        report = progress or (lambda _stage, _share: None)
        self._awake = Awake(loop.call_soon, self.others_work, self._pacer.forgive)
        info = await self._link.start(Receiver(self._deliver, self._on_death, report))
        self._limits = RequestLimits(info.max_model_len, info.block_size, info.num_blocks)
        if self._link.own_process:
            self._awake.seconds = seconds_awake(info.device)
        self._info = info

    async def stop(self) -> None:
        """End the engine. Open generate() calls get EngineDeadError."""
        await self._link.stop()
        if self._dead is None:
            self._end_streams(EngineDeadError("stopped"))

    def give_up(self) -> str:
        """Declare an engine dead whose step does not end. Nothing waits for it any more; open
        generate() calls get EngineDeadError. Returns the error's id."""
        error = EngineDeadError(secrets.token_hex(4))
        self.abandoned = True
        self._link.give_up()
        self._on_death(error)
        return error.error_id

    async def wait_dead(self) -> str:
        """Wait until the engine has died; returns the error's id."""
        return await asyncio.shield(self._died)

    async def unless_dead(self, work: Awaitable[Result]) -> Result:
        """The result of `work`. Raises EngineDeadError as soon as the engine has died: its end does
        not wait for work on threads."""
        task = asyncio.ensure_future(work)
        first: set[asyncio.Future[Any]] = {task, self._died}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self._dead is not None:
            task.cancel()
            raise self._dead
        return await task

    @property
    def info(self) -> EngineInfo:
        """The engine's properties; available once start() has returned."""
        if self._info is None:
            raise RuntimeError("the engine has not been started")
        return self._info

    # ------------------------------------------------------------ requests

    def new_key(self) -> int:
        """A unique key for a request."""
        return next(self._keys)

    def check(self, request: GenerationRequest) -> None:
        """Raise RequestError if the request can never run."""
        assert self._limits is not None
        self._limits.check(request)

    async def generate(
        self, request: GenerationRequest, interval: float = 0.0
    ) -> AsyncGenerator[list[Output], None]:
        """Submit a request and yield its outputs, joined to at most one per index.

        interval: seconds between two items; first tokens and ends do not wait.

        The first item comes once the request has been handed over and the loop has time to report
        it; it is empty if there is no output by then. Ends when each index has had its `finish` or
        was ended by finish(). Raises RequestError before anything is submitted. If the engine dies
        meanwhile, its outputs are yielded first; then raises EngineDeadError if an index is open.
        """
        self.check(request)
        if self._dead is not None:
            raise self._dead
        stream = Stream(request.n, interval)
        self._streams[request.key] = stream
        self._awake.begin()
        try:
            self._link.send(Submit(request))
            self._new_calls.add(stream)
            if not self._new_calls.coming():  # in a burst those of one turn go together
                self._link.flush()
            while stream.open_indices:
                is_first = stream.is_silent
                outputs = await stream.take()
                error = stream.error  # as of now: outputs before a later error are yielded first
                for output in outputs:
                    if output.finish is not None:
                        stream.open_indices.discard(output.index)
                if outputs or (is_first and error is None):
                    yield outputs
                if error is not None and stream.open_indices:
                    raise error
        finally:
            stream.close()
            self._awake.end()
            del self._streams[request.key]
            self._new_calls.forget(stream)
            self._link.send(Abort(request.key))

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """The vocabulary that constraints are compiled for. Call it before the first constrained
        request."""
        self._link.send(SetVocabulary(vocabulary))

    def finish(self, key: int, index: int, kept: int) -> None:
        """End one index after `kept` of its outputs (resumed ones not counted): a stop string was
        found. Stale or repeated calls have no effect."""
        stream = self._streams.get(key)
        if stream is not None and index in stream.open_indices:
            stream.open_indices.discard(index)
            stream.wake()
            self._link.send(Finish(key, index, kept))

    # ------------------------------------------------------------ state

    def unread(self, key: int) -> int:
        """Tokens of a request that its reader has not taken yet."""
        stream = self._streams.get(key)
        return 0 if stream is None else stream.unread

    def stats(self) -> EngineStats:
        """The latest snapshot received."""
        return self._stats

    def running(self) -> int:
        """Requests that run, by that snapshot."""
        return self._stats.running

    def step_times(self) -> StepTimes | None:
        """Durations of the steps so far; None before the engine is ready."""
        return self._step_times

    def busy_since(self) -> float | None:
        """When the engine began its current step (time.monotonic); None: idle."""
        return self._link.busy_since()

    def stack(self) -> str:
        """The engine's current stack; empty where it writes that to standard error itself."""
        return self._link.stack()

    async def block_map(self) -> bytes:
        """One byte a block: 0 free, 1 cached, 2 in use, 3 shared."""
        states: bytes = await self._ask(AskBlockMap())
        return states

    async def flush_cache(self) -> int:
        """Forget the cached blocks that no request holds; returns how many there were."""
        blocks: int = await self._ask(FlushCache())
        return blocks

    def watch_blocks(self, start: int = 0) -> AsyncGenerator[KvEvents, None]:
        """Events of the cached blocks: see KvHub.watch. Raises EngineDeadError."""
        if self._dead is not None:
            raise self._dead
        return self._hub.watch(start)

    async def _ask(self, question: AskBlockMap | FlushCache) -> Any:
        """Ask the engine, which answers in the order in which it is asked."""
        if self._dead is not None:
            raise self._dead
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        self._link.send(question)
        return await answer

    # ------------------------------------------------------------ from the engine

    def _deliver(self, batches: Sequence[Batch]) -> None:
        spoken = False
        for batch in batches:
            if batch.stats is not None:
                self._stats, self._step_times = batch.stats, batch.step_times
            if batch.outputs:
                spoken = True
            for output in batch.outputs:
                stream = self._streams.get(output.key)
                if stream is not None:
                    stream.push(output)
                    if output.token_ids or not self._joins_later(stream, output):
                        self._wake_when_there_is_time(stream)
            for answer in batch.answers:
                asked = self._asked.popleft()
                if not asked.done():  # otherwise its caller has gone
                    asked.set_result(answer)
            if batch.blocks:
                self._hub.deliver(batch.blocks)
        if spoken:
            self._awake.stay()
        idle = self._stats.running == self._stats.waiting == 0
        self._pacer.unbounded = idle or self._awake.turning
        self._pacer.run()

    def _joins_later(self, stream: Stream, output: Output) -> bool:
        """Whether `started` waits for the first tokens, or for the call to be acknowledged. It does
        in a burst of calls, where waking its reader twice would delay the calls behind it."""
        return stream.is_silent and output.finish is None and self._new_calls.coming()

    def _answer(self, streams: list[Stream]) -> None:
        """These requests have been handed over; wake those that have no output yet."""
        for stream in streams:
            if stream.is_silent:
                self._wake_when_there_is_time(stream)
        self._pacer.run()

    def _wake_when_there_is_time(self, stream: Stream) -> None:
        """The caller must then call the pacer's run()."""
        if stream.interval:
            loop = asyncio.get_running_loop()
            wait = stream.wait(loop.time())
            if wait > 0:
                if stream.timer is None:
                    stream.timer = loop.call_later(wait, self._on_time, stream)
                return
        if stream.queue():
            self._pacer.add(stream, first=stream.is_new)

    def _on_time(self, stream: Stream) -> None:
        """The interval is over. The stream may have ended before."""
        stream.timer = None
        if stream.unread:
            self._wake_when_there_is_time(stream)
            self._pacer.run()

    def _end_streams(self, error: EngineDeadError) -> None:
        self._dead = error
        for stream in self._streams.values():
            stream.error = error
            stream.wake()
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(error)
        self._asked.clear()
        self._hub.fail(error)

    def _on_death(self, error: EngineDeadError) -> None:
        self._end_streams(error)
        if not self._died.done():
            self._died.set_result(error.error_id)
