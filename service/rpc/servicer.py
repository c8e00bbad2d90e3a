"""quire.v1.InferenceService: Generate, and the calls that are answered once.

Invariant: a call is either refused before it is accepted, or accepted and counted to its end,
whatever that end is: `finally` closes the engine's stream (which aborts it), gives up its place in
the queue and counts open indices as cancelled. An error in one call ends only that call.
"""

import contextlib
import logging
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from typing import Any

import grpc

from quire.engine.errors import EngineDeadError
from quire.engine.request import FinishReason
from quire.service import errors
from quire.service.constraints.sources import field_of
from quire.service.errors import Refusal
from quire.service.lifecycle import Lifecycle, Phase
from quire.service.rpc.answers import Answers
from quire.service.rpc.call_admission import (
    AccessControl,
    Call,
    CallAdmission,
    Malformed,
    Serving,
    fault,
)
from quire.service.rpc.open_calls import OpenCalls, ended_code
from quire.service.rpc.open_requests import OpenRequests
from quire.service.rpc.pooled_calls import REQUEST_ID_KEY, PooledCalls
from quire.service.rpc.write_watch import Writes, WriteWatch
from quire.service.security.auth import Caller
from quire.service.telemetry import access
from quire.service.telemetry.counters import Ledger
from quire.service.telemetry.tracing import EndedCall, Times, Tracer
from quire.v1 import inference_pb2 as pb

log = logging.getLogger("quire.service")

SERVICE = "quire.v1.InferenceService"

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Caller], Awaitable[Any]]


@dataclass(slots=True)
class _Ending:
    """How a call has ended, for its counters."""

    code: grpc.StatusCode = grpc.StatusCode.CANCELLED  # unless the end is reached
    call: Call | None = None  # once it is accepted


class InferenceServicer:
    """Answers the calls. `serving` is set once the engine is ready."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        ledger: Ledger,
        access_control: AccessControl,
        tracer: Tracer,
        watch: WriteWatch,
    ) -> None:
        self._lifecycle = lifecycle
        self._ledger = ledger
        self.access = access_control
        self._call_admission = CallAdmission(lifecycle, ledger, access_control)
        self._tracer = tracer
        self._watch = watch
        self._open_calls = OpenCalls()
        self._open_requests = OpenRequests()
        self.answers = Answers(lifecycle, access_control, self._open_calls, self._open_requests)
        self._pooled = PooledCalls(lifecycle, ledger, access_control, self._open_calls, tracer)

    @property
    def serving(self) -> Serving | None:
        """Set once the model is loaded."""
        return self.answers.serving

    @serving.setter
    def serving(self, serving: Serving) -> None:
        self.answers.serving = serving

    async def wait_idle(self) -> None:
        """Returns when no accepted call is open."""
        await self._open_calls.wait_none()

    # ------------------------------------------------------------ Generate

    async def Generate(
        self, request: pb.GenerateRequest | Malformed, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Streams one request's tokens."""
        with self._watch.call(context) as writes, self._ended(context, writes) as ending:
            call, serving = await self._accept(request, context, writes, ending)
            stream: AsyncGenerator[Any, None] | None = None
            failure: Refusal | None = None
            try:
                if call.output.already_complete:
                    await self._acknowledge(call, context)
                    for message in writes.each(call.output.complete()):
                        yield message
                else:
                    stream = serving.engine.generate(
                        call.accepted.generation, serving.message_interval
                    )
                    async for outputs in stream:
                        if not call.acknowledged:
                            await self._acknowledge(call, context)
                        for message in writes.each(call.output.take(outputs)):
                            yield message
                    failure = self._failed_step(call)
            except grpc.aio.BaseError:
                raise  # the client has gone
            except Exception as error:
                failure, last = self._broken(call, error)
                for message in writes.each(last):
                    yield message
            finally:
                unread = serving.engine.unread(call.accepted.generation.key)
                if stream is not None:
                    await stream.aclose()
                self._close(call, unread)
            ending.code = grpc.StatusCode.OK if failure is None else failure.code
            if failure is not None:
                await errors.abort(context, failure)

    @contextlib.contextmanager
    def _ended(self, context: Context, writes: Writes) -> Iterator[_Ending]:
        """Count and trace a call that has ended."""
        ending, began, began_ns = _Ending(), time.monotonic(), time.time_ns()
        try:
            yield ending
        finally:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if writes.ended else ending.code
            code = ended_code(code, context)
            self._ledger.rpc("Generate", code)
            if self._tracer.active:
                call = ending.call
                times, told = (Times(), {}) if call is None else _told(call, began)
                self._tracer.ended(
                    EndedCall.of("Generate", context, began, began_ns, code, times, told)
                )

    @staticmethod
    async def _acknowledge(call: Call, context: Context) -> None:
        """Tell the client that the call was accepted. Done after the request went to the engine:
        when many calls come at once, the engine starts while their clients are answered."""
        call.acknowledged = True
        await context.send_initial_metadata(((REQUEST_ID_KEY, call.accepted.request_id),))

    async def _accept(
        self,
        request: pb.GenerateRequest | Malformed,
        context: Context,
        writes: Writes,
        ending: _Ending,
    ) -> tuple[Call, Serving]:
        """Accept the call, which is then open, or refuse it."""
        try:
            call, serving = await self._call_admission.accept(request, context, self.serving)
        except grpc.aio.BaseError:
            raise  # the client has gone
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else fault(error)
            ending.code = refusal.code
            self._ledger.refuse(refusal.code, refusal.reason)
            access.refused("Generate", context, self.access.authenticator, refusal)
            await errors.abort(context, refusal)
        ending.call = call
        self._open_calls.begin()
        self._open_requests.add(call)
        generation = call.accepted.generation
        engine, entries = serving.engine, 1 + (generation.sampling.logprobs or 0)
        writes.unread = lambda: entries * engine.unread(generation.key)
        return call, serving

    def _close(self, call: Call, unread: int) -> None:
        """The single end of an accepted call. unread: tokens that the reader did not take."""
        self._open_calls.end()
        self._open_requests.remove(call)
        call.place.leave()
        call.output.abandon()
        record, request = call.output.record(), call.accepted.generation
        prompt_tokens = len(request.prompt_token_ids)
        resumed = len(request.resume_token_ids)
        call.permit.end(prompt_tokens + resumed + call.output.sampled + unread)
        elapsed = time.monotonic() - call.accepted_at
        self._ledger.end_to_end.observe(elapsed)
        log.info(
            "request ended",
            extra={
                "fields": {
                    "request_id": call.accepted.request_id,
                    "finish": ",".join(record.reasons),
                    "client": call.client,
                    "prompt_tokens": prompt_tokens,
                    "cached_tokens": record.cached_tokens,
                    "completion_tokens": record.delivered,
                    "queued_s": round(record.queued, 4),
                    "first_token_s": record.first_token and round(record.first_token, 4),
                    "total_s": round(elapsed, 4),
                    "preemptions": record.preemptions,
                }
            },
        )

    @staticmethod
    def _failed_step(call: Call) -> Refusal | None:
        output, constraint = call.output, call.accepted.generation.constraint
        if output.error_id is not None:
            return errors.internal(output.error_id)
        if output.dead_end is None or constraint is None:
            return None
        return errors.invalid_field(field_of(constraint.kind), output.dead_end)

    def _broken(
        self, call: Call, error: Exception
    ) -> tuple[Refusal, Iterable[pb.GenerateResponse]]:
        """The refusal and the last messages of a call that an error has cut off."""
        if not isinstance(error, EngineDeadError):
            return fault(error), call.output.end(FinishReason.ERROR, flush=False)
        draining = self._lifecycle.phase is Phase.DRAINING
        reason = FinishReason.CANCELLED if draining else FinishReason.ERROR
        return self._lifecycle.engine_gone(str(error)), call.output.end(reason)

    # ------------------------------------------------------------ one answer each

    async def Stats(self, request: pb.StatsRequest | Malformed, context: Context) -> Any:
        """Answers what the server holds and has done; also while draining."""
        return await self.answer_once("Stats", request, context, self.answers.stats)

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest | Malformed, context: Context
    ) -> Any:
        """Answers what is served; also while draining."""
        return await self.answer_once("GetModelInfo", request, context, self.answers.model_info)

    async def Tokenize(self, request: pb.TokenizeRequest | Malformed, context: Context) -> Any:
        """Answers a prompt's ids."""
        return await self.answer_once("Tokenize", request, context, self.answers.tokenize)

    async def Detokenize(self, request: pb.DetokenizeRequest | Malformed, context: Context) -> Any:
        """Answers the text of ids."""
        return await self.answer_once("Detokenize", request, context, self.answers.detokenize)

    async def FlushCache(self, request: pb.FlushCacheRequest | Malformed, context: Context) -> Any:
        """Forgets what the prefix cache holds; for operators."""
        return await self.answer_once("FlushCache", request, context, self.answers.flush_cache)

    async def Embed(self, request: pb.EmbedRequest | Malformed, context: Context) -> Any:
        """Answers embeddings of texts."""
        return await self._pooled.embed(request, context, self.serving)

    async def Score(self, request: pb.ScoreRequest | Malformed, context: Context) -> Any:
        """Answers how well documents answer a query."""
        return await self._pooled.score(request, context, self.serving)

    async def answer_once(self, method: str, request: Any, context: Context, answer: Answer) -> Any:
        """Call `answer`, and count and log how it ended."""
        code = grpc.StatusCode.CANCELLED  # unless the end is reached
        try:
            try:
                caller = self.access.authenticator.caller(context)
                if isinstance(request, Malformed):
                    raise request.refusal
                response = await _asked(answer, request, caller)
            except Refusal as refusal:
                code = refusal.code
                access.refused(method, context, self.access.authenticator, refusal)
                await errors.abort(context, refusal)
            code = grpc.StatusCode.OK
            return response
        finally:
            self._ledger.rpc(method, ended_code(code, context))


async def _asked(answer: Answer, request: Any, caller: Caller) -> Any:
    """Turn every error into a Refusal."""
    try:
        return await answer(request, caller)
    except Refusal:
        raise
    except EngineDeadError as error:
        raise errors.unavailable(str(error), "ENGINE_DEAD") from error
    except Exception as error:
        raise fault(error) from error


def _told(call: Call, began: float) -> tuple[Times, dict[str, str | int]]:
    """Times and attributes for the trace of an accepted call. began: time.monotonic()."""
    record, waited = call.output.record(), call.accepted_at - began
    times = Times(
        queued=waited,
        prefill=waited + record.queued if call.output.started else None,
        decode=None if record.first_token is None else waited + record.first_token,
    )
    return times, {
        "quire.request_id": call.accepted.request_id,
        "quire.finish": ",".join(record.reasons),
        "quire.prompt_tokens": len(call.accepted.generation.prompt_token_ids),
        "quire.cached_tokens": record.cached_tokens,
        "quire.completion_tokens": record.delivered,
        "quire.preemptions": record.preemptions,
    }


def handler(servicer: InferenceServicer) -> grpc.GenericRpcHandler:
    """The service's methods. Messages that cannot be decoded reach the servicer as Malformed, so
    that they are answered with a status of the contract too."""
    methods = {
        "Generate": grpc.unary_stream_rpc_method_handler(
            servicer.Generate,
            request_deserializer=decoder(pb.GenerateRequest.FromString),
            response_serializer=pb.GenerateResponse.SerializeToString,
        ),
        "Stats": _single(servicer.Stats, pb.StatsRequest),
        "GetModelInfo": _single(servicer.GetModelInfo, pb.GetModelInfoRequest),
        "Tokenize": _single(servicer.Tokenize, pb.TokenizeRequest),
        "Detokenize": _single(servicer.Detokenize, pb.DetokenizeRequest),
        "FlushCache": _single(servicer.FlushCache, pb.FlushCacheRequest),
        "Embed": _single(servicer.Embed, pb.EmbedRequest),
        "Score": _single(servicer.Score, pb.ScoreRequest),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _single(answer: Callable[[Any, Context], Awaitable[Any]], request: Any) -> Any:
    """A unary method with this type of request."""
    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=decoder(request.FromString),
        response_serializer=lambda response: response.SerializeToString(),
    )


def decoder(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Parses a message; returns Malformed for one that cannot be parsed."""

    def decode(raw: bytes) -> Any:
        try:
            message = parse(raw)
        except Exception:
            return Malformed()
        message.DiscardUnknownFields()  # otherwise they are kept as long as the call
        return message

    return decode
