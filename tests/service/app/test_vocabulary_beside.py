"""What constraints are compiled for is read while the engine starts."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from support.fake_engine import EOS, VOCAB_SIZE
from support.harness import ask, generate, run, serving
from support.patience import PATIENCE

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import ConfigError
from quire.service.rpc.constraints import Compiler


@pytest.mark.parametrize("fails", [False, True])
def test_a_vocabulary_is_read_while_the_engine_starts(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 151,936 words that takes a second or two."""
    reading = threading.Event()
    read, start = Compiler.vocabulary, AsyncEngine.start

    def vocabulary(self: Compiler) -> Any:
        reading.set()
        return read(self)

    async def started(self: AsyncEngine, *arguments: Any) -> None:
        assert await asyncio.to_thread(reading.wait, PATIENCE)
        if fails:
            raise ConfigError("no room")
        await start(self, *arguments)

    async def test() -> None:
        monkeypatch.setattr(Compiler, "vocabulary", vocabulary)
        monkeypatch.setattr(AsyncEngine, "start", started)
        async with serving(load=False) as running:
            if fails:
                with pytest.raises(ConfigError, match="no room"):
                    await running.server.load(VOCAB_SIZE, eos_token_ids=(EOS,))
                return
            await running.server.load(VOCAB_SIZE, eos_token_ids=(EOS,))
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def test_a_refused_engine_is_told_while_the_vocabulary_is_still_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, refused, read = threading.Event(), threading.Event(), threading.Event()
    told_first: list[bool] = []

    def vocabulary(_self: Compiler) -> Any:
        reading.set()
        told_first.append(refused.wait(PATIENCE))
        read.set()
        raise ValueError("nobody asks for it any more")

    async def started(_self: AsyncEngine, *_: Any) -> None:
        assert await asyncio.to_thread(reading.wait, PATIENCE)
        raise ConfigError("no room")

    async def test() -> None:
        async with serving(load=False) as running:
            with pytest.raises(ConfigError, match="no room"):
                await running.server.load(VOCAB_SIZE, eos_token_ids=(EOS,))

    monkeypatch.setattr(Compiler, "vocabulary", vocabulary)
    monkeypatch.setattr(AsyncEngine, "start", started)
    run(test)  # and the event loop's end waits for none of its threads
    refused.set()
    assert read.wait(PATIENCE) and told_first == [True]


def test_what_the_engine_says_of_its_model_counts() -> None:
    async def test() -> None:
        async with serving(load=False) as running:
            await running.server.load(VOCAB_SIZE, eos_token_ids=(EOS, EOS + 1))
            served = running.server.servicer.serving
            assert served is not None
            ends = served.model.eos_token_ids
            assert EOS + 1 not in ends and served.validator.constraints.parts[2] == ends

    run(test)
