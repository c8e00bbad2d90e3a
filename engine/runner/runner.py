"""One rank's device work: from a StepPlan to sampled tokens, without waiting for the device.

Invariant: `execute` only enqueues; the host learns the tokens from the PendingResult, by a copy
into a pinned buffer that is not written again before it has been read. Plans are executed in the
order they were made, on one stream, so whatever a later plan overwrites was read before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.engine.model.forward_batch import KVCache
from quire.engine.model.registry import Model
from quire.engine.runner.device_errors import is_device_lost
from quire.engine.runner.edits import Edits, SlotEdits
from quire.engine.runner.graphs import MIXED_TOKENS, GraphKey, GraphSizes, StepGraphs
from quire.engine.runner.inputs import (
    MixedShape,
    StepInputs,
    decode_inputs,
    mixed_inputs,
    stage_mixed,
)
from quire.engine.runner.results import PendingResult, copy_parts, joined
from quire.engine.runner.sampler import Needs, Sampled, Sampler
from quire.engine.runner.slots import SlotState
from quire.engine.runner.staging import Staging
from quire.engine.runner.warmup import WarmStep, stage_null
from quire.engine.scheduling.plan import SamplingNumbers, StepPlan
from quire.kernels.ops import Ops

RESULT_RING = 4  # steps whose results may be unread at once, one more than are ever in flight


@dataclass(slots=True)
class RunnerCounters:
    graph_steps: int = 0
    eager_steps: int = 0


class Runner:
    """Executes plans with a model over a KV cache."""

    def __init__(
        self,
        model: Model,
        ops: Ops,
        kv: KVCache,
        state: SlotState,
        *,
        max_model_len: int,
        use_graphs: bool,
    ) -> None:
        self.counters = RunnerCounters()
        self.captured_bytes = 0  # that capture took of the device while warming up
        self._model = model
        self._ops = ops
        self._kv = kv
        self._state = state
        self._device = state.seeds.device
        self._sampler = Sampler(ops, state)
        self._edits = SlotEdits(state.prompt_mask.shape[1])
        self._staging = Staging(self._device, capacity=_fixed_bytes(state.null_slot))
        self._row_slots = torch.full(
            (state.null_slot,), state.null_slot, dtype=torch.int32, device=self._device
        )
        self._row_slots_host: list[int] = []  # what the last decode step put there
        self._decoding: list[int] = []  # the same without padding, and what its rows need
        self._needs: Needs | None = None
        self._sampling: dict[int, SamplingNumbers] = {}  # by slot, of its last admission
        self._results = [self._pinned(state.null_slot) for _ in range(RESULT_RING)]
        self._turn = 0
        self._sizes = GraphSizes(state.null_slot, max_model_len)
        self._graphs = StepGraphs() if use_graphs else None
        self._seen: set[GraphKey] = set()  # ran eagerly once: kept the next time

    def _pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=self._device.type == "cuda")

    @torch.inference_mode()
    def warm_up(self, steps: Sequence[WarmStep], progress: Callable[[float], None]) -> None:
        """Run `steps`, which compiles whatever can be launched, then capture what every deployment
        needs; all on null rows, so that no slot moves.

        The largest are captured first: smaller graphs then fit into the memory that they took.
        Everything else is captured when it is wanted for the second time.
        """
        keys = [] if self._graphs is None else self._keys_to_capture()
        total = max(len(steps) + len(keys), 1)
        for done, step in enumerate(steps):
            self._run_null(step)
            progress((done + 1) / total)
        if steps:
            self._copy_null_block()
        free = self._free_bytes()
        for done, key in enumerate(keys, len(steps)):
            assert self._graphs is not None
            self._graphs.capture(key, self._ran(key))
            progress((done + 1) / total)
        self.captured_bytes = max(free - self._free_bytes(), 0)

    def _free_bytes(self) -> int:
        """Of the device, once all that was enqueued is done; 0 of a CPU."""
        if self._device.type != "cuda":
            return 0
        torch.cuda.synchronize(self._device)
        return torch.cuda.mem_get_info(self._device)[0]

    def _keys_to_capture(self) -> list[GraphKey]:
        kinds = [Needs(), Needs(draws=True), Needs(draws=True, filters=True)]
        bound = self._sizes.context_bounds[0]
        keys: list[GraphKey | None] = [
            self._sizes.decode(rows, bound, needs)
            for rows in reversed(self._sizes.decode_rows)
            for needs in kinds
        ]
        keys += [
            self._sizes.mixed(0, 1, tokens, bound, Needs()) for tokens in reversed(MIXED_TOKENS)
        ]
        return [key for key in keys if key is not None]

    def _run_null(self, step: WarmStep) -> None:
        if not step.longer:
            row_slots = self._row_slots[: step.decode_rows]
            self._decode_step(row_slots, step.max_context_len, step.needs)
            return
        self._staging.begin()
        stage_null(self._staging, step, self._state.null_slot)
        self._staging.upload()
        self._mixed_step(step.shape, max(step.longer), step.max_context_len, step.needs)

    def _copy_null_block(self) -> None:
        here = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._ops.copy_blocks(self._kv.k, self._kv.v, here, here)

    def _ran(self, key: GraphKey) -> Callable[[], Sampled]:
        """The step of a key, run once on null rows."""
        if key.prefill_tokens:
            self._staging.begin()
            nothing = StepPlan(0, (), (), (), (), 0, 0)
            stage_mixed(self._staging, nothing, _shape(key), self._state.null_slot)
            self._staging.upload()
        step = self._step_of(key)
        step()
        return step

    def reset(self) -> None:
        """After a failed step: take nothing on the device for granted."""
        self._row_slots_host = []
        self._needs = None

    @staticmethod
    def is_fatal(error: Exception) -> bool:
        """Whether the device is lost. Out of memory is not; other device errors stick."""
        return is_device_lost(error)

    # ------------------------------------------------------------ a step

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingResult:
        """Enqueue one step."""
        self._staging.begin()
        if plan.admitted:
            self._needs = None
            self._sampling.update((one.slot, one.sampling) for one in plan.admitted)
            self._edits.admit(plan.admitted)
        key: GraphKey | None
        shape: MixedShape | None
        if plan.num_decode_rows == len(plan.rows):
            key = decode = self._decode_key(plan)
            shape, changed = None, self._stage_row_slots(plan, decode)
        else:
            key = self._mixed_key(plan)
            shape = MixedShape.of(plan) if key is None else _shape(key)
            stage_mixed(self._staging, plan, shape, self._state.null_slot)
            changed = False
        needs = self._needs_of(plan) if key is None else key.needs
        self._write(plan, needs)
        edits = self._edits.uploaded(self._staging) if needs.edits else None
        if changed:
            row_slots = self._staging.get("row_slots")
            self._row_slots[: len(row_slots)].copy_(row_slots)
        if key is not None:
            return self._collect(plan, self._run(key, edits), key.decode_rows)
        assert shape is not None
        self.counters.eager_steps += 1
        context = max(row.start + row.num_tokens for row in plan.rows)
        longest = max(row.num_tokens for row in plan.rows)
        sampled = self._mixed_step(shape, longest, context, needs, edits)
        return self._collect(plan, sampled, shape.decode_rows)

    def _write(self, plan: StepPlan, needs: Needs) -> None:
        """What must stand on the device before the rows are computed."""
        self._state.stage(self._staging, plan.admitted, plan.block_updates)
        if plan.copies:
            self._staging.put("copies", np.array(plan.copies, np.int64).T)
        if needs.edits:
            self._edits.stage(self._staging, plan)
        self._staging.upload()
        self._state.write(self._staging, plan.admitted)
        if plan.copies:
            source, target = self._staging.get("copies")
            self._ops.copy_blocks(self._kv.k, self._kv.v, source, target)

    def _run(self, key: GraphKey, edits: Edits | None) -> Sampled:
        """A step by its key: replayed, or run eagerly and kept if it was wanted before.

        With edits it is one of decode rows, of exact size, and runs eagerly always: they differ
        from step to step in number.
        """
        if edits is not None:
            self.counters.eager_steps += 1
            row_slots = self._row_slots[: key.decode_rows]
            return self._decode_step(row_slots, key.context_bound, key.needs, edits)
        if self._graphs is not None:
            sampled = self._graphs.replay(key)
            if sampled is not None:
                self.counters.graph_steps += 1
                return sampled
        self.counters.eager_steps += 1
        step = self._step_of(key)
        sampled = step()
        if self._graphs is not None and key not in self._graphs:
            if key in self._seen:
                self._graphs.capture(key, step)
            self._seen.add(key)
        return sampled

    def _step_of(self, key: GraphKey) -> Callable[[], Sampled]:
        if not key.prefill_tokens:
            row_slots = self._row_slots[: key.decode_rows]
            return lambda: self._decode_step(row_slots, key.context_bound, key.needs)
        longest = min(key.prefill_tokens, key.context_bound)
        return lambda: self._mixed_step(_shape(key), longest, key.context_bound, key.needs)

    # ------------------------------------------------------------ keys

    def _decode_key(self, plan: StepPlan) -> GraphKey:
        slots = [row.slot for row in plan.rows]
        if self._needs is None or slots != self._decoding:
            self._decoding, self._needs = slots, self._needs_of(plan)
        bound = max(row.start for row in plan.rows) + 1
        if self._graphs is None or self._needs.edits:
            return GraphKey(len(slots), 0, 0, bound, self._needs)
        return self._sizes.decode(len(slots), bound, self._needs)

    def _mixed_key(self, plan: StepPlan) -> GraphKey | None:
        """None: exact sizes, eagerly, because the step is long or some row does not sample yet."""
        if self._graphs is None or not all(row.samples for row in plan.rows):
            return None
        shape, needs = MixedShape.of(plan), self._needs_of(plan)
        context = max(row.start + row.num_tokens for row in plan.rows)
        return None if needs.edits else self._sizes.mixed(*shape, context, needs)

    def _needs_of(self, plan: StepPlan) -> Needs:
        needs = Needs(edits=bool(plan.masks))
        for row in plan.rows:
            if row.samples:
                needs = needs.including(self._sampling[row.slot])
        return needs

    def _stage_row_slots(self, plan: StepPlan, key: GraphKey) -> bool:
        padding = [self._state.null_slot] * (key.decode_rows - len(plan.rows))
        slots = self._decoding + padding
        if slots == self._row_slots_host:
            return False
        self._row_slots_host = slots
        self._staging.put("row_slots", np.array(slots, np.int32))
        return True

    # ------------------------------------------------------------ what runs on the device

    def _decode_step(
        self, row_slots: Tensor, max_context_len: int, needs: Needs, edits: Edits | None = None
    ) -> Sampled:
        """A whole step of one-token rows."""
        block_size = self._kv.block_size
        inputs = decode_inputs(self._ops, self._state, block_size, row_slots, max_context_len)
        hidden = self._model.forward(inputs.batch, self._kv)
        logits = self._model.logits(hidden, None)
        sampled = self._sampler(logits, row_slots, inputs.batch.context_lens, needs, edits)
        self._advance(inputs, sampled, needs)
        return sampled

    def _mixed_step(
        self,
        shape: MixedShape,
        longest: int,
        max_context_len: int,
        needs: Needs,
        edits: Edits | None = None,
    ) -> Sampled:
        """A whole step of rows of any length, from the upload."""
        block_size, staging = self._kv.block_size, self._staging
        inputs = mixed_inputs(
            self._ops, self._state, block_size, staging, shape, longest, max_context_len
        )
        hidden = self._model.forward(inputs.batch, self._kv)
        rows = inputs.sampled_rows
        assert rows is not None
        if rows.numel():
            logits = self._model.logits(hidden, inputs.batch.logits_rows)
            positions = inputs.batch.context_lens[rows]
            sampled = self._sampler(logits, inputs.row_slots[rows], positions, needs, edits)
        else:  # no row has come to its end
            sampled = Sampled(torch.empty(0, dtype=torch.int64, device=self._device))
        self._advance(inputs, sampled, needs)
        return sampled

    def _advance(self, inputs: StepInputs, sampled: Sampled, needs: Needs) -> None:
        state = self._state
        self._ops.advance(
            inputs.row_slots,
            inputs.query_lens,
            state.num_computed,
            inputs.sampled_rows,
            sampled.tokens,
            state.last_token,
            state.output_counts if needs.adjusts else None,
        )

    # ------------------------------------------------------------ results

    def _collect(self, plan: StepPlan, sampled: Sampled, decode_rows: int) -> PendingResult:
        """Start the copies to the host. Of a padded step the real rows are the first `decode` of
        its `decode_rows`, and the first of those behind."""
        decode, count = plan.num_decode_rows, sum(row.samples for row in plan.rows)
        parts = [slice(0, decode), slice(decode_rows, decode_rows + count - decode)]
        if decode == decode_rows or count == decode:
            parts = [slice(0, count)]
        if self._device.type == "cpu":
            tokens, values = joined(sampled.tokens, parts), sampled.logprobs
            logprobs = None if values is None else tuple(joined(v, parts) for v in values)
            return PendingResult(self._wanted(plan, logprobs), tokens, logprobs, lambda: None)
        self._turn = (self._turn + 1) % RESULT_RING
        tokens, logprobs = self._results[self._turn][:count], None
        copy_parts(tokens, sampled.tokens, parts)
        if sampled.logprobs is not None:
            logprobs = tuple(self._to_host(value, parts, count) for value in sampled.logprobs)
        event = torch.cuda.Event()
        event.record()
        return PendingResult(self._wanted(plan, logprobs), tokens, logprobs, event.synchronize)

    def _wanted(self, plan: StepPlan, logprobs: object | None) -> list[int | None]:
        """Taken down now: the slots may be others' by the time the result has come."""
        if logprobs is None:
            return []
        return [self._sampling[row.slot].logprobs for row in plan.rows if row.samples]

    def _to_host(self, value: Tensor, parts: list[slice], count: int) -> Tensor:
        host = torch.empty((count, *value.shape[1:]), dtype=value.dtype, pin_memory=True)
        copy_parts(host, value, parts)
        return host


def _fixed_bytes(max_num_seqs: int) -> int:
    """Room for what a captured mixed step reads of its upload (see stage_mixed): at most 4 bytes a
    token and 32 a row. Its longer rows have two tokens or more each, padded to a power of two."""
    rows = max_num_seqs + MIXED_TOKENS[-1]
    return max(1 << 16, 40 * rows + 4 * MIXED_TOKENS[-1])


def _shape(key: GraphKey) -> MixedShape:
    return MixedShape(key.decode_rows, key.prefill_rows, key.prefill_tokens)
