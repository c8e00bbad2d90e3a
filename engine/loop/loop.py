"""The loop that owns an engine: take commands, run a turn of the core, publish its outputs.

Invariant: only the thread that runs this loop touches the engine. What crosses is plain data:
commands in, batches out. The loop does not know whether the other side is another thread or another
process, and never waits for it, except for commands while idle.

Every turn that leaves the engine idle publishes, so the sender of a command sees its effect.
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

# More outputs than this in a step are published only after the next step has been launched, while
# the loop waits for the device: handling them earlier would delay that launch.
AT_ONCE = 16
STATS_SECONDS = 0.05  # how old the statistics published last may be, and a step at most

Progress = Callable[[str, float], None]


class BuiltEngine(Protocol):
    """The interface of an engine that the loop needs."""

    core: EngineCore
    info: EngineInfo

    def stats(self) -> EngineStats: ...

    def stop(self) -> None:
        """A regular stop is coming."""


Builder = Callable[[EngineConfig, Progress], BuiltEngine]


class Inbox(Protocol):
    """Where commands come from."""

    def take(self, *, wait: bool) -> Sequence[Command]:
        """Commands received since the last call, in order; wait: block until there is one."""
        ...


Answer = bytes | int


@dataclass(slots=True)
class Batch:
    """The outcome of one turn of the engine. stats and step_times: None where those published last
    will do. answers: one for each AskBlockMap (the map) and FlushCache (the number of blocks
    forgotten), in order. blocks: events of cached blocks, while they are watched."""

    outputs: list[Output]
    stats: EngineStats | None = None
    step_times: StepTimes | None = None
    answers: tuple[Answer, ...] = ()
    blocks: tuple[KvEvents, ...] = ()


class EngineLoop:
    """Runs one engine for one client."""

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
        self._stats_at = float("-inf")  # when statistics were taken last
        self._load: tuple[int, int, int] | None = None  # by those of the last batch, if it had any
        self._answers: list[Answer | None] = []  # not yet sent; None: the map at that time
        self._outputs: list[Output] = []  # of the current turn's commands, before the core's
        self._watch = KvWatch(engine.core.scheduler.known)
        engine.core.before_wait = self._publish_held

    def announce(self) -> None:
        """Publish the statistics as they are before the first command."""
        self._hold([], due=True)
        self._publish_held()

    def run(self) -> None:
        """Returns after Stop. Raises the error that ended the engine; all outputs made before it
        have been published by then."""
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
        """Carry out a command; returns the outputs that follow from it at once."""
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
        """Take commands, run one turn of the core, publish. Returns False to stop."""
        commands = self._take()
        if Stop in map(type, commands):
            return False
        self._outputs = outputs = []
        for command in commands:
            outputs += self.handle(command)
        outputs += self._engine.core.step()
        self._publish_held()  # where the turn had nothing to wait for
        idle = not self._engine.core.has_requests
        due = idle or time.monotonic() - self._stats_at >= STATS_SECONDS
        if outputs or due or self._answers:
            self._hold(outputs, due=due)
        self._outputs = []
        if idle or len(outputs) <= AT_ONCE:
            self._publish_held()
        return True

    def _take(self) -> Sequence[Command]:
        idle = not self._engine.core.has_requests
        if idle:
            if self._engine.core.spare and (commands := self._take_between()):
                self._busy.begin()
                return commands
            self._busy.end()
        commands = self._inbox.take(wait=idle)
        self._busy.begin()
        return commands

    def _take_between(self) -> Sequence[Command]:
        """Do work in spare time until there is a command or no such work is left."""
        commands = self._inbox.take(wait=False)
        while not commands:
            self._busy.begin()  # such work may hang as a step may
            if not self._engine.core.use_spare_time():
                break
            commands = self._inbox.take(wait=False)
        return commands

    def _hold(self, outputs: list[Output], *, due: bool) -> None:
        """due: with statistics in any case."""
        batch = Batch(outputs, blocks=self._watch.take())
        if self._answers:
            batch.answers = self._take_answers()
        core, scheduler = self._engine.core, self._engine.core.scheduler
        load = scheduler.num_running, scheduler.num_waiting, scheduler.counters.prompt_tokens
        if due or load != self._load or batch.answers:
            batch.stats, batch.step_times = self._engine.stats(), core.step_times
            self._load, self._stats_at = load, time.monotonic()
        else:  # little has changed but counters, which the next batch tells
            self._load = None
        self._held = batch  # not before: a lost device raises when it is asked for its memory

    def _take_answers(self) -> tuple[Answer, ...]:
        pools = self._engine.core.scheduler.pools if None in self._answers else ()
        block_map = b"".join([pool.block_map() for pool in pools])
        asked, self._answers = self._answers, []
        return tuple(block_map if answer is None else answer for answer in asked)

    def _hold_final_outputs(self) -> None:
        """Hold the outputs that the failed turn had made before the fault: they are valid, and may
        finish requests.

        Without new statistics: a lost device is not queried.
        """
        outputs = self._outputs + self._engine.core.drain_after_fault()
        self._publish_held()
        if outputs:
            self._held = Batch(outputs)

    def _publish_held(self) -> None:
        if self._held is not None:
            batch, self._held = self._held, None
            self._publish(batch)


def report_death(error: BaseException) -> EngineDeadError:
    """Log the error that ended an engine, under an id; returns the error for its callers."""
    error_id = secrets.token_hex(4)
    trace = "".join(traceback.format_exception(error))
    log.critical("the engine has ended by a fault (%s): %s", error_id, trace)
    if isinstance(error, QuireError):
        log.critical("%s", error)
    return EngineDeadError(error_id)
