"""The status table and the shape of a stream, over a real channel."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from support.fake_engine import EOS, Device, spec_of
from support.harness import Running, ask, first, generate, run, serving

from quire.engine.scheduling.plan import PlanRow
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import decoder
from quire.v1 import inference_pb2 as pb

LONG = {"max_tokens": 500, "ignore_eos": True}


def test_a_stream_has_its_order_and_counts_its_ids() -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask([300, 301, 302], request_id="mine"))
            assert answer.code is grpc.StatusCode.OK
            assert answer.initial["quire-request-id"] == "mine"
            assert answer.order[0] == "started" and answer.order[-1] == "finished"
            assert set(answer.order[1:-1]) == {"delta"}
            (started,), (finished,) = answer.started, answer.finished
            assert started.request_id == "mine"
            assert started.prompt_tokens == 3
            assert started.model_fingerprint == "fake-fingerprint"
            assert answer.ids() == [300, 301, 302, EOS]
            assert finished.reason == pb.FINISH_REASON_STOP
            assert finished.stop_token_id == EOS
            assert finished.usage.completion_tokens == 4
            assert finished.usage.prompt_tokens == 3
            assert finished.peak_blocks == 1
            assert finished.timings.queued_seconds >= 0
            stats = await running.idle()
            tokens = stats.tokens
            assert tokens.delivered == tokens.generated - tokens.discarded == 4
            assert stats.requests.accepted == stats.requests.finished_stop == 1
            assert sum(stats.time_to_first_token_seconds.counts) == 1
            assert (
                sum(stats.inter_token_latency_seconds.counts) <= 3
            )  # fewer where steps were merged

    run(test)


def test_a_seed_is_drawn_and_returned_and_zero_is_a_seed() -> None:
    async def test() -> None:
        async with serving() as running:
            drawn = [(await generate(running, ask([300]))).started[0].seed for _ in range(2)]
            assert drawn[0] != drawn[1]
            assert (await generate(running, ask([300], seed=0))).started[0].seed == 0

    run(test)


@pytest.mark.parametrize(
    "text",
    [
        "naïve café, déjà vu",
        "日本語のテキストです",
        "👩‍👩‍👧‍👦👍🏽🇫🇮 ok",
        "שלום עולם",
        "नमस्ते दुनिया",
        "한국어",
    ],
)
def test_text_deltas_join_to_the_whole(text: str) -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask(text=text))
            assert answer.text() == text
            assert all("�" not in delta.text for delta in answer.deltas)
            assert answer.finished[0].usage.completion_tokens == len(answer.ids())

    run(test)


def test_a_stop_string_cuts_the_text_and_keeps_its_token() -> None:
    async def test() -> None:
        async with serving() as running:
            text = "one two three four"
            whole = (await generate(running, ask(text=text))).ids()
            for include in (False, True):
                request = ask(text=text, stop=["thr"], include_stop_str_in_output=include)
                answer = await generate(running, request)
                (finished,) = answer.finished
                assert finished.reason == pb.FINISH_REASON_STOP
                assert finished.stop_string == "thr"
                assert answer.text() == ("one two thr" if include else "one two ")
                assert answer.ids() == whole[: len(answer.ids())]
                assert finished.usage.completion_tokens == len(answer.ids())

    run(test)


def test_a_stop_string_counts_only_from_min_tokens_on() -> None:
    async def test() -> None:
        async with serving() as running:
            request = ask(text="a b", stop=["a"], min_tokens=2, ignore_eos=True, max_tokens=50)
            answer = await generate(running, request)
            assert answer.finished[0].stop_string == "a"
            assert answer.text().startswith("a b")

    run(test)


def test_siblings_are_told_apart_by_their_index() -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask([300, 301], n=3))
            assert answer.order.count("started") == 1
            assert sorted(f.index for f in answer.finished) == [0, 1, 2]
            assert all(answer.ids(i) == [300, 301, EOS] for i in range(3))
            stats = await running.idle()
            assert stats.requests.accepted == 3
            assert stats.tokens.delivered == 9

    run(test)


def test_logprobs_travel_with_their_ids() -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask(text="日本", logprobs=2))
            logprobs = [x for d in answer.deltas for x in d.logprobs]
            assert [x.token_id for x in logprobs] == answer.ids()
            assert all(len(x.top) == 2 and x.rank == 1 for x in logprobs)
            assert b"".join(x.bytes for x in logprobs[:-1]).decode() == "日本"
            none = await generate(running, ask(text="日本", logprobs=0))
            assert all(not x.top for d in none.deltas for x in d.logprobs)
            assert sum(len(d.logprobs) for d in none.deltas) == len(none.ids())

    run(test)


def test_ids_only_makes_no_text() -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask(text="hello", ids_only=True, logprobs=0))
            assert answer.text() == ""
            assert answer.ids()[-1] == EOS
            assert all(x.bytes == b"" for d in answer.deltas for x in d.logprobs)

    run(test)


def test_a_resumed_stream_sends_only_the_rest() -> None:
    async def test() -> None:
        async with serving() as running:
            whole = await generate(running, ask(text="日本 one 👍", seed=3))
            ids = whole.ids()
            for cut in range(1, len(ids)):
                request = ask(text="日本 one 👍", seed=3, resume_token_ids=ids[:cut])
                rest = await generate(running, request)
                assert ids[:cut] + rest.ids() == ids
                assert whole.text().endswith(rest.text())
                assert rest.finished[0].usage.completion_tokens == len(ids) - cut
            done = await generate(running, ask(text="日本 one 👍", seed=3, resume_token_ids=ids))
            assert done.finished[0].reason == pb.FINISH_REASON_STOP
            assert done.ids() == []
            stopped = ask(text="日本 one 👍", stop=["one"], resume_token_ids=ids[:-1])
            answer = await generate(running, stopped)
            assert answer.order == ["started", "finished"]
            assert answer.finished[0].stop_string == "one"

    run(test)


def user(content: str, **fields: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role="user", content=content, **fields)


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(chat=pb.Chat(messages=messages, **fields))


def test_a_chat_is_rendered_and_can_be_continued() -> None:
    async def test() -> None:
        async with serving() as running:
            # The fake says its prompt back; special tokens make no text.
            def whole(*messages: pb.ChatMessage, **fields: Any) -> pb.GenerateRequest:
                request = chat(*messages, **fields)
                request.sampling.CopyFrom(pb.SamplingParams(ignore_eos=True, stop=["!"]))
                return request

            answer = await generate(running, whole(user("Hello!")))
            assert answer.text() == "user\nHello"
            asked = await generate(running, whole(user("Hi")))
            assert asked.text().startswith("user\nHi\nassistant\nuser\nHi\n")
            assistant = pb.ChatMessage(role="assistant", content="I am ")
            opened = whole(user("Hi"), assistant, continue_final_message=True)
            answer = await generate(running, opened)
            assert answer.text().startswith("user\nHi\nassistant\nI am user\nHi")
            closed = whole(user("Hi"), add_generation_prompt=False)
            assert (await generate(running, closed)).text().startswith("user\nHi\nuser\nHi\n")
            allowed = whole(user("a<|im_end|>b"), allow_special_tokens=True)
            assert (await generate(running, allowed)).text().startswith("user\nab\nassistant\n")

    run(test)


def test_a_full_queue_says_when_to_come_again() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, engine={"max_num_seqs": 1}, max_waiting=2) as running:
            device.hold()
            calls = [running.stub.Generate(ask([300], **LONG))]
            assert (await first(calls[0])).HasField("started")
            for _ in range(2):
                calls.append(running.stub.Generate(ask([300], **LONG)))
                await calls[-1].initial_metadata()
            answer = await generate(running, ask([300]))
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(answer.trailing["grpc-retry-pushback-ms"]) > 0
            assert answer.rich(error_details_pb2.RetryInfo) is not None
            assert answer.rich(error_details_pb2.ErrorInfo).reason == "QUEUE_FULL"
            for call in calls:
                call.cancel()
            stats = await running.until(lambda s: s.requests.finished_cancelled == 3)
            assert stats.requests.refused["RESOURCE_EXHAUSTED"] == 1
            device.release()
            await running.idle()
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def test_the_block_map_is_one_byte_a_block() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, engine={"num_blocks": 20}) as running:
            await generate(running, ask([300] * 40, max_tokens=4, ignore_eos=True))
            stats = await running.stats(include_block_map=True)
            assert len(stats.cache.block_map) == 20
            assert stats.cache.block_map.count(1) == stats.cache.blocks_cached == 3

    run(test)


def test_users_of_a_client_share_its_blocks_and_the_engine_knows_them() -> None:
    device, users = Device(), []

    def say(row: PlanRow, _prompt: Any) -> int:
        assert device.scheduler is not None
        spec = spec_of(device.scheduler, row.key)
        assert spec is not None
        users.append(spec.user)
        return EOS

    async def test() -> None:
        device.say = say
        async with serving(device) as running:
            for user in ("a", "b"):
                answer = await generate(running, ask([5] * 40, max_tokens=1, user=user))
            assert answer.started[0].cached_tokens == 39 and users == ["a", "b"]

    run(test)


def test_another_salt_shares_no_blocks() -> None:
    async def test() -> None:
        async with serving() as running:
            prompt = list(range(300, 364))
            cached = []
            for salt in ("", "", "a", "a", "b"):
                request = ask(prompt, max_tokens=1, cache_salt=salt)
                cached.append((await generate(running, request)).started[0].cached_tokens)
            assert cached == [0, 63, 0, 63, 0]

    run(test)


def test_reflection_names_the_service_unless_switched_off() -> None:
    async def names(running: Running) -> set[str]:
        from grpc_reflection.v1alpha import reflection_pb2

        # With its one question in the call's first batch: a write of its own can meet a call that
        # was refused meanwhile, for which grpcio's client reports INTERNAL.
        ask_about = running.channel.unary_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = ask_about(reflection_pb2.ServerReflectionRequest(list_services=""))
        return {s.name async for r in call for s in r.list_services_response.service}

    async def test() -> None:
        async with serving() as running:
            assert {"quire.v1.InferenceService", "grpc.health.v1.Health"} <= await names(running)
        async with serving(reflection=False) as running:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await names(running)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)


def test_fields_that_the_contract_does_not_know_are_not_held() -> None:
    raw = ask([300]).SerializeToString() + b"\xfa\x3f\x05later"  # field 1023
    decoded = decoder(pb.GenerateRequest.FromString)(raw)
    assert decoded == ask([300])
    assert isinstance(decoder(pb.GenerateRequest.FromString)(b"\xff"), Malformed)
