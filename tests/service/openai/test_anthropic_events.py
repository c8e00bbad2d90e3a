"""The contract's events as Anthropic's message: its blocks, its events and their order."""

import json
import random
from typing import Any

import pytest
from support.answer_events import (
    ARGUMENTS,
    LENGTH,
    SAID,
    THOUGHT,
    an_answer,
    calls,
    messages,
    parsed,
)

from quire.clients.openai import anthropic_body
from quire.clients.openai.anthropic_answer import MessageAnswer
from quire.service.openai.anthropic_events import MessageEvents
from quire.v1 import inference_pb2 as pb

BODY = anthropic_body.read({"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]})
CUT = calls(pb.ToolCallDelta(id="c", name="f", arguments_json='{"a": 1'))
Event = dict[str, Any]


def whole(told: list[pb.GenerateResponse]) -> Event:
    answer = MessageAnswer("m", BODY)
    for message in told:
        answer.take(message)
    value: Event = json.loads(answer.encoded())
    return value


def streamed(told: list[pb.GenerateResponse]) -> list[Event]:
    stream = MessageEvents("m", BODY)
    return parsed(b"".join(map(stream.encoded, told)) + stream.ended())


def gathered(events: list[Event]) -> Event:
    """The message that a client makes of them."""
    first, *rest, last, stop = events
    assert (first["type"], last["type"], stop) == (
        *("message_start", "message_delta", {"type": "message_stop"}),
    )
    told: Event = first["message"]
    assert told["content"] == [] and told["stop_reason"] is None
    content: list[Any] = []
    open_, written = False, ""
    for event in rest:
        assert event["index"] == len(content) - (event["type"] != "content_block_start")
        if event["type"] == "content_block_start":
            assert not open_
            open_, written = True, ""
            content.append(event["content_block"])
        elif event["type"] == "content_block_stop":
            open_ = False
            if written:
                content[-1]["input"] = json.loads(written)
        else:
            delta = event["delta"]
            assert open_
            if delta.pop("type") == "input_json_delta":
                written += delta["partial_json"]
            else:
                [(field, text)] = delta.items()
                content[-1][field] += text
    assert not open_
    return {**told, "content": content, **last["delta"], "usage": last["usage"]}


def test_thoughts_text_and_calls_are_blocks_in_their_order() -> None:
    told = whole(messages(an_answer(random.Random(0)), pb.FINISH_REASON_TOOL_CALLS))
    assert told == {
        "id": "msg_r",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": THOUGHT, "signature": ""},
            {"type": "text", "text": SAID},
            *(
                {"type": "tool_use", "id": f"c{i}", "name": "add", "input": json.loads(ARGUMENTS)}
                for i in (0, 1)
            ),
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 3},
        },
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_makes_the_whole_answer(seed: int) -> None:
    told = messages(an_answer(random.Random(seed)), pb.FINISH_REASON_TOOL_CALLS)
    assert gathered(streamed(told)) == whole(told)


@pytest.mark.parametrize("deltas", [[], [pb.Delta(reasoning="Hm")], [pb.Delta(text="So")]])
def test_an_answer_ends_with_a_text_whatever_it_says(deltas: list[pb.Delta]) -> None:
    told = whole(messages(deltas))
    assert told["content"][-1]["type"] == "text"
    assert gathered(streamed(messages(deltas))) == told


def test_reasons_of_the_end() -> None:
    stopped = pb.Finished(reason=pb.FINISH_REASON_STOP, stop_string=".")
    ended = pb.Finished(reason=pb.FINISH_REASON_STOP, stop_token_id=2)
    for finished, expected in (
        (stopped, ("stop_sequence", ".")),
        (ended, ("end_turn", None)),
        (pb.Finished(reason=LENGTH), ("max_tokens", None)),
        (pb.Finished(reason=pb.FINISH_REASON_TOOL_CALLS), ("tool_use", None)),
    ):
        told = [*messages([pb.Delta(text="So")])[:-1], pb.GenerateResponse(finished=finished)]
        answer = whole(told)
        assert (answer["stop_reason"], answer["stop_sequence"]) == expected
        assert gathered(streamed(told)) == answer


def test_arguments_that_broke_off_are_no_input() -> None:
    for text in ('{"a": 1', "[1]", "{a: 1}"):
        piece = pb.ToolCallDelta(id="c", name="f", arguments_json=text)
        [block] = whole(messages([calls(piece)], LENGTH))["content"]
        assert block == {"type": "tool_use", "id": "c", "name": "f", "input": {}}


@pytest.mark.parametrize("delta", [None, pb.Delta(reasoning="Hm"), pb.Delta(text="So"), CUT])
def test_a_stream_that_fails_ends_with_an_error(delta: pb.Delta | None) -> None:
    """What was cut off is not told to be whole: clients call a function once its block ends."""
    stream = MessageEvents("m", BODY)
    told = messages([delta] if delta else [], pb.FINISH_REASON_ERROR)
    error = {"type": "api_error", "message": "no"}
    events = parsed(b"".join(map(stream.encoded, told)) + stream.failed(error))
    begun = ["content_block_start", "content_block_delta"] if delta else []
    assert [event["type"] for event in events] == ["message_start", *begun, "error"]
    assert events[-1] == {"type": "error", "error": error, "request_id": "r"}


def test_an_event_is_a_line_of_ascii_whatever_it_holds() -> None:
    stream = MessageEvents("m", BODY)
    told = messages([pb.Delta(text="a\n\u2028\x85ü"), pb.Delta(reasoning="\u2029")])
    data = b"".join(map(stream.encoded, told)) + stream.ended()
    assert data.isascii()
    first, *_ = gathered(parsed(data))["content"]
    assert first["text"] == "a\n\u2028\x85ü"
