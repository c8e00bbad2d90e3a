"""Node 0's listener for the other nodes: one port, open until all have joined.

Invariant: a peer that does not prove that it has the secret changes nothing. Such peers may be
silent, send anything, or replay what they overheard: nothing waits for them, at most one opening is
read from each, and the oldest is dropped when there are too many. So they cannot keep a node from
joining either.
"""

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from quire.engine.errors import ConfigError, QuireError, RankError
from quire.engine.parallel import handshake
from quire.engine.parallel.frame_channel import FrameChannel, Kind
from quire.engine.parallel.handshake import NO_RANK, Opening
from quire.engine.parallel.network import host_of, kept_alive
from quire.engine.parallel.node_config import NodeConfig, difference, unpack
from quire.engine.parallel.secret import Secret

log = logging.getLogger(__name__)

MAX_PENDING = 64  # connections that have proved nothing yet
PENDING_SECONDS = 10.0  # until one of them is closed
LOOK_SECONDS = 1.0  # at most, between two calls of `check`
_MAX_WARNINGS = 8
_CHUNK = 4096


@dataclass(slots=True)
class _PendingPeer:
    """A connection that has proved nothing yet."""

    connection: socket.socket
    address: str
    until: float
    greeting: bytes = field(default_factory=handshake.hello)
    data: bytes = b""

    def whole(self) -> bool:
        """Whether the whole opening has arrived. Raises RankError if it is no opening."""
        if len(self.data) < handshake.OPENING_BYTES:
            return False
        return len(self.data) >= handshake.OPENING_BYTES + handshake.config_length(self.data)


@dataclass(frozen=True, slots=True)
class JoinedPeer:
    """An authenticated connection of another node. rank: NO_RANK for the node's own."""

    node: int
    rank: int
    connection: socket.socket
    address: str


class JoinListener:
    """Accepts the connections of the other nodes. Used by one thread."""

    def __init__(
        self,
        listener: socket.socket,
        secret: Secret,
        node_config: NodeConfig,
        places: Iterable[tuple[int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """listener: non-blocking; closed by this class. places: (node, rank) of each expected
        connection. node_config: this node's, which theirs must equal."""
        self._listener = listener
        self._secret = secret
        self._node_config = node_config
        self._clock = clock
        self._missing = set(places)
        self._members: dict[tuple[int, int], JoinedPeer] = {}
        self._pending: list[_PendingPeer] = []
        self._warnings = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def gather(self, seconds: float, check: Callable[[], None] = lambda: None) -> list[JoinedPeer]:
        """Returns once all nodes have joined, and tells them so. check: called about every second;
        an exception from it ends the wait. Raises ConfigError for a node that does not join in
        time, or that is incompatible with this one; nodes that have joined are told."""
        until = self._clock() + seconds
        try:
            while self._missing:
                check()
                self._poll_once(until)
                if self._missing and self._clock() >= until:
                    raise ConfigError(f"{self._absent()} did not come within {seconds:g} s")
        except BaseException as error:
            self._refuse_all(str(error) if isinstance(error, QuireError) else "node 0 ends")
            raise
        finally:
            self._close()
        for member in self._members.values():
            member.connection.setblocking(True)
        return [self._members[place] for place in sorted(self._members)]

    def _absent(self) -> str:
        nodes = sorted({node for node, _ in self._missing})
        return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(map(str, nodes))

    def _poll_once(self, until: float) -> None:
        """Wait for the next events and handle them."""
        now = self._clock()
        for peer in [one for one in self._pending if one.until <= now]:
            self._drop(peer, "it says nothing")
        ends = [until, now + LOOK_SECONDS, *(one.until for one in self._pending)]
        for key, _ in self._selector.select(max(min(ends) - now, 0)):
            if isinstance(key.data, JoinedPeer):
                self._left(key.data)
            elif key.data is None:
                self._admit()
            elif key.data in self._pending:  # a newer connection may have displaced it
                self._receive(key.data)

    def _admit(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the peer has left already
            return
        try:
            kept_alive(connection).setblocking(False)
            peer = _PendingPeer(connection, host_of(connection), self._clock() + PENDING_SECONDS)
            connection.sendall(peer.greeting)
        except OSError:
            connection.close()
            return
        if len(self._pending) >= MAX_PENDING:
            self._drop(self._pending[0], "there are too many")
        self._pending.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _receive(self, peer: _PendingPeer) -> None:
        try:
            data = peer.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.data += data
        try:
            if peer.whole():
                self._verify(peer)
            elif not data:
                self._drop(peer, "it has gone")
        except RankError as error:
            with contextlib.suppress(OSError):
                peer.connection.sendall(handshake.rejected())
            self._drop(peer, str(error))

    def _verify(self, peer: _PendingPeer) -> None:
        """Handle a whole opening. Raises RankError for a peer without the secret, and ConfigError
        for a node that is incompatible with this one."""
        length = handshake.OPENING_BYTES + handshake.config_length(peer.data)
        if len(peer.data) > length:
            raise RankError("it goes on without being asked")
        heard = handshake.opened(self._secret, peer.greeting, peer.data)
        node_config = unpack(heard.node_config)
        connection, channel = peer.connection, FrameChannel(peer.connection)
        with contextlib.suppress(OSError):  # a lost peer is noticed later
            connection.sendall(handshake.accepted(self._secret, peer.greeting, peer.data))
        self._forget(peer)
        message = self._misplaced(heard)
        if message is not None:
            log.warning("%s: %s", peer.address, message)
            _tell(channel, Kind.REFUSED, message)
            connection.close()
            return
        member = JoinedPeer(heard.node, heard.rank, connection, peer.address)
        self._members[heard.node, heard.rank] = member
        self._missing.remove((heard.node, heard.rank))
        message = difference(self._node_config, node_config, heard.node)
        if message is not None:
            raise ConfigError(message)
        _tell(channel, Kind.JOINED, "")
        self._selector.register(connection, selectors.EVENT_READ, member)
        if heard.rank == NO_RANK:
            log.info("node %d has come, from %s", heard.node, peer.address)

    def _misplaced(self, heard: Opening) -> str | None:
        place = (heard.node, heard.rank)
        if place in self._members:
            whose = self._members[place].address
            return f"node {heard.node} has come already, from {whose}: check its node_rank"
        if place not in self._missing:
            return f"there is no rank {heard.rank} of node {heard.node} here: check its node_rank"
        return None

    def _left(self, member: JoinedPeer) -> None:
        """A joined peer, which should not send anything yet, has disconnected. Its node may join
        again from the start. A late event of the old connection does not concern the new one."""
        if self._members.get((member.node, member.rank)) is not member:
            return
        log.warning("node %d (%s) has gone again", member.node, member.address)
        for place, one in list(self._members.items()):
            if one.node == member.node:
                self._selector.unregister(one.connection)
                one.connection.close()
                del self._members[place]
                self._missing.add(place)

    def _drop(self, peer: _PendingPeer, why: str) -> None:
        self._forget(peer)
        peer.connection.close()
        self._warnings += 1
        if self._warnings <= _MAX_WARNINGS:
            log.warning("%s is no node of ours: %s", peer.address, why)

    def _forget(self, peer: _PendingPeer) -> None:
        self._pending.remove(peer)
        self._selector.unregister(peer.connection)

    def _refuse_all(self, message: str) -> None:
        for (_, rank), member in self._members.items():
            if rank == NO_RANK:
                _tell(FrameChannel(member.connection), Kind.REFUSED, message)
            member.connection.close()

    def _close(self) -> None:
        for peer in list(self._pending):
            self._forget(peer)
            peer.connection.close()
        self._selector.close()
        self._listener.close()


def _tell(channel: FrameChannel, kind: Kind, message: str) -> None:
    """Few bytes, which an empty socket buffer takes at once. A lost peer is noticed later."""
    with contextlib.suppress(RankError):
        channel.send_json(kind, message=message)
