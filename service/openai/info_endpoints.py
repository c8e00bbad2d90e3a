"""The endpoints that only read: models, health, version, metrics."""

import asyncio
import time
from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from quire.service import errors
from quire.service.errors import Refusal
from quire.service.lifecycle import Lifecycle
from quire.service.openai import cards
from quire.service.rpc.servicer import InferenceServicer

_SCRAPES = 2  # at a time


class InfoEndpoints:
    """Answers them."""

    def __init__(
        self,
        servicer: InferenceServicer,
        lifecycle: Lifecycle,
        version: str,
        collectors: Sequence[Collector],
        hangs: Callable[[], bool],
    ) -> None:
        """hangs: whether the engine's step has taken longer than it may."""
        self._servicer = servicer
        self._lifecycle = lifecycle
        self._version = version
        self._hangs = hangs
        self._created = int(time.time())
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        self._scraping = asyncio.Semaphore(_SCRAPES)

    async def models(self, _request: Request) -> JSONResponse:
        """GET /v1/models."""
        return cards.listing(self._model())

    async def model(self, request: Request) -> JSONResponse:
        """GET /v1/models/{name}."""
        return cards.named(self._model(), request.path_params["name"])

    async def health(self, _request: Request) -> JSONResponse:
        """GET /health: 200 while calls are let in, else 503."""
        refusal = self._refusal()
        status = "ready" if refusal is None else refusal.reason.lower()
        return JSONResponse({"status": status}, 200 if refusal is None else 503)

    async def version(self, _request: Request) -> JSONResponse:
        """GET /version."""
        return JSONResponse({"version": self._version})

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics, as on --metrics-port."""
        async with self._scraping:
            page = await asyncio.to_thread(generate_latest, self._registry)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    def _refusal(self) -> Refusal | None:
        if self._hangs():
            return errors.unavailable("a step hangs", "HUNG")
        return self._lifecycle.refusal()

    def _model(self) -> cards.Card:
        serving = self._servicer.serving
        if serving is None:
            raise self._lifecycle.refusal() or errors.unavailable("loading", "LOADING")
        model = serving.model
        return cards.card(model.name, self._created, model.info.max_model_len)
