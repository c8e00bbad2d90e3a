"""Ours = Hugging Face: logits, greedy tokens, log-probabilities, and the error of bf16."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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

STUCK = "the model says the same few tokens, which prove little: give its shape another seed"
NEW_TOKENS = 64
PROMPT_LENGTHS = (1, 37)  # a prompt of one token is a decode row; 37 ends within a block


@dataclass
class Pair:
    """One checkpoint, and transformers' model of it in fp32."""

    directory: Path
    theirs: PreTrainedModel

    @cached_property
    def answers(self) -> list[tuple[list[int], list[int], Tensor]]:
        """Of each prompt, in fp32: the prompt, our greedy tokens, and the logits of these."""
        model = self.ours()
        return [(one, *greedy_tokens(model, one, NEW_TOKENS)) for one in self.prompts()]

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
    for shapes in hf_models.OTHERS:
        yield from shapes[:2]
        yield from (pytest.param(shape, marks=pytest.mark.long) for shape in shapes[2:])


@pytest.fixture(scope="module", params=in_turn(), ids=lambda shape: shape.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("checkpoint")
    hf_models.save(request.param, directory)
    return Pair(directory, hf_models.load(directory, torch.float32))


def their_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    return model(torch.tensor([tokens])).logits[0].float()


def assert_their_greedy(theirs: Tensor, tokens: list[int]) -> None:
    """theirs: [T, V], what the last T tokens were chosen from. Tokens that are each the best after
    those before them are the ones that transformers would generate."""
    assert tokens == theirs.argmax(-1).tolist()


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Both [T, V]: logits to 1e-4 of the largest, log-probabilities to 1e-3."""
    assert ours.dtype == torch.float32
    apart = (ours - theirs).abs().amax(-1)
    wrong = (apart > 1e-4 * theirs.abs().max()).nonzero()[:, 0].tolist()
    assert not wrong, f"logits are up to {apart.max():.3g} apart, at places {wrong} of {len(apart)}"
    assert float((ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max()) <= 1e-3


@torch.inference_mode()
def test_fp32_gives_the_same_tokens_logits_and_log_probabilities(pair: Pair) -> None:
    model = pair.ours()
    for prompt, tokens, logits in pair.answers:
        assert len(set(tokens)) >= 32, STUCK
        whole = prompt + tokens
        theirs = their_logits(pair.theirs, whole)
        assert_close(all_logits(model, whole), theirs)  # all tokens in one step
        before_each = theirs[len(prompt) - 1 : -1]
        assert_their_greedy(before_each, tokens)
        assert_close(logits, before_each)  # one by one, over the cache
        chosen = reference.logprobs(logits, torch.tensor(tokens), 5)
        expected = before_each.log_softmax(-1)
        assert (chosen[0] - expected.amax(-1)).abs().max() <= 1e-3
        assert (chosen[3] - expected.topk(5).values).abs().max() <= 1e-3


@torch.inference_mode()
def test_bf16_errs_no_more_than_transformers_does(pair: Pair) -> None:
    in_bf16 = hf_models.load(pair.directory, torch.bfloat16)
    model = pair.ours(torch.bfloat16)
    prompt, answer, _ = pair.answers[1]
    tokens = prompt + answer
    exact = their_logits(pair.theirs, tokens)
    theirs = their_logits(in_bf16, tokens) - exact
    ours = all_logits(model, tokens) - exact
    assert 0 < float(ours.square().mean().sqrt()) <= 1.5 * float(theirs.square().mean().sqrt())
    if model.config.experts is None:  # where experts hang by a hair, either may take others
        assert float(ours.abs().max()) <= 1.5 * float(theirs.abs().max())


@torch.inference_mode()
def test_our_random_checkpoint_is_one_that_transformers_reads(tmp_path: Path) -> None:
    save_random("tiny", tmp_path, seed=5, shard_bytes=1 << 20)
    pair = Pair(tmp_path, hf_models.load(tmp_path, torch.float32))
    model = pair.ours()
    for prompt, tokens, _ in pair.answers:
        assert len(set(tokens)) >= 32, STUCK
        theirs = their_logits(pair.theirs, prompt + tokens)
        assert_their_greedy(theirs[len(prompt) - 1 : -1], tokens)
        assert_close(all_logits(model, prompt + tokens), theirs)
