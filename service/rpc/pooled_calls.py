"""Embed and Score: unary calls whose texts pass through the engine as prompts do.

Invariant: a call takes its resources in Generate's order, and returns them on every exit: the
client's permit, a place in the queue, the work on its texts, the tokens. A call has at most as many
texts in the engine at once as there are slots, so that one with thousands does not block others.
Each of its texts is counted in the ledger once. The first fault of any text ends the call.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import EngineDeadError, RequestError
from quire.engine.request import FinishReason, GenerationRequest, Output
from quire.service import errors
from quire.service.admission.admission import Place
from quire.service.admission.rate_limits import Permit
from quire.service.errors import Refusal
from quire.service.lifecycle import Lifecycle, Phase
from quire.service.rpc import vectors
from quire.service.rpc.call_admission import (
    AccessControl,
    Malformed,
    Serving,
    check_caller,
    check_deadline,
    fault,
    unable,
)
from quire.service.rpc.open_calls import OpenCalls, ended_code
from quire.service.rpc.pooled_requests import PooledCall, Request, Sender
from quire.service.security.auth import Caller
from quire.service.telemetry import access
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.tracing import EndedCall, Times, Tracer
from quire.v1 import inference_pb2 as pb

log = logging.getLogger("quire.service")

REQUEST_ID_KEY = "quire-request-id"
MAX_NUMBERS = 3 << 18  # of one answer over gRPC, whose clients take 4 MiB unasked
MAX_HTTP_NUMBERS = 1 << 22
_INLINE_NUMBERS = 1 << 14  # an answer of more is made on the prompts' threads
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Open:
    """An accepted call. Times are time.monotonic()."""

    call: PooledCall
    caller: Caller
    place: Place
    permit: Permit
    accepted_at: float
    pooled: list[bytes] = field(default_factory=list)
    cached_tokens: int = 0
    preemptions: int = 0
    started_at: float | None = None
    ended: int = 0
    reason: FinishReason = FinishReason.CANCELLED  # of texts that have not ended, and of the call


class PooledCalls:
    """The Embed and Score calls of one server."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        ledger: Ledger,
        access_control: AccessControl,
        open_calls: OpenCalls,
        tracer: Tracer,
    ) -> None:
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._access = access_control
        self._open_calls = open_calls
        self._tracer = tracer

    async def embed(
        self, request: pb.EmbedRequest | Malformed, context: Context, serving: Serving | None
    ) -> pb.EmbedResponse:
        """serving: None while the model loads."""

        def answer(call: _Open, told: Serving, asked: pb.EmbedRequest) -> pb.EmbedResponse:
            dimensions = asked.dimensions if asked.HasField("dimensions") else None
            rows = vectors.embeddings(call.pooled, dimensions).tolist()
            return pb.EmbedResponse(
                embeddings=[pb.Embedding(values=row) for row in rows], **_common(call, told)
            )

        response: pb.EmbedResponse = await self._answer("Embed", request, context, serving, answer)
        return response

    async def score(
        self, request: pb.ScoreRequest | Malformed, context: Context, serving: Serving | None
    ) -> pb.ScoreResponse:
        """serving: None while the model loads."""

        def answer(call: _Open, told: Serving, _asked: pb.ScoreRequest) -> pb.ScoreResponse:
            return pb.ScoreResponse(scores=vectors.scores(call.pooled), **_common(call, told))

        response: pb.ScoreResponse = await self._answer("Score", request, context, serving, answer)
        return response

    async def _answer(
        self,
        method: str,
        request: Any,
        context: Context,
        serving: Serving | None,
        make: Callable[[_Open, Serving, Any], Any],
    ) -> Any:
        code = grpc.StatusCode.CANCELLED  # unless the end is reached
        began, began_ns = time.monotonic(), time.time_ns()
        call: _Open | None = None
        try:
            try:
                call, told = await self._accept(request, context, serving)
                response = await self._run(call, context, told, lambda: make(call, told, request))
            except Exception as error:
                if isinstance(error, grpc.aio.BaseError):
                    raise  # the client has gone
                refusal = self._as_refusal(error)
                code = refusal.code
                if call is None:
                    self._ledger.refuse(code, refusal.reason)
                    access.refused(method, context, self._access.authenticator, refusal)
                await errors.abort(context, refusal)
            code = grpc.StatusCode.OK
            return response
        finally:
            code = ended_code(code, context)
            self._ledger.rpc(method, code)
            if self._tracer.active:
                self._trace(method, context, began, began_ns, code, call)

    def _as_refusal(self, error: Exception) -> Refusal:
        if isinstance(error, Refusal):
            return error
        if isinstance(error, EngineDeadError):
            return self._lifecycle.engine_gone(str(error))
        return fault(error)

    # ------------------------------------------------------------ in

    async def _accept(
        self, request: Request | Malformed, context: Context, serving: Serving | None
    ) -> tuple[_Open, Serving]:
        """Whatever is returned was counted as accepted."""
        caller = check_caller(request, context, self._access, self._lifecycle)
        assert serving is not None and not isinstance(request, Malformed)
        permit = self._access.limits.enter(caller.client)
        try:
            return await self._let_in(request, context, serving, caller, permit), serving
        except BaseException:
            permit.end(0)
            raise

    async def _let_in(
        self, request: Request, context: Context, serving: Serving, caller: Caller, permit: Permit
    ) -> _Open:
        admission = self._access.admission
        texts = len(request.inputs if isinstance(request, pb.EmbedRequest) else request.documents)
        at_once = min(max(texts, 1), admission.policy.slots)
        remaining = context.time_remaining()
        place = admission.enter(caller.client, at_once, request.priority, None, remaining)
        try:
            other = isinstance(context, errors.OtherContext)
            serving.pooled.check(request, MAX_HTTP_NUMBERS if other else MAX_NUMBERS)
            sender = Sender(serving.engine.new_key, caller.tenant, caller.client)
            call = await serving.pooled.read(request, sender)
            _check_each(serving.engine, call, request)
            self._lifecycle.check()  # it may have changed while texts were read
            check_deadline(context)
            permit.take(call.tokens)
            place.read(call.tokens)
        except BaseException:
            place.leave()
            raise
        if self._access.log_prompts:
            fields = {"request_id": call.request_id, "prompt": _shown(request)}
            log.info("request accepted", extra={"fields": fields})
        self._ledger.accept(len(call.requests))
        self._open_calls.begin()
        return _Open(call, caller, place, permit, time.monotonic())

    # ------------------------------------------------------------ through the engine

    async def _run(
        self, call: _Open, context: Context, serving: Serving, make: Callable[[], Any]
    ) -> Any:
        """The answer to an accepted call, which is closed whatever comes of it."""
        try:
            await context.send_initial_metadata(((REQUEST_ID_KEY, call.call.request_id),))
            call.pooled = [b""] * len(call.call.requests)
            await self._all(call, serving.engine)
            call.reason = FinishReason.STOP
            if sum(map(len, call.pooled)) <= 4 * _INLINE_NUMBERS:
                return make()
            workers = serving.validator.workers
            return await workers.run(lambda _wanted: make(), call.caller.client)
        except grpc.aio.BaseError:
            raise  # the client has gone
        except Exception:
            if self._lifecycle.phase is not Phase.DRAINING:  # whose last stage stops the engine
                call.reason = FinishReason.ERROR
            raise
        finally:
            self._close(call)

    async def _all(self, call: _Open, engine: AsyncEngine) -> None:
        """All texts, as many at once as there are slots."""
        rest = iter(enumerate(call.call.requests))
        width = min(len(call.call.requests), self._access.admission.policy.slots)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(width):
                    group.create_task(self._some(call, engine, rest))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _some(
        self, call: _Open, engine: AsyncEngine, rest: Iterator[tuple[int, GenerationRequest]]
    ) -> None:
        """Run texts that nobody has taken yet, one after another."""
        for at, request in rest:
            async with contextlib.aclosing(engine.generate(request)) as outputs:
                async for batch in outputs:
                    for output in batch:
                        self._take(call, at, output)

    def _take(self, call: _Open, at: int, output: Output) -> None:
        if output.started:
            call.cached_tokens += output.cached_tokens
            call.started_at = call.started_at or output.started_at
            self._ledger.queue_time.observe(max(output.started_at - call.accepted_at, 0.0))
            call.place.started()
        if output.finish is None:
            return
        call.ended += 1
        call.preemptions += output.preemptions
        self._ledger.finished[output.finish] += 1
        if output.error_id is not None:
            raise errors.internal(output.error_id)
        if output.pooled is None:
            raise errors.shutting_down()
        call.pooled[at] = output.pooled

    # ------------------------------------------------------------ out

    def _close(self, call: _Open) -> None:
        """The one end of an accepted call."""
        self._open_calls.end()
        call.place.leave()
        self._ledger.finished[call.reason] += len(call.call.requests) - call.ended
        call.permit.end(call.call.tokens)
        elapsed = time.monotonic() - call.accepted_at
        self._ledger.end_to_end.observe(elapsed)
        queued = max((call.started_at or call.accepted_at) - call.accepted_at, 0.0)
        fields = {
            "request_id": call.call.request_id,
            "finish": call.reason.value,
            "client": call.caller.client,
            "texts": len(call.call.requests),
            "prompt_tokens": call.call.tokens,
            "cached_tokens": call.cached_tokens,
            "queued_s": round(queued, 4),
            "total_s": round(elapsed, 4),
            "preemptions": call.preemptions,
        }
        log.info("request ended", extra={"fields": fields})

    def _trace(
        self,
        method: str,
        context: Context,
        began: float,
        began_ns: int,
        code: grpc.StatusCode,
        call: _Open | None,
    ) -> None:
        times, told = Times(), {}
        if call is not None:
            started = None if call.started_at is None else call.started_at - began
            times = Times(queued=call.accepted_at - began, prefill=started)
            told = {
                "quire.request_id": call.call.request_id,
                "quire.finish": call.reason.value,
                "quire.prompt_tokens": call.call.tokens,
                "quire.cached_tokens": call.cached_tokens,
            }
        self._tracer.ended(EndedCall.of(method, context, began, began_ns, code, times, told))


def _check_each(engine: AsyncEngine, call: PooledCall, asked: Request) -> None:
    kind = "inputs" if isinstance(asked, pb.EmbedRequest) else "documents"
    for at, request in enumerate(call.requests):
        try:
            engine.check(request)
        except RequestError as error:
            raise unable(f"{kind}[{at}]", error) from error


def _common(call: _Open, serving: Serving) -> dict[str, Any]:
    """What both answers say."""
    info = serving.model.info
    usage = pb.PromptUsage(prompt_tokens=call.call.tokens, cached_tokens=call.cached_tokens)
    return {
        "request_id": call.call.request_id,
        "model_fingerprint": info.fingerprint,
        "numerics": info.numerics,
        "usage": usage,
    }


def _shown(request: Request) -> str:
    """The texts as the log shows them where that was asked for: on one line."""
    if isinstance(request, pb.ScoreRequest):
        return repr([request.query, *request.documents])
    texts = (
        one.text if one.HasField("text") else list(one.token_ids.ids) for one in request.inputs
    )
    return repr(list(texts))
