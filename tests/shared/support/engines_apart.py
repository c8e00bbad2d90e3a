"""Engines in processes of their own that answer nine prompts, and tell which kernels came late."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.patience import PATIENCE

OPTIONS = {
    "max_num_seqs": 24,
    "max_num_batched_tokens": 512,
    "max_model_len": 512,
    "num_blocks": 400,
}
PROMPTS = [[(7 * i + 13 * j) % 1000 + 1 for j in range(3 + 23 * i)] for i in range(9)]

# Serves the prompts, twice so that steps are captured, and tells which kernels were compiled late.
ENGINE = """
import json, sys
from quire.engine.config import EngineConfig
from quire.engine.startup.build_engine import build_engine
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
        params = SamplingParams(max_tokens=asked["max_tokens"], ignore_eos=True)
        core.scheduler.submit(GenerationRequest(100 * time + key, tuple(prompt), params))
    while core.scheduler.has_requests:
        for output in core.step():
            assert output.error_id is None
            tokens.setdefault(output.key % 100, []).extend(output.token_ids)
print(json.dumps({"tokens": tokens, "missed": missed}))
"""


def start(folder: Path, max_tokens: int, **options: Any) -> "subprocess.Popen[str]":
    """An engine of the checkpoint `folder / "model"`, whose kernels are kept by its options."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRITON_CACHE_DIR": str(folder / "-".join(map(str, options.values())))},
    )
    assert process.stdin is not None
    asked = OPTIONS | {"model": str(folder / "model")} | options
    ask = {"options": asked, "prompts": PROMPTS, "max_tokens": max_tokens}
    process.stdin.write(json.dumps(ask))
    process.stdin.close()
    process.stdin = None
    return process


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Its `tokens` by prompt, and the names of the kernels that it `missed`."""
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found
