"""The whole system over gRPC, asked for meaning: whatever the engine does inside, Pocket's answer
is the right one. Every string, name and fact is one that training never saw."""

import asyncio
from dataclasses import dataclass

import pytest
import recall
import repeat
import stories
from draw import Draw
from support.serving import Chat, answer, blocks_given_back, serving, user

from quire.clients import Delta, FinishReason, InvalidRequest, Started

FORM = "Repeat after me:\n{}"


def _strings(kind: str, tokens: int, count: int) -> list[str]:
    return [
        repeat.payload(Draw("system", kind, tokens, at), kind, tokens, held_out=True)
        for at in range(count)
    ]


@dataclass(frozen=True)
class _Remembered:
    """A conversation that states `facts` and then talks of other things for a while."""

    chat: Chat
    facts: list[recall.Fact]

    def asked(self, at: int) -> tuple[Chat, str]:
        question, expected = self.facts[at].question(self.facts[at].form)
        return [*self.chat, *user(question)], expected


def _remembered(seed: int, notes: int) -> _Remembered:
    draw = Draw("remembered", seed)
    stated = recall.facts(draw, 10, held_out=True)
    chat = [*user(recall.block(draw, stated)), {"role": "assistant", "content": "Noted."}]
    for _ in range(notes):
        text, reply = stories.note_turn(draw, 8)
        chat += [*user(text), {"role": "assistant", "content": reply}]
    return _Remembered(chat, stated)


def test_a_conversation_reads_well() -> None:
    async def scenario() -> None:
        async with serving() as client:
            chat: Chat = []
            for question, expected in (
                ("Hello!", "Hello! How can I help you?"),
                ("What is a block?", "A block is a fixed number of token slots"),
                ("What is 20 + 22?", "20 + 22 = 42"),
                ("Count from 6 to 12.", "6, 7, 8, 9, 10, 11, 12"),
                ("Thank you.", "You are welcome."),
            ):
                chat += user(question)
                text = await answer(client, chat)
                assert text.startswith(expected)
                chat.append({"role": "assistant", "content": text})

    asyncio.run(scenario())


def test_what_was_said_is_remembered_through_prefix_hits() -> None:
    async def scenario() -> None:
        async with serving(block_size=16) as client:
            told = _remembered(1, notes=4)
            for at in range(4):
                chat, expected = told.asked(at)
                events = [event async for event in client.generate(chat, temperature=0.0)]
                started = next(e for e in events if isinstance(e, Started))
                if at:
                    assert started.cached_tokens > started.prompt_tokens - 80
                text = "".join(e.text for e in events if isinstance(e, Delta))
                assert text == expected
            stats = await client.stats()
            assert stats.cache.prefix_tokens_hit > 3 * 400

    asyncio.run(scenario())


def test_what_was_said_is_remembered_through_chunks_beside_other_streams() -> None:
    async def scenario() -> None:
        async with serving(
            max_num_batched_tokens=64, max_num_seqs=8, enable_prefix_caching=False
        ) as client:
            told = [_remembered(seed, notes=4).asked(seed) for seed in range(2, 5)]
            strings = _strings("words", 40, 4)
            texts = await asyncio.gather(
                *(answer(client, user(FORM.format(text))) for text in strings),
                *(answer(client, chat) for chat, _ in told),
            )
            assert texts == [*strings, *(expected for _, expected in told)]
            stats = await client.stats()
            assert stats.steps.mixed > 10
            assert stats.tokens.prefill_computed == stats.tokens.prompt

    asyncio.run(scenario())


def test_nothing_is_lost_when_a_tiny_cache_preempts() -> None:
    async def scenario() -> None:
        # 40 blocks of 16 tokens hold about five of these twelve requests.
        async with serving(block_size=16, num_blocks=41) as client:
            strings = _strings("words", 50, 12)
            texts = await asyncio.gather(
                *(answer(client, user(FORM.format(text))) for text in strings)
            )
            assert texts == strings
            stats = await client.stats()
            assert stats.cache.preemptions > 0
            await blocks_given_back(client)

    asyncio.run(scenario())


@pytest.mark.parametrize("options", [{}, {"block_size": 16, "num_blocks": 161}])
def test_no_stream_gets_the_text_of_another(options: dict[str, int]) -> None:
    """64 at once, each asked for its own string; the second time in a cache that is too small."""

    async def scenario() -> None:
        async with serving(**options) as client:
            strings = [*_strings("words", 24, 32), *_strings("alnum", 24, 32)]
            texts = await asyncio.gather(
                *(answer(client, user(FORM.format(text))) for text in strings)
            )
            for at, text in enumerate(texts):
                others = (other for i, other in enumerate(strings) if i != at)
                assert not any(other[:12] in text for other in others)
            assert sum(map(str.__eq__, texts, strings)) >= 62
            assert all(text[:6] == asked[:6] for text, asked in zip(texts, strings, strict=True))
            assert not options or (await client.stats()).cache.preemptions > 0

    asyncio.run(scenario())


def test_a_stop_string_ends_the_text_where_it_begins() -> None:
    async def scenario() -> None:
        async with serving() as client:
            for include, expected in ((False, "3, 4, 5, 6, 7"), (True, "3, 4, 5, 6, 7, 8,")):
                [done] = await client.generate(
                    user("Count from 3 to 14."),
                    temperature=0.0,
                    stop=", 8,",
                    include_stop_str_in_output=include,
                ).completions()
                assert done.text == expected
                assert done.finished.reason is FinishReason.STOP
                assert done.finished.stop_string == ", 8,"
            [done] = await client.generate(
                user("Count from 3 to 14."), temperature=0.0, max_tokens=7
            ).completions()
            assert done.finished.reason is FinishReason.LENGTH
            assert "3, 4, 5, 6, 7".startswith(done.text)

    asyncio.run(scenario())


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_characters_of_several_tokens_arrive_whole() -> None:
    async def scenario() -> None:
        async with serving() as client:
            broken = 0
            for text in _strings("cjk", 40, 6):
                deltas = []
                async for event in client.generate(
                    user(FORM.format(text)), temperature=0.0, logprobs=0
                ):
                    if isinstance(event, Delta):
                        deltas.append(event)
                assert "".join(delta.text for delta in deltas) == text
                assert len(deltas) > 5
                pieces = [logprob.bytes for delta in deltas for logprob in delta.logprobs]
                broken += sum(not _whole(piece) for piece in pieces)
            assert broken > 0  # else nothing was at stake

    asyncio.run(scenario())


def test_n_answers_of_one_prompt() -> None:
    async def scenario() -> None:
        async with serving(block_size=16) as client:
            [text] = _strings("words", 40, 1)
            same = await client.generate(
                user(FORM.format(text)), n=4, temperature=0.0
            ).completions()
            assert [done.text for done in same] == [text] * 4
            told = await client.generate(
                user("Tell me a story about a fox."), n=6, temperature=1.0, seed=5
            ).completions()
            assert [done.index for done in told] == list(range(6))
            assert len({done.text for done in told}) == 6
            assert all("fox" in done.text for done in told)
            assert all(done.finished.reason is FinishReason.STOP for done in told)

    asyncio.run(scenario())


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    async def scenario() -> None:
        async with serving() as client:
            with pytest.raises(InvalidRequest, match="2048"):
                await answer(client, user("one two three " * 1000))
            assert await answer(client, user("What is 1 + 1?")) == "1 + 1 = 2"

    asyncio.run(scenario())
