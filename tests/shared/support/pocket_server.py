"""A server over the embedded model, on the CPU's kernels, with a cache as small as a test wants."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import grpc
from support import programs
from support.harness import Running, settings

from quire.engine.client import child
from quire.engine.client.async_engine import AsyncEngine
from quire.service.app.placement import LinkMaker, placed
from quire.service.app.server import Server
from quire.service.models.resolve import resolve
from quire.service.settings import Settings

VOCAB_SIZE = 4096
SMALL = {"model": "pocket", "num_blocks": 256, "block_size": 16, "device": "cpu"}


@asynccontextmanager
async def pocket(*, own_process: bool = False, **engine_options: Any) -> AsyncIterator[Running]:
    chosen = settings({**SMALL, **engine_options}, engine_process="on" if own_process else "off")
    with ExitStack() as stack:
        with programs.forking(child):
            link = stack.enter_context(placed(chosen))
        async with _served(chosen, link) as running:
            yield running


@asynccontextmanager
async def _served(chosen: Settings, link: LinkMaker) -> AsyncIterator[Running]:
    resolved = resolve(chosen.engine)
    engine = AsyncEngine(link(chosen.engine.replace(model=resolved.engine_model)))
    server = Server(chosen, resolved, engine)
    await server.open(2048)
    await server.load(VOCAB_SIZE)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
    try:
        yield Running(server, None, engine, channel)  # type: ignore[arg-type]
    finally:
        await channel.close()
        await server.stop()
