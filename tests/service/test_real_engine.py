"""The embedded model behind a real channel: the whole path, on the CPU's kernels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from harness import Running, ask, generate, run, settings
from rich.console import Console

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, RequestError
from quire.service.app import batch, bench_cache
from quire.service.app.local import local
from quire.service.app.server import Server
from quire.service.models.resolve import resolve
from quire.v1 import inference_pb2 as pb

VOCAB_SIZE = 4096
SMALL = {"model": "pocket", "num_blocks": 64, "block_size": 16, "device": "cpu"}


@asynccontextmanager
async def pocket() -> AsyncIterator[Running]:
    chosen = settings(SMALL)
    resolved = resolve(chosen.engine)
    engine = AsyncEngine(ThreadLink(chosen.engine.replace(model=resolved.engine_model)))
    server = Server(chosen, resolved, engine)
    await server.open(2048)
    await server.load(VOCAB_SIZE)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
    try:
        yield Running(server, None, engine, channel)  # type: ignore[arg-type]
    finally:
        await channel.close()
        await server.stop()


def story(**fields: object) -> pb.GenerateRequest:
    request = ask(max_tokens=40, **fields)
    request.chat.messages.add(role="user", content="Tell me a short story about a cat.")
    return request


def test_the_second_asking_finds_its_prefix_and_says_the_same() -> None:
    async def test() -> None:
        async with pocket() as running:
            first = await generate(running, story(temperature=0))
            second = await generate(running, story(temperature=0))
            assert first.code is second.code is grpc.StatusCode.OK
            assert first.ids() == second.ids()
            assert first.text() == second.text() != ""
            assert first.started[0].cached_tokens == 0
            assert second.started[0].cached_tokens == 16
            stats = await running.idle()
            assert stats.model.name == "pocket"
            assert stats.cache.prefix_tokens_hit == 16
            received = len(first.ids()) + len(second.ids())
            assert stats.tokens.delivered == received

    run(test)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_stream_goes_on_as_if_it_had_not_broken(temperature: float) -> None:
    async def test() -> None:
        async with pocket() as running:
            params = {"temperature": temperature, "seed": 11, "repetition_penalty": 1.2}
            whole = await generate(running, story(**params))
            ids = whole.ids()
            assert len(ids) > 17
            for cut in range(1, 18):
                rest = await generate(running, story(resume_token_ids=ids[:cut], **params))
                assert ids[:cut] + rest.ids() == ids
                assert whole.text().endswith(rest.text())
                assert rest.finished[0].reason == whole.finished[0].reason

    run(test)


def test_logprobs_are_of_the_chosen_tokens() -> None:
    async def test() -> None:
        async with pocket() as running:
            answer = await generate(running, story(temperature=0, logprobs=3))
            logprobs = [x for d in answer.deltas for x in d.logprobs]
            assert [x.token_id for x in logprobs] == answer.ids()
            for entry in logprobs:
                assert entry.rank == 1 and entry.top[0].token_id == entry.token_id
                assert entry.logprob == pytest.approx(entry.top[0].logprob)
                assert entry.logprob <= 0
                assert len(entry.top) == 3
            joined = b"".join(x.bytes for x in logprobs if x.token_id > 2)
            assert joined.decode() == answer.text()

    run(test)


def test_the_wire_and_the_engine_say_the_same() -> None:
    async def test() -> None:
        async with pocket() as running:
            answers = await asyncio.gather(
                *(generate(running, story(temperature=1, seed=i)) for i in range(8))
            )
        async with local(EngineConfig(**SMALL)) as engine:
            for seed, answer in enumerate(answers):
                straight = await engine.complete(story(temperature=1, seed=seed))
                assert list(straight.ids) == answer.ids()
                assert straight.text == answer.text()
            with pytest.raises(RequestError, match="max_tokens"):
                await engine.complete(ask([300], max_tokens=0))

    run(test)


def test_a_batch_is_answered_and_the_second_half_finds_the_system_message() -> None:
    async def test() -> None:
        options = batch.BatchOptions(prompts=6, max_tokens=4)
        async with local(EngineConfig(**{**SMALL, "num_blocks": 200})) as engine:
            with batch.Progress(console=Console(quiet=True)) as bar:
                bar.add_task("answers", total=6)
                first, second = [
                    await batch.answer(engine, questions, options, bar)
                    for questions in batch.batches(options.prompts)
                ]
                assert bar.finished
            assert len(first.completions) == len(second.completions) == 3
            assert 0 < first.tokens <= 12
            assert second.prefix_hit >= 3 * 128
            assert second.prefix_hit < second.prefix_queried

    run(test)
    with pytest.raises(ConfigError, match="prompts"):
        batch.BatchOptions(prompts=61)


def test_bench_cache_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    config = EngineConfig(**{**SMALL, "num_blocks": 300})
    assert bench_cache.run_bench(config, bench_cache.BenchOptions(requests=3, tokens=4)) == 0
    printed = capsys.readouterr().out
    for words in ("prefix cache", "times as fast", "Quire's paged cache", "no cache"):
        assert words in printed
