"""The cache of a model whose layers differ: what each kind gets of the memory, and that an engine
of it serves what transformers says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import hf_models
from support.small_engine import run

from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.model.config import QWEN2, ModelConfig
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.two_pools import TwoPoolScheduler
from quire.engine.startup import fit, sizing
from quire.engine.startup.build_engine import build_engine
from quire.engine.startup.ranks_needed import share_of
from quire.engine.startup.window_share import WindowShare
from quire.service.cli.dry_run import report

MIB = 1 << 20
CONFIG = EngineConfig(model="random:tiny", device="cpu", block_size=16, max_num_batched_tokens=512)
SHAPE = replace(
    ModelConfig.named_shape("tiny"), architecture=QWEN2, sliding_window=512, full_layers=(0, 2, 3)
)  # of 4096 positions, of 4 layers
LAYER = 16 * SHAPE.kv_bytes_per_token(torch.float32) // 4  # bytes of a block in one of them


def test_both_kinds_grow_by_what_a_long_request_needs_of_each() -> None:
    share = WindowShare.of(CONFIG, SHAPE, SHAPE.kv_bytes_per_token(torch.float32))
    assert share is not None
    # 4096 tokens are 256 blocks where all is seen, and 32 and the one begun of a window; and twice
    # 512 tokens are on their way.
    assert [share.window_blocks(256 * n) - 64 for n in (1, 2, 10)] == [33, 66, 330]
    assert share.bytes_of(512) == 513 * 3 * LAYER + 131 * LAYER
    assert share.window_blocks(50) == 50  # no more than there is of the others
    for nbytes in (0, LAYER, 4 * LAYER - 1, 4 * LAYER, 8 * LAYER, 3_000_000, 64 * MIB + 17):
        blocks = share.blocks_in(nbytes)
        assert share.bytes_of(blocks + 1) > nbytes
        assert blocks == -1 or share.bytes_of(blocks) <= nbytes
    alike = replace(SHAPE, full_layers=())
    assert WindowShare.of(CONFIG, alike, 1) is None


def test_a_plan_counts_both_caches() -> None:
    budget = CONFIG.replace(cpu_kv_gib=0.0625)
    plan = sizing.plan(budget, SHAPE)
    alike = sizing.plan(budget, replace(SHAPE, full_layers=(), sliding_window=None))
    assert alike.num_blocks < plan.num_blocks and alike.num_window_blocks == 0
    assert 64 * MIB - 5 * LAYER < plan.kv_cache_bytes <= 64 * MIB
    assert plan.kv_cache_bytes == LAYER * (3 * (plan.num_blocks + 1) + plan.num_window_blocks + 1)
    assert plan.blocks_in(plan.kv_cache_bytes) == plan.num_blocks
    verdict = fit.judge(budget, plan)
    assert verdict.fits and plan.full_length_sequences == plan.num_blocks // 256
    shared = share_of(CONFIG, SHAPE, plan, 2)
    whole, least = shared.whole_bytes, shared.least_bytes
    assert whole - least == (plan.bytes_of_blocks(256) - plan.bytes_of_blocks(1)) // 2
    with pytest.raises(CapacityError, match="no room for the KV cache"):
        sizing.cache_blocks(CONFIG, SHAPE, torch.float32, 8 * LAYER - 1, "nothing")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("both")
    hf_models.save(hf_models.TWO_KIND_SHAPES[0], path)
    return path


@pytest.mark.parametrize("cache", ("auto", "fp8"))
def test_an_engine_has_the_caches_of_its_plan(directory: Path, cache: str) -> None:
    config = EngineConfig(
        model=str(directory),
        device="cpu",
        block_size=16,
        num_blocks=40,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        kv_cache_dtype=cache,
    )
    engine = build_engine(config, lambda _stage, _share: None)
    scheduler, kv = engine.core.scheduler, engine.runner._kv
    assert isinstance(scheduler, TwoPoolScheduler) and kv.window is not None
    plan = sizing.plan(config, ModelConfig.from_directory(directory))
    taken = sum(t.nbytes for one in (kv, kv.window) for t in (one.k, one.v))
    assert taken == plan.kv_cache_bytes == engine.info.kv_cache_bytes
    assert (kv.num_blocks, kv.window.num_blocks) == (41, plan.num_window_blocks + 1)
    assert engine.info.num_blocks == 40 and plan.num_window_blocks < 10
    assert engine.stats().blocks_total == 40 + plan.num_window_blocks
    prompt = tuple(range(3, 60))
    spec = GenerationRequest(1, prompt, SamplingParams(max_tokens=24), n=2)
    outcomes = run(engine.core, [spec])
    assert outcomes[1, 0].token_ids == outcomes[1, 1].token_ids
    if cache == "auto":
        theirs = hf_models.load(directory, torch.float32)
        asked = torch.tensor([prompt])
        made = theirs.generate(asked, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert outcomes[1, 0].token_ids == made[0, len(prompt) :].tolist()


def test_a_dry_run_tells_of_both(directory: Path) -> None:
    text, starts = report(CONFIG.replace(model=str(directory), num_blocks=100))
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    assert starts
    assert rows["blocks"].strip() == "100 of 16 tokens"
    told = next(value for name, value in rows.items() if name == "blocks of windows")
    plan = sizing.plan(CONFIG.replace(num_blocks=100), ModelConfig.from_directory(directory))
    assert told.strip().startswith(f"{plan.num_window_blocks}, of layers with a window")
