"""Rank 0's view of one rank: the line to it, and where it runs.

Invariant: a rank of this node is a process of ours, which is killed and waited for; one of another
node is that node's, and ends when its line does.
"""

import contextlib
import subprocess
import threading
from typing import Any

from quire.engine.errors import RankError
from quire.engine.parallel import process
from quire.engine.parallel.door import Member
from quire.engine.parallel.line import Kind, Line

GRACE = 2.0  # seconds in which it is to be known how a rank has ended


class Rank:
    """One other rank. said: the last of each kind that it has said. address: where it listens for
    the others; none: where rank 0 does."""

    def __init__(self, number: int, line: Line, address: str | None = None) -> None:
        self.number = number
        self.line = line
        self.address = address
        self.said: dict[Kind, dict[str, Any]] = {}
        self.came = False

    @property
    def where(self) -> str:
        """In words."""
        raise NotImplementedError

    def how_it_ended(self) -> str:
        """In words, once its line has."""
        raise NotImplementedError

    def kill(self) -> None:
        """At once, whatever it does."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until nothing of it is left on this node."""


class LocalRank(Rank):
    """A process of this node."""

    def __init__(self, number: int, program: process.Program) -> None:
        self.process, connection = program.start()
        super().__init__(number, Line(connection))

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
    """Another node, which tells how its processes have ended."""

    def __init__(self, member: Member) -> None:
        self.number, self.address = member.node, member.address
        self.line = Line(member.connection)
        self._changed = threading.Condition()
        self._ended: dict[int, str] = {}
        self._gone = False

    def tell(self, kind: Kind, **values: str) -> None:
        """Whether it is there or not."""
        with contextlib.suppress(RankError):
            self.line.say(kind, **values)

    def note(self, rank: int, how: str) -> None:
        """What it has said of one."""
        with self._changed:
            self._ended[rank] = how
            self._changed.notify_all()

    def leave(self) -> None:
        """It says nothing any more."""
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def how_it_ended(self, rank: int) -> str:
        """As soon as that is known, or given up."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or rank in self._ended, GRACE)
            return self._ended.get(rank, "is gone" if self._gone else "closed its line")


class DistantRank(Rank):
    """A process of another node."""

    def __init__(self, member: Member, node: Node) -> None:
        super().__init__(member.rank, Line(member.connection), member.address)
        self._node = node

    @property
    def where(self) -> str:
        return f"node {self._node.number} at {self.address}"

    def how_it_ended(self) -> str:
        return self._node.how_it_ended(self.number)

    def kill(self) -> None:
        """It leaves when its line has ended, and its node kills it when rank 0 has."""
        self.line.end()
