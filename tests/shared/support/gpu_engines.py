"""Engines on GPUs of this machine, for what several ranks answer beside one.

    python -m support.gpu_engines DTYPE RANKS [eager]

prints one engine's answers as a line of JSON: engines in one process see each other's memory.
"""

import faulthandler
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from support.small_engine import run

from quire.engine.config import EngineConfig
from quire.engine.parallel.process import Program
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.startup.build_engine import build_engine

RANK = (sys.executable, "-P", "-m", "quire.service.app.rank_child", "text", "warning")
TOKENS = 48
LIMIT = 240  # seconds
GREEDY = SamplingParams(max_tokens=TOKENS, ignore_eos=True, logprobs=2)
PROMPTS = tuple(
    tuple((37 * i * i + 11 * i * k) % 9000 + 1 for i in range(7 + 40 * k)) for k in range(6)
)


def answers(dtype: str, ranks: int, *, enforce_eager: bool = False) -> list[Sequence[int]]:
    """The tokens of every prompt: greedy, and drawn under a seed."""
    config = EngineConfig(
        model="random:0.6B",
        device="cuda",
        dtype=dtype,
        tensor_parallel_size=ranks,
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=128,  # so that prompts come in chunks
        num_blocks=64,
        enforce_eager=enforce_eager,
    )
    engine = build_engine(config, lambda _stage, _share: None, rank_program=Program(RANK))
    try:
        drawn = replace(GREEDY, temperature=0.8, seed=7, top_p=0.9)
        requests = [
            GenerationRequest(key, prompt, drawn if key % 3 == 2 else GREEDY)
            for key, prompt in enumerate(PROMPTS)
        ]
        outcomes = run(engine.core, requests)
        return [outcomes[key, 0].token_ids for key in range(len(PROMPTS))]
    finally:
        if engine.ranks is not None:
            engine.ranks.end()


def apart(dtype: str, ranks: int, *, eager: bool = False) -> list[Sequence[int]]:
    """The answers of an engine in a process of its own. Raises CalledProcessError."""
    command = [sys.executable, "-m", "support.gpu_engines", dtype, str(ranks)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [*command, *(["eager"] if eager else [])],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        timeout=LIMIT,
    )
    found: list[Sequence[int]] = json.loads(run.stdout.splitlines()[-1])["answers"]
    return found


def agreement(some: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> list[int]:
    """Of each answer, how many tokens are equal up to the first that is not."""
    pairs = zip(some, others, strict=True)
    return [
        next((at for at, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
        for x, y in pairs
    ]


def main(dtype: str, ranks: str, eager: str = "") -> None:
    """One engine's answers."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    begin = time.monotonic()
    found = answers(dtype, int(ranks), enforce_eager=bool(eager))
    print(json.dumps({"seconds": round(time.monotonic() - begin, 1), "answers": found}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
