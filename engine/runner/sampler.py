"""From logits to tokens, on the device, with only the operations that the step's rows need.

Invariant: a row's token depends only on its own logits, parameters, seed and position, whatever the
other rows need: every operation is neutral for a row that did not ask for it. So `Needs` determines
how much work is done, never what a row gets.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from quire.engine.model.layers.embedding import VocabTable
from quire.engine.request import TokenLogprob
from quire.engine.runner.compute_prompt_logprobs import PromptLogprobTensors
from quire.engine.runner.logit_edits import Bias
from quire.engine.runner.pooling import PooledNumbers
from quire.engine.runner.slots import SlotState
from quire.engine.scheduling.plan import SamplingNumbers
from quire.kernels.ops import Ops

MAX_LOGPROBS = 20


class Needs(NamedTuple):
    """The operations that a step needs after its logits; one captured variant for each value."""

    draws: bool = False  # some row has a temperature
    filters: bool = False  # top-k, top-p or min-p
    adjusts: bool = False  # penalties or min_tokens
    logprobs: bool = False
    masks: bool = False  # some ids are excluded
    bias: bool = False  # logit biases: such a sampler is not captured

    @property
    def best_alone(self) -> bool:
        """Whether only the best logit is needed."""
        return not (self.filters or self.adjusts or self.logprobs or self.edits)

    @property
    def edits(self) -> bool:
        """Whether there are masks or biases."""
        return self.masks or self.bias

    @staticmethod
    def of(params: SamplingNumbers) -> "Needs":
        """The needs of one row."""
        return Needs(
            params.temperature > 0,
            params.has_filters,
            params.has_penalties or bool(params.ending_ids),
            params.logprobs is not None,
            params.has_mask,
            bool(params.logit_bias),
        )


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens: [L] int64, -1 where logits are NaN or infinite. logprobs: chosen [L], rank [L],
    top ids [L, 20], top values [L, 20]. pooled: of the step's rows that do not sample.
    prompt_logprobs: of the prompts' tokens. on_host: the tokens, already being copied there."""

    tokens: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    pooled: PooledNumbers | None = None
    prompt_logprobs: PromptLogprobTensors | None = None
    on_host: Tensor | None = None


class Sampler:
    """Samples with the parameters in the slots."""

    def __init__(self, ops: Ops, state: SlotState, head: VocabTable | None = None) -> None:
        """head: the LM head, if it may be split over ranks."""
        self._ops = ops
        self._state = state
        self._head = head if head is not None and head.parted else None

    def __call__(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        needs: Needs,
        bias: Bias | None = None,
    ) -> Sampled:
        """logits: [L, V] fp32, of this rank's part of the vocabulary where only the best is needed;
        may be modified. slots: [L]; positions: [L], of the new tokens. bias: only if needs.bias."""
        ops, state = self._ops, self._state
        noise = (slots, positions, state.temperature, state.seeds) if needs.draws else None
        if self._head is not None and needs.best_alone:
            return Sampled(self._head.best(ops, logits, noise))
        changes = needs.adjusts or needs.filters or needs.edits
        raw = logits.clone() if needs.logprobs and changes else logits
        self._change(logits, slots, positions, needs, bias)
        tokens = ops.greedy(logits) if noise is None else ops.sample(logits, *noise)
        if not needs.logprobs:
            return Sampled(tokens)
        count = min(MAX_LOGPROBS, logits.shape[1])
        return Sampled(tokens, ops.logprobs(raw, tokens, count))

    def _change(
        self, logits: Tensor, slots: Tensor, positions: Tensor, needs: Needs, bias: Bias | None
    ) -> None:
        """Penalties, then single ids, then filters: in place."""
        ops, state = self._ops, self._state
        if needs.adjusts:
            ops.apply_penalties(
                logits,
                slots,
                state.prompt_mask,
                state.output_counts,
                state.repetition,
                state.presence,
                state.frequency,
            )
            ops.mask_stop_tokens(logits, slots, positions, state.stop_ids, state.min_position)
        if bias is not None:
            ops.add_bias(logits, *bias)
        if needs.masks:
            ops.keep_allowed(logits, state.masks.rows(len(logits)), state.masks.words)
        if needs.filters:
            ops.filter_logits(
                logits, slots, state.temperature, state.top_k, state.top_p, state.min_p
            )


def to_logprobs(
    tokens: list[list[int]],
    wanted: list[int | None],
    values: tuple[Tensor, Tensor, Tensor, Tensor],
) -> list[TokenLogprob | None]:
    """Host side: the log-probabilities that each row asked for, from copies of Sampled.logprobs.

    wanted: for each row how many of the best; None for none at all.
    """
    chosen, rank, top_ids, top_values = (t.tolist() for t in values)
    out: list[TokenLogprob | None] = []
    for row, (token, asked) in enumerate(zip(tokens, wanted, strict=True)):
        if asked is None:
            out.append(None)
            continue
        top = zip(top_ids[row][:asked], top_values[row], strict=False)
        out.append(TokenLogprob(token[0], chosen[row], rank[row], tuple(top)))
    return out
