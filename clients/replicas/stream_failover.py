"""One stream's way through a fleet: what was received, and how another replica goes on from there.

Invariant: what the caller is given, joined, is what one unbroken stream would have given: `started`
once, each token once, each index finished once. A replica goes on only if it serves the same
(`Identity`) and has read the same prompt; it is told the seed that the first one drew and the ids
that were received. What a server says only because it ends (`closing` deltas, a `finished` without
an answer's end) is held until it is known how the call ended, and dropped where it goes on.
"""

from dataclasses import dataclass
from typing import TypeAlias

from quire.clients.errors import Broken, CallError, InvalidRequest, Unauthenticated
from quire.clients.events import Resumed
from quire.clients.replicas.affinity import keys_of
from quire.clients.replicas.call_failover import Attempt, CallFailover
from quire.clients.replicas.faults import Kind, kind_of, told
from quire.clients.replicas.fleet import Identity
from quire.clients.replicas.shared_state import SharedState
from quire.v1 import inference_pb2 as pb

Item: TypeAlias = pb.GenerateResponse | Resumed
_CUT = (pb.FINISH_REASON_CANCELLED, pb.FINISH_REASON_ERROR)


class Differs(Exception):
    """The replica does not serve what the stream began with: its call is to be cancelled, and the
    stream goes to the next one."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What follows when a replica's stream has ended. items: first of all, for the caller. error:
    the call ends with it. wait: seconds until the next attempt; None: there is none."""

    items: tuple[Item, ...] = ()
    error: CallError | None = None
    wait: float | None = None


class StreamFailover:
    """The failover of one call. Call `begin`, `take` for each message, then `ended`; and again if
    that says to wait."""

    def __init__(
        self, shared: SharedState, request: pb.GenerateRequest, timeout: float | None
    ) -> None:
        self._shared = shared
        self._request = request
        self._n = request.sampling.n if request.sampling.HasField("n") else 1
        self._failover = CallFailover(shared, timeout, keys_of(request))
        self._started: pb.Started | None = None
        self._ids: list[int] = []  # received, and given to the caller
        self._before = 0  # of those, from earlier attempts
        self._finished = 0  # indices
        self._prompt_logprobs_told = 0  # of the prompt's tokens, those that the caller was told of
        self._told = 0  # of those, how many this attempt has sent so far
        self._held: list[pb.GenerateResponse] = []
        self._received = False  # anything, in this attempt
        self._attempt: Attempt | None = None
        self._broke_at: tuple[str, str, float] | None = None  # address, fault, time

    def begin(self) -> tuple[Attempt, pb.GenerateRequest]:
        """The replica to call next, and the request for it. Raises CallError."""
        self._received, self._held, self._told = False, [], 0
        self._before = len(self._ids)
        self._attempt = self._failover.begin()
        return self._attempt, self._request if self._started is None else self._rest()

    def _rest(self) -> pb.GenerateRequest:
        """The same request, continued from where it broke."""
        assert self._started is not None
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        request.request_id = self._started.request_id
        request.sampling.seed = self._started.seed
        request.resume_token_ids.extend(self._ids)
        if self._ids:  # which came behind all of the prompt's log-probabilities
            request.ClearField("prompt_logprobs")
        return request

    def take(self, message: pb.GenerateResponse) -> list[Item]:
        """What the caller gets for a message. Raises Differs."""
        self._received = True
        kind = message.WhichOneof("event")
        if kind == "started":
            return self._on_started(message)
        if self._n > 1:  # cannot go on elsewhere, so nothing is held
            self._finished += kind == "finished"
            return [message]
        if kind == "finished":
            return self._on_finished(message)
        if kind == "prompt_logprobs":
            return self._on_prompt_logprobs(message)
        if kind == "delta" and message.delta.closing:
            self._held.append(message)
            return []
        self._ids.extend(message.delta.token_ids)
        return [message]

    def _on_started(self, message: pb.GenerateResponse) -> list[Item]:
        assert self._attempt is not None
        started, name = message.started, self._attempt.address.name
        identity = Identity(started.model_fingerprint, started.numerics)
        self._shared.fleet.up(name)
        self._shared.fleet.set_identity(name, identity)
        if self._started is None:
            self._started = started
            exact = self._shared.policy.exact
            self._failover.like = Identity(
                identity.fingerprint, identity.numerics if exact else None
            )
            return [message]
        self._check_same(started)
        if not self._shared.policy.tell_resumed or self._broke_at is None:
            return []
        left, fault, then = self._broke_at
        pause = self._shared.clock() - then
        return [Resumed(name, left, fault, len(self._ids), self._failover.breaks, pause)]

    def _on_prompt_logprobs(self, message: pb.GenerateResponse) -> list[Item]:
        """Leave out what an earlier attempt has delivered."""
        told = message.prompt_logprobs
        count = len(told.logprobs) + told.HasField("first_token_id")
        self._told += count
        new = min(max(self._told - self._prompt_logprobs_told, 0), count)
        self._prompt_logprobs_told += new
        if new < count and told.HasField("first_token_id"):
            told.ClearField("first_token_id")
            told.ClearField("first_token_bytes")
        del told.logprobs[: max(len(told.logprobs) - new, 0)]
        return [message] if new else []

    def _check_same(self, started: pb.Started) -> None:
        first, like = self._started, self._failover.like
        assert first is not None and like is not None
        why = ""
        if started.model_fingerprint != like.fingerprint:
            why = f"serves {started.model_fingerprint}, and not {like.fingerprint}"
        elif like.numerics is not None and started.numerics != like.numerics:
            why = f"computes by {started.numerics}, and not by {like.numerics}"
        elif started.prompt_tokens != first.prompt_tokens:
            why = f"read {started.prompt_tokens} prompt tokens, and not {first.prompt_tokens}"
        if why:
            self._failover.differs(why)
            raise Differs

    def _on_finished(self, message: pb.GenerateResponse) -> list[Item]:
        if message.finished.reason in _CUT:
            self._held.append(message)
            return []
        self._finished += 1
        held, self._held = self._held, []
        return [*held, self._whole(message)]

    def _whole(self, message: pb.GenerateResponse) -> pb.GenerateResponse:
        """The end as an unbroken stream would have told it. Times are of the last attempt."""
        if self._broke_at is None:
            return message
        assert self._started is not None
        usage = message.finished.usage
        usage.completion_tokens += self._before
        usage.reasoning_tokens += usage.resumed_reasoning_tokens
        usage.cached_tokens = self._started.cached_tokens
        return message

    # ------------------------------------------------------------ ends

    def ended(self, error: CallError | None) -> Ending:
        """The replica's stream has ended, well if error is None."""
        if error is None:
            self._failover.ended()
            return Ending(self._let_go())
        if self._finished == self._n:  # all has come; only the status was lost
            self._failover.leave()
            return Ending()
        try:
            return Ending(wait=self._go_on(error))
        except CallError as final:
            self._failover.leave()
            return Ending(self._let_go(), final)

    def close(self) -> None:
        """The caller has left. Repeated calls are nothing."""
        self._failover.leave()

    def _let_go(self) -> tuple[Item, ...]:
        held, self._held = self._held, []
        return tuple(self._whole(m) if m.HasField("finished") else m for m in held)

    def _go_on(self, error: CallError) -> float:
        """Seconds until the next attempt. Raises CallError."""
        assert self._attempt is not None
        began, name = self._started is not None, self._attempt.address.name
        kind = kind_of(error, self._received)
        if kind is Kind.BROKEN and began:
            self._check_can(error, name)
            self._failover.breaks_allowed = self._shared.policy.resumes
            self._broke_at = self._broke_at if not self._received else None
            self._broke_at = self._broke_at or (name, told(error), self._shared.clock())
        refused = kind is Kind.FINAL and not self._received and self._broke_at is not None
        if refused and isinstance(error, InvalidRequest | Unauthenticated):
            assert self._broke_at is not None
            raise Broken(
                f"the stream broke at {self._broke_at[0]} ({self._broke_at[1]}), and {name} refuses"
                f" to go on: {error}",
                {**self._failover.faults, name: str(error)},
            ) from error
        return self._failover.failed(error, received=self._received)

    def _check_can(self, error: CallError, name: str) -> None:
        """Raises what the stream ends with if it may not go on anywhere."""
        if not self._shared.policy.resumes:
            self._failover.shared.fleet.down(name, told(error), lost=True)
            raise error
        if self._n > 1:
            raise Broken(
                f"the stream broke at {name} ({told(error)}), and cannot go on elsewhere:"
                f" n = {self._n}, and only n = 1 can be resumed",
                {name: told(error)},
            ) from error
