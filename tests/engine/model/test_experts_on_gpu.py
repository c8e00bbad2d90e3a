"""A mixture of experts on a GPU: the tokens of the CPU, and nothing is compiled late."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.engines_apart import result, start

from quire.engine.model.config import QWEN3_MOE, Experts, ModelConfig
from quire.engine.weights.random import save_random

pytestmark = pytest.mark.gpu

SHAPE = dataclasses.replace(
    ModelConfig.named_shape("tiny"),
    architecture=QWEN3_MOE,
    hidden_size=256,
    num_layers=3,
    head_dim=64,
    intermediate_size=512,
    vocab_size=1024,
    stored_dtype="float32",
    experts=Experts(32, 4, 128, True, (1,)),
)
TOKENS = 24


def test_experts_give_the_cpu_s_tokens_and_nothing_is_compiled_late(tmp_path: Path) -> None:
    save_random(SHAPE, tmp_path / "model", seed=3)
    gpu: dict[str, Any] = {"device": "cuda"}
    cpu = start(tmp_path, TOKENS, device="cpu", dtype="float32")
    wide = start(tmp_path, TOKENS, dtype="float32", **gpu)
    narrow = start(tmp_path, TOKENS, dtype="bfloat16", **gpu)
    quantized = start(tmp_path, TOKENS, dtype="bfloat16", quantization="fp8", **gpu)
    expected, found, graphs = result(cpu), result(wide), result(narrow)
    fp8 = result(quantized)
    assert found["missed"] == graphs["missed"] == fp8["missed"] == []
    assert found["tokens"] == expected["tokens"]
    for served in (graphs, fp8):
        assert sum(len(tokens) for tokens in served["tokens"].values()) == 9 * TOKENS
