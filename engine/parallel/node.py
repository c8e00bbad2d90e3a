"""A following node: it joins node 0, starts its ranks, and ends when they do.

Each rank has its own channel to rank 0, and executes the plans sent over it (see follower). The
node's own channel says why everything ends: a regular stop, an error that keeps the ranks from
starting, or, if the channel just closes, the loss of node 0.

Invariant: none of its ranks is left behind, not even a stopped one.
"""

import contextlib
import logging
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from functools import partial

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, RankError
from quire.engine.parallel import process
from quire.engine.parallel.frame_channel import FrameChannel, Kind, values_of
from quire.engine.parallel.handshake import NO_RANK, Opening
from quire.engine.parallel.joining import Joining
from quire.engine.parallel.node_config import NodeConfig, pack
from quire.engine.parallel.secret import Secret

log = logging.getLogger(__name__)

EXIT_OK, EXIT_LOST = 0, 1
GRACE = 10.0  # seconds in which node 0 is to end what has lost a rank
_Processes = dict[int, "subprocess.Popen[bytes]"]
# What has happened: a frame of node 0's; a rank's number and exit code; None: node 0 is gone.
_Event = tuple[Kind, bytes] | tuple[int, int] | None


def places(config: EngineConfig) -> list[tuple[int, int]]:
    """(node, rank) of each connection that the other nodes make: a node's own, and its ranks'."""
    each = config.ranks_per_node
    return [
        (node, rank)
        for node in range(1, config.nnodes)
        for rank in (NO_RANK, *range(node * each, (node + 1) * each))
    ]


def follow(
    config: EngineConfig,
    node_config: NodeConfig,
    secret: Secret,
    program: Sequence[str],
    on_joined: Callable[[], None] = lambda: None,
) -> int:
    """Run until the end; returns the exit code. Raises ConfigError if the ranks cannot start. Call
    it on a thread that outlives them. program: a rank's command line, to which the number of a
    descriptor is appended. on_joined: called once node 0 has accepted the whole node."""
    assert config.master_addr is not None and config.master_port is not None
    joining = Joining(config.master_addr, config.master_port, secret, config.join_seconds)
    own = [rank for node, rank in places(config) if node == config.node_rank]
    processes: _Processes = {}
    with contextlib.ExitStack() as open_ones:
        connections: dict[int, socket.socket] = {}
        for rank in own:
            opening = Opening(config.node_rank, rank, pack(node_config))
            connections[rank] = open_ones.enter_context(joining.connect(opening))
        on_joined()
        open_ones.callback(_kill, processes)
        for rank in own[1:]:
            with connections[rank]:
                processes[rank] = process.start(program, connections[rank])
        log.info(
            "node %d has joined; its ranks: %s", config.node_rank, ", ".join(map(str, own[1:]))
        )
        return _watch(FrameChannel(connections[NO_RANK]), processes)


def _kill(processes: _Processes) -> None:
    for one in processes.values():
        one.kill()
    for one in processes.values():
        one.wait()


def _watch(channel: FrameChannel, processes: _Processes) -> int:
    """Returns when all is over. Raises ConfigError where that is because of the start."""
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    _start_thread("node-0", lambda: _receive(channel, events))
    for rank, one in processes.items():
        _start_thread(f"rank-{rank}", partial(_wait_for, rank, one, events))
    seconds: float | None = None
    while True:
        try:
            event = events.get(timeout=seconds)
        except queue.Empty:
            log.critical("node 0 goes on without what this node has lost")
            return EXIT_LOST
        if event is None:
            log.critical("node 0 is gone")
            return EXIT_LOST
        kind, value = event
        if kind is Kind.STOP:
            return EXIT_OK
        if isinstance(value, int):
            seconds = GRACE
            _tell(channel, kind, process.how_it_ended(value))
        elif kind is Kind.REFUSED:
            raise ConfigError(str(values_of(value)["message"]))


def _receive(channel: FrameChannel, events: "queue.SimpleQueue[_Event]") -> None:
    try:
        while True:
            kind, body = channel.receive()
            if kind is Kind.ASKED:
                channel.send_json(Kind.ALIVE)
            else:
                events.put((kind, body))
    except RankError:
        events.put(None)


def _wait_for(
    rank: int, one: "subprocess.Popen[bytes]", events: "queue.SimpleQueue[_Event]"
) -> None:
    events.put((rank, one.wait()))


def _tell(channel: FrameChannel, rank: int, how: str) -> None:
    log.info("rank %d %s", rank, how)
    with contextlib.suppress(RankError):
        channel.send_json(Kind.ENDED, rank=rank, how=how)


def _start_thread(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=f"quire-{name}", daemon=True).start()
