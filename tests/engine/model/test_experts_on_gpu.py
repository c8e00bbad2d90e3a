"""A mixture of experts on a GPU: the tokens of the CPU, and nothing is compiled late."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE

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
OPTIONS = {"max_num_seqs": 24, "max_num_batched_tokens": 512, "max_model_len": 512}
PROMPTS = [[(7 * i + 13 * j) % 1000 + 1 for j in range(3 + 23 * i)] for i in range(9)]

# Serves the prompts, twice so that steps are captured, and tells which kernels were compiled late.
ENGINE = """
import json, sys
from quire.engine.config import EngineConfig
from quire.engine.loop.build import build_engine
from quire.engine.request import GenerationRequest, SamplingParams
asked = json.loads(sys.stdin.read())
missed = []
if asked["options"]["device"] == "cuda":
    from triton import knobs
    def listen(*, src, cache_hit, **_rest):
        if not cache_hit:
            missed.append(src.name)
    knobs.compilation.listener = listen
core = build_engine(EngineConfig(**asked["options"]), lambda stage, share: None).core
for time in range(3):
    tokens = {}
    for key, prompt in enumerate(asked["prompts"], start=1):
        params = SamplingParams(max_tokens=24, ignore_eos=True)
        core.scheduler.submit(GenerationRequest(100 * time + key, tuple(prompt), params))
    while core.scheduler.has_requests:
        for output in core.step():
            assert output.error_id is None
            tokens.setdefault(output.key % 100, []).extend(output.token_ids)
print(json.dumps({"tokens": tokens, "missed": missed}))
"""


def start(folder: Path, **options: Any) -> "subprocess.Popen[str]":
    """An engine in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRITON_CACHE_DIR": str(folder / "-".join(map(str, options.values())))},
    )
    assert process.stdin is not None
    asked = OPTIONS | {"model": str(folder / "model")} | options
    process.stdin.write(json.dumps({"options": asked, "prompts": PROMPTS}))
    process.stdin.close()
    process.stdin = None
    return process


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def test_experts_give_the_cpu_s_tokens_and_nothing_is_compiled_late(tmp_path: Path) -> None:
    save_random(SHAPE, tmp_path / "model", seed=3)
    gpu: dict[str, Any] = {"device": "cuda", "num_blocks": 400}
    cpu = start(tmp_path, device="cpu", dtype="float32", num_blocks=400)
    wide = start(tmp_path, dtype="float32", **gpu)
    narrow = start(tmp_path, dtype="bfloat16", **gpu)
    quantized = start(tmp_path, dtype="bfloat16", quantization="fp8", **gpu)
    expected, found, graphs = result(cpu), result(wide), result(narrow)
    fp8 = result(quantized)
    assert found["missed"] == graphs["missed"] == fp8["missed"] == []
    assert found["tokens"] == expected["tokens"]
    for served in (graphs, fp8):
        assert sum(len(tokens) for tokens in served["tokens"].values()) == 9 * 24
