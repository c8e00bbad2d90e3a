"""Engines on GPUs of this machine, for what several ranks answer beside one.

    python -m support.gpu_engines DTYPE

prints, as a line of JSON, how far their tokens agree.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from support.small_engine import run

from quire.engine.config import EngineConfig
from quire.engine.loop.build import build_engine
from quire.engine.request import GenerationRequest, SamplingParams

RANK = (sys.executable, "-P", "-m", "quire.service.app.rank_child", "text", "warning")
TOKENS = 48
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
        gpu_memory_utilization=0.3,
        enforce_eager=enforce_eager,
    )
    engine = build_engine(config, lambda _stage, _share: None, rank_program=RANK)
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


def agreement(some: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> list[int]:
    """Of each answer, how many tokens are equal up to the first that is not."""
    pairs = zip(some, others, strict=True)
    return [
        next((at for at, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
        for x, y in pairs
    ]


def main(dtype: str) -> None:
    """Two ranks beside one, and beside themselves without graphs."""
    one, two = answers(dtype, 1), answers(dtype, 2)
    found = {"dtype": dtype, "two as one": agreement(one, two)}
    print(json.dumps(found), flush=True)
    eager = answers(dtype, 2, enforce_eager=True)
    print(json.dumps({"dtype": dtype, "graphs as eager": agreement(two, eager)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
