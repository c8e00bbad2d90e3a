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
from support.fake_engine import Device
from support.harness import Running, ask, generate, read, run, serving
from support.server_process import quire

from quire.engine.errors import ConfigError
from quire.service.security.auth import (
    KeyRing,
    certificate_name,
    make_entry,
    new_key,
    peer_address,
    read_keys,
)
from quire.service.security.reload import WatchedFiles, Watcher
from quire.service.settings import ServiceConfig
from quire.v1 import inference_pb2 as pb

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(
        f"# who may call\n\n{make_entry('alice', ALICE)} operator\n{make_entry('bob', BOB)}\n"
    )
    return path


# ------------------------------------------------------------ the file


def test_keys_are_found_by_their_salted_hash(keys: Path) -> None:
    ring = read_keys(keys)
    assert len(ring) == 2
    assert ring.find(ALICE.encode()) == "alice"
    assert ring.find(BOB.encode()) == "bob"
    assert ring.find(ALICE[:-1].encode()) is None
    assert ring.find(b"") is None
    assert ALICE not in keys.read_text()
    assert make_entry("x", ALICE) != make_entry("x", ALICE)


def test_a_key_is_compared_in_constant_time_known_or_not(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(1)
        return a == b

    ring = read_keys(keys)
    monkeypatch.setattr("quire.service.security.keys.hmac.compare_digest", compare)
    for key in (ALICE, BOB, "neither-of-them-at-all"):
        compared.clear()
        ring.find(key.encode())
        assert len(compared) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("alice\n", "line 1"),
        ("\nalice sha256:00:11\n", "line 2"),
        ("a/b sha256:" + "0" * 32 + ":" + "0" * 64, "line 1"),
        ("alice sha256:" + "0" * 33 + ":" + "0" * 64, "line 1"),
        (("alice sha256:" + "0" * 32 + ":" + "0" * 64 + "\n") * 2, "alice comes twice"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(tmp_path / "binary")


@pytest.mark.parametrize("key", ["short", "x" * 513, "with space 0123456789", "ümlaut-0123456789"])
def test_a_key_that_no_header_could_carry_gets_no_entry(key: str) -> None:
    with pytest.raises(ConfigError):
        make_entry("alice", key)


def test_made_keys_differ_and_can_be_used() -> None:
    assert new_key() != new_key()
    make_entry("alice", new_key())


def test_names_of_peers() -> None:
    assert peer_address("ipv4:10.1.2.3:4567") == "ipv4:10.1.2.3"
    assert peer_address("ipv6:%5B::1%5D:4567") == "ipv6:%5B::1%5D"
    assert peer_address("unix:/a/b") == "unix:/a/b"
    assert certificate_name({"x509_common_name": [b"alice"]}) == "alice"
    assert certificate_name({"x509_subject_alternative_name": [b"a.b"]}) == "a.b"
    assert certificate_name({"transport_security_type": [b"ssl"]}) == ""


# ------------------------------------------------------------ reload


def test_a_change_is_taken_over_and_a_bad_one_is_not(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = WatchedFiles("api_keys", [keys], lambda: read_keys(keys))
    before = watched.value
    assert not watched.refresh()
    keys.write_text("nonsense, and longer than before: " + "x" * 400)
    assert not watched.refresh()
    assert watched.value is before
    assert "the old stays in force" in caplog.text and "line 1" in caplog.text
    caplog.clear()
    assert not watched.refresh()
    assert not caplog.text  # said once
    keys.unlink()
    assert not watched.refresh()
    assert watched.value is before
    keys.write_text(make_entry("carol", "carol-key-0123456789") + "\n")
    assert watched.refresh()
    assert watched.value.find(ALICE.encode()) is None
    assert watched.value.find(b"carol-key-0123456789") == "carol"


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes replaces a mounted secret."""
    for name, key in (("one", ALICE), ("two", BOB)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(make_entry(name, key) + "\n")
    link = tmp_path / "current"
    link.symlink_to("one")
    path = link / "keys"
    watched: WatchedFiles[KeyRing] = WatchedFiles("api_keys", [path], lambda: read_keys(path))
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(link)
    assert watched.refresh()
    assert watched.value.find(BOB.encode()) == "two"


def test_files_are_looked_at_again_and_again() -> None:
    async def test() -> None:
        looked = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()

        class Files:
            def refresh(self) -> bool:
                loop.call_soon_threadsafe(looked.release)
                return False

        watcher = Watcher(Files(), 0.001)
        watcher.start()
        for _ in range(3):
            await looked.acquire()
        watcher.stop()

    run(test)


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


def test_the_command_makes_entries_that_work(tmp_path: Path) -> None:
    made = quire("hash-key", "alice")
    assert made.returncode == 0
    key = made.stderr.rsplit(": ", 1)[1].strip()
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    assert key not in made.stdout
    assert read_keys(path).find(key.encode()) == "alice"
    given = quire("hash-key", "--stdin", "bob", given=BOB + "\n")
    path.write_text(given.stdout)
    assert read_keys(path).find(BOB.encode()) == "bob"
    assert not given.stderr
    short = quire("hash-key", "--stdin", "bob", given="short\n")
    assert (short.returncode, short.stdout) == (2, "")
    assert len(short.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", [None, "alice plaintext\n"])
def test_a_key_file_at_fault_ends_the_start_with_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    done = quire("serve", "--port", "0", "--api-keys", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "api_keys" in done.stderr and str(path) in done.stderr
