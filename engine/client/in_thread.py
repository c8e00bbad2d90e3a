"""A link to an engine that runs on a thread of this process, and that thread.

Invariant: only the engine's own thread builds and touches the engine. Commands wait in a list under
one short lock. At most one call into the event loop is pending for batches, however many steps have
ended meanwhile.
"""

import asyncio
import contextlib
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from quire.engine.client.link import Receiver
from quire.engine.client.pacing import THREAD_SHARE
from quire.engine.config import EngineConfig
from quire.engine.loop.commands import Command, Stop
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch, Builder, EngineLoop, report_death
from quire.engine.loop.stats import EngineInfo
from quire.engine.scheduling import kv_events
from quire.engine.startup.build_engine import build_engine


class ThreadInbox:
    """Commands between two threads."""

    def __init__(self) -> None:
        self._filled = threading.Condition()
        self._commands: list[Command] = []

    def put(self, command: Command) -> None:
        with self._filled:
            self._commands.append(command)
            self._filled.notify()

    def take(self, *, wait: bool) -> list[Command]:
        with self._filled:
            while wait and not self._commands:
                self._filled.wait()
            commands, self._commands = self._commands, []
        return commands


class ThreadLink:
    """A Link to an engine on a thread of its own."""

    loop_share = THREAD_SHARE
    own_process = False

    def __init__(self, config: EngineConfig, builder: Builder = build_engine) -> None:
        self._config = config
        self._builder = builder
        self._busy = Heartbeat()
        self._inbox = ThreadInbox()
        self._lock = threading.Lock()
        self._undelivered: list[Batch] = []
        self._abandoned = False  # the thread may be in its step for ever
        self._thread: threading.Thread | None = None

    async def start(self, receiver: Receiver) -> EngineInfo:
        """Load, size and warm up on the engine's thread. Raises QuireError, and any fault."""
        self._loop, self._receiver = asyncio.get_running_loop(), receiver
        ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="quire-engine", daemon=True
        )
        self._thread.start()
        return await ready

    def send(self, command: Command) -> None:
        """See Link."""
        self._inbox.put(command)

    def flush(self) -> None:
        """See Link: nothing is gathered."""

    def busy_since(self) -> float | None:
        """See Link."""
        return self._busy.since

    def stack(self) -> str:
        """The thread's current stack."""
        return stack_of(None if self._thread is None else self._thread.ident)

    def give_up(self) -> None:
        """See Link. Nothing waits for the thread from here on."""
        self._abandoned = True
        self._deliver()

    async def stop(self) -> None:
        """See Link."""
        if self._abandoned:
            return
        self._inbox.put(Stop())
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    # ------------------------------------------------------------ the engine's thread

    def _run(self, ready: "asyncio.Future[EngineInfo]") -> None:
        try:
            engine = self._builder(self._config, self._progress)
            loop = EngineLoop(engine, self._inbox, self._publish, self._busy)
            loop.announce()
        except BaseException as error:
            self._call(_fail, ready, error)
            return
        self._call(_answer, ready, engine.info)
        try:
            loop.run()
        except BaseException as error:
            self._call(self._receiver.died, report_death(error))

    def _progress(self, stage: str, share: float) -> None:
        self._call(self._receiver.progress, stage, share)

    def _publish(self, batch: Batch) -> None:
        """One call into the event loop a batch; none while it has not answered the last."""
        with self._lock:
            if batch.blocks and self._undelivered:  # bounded, even if they are not taken
                last = self._undelivered[-1]
                batch.blocks, last.blocks = kv_events.joined(last.blocks, batch.blocks), ()
            self._undelivered.append(batch)
            first = len(self._undelivered) == 1
        if first:
            self._call(self._deliver)

    def _deliver(self) -> None:
        """On the event loop."""
        with self._lock:
            batches, self._undelivered = self._undelivered, []
        if batches:
            self._receiver.deliver(batches)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *args)


def stack_of(thread: int | None) -> str:
    """The current stack of the thread with this ident."""
    frame = None if thread is None else sys._current_frames().get(thread)
    return "the thread has ended" if frame is None else "".join(traceback.format_stack(frame))


def _answer(future: "asyncio.Future[EngineInfo]", info: EngineInfo) -> None:
    if not future.done():
        future.set_result(info)


def _fail(future: "asyncio.Future[EngineInfo]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
