"""vllm.grpc.engine.VllmEngine over a socket: the same service under another contract."""

import asyncio
import hashlib
import io
import json
import zipfile
from typing import Any

import grpc
import pytest
from support.fake_engine import EOS, Device
from support.gateway import Face, facing, whole
from support.harness import ask, generate, run

from quire.engine.errors import ConfigError
from quire.service import errors
from quire.service.gateway import tokenizer_files
from quire.service.gateway.gateway_context import renamed
from quire.service.settings import ServiceConfig

pytest.importorskip("smg_grpc_proto", reason="the extra `gateway` is not installed")
PROMPT = [300, 301, 302, 303]


def test_chunks_come_then_the_end_with_all_ids() -> None:
    async def test() -> None:
        async with facing() as face:
            chunks, ends = await whole(face.generate(face.ask(PROMPT, request_id="one")))
            assert [i for chunk in chunks for i in chunk.token_ids] == [*PROMPT, EOS]
            (end,) = ends
            assert list(end.output_ids) == [*PROMPT, EOS] and end.finish_reason == "stop"
            assert (end.prompt_tokens, end.completion_tokens) == (4, 5)
            assert end.WhichOneof("matched_stop") is None, "EOS is no stop of the caller's"
            chunks, ends = await whole(face.generate(face.ask(PROMPT, stream=False, max_tokens=3)))
            assert not chunks and list(ends[0].output_ids) == PROMPT[:3]
            assert ends[0].finish_reason == "length"

    run(test)


def test_stops_logprobs_and_several_indices() -> None:
    async def test() -> None:
        async with facing() as face:
            asked = face.ask(PROMPT, n=2, logprobs=2, stop_token_ids=[302])
            _, ends = await whole(face.generate(asked))
            assert sorted(end.index for end in ends) == [0, 1]
            for end in ends:
                assert list(end.output_ids) == PROMPT[:3]
                assert end.matched_token_id == 302 and end.finish_reason == "stop"
                said = end.output_logprobs
                assert list(said.token_ids) == PROMPT[:3] and len(said.token_logprobs) == 3
                assert all(len(top.values) == len(top.token_ids) == 2 for top in said.top_logprobs)

    run(test)


_UNCLOSED = '{"format": {"type": "regex", "pattern": "("}}'


def test_fields_are_refused_by_the_foreign_contract_s_names() -> None:
    async def test() -> None:
        async with facing() as face:
            for wrong, name in (
                ({"max_tokens": 0}, "sampling_params.max_tokens"),
                ({"logprobs": 21}, "sampling_params.logprobs"),
                ({"regex": "("}, "sampling_params.regex"),
                ({"grammar": "start: ("}, "sampling_params.grammar"),
                ({"structural_tag": _UNCLOSED}, "sampling_params.structural_tag"),
                ({"prompt_logprobs": 1}, "sampling_params.prompt_logprobs"),
                (
                    {"max_tokens": 9999},
                    "sampling_params.max_tokens: with it the prompt is too long",
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await whole(face.generate(face.ask(PROMPT, **wrong)))
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert (caught.value.details() or "").startswith(name)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await whole(face.generate(face.ask([1 << 20])))
            assert (caught.value.details() or "").startswith("tokenized.input_ids")

    run(test)


def test_a_refusal_keeps_its_reason_under_foreign_names() -> None:
    told = renamed(errors.invalid([errors.TooLong("sampling.max_tokens", "too many")]))
    assert told.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert told.violations[0].field == "sampling_params.max_tokens"


async def begun(call: Any) -> None:
    assert (await anext(aiter(call))).WhichOneof("response") == "chunk"


def test_an_abort_ends_the_call_with_what_it_has_and_frees_all() -> None:
    async def test() -> None:
        async with facing(Device(step_seconds=0.002)) as face:
            asked = face.ask(PROMPT, request_id="mine", ignore_eos=True, max_tokens=1500)
            call = face.generate(asked)
            await begun(call)
            await face.one("Abort", request_ids=["another", "mine"])
            _, ends = await whole(call)
            assert [end.finish_reason for end in ends] == ["abort"]
            assert 0 < len(ends[0].output_ids) < 1500
            await face.running.idle()
            await face.one("Abort", request_ids=["mine", "mine"])  # nothing is open

    run(test)


def test_an_abort_reaches_calls_of_the_same_client_alone(tmp_path: Any) -> None:
    one, other = (f"{name}-key-of-enough-length" for name in ("one", "other"))
    keys = _keys(tmp_path, one=one, other=other)

    async def test() -> None:
        async with facing(Device(step_seconds=0.002), api_keys=keys) as face:
            asked = face.ask(PROMPT, request_id="mine", ignore_eos=True, max_tokens=100)
            call = face.generate(asked, metadata=_key(one))
            await begun(call)
            await face.one("Abort", request_ids=["mine"], metadata=_key(other))
            _, ends = await whole(call)
            assert [end.finish_reason for end in ends] == ["length"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await whole(face.generate(asked))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            for method in ("GetLoads",):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await face.one(method, metadata=_key(one))
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(face.subscribe(metadata=_key(one))))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    run(test)


def _key(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def _keys(directory: Any, **named: str) -> str:
    from quire.service.security.auth import make_entry

    path = directory / "keys"
    path.write_text("".join(make_entry(name, key) + "\n" for name, key in named.items()))
    path.chmod(0o600)
    return str(path)


def test_a_call_that_is_cancelled_is_aborted_and_admission_and_drain_are_our_own() -> None:
    async def test() -> None:
        async with facing(Device(step_seconds=0.002), max_streams_per_client=1) as face:
            asked = face.ask(PROMPT, ignore_eos=True, max_tokens=1500)
            call = face.generate(asked)
            await begun(call)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await whole(face.generate(asked))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_streams_per_client" in (caught.value.details() or "")
            call.cancel()
            stats = await face.running.idle()
            assert stats.requests.finished_cancelled == 1
            await asyncio.gather(face.running.server.drain())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await whole(face.generate(asked))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not (await face.one("HealthCheck")).healthy
            counted = face.running.server.ledger.rpcs
            assert counted["Generate", "CANCELLED"] == 1
            assert counted["Generate", "RESOURCE_EXHAUSTED"] == 1
            assert counted["Generate", "UNAVAILABLE"] == 1

    run(test)


def test_what_is_served_and_how_busy_it_is() -> None:
    async def test() -> None:
        device = Device(step_seconds=0.002)
        async with facing(device) as face:
            assert (await face.one("HealthCheck")).healthy
            model = await face.one("GetModelInfo")
            assert (model.served_model_name, model.is_generation) == ("fake", True)
            assert model.max_context_length == 2048 and model.vocab_size == 4096
            json.loads(model.default_sampling_params_json)
            server = await face.one("GetServerInfo")
            assert (server.server_type, server.block_size) == ("vllm-grpc", 16)
            assert server.constrained_decoding_start == "first_token"
            call = face.generate(face.ask(PROMPT, ignore_eos=True, max_tokens=1500))
            await begun(call)
            (load,) = (await face.one("GetLoads")).loads
            assert load.num_running_reqs == load.num_total_reqs == 1
            assert 0 < load.token_usage < 1 and load.num_used_tokens > 0
            call.cancel()

    run(test)


def test_methods_that_are_not_here_are_unimplemented() -> None:
    async def test() -> None:
        async with facing() as face:
            for method in ("Embed",):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await face.one(method)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)


def test_the_tokenizer_comes_in_pieces_with_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "CHUNK_BYTES", 1000)

    async def test() -> None:
        async with facing() as face:
            common = face.protos.common
            asked = common.GetTokenizerRequest()
            call = face.many("GetTokenizer", asked, common.GetTokenizerChunk)
            chunks = [chunk async for chunk in call]
            packed = b"".join(chunk.data for chunk in chunks)
            assert len(chunks) > 3 and not any(chunk.sha256 for chunk in chunks[:-1])
            assert chunks[-1].sha256 == hashlib.sha256(packed).hexdigest()
            names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
            assert "tokenizer.json" in names and not any("safetensors" in n for n in names)

    run(test)


async def _batch(call: Any) -> Any:
    return await anext(aiter(call))


async def _said(face: Face, ids: list[int]) -> None:
    assert (await generate(face.running, ask(ids, max_tokens=1))).code is grpc.StatusCode.OK


def test_a_subscriber_gets_a_snapshot_and_then_what_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quire.service.gateway.kv_stream.CHUNK_BLOCKS", 2)

    async def test() -> None:
        async with facing() as face:
            await _said(face, list(range(100, 165)))  # four full blocks
            call = face.subscribe()
            one, two = [await _batch(call) for _ in range(2)]
            assert one.events[0].WhichOneof("data") == "cleared"
            assert (one.snapshot.count, one.snapshot.blocks, two.snapshot.index) == (2, 4, 1)
            assert two.sequence_number == one.sequence_number + 1
            stored = [event.stored for event in (*one.events[1:], *two.events)]
            ids = [i for event in stored for block in event.blocks for i in block.token_ids]
            assert ids == list(range(100, 164))
            assert not stored[0].HasField("parent_block_hash")
            assert stored[1].parent_block_hash == stored[0].blocks[-1].block_hash
            await _said(face, list(range(500, 520)))
            change = await _batch(call)
            assert change.sequence_number == two.sequence_number + 1
            assert not change.HasField("snapshot") and change.events[0].event_id == 1
            (block,) = change.events[0].stored.blocks
            assert list(block.token_ids) == list(range(500, 516)) and block.block_size == 16
            back = face.subscribe(change.sequence_number)
            assert (await _batch(back)).events == change.events
            await face.running.engine.flush_cache()
            kinds = [event.WhichOneof("data") for event in (await _batch(call)).events]
            assert kinds[-1] == "cleared"
            call.cancel()
            back.cancel()

    run(test)


def test_another_client_s_salt_is_told_with_its_blocks() -> None:
    async def test() -> None:
        async with facing() as face:
            asked = ask(list(range(100, 117)), max_tokens=1, cache_salt="theirs")
            await generate(face.running, asked)
            await _said(face, list(range(200, 217)))
            call = face.subscribe()
            stored = {
                event.stored.blocks[0].token_ids[0]: event.stored.HasField("cache_salt")
                for event in (await _batch(call)).events[1:]
            }
            assert stored == {100: True, 200: False}
            call.cancel()

    run(test)


def test_a_port_beyond_this_machine_needs_keys_or_certificates() -> None:
    with pytest.raises(ConfigError, match=r"gateway_host = 0\.0\.0\.0"):
        ServiceConfig(gateway_port=1, gateway_host="0.0.0.0", insecure=True)
    with pytest.raises(ConfigError, match=r"gateway_host = 0\.0\.0\.0.*without TLS"):
        ServiceConfig(gateway_port=1, gateway_host="0.0.0.0", api_keys="file")
    ServiceConfig(gateway_port=1, gateway_host="0.0.0.0", api_keys="file", insecure=True)
    assert ServiceConfig().gateway_port is None


def test_the_main_port_does_not_speak_it() -> None:
    async def test() -> None:
        async with facing() as face:
            other = Face(face.running.channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await other.one("HealthCheck")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)
