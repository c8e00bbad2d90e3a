"""The unary calls: Stats, GetModelInfo, Tokenize, Detokenize, FlushCache.

Invariant: messages and callers come in, messages or a Refusal go out; these functions do not know
the transport. Calls that only read the server's state are answered while it drains too. Calls that
do work are refused then, and the drain waits for those that had begun.
"""

import logging
import time

from quire.service.lifecycle import Lifecycle, Phase
from quire.service.rpc.call_admission import AccessControl, Serving
from quire.service.rpc.open_calls import OpenCalls
from quire.service.rpc.open_requests import OpenRequests
from quire.service.rpc.text_calls import TextCalls
from quire.service.security.auth import Caller
from quire.v1 import inference_pb2 as pb

log = logging.getLogger("quire.service")


class Answers:
    """The unary calls of one server. `serving` is set once the engine is ready."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        access_control: AccessControl,
        open_calls: OpenCalls,
        open_requests: OpenRequests,
    ) -> None:
        self._lifecycle = lifecycle
        self._open_calls = open_calls
        self._open_requests = open_requests
        self._text = TextCalls(access_control.limits, access_control.admission.policy.max_waiting)
        self.serving: Serving | None = None

    async def stats(self, request: pb.StatsRequest, caller: Caller) -> pb.StatsResponse:
        """Also while draining. Raises Refusal, EngineDeadError."""
        serving, block_map = self._loaded(), b""
        await serving.stats.turn(caller.client)
        if request.include_block_map:
            serving.stats.allow_block_map(operator=caller.operator)
            block_map = await serving.engine.block_map()
        if request.include_requests:
            serving.stats.allow_requests(operator=caller.operator)
        response = serving.stats.response(block_map, operator=caller.operator)
        if request.include_requests:
            response.open_requests.extend(self._open_requests.rows(time.monotonic()))
        return response

    async def model_info(
        self, _request: pb.GetModelInfoRequest, _caller: Caller
    ) -> pb.GetModelInfoResponse:
        """Also while draining. Raises Refusal."""
        return self._loaded().stats.served_model()

    async def tokenize(self, request: pb.TokenizeRequest, caller: Caller) -> pb.TokenizeResponse:
        """Raises Refusal."""
        serving = self._ready()
        with self._open_calls.one():
            return await self._text.tokenize(request, caller, serving.validator, serving.model)

    async def detokenize(
        self, request: pb.DetokenizeRequest, caller: Caller
    ) -> pb.DetokenizeResponse:
        """Raises Refusal."""
        serving = self._ready()
        workers = serving.validator.workers
        with self._open_calls.one():
            return await self._text.detokenize(request, caller, workers, serving.model)

    async def flush_cache(
        self, _request: pb.FlushCacheRequest, caller: Caller
    ) -> pb.FlushCacheResponse:
        """Raises Refusal, EngineDeadError."""
        serving = self._ready()
        serving.stats.allow_flush(operator=caller.operator)
        with self._open_calls.one():
            blocks = await serving.engine.flush_cache()
        fields = {"client": caller.client, "blocks": blocks}
        log.info("prefix cache flushed", extra={"fields": fields})
        return pb.FlushCacheResponse(blocks=blocks)

    def _loaded(self) -> Serving:
        refusal = self._lifecycle.refusal()
        if self.serving is None or self._lifecycle.phase is Phase.DEAD:
            assert refusal is not None
            raise refusal
        return self.serving

    def _ready(self) -> Serving:
        refusal = self._lifecycle.refusal()
        if refusal is not None:
            raise refusal
        assert self.serving is not None
        return self.serving
