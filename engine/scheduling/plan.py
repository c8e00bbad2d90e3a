"""What the scheduler sends to a runner, and what it gets back: immutable numbers, no live objects.

A StepPlan is complete: a runner that has executed all earlier plans can execute it without further
questions. The one exception are the masks of constrained rows: they depend on tokens that may still
be in flight, so they follow as `Masks` while the model already runs.
So a plan can be recorded, sent to another process, and replayed there.
Decode rows (one token each) come first, in order of falling context length.

Invariant: `StepPlan.of(plan.plain())` equals `plan`, whatever carries the plain form in between:
it consists of numbers, booleans, None and tuples (or lists in their place) only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from quire.engine.request import SamplingParams, TokenLogprob
from quire.engine.scheduling.token_bytes import packed, unpacked

Plain = tuple[Any, ...]

# (slot, mask) of masked rows, padded to words of 4 bytes. Bit i % 8 of byte i // 8 says whether id
# i may be drawn; the slot's allowed and banned ids are already included. Rows of requests that have
# ended since have none.
Mask = bytes | bytearray | memoryview
Masks = tuple[tuple[int, Mask], ...]


class SamplingNumbers(NamedTuple):
    """How the tokens of one slot are drawn, as the device needs it.

    `seed`: signed 64 bits, already distinct from its siblings'. Before position `min_position` no
    token of `ending_ids` (sorted) is drawn. `logprobs`: how many of the best; None: none at all.
    `logit_bias`: (id, added value). `allowed_ids` (empty: all) minus `banned_ids` may be drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    min_position: int = 0
    ending_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_ids: tuple[int, ...] = ()
    banned_ids: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        *,
        seed: int = 0,
        min_position: int = 0,
        ending_ids: tuple[int, ...] = (),
    ) -> "SamplingNumbers":
        """From a request's parameters; the keyword arguments depend on its index and prompt."""
        return cls(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            seed=seed,
            min_position=min_position,
            ending_ids=ending_ids,
            logprobs=params.logprobs,
            logit_bias=params.logit_bias,
            allowed_ids=params.allowed_token_ids,
            banned_ids=params.banned_token_ids,
        )

    @property
    def has_mask(self) -> bool:
        """Whether some ids are excluded at every position."""
        return bool(self.allowed_ids or self.banned_ids)

    @property
    def has_filters(self) -> bool:
        """Whether any token may be filtered out before drawing."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0)

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class Admission(NamedTuple):
    """What is written into a slot before the step runs: its request starts there, or restarts.

    `num_computed` tokens are in the cache already; `last_token` is the last known one. Prompt and
    outputs are given where penalties need them, and empty otherwise.
    """

    key: int
    index: int  # type: ignore[assignment]  # hides the tuple's own, which is not used
    slot: int
    last_token: int
    num_computed: int
    sampling: SamplingNumbers
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]


class PlanRow(NamedTuple):
    """One slot's part of a step: tokens start .. start + num_tokens - 1 are computed.

    `samples`: the row ends with the request's last token, so a new one is sampled after it.
    `packed`: the row's tokens, packed by `token_bytes`; empty in a decode row, whose token the slot
    holds. `key` and `index` identify the request; the result is used only if its epoch has not
    changed since.
    """

    key: int
    index: int  # type: ignore[assignment]  # hides the tuple's own, which is not used
    epoch: int
    slot: int
    start: int
    num_tokens: int
    samples: bool
    packed: bytes = b""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The row's tokens, as numbers."""
        return unpacked(self.packed)


# A PlanRow from a tuple of all its fields: half the time of a regular call, once per row and step.
new_row: Callable[[tuple[Any, ...]], PlanRow] = partial(tuple.__new__, PlanRow)


class BlockUpdate(NamedTuple):
    """From now on, column `column` of the slot's block table is `block`."""

    slot: int
    column: int
    block: int


class Pooled(NamedTuple):
    """The output wanted of the row of this slot, which reaches the end of its prompt: the last
    token's hidden state, or with token_ids the logits of those ids."""

    slot: int
    token_ids: tuple[int, ...]


class PromptLogprobsRow(NamedTuple):
    """The log-probabilities wanted of the row of this slot: those of the prompt tokens that follow
    its first `count` tokens, and of the best `top` at each position. `following`: the last of these
    tokens, where the row itself does not hold it, else -1."""

    slot: int
    count: int  # type: ignore[assignment]  # hides the tuple's own, which is not used
    following: int
    top: int


class StepPlan(NamedTuple):
    """One step. First the parameters of `admitted` slots are written and block tables updated, then
    `copies` (source block, target block) are made, then the rows are computed.

    `masked`: slots of rows that sample under a constraint, in the order in which they were planned.
    Their masks follow once the results of all earlier plans have been applied.
    `pooled`: outputs of rows that do not sample, in the order in which they were planned.
    `prompt_logprobs`: rows whose prompt log-probabilities are wanted, in the same order.
    `window_updates`, `window_copies`: the same for the cache of sliding-window layers, where other
    layers see everything.
    """

    step_id: int
    rows: tuple[PlanRow, ...]
    admitted: tuple[Admission, ...]
    block_updates: tuple[BlockUpdate, ...]
    copies: tuple[tuple[int, int], ...]
    num_decode_rows: int
    num_tokens: int
    masked: tuple[int, ...] = ()
    pooled: tuple[Pooled, ...] = ()
    prompt_logprobs: tuple[PromptLogprobsRow, ...] = ()
    window_updates: tuple[BlockUpdate, ...] = ()
    window_copies: tuple[tuple[int, int], ...] = ()

    @property
    def is_mixed(self) -> bool:
        """Whether it has both prompt tokens and decode rows."""
        return 0 < self.num_decode_rows < len(self.rows)

    def plain(self) -> Plain:
        """The plan as nested tuples of numbers, fit for marshal or JSON."""
        return (
            self.step_id,
            tuple((*row[:-1], row.token_ids) for row in self.rows),
            tuple((*one[:5], tuple(one.sampling), *one[6:]) for one in self.admitted),
            tuple(tuple(update) for update in self.block_updates),
            self.copies,
            self.num_decode_rows,
            self.num_tokens,
            self.masked,
            tuple(tuple(one) for one in self.pooled),
            tuple(tuple(one) for one in self.prompt_logprobs),
            tuple(tuple(update) for update in self.window_updates),
            self.window_copies,
        )

    @classmethod
    def of(cls, plain: Plain) -> "StepPlan":
        """The plan that `plain` was made from; lists are accepted in place of tuples."""
        step_id, rows, admitted, updates, copies, num_decode_rows, num_tokens, *more = plain
        masked, pooled, prompt_logprobs, window_updates, window_copies = more
        return cls(
            step_id,
            tuple(PlanRow._make((*row[:-1], packed(row[-1]))) for row in rows),
            tuple(_admission(one) for one in admitted),
            tuple(BlockUpdate(*update) for update in updates),
            tuple((source, target) for source, target in copies),
            num_decode_rows,
            num_tokens,
            tuple(masked),
            tuple(Pooled(slot, tuple(ids)) for slot, ids in pooled),
            tuple(PromptLogprobsRow._make(one) for one in prompt_logprobs),
            tuple(BlockUpdate(*update) for update in window_updates),
            tuple((source, target) for source, target in window_copies),
        )


def _admission(plain: Plain) -> Admission:
    *head, sampling, prompt, outputs = plain
    *numbers, ending_ids, logprobs, bias, allowed, banned = sampling
    chosen = (tuple((i, value) for i, value in bias), tuple(allowed), tuple(banned))
    sampling_numbers = SamplingNumbers._make((*numbers, tuple(ending_ids), logprobs, *chosen))
    return Admission._make((*head, sampling_numbers, tuple(prompt), tuple(outputs)))


class StepResult(NamedTuple):
    """Tokens of the rows that sample, in plan order; a list each (today of one token). A token of
    -1 means that the row's logits were not finite.

    `logprobs` is parallel to them where some request of the step asked for any. `pooled`: for each
    of the plan's, its numbers as bytes (float32, little-endian); `prompt_logprobs`: for each of the
    plan's, its records (see engine.prompt_logprobs). Empty bytes: they were not finite.
    """

    tokens: list[list[int]]
    logprobs: list[TokenLogprob | None] | None = None
    pooled: tuple[bytes, ...] = ()
    prompt_logprobs: tuple[bytes, ...] = ()
