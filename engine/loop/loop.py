"""The loop that owns an engine: take commands, run a turn of the core, publish what it says.

Invariant: the engine is touched by the thread that runs this loop, and by no other. What crosses is
plain data: commands inward, batches outward. Who is on the other side, another thread or another
process, the loop does not know; neither side may ever make it wait but for commands when idle.

Every turn that leaves the engine idle publishes, so whoever has sent a command hears of its effect.
"""

import logging
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire.engine.config import EngineConfig
from quire.engine.errors import EngineDeadError, QuireError
from quire.engine.loop.commands import (
    Abort,
    AskBlockMap,
    Command,
    Finish,
    FlushCache,
    SetVocabulary,
    Stop,
    Submit,
    UnwatchBlocks,
    WatchBlocks,
)
from quire.engine.loop.core import EngineCore
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.kv_watch import KvWatch
from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import Output
from quire.engine.scheduling.kv_events import KvEvents

log = logging.getLogger(__name__)

# More outputs than this in a step are handed over only when the next one has been launched and the
# loop waits for the device: work on them would delay that launch.
AT_ONCE = 16
STATS_SECONDS = 0.05  # statistics are published as often, if there is nothing else to say

Progress = Callable[[str, float], None]


class BuiltEngine(Protocol):
    """What the loop drives."""

    core: EngineCore
    info: EngineInfo

    def stats(self) -> EngineStats: ...

    def stop(self) -> None:
        """The end is meant."""


Builder = Callable[[EngineConfig, Progress], BuiltEngine]


class Inbox(Protocol):
    """Where commands come from."""

    def take(self, *, wait: bool) -> Sequence[Command]:
        """What has come since the last call, in order; wait: at least one."""
        ...


Answer = bytes | int


@dataclass(slots=True)
class Batch:
    """What one turn of the engine has to say. answers: of each question that it obeyed, in their
    order: of AskBlockMap the map, of FlushCache the number of blocks that were forgotten. blocks:
    what happened to the cached ones, while that is watched."""

    outputs: list[Output]
    stats: EngineStats
    step_times: StepTimes
    answers: tuple[Answer, ...] = ()
    blocks: tuple[KvEvents, ...] = ()


class EngineLoop:
    """Drives one engine for one other side."""

    def __init__(
        self,
        engine: BuiltEngine,
        inbox: Inbox,
        publish: Callable[[Batch], None],
        busy: Heartbeat,
    ) -> None:
        """publish: hands a batch over; it must not block."""
        self._engine = engine
        self._inbox = inbox
        self._publish = publish
        self._busy = busy
        self._held: Batch | None = None  # until the engine waits for the device
        self._published_at = float("-inf")
        self._answers: list[Answer | None] = []  # not yet told; None: the map as it will be then
        self._stats = EngineStats()  # as published last
        self._said: list[Output] = []  # by the present turn, before the core's
        self._watch = KvWatch(engine.core.scheduler.known)
        engine.core.before_wait = self._publish_held

    def announce(self) -> None:
        """Publish the statistics as they are before anything was asked."""
        self._hold([])
        self._publish_held()

    def run(self) -> None:
        """Returns when Stop was taken. Raises what ended the engine; all that was said before it
        has been published by then."""
        try:
            while self._turn():
                pass
        except BaseException:
            self._hold_final_outputs()
            raise
        finally:
            self._publish_held()
            self._busy.end()

    def handle(self, command: Command) -> list[Output]:
        """Do what is asked; what there is to say of it at once."""
        core = self._engine.core
        match command:
            case Submit(request):
                return core.submit(request)
            case Finish(key, index, kept):
                core.scheduler.finish(key, index, kept)
            case Abort(key):
                core.abort(key)
            case SetVocabulary(vocabulary):
                core.compiling.set_vocabulary(vocabulary)
            case AskBlockMap():
                self._answers.append(None)
            case FlushCache():
                pools = core.scheduler.pools
                self._answers.append(sum(pool.forget_free() for pool in pools))
            case WatchBlocks():
                self._watch.begin()
            case UnwatchBlocks():
                self._watch.end()
        return []

    def _turn(self) -> bool:
        """Take commands, run one turn of the core, publish. False: stop."""
        commands = self._take()
        if Stop() in commands:
            return False
        self._said = outputs = []
        for command in commands:
            outputs += self.handle(command)
        outputs += self._engine.core.step()
        self._publish_held()  # where the turn had nothing to wait for
        idle = not self._engine.core.has_requests
        overdue = time.monotonic() - self._published_at >= STATS_SECONDS
        if outputs or idle or overdue or self._answers:
            self._hold(outputs)
        self._said = []
        if idle or len(outputs) <= AT_ONCE:
            self._publish_held()
        return True

    def _take(self) -> Sequence[Command]:
        idle = not self._engine.core.has_requests
        if idle:
            if self._engine.core.spare is not None and (commands := self._take_between()):
                self._busy.begin()
                return commands
            self._busy.end()
        commands = self._inbox.take(wait=idle)
        self._busy.begin()
        return commands

    def _take_between(self) -> Sequence[Command]:
        """Use the time until there is a command, as far as there is use for it."""
        commands = self._inbox.take(wait=False)
        while not commands:
            self._busy.begin()  # a bit of work may hang as a step may
            if not self._engine.core.use_spare_time():
                break
            commands = self._inbox.take(wait=False)
        return commands

    def _hold(self, outputs: list[Output]) -> None:
        core = self._engine.core
        self._stats = self._engine.stats()
        pools = core.scheduler.pools if None in self._answers else ()
        block_map = b"".join([pool.block_map() for pool in pools])
        answers = tuple(block_map if answer is None else answer for answer in self._answers)
        self._answers = []
        self._held = Batch(outputs, self._stats, core.step_times, answers, self._watch.take())

    def _hold_final_outputs(self) -> None:
        """What the turn that ended the engine had said before: it is true, and ends who it ends.

        With the books as they were published last: a lost device is asked for nothing.
        """
        outputs = self._said + self._engine.core.drain_after_fault()
        self._publish_held()
        if outputs:
            self._held = Batch(outputs, self._stats, self._engine.core.step_times)

    def _publish_held(self) -> None:
        if self._held is not None:
            batch, self._held = self._held, None
            self._published_at = time.monotonic()
            self._publish(batch)


def report_death(error: BaseException) -> EngineDeadError:
    """Log what ended an engine, under an id; returns what its callers are to get."""
    error_id = secrets.token_hex(4)
    trace = "".join(traceback.format_exception(error))
    log.critical("the engine has ended by a fault (%s): %s", error_id, trace)
    if isinstance(error, QuireError):
        log.critical("%s", error)
    return EngineDeadError(error_id)
