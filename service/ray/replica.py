"""One engine as a Ray replica: a whole server, whose calls arrive through Ray instead of a port.

Invariant: a call passes everything that any call passes: keys (from the caller's own metadata),
limits, queue, drain, counts, log. How it ended is returned as a value, since Ray has no statuses:
the code, the message, and the trailers with the rich details. An engine that died fails the health
check, and Ray starts another.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.model.load_config import model_config, resolve_max_model_len
from quire.service.app.placement import placed
from quire.service.app.server import Server
from quire.service.errors import Refusal, message_too_large
from quire.service.models.resolve import resolve
from quire.service.ray.application_plan import Plan
from quire.service.ray.call_ends import End, Pairs, end_of
from quire.service.ray.ray_context import RayContext
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import decoder
from quire.service.settings import Settings
from quire.v1 import inference_pb2 as pb

REQUESTS: dict[str, Any] = {
    "Stats": pb.StatsRequest,
    "GetModelInfo": pb.GetModelInfoRequest,
    "Tokenize": pb.TokenizeRequest,
    "Embed": pb.EmbedRequest,
    "Score": pb.ScoreRequest,
    "Detokenize": pb.DetokenizeRequest,
    "FlushCache": pb.FlushCacheRequest,
}


class EngineReplica:
    """A deployment's class. Made within its replica."""

    async def __init__(self, plan: Plan) -> None:  # type: ignore[misc]  # Ray awaits it
        """Ready when it returns. Raises QuireError."""
        settings = plan.settings()
        resolved = resolve(settings.engine)
        config = settings.engine.replace(model=resolved.engine_model)
        shape = model_config(config)
        self._held = contextlib.ExitStack()
        self._server = Server(settings, resolved, self._engine(settings, config))
        await self._server.open(resolve_max_model_len(config, shape))
        ends = None if shape.embeds_only else shape.eos_token_ids
        await self._server.load(shape.vocab_size, eos_token_ids=ends)
        self._died = asyncio.ensure_future(self._server.wait_dead())

    def _engine(self, settings: Settings, config: EngineConfig) -> AsyncEngine:
        """Not loaded yet."""
        make_link = self._held.enter_context(placed(settings))
        return AsyncEngine(make_link(config))

    async def generate(
        self, request: bytes, metadata: Pairs, keys: tuple[int, tuple[bytes, ...]]
    ) -> AsyncIterator[bytes | End]:
        """The stream's messages, then, where it did not end well, how it did. keys: the router
        has read them."""
        del keys
        asked, call = self._read(pb.GenerateRequest, request), RayContext("Generate", metadata)
        generate: Any = self._server.servicer.Generate
        try:
            async with contextlib.aclosing(generate(asked, call)) as messages:
                async for message in messages:
                    yield message.SerializeToString()
        except Refusal as refusal:
            yield end_of(refusal)

    async def ask(self, method: str, request: bytes, metadata: Pairs) -> bytes | End:
        """A call with one answer."""
        asked = self._read(REQUESTS[method], request)
        try:
            context = RayContext(method, metadata)
            answer = await getattr(self._server.servicer, method)(asked, context)
        except Refusal as refusal:
            return end_of(refusal)
        packed: bytes = answer.SerializeToString()
        return packed

    def _read(self, kind: Any, request: bytes) -> Any:
        """The message; Malformed: what cannot be one, which the servicer refuses in its turn."""
        most = self._server.max_message
        if len(request) > most:
            return Malformed(message_too_large(most))
        return decoder(kind.FromString)(request)

    def check_health(self) -> None:
        """Ray asks. Raises where the engine is gone."""
        if self._died.done():
            raise RuntimeError("the engine has died")

    async def __del__(self) -> None:
        """Ray calls it when the replica is stopped: its calls have ended by then."""
        self._died.cancel()
        await self._server.stop()
        self._held.close()
