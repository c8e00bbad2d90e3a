"""What must stand on the device before a step's rows are computed: slots, tables, copied blocks.

Invariant: all that a step writes is in its upload. Where requests are admitted the upload and the
writes are one captured graph, for a few sizes: one by one they take the host longer to launch. What
such a graph writes is staged ahead of all else, so it lies at one address for each size. Padding
writes the null slot as it is, and copies the null block onto itself.
"""

from collections.abc import Sequence

import numpy as np
import torch

from quire.engine.model.forward_batch import KVCache
from quire.engine.runner.copies import make_copies, stage_copies
from quire.engine.runner.graphs import StepGraphs, WriteKey
from quire.engine.runner.sampler import Sampled
from quire.engine.runner.slots import SlotState
from quire.engine.runner.staging import KEPT_BUFFERS, Staging
from quire.engine.scheduling.plan import StepPlan
from quire.kernels.ops import Ops

NOTHING = StepPlan(0, (), (), (), (), 0, 0)
_KEYS = tuple(
    WriteKey(admitted, updates, copies)
    for admitted, updates in ((1, 16), (1, 64), (4, 64), (16, 256))
    for copies in (0, admitted)
)


def write_bytes(max_num_seqs: int) -> int:
    """Of the largest: the rows' slots, a slot, a seed and ten numbers, an entry's place and block,
    a pair."""
    rows = -(-max_num_seqs // 2) * 8
    return rows + max(56 * k.admitted + 12 * k.updates + 16 * k.copies for k in _KEYS)


class Writer:
    """Of one runner, by its step's upload.

    row_slots: [max_num_seqs] int32, the rows of the last step of one-token rows, padded.
    """

    def __init__(
        self, staging: Staging, state: SlotState, ops: Ops, kv: KVCache, *, use_graphs: bool
    ) -> None:
        self._staging, self._state, self._ops, self._kv = staging, state, ops, kv
        null, device = state.null_slot, state.seeds.device
        self.row_slots = torch.full((null,), null, dtype=torch.int32, device=device)
        self._rows: list[int] = []  # what was put there last
        self._changed = False  # by the present step
        one_table = state.window_tables is None
        self._graphs = StepGraphs() if use_graphs and one_table else None
        self._staged: WriteKey | None = None  # ahead of all else in the present upload

    def capture(self) -> None:
        """Each size, on the null slot."""
        if self._graphs is None:
            return
        for key in [key for key in _KEYS for _ in range(KEPT_BUFFERS)]:
            self._staging.begin()
            self._stage_kept(NOTHING, key)
            if (turn := self._staging.fill()) is not None:
                self._make_kept()
                self._graphs.capture(key._replace(turn=turn), self._make_kept)
                self._graphs.replay(key._replace(turn=turn))  # the first replay takes longer
                self._staging.launched()

    def reset(self) -> None:
        """Take nothing on the device for granted."""
        self._rows = []

    def begin(self, plan: StepPlan, rows: Sequence[int] | None = None, padded: int = 0) -> None:
        """Start a step's upload. rows: slots of a step of one-token rows, to be padded to so many.
        What the plan writes stands ahead of all else where such writes are captured."""
        self._staging.begin()
        self._changed = False
        if rows is not None:
            slots = [*rows, *[self._state.null_slot] * (padded - len(rows))]
            self._changed, self._rows = slots != self._rows, slots
        self._staged = self._key(plan)
        if self._staged is not None:
            self._stage_kept(plan, self._staged)

    def write(self, plan: StepPlan) -> None:
        """Upload the step, and enqueue what the plan writes."""
        if self._staged is None:
            self._stage(plan)
        elif (turn := self._staging.fill()) is not None:
            self._run(self._staged._replace(turn=turn))
            return
        if self._staging.upload():
            self._make(plan)

    def _run(self, key: WriteKey) -> None:
        if self._graphs is None or self._graphs.replay(key) is None:
            self._make_kept()

    def _key(self, plan: StepPlan) -> WriteKey | None:
        """The smallest that holds what the plan writes. None: it admits nobody, or more than is
        kept, or somebody of whom more is written."""
        if self._graphs is None or not plan.admitted:
            return None
        if any(self._state.writes_more(one) for one in plan.admitted):
            return None
        wanted = WriteKey(len(plan.admitted), len(plan.block_updates), len(plan.copies))
        return next((key for key in _KEYS if key.holds(wanted)), None)

    def _stage(self, plan: StepPlan) -> None:
        """Put what a plan writes into the upload."""
        if self._changed:
            self._staging.put("decoding", np.array(self._rows, np.int32))
        self._state.stage(self._staging, plan.admitted, plan.block_updates)
        if plan.window_updates:
            self._state.stage_window(self._staging, plan.window_updates)
        if plan.copies:
            stage_copies(self._staging, plan.copies, plan.window_copies)

    def _stage_kept(self, plan: StepPlan, key: WriteKey) -> None:
        """The same with as much as the key says, to stay where it is."""
        slots = np.full(len(self.row_slots), self._state.null_slot, np.int32)
        slots[: len(self._rows)] = self._rows
        self._staging.put("decoding", slots)
        self._state.stage(self._staging, plan.admitted, plan.block_updates, key[:2])
        if key.copies:
            nothing = ((0, 0),) * (key.copies - len(plan.copies))
            stage_copies(self._staging, plan.copies + nothing)
        self._staging.fix()

    def _make(self, plan: StepPlan) -> None:
        """Enqueue what was staged."""
        if (rows := self._staging.find("decoding")) is not None:
            self.row_slots[: len(rows)].copy_(rows)
        self._state.write(self._staging, plan.admitted)
        make_copies(self._staging, self._ops, self._kv)

    def _make_kept(self) -> Sampled:
        """Enqueue what was staged, and its upload; there is no token in that."""
        self._staging.copy()
        self._make(NOTHING)
        return Sampled(self._state.seeds[:0])
