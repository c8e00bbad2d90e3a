"""Log-probabilities of a prompt's own tokens, from the hidden states of all its positions.

Invariant: they are computed from the raw logits, like those of sampled tokens, and those of a
position depend only on the tokens before it. As many logits exist at once as a sampler has rows,
and the kernels are those that a sampler launches. Only steps of exact sizes have a hidden state for
every token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.prompt_logprobs import packed
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import PromptLogprobsRow, StepPlan
from quire.kernels.ops import Ops

MAX_TOP = 20  # of the best, at each place


@dataclass(frozen=True, slots=True)
class PromptLogprobTensors:
    """A step's prompt log-probabilities, row after row in the order of `asked`. chosen: [J] fp32,
    rank: [J] int64, ids: [J, 20] int64, values: [J, 20] fp32."""

    asked: tuple[PromptLogprobsRow, ...]
    chosen: Tensor
    rank: Tensor
    ids: Tensor
    values: Tensor

    def on_host(self, copy: Callable[[Tensor], Tensor]) -> "PromptLogprobTensors":
        """The same, being copied to the host."""
        return PromptLogprobTensors(self.asked, *map(copy, self._numbers))

    @property
    def _numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.chosen, self.rank, self.ids, self.values

    def packed(self) -> tuple[bytes, ...]:
        """See StepResult. Call it only once the copy has ended."""
        chosen, rank, ids, values = (numbers.numpy() for numbers in self._numbers)
        told, at = [], 0
        for one in self.asked:
            mine = slice(at, at + one.count)
            told.append(packed(chosen[mine], rank[mine], ids[mine], values[mine], one.top))
            at += one.count
        return tuple(told)


def stage_prompt_logprobs(staging: Staging, plan: StepPlan, begins: npt.NDArray[np.int64]) -> None:
    """Put the positions, and the tokens that follow them, into the upload. begins: for each row of
    the plan, where its tokens' hidden states begin: [R]."""
    rows = {row.slot: (at, row) for at, row in enumerate(plan.rows)}
    places, tokens = [], []
    for one in plan.prompt_logprobs:
        at, row = rows[one.slot]
        places.append(np.arange(one.count, dtype=np.int64) + begins[at])
        following = [] if one.following < 0 else [one.following]
        tokens.append(np.array([*row.token_ids[1 : one.count + 1], *following], np.int64))
    staging.put("prompt_logprobs_places", np.concatenate(places))
    staging.put("prompt_logprobs_tokens", np.concatenate(tokens))


def compute_prompt_logprobs(
    model: CausalModel, ops: Ops, hidden: Tensor, staging: Staging, plan: StepPlan, most: int
) -> PromptLogprobTensors:
    """The log-probabilities at the positions staged by `stage_prompt_logprobs`. hidden: [T, H], of
    all tokens of the step. most: positions whose logits may exist at once."""
    places, tokens = staging.get("prompt_logprobs_places"), staging.get("prompt_logprobs_tokens")
    found = []
    for begin in range(0, len(places), most):
        part = slice(begin, begin + most)
        logits = model.logits(hidden, places[part])
        found.append(ops.logprobs(logits, tokens[part], min(MAX_TOP, logits.shape[1])))
    return PromptLogprobTensors(plan.prompt_logprobs, *map(torch.cat, zip(*found, strict=True)))
