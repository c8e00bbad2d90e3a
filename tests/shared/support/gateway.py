"""A server with a port for gateways, and calls to it by the messages of the protos' package."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from support.fake_engine import Device
from support.harness import Running, serving

from quire.service.gateway.protos import SERVICE, Protos


@dataclass
class Face:
    """The foreign contract's calls, by their names."""

    channel: grpc.aio.Channel
    running: Running | None = None
    protos: Protos = field(default_factory=Protos)

    def many(self, method: str, request: Any, kind: Any, **options: Any) -> Any:
        """A call that is answered by a stream of this kind."""
        serialize = type(request).SerializeToString
        call = self.channel.unary_stream(f"/{SERVICE}/{method}", serialize, kind.FromString)
        return call(request, **options)

    def generate(self, request: Any, **options: Any) -> Any:
        return self.many("Generate", request, self.protos.engine.GenerateResponse, **options)

    def subscribe(self, start: int = 0, **options: Any) -> Any:
        asked = self.protos.common.SubscribeKvEventsRequest(start_sequence_number=start)
        return self.many("SubscribeKvEvents", asked, self.protos.common.KvEventBatch, **options)

    async def one(self, method: str, *, metadata: Any = (), **fields: Any) -> Any:
        """A call with one answer."""
        asked = getattr(self.protos.engine, f"{method}Request")(**fields)
        kind = getattr(self.protos.engine, f"{method}Response")
        serialize = type(asked).SerializeToString
        call = self.channel.unary_unary(f"/{SERVICE}/{method}", serialize, kind.FromString)
        return await call(asked, metadata=metadata)

    def ask(self, ids: list[int], *, stream: bool = True, request_id: str = "", **more: Any) -> Any:
        """A request; `more` are sampling's fields."""
        params = self.protos.engine.SamplingParams(**{"temperature": 0.0, **more})
        request = self.protos.engine.GenerateRequest(
            request_id=request_id, stream=stream, sampling_params=params
        )
        request.tokenized.input_ids.extend(ids)
        return request


@asynccontextmanager
async def facing(device: Device | None = None, **options: Any) -> AsyncIterator[Face]:
    async with serving(device, gateway_port=0, **options) as running:
        address = f"127.0.0.1:{running.server.gateway_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield Face(channel, running)


async def whole(call: Any) -> tuple[list[Any], list[Any]]:
    """A call's chunks and ends. Raises AioRpcError."""
    chunks, ends = [], []
    async for message in call:
        kind = message.WhichOneof("response")
        (chunks if kind == "chunk" else ends).append(getattr(message, kind))
    return chunks, ends
