"""Outputs of a prompt's last token where nothing is sampled: hidden states, or some logits.

Invariant: they are read from the model's output, as the sampler reads it, before the next step is
launched; a row's output depends only on its own tokens. The kernels are torch's own and the head's,
which the sampler launches for the same numbers of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.engine.model.base import CausalModel
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import Pooled, StepPlan

_FLOAT = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class PooledNumbers:
    """The outputs of a step's pooled rows, in the order of `asked`. states: [S, H] fp32, of those
    that want hidden states; logits: [N] fp32, those that the others want, row after row."""

    asked: tuple[Pooled, ...]
    states: Tensor
    logits: Tensor

    def on_host(self, copy: Callable[[Tensor], Tensor]) -> "PooledNumbers":
        """The same, being copied to the host."""
        return replace(self, states=copy(self.states), logits=copy(self.logits))

    def packed(self) -> tuple[bytes, ...]:
        """See StepResult. Call it only once the copy has ended."""
        states, logits = iter(self.states.numpy()), self.logits.numpy()
        packed, at = [], 0
        for one in self.asked:
            if one.token_ids:
                numbers = logits[at : at + len(one.token_ids)]
                at += len(one.token_ids)
            else:
                numbers = next(states)
            finite = bool(np.isfinite(numbers).all())
            packed.append(numbers.astype(_FLOAT).tobytes() if finite else b"")
        return tuple(packed)


def stage_pooled(
    staging: Staging,
    plan: StepPlan,
    decode_rows: int,
    ends: npt.NDArray[np.int64],
) -> None:
    """Put into the upload where the model leaves what the pooled rows ask for.

    decode_rows: of the step's shape. ends: of each row of the shape, where the model leaves its
    last token's hidden state: [R].
    """
    shift = decode_rows - plan.num_decode_rows
    place = {row.slot: at for at, row in enumerate(plan.rows)}
    where = [(one, ends[place[one.slot] + shift]) for one in plan.pooled]
    scored = [(one.token_ids, end) for one, end in where if one.token_ids]
    wanted = [(at, i) for at, (ids, _) in enumerate(scored) for i in ids]
    states = [end for one, end in where if not one.token_ids]
    staging.put("pooled_states", np.array(states, np.int64))
    staging.put("pooled_scored", np.array([end for _, end in scored], np.int64))
    staging.put("pooled_logits", np.array(wanted, np.int64).reshape(-1, 2).T)


def pool(model: CausalModel, hidden: Tensor, staging: Staging, plan: StepPlan) -> PooledNumbers:
    """Compute the outputs whose places `stage_pooled` has staged. hidden: as the model has left
    it."""
    rows, scored, wanted = (
        staging.get(f"pooled_{name}") for name in ("states", "scored", "logits")
    )
    logits = torch.empty(0, dtype=torch.float32, device=hidden.device)
    if scored.numel():
        rows_of, ids = wanted
        logits = model.logits(hidden, scored)[rows_of, ids]
    return PooledNumbers(plan.pooled, model.states(hidden[rows]), logits)
