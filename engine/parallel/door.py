"""Where node 0 waits for the other nodes: one port, open until all have come.

Invariant: whoever does not prove to have the secret changes nothing. Strangers may be silent, say
anything, or repeat what they have overheard: none is waited for, of each at most an opening's bytes
are taken in, and of many the oldest makes room. So neither do they keep a node from coming.
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
from quire.engine.parallel.handshake import NO_RANK, Opening
from quire.engine.parallel.line import Kind, Line
from quire.engine.parallel.network import host_of, kept_alive
from quire.engine.parallel.secret import Secret
from quire.engine.parallel.terms import Terms, difference, unpack

log = logging.getLogger(__name__)

MAX_STRANGERS = 64  # connections that have proved nothing yet
STRANGER_SECONDS = 10.0  # until one of them is closed
LOOK_SECONDS = 1.0  # at most, between two looks at what else may end the wait
_MAX_WARNINGS = 8
_CHUNK = 4096


@dataclass(slots=True)
class _Stranger:
    """A connection that has proved nothing yet."""

    connection: socket.socket
    address: str
    until: float
    greeting: bytes = field(default_factory=handshake.hello)
    data: bytes = b""

    def whole(self) -> bool:
        """Whether all of an opening is here. Raises RankError for no opening."""
        if len(self.data) < handshake.OPENING_BYTES:
            return False
        return len(self.data) >= handshake.OPENING_BYTES + handshake.terms_length(self.data)


@dataclass(frozen=True, slots=True)
class Member:
    """A connection of a node's, that has proved it. rank: NO_RANK for the node's own."""

    node: int
    rank: int
    connection: socket.socket
    address: str


class Door:
    """Takes the others in. Of one thread."""

    def __init__(
        self,
        listener: socket.socket,
        secret: Secret,
        terms: Terms,
        places: Iterable[tuple[int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """listener: does not block, and is closed by this. places: (node, rank) of each connection
        that is to come. terms: this node's, which theirs must equal."""
        self._listener = listener
        self._secret = secret
        self._terms = terms
        self._clock = clock
        self._missing = set(places)
        self._members: dict[tuple[int, int], Member] = {}
        self._strangers: list[_Stranger] = []
        self._warnings = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def gather(self, seconds: float, check: Callable[[], None] = lambda: None) -> list[Member]:
        """Returns when all nodes have come, and tells them so.

        check: called about every second; what it raises ends the wait. Raises ConfigError for a
        node that does not come in time, or that cannot go with this one. Those that have come are
        told of that too.
        """
        until = self._clock() + seconds
        try:
            while self._missing:
                check()
                self._turn(until)
                if self._missing and self._clock() >= until:
                    raise ConfigError(f"{self._absent()} did not come within {seconds:g} s")
        except BaseException as error:
            self._send_home(str(error) if isinstance(error, QuireError) else "node 0 ends")
            raise
        finally:
            self._close()
        for member in self._members.values():
            member.connection.setblocking(True)
        return [self._members[place] for place in sorted(self._members)]

    def _absent(self) -> str:
        nodes = sorted({node for node, _ in self._missing})
        return ("node " if len(nodes) == 1 else "nodes ") + ", ".join(map(str, nodes))

    def _turn(self, until: float) -> None:
        """Wait for something to happen, and see to it."""
        now = self._clock()
        for stranger in [one for one in self._strangers if one.until <= now]:
            self._drop(stranger, "it says nothing")
        ends = [until, now + LOOK_SECONDS, *(one.until for one in self._strangers)]
        for key, _ in self._selector.select(max(min(ends) - now, 0)):
            if isinstance(key.data, Member):
                self._left(key.data)
            elif key.data is None:
                self._admit()
            elif key.data in self._strangers:  # another one's coming may have made it go
                self._hear(key.data)

    def _admit(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        try:
            kept_alive(connection).setblocking(False)
            stranger = _Stranger(connection, host_of(connection), self._clock() + STRANGER_SECONDS)
            connection.sendall(stranger.greeting)
        except OSError:
            connection.close()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            self._drop(self._strangers[0], "there are too many")
        self._strangers.append(stranger)
        self._selector.register(connection, selectors.EVENT_READ, stranger)

    def _hear(self, stranger: _Stranger) -> None:
        try:
            data = stranger.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        stranger.data += data
        try:
            if stranger.whole():
                self._meet(stranger)
            elif not data:
                self._drop(stranger, "it has gone")
        except RankError as error:
            with contextlib.suppress(OSError):
                stranger.connection.sendall(handshake.rejected())
            self._drop(stranger, str(error))

    def _meet(self, stranger: _Stranger) -> None:
        """Whoever has said all that an opening has. Raises RankError for a stranger, and
        ConfigError for a node that cannot go with this one."""
        length = handshake.OPENING_BYTES + handshake.terms_length(stranger.data)
        if len(stranger.data) > length:
            raise RankError("it goes on without being asked")
        heard = handshake.opened(self._secret, stranger.greeting, stranger.data)
        terms = unpack(heard.terms)
        connection, line = stranger.connection, Line(stranger.connection)
        with contextlib.suppress(OSError):  # one that has gone shows later
            connection.sendall(handshake.accepted(self._secret, stranger.greeting, stranger.data))
        self._forget(stranger)
        words = self._misplaced(heard)
        if words is not None:
            log.warning("%s: %s", stranger.address, words)
            _tell(line, Kind.REFUSED, words)
            connection.close()
            return
        member = Member(heard.node, heard.rank, connection, stranger.address)
        self._members[heard.node, heard.rank] = member
        self._missing.remove((heard.node, heard.rank))
        words = difference(self._terms, terms, heard.node)
        if words is not None:
            raise ConfigError(words)
        _tell(line, Kind.JOINED, "")
        self._selector.register(connection, selectors.EVENT_READ, member)
        if heard.rank == NO_RANK:
            log.info("node %d has come, from %s", heard.node, stranger.address)

    def _misplaced(self, heard: Opening) -> str | None:
        place = (heard.node, heard.rank)
        if place in self._members:
            whose = self._members[place].address
            return f"node {heard.node} has come already, from {whose}: check its node_rank"
        if place not in self._missing:
            return f"there is no rank {heard.rank} of node {heard.node} here: check its node_rank"
        return None

    def _left(self, member: Member) -> None:
        """A node that should say nothing yet has gone. It may come again, from the beginning. What
        is heard late of one that has gone already says nothing of one that has come since."""
        if self._members.get((member.node, member.rank)) is not member:
            return
        log.warning("node %d (%s) has gone again", member.node, member.address)
        for place, one in list(self._members.items()):
            if one.node == member.node:
                self._selector.unregister(one.connection)
                one.connection.close()
                del self._members[place]
                self._missing.add(place)

    def _drop(self, stranger: _Stranger, why: str) -> None:
        self._forget(stranger)
        stranger.connection.close()
        self._warnings += 1
        if self._warnings <= _MAX_WARNINGS:
            log.warning("%s is no node of ours: %s", stranger.address, why)

    def _forget(self, stranger: _Stranger) -> None:
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.connection)

    def _send_home(self, words: str) -> None:
        for (_, rank), member in self._members.items():
            if rank == NO_RANK:
                _tell(Line(member.connection), Kind.REFUSED, words)
            member.connection.close()

    def _close(self) -> None:
        for stranger in list(self._strangers):
            self._forget(stranger)
            stranger.connection.close()
        self._selector.close()
        self._listener.close()


def _tell(line: Line, kind: Kind, words: str) -> None:
    """Few bytes, which an empty socket takes at once. One that has gone shows later."""
    with contextlib.suppress(RankError):
        line.say(kind, words=words)
