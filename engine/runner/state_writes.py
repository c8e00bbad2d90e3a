"""Everything that must be on the device before a step's rows are computed: slots, tables, copied
blocks.

Invariant: everything that a step writes is in its upload. If one request is admitted, the upload
and the writes are one captured graph, for a few sizes: launching them separately takes the host
longer. What such a graph writes is staged before everything else, so it has one address for each
size. Padding rewrites the null slot's table unchanged.
"""

from collections.abc import Sequence

import torch

from quire.engine.model.forward_batch import KVCache
from quire.engine.runner.copies import make_copies, stage_copies
from quire.engine.runner.graphs import StepGraphs, WriteKey
from quire.engine.runner.sampler import Sampled
from quire.engine.runner.slots import NUMBERS, SlotState
from quire.engine.runner.staging import KEPT_BUFFERS, Staging
from quire.engine.scheduling.plan import Admission, SamplingNumbers, StepPlan
from quire.engine.scheduling.token_bytes import packed
from quire.kernels.ops import Ops

NOTHING = StepPlan(0, (), (), (), (), 0, 0)
_GREEDY = SamplingNumbers()
_UPDATES = (16, 64, 256)


def write_bytes(max_num_seqs: int) -> int:
    """Bytes of the largest write: the rows' slots, a slot, a seed, its numbers, positions and
    blocks, a pair."""
    return -(-max_num_seqs // 2) * 8 + 16 + -(-NUMBERS // 2) * 8 + 12 * _UPDATES[-1] + 16


class Writer:
    """The writes of one runner, through its step's upload. row_slots: [max_num_seqs] int32, the
    rows of the last step of one-token rows, padded."""

    def __init__(
        self, staging: Staging, state: SlotState, ops: Ops, kv: KVCache, *, use_graphs: bool
    ) -> None:
        self._staging, self._state, self._ops, self._kv = staging, state, ops, kv
        null, device = state.null_slot, state.seeds.device
        self.row_slots = torch.full((null,), null, dtype=torch.int32, device=device)
        self._nobody = packed([null]) * null  # as all of row_slots
        self._rows: list[int] = []  # what was put there last
        self._padded: bytes | None = None  # the same, packed, once it is asked for
        self._changed = False  # by the present step
        one_table = state.window_tables is None
        self._graphs = StepGraphs() if use_graphs and one_table else None
        self._staged: WriteKey | None = None  # ahead of all else in the present upload

    def capture(self) -> None:
        """Each size, on the null slot."""
        if self._graphs is None:
            return
        nobody = (Admission(0, 0, self._state.null_slot, 0, 0, _GREEDY, (), ()),)
        keys = [WriteKey(updates, copies) for updates in _UPDATES for copies in (0, 1)]
        for key in [key for key in keys for _ in range(KEPT_BUFFERS)]:
            self._staging.begin()
            null = NOTHING._replace(admitted=nobody, copies=((0, 0),) * key.copies)
            self._stage_kept(null, key)
            if (turn := self._staging.fill()) is not None:
                self._make_kept()
                self._graphs.capture(key._replace(turn=turn), self._make_kept)
                self._graphs.replay(key._replace(turn=turn))  # the first replay takes longer
                self._staging.launched()

    def reset(self) -> None:
        """Take nothing on the device for granted."""
        self._rows, self._padded = [], None

    def begin(self, plan: StepPlan, rows: Sequence[int] | None = None, padded: int = 0) -> None:
        """Start a step's upload. rows: slots of a step of one-token rows, to be padded to `padded`.
        What the plan writes comes before everything else if such writes are captured."""
        self._staging.begin()
        self._changed = False
        if rows is not None:
            slots = [*rows, *[self._state.null_slot] * (padded - len(rows))]
            if slots != self._rows:
                self._changed, self._rows, self._padded = True, slots, None
        self._staged = self._key(plan)
        if self._staged is not None:
            self._stage_kept(plan, self._staged)

    def write(self, plan: StepPlan) -> None:
        """Upload the step, and enqueue what the plan writes."""
        if self._staged is None:
            self._stage(plan)
        elif (turn := self._staging.fill()) is not None:
            updates, copies, _ = self._staged
            self._run(WriteKey(updates, copies, turn))
            return
        if self._staging.upload():
            self._make(plan)

    def _run(self, key: WriteKey) -> None:
        if self._graphs is None or self._graphs.replay(key) is None:
            self._make_kept()

    def _key(self, plan: StepPlan) -> WriteKey | None:
        """The smallest that holds what the plan writes. None, and no graph writes it: where the
        plan does not admit one request alone, or writes more than graphs hold."""
        if self._graphs is None or len(plan.admitted) != 1 or len(plan.copies) > 1:
            return None
        if self._state.writes_more(plan.admitted[0]):
            return None
        for updates in _UPDATES:
            if updates >= len(plan.block_updates):
                return WriteKey(updates, len(plan.copies))
        return None

    def _stage(self, plan: StepPlan) -> None:
        """Put what a plan writes into the upload."""
        if self._changed:
            self._staging.put_ints("decoding", self._rows)
        self._state.stage(self._staging, plan.admitted, plan.block_updates)
        if plan.window_updates:
            self._state.stage_window(self._staging, plan.window_updates)
        if plan.copies:
            stage_copies(self._staging, plan.copies, plan.window_copies)

    def _stage_kept(self, plan: StepPlan, key: WriteKey) -> None:
        """The same, padded to the number of entries in the key, at a fixed address."""
        if self._padded is None:
            rows = packed(self._rows)
            self._padded = rows + self._nobody[len(rows) :]
        self._staging.put_bytes("decoding", self._padded, torch.int32, self.row_slots.shape)
        self._state.stage_one(self._staging, plan.admitted[0], plan.block_updates, key.updates)
        if plan.copies:
            stage_copies(self._staging, plan.copies)
        self._staging.fix()

    def _make(self, plan: StepPlan) -> None:
        """Launch the writes that were staged."""
        if (rows := self._staging.find("decoding")) is not None:
            self.row_slots[: len(rows)].copy_(rows)
        self._state.write(self._staging, plan.admitted)
        make_copies(self._staging, self._ops, self._kv)

    def _make_kept(self) -> Sampled:
        """Launch the upload and the writes that were staged."""
        self._staging.copy()
        self._make(NOTHING)
        return Sampled(self._state.seeds[:0])
