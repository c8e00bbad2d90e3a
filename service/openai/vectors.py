"""/v1/embeddings and /v1/rerank: Embed and Score in the form that OpenAI's, Jina's and Cohere's
clients use.

Invariant: a client that disconnects cancels the call, whose texts then leave the engine.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from quire.clients.openai.vectors import (
    RERANK_NAMES,
    EmbeddingsBody,
    RerankBody,
    read_embeddings,
    read_rerank,
)
from quire.service.errors import Refusal
from quire.service.openai.http_context import HttpContext
from quire.service.openai.problems import problem, translated
from quire.service.openai.reply import DisconnectWatcher, send_whole
from quire.service.openai.request_reader import RequestReader
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer

_SERVICE = "/quire.v1.InferenceService/"
_JSON = (b"content-type", b"application/json")
_MANY = 1 << 14  # numbers of an answer that is better written on another thread
Body = TypeVar("Body", EmbeddingsBody, RerankBody)


class Vectors:
    """Answers both."""

    def __init__(self, servicer: InferenceServicer, reader: RequestReader, model: str) -> None:
        """model: the name that answers carry."""
        self._servicer = servicer
        self._reader = reader
        self._model = model

    async def embeddings(self, request: Request) -> Any:
        """POST /v1/embeddings."""
        return await self._reply(request, "Embed", read_embeddings)

    async def rerank(self, request: Request) -> Any:
        """POST /v1/rerank."""
        return await self._reply(request, "Score", read_rerank)

    async def _reply(
        self, request: Request, method: str, read: Callable[[dict[str, Any], str], Body]
    ) -> Any:
        context = request.scope["context"]
        name = context.headers.get("x-request-id", "")
        parsed = await self._reader.read(request, _SERVICE + method, lambda body: read(body, name))
        call = getattr(self._servicer, method)

        async def answer() -> bytes:
            if isinstance(parsed, Malformed):
                await call(parsed, cast(Any, context))
                raise AssertionError("it is refused")
            told = await call(parsed.request, cast(Any, context))

            def written() -> bytes:
                return json.dumps(parsed.answer(told, self._model), separators=(",", ":")).encode()

            values = sum(len(one.values) for one in getattr(told, "embeddings", ()))
            return await asyncio.to_thread(written) if values > _MANY else written()

        def told(refusal: Refusal) -> Refusal:
            names = parsed.names if isinstance(parsed, EmbeddingsBody) else RERANK_NAMES
            return translated(refusal, names)

        return _Whole(context, answer, told)


class _Whole:
    """An ASGI application that answers one request with what `answer` returns."""

    def __init__(
        self,
        context: HttpContext,
        answer: Callable[[], Any],
        translate: Callable[[Refusal], Refusal],
    ) -> None:
        self._context = context
        self._answer = answer
        self._translate = translate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        disconnect = DisconnectWatcher(receive)
        try:
            async with disconnect.watched():
                status, headers, body = await self._told()
                disconnect.over = True
                await send_whole(send, status, headers, body)
        except asyncio.CancelledError:
            if not disconnect.gone:
                scope["connection"].abort()

    async def _told(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        try:
            status, headers, body = 200, [_JSON], await self._answer()
        except Refusal as refusal:
            told = problem(self._translate(refusal))
            more = [(name.encode(), value.encode()) for name, value in told.headers.items()]
            status, headers, body = told.status, [_JSON, *more], told.body
        if self._context.request_id:
            headers.append((b"x-request-id", self._context.request_id.encode()))
        return status, headers, body
