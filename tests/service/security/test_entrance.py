"""What a call has to show before anything is done for it, and what it may then ask for."""

import asyncio
import hashlib
import secrets
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.harness import Running, ask, generate, run, serving

from quire.service.errors import Refusal
from quire.service.rpc import stats as stats_module
from quire.service.rpc.salt import effective_salt
from quire.service.rpc.stats import ANSWERS_AT_ONCE, MAPS_AT_ONCE, StatsReporter
from quire.service.security.auth import Authenticator
from quire.service.security.credentials import watch_keys
from quire.service.security.keys import make_entry
from quire.service.settings import ServiceConfig
from quire.v1 import inference_pb2 as pb

OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"
METHODS = (*pb.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name, "NoSuchMethod")


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def foreign(name: str, key: str) -> str:
    """A line as another program makes it: with a salt that is nothing but random."""
    salt = secrets.token_bytes(16)
    return f"{name} sha256:{salt.hex()}:{hashlib.sha256(salt + key.encode()).hexdigest()}"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """alice is an operator, bob is not."""
    path = tmp_path / "keys"
    path.write_text(f"{make_entry('alice', ALICE)} operator\n{make_entry('bob', BOB)}\n")
    return path


async def raw(running: Running, method: str, body: bytes, metadata: Any = None) -> Any:
    """A call with bytes of one's own: its code and trailers."""
    call = running.channel.unary_stream(f"/quire.v1.InferenceService/{method}")(
        body, metadata=metadata
    )
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError:
        pass
    return await call.code()


def test_the_key_is_asked_for_before_the_message_is_read(
    key_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[int] = []
    from quire.service.rpc import servicer

    decoder = servicer.decoder

    def counting(parse: Any) -> Any:
        decode = decoder(parse)

        def counted(message: bytes) -> Any:
            decoded.append(len(message))
            return decode(message)

        return counted

    monkeypatch.setattr(servicer, "decoder", counting)
    body = ask(text="x" * 1_000_000).SerializeToString()

    async def test() -> None:
        async with serving(api_keys=str(key_file)) as running:
            for method in METHODS:
                for metadata in (None, bearer("wrong-key-0123456789")):
                    assert await raw(running, method, body, metadata) is UNAUTHENTICATED
                    assert await raw(running, method, b"\xff", metadata) is UNAUTHENTICATED
            assert not decoded
            assert await raw(running, "Generate", b"\xff", bearer(ALICE)) is INVALID
            assert decoded == [1]
            health = health_pb2_grpc.HealthStub(running.channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
            stats = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(ALICE))
            # Of Generate, Embed and Score: what the engine would have run.
            assert stats.requests.refused["UNAUTHENTICATED"] == 3 * 4

    run(test)


def test_a_search_among_many_lines_does_not_hold_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n".join(foreign(f"k{i}", f"foreign-key-{i:08}") for i in range(100)))
    searched: list[bool] = []

    async def test() -> None:
        keys = watch_keys(path)
        ring, entry = keys.value, type(keys.value).entry

        def noted(self: Any, key: bytes) -> Any:
            if not self.remembers(key):
                try:
                    asyncio.get_running_loop()
                    searched.append(False)
                except RuntimeError:
                    searched.append(True)  # not on the loop's thread
            return entry(self, key)

        type(ring).entry = noted  # type: ignore[method-assign]
        try:
            authenticator = Authenticator(keys)
            await authenticator.check(bearer("foreign-key-00000007"))
            for key in ("foreign-key-0000000x", "foreign-key-0000000x"):
                with pytest.raises(Refusal, match="not known"):
                    await authenticator.check(bearer(key))
        finally:
            type(ring).entry = entry  # type: ignore[method-assign]

    run(test)
    assert searched == [True, True]


def test_priorities_end_where_the_key_says(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    lines = (make_entry("alice", ALICE) + " max_priority=5", make_entry("bob", BOB))
    low = make_entry("low", "low-key-0123456789ab") + " max_priority=-2"
    path.write_text("\n".join((*lines, low)))

    async def test() -> None:
        async with serving(api_keys=str(path)) as running:
            for key, priority, limit in (
                (ALICE, 5, None),
                (ALICE, 6, 5),
                (ALICE, -1000, None),
                (BOB, 0, None),
                (BOB, 1, 0),
                (BOB, 1000, 0),
                ("low-key-0123456789ab", -2, None),
                ("low-key-0123456789ab", 0, -2),
            ):
                asked = ask([300], priority=priority, max_tokens=1)
                answer = await generate(running, asked, metadata=bearer(key))
                if limit is None:
                    assert answer.code is OK, (key, priority, answer.details)
                else:
                    assert answer.code is INVALID
                    told = answer.violations["priority"]
                    assert str(priority) in told and f"at most {limit} " in told

    run(test)


@pytest.mark.parametrize(("options", "highest"), [({}, 0), ({"max_priority": 3}, 3)])
def test_without_keys_an_option_says_how_high(options: dict[str, int], highest: int) -> None:
    async def test() -> None:
        async with serving(**options) as running:
            assert (await generate(running, ask([300], priority=highest))).code is OK
            beyond = await generate(running, ask([300], priority=highest + 1))
            assert "priority" in beyond.violations

    run(test)
    with pytest.raises(Exception, match="max_priority = 1001"):
        ServiceConfig(max_priority=1001)


def test_only_operators_are_told_what_all_clients_do(key_file: Path) -> None:
    async def test() -> None:
        async with serving(api_keys=str(key_file)) as running:
            before = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(BOB))
            assert (await generate(running, ask([300] * 40), metadata=bearer(ALICE))).code is OK
            after = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(BOB))
            before.uptime_seconds = after.uptime_seconds = 0.0
            assert before == after  # nothing that another client's call has changed
            assert after.model.name == "fake" and after.cache.blocks_total > 0
            for left_out in ("requests", "tokens", "steps", "time_to_first_token_seconds"):
                assert not after.HasField(left_out)
            whole = await running.stub.Stats(pb.StatsRequest(), metadata=bearer(ALICE))
            assert whole.tokens.prompt == 40 and whole.requests.accepted == 1
            of_the_machine = whole.engine_config.keys() - after.engine_config.keys()
            assert {"model", "join_secret_file", "prefix_cache_seed"} <= of_the_machine
            assert "max_num_seqs" in after.engine_config
            asked = pb.StatsRequest(include_block_map=True)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Stats(asked, metadata=bearer(BOB))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            mapped = await running.stub.Stats(asked, metadata=bearer(ALICE))
            assert len(mapped.cache.block_map) == mapped.cache.blocks_total

    run(test)


def test_block_maps_have_a_rate() -> None:
    class Nothing:
        pass

    now = [0.0]
    nothing: Any = Nothing()
    reporter = StatsReporter(nothing, nothing, nothing, "1", lambda: now[0])
    for _ in range(int(MAPS_AT_ONCE)):
        reporter.allow_block_map(operator=True)
    with pytest.raises(Refusal) as caught:
        reporter.allow_block_map(operator=True)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after is not None
    now[0] += caught.value.retry_after
    reporter.allow_block_map(operator=True)


def test_stats_have_a_rate_of_each_client(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "ANSWERS_A_SECOND", 1e-3)

    async def test() -> None:
        async with serving(api_keys=str(key_file)) as running:

            async def ask_stats(key: str) -> None:
                await running.stub.Stats(pb.StatsRequest(), metadata=bearer(key))

            for _ in range(int(ANSWERS_AT_ONCE)):
                await ask_stats(BOB)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask_stats(BOB)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "Stats: at most 0.001 a second" in (caught.value.details() or "")
            await ask_stats(ALICE)  # another client's polling is not hers
            assert (await generate(running, ask([300]), metadata=bearer(BOB))).code is OK

    run(test)


def test_beyond_the_burst_an_answer_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(stats_module.asyncio, "sleep", sleep)
    nothing: Any = None
    reporter = StatsReporter(nothing, nothing, nothing, "1", lambda: 0.0)

    async def test() -> None:
        for _ in range(int(ANSWERS_AT_ONCE) + 1):
            await reporter.turn("a")
        assert slept == [1 / stats_module.ANSWERS_A_SECOND]

    asyncio.run(test())


def test_a_tenant_and_its_salt_are_no_other_pair() -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("a", "b\0c"), ("a\0b", "c")]
    assert len({effective_salt(tenant, salt) for tenant, salt in pairs}) == len(pairs)


class Context:
    """A call over TLS, as far as who calls is concerned."""

    def __init__(self, peer: str, certificate: bytes = b"", name: bytes = b"") -> None:
        self._peer = peer
        self._auth = {"x509_pem_cert": [certificate], "x509_common_name": [name]}

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("peer", "operator"),
    [
        ("ipv4:127.0.0.1:1", True), ("ipv6:[::1]:1", True), ("ipv6:%5B::1%5D:1", True),
        ("unix:/a", True), ("ipv4:10.0.0.1:1", False), ("ipv6:[fe80::1]:1", False), ("", False),
    ],
)  # fmt: skip
def test_without_keys_those_on_this_machine_are_operators(peer: str, operator: bool) -> None:
    context: Any = Context(peer)
    assert Authenticator().caller(context).operator is operator
