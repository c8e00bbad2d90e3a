"""What ends a call, what it is sent, and how it is refused."""

import base64
import logging
import urllib.parse
from typing import Any

import grpc
import pytest
from support.clock import Clock
from support.fake_engine import EOS, Device, logprob_of
from support.harness import Running, ask, first, generate, read, run, serving
from support.held_calls import EXHAUSTED, until
from support.some_engine import INFO

from quire.engine.request import Output
from quire.service import errors
from quire.service.errors import Violation
from quire.service.rpc.responses import CallOutput
from quire.service.rpc.write_watch import WriteWatch
from quire.service.telemetry import logs
from quire.service.telemetry.counters import Ledger
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

MEBIBYTE = 1 << 20


LONG = {"max_tokens": 1900, "ignore_eos": True, "logprobs": 20}


def narrow(running: Running) -> grpc.aio.Channel:
    """A channel that takes in little of what is not read."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}", options=options)


async def unread(running: Running, channel: grpc.aio.Channel) -> Any:
    """A call that the engine has served and whose client reads nothing but the beginning."""
    call = pb_grpc.InferenceServiceStub(channel).Generate(ask([300, 301, 302], **LONG))
    assert (await first(call)).HasField("started")
    await running.until(lambda s: s.requests.running == s.requests.waiting == 0)
    watch = running.server._servicer._watch
    await until(lambda: any(writes.since is not None for writes in watch._open))
    return call


# ------------------------------------------------------------ before it is let in


# ------------------------------------------------------------ what ends it


def test_a_special_token_as_stop_string_matches_as_its_id() -> None:
    async def test() -> None:
        async with serving() as running:
            request = {"stop": ["<|im_start|>", "zz"], "max_tokens": 20, "ignore_eos": True}
            answer = await generate(running, ask([300, 1, 301], **request))
            (finished,) = answer.finished
            assert finished.stop_string == "<|im_start|>"
            assert finished.reason == pb.FINISH_REASON_STOP
            assert answer.ids() == [300, 1]
            answer = await generate(running, ask([1, 301], **request))
            assert answer.ids() == [1] and answer.text() == ""  # the very first token
            answer = await generate(running, ask([300, 1, 301], min_tokens=5, **request))
            assert answer.ids() == [300, 1, 301, EOS, 300, 1]
            answer = await generate(running, ask([300, 1, 301], stop_token_ids=[1], **request))
            assert answer.finished[0].stop_token_id == 1  # asked for as an id

    run(test)


def test_a_stop_string_that_could_never_match_is_refused_with_the_way_out() -> None:
    async def test() -> None:
        async with serving() as running:
            answer = await generate(running, ask([300], stop=["ok", "\n<|im_start|>"]))
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "sampling.stop_token_ids" in answer.violations["sampling.stop[1]"]
            answer = await generate(
                running, ask([300], stop=["<|im_start|>"], include_stop_str_in_output=True)
            )
            assert "include_stop_str_in_output" in answer.violations["sampling.stop[0]"]

    run(test)


async def opened(running: Running, request: pb.GenerateRequest, ends: list[Any]) -> CallOutput:
    """A call's output side, beside no engine."""
    serving_now = running.server._servicer.serving
    assert serving_now is not None
    accepted = await serving_now.validator.validate(request, 1 << 40)
    return CallOutput(
        accepted,
        serving_now.model.tokenizer,
        INFO,
        Ledger(),
        0.0,
        lambda index, kept: ends.append((index, kept)),
        lambda _: None,
    )


def test_the_engine_hears_how_many_tokens_a_stop_string_keeps() -> None:
    async def test() -> None:
        async with serving() as running:
            model = running.server._servicer.serving.model  # type: ignore[union-attr]
            ids = model.tokenizer.encode("one two three", add_special_tokens=False)
            stop = model.tokenizer.pieces[ids[1]].decode()
            ends: list[Any] = []
            call = await opened(running, ask([300], stop=[stop]), ends)
            messages = list(call.take([Output(0, 0, token_ids=list(ids), started=True)]))
            assert ends == [(0, 2)]
            assert sum(len(m.delta.token_ids) for m in messages) == 2
            assert call.sampled == len(ids)

    run(test)


# ------------------------------------------------------------ what it is sent


@pytest.mark.parametrize("silent", [False, True])
def test_no_message_is_larger_than_a_mebibyte_whatever_has_come(silent: bool) -> None:
    async def test() -> None:
        async with serving(engine={"max_model_len": 32768, "num_blocks": 4096}) as running:
            call = await opened(running, ask([300], logprobs=20, stop=["~~"]), [])
            ids = [300 + i % 900 for i in range(6_000)]
            if silent:  # a part of a character, and no text: no place where the text is whole
                pieces = running.server._servicer.serving.model.tokenizer.pieces  # type: ignore[union-attr]
                ids = [pieces.index(b"\xe2"), *[1] * 6_000]
            logprobs = [logprob_of(i, 20) for i in ids]
            output = Output(0, 0, token_ids=list(ids), logprobs=logprobs, started=True)
            messages = list(call.take([output])) + list(call.end(output_reason()))
            assert max(message.ByteSize() for message in messages) <= MEBIBYTE
            deltas = [m.delta for m in messages if m.HasField("delta")]
            assert len(deltas) > 1
            assert [i for delta in deltas for i in delta.token_ids] == ids
            assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)

    run(test)


def output_reason() -> Any:
    from quire.engine.request import FinishReason

    return FinishReason.LENGTH


def test_a_write_that_stalls_ends_the_call_and_gives_back_all_it_held() -> None:
    async def test() -> None:
        clock = Clock()
        async with serving() as running, narrow(running) as channel:
            watch = WriteWatch(60.0, clock=clock)
            running.server._servicer._watch = watch
            call = await unread(running, channel)
            clock.now += 59.0
            watch.look()
            assert not any(writes.ended for writes in watch._open)
            clock.now += 2.0
            watch.look()
            await until(lambda: not len(watch))
            await until(lambda: not running.server._admission._open)
            assert not running.engine._streams
            answer = await read(call)  # it reads after all
            assert answer.code is EXHAUSTED
            assert "read nothing for 60 s" in answer.details
            ledger = running.server.ledger
            await until(lambda: ledger.rpcs["Generate", "RESOURCE_EXHAUSTED"] == 1)
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def test_who_does_not_read_is_charged_for_what_was_sampled() -> None:
    async def test() -> None:
        options = {"rate_limit_tokens": 10.0, "rate_limit_burst_seconds": 1000.0}
        async with serving(**options) as running, narrow(running) as channel:
            limits = running.server._servicer.access.limits
            limits._clock = Clock()
            call = await unread(running, channel)
            call.cancel()
            await until(lambda: not running.server._admission._open)
            (account,) = limits._accounts.values()
            assert account.streams == 0
            assert account.tokens is not None
            assert account.tokens.level(1000.0) == 10_000 - 3 - LONG["max_tokens"]

    run(test)


def test_who_leaves_while_an_answer_is_written_is_no_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving() as running, narrow(running) as channel:
            call = await unread(running, channel)
            call.cancel()
            await until(lambda: not running.server._admission._open)
            ledger = running.server.ledger
            await until(lambda: ledger.rpcs["Generate", "CANCELLED"] == 1)
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    grpcs = logging.getLogger("grpc._cython.cygrpc")
    grpcs.addFilter(logs.is_no_strangers_doing)
    try:
        run(test)
    finally:
        grpcs.removeFilter(logs.is_no_strangers_doing)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_calls_that_are_served_and_not_read_take_places() -> None:
    async def test() -> None:
        options = {"engine": {"max_num_seqs": 2}, "max_waiting": 1}
        async with serving(Device(), **options) as running, narrow(running) as channel:  # type: ignore[arg-type]
            calls = [await unread(running, channel) for _ in range(3)]
            answer = await generate(running, ask([300]))
            assert answer.code is EXHAUSTED
            assert "max_num_seqs + max_waiting = 3" in answer.details
            calls[0].cancel()
            await until(lambda: running.server._admission._open == 2)
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            for call in calls:
                call.cancel()

    run(test)


# ------------------------------------------------------------ how it is refused


@pytest.mark.parametrize("text", ["x", "é", "%", "日本", "\U0001f600", "\x01", '"'])
def test_a_refusal_fits_the_limit_of_trailers_however_many_faults_it_tells(text: str) -> None:
    violations = [Violation(f"field[{i}]." + text * 3000, text * 3000) for i in range(40)]
    refusal = errors.invalid(violations)
    message = urllib.parse.quote(
        errors.clip(refusal.message), safe=" !\"#$&'()*+,/:;=?@[]{}|^`<>\\"
    )
    assert len(message) <= 1024
    size = len(message)
    for name, value in refusal.trailers():
        size += len(name) + len(base64.b64encode(value) if isinstance(value, bytes) else value)
    assert size <= 7 << 10


def test_a_refusal_with_many_faults_arrives_whole() -> None:
    async def test() -> None:
        async with serving() as running:
            wrong = [pb.ChatMessage(role="é" * 90, content="a") for _ in range(60)]
            request = pb.GenerateRequest(chat=pb.Chat(messages=wrong))
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            told = answer.violations
            assert "chat.messages[0].role" in told
            assert list(told.values())[-1].endswith("more faults are not told")

    run(test)
