"""One test for each defect of texts and calls that users of comparable systems reported.

What each system got wrong stands in the test's first line; what Quire does instead is asserted. A
test is named after where it was reported.
"""

import asyncio
import json
import threading
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from support.fake_engine import Builder, Device, FakeEngine
from support.harness import ask, generate, run, serving, settings

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.model.config import ModelConfig
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.weights.random import save_random
from quire.service.models import pocket
from quire.service.rpc.served_model import ServedModel
from quire.service.text.detokenizer import Detokenizer
from quire.service.text.tokenizer import load as load_tokenizer
from quire.v1 import inference_pb2 as pb


def test_exo_1691_character_split_across_tokens() -> None:
    """Half a character was sent as U+FFFD. It is held back until it is whole, or never will be."""
    whole = "é日👍"
    pieces = [bytes([byte]) for byte in whole.encode()]
    detokenizer = Detokenizer(pieces)
    texts = [detokenizer.push(index) for index in range(len(pieces))]
    assert [text for text in texts if text] == list(whole)
    cut = Detokenizer(pieces)
    assert "".join(cut.push(index) for index in range(len(pieces) - 1)) == "é日"
    assert cut.flush() == "\ufffd"


def test_mlx_vlm_309_only_one_eos_id_honoured(tmp_path: Path) -> None:
    """Generation ran past the others: the ids of all three files end it."""
    save_random("tiny", tmp_path)
    for name, ids in (("config.json", 5), ("generation_config.json", [6, 7])):
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ids}))
    config = ModelConfig.from_directory(tmp_path)
    assert config.eos_token_ids == (5, 6, 7)
    tokenizer = replace(load_tokenizer(pocket.directory(), 4096), eos_token_ids=(9,))
    info = replace(_fake_info(), eos_token_ids=config.eos_token_ids)
    union = ServedModel("m", info, tokenizer, None).eos_token_ids
    assert union == (5, 6, 7, 9)
    params = SamplingParams(eos_token_ids=union, stop_token_ids=(8,))
    assert params.ending_ids == {5, 6, 7, 8, 9}
    assert replace(params, ignore_eos=True).ending_ids == {8}


def _fake_info() -> Any:
    return FakeEngine(settings().engine, Device()).info


def test_vllm_28172_usage_counted_by_encoding_the_text_again() -> None:
    """ "ab" is one token to a tokenizer and was two to the model: ids are counted, not text."""

    async def test() -> None:
        tokenizer = load_tokenizer(pocket.directory(), 4096)
        text = "the 日本 👍"
        ids = [i for char in text for i in tokenizer.encode(char, add_special_tokens=False)]
        again = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) not in (len(again), len(text))
        async with serving() as running:
            answer = await generate(running, ask(ids, max_tokens=len(ids)))
            assert answer.text() == text
            assert answer.ids() == ids
            usage = answer.finished[0].usage
            assert usage.prompt_tokens == usage.completion_tokens == len(ids)

    run(test)


def test_sglang_omni_2077_two_threads_touched_the_tables() -> None:
    """Aborts changed the tables from the server's thread while a step was being planned."""
    touched: dict[str, set[int]] = {}

    def watch(target: Any, names: tuple[str, ...]) -> None:
        for name in names:
            method = getattr(target, name)

            def called(*args: Any, _name: str = name, _method: Any = method, **more: Any) -> Any:
                touched.setdefault(_name, set()).add(threading.get_ident())
                return _method(*args, **more)

            setattr(target, name, called)

    class Watched(Builder):
        def __call__(self, config: Any, progress: Any) -> FakeEngine:
            built = super().__call__(config, progress)
            scheduler = built.core.scheduler
            watch(scheduler, ("submit", "abort", "finish", "schedule", "apply"))
            watch(scheduler.pool, ("allocate", "release", "share", "block_map"))
            return built

    async def test() -> None:
        device = Device()
        subject = AsyncEngine(ThreadLink(settings().engine, Watched(device)))
        await subject.start()
        for ending in ("leave", "finish", "wait"):
            device.hold()  # so that nothing ends by itself before it is ended here
            spec = GenerationRequest(subject.new_key(), (7,) * 20, SamplingParams(max_tokens=8))
            async with aclosing(subject.generate(spec)) as stream:
                async for _ in stream:
                    if ending == "leave":
                        break
                    if ending == "finish":
                        subject.finish(spec.key, 0, 0)
                    device.release()
            device.release()
            await subject.block_map()
        await subject.stop()

    run(test)
    for name in ("submit", "abort", "finish", "schedule", "apply", "release", "block_map"):
        assert name in touched
    threads = set().union(*touched.values())
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_smg_proto_zero_not_told_from_unset() -> None:
    """`top_p = 0` looked like nothing: every scalar for which the two differ is optional."""
    fields = pb.SamplingParams.DESCRIPTOR.fields_by_name
    empty = pb.SamplingParams()
    numbers = {name for name in fields if type(getattr(empty, name)) in (int, float)}
    assert len(numbers) >= 12
    for name in numbers:
        assert fields[name].has_presence, f"{name}: must be optional"
        params = pb.SamplingParams()
        setattr(params, name, 0)
        assert pb.SamplingParams.FromString(params.SerializeToString()).HasField(name)
        assert not pb.SamplingParams().HasField(name)

    async def test() -> None:
        async with serving() as running:
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            for name in ("top_p", "max_tokens", "n"):
                answer = await generate(running, ask([300], **{name: 0}))
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
                assert f"sampling.{name}" in answer.violations

    run(test)


def test_nanovllm_voxcpm_37_disconnect_killed_the_server() -> None:
    """Writing to a client that had gone raised, and the whole server ended."""

    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            device.hold()
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}")
            method = channel.unary_stream(
                "/quire.v1.InferenceService/Generate",
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.GenerateResponse.FromString,
            )
            gone = method(ask([300] * 8, max_tokens=200, ignore_eos=True))
            stays = asyncio.create_task(generate(running, ask([301, 302], max_tokens=3)))
            await running.until(lambda stats: stats.requests.accepted == 2)
            gone.cancel()
            await channel.close()
            device.release()
            assert (await stays).code is grpc.StatusCode.OK
            stats = await running.idle()
            assert stats.requests.finished_cancelled == 1
            assert (await generate(running, ask([303]))).code is grpc.StatusCode.OK

    run(test)
