"""Log-probabilities of a prompt's own tokens, over both APIs."""

from typing import Any

import grpc
import pytest
from support.harness import Running, ask, generate, run, serving
from support.http1 import Told, posted
from support.http1 import ask as ask_http
from support.pocket_server import pocket

from quire.clients.events import Collector, PromptLogprobs, from_proto
from quire.service.rpc.field_faults import MAX_JUDGED
from quire.v1 import inference_pb2 as pb

LONG = [300 + i % 900 for i in range(1500)]
COMPLETIONS = "/v1/completions"


def asked(ids: list[int], top: int = 2, **more: Any) -> pb.GenerateRequest:
    request = ask(ids, max_tokens=2, **more)
    request.prompt_logprobs = top
    return request


async def posted_to(running: Running, path: str, **body: Any) -> Told:
    return await ask_http(running.server.http_port, posted(path, {"max_tokens": 1, **body}))


def test_they_come_in_order_before_the_first_delta_and_in_bounded_messages() -> None:
    async def test() -> None:
        async with serving(engine={"max_num_batched_tokens": 400}) as running:
            answer = await generate(running, asked(LONG, 20, n=2))
            assert answer.code is grpc.StatusCode.OK
            kinds = [kind for at, kind in enumerate(answer.order) if kind != answer.order[at - 1]]
            assert kinds[:3] == ["started", "prompt_logprobs", "delta"]
            first, *rest = answer.judged
            assert (first.first_token_id, len(first.logprobs)) == (LONG[0], 0)
            assert first.first_token_bytes and not any(p.HasField("first_token_id") for p in rest)
            tokens = [one for piece in rest for one in piece.logprobs]
            assert [one.token_id for one in tokens] == LONG[1:]
            assert all(len(one.top) == 20 and one.bytes for one in tokens)
            assert len(rest) > 4 and max(piece.ByteSize() for piece in rest) < 256 << 10
            assert answer.finished[0].usage.cached_tokens == 0

    run(test)


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (asked([5, 6], 21), "prompt_logprobs", "21: must be between 0 and 20"),
        (asked([5, 6], 0, resume_token_ids=[7]), "prompt_logprobs", "excludes resume_token_ids"),
        (asked([300] * (MAX_JUDGED // 21 + 1), 20), "prompt_logprobs", f"at most {MAX_JUDGED}"),
    ],
)
def test_what_cannot_be_is_refused(request_: pb.GenerateRequest, field: str, words: str) -> None:
    async def test() -> None:
        async with serving(engine={"max_model_len": 8192, "num_blocks": 600}) as running:
            answer = await generate(running, request_)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert words in answer.violations[field]
            stats = await running.idle()
            assert stats.requests.accepted == 0

    run(test)


def test_a_client_gathers_them() -> None:
    async def test() -> None:
        async with serving() as running:
            events = []
            async for message in running.stub.Generate(asked([301, 302, 303], ids_only=True)):
                events.append(from_proto(message))
            told = [event for event in events if isinstance(event, PromptLogprobs)]
            assert told[0].first_token_id == 301
            collector = Collector()
            for event in events:
                assert event is not None
                collector.add(event)
            [completion] = collector.completions()
            assert [one.token_id for one in completion.prompt_logprobs] == [302, 303]
            assert completion.prompt_logprobs[0].bytes == b""

    run(test)


def test_a_completion_repeats_its_prompts_and_judges_them() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            body = {"prompt": [[301, 302], [303]], "n": 2, "echo": True, "logprobs": 1}
            told = (await posted_to(running, COMPLETIONS, **body)).json
            assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3]
            one = told["choices"][1]["logprobs"]
            assert one["token_logprobs"] == [None, -0.5, -0.5]
            assert one["top_logprobs"][0] is None and len(one["top_logprobs"][1]) == 1
            assert "".join(one["tokens"]) == told["choices"][1]["text"]
            assert one["text_offset"][:2] == [0, len(one["tokens"][0])]
            assert [len(c["logprobs"]["tokens"]) for c in told["choices"]] == [3, 3, 2, 2]
            assert "prompt_logprobs" not in told["choices"][0]

    run(test)


def test_a_prompt_is_repeated_as_it_was_written() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            plain = (await posted_to(running, COMPLETIONS, prompt="It was one")).json
            told = (await posted_to(running, COMPLETIONS, prompt="It was one", echo=True)).json
            assert told["choices"][0]["text"] == "It was one" + plain["choices"][0]["text"]
            assert told["choices"][0]["logprobs"] is None
            ids = (await posted_to(running, COMPLETIONS, prompt=[301, 302], echo=True)).json
            bare = (await posted_to(running, COMPLETIONS, prompt=[301, 302])).json
            assert ids["choices"][0]["text"].endswith(bare["choices"][0]["text"])
            assert len(ids["choices"][0]["text"]) > len(bare["choices"][0]["text"])

    run(test)


def test_by_ids_as_vllm_has_it() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            body = {"prompt": [301, 302, 303], "prompt_logprobs": 2}
            told = (await posted_to(running, COMPLETIONS, **body)).json
            first, second, _ = told["choices"][0]["prompt_logprobs"]
            assert first is None
            assert {i: (v["rank"], v["logprob"]) for i, v in second.items()} == {
                "302": (1, -0.5),
                "303": (2, -1.5),
            }
            assert all(value["decoded_token"] for value in second.values())
            chat = {"messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 0}
            told = (await posted_to(running, "/v1/chat/completions", **chat)).json
            count = told["usage"]["prompt_tokens"]
            assert len(told["prompt_logprobs"]) == count and told["prompt_logprobs"][0] is None

    run(test)


def test_refusals_have_the_bodys_names() -> None:
    async def test() -> None:
        async with serving(http=True, engine={"max_model_len": 8192, "num_blocks": 600}) as running:
            prompt = [300] * 7000
            for given, name in (
                ({"echo": True, "logprobs": 20}, "logprobs"),
                ({"echo": True, "logprobs": 21}, "logprobs"),
                ({"prompt_logprobs": 20}, "prompt_logprobs"),
                ({"prompt_logprobs": 21}, "prompt_logprobs"),
            ):
                told = await posted_to(running, COMPLETIONS, prompt=prompt, **given)
                assert (told.status, told.json["error"]["param"]) == (400, name)

    run(test)


def test_the_embedded_model_judges_what_it_said() -> None:
    """As close as a step of many tokens is to one of one."""

    async def test() -> None:
        async with pocket() as running:
            begun = ask([300, 301, 302], max_tokens=12, logprobs=0, ignore_eos=True)
            said = await generate(running, begun)
            request = asked([300, 301, 302, *said.ids()], 0)
            answer = await generate(running, request)
            told = [one for piece in answer.judged for one in piece.logprobs]
            found = [one.logprob for one in told][2:]
            expected = [one.logprob for delta in said.deltas for one in delta.logprobs]
            assert found == pytest.approx(expected, abs=0.05)

    run(test)
