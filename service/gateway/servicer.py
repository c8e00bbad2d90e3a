"""vllm.grpc.engine.VllmEngine: the foreign contract's calls, answered by our own servicer.

Invariant: Generate is one call of our servicer, with its admission, limits, drain, counts and log;
refusals are made there, and reported with the foreign contract's field names. A subscriber does not
delay a drain, and its queue is bounded.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc

from quire.engine.errors import EngineDeadError
from quire.service import errors
from quire.service.errors import Refusal
from quire.service.gateway import request_mapping, tokenizer_files
from quire.service.gateway.answers import Answers
from quire.service.gateway.event_mapping import EventMapping
from quire.service.gateway.gateway_context import GatewayContext, renamed
from quire.service.gateway.kv_stream import KvStream
from quire.service.gateway.open_calls import OpenCall, OpenCalls
from quire.service.gateway.protos import SERVICE, Protos
from quire.service.lifecycle import Lifecycle
from quire.service.rpc.call_admission import Malformed, fault
from quire.service.rpc.salt import effective_salt
from quire.service.rpc.servicer import Answer, InferenceServicer, decoder
from quire.service.security.auth import Authenticator, Caller
from quire.service.telemetry import access
from quire.service.telemetry.counters import Ledger

MAX_SUBSCRIBERS = 16
Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer:
    """Answers the calls. Its Generate is our own servicer's."""

    def __init__(
        self,
        servicer: InferenceServicer,
        lifecycle: Lifecycle,
        ledger: Ledger,
        authenticator: Authenticator,
        tokenizer: Path,
        version: str,
    ) -> None:
        """tokenizer: the directory of its files. Raises ConfigError without the protos' package."""
        self.protos = Protos()
        self._servicer = servicer
        self._ledger = ledger
        self._authenticator = authenticator
        self._tokenizer = tokenizer
        self._archive: bytes | None = None
        self._calls = OpenCalls()
        self._subscribers = 0
        self.answers = Answers(self.protos, servicer, lifecycle, self._calls, version)

    # ------------------------------------------------------------ Generate

    async def Generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """Streams chunks where that is asked for, and each index's end."""
        wanted = _wanted(request)
        request_id = "" if isinstance(request, Malformed) else request.request_id
        with self._calls.call(self._client(context), request_id) as call:
            answers = self._messages(request, wanted, context, call)
            try:
                async with contextlib.aclosing(answers):
                    async for message in answers:
                        call.writing = True
                        yield message
                        call.writing = False
            except Refusal as refusal:
                await errors.abort(context, renamed(refusal, _grammar(request)))

    async def _messages(
        self, request: Any, wanted: Any, context: Context, call: OpenCall
    ) -> AsyncGenerator[Any, None]:
        """Raises Refusal."""
        ours = cast(
            AsyncGenerator[Any, None],
            self._servicer.Generate(wanted, cast(Any, GatewayContext(context))),
        )
        if isinstance(request, Malformed):  # which our own servicer refuses
            async with contextlib.aclosing(ours):
                await anext(ours)
            return
        telling = EventMapping(self.protos, request)
        try:
            async with contextlib.aclosing(ours):
                async for event in ours:
                    for message in telling.take(event):
                        yield message
                    if call.aborted:
                        break
        except asyncio.CancelledError:
            if not call.was_cut():
                raise
        call.end()
        for message in telling.aborted() if call.aborted else ():
            yield message

    def _client(self, context: Context) -> str:
        try:
            return self._authenticator.caller(context).client
        except Refusal:
            return ""  # our servicer refuses it as well, and counts it

    # ------------------------------------------------------------ one answer each

    async def answer(self, method: str, request: Any, context: Context, how: Answer) -> Any:
        """Ask `how`, counted and refused as our own calls are."""
        return await self._servicer.answer_once(f"VllmEngine.{method}", request, context, how)

    # ------------------------------------------------------------ streams

    async def GetTokenizer(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """The tokenizer's files, as an archive in pieces."""

        async def packed(_request: Any, _caller: Caller) -> bytes:
            self.answers.loaded()
            if self._archive is None:
                self._archive = await asyncio.to_thread(tokenizer_files.archive, self._tokenizer)
            return self._archive

        found = await self.answer("GetTokenizer", request, context, packed)
        for chunk in tokenizer_files.chunks(self.protos, found):
            yield chunk

    async def SubscribeKvEvents(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """Events of the cached blocks, until the caller leaves. For operators."""
        code = grpc.StatusCode.CANCELLED
        try:
            try:
                async with contextlib.aclosing(self._kv_events(request, context)) as messages:
                    async for message in messages:
                        yield message
            except EngineDeadError as error:
                raise errors.unavailable(str(error), "ENGINE_DEAD") from error
        except Refusal as refusal:
            code = refusal.code
            access.refused("VllmEngine.SubscribeKvEvents", context, self._authenticator, refusal)
            await errors.abort(context, refusal)
        finally:
            self._ledger.rpc("VllmEngine.SubscribeKvEvents", code)

    async def _kv_events(self, request: Any, context: Context) -> AsyncGenerator[Any, None]:
        caller = self._authenticator.caller(context)
        if isinstance(request, Malformed):
            raise request.refusal
        serving = self.answers.loaded()
        if self._subscribers >= MAX_SUBSCRIBERS:
            raise _too_many()
        serving.stats.allow_watch(operator=caller.operator)
        salt = effective_salt(caller.tenant, "")
        stream = KvStream(self.protos, serving.model.info.block_size, salt)
        self._subscribers += 1
        try:
            watching = serving.engine.watch_blocks(request.start_sequence_number)
            async with contextlib.aclosing(watching) as batches:
                async for batch in batches:
                    for message in stream.messages(batch):
                        yield message
        finally:
            self._subscribers -= 1


def _wanted(request: Any) -> Any:
    """The request in our own contract; Malformed if that is impossible."""
    if isinstance(request, Malformed):
        return request
    try:
        return request_mapping.to_generate_request(request)
    except Refusal as refusal:
        return Malformed(refusal)
    except Exception as error:
        return Malformed(fault(error))


def _grammar(request: Any) -> str:
    """The field that became our constraint's grammar, if any did."""
    tagged = not isinstance(request, Malformed) and request.sampling_params.structural_tag
    return "structural_tag" if tagged else "grammar"


def _too_many() -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"SubscribeKvEvents: at most {MAX_SUBSCRIBERS} at once",
        reason="TOO_MANY_STREAMS",
        retry_after=1.0,
    )


def handler(servicer: GatewayServicer) -> grpc.GenericRpcHandler:
    """The service's methods; those that are not here are UNIMPLEMENTED."""
    engine, common, answers = servicer.protos.engine, servicer.protos.common, servicer.answers
    streams = {
        "Generate": (servicer.Generate, engine.GenerateRequest),
        "GetTokenizer": (servicer.GetTokenizer, common.GetTokenizerRequest),
        "SubscribeKvEvents": (servicer.SubscribeKvEvents, common.SubscribeKvEventsRequest),
    }
    singles = {
        "HealthCheck": (answers.health, engine.HealthCheckRequest),
        "Abort": (answers.abort, engine.AbortRequest),
        "GetModelInfo": (answers.model, engine.GetModelInfoRequest),
        "GetServerInfo": (answers.server, engine.GetServerInfoRequest),
        "GetLoads": (answers.loads, engine.GetLoadsRequest),
    }
    methods = {
        name: grpc.unary_stream_rpc_method_handler(answer, decoder(request.FromString), _serialized)
        for name, (answer, request) in streams.items()
    }
    for name, (how, request) in singles.items():
        methods[name] = grpc.unary_unary_rpc_method_handler(
            _single(servicer, name, how), decoder(request.FromString), _serialized
        )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _single(servicer: GatewayServicer, name: str, how: Answer) -> Any:
    async def answer(request: Any, context: Context) -> Any:
        return await servicer.answer(name, request, context, how)

    return answer


def _serialized(message: Any) -> bytes:
    packed: bytes = message.SerializeToString()
    return packed
