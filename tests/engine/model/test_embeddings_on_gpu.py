"""Embeddings and scores on a GPU: the CPU's but for rounding, captured as eager."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quire.engine.config import EngineConfig
from quire.engine.model.config import MISTRAL, ModelConfig
from quire.engine.request import GenerationRequest, Pooling, SamplingParams
from quire.engine.startup.build_engine import build_engine
from quire.engine.weights.random import save_random

pytestmark = pytest.mark.gpu

SHAPE = dataclasses.replace(
    ModelConfig.named_shape("tiny"), num_layers=2, vocab_size=1024, stored_dtype="float32"
)
WINDOWED = dataclasses.replace(SHAPE, architecture=MISTRAL, sliding_window=48)
PAIR = (300, 7)
LENGTHS = (1, 5, 40, 130, 300)


def _requests() -> list[GenerationRequest]:
    """States, logits and a generated text, side by side."""
    made = []
    for key, length in enumerate(LENGTHS):
        prompt = tuple((7 * i * i + key % 2) % 1000 + 3 for i in range(length))
        for shift, pooling in ((0, Pooling()), (100, Pooling(PAIR))):
            sampling = SamplingParams(max_tokens=1)
            made.append(GenerationRequest(shift + key, prompt, sampling, pooling=pooling))
        made.append(GenerationRequest(200 + key, prompt, SamplingParams(max_tokens=3)))
    return made


def _numbers(model: Path, **options: Any) -> dict[int, Any]:
    config = EngineConfig(
        model=str(model),
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        num_blocks=256,
        **options,
    )
    core = build_engine(config, lambda _stage, _share: None).core
    found: dict[int, Any] = {}
    for _ in range(2):  # the second time what was captured by then is replayed, and much is cached
        for request in _requests():
            core.scheduler.submit(request)
        while core.scheduler.has_requests:
            for output in core.step():
                if output.pooled is not None:
                    found[output.key] = np.frombuffer(output.pooled, "<f4").astype(np.float64)
    return found


def _unlike(some: dict[int, Any], others: dict[int, Any], keys: Sequence[int]) -> float:
    """One less the least cosine."""
    pairs = [(some[key], others[key]) for key in keys]
    return 1 - min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs)


@pytest.mark.parametrize("shape", [SHAPE, WINDOWED], ids=["qwen3", "mistral"])
def test_a_gpus_states_and_logits_are_the_cpus(shape: ModelConfig, tmp_path: Path) -> None:
    save_random(shape, tmp_path / "model", seed=3)
    model = tmp_path / "model"
    cpu = _numbers(model, device="cpu", dtype="float32")
    keys = range(len(LENGTHS))
    wide = _numbers(model, device="cuda", dtype="float32")
    assert _unlike(wide, cpu, keys) < 1e-5
    for key in keys:
        np.testing.assert_allclose(wide[100 + key], cpu[100 + key], atol=2e-3)
    for eager in (False, True):
        narrow = _numbers(model, device="cuda", dtype="bfloat16", enforce_eager=eager)
        assert _unlike(narrow, cpu, keys) < 5e-3, f"bfloat16, eager: {eager}"
