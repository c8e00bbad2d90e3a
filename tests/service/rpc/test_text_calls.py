"""Tokenize and Detokenize: Generate's own reading of a prompt, off the loop, in turn, bounded."""

import asyncio
import threading
from typing import Any

import grpc
import pytest
from support.harness import PATIENCE, Running, ask, generate, run, serving

from quire.service.errors import Refusal
from quire.service.rpc import text_calls
from quire.service.rpc.text_calls import text_of
from quire.service.text.tokenizer import Tokenizer
from quire.v1 import inference_pb2 as pb

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
CHAT = pb.Chat(messages=[pb.ChatMessage(role="user", content="Who keeps the light?")])


def tokenize(running: Running, text: str | None = None, chat: pb.Chat | None = None) -> Any:
    return running.stub.Tokenize(pb.TokenizeRequest(text=text, chat=chat), timeout=PATIENCE)


def detokenize(running: Running, ids: list[int]) -> Any:
    return running.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids), timeout=PATIENCE)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


class Gate:
    """Tokenizing waits for `open`; `entered` says that it has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        encoding = Tokenizer.encoding

        def gated(tokenizer: Tokenizer, text: str, **options: bool) -> Any:
            self.threads.add(threading.get_ident())
            self.entered.set()
            assert self.open.wait(PATIENCE)
            return encoding(tokenizer, text, **options)

        monkeypatch.setattr(Tokenizer, "encoding", gated)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, PATIENCE)


@pytest.mark.parametrize(
    "prompt", [{"text": "A lamp, a light — 灯台 🌊"}, {"chat": CHAT}], ids=["text", "chat"]
)
def test_the_ids_are_those_that_generate_computes(prompt: dict[str, Any]) -> None:
    async def test() -> None:
        async with serving() as running:
            told = await tokenize(running, **prompt)
            assert told.max_model_len == 2048
            asked = ask(max_tokens=len(told.token_ids), ignore_eos=True, **prompt)
            answer = await generate(running, asked)  # the fake says its prompt back
            assert answer.started[0].prompt_tokens == len(told.token_ids)
            assert answer.ids() == list(told.token_ids)
            back = await detokenize(running, list(told.token_ids))
            assert back.text == answer.text()
            if "text" in prompt:
                assert back.text == prompt["text"]

    run(test)


def test_a_prompt_longer_than_the_model_is_told_all_the_same() -> None:
    async def test() -> None:
        async with serving(engine={"max_model_len": 32}) as running:
            told = await tokenize(running, "a b c d e f " * 20)
            assert len(told.token_ids) > 32 == told.max_model_len
            assert "max_model_len = 32" in (await generate(running, ask(text="a " * 60))).details

    run(test)


def test_what_cannot_be_read_names_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_calls, "MAX_IDS", 40)
    strange = pb.Chat(messages=[pb.ChatMessage(role="robot", content="hi")])

    async def test() -> None:
        async with serving() as running:
            for call, words in (
                (tokenize(running), "prompt: is missing"),
                (tokenize(running, text=""), "text: is empty"),
                (tokenize(running, chat=strange), "chat.messages[0].role: 'robot'"),
                (tokenize(running, text="x" * 1_000_000), "long: 1000000 bytes"),
                (tokenize(running, text="a b " * 40), "at most 40 are told"),
                (detokenize(running, [300, 4096]), "token_ids[1]: 4096"),
                (detokenize(running, [300] * 41), "token_ids: 41 ids: at most 40"),
            ):
                code, details = await refused(call)
                assert code is INVALID and words in details
            assert (await detokenize(running, [])).text == ""
            rpcs = running.server.ledger.rpcs
            assert rpcs["Tokenize", "INVALID_ARGUMENT"] == 5
            assert rpcs["Detokenize", "INVALID_ARGUMENT"] == 2 and rpcs["Detokenize", "OK"] == 1

    run(test)


class Pieces:
    """As much of a tokenizer as is asked."""

    text_pieces = (b"", "é".encode()[:1], "é".encode()[1:], b"\xff" * 4, b"plain")


def test_bytes_that_are_no_characters_and_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = Pieces()
    for ids, text in (
        ([1, 2], "é"),
        ([1, 0, 2], "é"),  # a special token makes no text, and parts no character
        ([1], "\ufffd"),
        ([4, 1, 4], "plain\ufffdplain"),
    ):
        assert text_of(ids, tokenizer, 5) == text
    monkeypatch.setattr(text_calls, "MAX_TEXT_BYTES", 11)
    for ids, size in (([4, 4, 4], 15), ([3], 12)):  # U+FFFD takes three bytes for one
        with pytest.raises(Refusal, match=f"{size} bytes of text: at most 11"):
            text_of(ids, tokenizer, 5)


def test_nothing_is_tokenized_on_the_loop_and_a_call_that_has_gone_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        gate = Gate(monkeypatch)
        async with serving() as running:
            text = running.server._servicer.answers._text
            call = tokenize(running, "hello")
            await gate.wait()
            info = await running.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=PATIENCE)
            assert info.model.name == "fake"  # the loop answers meanwhile
            assert text.open == 1 and threading.get_ident() not in gate.threads
            call.cancel()
            async with asyncio.timeout(PATIENCE):
                while text.open:
                    await asyncio.sleep(0.005)
            gate.open.set()
            assert (await tokenize(running, "hello")).token_ids
            assert running.server.ledger.rpcs["Tokenize", "CANCELLED"] == 1

    run(test)


def test_places_and_limits_are_taken_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        gate = Gate(monkeypatch)
        async with serving(max_waiting=4) as running:
            held = [asyncio.ensure_future(tokenize(running, "hello")) for _ in range(4)]
            async with asyncio.timeout(PATIENCE):
                while running.server._servicer.answers._text.open < 4:
                    await asyncio.sleep(0.005)
            code, details = await refused(tokenize(running, "hello"))
            assert code is EXHAUSTED and "max_waiting = 4" in details
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            gate.open.set()
            assert len({tuple((await call).token_ids) for call in held}) == 1
        async with serving(rate_limit_requests=1e-4, rate_limit_burst_seconds=2e4) as running:
            await tokenize(running, "hello")
            await detokenize(running, [300])
            for call in (tokenize(running, "hello"), detokenize(running, [300])):
                code, details = await refused(call)
                assert code is EXHAUSTED and "rate_limit_requests" in details
            assert "rate_limit_requests" in (await generate(running, ask([300]))).details

    run(test)


def test_a_drain_waits_for_what_was_begun_and_begins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        gate = Gate(monkeypatch)
        async with serving(drain_seconds=PATIENCE) as running:
            call = asyncio.ensure_future(tokenize(running, "hello"))
            await gate.wait()
            draining = asyncio.create_task(running.server.drain())
            await asyncio.sleep(0)
            for late in (tokenize(running, "hello"), detokenize(running, [300])):
                assert (await refused(late))[0] is UNAVAILABLE
            assert not draining.done()
            gate.open.set()
            await draining
            assert (await call).token_ids

    run(test)
