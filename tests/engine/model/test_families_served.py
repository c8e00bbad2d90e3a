"""Whole engines of each family beside Qwen3: what they serve is what transformers says, on the CPU
and on a GPU, captured steps and prompts in chunks among it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import hf_models
from torch import Tensor

from quire.engine.config import EngineConfig
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.startup.build_engine import build_engine

NEW_TOKENS = 24
PROMPTS = [[(7 * i + 13 * length) % 2000 + 1 for i in range(length)] for length in (1, 37, 150)]
SHAPES = (
    *hf_models.QWEN2_SHAPES[:2],
    *hf_models.LLAMA_SHAPES[:3],
    *hf_models.WINDOW_SHAPES[:3],
    hf_models.WINDOW_SHAPES[-1],
    *hf_models.TWO_KIND_SHAPES[:3],
    hf_models.GPT2_SHAPES[0],
)


def where() -> Iterator[Any]:
    for shape in SHAPES:
        for device, mark in (("cpu", pytest.mark.long), ("cuda", pytest.mark.gpu)):
            yield pytest.param(shape, device, marks=mark, id=f"{shape.name} on {device}")


def served(directory: Path, **options: Any) -> list[tuple[list[int], list[float]]]:
    """Each prompt's tokens and their log-probabilities, the third time they are asked for: what was
    captured by then is replayed."""
    config = EngineConfig(
        model=str(directory),
        block_size=16,
        num_blocks=80,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
        **options,
    )
    core = build_engine(config, lambda _stage, _share: None).core
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0)
    for _ in range(3):
        found: list[tuple[list[int], list[float]]] = [([], []) for _ in PROMPTS]
        for key, prompt in enumerate(PROMPTS):
            core.scheduler.submit(GenerationRequest(key, tuple(prompt), params))
        while core.scheduler.has_requests:
            for output in core.step():
                assert output.error_id is None
                found[output.key][0].extend(output.token_ids)
                found[output.key][1].extend(one.logprob for one in output.logprobs or ())
    return found


def log_probabilities(directory: Path, dtype: torch.dtype, texts: list[list[int]]) -> Tensor:
    """By transformers, of the last NEW_TOKENS of each text."""
    model = hf_models.load(directory, dtype)
    made = []
    for text in texts:
        logits = model(torch.tensor([text])).logits[0, -NEW_TOKENS - 1 : -1].float()
        chosen = torch.tensor(text[-NEW_TOKENS:])[:, None]
        made.append(logits.log_softmax(-1).gather(1, chosen)[:, 0])
    return torch.cat(made)


@pytest.mark.parametrize(("shape", "device"), list(where()))
@torch.inference_mode()
def test_an_engine_serves_what_transformers_says(
    shape: hf_models.Shape, device: str, tmp_path: Path
) -> None:
    """In fp32 the same tokens; in bf16 log-probabilities that err no more than theirs do."""
    hf_models.save(shape, tmp_path)
    model = hf_models.load(tmp_path, torch.float32)
    for prompt, (tokens, _) in zip(
        PROMPTS, served(tmp_path, device=device, dtype="float32"), strict=True
    ):
        asked = torch.tensor([prompt])
        made = model.generate(asked, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        assert tokens == made[0, len(prompt) :].tolist()
    narrow = served(tmp_path, device=device, dtype="bfloat16")
    texts = [prompt + tokens for prompt, (tokens, _) in zip(PROMPTS, narrow, strict=True)]
    exact = log_probabilities(tmp_path, torch.float32, texts)
    ours = torch.tensor([one for _, each in narrow for one in each]) - exact
    theirs = log_probabilities(tmp_path, torch.bfloat16, texts) - exact
    assert 0 < ours.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt()
