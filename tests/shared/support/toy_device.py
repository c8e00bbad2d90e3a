"""A device without arithmetic: it remembers what stands in each cache slot, and checks what it
reads.

Invariant: a cache slot holds the digest of the whole sequence up to its token, so one comparison
tells whether a row's context is its own: right tokens, right order, right salt, nothing written
over by a neighbour. Plans are executed in stream order and only from what they carry and what
earlier plans left in the slots, as the real runner does it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quire.engine.request import GenerationRequest
from quire.engine.scheduling.plan import PlanRow, StepPlan

EOS = 0
GARBAGE = -1  # never a digest


def root(salt: bytes) -> int:
    """The digest of nothing at all, under a salt."""
    return hash((7, *salt)) & 0xFFFFFFFFFFFF


def extend(digest: int, token: int) -> int:
    """The digest of one more token."""
    return hash((digest, token)) & 0xFFFFFFFFFFFF


def draw(digest: int, seed: int, index: int, vocab: int) -> int:
    """The toy model: the next token is a function of the sequence, the seed and the index."""
    return (hash((digest, seed, index, 3)) >> 7) % vocab


class Oracle:
    """One index alone, to the very end: token_ids and digests of prompt and max_tokens outputs.

    `expected` are the outputs that a client must get: from the resumed ones on, up to an ending id.
    """

    def __init__(self, spec: GenerationRequest, index: int, vocab: int) -> None:
        params = spec.sampling
        self.spec, self.index = spec, index
        self.token_ids = list(spec.prompt_token_ids)
        self.digests: list[int] = []
        digest = root(spec.cache_salt)
        for token in self.token_ids:
            digest = extend(digest, token)
            self.digests.append(digest)
        prompt = len(self.token_ids)
        self.stops = False
        end = prompt + params.max_tokens
        for count in range(1, params.max_tokens + 1):
            token = draw(digest, params.seed, index, vocab)
            self.token_ids.append(token)
            digest = extend(digest, token)
            self.digests.append(digest)
            if not self.stops and count >= params.min_tokens and token in params.ending_ids:
                self.stops = True
                end = prompt + count
        self.expected = self.token_ids[prompt + len(spec.resume_token_ids) : end]


@dataclass(slots=True)
class _Slot:
    """What a slot knows between steps. Stale columns stay, as they do on a device."""

    table: dict[int, int] = field(default_factory=dict)
    last_token: int = GARBAGE
    num_computed: int = GARBAGE


class ToyDevice:
    """Cache blocks with a memory, and slots."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        vocab: int,
        oracle_of: Callable[[int, int], Oracle],
        window: int | None = None,
    ) -> None:
        """window: tokens that each token sees, itself among them; None: all before it."""
        self.block_size = block_size
        self.vocab = vocab
        self.blocks = [[GARBAGE] * block_size for _ in range(num_blocks)]
        self.slots = [_Slot() for _ in range(max_num_seqs)]
        self._oracle_of = oracle_of
        self._window = window

    def execute(self, plan: StepPlan) -> list[list[int]]:
        """Run a step; returns the sampled tokens. Raises AssertionError on any corruption."""
        self._prepare(plan)
        for row in plan.rows:  # all read before any writes: nobody may lean on a neighbour's step
            self._check_context(row)
        written: set[tuple[int, int]] = set()
        sampled = []
        for row in plan.rows:
            digest = self._compute(row, written)
            slot = self.slots[row.slot]
            slot.num_computed += row.num_tokens
            if row.samples:
                seed = self._oracle_of(row.key, row.index).spec.sampling.seed
                token = draw(digest, seed, row.index, self.vocab)
                slot.last_token = token
                sampled.append([token])
        return sampled

    def spoil(self, plan: StepPlan, rows: int) -> None:
        """A step that fails after `rows` of its rows: what they would have written is garbage, and
        what it would have copied too if it came to none of them."""
        self._prepare(plan)
        for _, target in plan.copies if not rows else ():
            self.blocks[target] = [GARBAGE] * self.block_size
        for row in plan.rows[:rows]:
            slot = self.slots[row.slot]
            for position in range(row.start, row.start + row.num_tokens):
                block, offset = self._place(slot, position)
                self.blocks[block][offset] = GARBAGE

    def _prepare(self, plan: StepPlan) -> None:
        for one in plan.admitted:
            slot = self.slots[one.slot]
            slot.last_token = one.last_token
            slot.num_computed = one.num_computed
        for update in plan.block_updates:
            self.slots[update.slot].table[update.column] = update.block
        copied = {target: list(self.blocks[source]) for source, target in plan.copies}
        assert not copied.keys() & {source for source, _ in plan.copies}, "copies in a chain"
        self.blocks = [copied.get(block, held) for block, held in enumerate(self.blocks)]

    def _place(self, slot: _Slot, position: int) -> tuple[int, int]:
        column, offset = divmod(position, self.block_size)
        return slot.table[column], offset

    def _check_context(self, row: PlanRow) -> None:
        slot, size = self.slots[row.slot], self.block_size
        digests = self._oracle_of(row.key, row.index).digests
        assert slot.num_computed == row.start, "the device stands elsewhere than the plan"
        first = 0 if self._window is None else max(row.start + 1 - self._window, 0)
        for column in range(first // size, -(-row.start // size)):
            begin, end = max(column * size, first), min((column + 1) * size, row.start)
            held = self.blocks[slot.table[column]][begin - column * size : end - column * size]
            assert held == digests[begin:end], (
                f"corrupt context: request {row.key}.{row.index}, column {column}"
            )

    def _compute(self, row: PlanRow, written: set[tuple[int, int]]) -> int:
        slot, oracle = self.slots[row.slot], self._oracle_of(row.key, row.index)
        end = row.start + row.num_tokens
        if row.num_tokens == 1 and row.samples:
            assert not row.token_ids, "a decode row brings a token"
            tokens = [slot.last_token]  # the slot feeds itself
        else:
            tokens = list(row.token_ids)
        assert tokens == oracle.token_ids[row.start : end], "a row computes tokens not its own"
        digest = oracle.digests[row.start - 1] if row.start else root(oracle.spec.cache_salt)
        for position, token in enumerate(tokens, row.start):
            digest = extend(digest, token)
            place = self._place(slot, position)
            assert place[0] != 0, "a row writes the null block"
            assert place not in written, "two rows write one slot"
            written.add(place)
            self.blocks[place[0]][place[1]] = digest
        assert digest == oracle.digests[end - 1]
        return digest


class PairedDevice(ToyDevice):
    """Of layers that see all, and beside it one of those with a window."""

    def __init__(self, windowed: ToyDevice, *size: Any) -> None:
        """size: what a ToyDevice takes."""
        super().__init__(*size)
        self._windowed = windowed

    def execute(self, plan: StepPlan) -> list[list[int]]:
        """See ToyDevice."""
        tokens = super().execute(plan)
        assert self._windowed.execute(_of_windows(plan)) == tokens
        return tokens

    def spoil(self, plan: StepPlan, rows: int) -> None:
        """See ToyDevice."""
        super().spoil(plan, rows)
        self._windowed.spoil(_of_windows(plan), rows)


def _of_windows(plan: StepPlan) -> StepPlan:
    """What the layers with a window are told."""
    return plan._replace(block_updates=plan.window_updates, copies=plan.window_copies)
