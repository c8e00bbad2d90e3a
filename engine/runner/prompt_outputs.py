"""What a step reads from prompts besides sampling: hidden states and log-probabilities."""

from dataclasses import replace

from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.runner.compute_prompt_logprobs import compute_prompt_logprobs
from quire.engine.runner.pooling import pool
from quire.engine.runner.sampler import Sampled
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import StepPlan
from quire.kernels.ops import Ops


def read(
    model: CausalModel,
    ops: Ops,
    most: int,
    sampled: Sampled,
    hidden: Tensor,
    staging: Staging,
    plan: StepPlan,
) -> Sampled:
    """The same, with what the plan asks for. most: rows of logits that there may be at once.
    hidden: as the model has left it."""
    if plan.pooled:
        sampled = replace(sampled, pooled=pool(model, hidden, staging, plan))
    if plan.prompt_logprobs:
        sampled = replace(
            sampled,
            prompt_logprobs=compute_prompt_logprobs(model, ops, hidden, staging, plan, most),
        )
    return sampled
