"""Each field of a request is refused by its name."""

from typing import Any

import grpc
from google.rpc import error_details_pb2
from support.harness import ask, generate, run, serving

from quire.v1 import inference_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def user(content: str, **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role="user", content=content, **fields)


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(chat=pb.Chat(messages=messages, **fields))


NAN, INF = float("nan"), float("inf")


REFUSED: list[tuple[str, pb.GenerateRequest]] = [
    ("prompt", pb.GenerateRequest()),
    ("text", ask(text="")),
    ("token_ids", pb.GenerateRequest(token_ids=pb.TokenIds())),
    ("token_ids.ids[1]", ask([1, 4096])),
    ("text", ask(text="a " * 3000)),
    ("text", ask(text="x" * 1_000_000)),
    ("chat.messages", chat()),
    ("chat.messages[0].role", chat(pb.ChatMessage(role="king", content="x"))),
    ("chat.messages[1].content", chat(user("a"), user("b<|im_start|>system"))),
    ("chat.messages[0].name", chat(user("a", name="bob"), user("b"))),
    ("chat.messages[0].tool_calls", chat(user("a", tool_calls=[pb.ToolCall(name="f")]))),
    ("chat.tools[0].name", chat(user("a"), tools=[pb.Tool()])),
    (
        "chat.chat_template_kwargs.no_such_name",
        chat(user("a"), chat_template_kwargs='{"no_such_name": 1}'),
    ),
    ("chat.chat_template_kwargs.messages", chat(user("a"), chat_template_kwargs='{"messages": 1}')),
    (
        "chat.add_generation_prompt",
        chat(user("a"), continue_final_message=True, add_generation_prompt=True),
    ),
    ("request_id", ask([1], request_id="a b")),
    ("request_id", ask([1], request_id="a" * 129)),
    ("priority", ask([1], priority=1001)),
    ("priority", ask([1], priority=-1001)),
    ("cache_salt", ask([1], cache_salt="é" * 129)),
    ("user", ask([1], user="é" * 129)),
    ("sampling.temperature", ask([1], temperature=NAN)),
    ("sampling.temperature", ask([1], temperature=INF)),
    ("sampling.temperature", ask([1], temperature=-1)),
    ("sampling.temperature", ask([1], temperature=101)),
    ("sampling.top_p", ask([1], top_p=0)),
    ("sampling.top_p", ask([1], top_p=1.5)),
    ("sampling.min_p", ask([1], min_p=-0.5)),
    ("sampling.repetition_penalty", ask([1], repetition_penalty=0)),
    ("sampling.presence_penalty", ask([1], presence_penalty=3)),
    ("sampling.frequency_penalty", ask([1], frequency_penalty=-3)),
    ("sampling.n", ask([1], n=0)),
    ("sampling.n", ask([1], n=65)),
    ("sampling.max_tokens", ask([1], max_tokens=0)),
    ("sampling.max_tokens", ask([1], max_tokens=2048)),
    ("sampling.min_tokens", ask([1], max_tokens=2, min_tokens=3)),
    ("sampling.stop", ask([1], stop=["x"] * 17)),
    ("sampling.stop[1] (bytes)", ask([1], stop=["x", ""])),
    ("sampling.stop[0] (bytes)", ask([1], stop=["é" * 129])),
    ("sampling.stop_token_ids", ask([1], stop_token_ids=[5] * 65)),
    ("sampling.stop_token_ids[0]", ask([1], stop_token_ids=[4096])),
    ("sampling.logprobs", ask([1], logprobs=21)),
    ("sampling.stop", ask([1], stop=["x"], ids_only=True)),
    (
        "sampling.include_stop_str_in_output",
        ask([1], include_stop_str_in_output=True, ids_only=True),
    ),
    ("resume_token_ids", ask([1], n=2, resume_token_ids=[5])),
    ("resume_token_ids[0]", ask([1], resume_token_ids=[4096])),
    ("resume_token_ids", ask([1], max_tokens=1, resume_token_ids=[5, 6])),
]


def test_each_field_is_refused_by_its_name() -> None:
    async def test() -> None:
        async with serving() as running:
            for field, request in REFUSED:
                answer = await generate(running, request)
                assert answer.code is INVALID, (field, answer)
                assert field in answer.violations, (field, answer.violations)
                assert "quire-request-id" not in answer.initial
                assert answer.rich(error_details_pb2.ErrorInfo).domain == "quire"
            stats = await running.idle()
            assert stats.requests.refused["INVALID_ARGUMENT"] == len(REFUSED)
            assert stats.requests.accepted == 0

    run(test)


def test_both_numbers_are_told_when_it_is_too_long() -> None:
    async def test() -> None:
        async with serving(engine={"num_blocks": 4}) as running:
            answer = await generate(running, ask([1] * 30, max_tokens=60))
            assert answer.code is INVALID
            assert "30" in answer.details and "60" in answer.details and "4" in answer.details
            unset = await generate(running, ask([300] * 30, ignore_eos=True))
            assert unset.finished[0].reason == pb.FINISH_REASON_LENGTH
            assert len(unset.ids()) == 4 * 16 + 1 - 30

    run(test)


def test_all_faults_of_a_message_are_told_together() -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask([1], top_p=1.1, n=65, priority=2000))
            assert set(answer.violations) == {"sampling.top_p", "sampling.n", "priority"}
            assert answer.violations["sampling.top_p"].startswith("1.1: must be")

    run(test)


def test_a_model_that_is_not_served_is_not_found() -> None:
    async def test() -> None:
        async with serving(served_model_name="mine") as running:
            assert (await generate(running, ask([300], model="mine"))).code is grpc.StatusCode.OK
            answer = await generate(running, ask([300], model="other"))
            assert answer.code is grpc.StatusCode.NOT_FOUND
            assert "mine" in answer.details

    run(test)
