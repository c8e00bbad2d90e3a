"""The contract's events as a response: its items, its events and their order."""

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

from quire.clients.openai import responses
from quire.clients.openai.response_answer import ResponseAnswer
from quire.service.openai.response_events import ResponseEvents
from quire.v1 import inference_pb2 as pb

Event = dict[str, Any]


def body(**fields: Any) -> responses.ResponsesBody:
    return responses.read({"input": "x", "temperature": 0.5, **fields})


def whole(told: list[pb.GenerateResponse], **fields: Any) -> Event:
    answer = ResponseAnswer("m", body(**fields))
    for message in told:
        answer.take(message)
    value: Event = json.loads(answer.encoded())
    return value


def streamed(told: list[pb.GenerateResponse], **fields: Any) -> list[Event]:
    stream = ResponseEvents("m", body(**fields))
    events = parsed(b"".join(map(stream.encoded, told)) + stream.ended())
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events: list[Event]) -> list[str]:
    """Without repetitions, and without what all names begin with."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def test_thoughts_text_and_calls_are_items_in_their_order() -> None:
    told = whole(messages(an_answer(random.Random(0))))
    reasoning, message, first, second = told["output"]
    assert reasoning == {
        "type": "reasoning",
        "id": "rs_r_0",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": THOUGHT}],
    }
    part = {"type": "output_text", "text": SAID, "annotations": [], "logprobs": []}
    assert (message["id"], message["role"], message["content"]) == ("msg_r_1", "assistant", [part])
    for i, call in enumerate((first, second)):
        assert call == {
            "type": "function_call",
            "id": f"fc_r_{i + 2}",
            "status": "completed",
            "call_id": f"c{i}",
            "name": "add",
            "arguments": ARGUMENTS,
        }
    assert (told["id"], told["object"], told["model"]) == ("resp_r", "response", "m")
    assert (told["status"], told["error"], told["incomplete_details"]) == ("completed", None, None)
    assert told["completed_at"] >= told["created_at"] and told["temperature"] == 0.5
    assert told["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 16,
    }


@pytest.mark.parametrize("seed", range(20))
def test_events_come_in_order_and_hold_what_the_whole_answer_does(seed: int) -> None:
    told = messages(an_answer(random.Random(seed)))
    events, answer = streamed(told), whole(told)
    call = ["output_item.added", "function_call_arguments.delta"]
    call += ["function_call_arguments.done", "output_item.done"]
    assert kinds(events) == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *(*call, *call, "completed"),
    ]
    assert [event["response"]["status"] for event in events[:2]] == ["in_progress"] * 2
    assert all(event["response"]["output"] == [] for event in events[:2])
    last = events[-1]["response"]
    assert {**last, "created_at": 0, "completed_at": 0} == {
        **answer, "created_at": 0, "completed_at": 0,
    }  # fmt: skip
    for index, item in enumerate(answer["output"]):
        own = [event for event in events if event.get("output_index") == index]
        begun, *between, done = own
        assert begun["item"] == {
            **item, "status": "in_progress",
            **({"arguments": ""} if "arguments" in item else {"content": []}),
        }  # fmt: skip
        assert done["item"] == item
        assert {event["item_id"] for event in between} == {item["id"]}
        joined = "".join(event["delta"] for event in between if "delta" in event)
        assert joined == (item.get("arguments") or item["content"][0]["text"])


def test_text_behind_calls_waits_for_the_end() -> None:
    first = pb.ToolCallDelta(index=0, id="c0", name="add", arguments_json='{"a"')
    rest = pb.ToolCallDelta(index=0, arguments_json=": 1}")
    apart = [pb.Delta(text="a"), calls(first), pb.Delta(text="b"), calls(rest), pb.Delta(text="c")]
    together = [pb.Delta(text="a", tool_calls=[first]), pb.Delta(text="bc", tool_calls=[rest])]
    answers = [whole(messages(deltas))["output"] for deltas in (apart, together)]
    assert answers[0] == answers[1]
    said, call, behind = answers[0]
    assert (said["content"][0]["text"], call["arguments"]) == ("a", '{"a": 1}')
    assert behind["content"][0]["text"] == "bc"
    assert streamed(messages(apart))[-1]["response"]["output"] == answers[0]


@pytest.mark.parametrize(
    ("deltas", "kind"),
    [
        ([pb.Delta(reasoning="Hm")], "reasoning"),
        ([pb.Delta(text="So")], "message"),
        ([calls(pb.ToolCallDelta(id="c", name="f", arguments_json="{"))], "function_call"),
    ],
)
def test_an_answer_that_was_cut_is_incomplete_and_so_is_its_last_item(
    deltas: list[pb.Delta], kind: str
) -> None:
    told = messages([pb.Delta(reasoning="Well"), *deltas], LENGTH)
    answer = whole(told)
    assert (answer["status"], answer["completed_at"]) == ("incomplete", None)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    last = answer["output"][-1]
    assert (last["type"], last["status"]) == (kind, "incomplete")
    assert all(item["status"] == "completed" for item in answer["output"][:-1])
    assert answer["usage"]["output_tokens"] == 9
    *_, done, ended = streamed(told)
    assert (done["item"], ended["type"]) == (last, "response.incomplete")


@pytest.mark.parametrize(
    ("arguments", "status"), [('{"a": 1}', "completed"), ("", "completed"), ('{"a"', "incomplete")]
)
@pytest.mark.parametrize("together", [False, True])
def test_a_call_that_was_cut_behind_text_is_incomplete(
    arguments: str, status: str, together: bool
) -> None:
    first = pb.ToolCallDelta(index=0, id="c0", name="add", arguments_json="{}")
    last = pb.ToolCallDelta(index=1, id="c1", name="add", arguments_json=arguments)
    apart = [calls(first), pb.Delta(text="b"), calls(last)]
    told = [calls(first), pb.Delta(text="b", tool_calls=[last])] if together else apart
    answer = whole(messages(told, LENGTH))["output"]
    assert [item["status"] for item in answer] == ["completed", status, "incomplete"]
    assert streamed(messages(told, LENGTH))[-1]["response"]["output"] == answer


@pytest.mark.parametrize("deltas", [[], [pb.Delta(reasoning="Hm")]])
def test_an_answer_that_says_nothing_holds_an_empty_message(deltas: list[pb.Delta]) -> None:
    *_, message = whole(messages(deltas))["output"]
    assert message["content"][0]["text"] == ""
    assert kinds(streamed(messages(deltas)))[-4:-1] == [
        *("output_text.done", "content_part.done", "output_item.done"),
    ]


def test_log_probabilities_are_in_whole_answers_and_in_deltas() -> None:
    best = [pb.TopLogprob(bytes=b"So", logprob=-0.5)]
    token = pb.TokenLogprob(bytes=b"So", logprob=-0.5, top=best)
    end = pb.TokenLogprob(bytes=b"", logprob=-1)
    thought, tag = pb.Delta(reasoning="Hm", logprobs=[token]), pb.Delta(logprobs=[end])
    told = messages(
        [tag, thought, tag, pb.Delta(text="So", logprobs=[token]), pb.Delta(logprobs=[end])]
    )
    fields: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    written = {"token": "So", "logprob": -0.5, "bytes": [83, 111]}
    silent = {"token": "", "logprob": -1.0, "bytes": [], "top_logprobs": []}
    expected = [silent, {**written, "top_logprobs": [written]}, silent]
    [part] = whole(told, **fields)["output"][1]["content"]
    assert part["logprobs"] == expected  # of the message's tokens, not of the thoughts'
    events = streamed(told, **fields)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [one for event in deltas for one in event["logprobs"]] == expected
    assert events[-1]["response"]["output"][1]["content"][0]["logprobs"] == []  # none are held
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == []


def told_of(pieces: list[str]) -> list[pb.TokenLogprob]:
    return [pb.TokenLogprob(bytes=piece.encode(), logprob=-0.5) for piece in pieces]


def test_log_probabilities_of_a_delta_that_waited_are_those_of_its_text() -> None:
    """It may hold thoughts, text and calls at once."""
    fields: Any = {"include": ["message.output_text.logprobs"]}
    thought, text, tag = ["<think>", "H", "m", "</think>"], ["S", "o"], ["<tool_call>", "So"]
    piece = pb.ToolCallDelta(id="c", name="So", arguments_json="{}")
    for delta in (
        pb.Delta(reasoning="Hm", text="So", logprobs=told_of([*thought, *text])),
        pb.Delta(text="So", tool_calls=[piece], logprobs=told_of([*text, *tag])),
        pb.Delta(
            reasoning="Hm", text="So", tool_calls=[piece], logprobs=told_of(thought + text + tag)
        ),
    ):
        items = whole(messages([delta]), **fields)["output"]
        [part] = next(item["content"] for item in items if item["type"] == "message")
        assert [one["token"] for one in part["logprobs"]][-2:] == text
        assert {one["token"] for one in part["logprobs"]} <= {*text, "</think>"}


def test_a_stream_holds_few_log_probabilities_of_what_waits() -> None:
    behind = pb.Delta(text="b", logprobs=told_of(["b"]))
    piece = pb.ToolCallDelta(id="c", name="f", arguments_json="{}")
    silent = pb.Delta(logprobs=told_of(["\n"] * 10))
    stream = ResponseEvents("m", body())
    for message in messages([*[silent] * 100, pb.Delta(text="a")])[:-1]:
        *_, last = parsed(stream.encoded(message)) or [{}]
    assert len(last["logprobs"]) == 64
    stream = ResponseEvents("m", body())
    told = messages([calls(piece), behind])
    events = parsed(b"".join(map(stream.encoded, told)) + stream.ended())
    [delta] = [event for event in events if event["type"] == "response.output_text.delta"]
    assert (delta["delta"], delta["logprobs"]) == ("b", [])
    [part] = whole(told)["output"][1]["content"]
    assert [one["token"] for one in part["logprobs"]] == ["b"]


def test_a_stream_that_fails_says_so_in_the_form_of_either_client() -> None:
    stream = ResponseEvents("m", body())
    told = messages([pb.Delta(text="So")], pb.FINISH_REASON_ERROR)
    error = {"message": "no", "type": "server_error", "param": None, "code": "internal"}
    events = parsed(b"".join(map(stream.encoded, told)) + stream.failed(error))
    *_, fault, last = events
    assert fault["type"] == "error" and fault["error"] == error
    assert (fault["code"], fault["message"], fault["param"]) == ("internal", "no", None)
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "no"}
    [item] = last["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "So")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_an_event_is_a_line_of_ascii_whatever_it_holds() -> None:
    stream = ResponseEvents("m", body(instructions="\u2028\x85ü\n"))
    told = messages([pb.Delta(text="a\n\u2028\x85ü"), pb.Delta(reasoning="\u2029")])
    data = b"".join(map(stream.encoded, told)) + stream.ended()
    assert data.isascii()
    assert parsed(data)[-1]["response"]["instructions"] == "\u2028\x85ü\n"
