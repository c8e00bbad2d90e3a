"""Rank 0's handles of all other ranks: where they run, and what they report.

Ranks of this node are child processes at the end of a private socket; ranks of other nodes joined
over the listener (join_listener). Until all are ready, the first error of any of them is raised by
whatever rank 0 waits for next (`check`, `wait_for`). Later, or where rank 0 does not get that far,
a lost rank ends all others and rank 0's process too: without it no sum can be completed.

Invariant: however this process ends, none of them is left behind (see lifeline, and node).
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch._C._distributed_c10d import Store

from quire.engine.errors import CapacityError, ConfigError, ModelError, QuireError, RankError
from quire.engine.parallel.frame_channel import Kind, checked_values
from quire.engine.parallel.group_exchange import LOOPBACK
from quire.engine.parallel.handshake import NO_RANK
from quire.engine.parallel.join_listener import JoinedPeer
from quire.engine.parallel.process import Program
from quire.engine.parallel.rank_handles import GRACE, LocalRank, Node, Rank, RemoteRank
from quire.engine.parallel.store import Board, BoardStore

log = logging.getLogger(__name__)

RENDEZVOUS_SECONDS = 300.0  # for all ranks to meet
ASK_SECONDS = 5.0  # a node that says nothing for so long is asked whether it is there
MAX_ASKED = 6  # times in a row without an answer; none is counted while this process is stopped
NOTICE_SECONDS = 20.0  # for rank 0 to notice by itself, while it is built, that another is lost
EXIT_LOST = 1
_REFUSALS = {kind.__name__: kind for kind in (ConfigError, ModelError, CapacityError)}


def leave() -> None:
    """End this process, once its engine's thread has had time for its last words."""
    time.sleep(GRACE)
    os._exit(EXIT_LOST)


class Ranks:
    """Ranks 1 to size - 1. To be made by a thread that lives as long as they do."""

    def __init__(
        self,
        program: Program,
        size: int,
        on_loss: Callable[[], None] = leave,
        here: int | None = None,
    ) -> None:
        """program: starts the ranks of this node. on_loss: called on its own thread when a rank is
        lost that was not being ended. here: number of ranks on this node, this one included (None:
        all); the others join."""
        self.size = size
        self.address = LOOPBACK  # where this node's ranks listen for the others
        self.board = Board()
        self._on_loss = on_loss
        self._changed = threading.Condition()
        self._fault: QuireError | None = None
        self._serving = False
        self._told = False  # who was lost
        self._ending = False
        self._ranks: list[Rank] = []
        self._nodes: dict[int, Node] = {}
        for number in range(1, size if here is None else here):
            self._add(LocalRank(number, program))

    def take_in(self, members: Sequence[JoinedPeer]) -> None:
        """The ranks of other nodes, and those nodes."""
        own = [member for member in members if member.rank == NO_RANK]
        self._nodes = {member.node: Node(member) for member in own}
        self.address = str(own[0].connection.getsockname()[0])
        for node in self._nodes.values():
            self._start(self._listen_to_node, node, f"node-{node.number}")
        others = [member for member in members if member.rank != NO_RANK]
        for member in sorted(others, key=lambda member: member.rank):
            self._add(RemoteRank(member, self._nodes[member.node]))

    def _add(self, rank: Rank) -> None:
        self._ranks.append(rank)
        self._start(self._listen, rank, f"rank-{rank.number}")

    @staticmethod
    def _start(run: Callable[[Any], None], peer: Rank | Node, name: str) -> None:
        name = f"quire-{name}"
        threading.Thread(target=run, args=(peer,), name=name, daemon=True).start()

    # ------------------------------------------------------------ to all

    def build(self, config: dict[str, Any], threads: int) -> None:
        """Tell the ranks what to build, each with this many CPU threads."""
        for rank in self._ranks:
            with contextlib.suppress(RankError):  # the thread that listens to it tells of its end
                rank.channel.send_json(
                    Kind.BUILD,
                    config=config,
                    rank=rank.number,
                    threads=threads,
                    address=rank.address or self.address,
                )

    def send_json(self, kind: Kind, **values: Any) -> None:
        """Send the same message to every rank."""
        self.check()
        for rank in self._ranks:
            rank.channel.send_json(kind, **values)

    def send(self, kind: Kind, body: bytes) -> None:
        """Send the same bytes to every rank. Raises RankError if one is lost."""
        self.check()
        for rank in self._ranks:
            rank.channel.send(kind, body)

    # ------------------------------------------------------------ from them

    def check(self) -> None:
        """Raise the first error of any rank."""
        if self._fault is not None:
            raise self._fault

    def wait_for(self, kind: Kind) -> list[dict[str, Any]]:
        """Each rank's message of this kind, by rank, once all have sent one. Raises the first
        error."""
        with self._changed:
            while not all(kind in rank.received for rank in self._ranks):
                self.check()
                self._changed.wait()
            self.check()
            return [rank.received[kind] for rank in self._ranks]

    def least_share(self) -> float:
        """How far the slowest rank is with its weights; 1 if none has reported any progress."""
        shares = [
            rank.received[Kind.PROGRESS] for rank in self._ranks if Kind.PROGRESS in rank.received
        ]
        return min((float(one["share"]) for one in shares), default=1.0)

    def rendezvous(self, make: Callable[[Store], Any], seconds: float = RENDEZVOUS_SECONDS) -> Any:
        """Run `make`, which waits at a store for all ranks, and return its result. Raises the first
        error, and RankError for ranks that do not arrive within `seconds`."""
        results: list[Any] = []
        until = time.monotonic() + seconds

        def run() -> None:
            try:
                results.append(make(BoardStore(self.board)))
            except BaseException as error:
                with self._changed:
                    self._fault = self._fault or RankError(f"the ranks do not meet: {error}")
            with self._changed:
                self._changed.notify_all()

        threading.Thread(target=run, name="quire-rendezvous", daemon=True).start()
        with self._changed:
            while not results:
                self.check()
                left = until - time.monotonic()
                if left <= 0:
                    raise RankError(f"{self._missing()} did not come within {seconds:g} s")
                self._changed.wait(left)
        return results[0]

    def _missing(self) -> str:
        """The ranks that have not come; if all have, all of them: they cannot reach one another."""
        numbers = [rank.number for rank in self._ranks if not rank.came]
        return "rank " + ", ".join(map(str, numbers or range(self.size)))

    def wait_told(self) -> None:
        """Wait, for a limited time, until the log names the lost rank. The exchange often fails
        before the loss is noticed, and that ends this process."""
        with self._changed:
            self._changed.wait_for(lambda: self._told, 2 * GRACE)

    def serving(self) -> None:
        """From here on a lost rank ends this process."""
        with self._changed:
            self.check()
            self._serving = True

    @property
    def memory(self) -> list[tuple[int, int]]:
        """For each rank, the bytes allocated and at the peak that it reported last."""
        said = [rank.received.get(Kind.MEMORY, {}) for rank in self._ranks]
        return [(one.get("allocated", 0), one.get("peak", 0)) for one in said]

    # ------------------------------------------------------------ the end

    def stop(self) -> None:
        """That is meant: tell them, and let them end by themselves."""
        self._ending = True
        for rank in self._ranks:
            with contextlib.suppress(RankError):
                rank.channel.send_json(Kind.STOP)
        for node in self._nodes.values():
            node.send(Kind.STOP)

    def end(self, message: str = "node 0 ends") -> None:
        """Kill the ranks and release their resources. message: the reason, sent to other nodes."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self.board.close("the ranks end")
        for node in self._nodes.values():
            node.send(Kind.REFUSED, message=message)
        for rank in self._ranks:
            rank.kill()
        for rank in self._ranks:
            rank.wait()

    def _listen_to_node(self, node: Node) -> None:
        """Runs on a thread: a node's reports about its processes, until its channel closes or it no
        longer answers (its process is stopped, or hangs)."""
        asked, how = 0, ""
        try:
            while not how:
                if node.channel.is_readable(ASK_SECONDS):
                    asked, (kind, body) = 0, node.channel.receive()
                    values = checked_values(kind, body)
                    if kind is Kind.ENDED:
                        node.note(values["rank"], values["how"])
                elif asked == MAX_ASKED:
                    how = f"does not answer: {asked} times in {asked * ASK_SECONDS:g} s"
                else:
                    asked += 1
                    node.channel.send_json(Kind.ASKED)
        except RankError:
            how = "is gone"
        node.leave()
        self._without(f"node {node.number} at {node.address} {how}")

    def _listen(self, rank: Rank) -> None:
        """Runs on a thread: take in what one rank sends, until its channel closes."""
        try:
            while True:
                kind, body = rank.channel.receive()
                try:
                    values = checked_values(kind, body)
                except RankError as error:
                    rank.kill()
                    return self._without(f"rank {rank.number} ({rank.where}): {error}")
                self._take(rank, kind, values)
        except RankError:
            self._lost(rank)

    def _take(self, rank: Rank, kind: Kind, values: dict[str, Any]) -> None:
        if kind is Kind.SET:
            rank.came = True
            self.board.put(values["key"], values["value"])
        elif kind is Kind.GET:
            rank.channel.send_json(Kind.VALUE, value=self.board.get(values["key"]))
        elif kind is Kind.REFUSED:
            error = _REFUSALS.get(values["error"], QuireError)
            self._fail(error(f"rank {rank.number}: {values['message']}"))
        else:
            with self._changed:
                rank.received[kind] = values
                self._changed.notify_all()

    def _lost(self, rank: Rank) -> None:
        if self._ending:
            return
        how, died = rank.how_it_ended(), rank.received.get(Kind.DIED)
        if died is not None:
            how = f"died by a fault ({died['error_id']})"
        self._without(f"rank {rank.number} ({rank.where}) {how}")

    def _without(self, message: str) -> None:
        """A rank or node is lost: end all others too. Before all were ready, rank 0 has a while to
        abort its own build; inside an exchange, which can never complete, it cannot."""
        if self._ending:
            return
        if not self._fail(RankError(message)):
            with self._changed:
                self._changed.wait_for(lambda: self._ending, NOTICE_SECONDS)
        if self._ending:
            return
        self._ending = True
        log.critical("%s: without it nothing can be computed", self._fault)
        with self._changed:
            self._told = True
            self._changed.notify_all()
        for other in self._ranks:
            other.kill()
        self._on_loss()

    def _fail(self, error: QuireError) -> bool:
        """Record the first error; returns whether all were ready before."""
        self.board.close(str(error))
        with self._changed:
            self._fault = self._fault or error
            self._changed.notify_all()
            return self._serving


@contextlib.contextmanager
def ended_on_error(ranks: Ranks) -> Iterator[None]:
    """Within, an error ends them."""
    try:
        yield
    except BaseException as error:
        ranks.end(str(error) if isinstance(error, QuireError) else "node 0 ends by a fault")
        raise
