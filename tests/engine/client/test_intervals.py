"""A reader that wants few updates: first words and ends at once, the rest by the interval."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import pairwise

from support.patience import PATIENCE
from support.scripted_link import ScriptedLink

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.stream import next_tick
from quire.engine.request import FinishReason, GenerationRequest, Output, SamplingParams

NEVER = 1e9  # seconds: no clock has run for so long
Stream = AsyncGenerator[list[Output], None]
Test = Callable[[ScriptedLink, Stream, int], Awaitable[None]]


def over_a_link(interval: float, test: Test) -> None:
    """Runs the test with a call that has been handed over, and its key."""

    async def run() -> None:
        link = ScriptedLink()
        engine = AsyncEngine(link)
        await engine.start()
        request = GenerationRequest(engine.new_key(), (5, 6), SamplingParams(max_tokens=9))
        stream = engine.generate(request, interval)
        assert await anext(stream) == []
        await test(link, stream, request.key)
        await stream.aclose()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def ids_of(outputs: list[Output]) -> list[int]:
    return [one for output in outputs for one in output.token_ids]


def test_first_words_and_the_end_wait_for_nothing_and_all_between_is_joined() -> None:
    async def test(link: ScriptedLink, stream: Stream, key: int) -> None:
        link.say([Output(key, 0, token_ids=[7], started=True)])
        assert ids_of(await anext(stream)) == [7]
        rest = asyncio.ensure_future(anext(stream))
        for token in (8, 9, 10):
            link.say([Output(key, 0, token_ids=[token])])
            for _ in range(5):  # turns of the loop, in which the pacer would have woken the reader
                await asyncio.sleep(0)
            assert not rest.done()
        link.say([Output(key, 0, token_ids=[11], finish=FinishReason.LENGTH)])
        (last,) = await rest
        assert (list(last.token_ids), last.finish) == ([8, 9, 10, 11], FinishReason.LENGTH)

    over_a_link(NEVER, test)


def test_what_waits_goes_when_the_interval_is_over_though_nothing_follows() -> None:
    async def test(link: ScriptedLink, stream: Stream, key: int) -> None:
        said = [7, 8, 9, 10]
        link.say([Output(key, 0, token_ids=said[:1], started=True)])
        assert ids_of(await anext(stream)) == said[:1]
        for token in said[1:]:
            link.say([Output(key, 0, token_ids=[token])])
            assert ids_of(await anext(stream)) == [token]

    over_a_link(0.01, test)


def test_a_stream_that_ends_takes_its_timer_along() -> None:
    async def test(link: ScriptedLink, stream: Stream, key: int) -> None:
        link.say([Output(key, 0, token_ids=[7], started=True)])
        await anext(stream)
        link.say([Output(key, 0, token_ids=[8])])
        (held,) = timers()
        await stream.aclose()
        assert held.cancelled()

    def timers() -> list[asyncio.TimerHandle]:
        scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return [one for one in scheduled if one.when() > NEVER / 2]

    over_a_link(NEVER, test)


def test_all_streams_keep_to_the_same_times() -> None:
    ticks = {round(next_tick(10.0 + 0.01 * i, 0.05), 6) for i in range(20)}
    assert len(ticks) == 4
    assert all(abs(later - earlier - 0.05) < 1e-6 for earlier, later in pairwise(sorted(ticks)))
    for now in (10.0, 12.3, 86_400.7):
        tick = next_tick(now, 0.05)
        assert now < tick <= now + 0.0501
        assert next_tick(tick - 1e-6, 0.05) > tick + 0.04, "a timer that is early is on time"
