"""Rank 0's handle of another rank: the channel to it, and where it runs.

Invariant: a rank of this node is a child process, which is killed and waited for; a rank of another
node is that node's child, and ends when its channel closes.
"""

import contextlib
import subprocess
import threading
from typing import Any

from quire.engine.errors import RankError
from quire.engine.parallel import process
from quire.engine.parallel.frame_channel import FrameChannel, Kind
from quire.engine.parallel.join_listener import JoinedPeer

GRACE = 2.0  # seconds in which it is to be known how a rank has ended


class Rank:
    """Another rank. said: the last message of each kind that it has sent. address: where it listens
    for the others; None: where rank 0 does."""

    def __init__(self, number: int, channel: FrameChannel, address: str | None = None) -> None:
        self.number = number
        self.channel = channel
        self.address = address
        self.received: dict[Kind, dict[str, Any]] = {}
        self.came = False

    @property
    def where(self) -> str:
        """Where it runs, as text."""
        raise NotImplementedError

    def how_it_ended(self) -> str:
        """How it ended, as text. Call it once its channel has closed."""
        raise NotImplementedError

    def kill(self) -> None:
        """At once, whatever it does."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until nothing of it is left on this node."""


class LocalRank(Rank):
    """A process of this node."""

    def __init__(self, number: int, program: process.Program) -> None:
        self.process, connection = program.start()
        super().__init__(number, FrameChannel(connection))

    @property
    def where(self) -> str:
        return f"process {self.process.pid}"

    def how_it_ended(self) -> str:
        try:
            return process.how_it_ended(self.process.wait(GRACE))
        except subprocess.TimeoutExpired:
            return "closed its line"

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        self.process.wait()


class Node:
    """Another node, which reports how its processes have ended."""

    def __init__(self, member: JoinedPeer) -> None:
        self.number, self.address = member.node, member.address
        self.channel = FrameChannel(member.connection)
        self._changed = threading.Condition()
        self._ended: dict[int, str] = {}
        self._gone = False

    def send(self, kind: Kind, **values: str) -> None:
        """Send it a message; one that is gone is no error."""
        with contextlib.suppress(RankError):
            self.channel.send_json(kind, **values)

    def note(self, rank: int, how: str) -> None:
        """It has reported how a rank ended."""
        with self._changed:
            self._ended[rank] = how
            self._changed.notify_all()

    def leave(self) -> None:
        """It sends nothing any more."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def how_it_ended(self, rank: int) -> str:
        """As soon as that is known, or given up."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or rank in self._ended, GRACE)
            return self._ended.get(rank, "is gone" if self._gone else "closed its line")


class RemoteRank(Rank):
    """A process of another node."""

    def __init__(self, member: JoinedPeer, node: Node) -> None:
        super().__init__(member.rank, FrameChannel(member.connection), member.address)
        self._node = node

    @property
    def where(self) -> str:
        return f"node {self._node.number} at {self.address}"

    def how_it_ended(self) -> str:
        return self._node.how_it_ended(self.number)

    def kill(self) -> None:
        """It ends when its channel is shut down, and its node kills it when rank 0 is gone."""
        self.channel.end()
