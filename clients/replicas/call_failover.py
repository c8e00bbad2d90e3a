"""One call to a fleet: which replica gets it, and what follows when that fails.

Invariant: the deadline holds over all of it. A round asks each replica that is awake once; between
rounds it waits as the retry policy says. Rounds are bounded by `retry.attempts`, breaks by
`breaks_allowed`, and all asking again by the client's budget. It raises one error, which names
every address and its last fault.
"""

from dataclasses import dataclass

import grpc

from quire.clients.errors import Broken, CallError, NoReplica, Overloaded, Unavailable
from quire.clients.replicas.addresses import Address
from quire.clients.replicas.affinity import PromptKeys
from quire.clients.replicas.faults import Kind, kind_of, told
from quire.clients.replicas.fleet import Identity, serves
from quire.clients.replicas.policy import MAX_RESUMES
from quire.clients.replicas.shared_state import SharedState
from quire.clients.retry import RetryState


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call to one replica. seconds: to the deadline; None: there is none."""

    address: Address
    seconds: float | None


class CallFailover:
    """The failover of one call. `begin` alternates with one of `ended`, `failed` and `leave`."""

    def __init__(
        self, shared: SharedState, timeout: float | None, keys: PromptKeys | None = None
    ) -> None:
        """timeout: seconds for all of it."""
        self.shared = shared
        self.like: Identity | None = None
        self.breaks_allowed = MAX_RESUMES
        self.breaks = 0
        self.faults: dict[str, str] = {}
        self._keys = keys
        self._tries = RetryState(shared.retry, timeout, shared.clock, shared.uniform)
        self._tried: set[str] = set()  # in this round
        self._never: set[str] = set()  # serve something else
        self._at: Address | None = None
        shared.budget.call_began()

    def begin(self) -> Attempt:
        """The next replica. Raises NoReplica."""
        fleet = self.shared.fleet
        self.shared.lookup.refresh(fleet.update)
        address = fleet.choose(self._keys, self._tried | self._never, self.like)
        if address is None and self._tried:
            self._tried.clear()
            address = fleet.choose(self._keys, self._never, self.like)
        if address is None:
            raise self._different()
        seconds = self._tries.left() if self._tried else self._tries.begin()
        self._at = address
        return Attempt(address, seconds)

    def ended(self) -> None:
        """Well."""
        if self._at is not None:
            self.shared.fleet.up(self._at.name)
        self.leave()

    def leave(self) -> None:
        """The caller has lost interest. Repeated calls are nothing."""
        at, self._at = self._at, None
        if at is not None:
            self.shared.fleet.leave(at.name)

    def differs(self, why: str) -> None:
        """The replica serves something else than this call began with: the next, at once."""
        assert self._at is not None
        self.faults[self._at.name] = why
        self._never.add(self._at.name)
        self.leave()

    def failed(self, error: CallError, *, received: bool) -> float:
        """Seconds until `begin` may be called again. Raises the error that ends the call. received:
        whether anything has come from this replica."""
        kind = kind_of(error, received)
        name = self._note(error, kind)
        if kind is Kind.FINAL:
            raise error
        if self.shared.retry.attempts == 1 and not (kind is Kind.BROKEN and received):
            raise error
        if kind is Kind.BROKEN:
            self._broke(error)
            self._tries.start_over()
            self._tried.clear()
        self._tried.add(name)
        if kind is not Kind.ABSENT and not self.shared.budget.take():
            raise self._over(error, "the client's budget for asking again is spent")
        wait = self._wait(error, kind)
        if not self._tries.in_time(wait):
            raise error
        return wait

    def _note(self, error: CallError, kind: Kind) -> str:
        assert self._at is not None
        name, fleet, fault = self._at.name, self.shared.fleet, told(error)
        if kind is not Kind.FINAL:
            self.faults[name] = fault
            wished = min(error.details.retry_after or 0.0, self.shared.retry.max_pushback)
            fleet.down(name, fault, wished, lost=kind in (Kind.ABSENT, Kind.BROKEN))
        if kind in (Kind.ABSENT, Kind.BROKEN):
            self.shared.lookup.lost()
        self.leave()
        return name

    def _broke(self, error: CallError) -> None:
        self.breaks += 1
        if self.breaks > self.breaks_allowed:
            raise Broken(
                f"the call broke {self.breaks} times, which is as often as it is asked again:"
                f" {self._listed(self.faults)}",
                self.faults,
                often=True,
            ) from error

    def _wait(self, error: CallError, kind: Kind) -> float:
        """Go to the next replica at once, but pause after a break: many calls break together, and
        must not all retry together. If there is no other replica, wait as the retry policy says."""
        if self.shared.fleet.has_other(self._tried | self._never, self.like):
            if kind is not Kind.BROKEN:
                return 0.0
            return self.shared.retry.first_backoff * self.shared.uniform(0.5, 1.0)
        away = error
        if kind is Kind.BROKEN and not isinstance(error, Unavailable):  # a reset, by another name
            away = Unavailable(grpc.StatusCode.UNAVAILABLE, error.message)
        wait = self._tries.wait_after(away)
        if wait is None:
            raise self._over(error, self._nobody())
        self._tried.clear()
        return wait

    # ------------------------------------------------------------ errors

    def _over(self, error: CallError, why: str) -> CallError:
        others = self._others() if self.like is not None else {}
        faults = {**self.shared.fleet.faults(), **others, **self.faults}
        faults = {name: fault or "not asked" for name, fault in faults.items()}
        message = f"{why}: {self._listed(faults)}"
        if isinstance(error, Overloaded):  # the caller may come again when it says
            return Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, message, error.details)
        return NoReplica(message, faults)

    def _different(self) -> CallError:
        """The error if no replica is left that serves what this call began with."""
        faults = {**self.shared.fleet.faults(), **self._others(), **self.faults}
        return NoReplica(f"{self._nobody()}: {self._listed(faults)}", faults)

    def _nobody(self) -> str:
        broke = "the call broke, and " if self.breaks else ""
        began = "" if self.like is None else f" that serves {self.like.fingerprint}"
        return f"{broke}no replica is left{began}"

    def _others(self) -> dict[str, str]:
        """What replicas serve that are known to differ from what this call began with."""
        told, like = {}, self.like
        for name, identity in self.shared.fleet.identities().items():
            if like is None or not serves(identity, like):
                told[name] = f"serves {identity.fingerprint}"
                if like is not None and like.numerics is not None:
                    told[name] += f" ({identity.numerics})"
        return told

    @staticmethod
    def _listed(faults: dict[str, str]) -> str:
        return "; ".join(f"{name}: {fault or 'no fault'}" for name, fault in faults.items())
