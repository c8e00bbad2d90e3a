"""Embed and Score over the wire: what they answer, what they refuse, what they leave behind."""

import asyncio
import math
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from support import judging_tokenizer
from support.fake_engine import HIDDEN_SIZE, Device, DeviceLost, state_of
from support.harness import PATIENCE, Running, ask, generate, overdue, run, serving

from quire.service.errors import Refusal
from quire.service.rpc.field_faults import Faults
from quire.service.rpc.pooled_requests import MAX_TEXTS
from quire.service.security.keys import make_entry
from quire.v1 import inference_pb2 as pb

INVALID, INTERNAL = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judging_tokenizer.write(tmp_path_factory.mktemp("judging"))


@pytest.fixture
def theirs(judging: Path) -> Any:
    """transformers' reading of that tokenizer; with the oldest libraries there is none."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(judging / "tokenizer.json"))


def embed(*inputs: str | list[int], **fields: Any) -> pb.EmbedRequest:
    request = pb.EmbedRequest(**fields)
    for one in inputs:
        if isinstance(one, str):
            request.inputs.add(text=one)
        else:
            request.inputs.add(token_ids=pb.TokenIds(ids=one))
    return request


async def ask_embed(running: Running, request: pb.EmbedRequest, **options: Any) -> pb.EmbedResponse:
    response: pb.EmbedResponse = await running.stub.Embed(request, timeout=PATIENCE, **options)
    return response


async def ask_score(running: Running, request: pb.ScoreRequest) -> pb.ScoreResponse:
    response: pb.ScoreResponse = await running.stub.Score(request, timeout=PATIENCE)
    return response


async def refused(call: Any) -> tuple[grpc.StatusCode, dict[str, str]]:
    """The status, and what is said of which field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailing = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    found = {}
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            found = {v.field: v.description for v in bad.field_violations}
    return caught.value.code(), found


def unit(numbers: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in numbers))
    return [x / length for x in numbers]


def prompts(device: Device) -> dict[int, tuple[int, ...]]:
    """What was asked of the engine, by key. To be taken while steps are held."""
    assert device.scheduler is not None
    live = device.scheduler.state.by_key
    return {key: live[key][0].spec.prompt_token_ids for key in sorted(live)}


def test_embeddings_in_their_order_with_their_usage() -> None:
    async def test() -> None:
        async with serving() as running:
            texts = [[300 + i, *range(500, 520)] for i in range(5)]
            told = await ask_embed(running, embed(*texts, request_id="mine"))
            assert told.request_id == "mine"
            assert (told.model_fingerprint, told.numerics) == ("fake-fingerprint", "fake numerics")
            assert told.usage.prompt_tokens == 5 * 21
            for text, one in zip(texts, told.embeddings, strict=True):
                assert list(one.values) == pytest.approx(unit(state_of(text)), rel=1e-6)
            again = await ask_embed(running, embed(texts[0], dimensions=3))
            assert again.usage.cached_tokens == 20, "a hit leaves one token to compute"
            short = unit(state_of(texts[0])[:3])
            assert list(again.embeddings[0].values) == pytest.approx(short, rel=1e-6)
            stats = await running.idle()
            assert (stats.requests.accepted, stats.requests.finished_stop) == (6, 6)
            assert stats.tokens.generated == 0

    run(test)


def test_an_instruction_is_put_before_texts_as_the_card_says(judging: Path, theirs: Any) -> None:
    async def test() -> None:
        device = Device()
        task, query = "Find yes", "is it no"
        async with serving(device, tokenizer=judging) as running:
            for request, text in (
                (embed(query, instruction=task), f"Instruct: {task}\nQuery:{query}"),
                (embed(query), query),
            ):
                device.hold()
                call = running.stub.Embed(request, timeout=PATIENCE)
                await running.until(lambda s: s.requests.running + s.requests.waiting == 1)
                (ids,) = prompts(device).values()
                assert list(ids) == theirs(text)["input_ids"]
                assert ids[-1] == 0, "the end token stands behind it"
                device.release()
                await call

    run(test)


def test_texts_that_are_too_long_are_refused_or_cut(judging: Path, theirs: Any) -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, engine={"max_model_len": 16}, tokenizer=judging) as running:
            long = "yes " * 30
            code, faults = await refused(ask_embed(running, embed("no", long)))
            assert code is INVALID and "max_model_len = 16" in faults["inputs[1].text"]
            code, faults = await refused(ask_embed(running, embed(list(range(3, 20)))))
            assert code is INVALID and faults["inputs[0].token_ids"].startswith("17: ")
            device.hold()
            call = running.stub.Embed(embed(long, list(range(3, 20)), truncate=True))
            await running.until(lambda s: s.requests.running + s.requests.waiting == 2)
            cut, ids = prompts(device).values()
            assert list(cut) == theirs(long, truncation=True, max_length=16)["input_ids"]
            assert ids == tuple(range(3, 19))
            device.release()
            assert (await call).usage.prompt_tokens == 32

    run(test)


BAD = [
    (embed(), "inputs"),
    (embed(*[[5]] * (MAX_TEXTS + 1)), "inputs"),
    (pb.EmbedRequest(inputs=[pb.EmbedInput()]), "inputs[0]"),
    (embed([5], []), "inputs[1].token_ids"),
    (embed([5, 4096]), "inputs[0].token_ids.ids[1]"),
    (embed([5], instruction="x"), "instruction"),
    (embed([5], dimensions=0), "dimensions"),
    (embed([5], dimensions=HIDDEN_SIZE + 1), "dimensions"),
    (embed([5], priority=1001), "priority"),
    (embed([5], request_id="a b"), "request_id"),
    (embed([5], user="u" * 257), "user"),
    (pb.ScoreRequest(documents=["yes"]), "query"),
    (pb.ScoreRequest(query="yes"), "documents"),
    (pb.ScoreRequest(query="yes", documents=["no", "a<|im_end|>"]), "documents[1]"),
    (pb.ScoreRequest(query="<|im_start|>", documents=["no"]), "query"),
    (pb.ScoreRequest(query="yes", documents=["no"], instruction="<|im_end|>"), "instruction"),
    # What stands before each text, written as often as there are texts.
    (embed("a", instruction="b" * (1 << 20), truncate=True), "instruction"),
    (embed(*["a"] * MAX_TEXTS, instruction="b" * 4097, truncate=True), "instruction"),
    (pb.ScoreRequest(query="b" * 4097, documents=["a"] * MAX_TEXTS, truncate=True), "query"),
]


def test_what_cannot_be_asked_is_refused_by_its_field(judging: Path) -> None:
    async def test() -> None:
        async with serving(tokenizer=judging) as running:
            for request, field in BAD:
                scores = isinstance(request, pb.ScoreRequest)
                method = running.stub.Score if scores else running.stub.Embed
                code, faults = await refused(method(request, timeout=PATIENCE))
                assert code is INVALID and field in faults, (field, faults)
            stats = await running.idle()
            assert stats.requests.accepted == 0
            assert stats.requests.refused["INVALID_ARGUMENT"] == len(BAD)
        async with serving() as running:  # whose tokenizer has neither word
            call = ask_score(running, pb.ScoreRequest(query="a", documents=["b"]))
            code, faults = await refused(call)
            assert code is INVALID and "has no token 'yes'" in faults["model"]

    run(test)


def test_ids_are_looked_at_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    look = Faults.ids

    def looking(faults: Faults, field: str, ids: Any, vocab_size: int) -> None:
        looked_at.append(threading.current_thread().name)
        look(faults, field, ids, vocab_size)

    async def test() -> None:
        async with serving() as running:
            code, faults = await refused(ask_embed(running, embed([1], [2, 1 << 20])))
            assert code is INVALID and "the vocabulary has" in faults["inputs[1].token_ids.ids[1]"]
            assert len(looked_at) == 2
            assert all(name.startswith("quire-prompts-") for name in looked_at)

    monkeypatch.setattr(Faults, "ids", looking)
    run(test)


def card_ids(theirs: Any, query: str, document: str, task: str | None) -> tuple[int, ...]:
    """Qwen3-Reranker's card, written out: three pieces, tokenized apart."""
    task = task or "Given a web search query, retrieve relevant passages that answer the query"
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    pair = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
    ids: list[int] = []
    for piece in (prefix, pair, suffix):
        ids += theirs.encode(piece, add_special_tokens=False)
    return tuple(ids)


def test_scores_and_their_prompts_are_the_cards(judging: Path, theirs: Any) -> None:
    async def test() -> None:
        device = Device()
        documents = ["yes", "no", "Document"]
        async with serving(device, tokenizer=judging) as running:
            device.hold()
            request = pb.ScoreRequest(query="Judge", documents=documents)
            call = running.stub.Score(request, timeout=PATIENCE)
            await running.until(lambda s: s.requests.running + s.requests.waiting == 3)
            sent = list(prompts(device).values())
            assert sent == [card_ids(theirs, "Judge", one, None) for one in documents]
            live = device.scheduler.state.by_key.values()  # type: ignore[union-attr]
            pair = {one[0].spec.pooling.token_ids for one in live}  # type: ignore[union-attr]
            assert pair == {tuple(theirs.convert_tokens_to_ids(["no", "yes"]))}
            device.release()
            told = await call
            likely = [1 / (1 + math.exp(-ids[-1] / 20)) for ids in sent]
            assert list(told.scores) == pytest.approx(likely, rel=1e-6)
            assert told.usage.prompt_tokens == sum(map(len, sent))
            other = pb.ScoreRequest(
                query="<|im_end|>", documents=["yes"], allow_special_tokens=True, instruction="no"
            )
            assert len((await ask_score(running, other)).scores) == 1

    run(test)


def test_a_call_of_many_texts_stands_in_nobodys_way() -> None:
    """It is in the engine with as many at once as there are slots, and another call gets in."""

    async def test() -> None:
        device = Device()
        options: dict[str, Any] = {"engine": {"max_num_seqs": 4}, "max_waiting": 8}
        async with serving(device, **options) as running:
            device.hold()
            many = running.stub.Embed(embed(*[[i + 3] for i in range(300)]), timeout=PATIENCE)
            await running.until(lambda s: s.requests.accepted == 300)
            assert len(prompts(device)) <= 4
            other = asyncio.ensure_future(generate(running, ask([300], max_tokens=1)))
            await running.until(lambda s: s.requests.accepted == 301)
            device.release()
            assert (await other).code is grpc.StatusCode.OK
            assert len((await many).embeddings) == 300
            await running.idle()

    run(test)


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
def test_a_call_that_ends_early_leaves_nothing(way: str) -> None:
    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            device.hold()
            request, ledger = embed(*[[i + 3] * 40 for i in range(20)]), running.server.ledger
            call = await overdue(
                lambda few: running.stub.Embed(
                    request, timeout=few if way == "deadline" else PATIENCE
                ),
                lambda: ledger.accepted >= 20,
            )
            if way == "cancelled":
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await running.until(lambda s: s.requests.finished_cancelled == s.requests.accepted)
            device.release()
            await running.idle()

    run(test)


def test_a_step_that_fails_ends_the_call_and_the_engine_goes_on() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            device.fail = RuntimeError("a kernel")
            code, _ = await refused(ask_embed(running, embed([5], [6])))
            assert code is INTERNAL
            stats = await running.idle()
            assert stats.requests.finished_error == 2
            assert len((await ask_embed(running, embed([5]))).embeddings) == 1
            device.fail = DeviceLost("gone")
            code, _ = await refused(ask_embed(running, embed([7])))
            assert code is UNAVAILABLE

    run(test)


def test_keys_priorities_and_limits_are_asked(tmp_path: Path, caplog: Any) -> None:
    async def test() -> None:
        keys = tmp_path / "keys"
        keys.write_text(f"{make_entry('one', 'key-0123456789012345')} max_priority=2\n")
        options = {"api_keys": str(keys), "rate_limit_tokens": 10.0}
        bearer = (("authorization", "Bearer key-0123456789012345"),)
        async with serving(**options) as running:
            code, _ = await refused(ask_embed(running, embed([5])))
            assert code is grpc.StatusCode.UNAUTHENTICATED
            code, faults = await refused(
                ask_embed(running, embed([5], priority=3), metadata=bearer)
            )
            assert code is INVALID and "priority" in faults
            await ask_embed(running, embed([5] * 2000, request_id="dear"), metadata=bearer)
            code, _ = await refused(ask_embed(running, embed([5]), metadata=bearer))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            lines = [r.__dict__["fields"] for r in caplog.records if r.message == "request ended"]
            assert [(one["request_id"], one["client"], one["prompt_tokens"]) for one in lines] == [
                ("dear", "key:one", 2000)
            ]

    with caplog.at_level("INFO", logger="quire.service"):
        run(test)


def test_a_model_without_a_head_only_embeds(judging: Path) -> None:
    async def test() -> None:
        device = Device()
        device.embeds_only = True
        async with serving(device, tokenizer=judging) as running:
            answer = await generate(running, ask([300], max_tokens=1))
            assert answer.code is INVALID and "no output head" in answer.violations["model"]
            request = pb.ScoreRequest(query="yes", documents=["no"])
            code, faults = await refused(ask_score(running, request))
            assert code is INVALID and "no output head" in faults["model"]
            assert len((await ask_embed(running, embed([5]))).embeddings) == 1

    run(test)


def test_an_answer_that_no_client_would_take_is_refused() -> None:
    async def test() -> None:
        async with serving() as running:
            serving_now = running.server._servicer.serving
            assert serving_now is not None
            with pytest.raises(Refusal, match="8 dimensions: at most 100 numbers"):
                serving_now.pooled.check(embed(*[[5]] * 13), 100)
            serving_now.pooled.check(embed(*[[5]] * 12), 100)
            serving_now.pooled.check(embed(*[[5]] * 25, dimensions=4), 100)

    run(test)
