"""GetModelInfo and FlushCache, and what holds of every call with one answer."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.fake_engine import EOS, Device
from support.harness import PATIENCE, Running, ask, first, generate, run, serving

from quire.service.errors import Refusal
from quire.service.rpc.servicer import SERVICE
from quire.service.rpc.stats import FLUSHES_AT_ONCE, StatsReporter
from quire.service.security.keys import make_entry
from quire.v1 import inference_pb2 as pb

DENIED, EXHAUSTED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID, UNAVAILABLE = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE
METHODS = pb.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name
SINGLE = [name for name, method in METHODS.items() if not method.server_streaming]
OPERATOR, OTHER = "operator-key-01234567", "another-key-012345678"


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def flush(running: Running, **options: Any) -> int:
    answer = await running.stub.FlushCache(pb.FlushCacheRequest(), timeout=PATIENCE, **options)
    return int(answer.blocks)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def test_what_is_served_is_told() -> None:
    async def test() -> None:
        async with serving() as running:
            info = await running.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=PATIENCE)
            stats = await running.stats()
            assert info.model == stats.model and info.version == stats.version != ""
            assert info.has_chat_template
            assert EOS in info.eos_token_ids
            started = (await generate(running, ask([300], max_tokens=1))).started[0]
            assert started.model_fingerprint == info.model.fingerprint == "fake-fingerprint"
            assert started.numerics == info.model.numerics == "fake numerics"

    run(test)


@pytest.mark.parametrize("method", SINGLE)
def test_every_call_is_counted_and_refused_while_loading_or_malformed(method: str) -> None:
    async def test() -> None:
        for load, body, code in ((False, b"", UNAVAILABLE), (True, b"\xff", INVALID)):
            async with serving(load=load) as running:
                call = running.channel.unary_unary(f"/{SERVICE}/{method}")
                assert await code_of(call(body, timeout=PATIENCE)) is code
                while not running.server.ledger.rpcs[method, code.name]:
                    await asyncio.sleep(0.005)  # it is counted once the status is on its way
                assert running.server.ledger.rpcs[method, code.name] == 1

    run(test)


def test_a_flush_forgets_what_no_request_holds() -> None:
    async def test() -> None:
        async with serving(Device(step_seconds=0.002)) as running:
            held, left = [300] * 40, [301] * 40
            await generate(running, ask(left, max_tokens=1))
            call = running.stub.Generate(ask(held, max_tokens=1500, ignore_eos=True))
            for _ in range(2):  # started, and a token: its prompt is known
                await first(call)
            assert await flush(running) == 3  # two full blocks, and one full in part
            call.cancel()
            await running.idle()
            assert (await generate(running, ask(left))).started[0].cached_tokens == 0
            assert (await generate(running, ask(held))).started[0].cached_tokens == 39
            stats = await running.idle()
            assert await flush(running) == stats.cache.blocks_cached > 0
            assert (await running.stats()).cache.blocks_cached == 0
            assert stats.cache.evictions == 0

    run(test)


def test_only_an_operator_flushes(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    lines = (f"{make_entry('boss', OPERATOR)} operator", make_entry("other", OTHER))
    keys.write_text("\n".join(lines) + "\n")

    async def test() -> None:
        async with serving(api_keys=str(keys)) as running:
            await generate(running, ask([300] * 40), metadata=bearer(OPERATOR))
            assert await code_of(flush(running, metadata=bearer(OTHER))) is DENIED
            assert await flush(running, metadata=bearer(OPERATOR)) > 0

    run(test)


def test_flushes_have_a_rate() -> None:
    nothing: Any = None
    now = [0.0]
    reporter = StatsReporter(nothing, nothing, nothing, "1", lambda: now[0])
    for _ in range(int(FLUSHES_AT_ONCE)):
        reporter.allow_flush(operator=True)
    with pytest.raises(Refusal, match="FlushCache: at most 1 a second") as caught:
        reporter.allow_flush(operator=True)
    assert caught.value.code is EXHAUSTED and caught.value.retry_after is not None
    now[0] += caught.value.retry_after
    reporter.allow_flush(operator=True)
