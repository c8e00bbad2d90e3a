"""A server on a free port of this process, and a channel to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import support.known_templates  # noqa: F401
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.fake_engine import VOCAB_SIZE, Builder, Device
from support.patience import PATIENCE, PATIENT

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.scheduling.matching import Matchers
from quire.service.app.server import Server
from quire.service.models import pocket
from quire.service.models.resolve import ResolvedModel
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry.tracing import Tracer
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine; one that hangs fails."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test()

    asyncio.run(bounded())


def settings(engine: dict[str, Any] | None = None, **service: Any) -> Settings:
    small = {"max_num_seqs": 64, "max_num_batched_tokens": 512, "block_size": 16}
    config = EngineConfig(**{**small, **(engine or {})})
    return Settings(config, ServiceConfig(**{"port": 0, "http_port": 0, **PATIENT, **service}))


def listening() -> socket.socket:
    """A socket on a port that nobody else can take meanwhile."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    return listening


@dataclass
class Running:
    server: Server
    device: Device
    engine: AsyncEngine
    channel: grpc.aio.Channel
    builder: Builder | None = None

    @property
    def url(self) -> str:
        """Of the OpenAI API, where it was asked for."""
        return f"http://127.0.0.1:{self.server.http_port}"

    @property
    def stub(self) -> Any:
        return pb_grpc.InferenceServiceStub(self.channel)

    async def stats(self, **options: Any) -> pb.StatsResponse:
        response: pb.StatsResponse = await self.stub.Stats(pb.StatsRequest(**options))
        return response

    async def until(self, holds: Callable[[pb.StatsResponse], bool]) -> pb.StatsResponse:
        """Ask Stats until something holds: a change that is on its way."""
        async with asyncio.timeout(PATIENCE):
            while not holds(stats := await self.stats()):
                await asyncio.sleep(0.005)
        return stats

    async def idle(self) -> pb.StatsResponse:
        """Stats once nothing runs or waits and all blocks are back."""
        return await self.until(
            lambda s: (
                s.requests.running == s.requests.waiting == 0
                and s.cache.blocks_free == s.cache.blocks_total
            )
        )


@asynccontextmanager
async def serving(
    device: Device | None = None,
    *,
    engine: dict[str, Any] | None = None,
    load: bool = True,
    before: Callable[[], None] | None = None,
    tracer: Tracer | None = None,
    http: bool = False,
    tokenizer: Path | None = None,
    matchers: Matchers | None = None,
    **service: Any,
) -> AsyncIterator[Running]:
    device = device or Device()
    chosen = settings(engine, **service)
    resolved = ResolvedModel("fake", "fake", tokenizer or pocket.directory())
    builder = Builder(device, before, matchers)
    async_engine = AsyncEngine(ThreadLink(chosen.engine, builder))
    server = Server(chosen, resolved, async_engine, tracer)
    await server.open(2048)
    if http:
        await server.open_http([listening()])
    if load:
        await server.load(VOCAB_SIZE)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
    try:
        yield Running(server, device, async_engine, channel, builder)
    finally:
        device.release()
        await channel.close()
        await server.stop()


@dataclass
class Answer:
    """One call, read to its end."""

    code: grpc.StatusCode
    details: str
    started: list[pb.Started] = field(default_factory=list)
    deltas: list[pb.Delta] = field(default_factory=list)
    finished: list[pb.Finished] = field(default_factory=list)
    judged: list[pb.PromptLogprobs] = field(default_factory=list)
    initial: dict[str, Any] = field(default_factory=dict)
    trailing: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def text(self, index: int = 0) -> str:
        return "".join(d.text for d in self.deltas if d.index == index)

    def ids(self, index: int = 0) -> list[int]:
        return [i for d in self.deltas if d.index == index for i in d.token_ids]

    def add(self, message: pb.GenerateResponse) -> None:
        kind = message.WhichOneof("event")
        assert kind is not None
        self.order.append(kind)
        kinds: dict[str, list[Any]] = {
            "started": self.started,
            "delta": self.deltas,
            "finished": self.finished,
            "prompt_logprobs": self.judged,
        }
        kinds[kind].append(getattr(message, kind))

    def rich(self, kind: Any) -> Any:
        """The detail of this type, or None."""
        status = status_pb2.Status.FromString(self.trailing["grpc-status-details-bin"])
        for detail in status.details:
            if detail.Is(kind.DESCRIPTOR):
                return kind.FromString(detail.value)
        return None

    @property
    def violations(self) -> dict[str, str]:
        bad = self.rich(error_details_pb2.BadRequest)
        return {} if bad is None else {v.field: v.description for v in bad.field_violations}


async def first(call: Any) -> pb.GenerateResponse:
    """The next message of a call, which can still be read to its end."""
    message: pb.GenerateResponse = await anext(aiter(call))
    return message


async def overdue(start: Callable[[float], Any], came: Callable[[], bool]) -> Any:
    """A call whose time runs out once it has come in. start: by its seconds, which are few, and
    more where this machine was too busy for those."""
    seconds = 0.2
    while True:
        call = start(seconds)
        while not (call.done() or came()):
            await asyncio.sleep(0.005)
        if came():
            return call
        seconds *= 4


async def read(call: Any) -> Answer:
    """Read a call to its end, whatever that is."""
    answer = Answer(grpc.StatusCode.UNKNOWN, "")
    try:
        async for message in call:
            answer.add(message)
    except grpc.aio.AioRpcError:
        pass
    answer.code = await call.code()
    answer.details = await call.details()
    answer.initial = dict(await call.initial_metadata() or ())
    answer.trailing = dict(await call.trailing_metadata() or ())
    return answer


async def generate(running: Running, request: pb.GenerateRequest, **options: Any) -> Answer:
    return await read(running.stub.Generate(request, **options))


def ask(ids: list[int] | None = None, text: str | None = None, **fields: Any) -> pb.GenerateRequest:
    """A request; sampling's fields may be given beside the request's own."""
    names = pb.SamplingParams.DESCRIPTOR.fields_by_name
    sampling = {k: fields.pop(k) for k in list(fields) if k in names}
    request = pb.GenerateRequest(sampling=pb.SamplingParams(**sampling), **fields)
    if ids is not None:
        request.token_ids.ids.extend(ids)
    elif text is not None:
        request.text = text
    return request


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(running: Running, service: str = "") -> int:
    """What a probe is told."""
    stub = health_pb2_grpc.HealthStub(running.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)
