"""GPT-2 on a GPU: the tokens of the CPU, and nothing is compiled late."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.engines_apart import result, start

from quire.engine.model.config import ModelConfig
from quire.engine.weights.random import save_random

pytestmark = pytest.mark.gpu

SHAPE = dataclasses.replace(  # whose vocabulary is odd, as GPT-2's is
    ModelConfig.named_shape("gpt2"),
    num_layers=3,
    hidden_size=256,
    num_q_heads=4,
    num_kv_heads=4,
    intermediate_size=1000,
    vocab_size=1025,
    eos_token_ids=(),
    initializer_range=0.1,
)
TOKENS = 24


def test_gpt2_gives_the_cpu_s_tokens_and_nothing_is_compiled_late(tmp_path: Path) -> None:
    save_random(SHAPE, tmp_path / "model", seed=3)
    gpu: dict[str, Any] = {"device": "cuda"}
    cpu = start(tmp_path, TOKENS, device="cpu", dtype="float32")
    wide = start(tmp_path, TOKENS, dtype="float32", **gpu)
    narrow = start(tmp_path, TOKENS, dtype="bfloat16", **gpu)
    expected, found, graphs = result(cpu), result(wide), result(narrow)
    assert found["missed"] == graphs["missed"] == []
    assert found["tokens"] == expected["tokens"]
    assert sum(len(tokens) for tokens in graphs["tokens"].values()) == 9 * TOKENS
