"""Exact mode over small models in Triton: what stands beside a request changes none of its bits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from support.small_engine import FAMILIES, Setup, build_core

from quire.engine.loop.core import EngineCore
from quire.engine.model.forward_batch import KVCache
from quire.engine.model.registry import build_model
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.weights.random import fill_random

pytestmark = [pytest.mark.triton, pytest.mark.long]

NEW = 3
PROMPTS = (tuple(range(5, 25)), (7,), tuple(range(5, 12)))
ALONE = Setup(block_size=16, num_blocks=17)
WAYS = {
    "together": replace(ALONE, max_num_seqs=3),
    "in chunks beside others": replace(ALONE, max_num_seqs=3, max_num_batched_tokens=6),
    "hits": replace(ALONE, max_num_seqs=3, caching=True),
}
Said = dict[int, list[Any]]


@pytest.fixture(params=["fp8 with experts", "qwen3 with experts"])
def model(request: pytest.FixtureRequest, device: torch.device, ordered_dots: None) -> Any:
    """One layer without experts, and one with."""
    if device.type != "cpu":
        pytest.skip("on a GPU benchmarks/exact_mode.py compares whole models")
    from quire.kernels.triton_ops import TritonOps

    del ordered_dots
    ops = TritonOps.on(device, exact=True)
    made = build_model(FAMILIES[request.param], ops, dtype=torch.bfloat16, device=device)
    fill_random(made, 3)
    return made, ops


def core_of(model: Any, setup: Setup) -> EngineCore:
    """Over a cache of 16 bits."""
    core = build_core(*model, setup)
    runner: Any = core.runner
    kv = runner._kv
    runner._kv = runner._writer._kv = KVCache(
        *(side.to(torch.bfloat16) for side in (kv.k, kv.v)), None
    )
    return core


def served(core: EngineCore, batches: Sequence[Sequence[int]]) -> tuple[Said, int]:
    """Tokens and log probabilities of each prompt, and how many cached tokens there were."""
    said: Said = {index: [] for batch in batches for index in batch}
    cached = 0
    for batch in batches:
        for index in batch:
            params = SamplingParams(max_tokens=NEW, ignore_eos=True, logprobs=5)
            core.scheduler.submit(GenerationRequest(index, PROMPTS[index], params))
        while core.scheduler.has_requests:
            for output in core.step():
                assert output.error_id is None
                said[output.key].extend(output.logprobs or ())
                cached += output.cached_tokens if output.started else 0
    return said, cached


def test_bits_are_those_of_a_request_alone(model: Any) -> None:
    alone, _ = served(core_of(model, ALONE), [[index] for index in range(len(PROMPTS))])
    assert all(len(tokens) == NEW for tokens in alone.values())
    for way, setup in WAYS.items():
        core, order = core_of(model, setup), [*range(len(PROMPTS))]
        batches = [[0], order] if setup.caching else [order]
        found, cached = served(core, batches)
        assert (cached > 0) == setup.caching
        twice = {0: alone[0] * 2} if setup.caching else {}
        assert found == alone | twice, way
