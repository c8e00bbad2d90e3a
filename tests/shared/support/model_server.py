"""A server over a model's own engine, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from support.harness import Running, settings

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.service.app.server import Server
from quire.service.models.resolve import resolve


@asynccontextmanager
async def served(model: str, vocab_size: int, **options: object) -> AsyncIterator[Running]:
    """`--model` as people give it, on the CPU."""
    chosen = settings(
        {"model": model, "num_blocks": 64, "block_size": 16, "device": "cpu", **options}
    )
    resolved = resolve(chosen.engine)
    engine = AsyncEngine(ThreadLink(chosen.engine.replace(model=resolved.engine_model)))
    server = Server(chosen, resolved, engine)
    await server.open(2048)
    await server.load(vocab_size)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
    try:
        yield Running(server, None, engine, channel)  # type: ignore[arg-type]
    finally:
        await channel.close()
        await server.stop()
