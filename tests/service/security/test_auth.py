"""API keys: who gets in, what they are told, and what a tenant shares with whom."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from support.api_keys import ALICE, BOB, key_file
from support.fake_engine import Device
from support.harness import Running, ask, generate, read, run, serving

from quire.engine.errors import ConfigError
from quire.service.security.auth import (
    make_entry,
)
from quire.service.settings import ServiceConfig
from quire.v1 import inference_pb2 as pb

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return key_file(tmp_path)


# ------------------------------------------------------------ over the wire


async def codes(running: Running, metadata: Any) -> list[grpc.StatusCode]:
    """Of Generate, Stats, reflection and health with this metadata."""
    found = [(await generate(running, ask([300]), metadata=metadata)).code]
    calls = [running.stub.Stats(pb.StatsRequest(), metadata=metadata)]
    health = health_pb2_grpc.HealthStub(running.channel)
    calls.append(health.Check(health_pb2.HealthCheckRequest(), metadata=metadata))
    for call in calls:
        found.append(await call.code())
    # With its one question in the call's first batch: a write of its own can meet a call that was
    # refused meanwhile, for which grpcio's client reports INTERNAL in place of the refusal.
    reflection = running.channel.unary_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    found.append(await _drain(reflection(asked, metadata=metadata)))
    return found


async def _drain(call: Any) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError:
        pass
    code: grpc.StatusCode = await call.code()
    return code


OK = grpc.StatusCode.OK


def test_generate_stats_and_reflection_need_a_key_and_health_does_not(keys: Path) -> None:
    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            shut = [UNAUTHENTICATED, UNAUTHENTICATED, OK, UNAUTHENTICATED]
            assert await codes(running, None) == shut
            assert await codes(running, bearer("wrong-key-0123456789")) == shut
            assert await codes(running, (("authorization", f"Basic {ALICE}"),)) == shut
            assert await codes(running, (*bearer(ALICE), *bearer(ALICE))) == shut
            assert await codes(running, bearer(ALICE)) == [OK] * 4
            assert await codes(running, (("authorization", f"bearer {BOB}"),)) == [OK] * 4
            unknown = running.channel.unary_unary("/quire.v1.Other/Method")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unknown(b"")
            assert caught.value.code() is UNAUTHENTICATED
            stats = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(ALICE))
            assert stats.requests.refused["UNAUTHENTICATED"] == 4
            assert stats.requests.accepted == 2

    run(test)


def test_without_keys_nobody_is_asked() -> None:
    async def test() -> None:
        async with serving() as running:
            assert await codes(running, None) == [OK] * 4
            assert await codes(running, bearer("anything")) == [OK] * 4

    run(test)


def test_the_refusal_says_what_is_missing_and_repeats_no_key(keys: Path) -> None:
    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            missing = await generate(running, ask([300]))
            assert "authorization: Bearer" in missing.details
            assert missing.rich(error_details_pb2.ErrorInfo).reason == "UNAUTHENTICATED"
            wrong = await generate(running, ask([300]), metadata=bearer("wrong-key-0123456789"))
            assert "wrong-key" not in wrong.details

    run(test)


def test_a_key_that_is_taken_away_opens_no_more(keys: Path) -> None:
    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            assert (await codes(running, bearer(ALICE)))[0] is OK
            keys.write_text(make_entry("bob", BOB) + "\n")
            for files in running.server._security.watched:
                files.refresh()
            assert (await codes(running, bearer(ALICE)))[0] is UNAUTHENTICATED
            assert (await codes(running, bearer(BOB)))[0] is OK

    run(test)


def test_tenants_share_no_cache_and_a_tenants_salts_do_not_either(keys: Path) -> None:
    async def test() -> None:
        prompt = list(range(300, 340))  # two whole blocks of 16, and eight tokens

        async with serving(api_keys=str(keys)) as running:

            async def spent(key: str, salt: str = "") -> tuple[int, int]:
                """Cached tokens as told, and prefill tokens computed."""
                before = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(ALICE))
                request = ask(prompt, max_tokens=1, cache_salt=salt)
                answer = await generate(running, request, metadata=bearer(key))
                while True:
                    after = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(ALICE))
                    if after.cache.blocks_free == after.cache.blocks_total:
                        break
                computed = after.tokens.prefill_computed - before.tokens.prefill_computed
                return answer.started[0].cached_tokens, computed

            assert await spent(ALICE) == (0, 40)
            assert await spent(ALICE) == (39, 1)
            assert await spent(BOB) == (0, 40)
            assert await spent(BOB) == (39, 1)
            assert await spent(ALICE, "mine") == (0, 40)
            assert await spent(BOB, "mine") == (0, 40)
            assert await spent(ALICE, "mine") == (39, 1)

    run(test)


def test_limits_are_a_keys_own_wherever_it_is_used(keys: Path) -> None:
    async def test() -> None:
        limits = {"rate_limit_requests": 1e-3, "rate_limit_burst_seconds": 1000.0}
        async with serving(api_keys=str(keys), **limits) as running:
            assert (await generate(running, ask([300]), metadata=bearer(ALICE))).code is OK
            again = await generate(running, ask([300]), metadata=bearer(ALICE))
            assert again.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await generate(running, ask([300]), metadata=bearer(BOB))).code is OK

    run(test)


def test_a_client_that_came_first_with_much_does_not_go_first_with_all(keys: Path) -> None:
    async def test() -> None:
        device = Device(step_seconds=0.01)
        engine = {"max_num_seqs": 1, "enable_prefix_caching": False}
        async with serving(device, engine=engine, api_keys=str(keys)) as running:
            device.hold()
            loud = []
            for _ in range(12):
                call = running.stub.Generate(ask([300, 301, 302]), metadata=bearer(ALICE))
                await call.initial_metadata()
                loud.append(read(call))
            quiet = running.stub.Generate(ask([300, 301, 302]), metadata=bearer(BOB))
            await quiet.initial_metadata()
            device.release()
            answers = await asyncio.gather(read(quiet), *loud)
            mine, *theirs = [answer.finished[0].timings for answer in answers]
            # Times of starting, since all were let in at nearly the same moment.
            earlier = sum(their.queued_seconds < mine.queued_seconds for their in theirs)
            assert earlier <= 2  # the one that ran, and the oldest when it is its turn

    run(test)


# ------------------------------------------------------------ metadata and logs


def test_metadata_beyond_the_limit_is_refused() -> None:
    async def test() -> None:
        async with serving() as running:
            big = (("x-big", "x" * (64 << 10)),)
            call = running.stub.Generate(ask([300]), metadata=big)
            assert (await read(call)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await generate(running, ask([300]))).code is OK

    run(test)


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_logged_only_where_that_was_asked_for(
    asked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def everything() -> str:
        return " ".join(f"{r.getMessage()} {getattr(r, 'fields', '')}" for r in caplog.records)

    async def test() -> None:
        async with serving(log_prompts=asked) as running:
            assert (await generate(running, ask(text="a secret fox", max_tokens=1))).code is OK
            chat = pb.GenerateRequest(sampling=pb.SamplingParams(max_tokens=1))
            chat.chat.messages.add(role="user", content="a hidden hare")
            assert (await generate(running, chat)).code is OK

    with caplog.at_level(logging.DEBUG, logger="quire"):
        run(test)
    for words in ("secret fox", "hidden hare"):
        assert (words in everything()) is asked


# ------------------------------------------------------------ start


def test_beyond_this_machine_needs_tls_or_a_word(keys: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceConfig(host="0.0.0.0", api_keys=str(keys))
    assert "API keys would be sent in clear" in str(caught.value)
    with pytest.raises(ConfigError, match="metrics_host"):
        ServiceConfig(metrics_host="0.0.0.0", metrics_port=1)
    ServiceConfig(host="0.0.0.0", insecure=True)
    ServiceConfig(host="0.0.0.0", tls_cert="c", tls_key="k")
