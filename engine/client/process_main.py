"""The main program of an engine's process.

Invariant: the main thread builds the engine and runs its loop, and no other thread competes for the
interpreter: the loop itself polls the socket once a turn, without blocking. A slow parent delays no
step: outputs that the socket does not take are kept and joined with later ones, so they never
exceed one per live index. An engine that drives a device polls for a moment before it sleeps: see
awake.

The process belongs to its parent and ends with it (see lifeline). Signals that ask for stacks: see
stacks.
"""

import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from quire.engine import lifeline
from quire.engine.client import stacks, wire
from quire.engine.client.awake import seconds_awake
from quire.engine.config import EngineConfig
from quire.engine.errors import QuireError
from quire.engine.loop import garbage, heartbeat
from quire.engine.loop.commands import Command
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch, Builder, BuiltEngine, EngineLoop, report_death
from quire.engine.request import Output
from quire.engine.scheduling import kv_events

EXIT_OK, EXIT_DEAD, EXIT_REFUSED = 0, 1, 2
_LAST_WORDS = 5.0  # seconds for the parent to take them
_CHUNK = 1 << 18  # bytes read at once


class Channel:
    """The child's end of the socket: the loop's inbox and outlet. Used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.awake = 0.0  # seconds for which it polls before it sleeps
        self._socket = connection
        self._frames = wire.Frames()
        self._buffer = memoryview(bytearray(_CHUNK))  # kept, not made anew for each read
        self._messages: list[wire.Message] = []
        self._unsent = bytearray()
        self._late: Batch | None = None  # joined, until the socket has taken all that is unsent

    def wait_for_config(self) -> EngineConfig:
        """The configuration of the engine to build: the parent's first message."""
        while not self._messages:
            self._wait()
            self._receive()
        kind, values = self._messages.pop(0)
        assert kind == wire.BUILD, kind
        return EngineConfig(**values)

    def take(self, *, wait: bool) -> list[Command]:
        """See Inbox."""
        self._flush()
        self._receive()
        if wait:
            self._poll_awhile()
        while wait and not self._messages:
            self._wait()
            self._flush()
            self._receive()
        messages, self._messages = self._messages, []
        return [wire.unpack_command(packed) for _, commands in messages for packed in commands]

    def publish(self, batch: Batch) -> None:
        """Send it, or keep it: never blocks."""
        self._flush()
        if self._unsent:
            self._late = batch if self._late is None else joined(self._late, batch)
        else:
            self.say(wire.pack_batch(batch))

    def say(self, message: wire.Message) -> None:
        """Send a message after all earlier ones, as soon as the socket takes it."""
        self._pack_late()
        self._unsent += wire.frame(message)
        self._flush()

    def close(self, message: wire.Message | None = None) -> None:
        """Last words: whatever is left is sent, for as long as the parent may take for it."""
        self._socket.settimeout(_LAST_WORDS)
        self._pack_late()
        if message is not None:
            self._unsent += wire.frame(message)
        with contextlib.suppress(OSError):
            self._socket.sendall(self._unsent)

    def _flush(self) -> None:
        while self._unsent or self._late is not None:
            if not self._unsent:
                self._pack_late()
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                lifeline.exit_orphaned()
            del self._unsent[:sent]

    def _pack_late(self) -> None:
        if self._late is not None:
            late, self._late = self._late, None
            self._unsent += wire.frame(wire.pack_batch(late))

    def _receive(self) -> None:
        """Read everything that has arrived."""
        while True:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                lifeline.exit_orphaned()
            self._messages += self._frames.feed(self._buffer[:size])
            if size < _CHUNK:
                return  # that was all

    def _poll_awhile(self) -> None:
        """Look for something to read until there is something, or something to write is left."""
        until = time.monotonic() + self.awake
        while not self._messages and not self._unsent and time.monotonic() < until:
            self._receive()

    def _wait(self) -> None:
        """Wait until there is something to read, or unsent bytes can be written."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.poll()


def joined(first: Batch, later: Batch) -> Batch:
    """Two batches as one: of each index one output, in the order of the first words."""
    outputs: dict[tuple[int, int], Output] = {}
    for output in (*first.outputs, *later.outputs):
        earlier = outputs.setdefault((output.key, output.index), output)
        if earlier is not output:
            earlier.join(output)
    answers = first.answers + later.answers
    blocks = kv_events.joined(first.blocks, later.blocks)
    stats, step_times = later.stats or first.stats, later.step_times or first.step_times
    return Batch(list(outputs.values()), stats, step_times, answers, blocks)


def run(
    load_builder: Callable[[], Builder],
    connection: int,
    mark: int,
    flush_logs: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Build what the parent asks for and serve it until it says stop. Logs are set up already.

    load_builder: called at once, before the parent has said what to build: its imports take long.
    connection, mark: the file descriptors of the socket and of the Heartbeat's memory.
    """
    for descriptor in (connection, mark):  # or compilers that are run here would hold them open
        os.set_inheritable(descriptor, False)
    parent = socket.socket(fileno=connection)
    lifeline.end_with_parent(parent)
    stacks.answer_signals()
    builder = load_builder()
    channel = Channel(parent)
    code = _serve(builder, channel, Heartbeat(memoryview(mmap.mmap(mark, heartbeat.SIZE))))
    flush_logs()
    os._exit(code)  # without the interpreter's end: the device's own may hang after a fault


def _serve(builder: Builder, channel: Channel, mark: Heartbeat) -> int:
    config = channel.wait_for_config()
    try:
        engine = builder(
            config, lambda stage, share: channel.say((wire.PROGRESS, stage, float(share)))
        )
    except QuireError as error:
        channel.close(wire.pack_refusal(error))
        return EXIT_REFUSED
    except BaseException as error:
        channel.close((wire.DIED, report_death(error).error_id))
        return EXIT_DEAD
    garbage.freeze()
    return _run(engine, channel, mark)


def _run(engine: BuiltEngine, channel: Channel, mark: Heartbeat) -> int:
    loop = EngineLoop(engine, channel, channel.publish, mark)
    channel.awake = seconds_awake(engine.info.device)
    loop.announce()
    channel.say(wire.pack_info(engine.info))
    try:
        loop.run()
    except BaseException as error:
        channel.close((wire.DIED, report_death(error).error_id))
        return EXIT_DEAD
    engine.stop()
    channel.close()
    return EXIT_OK
