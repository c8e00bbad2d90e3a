"""The asyncio face of the engine, and the thread behind it.

Invariant: the engine is built on, and touched by, its own thread alone. What crosses is plain data:
inward a list of commands under one short lock, outward one batch of outputs a step, delivered by
one call into the event loop however many streams there are. On the loop's side each stream merges
what has come until its reader takes it, so a slow reader gets larger updates, never a longer queue;
and the pacer wakes readers only as fast as the loop can afford, so many streams do the same.

`generate` is an async generator whose `finally` always aborts: the normal end, a cancelled call and
an error are one path, and a stale abort is nothing.
"""

import asyncio
import itertools
import logging
import secrets
import threading
import traceback
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from quire.engine.build import Progress, build_engine
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.errors import EngineDeadError, QuireError
from quire.engine.pacing import Pacer
from quire.engine.request import GenerationRequest, Output
from quire.engine.stats import EngineInfo, EngineStats
from quire.engine.step_times import StepTimes

log = logging.getLogger(__name__)

# More outputs than this in a step are handed over only when the next one has been launched and the
# thread waits for the device: the event loop's work on them would delay that launch.
AT_ONCE = 16


class BuiltEngine(Protocol):
    """What the thread drives."""

    core: EngineCore
    info: EngineInfo

    def stats(self) -> EngineStats: ...


Builder = Callable[[EngineConfig, Progress], BuiltEngine]


@dataclass(slots=True)
class _Commands:
    """What the event loop has asked for since the engine last looked."""

    submit: list[GenerationRequest] = field(default_factory=list)
    finish: list[tuple[int, int, int]] = field(default_factory=list)
    abort: list[int] = field(default_factory=list)
    block_map: bool = False
    stop: bool = False

    def __bool__(self) -> bool:
        return bool(self.submit or self.finish or self.abort or self.block_map or self.stop)


@dataclass(slots=True)
class _Batch:
    """What one turn of the engine has to say."""

    outputs: list[Output]
    block_map: bytes | None = None


class _Stream:
    """Loop side of one request: what has come and was not yet taken."""

    __slots__ = ("_pending", "_queued", "_ready", "_waiter", "error", "is_new", "open_indices")

    def __init__(self, n: int) -> None:
        self.open_indices = set(range(n))
        self.error: EngineDeadError | None = None
        self._pending: dict[int, Output] = {}
        self._queued = False  # the pacer will wake it
        self._ready = False  # woken, and not yet taken from
        self.is_new = True  # no token was taken yet
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: Output) -> None:
        waiting = self._pending.get(output.index)
        if waiting is None:
            self._pending[output.index] = output
        else:
            merge(waiting, output)

    def queue(self) -> bool:
        """Whether the pacer is to be told: there is news, and nobody on the way to take it."""
        if self._queued or self._ready:
            return False
        self._queued = True
        return True

    def wake(self) -> None:
        """What has come may be taken."""
        self._queued = False
        self._ready = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Output]:
        """All that has come, at least one output unless the stream was ended from outside."""
        if not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._ready = False
        taken, self._pending = list(self._pending.values()), {}
        if self.is_new:
            self.is_new = not any(output.token_ids for output in taken)
        return taken


def merge(first: Output, later: Output) -> None:
    """Put a later output of the same index behind an earlier one."""
    first.started = first.started or later.started
    first.cached_tokens = max(first.cached_tokens, later.cached_tokens)
    first.token_ids.extend(later.token_ids)
    if later.logprobs is not None:
        first.logprobs = [*(first.logprobs or []), *later.logprobs]
    first.time = later.time
    first.finish = later.finish
    first.stop_token_id = later.stop_token_id
    first.error_id = later.error_id
    first.preemptions = max(first.preemptions, later.preemptions)
    first.peak_blocks = max(first.peak_blocks, later.peak_blocks)


class AsyncEngine:
    """An engine on a thread of its own. All methods are to be called on one event loop."""

    def __init__(self, config: EngineConfig, builder: Builder = build_engine) -> None:
        self._config = config
        self._builder = builder
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._commands = _Commands()
        self._undelivered: list[_Batch] = []
        self._held: _Batch | None = None  # the engine thread's, until it waits for the device
        self._streams: dict[int, _Stream] = {}
        self._keys = itertools.count(1)
        self._stats = EngineStats()
        self._info: EngineInfo | None = None
        self._engine: BuiltEngine | None = None
        self._block_maps: list[asyncio.Future[bytes]] = []
        self._dead: EngineDeadError | None = None
        self._stopping = False
        self.abandoned = False  # given up: the thread may be in its step for ever
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------ life

    async def start(self, progress: Callable[[str, float], None] | None = None) -> None:
        """Load, size and warm up on the engine's thread.

        progress(stage, share) is called on the event loop, share from 0 to 1. Raises QuireError.
        """
        self._loop = asyncio.get_running_loop()
        self._pacer = Pacer(self._loop.call_later)
        self._died: asyncio.Future[str] = self._loop.create_future()
        ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        report = progress or (lambda _stage, _share: None)

        def on_progress(stage: str, share: float) -> None:
            self._loop.call_soon_threadsafe(report, stage, share)

        self._thread = threading.Thread(
            target=self._run, args=(ready, on_progress), name="quire-engine", daemon=True
        )
        self._thread.start()
        self._info = await ready

    async def stop(self) -> None:
        """End the thread. Open generate() calls get EngineDeadError."""
        self._stopping = True
        if self.abandoned:
            return
        with self._wake:
            self._commands.stop = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._end_streams(EngineDeadError("stopped"))

    def give_up(self) -> str:
        """The thread is in a step that does not end: from here on the engine counts as dead, and
        nobody waits for it. Open generate() calls get EngineDeadError. Returns the error's id."""
        error = EngineDeadError(secrets.token_hex(4))
        self.abandoned = True
        self._on_death(error)
        return error.error_id

    async def wait_dead(self) -> str:
        """Returns, with the error's id, when the engine thread has ended by a fault."""
        return await asyncio.shield(self._died)

    @property
    def info(self) -> EngineInfo:
        """What the engine is; known once start() has returned."""
        if self._info is None:
            raise RuntimeError("the engine has not been started")
        return self._info

    # ------------------------------------------------------------ requests

    def new_key(self) -> int:
        """A key that no other request has."""
        return next(self._keys)

    def check(self, request: GenerationRequest) -> None:
        """Raise RequestError if the request can never run."""
        assert self._engine is not None
        self._engine.core.scheduler.check(request)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Output], None]:
        """Submit a request and yield what comes, merged to at most one output an index.

        Ends when each index has had its `finish` or was ended by finish(). Raises RequestError
        before anything is submitted, EngineDeadError if the engine ends under it.
        """
        self.check(request)
        if self._dead is not None:
            raise self._dead
        stream = _Stream(request.n)
        self._streams[request.key] = stream
        try:
            self._send(submit=request)
            while stream.open_indices:
                outputs = await stream.take()
                if stream.error is not None:
                    raise stream.error
                for output in outputs:
                    if output.finish is not None:
                        stream.open_indices.discard(output.index)
                if outputs:
                    yield outputs
        finally:
            del self._streams[request.key]
            self._send(abort=request.key)

    def finish(self, key: int, index: int, kept: int) -> None:
        """End one index after `kept` of its outputs (resumed ones not counted): a stop string was
        found. Stale and repeated calls are nothing."""
        stream = self._streams.get(key)
        if stream is not None and index in stream.open_indices:
            stream.open_indices.discard(index)
            stream.wake()
            self._send(finish=(key, index, kept))

    def _send(
        self,
        submit: GenerationRequest | None = None,
        finish: tuple[int, int, int] | None = None,
        abort: int | None = None,
    ) -> None:
        with self._wake:
            if submit is not None:
                self._commands.submit.append(submit)
            if finish is not None:
                self._commands.finish.append(finish)
            if abort is not None:
                self._commands.abort.append(abort)
            self._wake.notify()

    # ------------------------------------------------------------ sight

    def stats(self) -> EngineStats:
        """The latest snapshot."""
        return self._stats

    def busy_since(self) -> float | None:
        """When the step that is running now began (time.monotonic), None between steps."""
        return None if self._engine is None else self._engine.core.busy_since

    def step_times(self) -> StepTimes | None:
        """How long steps have taken so far; None before the engine is ready."""
        return None if self._engine is None else self._engine.core.step_times

    @property
    def thread(self) -> int | None:
        """The ident of the engine's thread."""
        return None if self._thread is None else self._thread.ident

    async def block_map(self) -> bytes:
        """One byte a block: 0 free, 1 cached, 2 in use, 3 shared."""
        if self._dead is not None:
            raise self._dead
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._block_maps.append(answer)
        with self._wake:
            self._commands.block_map = True
            self._wake.notify()
        return await answer

    # ------------------------------------------------------------ delivery, on the event loop

    def _deliver(self) -> None:
        with self._lock:
            batches, self._undelivered = self._undelivered, []
        for batch in batches:
            for output in batch.outputs:
                stream = self._streams.get(output.key)
                if stream is not None:
                    stream.push(output)
                    if stream.queue():
                        self._pacer.add(stream, first=stream.is_new)
            if batch.block_map is not None:
                answers, self._block_maps = self._block_maps, []
                for answer in answers:
                    if not answer.done():
                        answer.set_result(batch.block_map)
        self._pacer.run()

    def _end_streams(self, error: EngineDeadError) -> None:
        self._dead = error
        for stream in self._streams.values():
            stream.error = error
            stream.wake()
        for answer in self._block_maps:
            if not answer.done():
                answer.set_exception(error)
        self._block_maps = []

    def _on_death(self, error: EngineDeadError) -> None:
        self._end_streams(error)
        if not self._died.done():
            self._died.set_result(error.error_id)

    # ------------------------------------------------------------ the engine's thread

    def _run(self, ready: "asyncio.Future[EngineInfo]", progress: Progress) -> None:
        try:
            self._engine = self._builder(self._config, progress)
        except BaseException as error:
            self._call(_set_exception, ready, error)
            return
        self._stats = self._engine.stats()
        self._call(_set_result, ready, self._engine.info)
        try:
            self._engine.core.before_wait = self._publish_held
            while self._turn(self._engine):
                pass
        except BaseException as error:
            self._publish_held()
            error_id = secrets.token_hex(4)
            log.critical("the engine thread has died (%s): %s", error_id, traceback.format_exc())
            if isinstance(error, QuireError):
                log.critical("%s", error)
            self._call(self._on_death, EngineDeadError(error_id))

    def _turn(self, engine: BuiltEngine) -> bool:
        """Take commands, run one turn of the core, publish. False: stop."""
        commands = self._take_commands(idle=not engine.core.scheduler.has_requests)
        if commands.stop:
            return False
        scheduler = engine.core.scheduler
        refused: list[Output] = []
        for request in commands.submit:
            refused += engine.core.submit(request)
        for key, index, kept in commands.finish:
            scheduler.finish(key, index, kept)
        for key in commands.abort:
            scheduler.abort(key)
        outputs = refused + engine.core.step()
        self._publish_held()  # where the turn had nothing to wait for
        self._stats = engine.stats()
        block_map = scheduler.pool.block_map() if commands.block_map else None
        if outputs or block_map is not None:
            self._held = _Batch(outputs, block_map)
        if len(outputs) <= AT_ONCE or not scheduler.has_requests:
            self._publish_held()
        return True

    def _publish_held(self) -> None:
        if self._held is not None:
            batch, self._held = self._held, None
            self._publish(batch)

    def _take_commands(self, *, idle: bool) -> _Commands:
        with self._wake:
            while idle and not self._commands:
                self._wake.wait()
            commands, self._commands = self._commands, _Commands()
        return commands

    def _publish(self, batch: _Batch) -> None:
        """One call into the loop a step; none while the loop has not answered the last."""
        with self._lock:
            self._undelivered.append(batch)
            first = len(self._undelivered) == 1
        if first:
            self._call(self._deliver)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)


def _set_result(future: "asyncio.Future[EngineInfo]", info: EngineInfo) -> None:
    if not future.done():
        future.set_result(info)


def _set_exception(future: "asyncio.Future[EngineInfo]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
