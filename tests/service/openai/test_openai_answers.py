"""The contract's events as OpenAI's objects: thoughts, calls of tools, and how it all joins."""

import json
import tracemalloc
from typing import Any

import pytest

from quire.clients.openai.answers import Answer
from quire.clients.openai.parsed_body import ParsedBody, StreamUsage
from quire.service.errors import Refusal
from quire.service.openai.chunks import Chunks, event
from quire.service.openai.logprob_budget import LogprobBudget
from quire.v1 import inference_pb2 as pb

STARTED = pb.Started(request_id="r", model_fingerprint="f", prompt_tokens=7, cached_tokens=4)
USAGE = pb.Usage(prompt_tokens=7, completion_tokens=9, reasoning_tokens=3)
CALLS = (
    pb.ToolCallDelta(index=0, id="c0", name="add", arguments_json=""),
    pb.ToolCallDelta(index=0, arguments_json='{"a":'),
    pb.ToolCallDelta(index=0, arguments_json=" 1}"),
    pb.ToolCallDelta(index=1, id="c1", name="now", arguments_json="{}"),
)


def events() -> list[pb.GenerateResponse]:
    """A thought, two calls in pieces, and the end."""
    deltas = [
        pb.Delta(reasoning="I "),
        pb.Delta(reasoning="add."),
        *(pb.Delta(tool_calls=[piece]) for piece in CALLS),
    ]
    ended = pb.Finished(reason=pb.FINISH_REASON_TOOL_CALLS, usage=USAGE)
    return [
        pb.GenerateResponse(started=STARTED),
        *(pb.GenerateResponse(delta=delta) for delta in deltas),
        pb.GenerateResponse(finished=ended),
    ]


def whole(messages: list[pb.GenerateResponse]) -> dict[str, Any]:
    answer = Answer("m", ParsedBody((pb.GenerateRequest(),)), chat=True)
    for message in messages:
        answer.take(message)
    return answer.whole()


def test_thoughts_and_calls_stand_apart_from_the_text() -> None:
    told = whole(events())
    [choice] = told["choices"]
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert message["reasoning"] == message["reasoning_content"] == "I add."
    assert message["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]
    assert told["id"] == "chatcmpl-r"
    assert told["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


def test_streamed_pieces_joined_are_the_whole() -> None:
    chunks = Chunks("m", chat=True, logprobs=False, usage=StreamUsage.LAST, n=1)
    told = [chunk for message in events() for chunk in chunks.take(message)]
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    message = whole(events())["choices"][0]["message"]
    assert "".join(d.get("reasoning", "") for d in deltas) == message["reasoning"]
    pieces = [piece for d in deltas for piece in d.get("tool_calls", ())]
    for index, call in enumerate(message["tool_calls"]):
        own = [piece for piece in pieces if piece["index"] == index]
        assert [piece["id"] for piece in own if "id" in piece] == [call["id"]]
        assert own[0]["function"]["name"] == call["function"]["name"]
        joined = "".join(piece["function"]["arguments"] for piece in own)
        assert joined == call["function"]["arguments"]
    assert told[-1]["choices"][0]["finish_reason"] == "tool_calls"
    [last] = chunks.last()
    assert last["usage"] == whole(events())["usage"]


def test_an_event_is_one_line_of_ascii_whatever_it_holds() -> None:
    data = event({"text": "a\n\u2028\x85ü"})
    assert data.isascii() and data.endswith(b"\n\n") and data.count(b"\n") == 2


@pytest.mark.parametrize("chat", [False, True])
def test_usage_is_told_in_each_chunk_where_that_is_asked_for(chat: bool) -> None:
    chunks = Chunks("m", chat=chat, logprobs=False, usage=StreamUsage.EACH, n=1)
    made = [pb.Delta(text="a", token_ids=[1]), pb.Delta(text="b", token_ids=[2, 3])]
    messages = [pb.GenerateResponse(started=STARTED)]
    messages += [pb.GenerateResponse(delta=delta) for delta in made]
    messages += [events()[-1]]
    lines = b"".join(map(chunks.encoded, messages)).decode().split("\n\n")[:-1]
    told = [json.loads(line.removeprefix("data: "))["usage"] for line in lines]
    counts = [usage["completion_tokens"] for usage in told]
    assert counts == ([0] if chat else []) + [1, 3, 3]
    assert [usage["total_tokens"] - usage["completion_tokens"] for usage in told] == [7] * len(told)


def test_nothing_is_sent_for_ids_that_made_no_text() -> None:
    for chat in (True, False):
        chunks = Chunks("m", chat=chat, logprobs=False, usage=StreamUsage.NONE, n=1)
        list(chunks.take(pb.GenerateResponse(started=STARTED)))
        assert list(chunks.take(pb.GenerateResponse(delta=pb.Delta(token_ids=[2])))) == []


def test_the_offsets_of_a_completion_count_characters_not_bytes() -> None:
    tokens = [pb.TokenLogprob(bytes=raw) for raw in ("é".encode()[:1], "é".encode()[1:], b"x")]
    answer = Answer("m", ParsedBody((pb.GenerateRequest(),), logprobs=True), chat=False)
    answer.take(pb.GenerateResponse(started=STARTED))
    answer.take(pb.GenerateResponse(delta=pb.Delta(text="éx", logprobs=tokens)))
    [choice] = answer.whole()["choices"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]


def test_what_answers_gather_is_bounded_each_and_together() -> None:
    budget = LogprobBudget(each=10, together=15)
    with budget.share() as first:
        first.take(10)
        with pytest.raises(Refusal, match="stream = true") as caught:
            first.take(1)
        assert caught.value.violations[0].field == "logprobs"
    assert budget.held == 0
    with budget.share() as first, budget.share() as second:
        first.take(10)
        with pytest.raises(Refusal) as caught:
            second.take(6)
        assert caught.value.retry_after
    assert budget.held == 0


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
def test_what_is_written_fast_is_what_is_written_plainly(chat: bool, logprobs: bool) -> None:
    deltas = [
        *(pb.Delta(index=i, text=text) for i in (0, 1, 0) for text in ("a", '"\\\u2028\0', "é")),
        pb.Delta(text="x", reasoning="y"),
        pb.Delta(text="x", tool_calls=CALLS),
        pb.Delta(text="x", logprobs=[pb.TokenLogprob(bytes=b"x", logprob=-1)]),
        pb.Delta(token_ids=[2]),
    ]
    messages = [pb.GenerateResponse(started=STARTED)]
    messages += [pb.GenerateResponse(delta=delta) for delta in deltas]
    messages += [events()[-1]]
    fast, plain = (
        Chunks("a\0b", chat=chat, logprobs=logprobs, usage=StreamUsage.LAST, n=2) for _ in range(2)
    )
    plain._head.created = fast._head.created
    for message in messages:
        assert fast.encoded(message) == b"".join(map(event, plain.take(message)))


def test_more_choices_than_may_be_take_no_room() -> None:
    """A stream's chunks are made before the request is judged."""
    tracemalloc.start()
    try:
        Chunks("m", chat=True, logprobs=False, usage=StreamUsage.NONE, n=100_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
