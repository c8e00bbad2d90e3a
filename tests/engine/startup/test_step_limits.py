"""Steps stay within what a kernel's grid and int32 can hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_engine import model_config

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.startup import sizing
from quire.engine.startup.build_engine import build_engine


@pytest.mark.parametrize(
    ("name", "most", "others"),
    [
        ("max_num_batched_tokens", 65_535, {}),
        ("max_num_seqs", 32_768, {"max_num_batched_tokens": 65_535}),
        ("max_model_len", 2**31 - 1, {}),
        ("num_blocks", 2**31 - 2, {}),
    ],
)
def test_an_option_has_an_upper_bound(name: str, most: int, others: dict[str, Any]) -> None:
    config = EngineConfig(**others | {name: most})
    for more in (most + 1, 2**40):
        with pytest.raises(ConfigError, match=f"{name} = {more}: must be at most {most}"):
            config.replace(**{name: more})


@pytest.mark.parametrize(
    ("options", "card", "cpu"),
    [
        ({}, 8192, 512),
        ({"max_num_seqs": 1000}, 8192, 1000),  # each may have a token in every step
        ({"max_num_seqs": 9000}, 9000, 9000),
        ({"max_num_batched_tokens": 4096}, 4096, 4096),
    ],
)
def test_a_stream_waits_for_short_steps_on_a_cpu(
    options: dict[str, int], card: int, cpu: int
) -> None:
    config = EngineConfig(
        model="random:tiny", device="cpu", num_blocks=8, max_model_len=64, **options
    )
    assert config.step_tokens() == card
    engine = build_engine(config, lambda _stage, _share: None)
    assert engine.core.scheduler.max_num_batched_tokens == cpu


def test_a_long_prompt_is_computed_in_steps_of_that_size() -> None:
    config = EngineConfig(model="random:tiny", device="cpu", num_blocks=64, max_model_len=2048)
    scheduler = build_engine(config, lambda _stage, _share: None).core.scheduler
    scheduler.submit(GenerationRequest(1, (7,) * 1300, SamplingParams(max_tokens=1)))
    plans = iter(scheduler.schedule, None)
    assert [plan.num_tokens for plan in plans] == [512, 512, 276]


def heads(group: int) -> ModelConfig:
    return replace(model_config(q_heads=2 * group, kv_heads=2), max_position_embeddings=1024)


@pytest.mark.parametrize("group", (1, 2, 4, 9, 16))
def test_tiles_of_a_step_are_bounded(group: int) -> None:
    config = EngineConfig(max_num_seqs=256, max_num_batched_tokens=65_535)
    if group < 9:  # two tokens a tile or more
        sizing.check_grids(config, heads(group))
    else:
        with pytest.raises(ConfigError, match=r"max_num_batched_tokens = 65535: .* at most 65279"):
            sizing.check_grids(config, heads(group))
        sizing.check_grids(config.replace(max_num_batched_tokens=65_279), heads(group))


@pytest.mark.parametrize(("group", "tokens"), [(2, 65_535), (16, 65_279)])
def test_the_largest_step_fits_every_grid(group: int, tokens: int) -> None:
    pytest.importorskip("triton")
    from support.recorded_ops import recorded

    from quire.kernels.triton_ops import TritonOps

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    ops = TritonOps.on(torch.device("meta"))
    cache, norm, ints = empty(64, 2, 64, 64), empty(64), empty(tokens, dtype=torch.int32)
    qkv = empty(tokens, (2 * group + 4) * 64)
    rows = empty(256, dtype=torch.int32)
    tables, starts = empty(256, 64, dtype=torch.int32), empty(257, dtype=torch.int32)
    slots = empty(tokens, dtype=torch.int64)
    with recorded() as launched:
        q = ops.qk_norm_rope_kv_write(
            qkv, norm, norm, 1e-6, empty(4096, 64), ints, slots, cache, cache
        )
        for longest in (1, 4000):
            ops.prefill_attention(q, cache, cache, tables, starts, rows, 0.1, longest, 4096)
        ops.silu_mul(empty(tokens, 6144))
    assert len(launched) >= 3
