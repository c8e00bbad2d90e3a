"""A real server in this process, on a port of its own, and a client of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from support.patience import PATIENCE, PATIENT

from quire.clients import AsyncClient
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.model.load_config import model_config
from quire.service.app.server import Server
from quire.service.models.resolve import resolve
from quire.service.settings import ServiceConfig, Settings

Chat = list[dict[str, str]]


def user(text: str) -> Chat:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[AsyncClient]:
    """Serves `pocket` with these engine options until the block is left."""
    settings = Settings(
        EngineConfig(**{"num_blocks": 257, **options}), ServiceConfig(port=0, **PATIENT)
    )
    resolved = resolve(settings.engine)
    config = settings.engine.replace(model=resolved.engine_model)
    shape = model_config(config)
    engine = AsyncEngine(ThreadLink(config))
    server = Server(settings, resolved, engine)
    await server.open(shape.max_position_embeddings)
    try:
        await server.load(shape.vocab_size)
        async with AsyncClient(f"127.0.0.1:{server.port}", timeout=PATIENCE) as client:
            yield client
    finally:
        await server.stop()


async def answer(client: AsyncClient, chat: Chat, **options: Any) -> str:
    """The greedy answer to a conversation."""
    return await client.generate(chat, temperature=0.0, **options).text()


async def blocks_given_back(client: AsyncClient) -> None:
    """Returns when no request holds a block; the last step's end may follow the last answer."""
    async with asyncio.timeout(PATIENCE):
        while (await client.stats()).cache.blocks_in_use:
            pass
