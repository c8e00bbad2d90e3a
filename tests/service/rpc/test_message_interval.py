"""The server's option on how many messages a stream is."""

import asyncio

from support.harness import ask, generate, serving

from quire.engine.client.async_engine import AsyncEngine


def test_each_stream_is_read_by_the_interval_and_says_all() -> None:
    async def test() -> None:
        async with serving(message_interval_seconds=2.5) as running:
            asked, plain = [], running.engine.generate

            def noted(request: object, interval: float = 0.0) -> object:
                asked.append(interval)
                return plain(request, interval)  # type: ignore[arg-type]

            running.engine.generate = noted  # type: ignore[assignment]
            request = ask([5, 6, 7], max_tokens=40, ignore_eos=True, ids_only=True)
            answer = await generate(running, request)
            assert asked == [2.5]
            assert len(answer.ids()) == answer.finished[0].usage.completion_tokens == 40
            assert len(answer.deltas) <= 3  # the first, the last, and one where the time fell due

    assert AsyncEngine.generate.__defaults__ == (0.0,), "a reader who says nothing has no interval"
    asyncio.run(test())
