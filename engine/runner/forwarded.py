"""Where a step's model has ended and its sampler begins.

Invariant: what stands here is all that the sampler takes of the model's part, at addresses that
stay as they are until the next step is launched. So the two can be launched apart.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.engine.runner.inputs import StepInputs


@dataclass(frozen=True, slots=True)
class Forwarded:
    """hidden: [T, H], of the step's tokens; logits_rows: [L] int64, those that sample, None: all.

    row_slots, context_lens: [R] int32. Of a mixed step also query_lens: [R] int32, and
    sampled_rows: [L] int64, the rows that sample.
    """

    hidden: Tensor
    logits_rows: Tensor | None
    row_slots: Tensor
    context_lens: Tensor
    query_lens: Tensor | None
    sampled_rows: Tensor | None

    @classmethod
    def of(cls, hidden: Tensor, inputs: StepInputs) -> "Forwarded":
        return cls(
            hidden,
            inputs.batch.logits_rows,
            inputs.row_slots,
            inputs.batch.context_lens,
            inputs.query_lens,
            inputs.sampled_rows,
        )


class Aside:
    """Room for the hidden states of a step that is sampled apart, whichever graph has made them:
    each graph's own would be kept as long as the graph."""

    def __init__(
        self, max_num_seqs: int, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        rows = 3 * max_num_seqs  # at most: a captured step's longer rows come to a power of two
        self._hidden = torch.empty(rows, hidden_size, dtype=dtype, device=device)

    def keep(self, forwarded: Forwarded) -> Forwarded:
        """The same, with the hidden states of the rows that sample, and no others, in the room."""
        hidden, rows = forwarded.hidden, forwarded.logits_rows
        chosen = hidden if rows is None else hidden[rows]
        room = self._hidden[: len(chosen)].copy_(chosen)
        return replace(forwarded, hidden=room, logits_rows=None)
