"""Admission of a call.

Invariant: resources are taken in this order, and returned on every exit: the client's permit, a
place in the queue, then the work on the prompt, then the token budget. Nothing whose cost grows
with the prompt happens before the place is taken. After each stage the call's deadline and the
server's own state are checked again.
"""

import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import RequestError, TooLongError
from quire.engine.request import GenerationRequest
from quire.service import errors
from quire.service.admission.admission import Admission, Place
from quire.service.admission.rate_limits import ClientLimits, Permit, check_priority
from quire.service.errors import Refusal
from quire.service.lifecycle import Lifecycle
from quire.service.rpc.field_faults import MAX_N, MAX_PRIORITY
from quire.service.rpc.pooled_requests import PooledReader
from quire.service.rpc.responses import CallOutput
from quire.service.rpc.served_model import ServedModel
from quire.service.rpc.stats import StatsReporter
from quire.service.rpc.validation import Accepted, Validator
from quire.service.security.auth import Authenticator, Caller
from quire.service.telemetry.counters import Ledger
from quire.v1 import inference_pb2 as pb

log = logging.getLogger("quire.service")

Context = grpc.aio.ServicerContext[Any, Any]
_FIELDS = {  # the engine's name of a field, and its path in the contract
    "max_tokens": "sampling.max_tokens",
    "stop_token_ids": "sampling.stop_token_ids",
}


class Malformed:
    """Takes the place of a message that could not be parsed."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        """refusal: why it is refused. Default: its bytes could not be decoded."""
        self.refusal = refusal or errors.malformed()


@dataclass(slots=True)
class Serving:
    """What exists once the model is loaded."""

    engine: AsyncEngine
    model: ServedModel
    validator: Validator
    stats: StatsReporter
    pooled: PooledReader
    message_interval: float = 0.0  # seconds between two messages of a stream


@dataclass(slots=True)
class Call:
    """One accepted call."""

    accepted: Accepted
    output: CallOutput
    place: Place
    permit: Permit
    client: str
    accepted_at: float
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class AccessControl:
    """What a call must pass: authentication, its client's limits, and admission to the queue."""

    authenticator: Authenticator
    limits: ClientLimits
    admission: Admission
    log_prompts: bool = False

    def most_at_once(self, n: int) -> tuple[int, str]:
        """Calls of n completions that a client may begin together where nobody else is, and what
        says so: to wait would make it no more."""
        most = self.admission.policy.max_waiting
        waiting = -(-most // n), f"max_waiting = {most}"  # the last one is let in behind less
        return min([waiting, *self.limits.most_at_once()])


class WorkRequest(Protocol):
    """A message that asks for work."""

    @property
    def priority(self) -> int: ...


def check_caller(
    request: WorkRequest | Malformed,
    context: Context,
    access_control: AccessControl,
    lifecycle: Lifecycle,
) -> Caller:
    """Authenticate the caller. Raises Refusal for the caller, the server's state or the
    priority."""
    caller = access_control.authenticator.caller(context)
    lifecycle.check()
    if isinstance(request, Malformed):
        raise request.refusal
    if abs(request.priority) <= MAX_PRIORITY:  # otherwise it is refused with the other fields
        check_priority(request.priority, caller.max_priority)
    return caller


class CallAdmission:
    """Admits calls, or raises the Refusal with which a call ends."""

    def __init__(self, lifecycle: Lifecycle, ledger: Ledger, access_control: AccessControl) -> None:
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._access = access_control

    async def accept(
        self, request: pb.GenerateRequest | Malformed, context: Context, serving: Serving | None
    ) -> tuple[Call, Serving]:
        """serving: None while the model loads. The returned call has been counted as accepted."""
        caller = check_caller(request, context, self._access, self._lifecycle)
        assert serving is not None and not isinstance(request, Malformed)
        permit, place = self._access.limits.enter(caller.client), None
        try:
            place = self._access.admission.enter(
                caller.client,
                min(max(request.sampling.n, 1), MAX_N),
                request.priority,
                None,
                context.time_remaining(),
                resumes=bool(request.resume_token_ids),
            )
            key, validator = serving.engine.new_key(), serving.validator
            accepted = await validator.validate(request, key, caller.tenant, caller.client)
            serving.engine.check(accepted.generation)
            self._lifecycle.check()  # it may have changed while a prompt was read
            check_deadline(context)
            permit.take(_most_tokens(accepted.generation))
            place.read(len(accepted.generation.prompt_token_ids))
            if self._access.log_prompts:
                fields = {"request_id": accepted.request_id, "prompt": _shown_prompt(request)}
                log.info("request accepted", extra={"fields": fields})
            return self._open(accepted, place, permit, serving), serving
        except BaseException as error:
            if place is not None:
                place.leave()
            permit.end(0)
            if isinstance(error, RequestError):
                raise unable(_FIELDS.get(error.field, error.field), error) from error
            raise

    def _open(self, accepted: Accepted, place: Place, permit: Permit, serving: Serving) -> Call:
        """The call is now accepted, and its end will be counted."""
        now, key = time.monotonic(), accepted.generation.key

        def end_index(index: int, kept: int) -> None:
            serving.engine.finish(key, index, kept)

        def on_started(_waited: float) -> None:
            place.started()

        output = CallOutput(
            accepted,
            serving.model.tokenizer,
            serving.model.info,
            self._ledger,
            now,
            end_index,
            on_started,
        )
        self._ledger.accept(accepted.generation.n)
        return Call(accepted, output, place, permit, accepted.generation.client, now)


def unable(field: str, error: RequestError) -> Refusal:
    """A request that can never run. field: the contract's path."""
    kind = errors.TooLong if isinstance(error, TooLongError) else errors.Violation
    return errors.invalid([kind(field, error.message)])


def fault(error: Exception) -> Refusal:
    """An internal error: its cause goes to the log, its id to the client."""
    error_id = secrets.token_hex(4)
    log.error("a call failed (%s)", error_id, exc_info=error)
    return errors.internal(error_id)


def check_deadline(context: Context) -> None:
    """Raise Refusal if the call's deadline has passed."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise errors.deadline_passed()


def _most_tokens(request: GenerationRequest) -> int:
    """The prompt's tokens and the most outputs that the request can have, resumed ones included."""
    return len(request.prompt_token_ids) + request.n * request.sampling.max_tokens


def _shown_prompt(request: pb.GenerateRequest) -> str:
    """The prompt as the log shows it where that was asked for: on one line."""
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return repr(request.text)
    if kind == "chat":
        return repr([(message.role, message.content) for message in request.chat.messages])
    return repr(list(request.token_ids.ids))
