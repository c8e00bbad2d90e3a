"""What the scheduler tells the runner, and what it hears back. Frozen: plain data and requests.

A StepPlan is complete: a process that has applied all plans before it can run it without asking
anybody anything. Decode rows (one token each) come first, the longest context first of all.
"""

from dataclasses import dataclass
from typing import NamedTuple

from quire.engine.request import Request, TokenLogprob


class PlanRow(NamedTuple):
    """One request's part of a step: tokens start .. start + num_tokens - 1 are computed.

    `samples`: the row's last token is the request's last, so a new one is drawn after it. A result
    counts only while the request's epoch is still this one.
    """

    request: Request
    epoch: int
    slot: int
    start: int
    num_tokens: int
    samples: bool


class BlockUpdate(NamedTuple):
    """From now on, column `column` of the slot's block table is `block`."""

    slot: int
    column: int
    block: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. `admitted` rows' slots take their request's parameters before anything runs;
    `copies` (source block, target block) are made next, then the rows are computed."""

    step_id: int
    rows: tuple[PlanRow, ...]
    admitted: tuple[Request, ...]
    block_updates: tuple[BlockUpdate, ...]
    copies: tuple[tuple[int, int], ...]
    num_decode_rows: int
    num_tokens: int

    @property
    def is_mixed(self) -> bool:
        """Holds prompt tokens and decode rows together."""
        return 0 < self.num_decode_rows < len(self.rows)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens of the rows that sample, in plan order; a list each (of one token, today).

    `logprobs` stands beside them where some request of the step asked for any.
    """

    tokens: list[list[int]]
    logprobs: list[TokenLogprob | None] | None = None
