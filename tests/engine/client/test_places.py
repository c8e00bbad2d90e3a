"""An engine on a thread and one in a process of its own: the same requests, the same answers."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from support import programs
from support.patience import PATIENCE

from quire.engine.client import child as child_module
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.child import Child
from quire.engine.client.in_process import ProcessLink
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError, EngineDeadError, RequestError
from quire.engine.loop.stats import EngineStats
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenLogprob
from quire.service.app.placement import program
from quire.service.settings import ServiceConfig, Settings

CONFIG = EngineConfig(model="random:tiny", num_blocks=64, block_size=16, device="cpu")
PROGRAM = program(Settings(CONFIG, ServiceConfig(log_level="warning")))


@asynccontextmanager
async def on_a_thread(config: EngineConfig = CONFIG) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(ThreadLink(config))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@asynccontextmanager
async def in_a_process(
    config: EngineConfig = CONFIG, seen: list[int] | None = None, *, afresh: bool = False
) -> AsyncIterator[AsyncEngine]:
    """seen: gets the child's pid."""
    with contextlib.nullcontext() if afresh else programs.forking(child_module):
        child = Child(PROGRAM)
    if seen is not None:
        seen.append(child.pid)
    try:
        engine = AsyncEngine(ProcessLink(config, child))
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()
    finally:
        child.end()


Place = Callable[[], contextlib.AbstractAsyncContextManager[AsyncEngine]]


async def bounded(test: Awaitable[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await test


def run(test: Awaitable[Any]) -> Any:
    return asyncio.run(bounded(test))


@dataclass
class Answer:
    """Of one index: everything but times."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    started: bool = False
    cached_tokens: int = 0
    finish: FinishReason | None = None
    stop_token_id: int | None = None


async def answers(
    engine: AsyncEngine, request: GenerationRequest, end_after: int | None = None
) -> list[Answer]:
    """Of each index. end_after: as a stop string found after so many tokens would."""
    found = [Answer() for _ in range(request.n)]
    async for outputs in engine.generate(request):
        for output in outputs:
            answer = found[output.index]
            answer.tokens += output.token_ids
            answer.logprobs += output.logprobs or []
            answer.started |= output.started
            answer.cached_tokens = max(answer.cached_tokens, output.cached_tokens)
            answer.finish, answer.stop_token_id = output.finish, output.stop_token_id
            if end_after is not None and len(answer.tokens) >= end_after:
                del answer.tokens[end_after:]
                engine.finish(request.key, output.index, end_after)
    return found


PROMPTS = [tuple(range(10 + i, 30 + 3 * i)) for i in (0, 1, 2, 3, 4, 4)]  # the last finds a prefix
MIXED = [
    SamplingParams(max_tokens=24),
    SamplingParams(max_tokens=24, temperature=0.9, seed=11, top_k=50),
    SamplingParams(
        max_tokens=9, temperature=1.0, seed=2**64 - 1, repetition_penalty=1.3, logprobs=3
    ),
    SamplingParams(max_tokens=12, logprobs=0),
    SamplingParams(
        max_tokens=40, temperature=1.2, seed=3, stop_token_ids=tuple(range(0, 4096, 40))
    ),
    SamplingParams(max_tokens=5, min_p=0.1, temperature=0.7, seed=5, top_p=0.8),
]


async def idle(engine: AsyncEngine) -> EngineStats:
    """The statistics once all blocks are back and every step has been applied."""
    while (stats := engine.stats()).blocks_in_use or stats.running:
        await asyncio.sleep(0.005)
    return stats


async def everything(engine: AsyncEngine) -> dict[str, Any]:
    """One of each, one after the other, so that the books are the same however fast it was."""
    said, books = [], []
    for prompt, params in zip(PROMPTS, MIXED, strict=True):
        n = 3 if params.temperature == 0.9 else 1
        key = engine.new_key()
        said.append(await answers(engine, GenerationRequest(key, prompt, params, n=n)))
        stats = await idle(engine)
        books.append(stats._replace(memory_allocated=0, memory_peak=0))
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    cut = GenerationRequest(engine.new_key(), PROMPTS[0], long)
    said.append(await answers(engine, cut, end_after=6))
    left = GenerationRequest(engine.new_key(), PROMPTS[1], long)
    async with aclosing(engine.generate(left)) as stream:
        async for _ in stream:
            break
    stats = await idle(engine)
    with pytest.raises(RequestError) as refused:
        too_long = SamplingParams(max_tokens=5000)
        await answers(engine, GenerationRequest(engine.new_key(), PROMPTS[0], too_long))
    block_map = await engine.block_map()
    times = engine.step_times()
    assert times is not None
    assert sum(h.count for h in times.histograms.values()) == stats.steps_total
    assert stats.blocks_free == stats.blocks_total == len(block_map)
    return {
        "said": said,
        "refused": str(refused.value),
        "info": engine.info,
        "books": books,
        "block map": block_map[:1],
    }


@dataclass
class Placed:
    """An engine that has done one of each, and goes on: a process takes seconds to start."""

    runner: asyncio.Runner
    engine: AsyncEngine
    told: dict[str, Any]

    def run(self, test: Awaitable[Any]) -> None:
        self.runner.run(bounded(test))


@contextlib.contextmanager
def placed_by(place: Place) -> Iterator[Placed]:
    with asyncio.Runner() as runner:
        life = place()
        engine = runner.run(bounded(life.__aenter__()))
        try:
            yield Placed(runner, engine, runner.run(bounded(everything(engine))))
        finally:
            runner.run(bounded(life.__aexit__(None, None, None)))


@pytest.fixture(scope="module")
def thread() -> Iterator[Placed]:
    with placed_by(on_a_thread) as placed:
        yield placed


@pytest.fixture(scope="module")
def seen() -> list[int]:
    """The pid of `process`."""
    return []


@pytest.fixture(scope="module")
def process(seen: list[int]) -> Iterator[Placed]:
    with placed_by(lambda: in_a_process(seen=seen)) as placed:
        yield placed
    assert gone(seen[0])


@pytest.fixture(params=["thread", "process"])
def placed(request: pytest.FixtureRequest) -> Placed:
    chosen: Placed = request.getfixturevalue(request.param)
    return chosen


def test_the_same_requests_get_the_same_answers_and_the_same_books(
    thread: Placed, process: Placed
) -> None:
    told = thread.told
    assert process.told == told
    assert [len(answer) for answer in told["said"]] == [1, 3, 1, 1, 1, 1, 1]
    assert told["books"][-1].prefix_tokens_hit > 0 and told["books"][-1].discarded > 0
    assert any(a.stop_token_id is not None for one in told["said"] for a in one)


def test_many_at_once_say_what_each_says_alone(placed: Placed) -> None:
    engine = placed.engine

    async def test() -> None:
        params = [SamplingParams(max_tokens=30, temperature=0.8, seed=i) for i in range(40)]

        async def one(i: int) -> list[Answer]:
            request = GenerationRequest(engine.new_key(), PROMPTS[i % 6], params[i])
            return await answers(engine, request)

        before = engine.stats().generated
        together = await asyncio.gather(*(one(i) for i in range(40)))
        for i in range(0, 40, 13):
            (alone,), (crowd,) = await one(i), together[i]
            assert alone.tokens == crowd.tokens and len(alone.tokens) == 30
        assert engine.stats().generated - before >= 40 * 30

    placed.run(test())


def test_a_flush_forgets_a_prefix_and_each_caller_hears_of_their_own(placed: Placed) -> None:
    engine = placed.engine

    async def test() -> None:
        async def cached() -> int:
            request = GenerationRequest(engine.new_key(), PROMPTS[5], MIXED[0])
            (answer,) = await answers(engine, request)
            await idle(engine)
            return answer.cached_tokens

        await engine.flush_cache()
        assert (await cached(), await cached() > 0) == (0, True)
        held = engine.stats().blocks_cached
        gone = asyncio.create_task(engine.flush_cache())
        await asyncio.sleep(0)
        gone.cancel()
        told = await asyncio.gather(engine.flush_cache(), engine.flush_cache())
        assert held > 0 and told == [0, 0]  # the one that nobody waits for found them
        assert await cached() == 0
        left = engine.stats().blocks_cached
        assert left > 0 and await engine.flush_cache() == left
        assert engine.stats().blocks_cached == 0

    placed.run(test())


def test_what_cannot_be_built_is_told_in_the_same_words() -> None:
    small = EngineConfig(model="random:tiny", cpu_kv_gib=1e-6, device="cpu")
    words = []
    for place in (on_a_thread, in_a_process):

        async def test(place: Any = place) -> None:
            async with place(small):
                raise AssertionError("it was built")

        with pytest.raises(CapacityError) as caught:
            run(test())
        words.append(str(caught.value))
    assert words[0] == words[1]


def gone(pid: int) -> bool:
    """No process, and no zombie either."""
    return not psutil.pid_exists(pid)


def test_a_child_that_is_killed_ends_every_stream_and_is_reaped() -> None:
    seen: list[int] = []

    async def test() -> None:
        async with in_a_process(seen=seen, afresh=True) as engine:
            params = SamplingParams(max_tokens=1000, ignore_eos=True)
            stream = engine.generate(GenerationRequest(engine.new_key(), (5,) * 8, params))
            await anext(stream)
            os.kill(seen[0], signal.SIGKILL)
            with pytest.raises(EngineDeadError):
                async for _ in stream:
                    pass
            assert await engine.wait_dead()
            with pytest.raises(EngineDeadError):
                await engine.block_map()
            with pytest.raises(EngineDeadError):
                await engine.flush_cache()
            with pytest.raises(EngineDeadError):
                await anext(engine.generate(GenerationRequest(engine.new_key(), (5,), params)))

    run(test())
    assert gone(seen[0])


def test_a_child_that_is_killed_while_it_builds_is_a_dead_engine() -> None:
    async def test() -> None:
        child = Child(PROGRAM)
        try:
            engine = AsyncEngine(ProcessLink(CONFIG, child))
            starting = asyncio.create_task(engine.start())
            child.kill()
            with pytest.raises(EngineDeadError):
                await starting
            await engine.stop()
        finally:
            child.end()
        assert gone(child.pid)

    run(test())


def test_a_stop_while_it_is_built_ends_the_start() -> None:
    async def test() -> None:
        child = Child(PROGRAM)
        try:
            engine = AsyncEngine(ProcessLink(CONFIG, child))
            starting = asyncio.create_task(engine.start())
            await asyncio.sleep(0)
            engine.give_up()
            await engine.stop()
            with pytest.raises(EngineDeadError):
                await starting
        finally:
            child.end()

    run(test())


def test_an_engine_that_was_never_started_can_be_stopped() -> None:
    async def test() -> None:
        child = Child(PROGRAM)
        await AsyncEngine(ProcessLink(CONFIG, child)).stop()
        assert gone(child.pid)
        child.end()

    run(test())


def test_a_frozen_child_shows_as_busy_even_if_it_was_idle(process: Placed, seen: list[int]) -> None:
    engine = process.engine

    async def test() -> None:
        await engine.block_map()
        while engine.busy_since() is not None:
            await asyncio.sleep(0.005)
        os.kill(seen[0], signal.SIGSTOP)
        try:
            asked = asyncio.create_task(engine.block_map())
            while engine.busy_since() is None:
                await asyncio.sleep(0.005)
            since = engine.busy_since()
            await asyncio.sleep(0)
            assert engine.busy_since() == since and not asked.done()
        finally:
            os.kill(seen[0], signal.SIGCONT)
        assert len(await asked) == 64
        while engine.busy_since() is not None:
            await asyncio.sleep(0.005)

    process.run(test())
