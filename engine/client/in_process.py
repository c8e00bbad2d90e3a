"""The parent's end of the link to an engine in its own process.

Invariant: the event loop neither waits for the child nor polls it. The commands of one turn of the
loop are sent as one frame, unless a part of them is sent before (`flush`); bytes that the socket
does not take at once are kept here. However the child ends, that is reported once: as a refusal to
start, or as a death.
"""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import signal
import time
from itertools import groupby
from operator import itemgetter

from quire.engine.client import wire
from quire.engine.client.child import Child
from quire.engine.client.link import Receiver
from quire.engine.client.pacing import PROCESS_SHARE
from quire.engine.config import EngineConfig
from quire.engine.errors import EngineDeadError, QuireError
from quire.engine.loop.commands import Command, Stop
from quire.engine.loop.stats import EngineInfo

log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes read at once


class ProcessLink:
    """A Link to an engine in a child process that has been started and has received nothing yet."""

    loop_share = PROCESS_SHARE
    own_process = True

    def __init__(self, config: EngineConfig, child: Child) -> None:
        self._config = config
        self._child = child
        child.socket.setblocking(False)
        self._frames = wire.Frames()
        self._buffer = memoryview(bytearray(_CHUNK))  # kept: a new one a step costs 20 µs
        self._commands: list[Command] = []  # of this turn of the loop
        self._unsent = bytearray()
        self._asked_since: float | None = None  # commands were sent, and nothing has come since
        self._ended = False  # nothing more is expected of the child
        self._reading = False
        self._telling: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ life

    async def start(self, receiver: Receiver) -> EngineInfo:
        """See Link. Raises what building has refused, EngineDeadError for any other end."""
        self._loop, self._receiver = asyncio.get_running_loop(), receiver
        self._ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._loop.add_reader(self._child.socket, self._read)
        self._reading = True
        self._write(wire.frame((wire.BUILD, dataclasses.asdict(self._config))))
        return await self._ready

    def give_up(self) -> None:
        """See Link: the process is killed."""
        self._ended = True
        self._child.kill()
        while self._reading and self._read():
            pass

    async def stop(self) -> None:
        """See Link. Also reaps a child that has ended by itself, and has told how it did."""
        if not self._reading:
            self._child.kill()  # it was never told what to build; or it is gone already
        elif not self._ended:
            self.send(Stop())
            self.flush()
        self._ended = True
        await asyncio.to_thread(self._child.wait)
        if self._telling is not None:
            await asyncio.wait({self._telling})
        self._stop_reading()

    # ------------------------------------------------------------ there

    def send(self, command: Command) -> None:
        """See Link: with the next turn of the event loop, unless `flush` comes before."""
        if self._ended:
            return
        if not self._commands:
            self._loop.call_soon(self.flush)
        self._commands.append(command)

    def flush(self) -> None:
        """See Link."""
        commands, self._commands = self._commands, []
        if self._ended or not commands:
            return
        if self._asked_since is None:
            self._asked_since = time.monotonic()
        packed = [wire.pack_command(command) for command in commands]
        self._write(wire.frame((wire.COMMANDS, packed)))

    def _write(self, data: bytes) -> None:
        waiting = bool(self._unsent)
        self._unsent += data
        if not waiting:
            self._flush()
            if self._unsent:
                self._loop.add_writer(self._child.socket, self._flush_rest)

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._child.socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:  # it is gone: the reader will tell
                sent = len(self._unsent)
            del self._unsent[:sent]

    def _flush_rest(self) -> None:
        self._flush()
        if not self._unsent:
            self._loop.remove_writer(self._child.socket)

    # ------------------------------------------------------------ back

    def _read(self) -> bool:
        """Process the bytes that have arrived; False if there were none."""
        try:
            size = self._child.socket.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if not size:
            self._stop_reading()
            self._on_end()
            return False
        for kind, messages in groupby(self._frames.feed(self._buffer[:size]), key=itemgetter(0)):
            if kind == wire.BATCH:
                self._asked_since = None
                self._receiver.deliver([wire.unpack_batch(message) for message in messages])
            else:
                for message in messages:
                    self._on_message(message)
        return True

    def _on_message(self, message: wire.Message) -> None:
        match message:
            case (wire.PROGRESS, stage, share):
                self._receiver.progress(stage, share)
            case (wire.READY, _):
                self._answer(wire.unpack_info(message))
            case (wire.REFUSED, _, _):
                self._answer(wire.unpack_refusal(message))
            case (wire.DIED, error_id):
                self._die(EngineDeadError(error_id))

    def _answer(self, answer: EngineInfo | QuireError) -> None:
        if self._ready.done():
            return
        if isinstance(answer, QuireError):
            self._ended = True
            self._ready.set_exception(answer)
        else:
            self._ready.set_result(answer)

    # ------------------------------------------------------------ the end

    def _on_end(self) -> None:
        """Nothing will come any more."""
        if self._ended:
            return
        error = EngineDeadError(secrets.token_hex(4))
        log.critical("the engine's process %d is gone (%s)", self._child.pid, error.error_id)
        self._telling = self._loop.create_task(self._tell_how())
        self._die(error)

    def _die(self, error: EngineDeadError) -> None:
        self._ended = True
        if self._ready.done():
            self._receiver.died(error)
        else:
            self._ready.set_exception(error)

    async def _tell_how(self) -> None:
        code = await asyncio.to_thread(self._child.wait)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        log.critical("the engine's process has ended by %s", how)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._child.socket)
            self._loop.remove_writer(self._child.socket)
            self._child.socket.close()
            if self._ended and not self._ready.done():  # stopped while it was built
                self._ready.set_exception(EngineDeadError("stopped"))

    # ------------------------------------------------------------ sight

    def busy_since(self) -> float | None:
        """See Link. A child that is idle and does not read its commands counts as busy from then
        on."""
        since = self._child.busy.since
        return self._asked_since if since is None else since

    def stack(self) -> str:
        """See Link. The child writes all its threads' to standard error itself."""
        with contextlib.suppress(ProcessLookupError):
            self._child.ask_for_stacks()
        return ""
