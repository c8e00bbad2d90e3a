"""An engine whose cache is e4m3: its size, its name, and what is refused."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.ranks import as_ranks
from support.small_engine import run
from support.tiny_checkpoint import write
from torch import Tensor

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError
from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.warmup import bounds_of
from quire.engine.startup import build_rank, sizing
from quire.engine.startup.build_engine import Engine, build_engine
from quire.kernels import reference, support
from quire.kernels.cpu.ops import CpuOps

FP8, GIB = torch.float8_e4m3fn, 1 << 30
SHAPE = ModelConfig.named_shape("8B")
PROMPT = tuple(range(5, 90))


def options(**more: Any) -> EngineConfig:
    small = {"model": "random:tiny", "device": "cpu", "max_num_seqs": 2, "cpu_kv_gib": 0.01}
    return EngineConfig(**(small | more))


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    """One with each cache, over the same weights."""
    kinds = ("auto", "fp8")
    return {
        kind: build_engine(options(kv_cache_dtype=kind), lambda _stage, _share: None)
        for kind in kinds
    }


def test_it_holds_e4m3_and_says_so(engines: dict[str, Engine]) -> None:
    plain, narrow = engines["auto"].info, engines["fp8"].info
    runner: Any = engines["fp8"].runner
    assert runner._kv.k.dtype == runner._kv.v.dtype == FP8
    assert (plain.kv_cache_dtype, narrow.kv_cache_dtype) == ("float32", "float8_e4m3fn")
    assert plain.kv_bytes_per_token == 4 * narrow.kv_bytes_per_token
    assert abs(narrow.num_blocks + 1 - 4 * (plain.num_blocks + 1)) < 4
    assert narrow.num_blocks + 1 == runner._kv.num_blocks
    assert plain.dtype == narrow.dtype


def test_a_stream_does_not_go_on_at_a_replica_with_another_cache(
    engines: dict[str, Engine],
) -> None:
    assert engines["auto"].info.fingerprint != engines["fp8"].info.fingerprint


def test_a_prompt_that_is_cached_goes_on_as_one_that_is_not(engines: dict[str, Engine]) -> None:
    """By the operations that a server has, compiled ones included: the numbers are the cache's."""
    core = engines["fp8"].core
    asked = [GenerationRequest(1, PROMPT, SamplingParams(max_tokens=8))]
    cold, hot = (run(core, asked)[1, 0] for _ in range(2))
    assert (cold.cached_tokens, hot.cached_tokens) == (0, len(PROMPT) - 1)
    assert cold.token_ids == hot.token_ids and len(hot.token_ids) == 8
    runner: Any = core.runner
    used = runner._kv.k.float().abs().amax((0, 2, 3, 4)) > 0
    assert int(used.sum()) > len(PROMPT) // 64


def test_compiled_attention_leaves_such_a_cache_to_the_twin(engines: dict[str, Engine]) -> None:
    runner: Any = engines["fp8"].runner
    ops = runner._ops
    if not isinstance(ops, CpuOps):
        pytest.skip("this machine compiles no operations")
    cache = torch.randn(3, 2, 16, 16).to(FP8)
    q, table = torch.randn(1, 4, 16), torch.tensor([[1, 2]], dtype=torch.int32)
    rest = (cache, cache, table, torch.tensor([20], dtype=torch.int32), 0.25, 20)
    assert torch.equal(ops.decode_attention(q, *rest), reference.decode_attention(q, *rest))
    assert not ops.attention.takes(q, cache, 4)


def test_ranks_hold_their_heads_of_the_same_cache() -> None:
    config = options(kv_cache_dtype="fp8", tensor_parallel_size=2, num_blocks=4)
    said: set[str] = set()

    def one(world: World) -> tuple[torch.dtype, int]:
        def agree(blocks: int, fingerprint: str) -> int:
            said.add(fingerprint)
            return blocks

        rank = build_rank.build_rank(
            config, world.rank, lambda: world, lambda _stage, _share: None, agree
        )
        kv = rank.kv
        return kv.k.dtype, kv.k.shape[2]

    threads = torch.get_num_threads()
    try:
        heads = ModelConfig.named_shape("tiny").num_kv_heads
        assert as_ranks(2, one) == [(FP8, max(heads // 2, 1))] * 2
    finally:
        torch.set_num_threads(threads)
    assert len(said) == 1


def test_what_is_warmed_and_compiled_ahead_is_of_such_a_cache(
    engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from quire.engine.runner import compile_worker
    from quire.engine.runner.compile_orders import Orders
    from quire.kernels.launches import Card

    made: list[torch.dtype] = []

    def kept(*arguments: Any, keep: Any = compile_worker.Runner, **more: Any) -> Any:
        kv = arguments[2]
        made.extend((kv.k.dtype, kv.v.dtype))
        return keep(*arguments, **more)

    monkeypatch.setattr(compile_worker, "Runner", kept)
    for kind, engine in engines.items():
        runner: Any = engine.runner
        config = options(kv_cache_dtype=kind)
        heads = bounds_of(config, runner._model, Card()).heads
        assert (heads.narrow, heads.dtype) == (kind == "fp8", torch.float32)
        orders = Orders(dataclasses.asdict(config), "bfloat16", 90, 232_448, "A card", True)
        compile_worker.launches_of(orders)
    assert made == [torch.bfloat16] * 2 + [FP8] * 2


# ---------------------------------------------------------------- a GPU's


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """A card of 80 GiB; its compute capability, to be changed."""
    found = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (80 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device=None: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: found[0])
    support.knows_e4m3.cache_clear()
    yield found
    support.knows_e4m3.cache_clear()


def plan_of(kind: str) -> sizing.SizingPlan:
    return sizing.plan(EngineConfig(model="random:8B", kv_cache_dtype=kind), SHAPE)


@pytest.mark.usefixtures("card")
def test_a_card_has_room_for_twice_the_blocks() -> None:
    plain, narrow = plan_of("auto"), plan_of("fp8")
    assert (plain.kv_cache_dtype, narrow.kv_cache_dtype) == ("bfloat16", "float8_e4m3fn")
    assert plain.dtype == narrow.dtype == "bfloat16"
    assert narrow.num_blocks + 1 in (2 * (plain.num_blocks + 1), 2 * (plain.num_blocks + 1) + 1)
    assert plain.graph_bytes == narrow.graph_bytes  # what a step takes is activations'
    assert plain.weight_bytes == narrow.weight_bytes


def test_the_cache_is_sized_beside_graphs_of_the_activations_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(build_rank, "peak_bytes", lambda *_: 0)
    monkeypatch.setattr(sizing, "graph_bytes", lambda _c, _s, dtype: seen.append(dtype) or 0)
    monkeypatch.setattr(sizing, "gpu_budget", lambda *_: (GIB, "a card"))
    cuda = cast(Any, type("On", (), {"seeds": type("At", (), {"device": torch.device("cuda")})}))
    model = cast(Any, type("Of", (), {"dtype": torch.bfloat16}))
    config = EngineConfig(model="random:8B", kv_cache_dtype="fp8")
    assert build_rank._size_cache(config, SHAPE, model, cuda, FP8, 4096) > 2
    assert seen == [torch.bfloat16]


def test_a_card_that_cannot_round_to_e4m3_is_refused(card: list[tuple[int, int]]) -> None:
    card[0] = (8, 0)
    words = "kv_cache_dtype = fp8: A card has compute capability 8.0: a cache of FP8 needs 8.9"
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}"):
        plan_of("fp8")
    assert plan_of("auto").num_blocks > 0


def test_scales_of_a_cache_in_a_checkpoint_are_refused_by_name(tmp_path: Path) -> None:
    def with_scale(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)

    write(tmp_path / "model", with_scale)
    config = options(model=str(tmp_path / "model"), kv_cache_dtype="fp8")
    words = "model.layers.0.self_attn.k_scale is a scale of a cache of 8 bits: kv_cache_dtype = fp8"
    with pytest.raises(ModelError, match=re.escape(words)):
        build_engine(config, lambda _stage, _share: None)
