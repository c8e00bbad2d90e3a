"""Paths and what answers them; refusals as errors of the shape that a path's clients read.

Invariant: whatever goes wrong, the answer is JSON with an `error`, or the connection ends. All
paths that are here but /health ask for a key, where keys are asked for.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.service.errors import Refusal
from quire.service.openai import problems
from quire.service.openai.api import APIS
from quire.service.openai.generation import Generation
from quire.service.openai.http_context import MESSAGES, HttpContext
from quire.service.openai.info_endpoints import InfoEndpoints
from quire.service.openai.request_guard import RequestGuard
from quire.service.openai.tokens import Tokens
from quire.service.openai.vectors import Vectors
from quire.service.rpc.call_admission import fault

Endpoint = Callable[[Request], Awaitable[Any]]
_ANY = ("GET", "POST", "DELETE")
_RERANK = ("/v1/rerank", "/v2/rerank", "/rerank")  # the second is Cohere's newer client's
_OTHER = "/openai/"  # the name in logs of requests that generate nothing


def make_app(
    guard: RequestGuard,
    generation: Generation,
    vectors: Vectors,
    info: InfoEndpoints,
    tokens: Tokens,
    origins: Sequence[str],
) -> ASGIApp:
    """origins: of web pages that may call."""
    app: ASGIApp = ExceptionMiddleware(
        Router(_routes(guard, generation, vectors, info, tokens), redirect_slashes=False),
        handlers={Refusal: _refused, HTTPException: _unknown},
    )
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after"],
        )
    return _EntryMiddleware(app, guard)


def _routes(
    guard: RequestGuard,
    generation: Generation,
    vectors: Vectors,
    info: InfoEndpoints,
    tokens: Tokens,
) -> list[Route]:
    """What a call passes by itself, and what the key is asked for here."""

    def guarded(endpoint: Endpoint, name: str) -> Endpoint:
        async def answer(request: Request) -> Any:
            context = request.scope["context"]
            try:
                await guard.check_key(context)
                return await endpoint(request)
            except Refusal as refusal:
                guard.refused(context, refusal, _OTHER + name)
                raise

        return answer

    return [
        *(
            Route(path, partial(generation.answer, api), methods=["POST"])
            for path, api in APIS.items()
        ),
        Route("/v1/embeddings", vectors.embeddings, methods=["POST"]),
        *(Route(path, vectors.rerank, methods=["POST"]) for path in _RERANK),
        Route("/v1/models", guarded(info.models, "models"), methods=["GET"]),
        Route("/v1/models/{name:path}", guarded(info.model, "models"), methods=["GET"]),
        Route("/v1/responses/{rest:path}", guarded(_unstored, "responses"), methods=_ANY),
        Route(f"{MESSAGES}/count_tokens", tokens.count, methods=["POST"]),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/health", info.health, methods=["GET"]),
        Route("/version", guarded(info.version, "version"), methods=["GET"]),
        Route("/metrics", guarded(info.metrics, "metrics"), methods=["GET"]),
    ]


class _EntryMiddleware:
    """The first to see a request, and the last to see what became of it."""

    def __init__(self, app: ASGIApp, guard: RequestGuard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = HttpContext(scope)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
            await send(message)

        try:
            self._guard.check(context)
        except Refusal as refusal:
            self._guard.refused(context, refusal, _OTHER + "headers")
            await problems.response(refusal, scope["path"])(scope, receive, send)
            return
        try:
            # `app`: without it, starlette answers unknown paths itself, in words of its own.
            await self._app({**scope, "context": context, "app": self}, receive, noted)
        except ClientDisconnect:
            scope["connection"].abort()
        except Exception as error:
            told = fault(error)
            if context.status:
                scope["connection"].abort()
            else:
                await problems.response(told, scope["path"])(scope, receive, send)


async def _unstored(request: Request) -> Response:
    raise problems.nothing_stored(request.url.path)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return problems.response(error, request.url.path)


async def _unknown(request: Request, error: Exception) -> Response:
    """The router's answer to a path or method that does not exist."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        told = problems.response(problems.wrong_method(request.method, path), path)
        told.headers.update(error.headers or {})  # `allow`
        return told
    return problems.response(problems.no_such_path(path), path)
