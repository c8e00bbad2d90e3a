"""A following rank: its process from start to end.

It builds its share of the model as rank 0 says, then executes the plans it is sent. Nobody reads
its own results: they equal rank 0's.

Invariant: it ends when its channel closes, whatever it is doing (see lifeline). An error that keeps
it from being built is reported over the channel in one line of text.
"""

import logging
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import QuireError, RankError
from quire.engine.model.layers.parallel import World
from quire.engine.parallel.codec import decode, decode_masks
from quire.engine.parallel.frame_channel import FrameChannel, Kind
from quire.engine.parallel.rendezvous import exchange_of
from quire.engine.parallel.store import ChannelStore
from quire.engine.scheduling.plan import Masks, StepPlan

log = logging.getLogger(__name__)

EXIT_OK, EXIT_DEAD, EXIT_REFUSED = 0, 1, 2
_AHEAD = 1  # steps enqueued beyond the one that is waited for, as at rank 0
_MEMORY_SECONDS = 1.0  # between two words about memory
Progress = Callable[[str, float], None]
Agree = Callable[[int, str], int]


class Pending(Protocol):
    """A step that was enqueued."""

    def wait(self) -> object: ...


class Follower(Protocol):
    """A rank that is built."""

    def execute(self, plan: StepPlan) -> Pending | None: ...

    def sample(self, masks: Masks) -> Pending: ...

    def memory(self) -> tuple[int, int]:
        """Bytes allocated, and at the peak."""
        ...


Meet = Callable[[], World]
Builder = Callable[[EngineConfig, int, Meet, Progress, Agree], Follower]


def run(
    load_builder: Callable[[], Builder],
    parent: socket.socket,
    flush_logs: Callable[[], None] = lambda: None,
    model: str | None = None,
) -> NoReturn:
    """Logs are set up already. parent: the socket to rank 0, which this process is held to. model:
    where this node has the model; None: where rank 0 has it."""
    code = serve(load_builder(), FrameChannel(parent), model)
    flush_logs()
    os._exit(code)  # without the interpreter's end, which a group's threads may hold up


def serve(builder: Builder, channel: FrameChannel, model: str | None = None) -> int:
    """Build and follow; the exit code. What ended it has been said and logged."""
    try:
        follower = build(builder, channel, model)
        follow(follower, channel)
    except QuireError as error:
        if isinstance(error, RankError):
            log.error("%s", error)
            return EXIT_DEAD
        _say(channel, Kind.REFUSED, error=type(error).__name__, message=str(error))
        return EXIT_REFUSED
    except Exception as error:
        error_id = secrets.token_hex(4)
        log.critical("a rank has ended by a fault (%s)", error_id, exc_info=error)
        _say(channel, Kind.DIED, error_id=error_id)
        return EXIT_DEAD
    return EXIT_OK


def build(builder: Builder, channel: FrameChannel, model: str | None = None) -> Follower:
    """This rank, as rank 0 asks for it, which meets the others when it is to."""
    asked = channel.expect(Kind.BUILD)
    config = EngineConfig(**asked["config"])
    if model is not None:
        config = config.replace(model=model)
    torch.set_num_threads(asked["threads"])
    rank = asked["rank"]

    def rendezvous() -> World:
        exchange = exchange_of(config, ChannelStore(channel), rank, asked["address"])
        return World(rank, config.tensor_parallel_size, exchange)

    def progress(stage: str, share: float) -> None:
        channel.send_json(Kind.PROGRESS, stage=stage, share=float(share))

    def agree(blocks: int, fingerprint: str) -> int:
        channel.send_json(Kind.SIZED, blocks=blocks, fingerprint=fingerprint)
        return int(channel.expect(Kind.BLOCKS)["blocks"])

    follower = builder(config, rank, rendezvous, progress, agree)
    _say_memory(follower, channel)
    channel.send_json(Kind.READY)
    return follower


def follow(follower: Follower, channel: FrameChannel) -> None:
    """Execute plans until STOP. Raises RankError when the channel is closed."""
    waiting: deque[Pending] = deque()
    said_at = time.monotonic()
    while True:
        kind, body = channel.receive()
        if kind is Kind.STOP:
            return
        pending = follower.execute(decode(_due(Kind.PLAN, kind, body)))
        if pending is None:
            pending = follower.sample(decode_masks(_due(Kind.MASKS, *channel.receive())))
        waiting.append(pending)
        if len(waiting) > _AHEAD:
            waiting.popleft().wait()
        if time.monotonic() - said_at >= _MEMORY_SECONDS:
            said_at = time.monotonic()
            _say_memory(follower, channel)


def _due(due: Kind, kind: Kind, body: bytes) -> bytes:
    """A frame's body, if it is of the kind that is due."""
    if kind is not due:
        raise RankError(f"{kind.name} was said where {due.name} was due")
    return body


def _say_memory(follower: Follower, channel: FrameChannel) -> None:
    allocated, peak = follower.memory()
    _say(channel, Kind.MEMORY, allocated=allocated, peak=peak)


def _say(channel: FrameChannel, kind: Kind, **values: Any) -> None:
    try:
        channel.send_json(kind, **values)
    except RankError as error:
        log.error("%s", error)
