"""Rank 0's view of the other ranks of its node: their processes, and what they say.

Each is a process of ours at the end of a private socket. Until all are ready, the first thing that
goes wrong with any of them is raised by whatever rank 0 waits for next (`check`, `wait_for`). Later
a lost rank takes all others with it, and rank 0's process too: what it computes would have no sums.

Invariant: however this process ends, none of them is left behind (see lifeline).
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch._C._distributed_c10d import Store

from quire.engine import lifeline
from quire.engine.errors import CapacityError, ConfigError, ModelError, QuireError, RankError
from quire.engine.parallel.line import Kind, Line, values_of
from quire.engine.parallel.store import Board, BoardStore

log = logging.getLogger(__name__)

MEETING_SECONDS = 300.0  # in which all ranks are to be there
GRACE = 2.0  # seconds in which the engine's own thread is to say its last words
EXIT_LOST = 1
_STANDARD_ERROR = 2
_REFUSALS = {kind.__name__: kind for kind in (ConfigError, ModelError, CapacityError)}


def leave() -> None:
    """End this process, once its engine has had time to end by itself."""
    time.sleep(GRACE)
    os._exit(EXIT_LOST)


class _Rank:
    """One process and the line to it."""

    def __init__(self, number: int, program: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs, lifeline.signals_blocked():
            self.process = subprocess.Popen(
                [*program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=_STANDARD_ERROR,
                pass_fds=(theirs.fileno(),),
            )
        self.number = number
        self.line = Line(ours)
        self.said: dict[Kind, dict[str, Any]] = {}  # the last of each kind
        self.came = False

    def how_it_ended(self) -> str:
        """In words, once its line has."""
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "closed its line"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"ended by {how}"


class Ranks:
    """Ranks 1 to size - 1. To be made by a thread that lives as long as they do."""

    def __init__(
        self, program: Sequence[str], size: int, on_loss: Callable[[], None] = leave
    ) -> None:
        """program: a command line, to which the number of a descriptor is added. on_loss: called
        on a thread of its own when a rank is lost that was ready."""
        self.size = size
        self.board = Board()
        self._on_loss = on_loss
        self._changed = threading.Condition()
        self._fault: QuireError | None = None
        self._serving = False
        self._ending = False
        self._ranks: list[_Rank] = []
        for number in range(1, size):
            rank = _Rank(number, program)
            self._ranks.append(rank)
            threading.Thread(
                target=self._listen, args=(rank,), name=f"quire-rank-{number}", daemon=True
            ).start()

    # ------------------------------------------------------------ to all

    def build(self, config: dict[str, Any], threads: int) -> None:
        """What they are to build, each on so many threads of the CPU."""
        for rank in self._ranks:
            with contextlib.suppress(RankError):  # its end is told by whom listens to it
                rank.line.say(Kind.BUILD, config=config, rank=rank.number, threads=threads)

    def say(self, kind: Kind, **values: Any) -> None:
        """The same to each."""
        self.check()
        for rank in self._ranks:
            rank.line.say(kind, **values)

    def send(self, kind: Kind, body: bytes) -> None:
        """The same, of bytes that are made once. Raises RankError where one is lost."""
        self.check()
        for rank in self._ranks:
            rank.line.send(kind, body)

    # ------------------------------------------------------------ from them

    def check(self) -> None:
        """Raises what has gone wrong with any of them."""
        if self._fault is not None:
            raise self._fault

    def wait_for(self, kind: Kind) -> list[dict[str, Any]]:
        """What each has said of this kind, by rank, once all have. Raises what went wrong first."""
        with self._changed:
            while not all(kind in rank.said for rank in self._ranks):
                self.check()
                self._changed.wait()
            self.check()
            return [rank.said[kind] for rank in self._ranks]

    def least_share(self) -> float:
        """How far the slowest is with its weights; 1 if none has said anything of them."""
        shares = [rank.said[Kind.PROGRESS] for rank in self._ranks if Kind.PROGRESS in rank.said]
        return min((float(one["share"]) for one in shares), default=1.0)

    def meet(self, make: Callable[[Store], Any], seconds: float = MEETING_SECONDS) -> Any:
        """What `make` returns, which waits for all of them at a store. Raises what has gone wrong,
        and RankError for ranks that do not come within `seconds`."""
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

        threading.Thread(target=run, name="quire-meeting", daemon=True).start()
        with self._changed:
            while not results:
                self.check()
                left = until - time.monotonic()
                if left <= 0:
                    raise RankError(f"{self._missing()} did not come within {seconds:g} s")
                self._changed.wait(left)
        return results[0]

    def _missing(self) -> str:
        """Who has not come to the meeting; where all have, all: they do not find one another."""
        numbers = [rank.number for rank in self._ranks if not rank.came]
        return "rank " + ", ".join(map(str, numbers or range(self.size)))

    def serving(self) -> None:
        """From here on a lost rank ends this process."""
        with self._changed:
            self.check()
            self._serving = True

    @property
    def memory(self) -> list[tuple[int, int]]:
        """Of each, by rank: bytes allocated, and at the peak, as it has said last."""
        said = [rank.said.get(Kind.MEMORY, {}) for rank in self._ranks]
        return [(one.get("allocated", 0), one.get("peak", 0)) for one in said]

    # ------------------------------------------------------------ the end

    def end(self) -> None:
        """Kill them, and leave nothing of them behind."""
        self._ending = True
        self.board.close("the ranks end")
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait()

    def _listen(self, rank: _Rank) -> None:
        """A thread's life: take in what one rank says, until its line ends."""
        try:
            while True:
                self._take(rank, *rank.line.hear())
        except RankError:
            self._lost(rank)

    def _take(self, rank: _Rank, kind: Kind, body: bytes) -> None:
        values = values_of(body)
        if kind is Kind.SET:
            rank.came = True
            self.board.put(values["key"], values["value"])
        elif kind is Kind.GET:
            rank.line.say(Kind.VALUE, value=self.board.get(values["key"]))
        elif kind is Kind.REFUSED:
            error = _REFUSALS.get(values["error"], QuireError)
            self._fail(error(f"rank {rank.number}: {values['words']}"))
        else:
            with self._changed:
                rank.said[kind] = values
                self._changed.notify_all()

    def _lost(self, rank: _Rank) -> None:
        if self._ending:
            return
        how, died = rank.how_it_ended(), rank.said.get(Kind.DIED)
        if died is not None:
            how = f"died by a fault ({died['error_id']})"
        words = f"rank {rank.number} (process {rank.process.pid}) {how}"
        serving = self._fail(RankError(words))
        if not serving or self._ending:
            return
        self._ending = True
        log.critical("%s: without it nothing can be computed", words)
        for other in self._ranks:
            other.process.kill()
        self._on_loss()

    def _fail(self, error: QuireError) -> bool:
        """Note what went wrong first; whether all were ready before."""
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
    except BaseException:
        ranks.end()
        raise
