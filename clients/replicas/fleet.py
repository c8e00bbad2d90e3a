"""The replicas as one client knows them: who takes calls, how many are open where, who serves what.

Invariant: no replica is given a call while it rests, as long as another one does not; and by prefix
none gets above the mean of this client's open calls, plus one, but for a prompt whose beginning it
was given: that may fill it to 1.25 times the mean, plus one (bounded loads: Mirrokni, Thorup and
Zadimoghaddam, 2018). Each call that was given out is taken back once. Thread-safe; knows no
channel. Nothing here asks a replica anything: calls, and the health that channels watch, tell.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from quire.clients.replicas.addresses import Address
from quire.clients.replicas.affinity import Memory, PromptKeys, score, seed_of
from quire.clients.replicas.policy import PREFIX

log = logging.getLogger("quire.clients")

BALANCE = 1.25
FIRST_REST, LONGEST_REST = 0.25, 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Identity:
    """What a replica serves. numerics: None if that does not matter."""

    fingerprint: str
    numerics: str | None = None


@dataclass(slots=True)
class _Replica:
    address: Address
    seed: int
    open: int = 0
    rests: int = 0  # in a row
    rests_until: float = float("-inf")
    fault: str = ""
    identity: Identity | None = None
    leaving: bool = False  # no address of ours any more, but calls are open


def fullest(mean: float, *, known: bool) -> float:
    """Open calls with which a replica may still be given one more. known: it was given the prompt's
    beginning. mean: of all replicas, the call counted in."""
    return BALANCE * mean if known else mean


class Fleet:
    """Begins with no replicas: `update` names them."""

    def __init__(self, routing: str = PREFIX, clock: Callable[[], float] = time.monotonic) -> None:
        self._by_prefix = routing == PREFIX
        self._clock = clock
        self._replicas: dict[str, _Replica] = {}
        self._names: list[str] = []  # of all of them, in the order of turns
        self._aside: set[str] = set()  # who rests, or did, and who leaves
        self._calls = 0  # open at all of them
        self._gone: list[str] = []  # whose channels may be closed
        self._memory = Memory()
        self._turn = 0
        self._warned: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def update(self, addresses: Iterable[Address]) -> None:
        """These are the replicas now. One that is not among them ends when its calls have."""
        wanted = {address.name: address for address in addresses}
        with self._lock:
            for name, address in wanted.items():
                known = self._replicas.get(name)
                if known is None or known.address != address:
                    self._calls -= known.open if known else 0
                    self._replicas[name] = _Replica(address, seed_of(name))
                else:
                    known.leaving = False
            self._names = list(self._replicas)
            self._memory.make_room(len(wanted))
            for name in self._replicas.keys() - wanted.keys():
                self._replicas[name].leaving = True
                self._aside.add(name)
                self._end_if_idle(name)

    def take_gone(self) -> list[str]:
        """Names of replicas that have ended since this was last asked."""
        with self._lock:
            gone, self._gone = self._gone, []
            return [name for name in gone if name not in self._replicas]

    def faults(self) -> dict[str, str]:
        """The last fault of each replica, in words; empty where there is none."""
        with self._lock:
            return {name: one.fault for name, one in self._replicas.items() if not one.leaving}

    def identities(self) -> dict[str, Identity]:
        """What each replica serves, as far as calls have shown."""
        with self._lock:
            return {n: one.identity for n, one in self._replicas.items() if one.identity}

    # ------------------------------------------------------------ choosing

    def choose(
        self,
        keys: PromptKeys | None = None,
        avoid: Collection[str] = (),
        like: Identity | None = None,
    ) -> Address | None:
        """Choose the replica of a call; `leave` returns it. keys: of its prompt; None: take turns.
        like: what the replica must serve, if that is known. Returns None if no replica is left."""
        with self._lock:
            unable = self._unable(avoid, like)
            out = unable | self._resting()
            if len(out) < len(self._replicas):
                chosen = self._among(out, keys)
            elif len(unable) < len(self._replicas):  # all rest: the one that wakes first
                able = (one for name, one in self._replicas.items() if name not in unable)
                chosen = min(able, key=lambda one: one.rests_until)
            else:
                return None
            if keys is not None and self._by_prefix:
                self._memory.note(keys, chosen.address.name)
            chosen.open += 1
            self._calls += 1
            return chosen.address

    def has_other(self, avoid: Collection[str], like: Identity | None = None) -> bool:
        """Whether there is a replica other than these that may be tried at once."""
        with self._lock:
            return len(self._unable(avoid, like) | self._resting()) < len(self._replicas)

    def _unable(self, avoid: Collection[str], like: Identity | None) -> set[str]:
        """The replicas that cannot have the call, whenever their pause ends."""
        out = {name for name in avoid if name in self._replicas}
        out |= {name for name in self._aside if self._replicas[name].leaving}
        if like is not None:
            out |= {n for n, one in self._replicas.items() if not serves(one.identity, like)}
        return out

    def _resting(self) -> set[str]:
        """The replicas that are paused now. Forgets those whose pause is over."""
        now = self._clock()
        resting = {name for name in self._aside if self._replicas[name].rests_until > now}
        self._aside = {n for n in self._aside if n in resting or self._replicas[n].leaving}
        return resting

    def _among(self, out: Collection[str], keys: PromptKeys | None) -> _Replica:
        """Choose among all but those; there is one. All replicas are compared only for a new
        prompt: with thousands of them, doing so at every call would take most of a core."""
        if keys is None or not self._by_prefix:
            return self._in_turn(out)
        calls = self._calls - sum(self._replicas[name].open for name in out)
        mean = (calls + 1) / (len(self._replicas) - len(out))
        remembered = self._memory.recall(keys)
        known = None if remembered in out else self._replicas.get(remembered or "")
        if known is not None and known.open <= fullest(mean, known=True):
            return known
        most = fullest(mean, known=False)
        rest = (o for name, o in self._replicas.items() if o.open <= most and name not in out)
        return max(rest, key=lambda one: score(keys.root, one.seed))

    def _in_turn(self, out: Collection[str]) -> _Replica:
        names = self._names
        while True:
            name = names[self._turn % len(names)]
            self._turn = (self._turn + 1) % len(names)
            if name not in out:
                return self._replicas[name]

    # ------------------------------------------------------------ what calls tell

    def leave(self, name: str) -> None:
        """A call that `choose` gave there has ended."""
        with self._lock:
            one = self._replicas.get(name)
            if one is not None and one.open:
                one.open -= 1
                self._calls -= 1
                self._end_if_idle(name)

    def up(self, name: str) -> None:
        """It has answered."""
        with self._lock:
            one = self._replicas.get(name)
            if one is not None:
                one.rests, one.rests_until, one.fault = 0, float("-inf"), ""

    def down(self, name: str, fault: str, at_least: float = 0.0, *, lost: bool = False) -> None:
        """It did not take a call, or lost one: it rests, longer each time in a row, and at least so
        many seconds. lost: another program may answer there next."""
        with self._lock:
            one = self._replicas.get(name)
            if one is None:
                return
            rest = min(FIRST_REST * 2.0 ** min(one.rests, 10), LONGEST_REST)
            one.rests += 1
            one.rests_until = max(one.rests_until, self._clock() + max(rest, at_least))
            one.fault = fault
            self._aside.add(name)
            if lost:
                one.identity = None

    def set_identity(self, name: str, identity: Identity) -> None:
        """Note what a replica serves. Logs, once, which replicas serve different things."""
        with self._lock:
            one = self._replicas.get(name)
            if one is None or one.identity == identity:
                return
            one.identity = identity
            served = {n: r.identity.fingerprint for n, r in self._replicas.items() if r.identity}
            told = tuple(sorted(f"{n} {fingerprint}" for n, fingerprint in served.items()))
            if len(set(served.values())) < 2 or told in self._warned:
                return
            self._warned.add(told)
        log.warning("replicas serve different models: %s", ", ".join(told))

    def _end_if_idle(self, name: str) -> None:
        if self._replicas[name].leaving and not self._replicas[name].open:
            del self._replicas[name]
            self._aside.discard(name)
            self._names.remove(name)
            self._gone.append(name)


def serves(identity: Identity | None, like: Identity | None) -> bool:
    """Whether a stream of `like` may go on there, as far as is known."""
    if identity is None or like is None:
        return True
    same = identity.fingerprint == like.fingerprint
    return same and like.numerics in (None, identity.numerics)
