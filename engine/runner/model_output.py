"""The interface between a step's model and its sampler.

Invariant: this is everything that the sampler needs from the model, at addresses that do not change
until the next step is launched. So the two can be launched separately.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.engine.runner.inputs import StepInputs
from quire.engine.runner.staging import Staging


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """hidden: [T, H], of the step's tokens; logits_rows: [L] int64, those that sample, None: all.

    row_slots, context_lens: [R] int32. Of a mixed step also query_lens: [R] int32, and
    sampled_rows: [L] int64, the rows that sample. logits: [L, V] fp32, where they are made already.
    """

    hidden: Tensor
    logits_rows: Tensor | None
    row_slots: Tensor
    context_lens: Tensor
    query_lens: Tensor | None
    sampled_rows: Tensor | None
    logits: Tensor | None = None

    @classmethod
    def of(cls, hidden: Tensor, inputs: StepInputs) -> "ModelOutput":
        return cls(
            hidden,
            inputs.batch.logits_rows,
            inputs.row_slots,
            inputs.batch.context_lens,
            inputs.query_lens,
            inputs.sampled_rows,
        )

    def sampling(self, rows: Tensor) -> "ModelOutput":
        """The same output, already in the buffers, with these rows sampling. rows: [L] int64."""
        return replace(self, logits_rows=rows, sampled_rows=rows)


class SamplerInputs:
    """Fixed buffers through which the model's part of a step, whichever graph it is, hands its
    outputs to the sampler. With buffers of its own, each graph would need its own sampler graph and
    keep its outputs alive."""

    def __init__(
        self, most_rows: int, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """most_rows: of a step that is kept."""
        self._hidden = torch.zeros(most_rows, hidden_size, dtype=dtype, device=device)
        self._context_lens = torch.zeros(most_rows, dtype=torch.int32, device=device)

    def context_lens(self, rows: int) -> Tensor:
        """The buffer for a step's context lengths: [rows] int32. More rows than are ever kept,
        which occur only in the warm-up, get a tensor of their own."""
        kept = self._context_lens
        return kept[:rows] if rows <= len(kept) else kept.new_empty(rows)

    def keep(self, forwarded: ModelOutput) -> ModelOutput:
        """The same output with only the hidden states of each row's last token, copied to the
        buffers."""
        hidden, rows = forwarded.hidden, forwarded.logits_rows
        chosen = hidden if rows is None else hidden[rows]
        room = self._hidden[: len(chosen)].copy_(chosen)
        return replace(forwarded, hidden=room, logits_rows=None)

    def left(self, row_slots: Tensor) -> ModelOutput:
        """The sampler's inputs of the last step, if all its rows had one token. row_slots: [R]
        int32."""
        rows = len(row_slots)
        lens = self.context_lens(rows)
        return ModelOutput(self._hidden[:rows], None, row_slots, lens, None, None)

    def left_by_prompts(self, staging: Staging) -> ModelOutput:
        """The sampler's inputs of the last step with longer rows, from its upload."""
        left = self.left(staging.get("row_slots")).sampling(staging.get("sampled_rows"))
        return replace(left, query_lens=staging.get("query_lens"))
