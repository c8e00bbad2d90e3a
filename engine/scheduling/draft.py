"""A plan under construction."""

from dataclasses import dataclass, field

from quire.engine.scheduling.plan import (
    Admission,
    BlockUpdate,
    PlanRow,
    Pooled,
    PromptLogprobsRow,
    StepPlan,
)
from quire.engine.scheduling.request import Request


@dataclass(slots=True)
class Draft:
    """The contents of the step so far."""

    budget: int
    decode_rows: list[PlanRow] = field(default_factory=list)
    prefill_rows: list[PlanRow] = field(default_factory=list)
    planned: dict[int, Request] = field(default_factory=dict)  # by slot
    admitted: list[Admission] = field(default_factory=list)
    block_updates: list[BlockUpdate] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # sources of copies, not to be reallocated
    masked: list[int] = field(default_factory=list)  # slots of rows that sample under a constraint
    pooled: list[Pooled] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobsRow] = field(default_factory=list)
    window_updates: list[BlockUpdate] = field(default_factory=list)  # these: see two_pools
    window_copies: list[tuple[int, int]] = field(default_factory=list)
    window_held: list[int] = field(default_factory=list)
    starved: bool = False  # blocks ran out: nothing more is admitted in this step

    def plan(self, step_id: int, rows: tuple[PlanRow, ...], num_tokens: int) -> StepPlan:
        """The finished plan. rows: the drafted ones, in order."""
        return StepPlan(
            step_id,
            rows,
            tuple(self.admitted),
            tuple(self.block_updates),
            tuple(self.copies),
            len(self.decode_rows),
            num_tokens,
            tuple(self.masked),
            tuple(self.pooled),
            tuple(self.prompt_logprobs),
            tuple(self.window_updates),
            tuple(self.window_copies),
        )

    def add_next(self, request: Request) -> None:
        """Add a decode row, the most common kind: see Request.plan_next."""
        slot = request.slot
        if request.constrained is not None:
            self.masked.append(slot)
        self.budget -= 1
        self.planned[slot] = request
        self.decode_rows.append(request.plan_next())

    def add_prompt_logprobs(self, request: Request, start: int, end: int) -> None:
        """Request the log-probabilities of the prompt tokens that follow a row's own tokens, which
        are `start` to `end` - 1."""
        count = min(end, request.num_prompt_tokens - 1) - start
        if count > 0:
            following = request.token_ids[end] if start + count == end else -1
            top = request.spec.prompt_logprobs
            assert top is not None
            self.prompt_logprobs.append(PromptLogprobsRow(request.slot, count, following, top))
