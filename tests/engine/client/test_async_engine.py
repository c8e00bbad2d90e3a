"""The asyncio engine over a link that the test holds in its hands."""

import asyncio

from support.patience import PATIENCE
from support.scripted_link import ScriptedLink

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.loop.commands import Abort, AskBlockMap, FlushCache, Submit
from quire.engine.request import GenerationRequest, Output, SamplingParams


def test_the_first_item_says_that_the_engine_has_been_told_and_waits_for_nothing_else() -> None:
    async def test() -> None:
        link = ScriptedLink()
        engine = AsyncEngine(link)
        await engine.start()
        request = GenerationRequest(engine.new_key(), (5, 6), SamplingParams(max_tokens=4))
        stream = engine.generate(request)
        assert await anext(stream) == []
        assert link.sent == [Submit(request)]
        started = Output(request.key, 0, started=True)
        link.say([started])
        assert await anext(stream) == [started]
        await stream.aclose()
        assert link.sent[1:] == [Abort(request.key)]

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_in_a_burst_of_calls_a_start_goes_with_the_first_words_or_with_the_answer() -> None:
    async def test() -> None:
        link = ScriptedLink()
        engine = AsyncEngine(link)
        await engine.start()
        engine._new_calls.coming = lambda: True  # type: ignore[method-assign]
        engine._new_calls._call_later = lambda _wait, _look: None  # the test answers
        params = SamplingParams(max_tokens=4)
        requests = [GenerationRequest(engine.new_key(), (5, 6), params) for _ in range(2)]
        streams = [engine.generate(request) for request in requests]
        items = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(0)
        link.say([Output(request.key, 0, started=True) for request in requests])
        link.say([Output(requests[0].key, 0, token_ids=[7])])
        ((words,), waits) = await items[0], items[1]
        assert (words.started, words.token_ids, waits.done()) == (True, [7], False)
        engine._new_calls._last_at = engine._new_calls._unanswered_since = float("-inf")
        engine._new_calls._look()
        (start,) = await waits
        assert (start.started, start.token_ids) == (True, [])
        for stream in streams:
            await stream.aclose()

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_lone_call_does_not_wait_for_the_end_of_the_turn_and_a_burst_s_calls_do() -> None:
    async def test() -> None:
        link = ScriptedLink()
        engine = AsyncEngine(link)
        await engine.start()
        params = SamplingParams(max_tokens=4)
        requests = [GenerationRequest(engine.new_key(), (5, 6), params) for _ in range(3)]
        items = [asyncio.ensure_future(anext(engine.generate(request))) for request in requests]
        await asyncio.sleep(0)
        assert link.sent == [Submit(request) for request in requests]
        assert link.flushed == 1
        for item in items:
            item.cancel()

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_answers_go_to_those_who_asked_in_their_order_whatever_they_asked() -> None:
    async def test() -> None:
        link = ScriptedLink()
        engine = AsyncEngine(link)
        await engine.start()
        calls = (engine.block_map, engine.flush_cache, engine.block_map, engine.flush_cache)
        asked = [asyncio.create_task(call()) for call in calls]  # type: ignore[call-overload]
        await asyncio.sleep(0)
        assert link.sent == [AskBlockMap(), FlushCache(), AskBlockMap(), FlushCache()]
        asked[1].cancel()  # its answer is nobody else's
        link.say([], (b"one",))
        link.say([], (3, b"two", 5))
        assert [await asked[i] for i in (0, 2, 3)] == [b"one", b"two", 5]

    asyncio.run(asyncio.wait_for(test(), PATIENCE))
