"""Ours = Hugging Face: logits, greedy tokens, log-probabilities, and the error of bf16."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import hf_models
from support.single_prompt import all_logits, greedy_tokens
from torch import Tensor
from transformers import PreTrainedModel

from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.random import save_random
from quire.kernels import reference

NEW_TOKENS = 64
PROMPT_LENGTHS = (1, 37)  # a prompt of one token is a decode row; 37 ends within a block


@dataclass
class Pair:
    """One checkpoint, and transformers' model of it in fp32."""

    directory: Path
    theirs: PreTrainedModel

    def ours(self, dtype: torch.dtype = torch.float32) -> CausalModel:
        config = ModelConfig.from_directory(self.directory)
        model = build_model(config, reference, dtype=dtype, device=torch.device("cpu"))
        load_checkpoint(model, self.directory)
        return model

    def prompts(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(7)
        for length in PROMPT_LENGTHS:
            yield torch.randint(0, hf_models.VOCAB, (length,), generator=generator).tolist()


def in_turn() -> Iterator[Any]:
    """All shapes of Qwen3; two of each other family, the rest where there is time."""
    yield from hf_models.SHAPES
    others = hf_models.LLAMA_SHAPES, hf_models.QWEN2_SHAPES, hf_models.MOE_SHAPES
    windows = hf_models.WINDOW_SHAPES, hf_models.TWO_KIND_SHAPES
    for shapes in (*others, *windows, hf_models.GPT2_SHAPES):
        yield from shapes[:2]
        yield from (pytest.param(shape, marks=pytest.mark.long) for shape in shapes[2:])


@pytest.fixture(scope="module", params=in_turn(), ids=lambda shape: shape.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("checkpoint")
    hf_models.save(request.param, directory)
    return Pair(directory, hf_models.load(directory, torch.float32))


def their_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    return model(torch.tensor([tokens])).logits[0].float()


def their_greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Both [T, V]: logits to 1e-4 of the largest, log-probabilities to 1e-3."""
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() <= 1e-3


@torch.inference_mode()
def test_fp32_gives_the_same_tokens_logits_and_log_probabilities(pair: Pair) -> None:
    model = pair.ours()
    for prompt in pair.prompts():
        tokens, logits = greedy_tokens(model, prompt, NEW_TOKENS)
        assert tokens == their_greedy(pair.theirs, prompt)
        assert len(set(tokens)) >= 32, "the model is stuck: its tokens prove little"
        whole = prompt + tokens
        theirs = their_logits(pair.theirs, whole)
        assert_close(all_logits(model, whole), theirs)  # all tokens in one step
        assert_close(logits, theirs[len(prompt) - 1 : -1])  # one by one, over the cache
        chosen = reference.logprobs(logits, torch.tensor(tokens), 5)
        expected = theirs[len(prompt) - 1 : -1].log_softmax(-1)
        assert (chosen[0] - expected.amax(-1)).abs().max() <= 1e-3
        assert (chosen[3] - expected.topk(5).values).abs().max() <= 1e-3


@torch.inference_mode()
def test_bf16_errs_no_more_than_transformers_does(pair: Pair) -> None:
    in_bf16 = hf_models.load(pair.directory, torch.bfloat16)
    model = pair.ours(torch.bfloat16)
    _, prompt = pair.prompts()
    tokens = prompt + their_greedy(pair.theirs, prompt)
    exact = their_logits(pair.theirs, tokens)
    theirs = their_logits(in_bf16, tokens) - exact
    ours = all_logits(model, tokens) - exact
    assert 0 < ours.square().mean().sqrt() <= 1.5 * theirs.square().mean().sqrt()
    if model.config.experts is None:  # where experts hang by a hair, either may take others
        assert ours.abs().max() <= 1.5 * theirs.abs().max()


@torch.inference_mode()
def test_our_random_checkpoint_is_one_that_transformers_reads(tmp_path: Path) -> None:
    save_random("tiny", tmp_path, seed=5, shard_bytes=1 << 20)
    pair = Pair(tmp_path, hf_models.load(tmp_path, torch.float32))
    model = pair.ours()
    for prompt in pair.prompts():
        tokens, _ = greedy_tokens(model, prompt, NEW_TOKENS)
        assert tokens == their_greedy(pair.theirs, prompt)
        assert len(set(tokens)) >= 32
        assert_close(all_logits(model, tokens), their_logits(pair.theirs, tokens))
