"""What a stream has brought, in OpenAI's shape."""

from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from quire.clients.errors import Details, Violation, call_error
from quire.clients.openai_answer import Answer, refused_body
from quire.clients.openai_body import CHATS, COMPLETIONS
from quire.v1 import inference_pb2 as pb


def body(url: str, messages: list[str], *, logprobs: bool = False) -> dict[str, Any]:
    answer = Answer(url, "m", logprobs=logprobs)
    for message in messages:
        answer.add(text_format.Parse(message, pb.GenerateResponse()))
    return answer.body()


STARTED = """started { request_id: "r" model_fingerprint: "f" prompt_tokens: 5 cached_tokens: 4 }"""


def test_choices_stand_in_order_and_their_tokens_are_counted_together() -> None:
    made = body(
        CHATS,
        [
            STARTED,
            'delta { index: 1 text: "b" }',
            'delta { index: 0 text: "a" reasoning: "hm" }',
            'delta { index: 0 text: "a" }',
            "finished { index: 1 reason: FINISH_REASON_LENGTH usage { completion_tokens: 1 } }",
            """finished { index: 0 reason: FINISH_REASON_STOP
                          usage { completion_tokens: 3 reasoning_tokens: 1 } }""",
        ],
    )
    assert made["object"] == "chat.completion" and made["id"] == "chatcmpl-r"
    assert (made["model"], made["system_fingerprint"]) == ("m", "f")
    first, second = made["choices"]
    assert first["message"] == {
        "role": "assistant", "content": "aa", "reasoning": "hm", "reasoning_content": "hm",
    }  # fmt: skip
    assert (first["index"], first["finish_reason"], first["logprobs"]) == (0, "stop", None)
    assert (second["message"]["content"], second["finish_reason"]) == ("b", "length")
    assert made["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }  # fmt: skip


def test_calls_of_tools_are_joined_from_their_pieces() -> None:
    made = body(
        CHATS,
        [
            STARTED,
            r"""delta { tool_calls { index: 1 id: "c2" name: "b" arguments_json: "{}" }
                        tool_calls { index: 0 id: "c1" name: "a" arguments_json: "{\"x\"" } }""",
            'delta { tool_calls { index: 0 arguments_json: ": 1}" } }',
            "finished { reason: FINISH_REASON_TOOL_CALLS }",
        ],
    )
    (choice,) = made["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "b", "arguments": "{}"}},
    ]


LOGPROBS = r"""delta { text: "é"
    logprobs { bytes: "\303" logprob: -0.5 top { bytes: "a" logprob: -0.25 } }
    logprobs { bytes: "\251" logprob: -1 } }"""


def test_log_probabilities_of_a_chat_and_of_a_completion() -> None:
    end = "finished { reason: FINISH_REASON_STOP }"
    (chosen,) = body(CHATS, [STARTED, LOGPROBS, end], logprobs=True)["choices"]
    first, second = chosen["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("\ufffd", [0xC3], -0.5)
    assert first["top_logprobs"] == [{"token": "a", "logprob": -0.25, "bytes": [97]}]
    assert (second["bytes"], second["top_logprobs"]) == ([0xA9], [])
    made = body(COMPLETIONS, [STARTED, LOGPROBS, end], logprobs=True)
    assert made["object"] == "text_completion" and made["choices"][0]["text"] == "é"
    assert made["choices"][0]["logprobs"] == {
        "tokens": ["\ufffd", "\ufffd"], "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"a": -0.25}, {}], "text_offset": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("contract", "param"),
    [
        ("sampling.top_p", "top_p"),
        ("chat.messages[0].role", "messages[0].role"),
        ("chat.tools[1].parameters_json.x", "tools[1].function.parameters.x"),
        (
            "chat.messages[2].tool_calls[0].arguments_json",
            "messages[2].tool_calls[0].function.arguments",
        ),
        ("constraint.json_schema.properties.x", "response_format.json_schema.schema.properties.x"),
        ("constraint", "response_format"),
        ("token_ids.ids[3]", "prompt[3]"),
        ("text", "prompt"),
        ("model", "model"),
    ],
)
def test_a_refusal_names_the_field_as_a_body_has_it(contract: str, param: str) -> None:
    error = call_error(grpc.StatusCode.INVALID_ARGUMENT, f"{contract}: 20: no", None)
    error.details = Details((Violation(contract, "20: no"),), "INVALID_FIELD")
    status, made = refused_body(error)
    assert status == 400 and made["error"]["param"] == param
    assert (made["error"]["code"], made["error"]["type"]) == (
        "invalid_field",
        "invalid_request_error",
    )


def test_what_is_no_fault_of_a_field_names_none() -> None:
    missing = refused_body(call_error(grpc.StatusCode.NOT_FOUND, "no such model", None))
    assert missing[0] == 404
    status, made = refused_body(call_error(grpc.StatusCode.INTERNAL, "a fault", None))
    assert (status, made["error"]["type"], made["error"]["param"]) == (500, "server_error", None)
