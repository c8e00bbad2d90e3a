"""The embedded model behind a real channel: the whole path, on the CPU's kernels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from support.harness import Running, ask, generate, run, settings

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.service.app.server import Server
from quire.service.models.resolve import resolve
from quire.service.rpc.served_model import ServedModel
from quire.service.rpc.validation import Validator
from quire.service.text import tokenizer as tokenizers
from quire.service.text.chat_template import ChatTemplate
from quire.service.text.workers import PromptWorkers
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
            assert stats.cache.dtype == "float32"
            received = len(first.ids()) + len(second.ids())
            assert stats.tokens.delivered == received

    run(test)


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.long), 1.0])
def test_a_broken_stream_goes_on_as_if_it_had_not_broken(temperature: float) -> None:
    async def test() -> None:
        async with pocket() as running:
            params = {"temperature": temperature, "seed": 11, "repetition_penalty": 1.2}
            whole = await generate(running, story(**params))
            ids = whole.ids()
            assert len(ids) > 17
            cuts = range(1, 18)
            asked = [story(resume_token_ids=ids[:cut], **params) for cut in cuts]
            rests = await asyncio.gather(*(generate(running, one) for one in asked))
            for cut, rest in zip(cuts, rests, strict=True):
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
    async def straight(engine: AsyncEngine, validator: Validator, seed: int) -> list[int]:
        accepted = await validator.validate(story(temperature=1, seed=seed), engine.new_key())
        outputs = [o async for batch in engine.generate(accepted.generation) for o in batch]
        return [token for output in outputs for token in output.token_ids]

    async def test() -> None:
        resolved = resolve(settings(SMALL).engine)
        tokenizer = tokenizers.load(resolved.tokenizer_directory, VOCAB_SIZE)
        async with pocket() as running:
            answers = await asyncio.gather(
                *(generate(running, story(temperature=1, seed=i)) for i in range(8))
            )
        async with pocket() as running:  # another engine: nothing of the answers is cached
            engine = running.engine
            model = ServedModel("pocket", engine.info, tokenizer, ChatTemplate.of(tokenizer))
            validator = Validator(model, PromptWorkers())
            for seed, answer in enumerate(answers):
                ids = await straight(engine, validator, seed)
                assert ids == answer.ids() != []
                text = tokenizer.backend.decode(ids, skip_special_tokens=True)
                assert text == answer.text()

    run(test)
