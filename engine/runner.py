"""One rank's device work: from a StepPlan to sampled tokens, without waiting for the device.

Invariant: `execute` only enqueues; the host learns the tokens from the PendingResult, by a copy
into a pinned buffer that is not written again before it has been read. Plans are executed in the
order they were made, on one stream, so whatever a later plan overwrites was read before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.engine.forward_batch import KVCache
from quire.engine.graphs import DecodeGraphs
from quire.engine.inputs import StepInputs, decode_inputs, mixed_inputs, stage_mixed
from quire.engine.models.registry import Model
from quire.engine.plan import StepPlan, StepResult
from quire.engine.sampler import Needs, Sampled, Sampler, to_logprobs
from quire.engine.slots import SlotState
from quire.engine.staging import Staging
from quire.kernels.ops import Ops

RESULT_RING = 4  # steps whose results may be unread at once, one more than are ever in flight


@dataclass(slots=True)
class RunnerCounters:
    graph_steps: int = 0
    eager_steps: int = 0


class PendingResult:
    """A step's tokens on their way to the host."""

    def __init__(
        self, plan: StepPlan, tokens: Tensor, logprobs: tuple[Tensor, ...] | None, done: "Done"
    ) -> None:
        self._plan = plan
        self._tokens = tokens
        self._logprobs = logprobs
        self._done = done

    def wait(self) -> StepResult:
        """Wait for the device (the interpreter lock is free meanwhile) and return the tokens."""
        self._done()
        tokens = [[token] for token in self._tokens.tolist()]
        if self._logprobs is None:
            return StepResult(tokens)
        chosen, rank, top_ids, top_values = self._logprobs
        asked = [row.request.sampling for row in self._plan.rows if row.samples]
        values = (chosen, rank, top_ids, top_values)
        return StepResult(tokens, to_logprobs(tokens, asked, values))


Done = Callable[[], None]


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
        self._model = model
        self._ops = ops
        self._kv = kv
        self._state = state
        self._device = state.seeds.device
        self._sampler = Sampler(ops, state)
        self._staging = Staging(self._device)
        self._row_slots: list[int] = []  # of the last decode step, and whether it may be reused
        self._row_slots_device: Tensor | None = None
        self._needs = Needs()
        self._results = [self._pinned(state.null_slot) for _ in range(RESULT_RING)]
        self._turn = 0
        self._graphs: DecodeGraphs | None = None
        if use_graphs:
            self._graphs = DecodeGraphs(
                self._decode_step,
                max_num_seqs=state.null_slot,
                max_model_len=max_model_len,
                null_slot=state.null_slot,
                device=self._device,
            )

    def _pinned(self, size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=self._device.type == "cuda")

    @torch.inference_mode()
    def warm_up(self, progress: Callable[[float], None]) -> None:
        """Compile and capture what every deployment needs; other variants when first wanted."""
        if self._graphs is not None:
            common = [Needs(), Needs(draws=True), Needs(draws=True, filters=True)]
            self._graphs.capture_ladder(common, progress)
            torch.cuda.synchronize(self._device)

    def reset(self) -> None:
        """After a failed step: take nothing on the device for granted."""
        self._row_slots = []

    @staticmethod
    def is_fatal(error: Exception) -> bool:
        """Whether the device is lost. Out of memory is not; other device errors stick."""
        if isinstance(error, torch.OutOfMemoryError):
            return False
        return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)

    # ------------------------------------------------------------ a step

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingResult:
        """Enqueue one step."""
        is_decode = plan.num_decode_rows == len(plan.rows)
        self._staging.begin()
        self._state.stage(self._staging, plan.admitted, plan.block_updates)
        if plan.copies:
            self._staging.put("copies", np.array(plan.copies, np.int64).T)
        changed = is_decode and self._stage_row_slots(plan)
        if not is_decode:
            stage_mixed(self._staging, plan)
        self._staging.upload()
        self._state.write(self._staging, plan.admitted)
        if plan.copies:
            source, target = self._staging.get("copies")
            for layer in range(self._kv.k.shape[0]):
                self._ops.copy_blocks(self._kv.k[layer], self._kv.v[layer], source, target)
        if changed:
            self._take_row_slots()
        return self._decode(plan) if is_decode else self._mixed(plan)

    def _stage_row_slots(self, plan: StepPlan) -> bool:
        slots = [row.slot for row in plan.rows]
        changed = slots != self._row_slots
        if changed or plan.admitted:
            self._needs = _needs(plan)
        if not changed:
            return False
        self._row_slots = slots
        size = self._graphs.size_for(len(slots)) if self._graphs else len(slots)
        padding = [self._state.null_slot] * (size - len(slots))
        self._staging.put("row_slots", np.array(slots + padding, np.int32))
        return True

    def _take_row_slots(self) -> None:
        row_slots = self._staging.get("row_slots")
        if self._graphs is None:
            self._row_slots_device = row_slots
        else:
            self._graphs.row_slots[: len(row_slots)].copy_(row_slots)

    def _decode(self, plan: StepPlan) -> PendingResult:
        bound = max(row.start for row in plan.rows) + 1
        if self._graphs is not None:
            sampled = self._graphs.replay(len(plan.rows), bound, self._needs)
            if sampled is not None:
                self.counters.graph_steps += 1
                return self._collect(plan, sampled)
            row_slots = self._graphs.row_slots[: len(plan.rows)]
        else:
            assert self._row_slots_device is not None
            row_slots = self._row_slots_device
        self.counters.eager_steps += 1
        return self._collect(plan, self._decode_step(row_slots, bound, self._needs))

    def _decode_step(self, row_slots: Tensor, max_context_len: int, needs: Needs) -> Sampled:
        """A whole step of one-token rows: what a graph captures."""
        block_size = self._kv.block_size
        inputs = decode_inputs(self._ops, self._state, block_size, row_slots, max_context_len)
        hidden = self._model.forward(inputs.batch, self._kv)
        logits = self._model.logits(hidden, None)
        sampled = self._sampler(logits, row_slots, inputs.batch.context_lens, needs)
        self._advance(inputs, sampled, needs)
        return sampled

    def _mixed(self, plan: StepPlan) -> PendingResult:
        self.counters.eager_steps += 1
        self._row_slots = []
        block_size = self._kv.block_size
        inputs = mixed_inputs(self._ops, self._state, block_size, self._staging, plan)
        hidden = self._model.forward(inputs.batch, self._kv)
        rows = inputs.sampled_rows
        if rows is None:  # no row has come to its end: nothing is sampled
            self._advance(inputs, None, Needs())
            return PendingResult(plan, torch.empty(0, dtype=torch.int64), None, lambda: None)
        needs = _needs(plan)
        logits = self._model.logits(hidden, inputs.batch.logits_rows)
        positions = inputs.batch.context_lens[rows]
        sampled = self._sampler(logits, inputs.row_slots[rows], positions, needs)
        self._advance(inputs, sampled, needs)
        return self._collect(plan, sampled)

    def _advance(self, inputs: StepInputs, sampled: Sampled | None, needs: Needs) -> None:
        state = self._state
        none = torch.empty(0, dtype=torch.int64, device=self._device)
        self._ops.advance(
            inputs.row_slots,
            inputs.query_lens,
            state.num_computed,
            none if sampled is None else inputs.sampled_rows,
            none if sampled is None else sampled.tokens,
            state.last_token,
            state.output_counts if needs.adjusts else None,
        )

    # ------------------------------------------------------------ results

    def _collect(self, plan: StepPlan, sampled: Sampled) -> PendingResult:
        count = sum(row.samples for row in plan.rows)
        if self._device.type == "cpu":
            values = sampled.logprobs
            return PendingResult(plan, sampled.tokens[:count], values, lambda: None)
        self._turn = (self._turn + 1) % RESULT_RING
        tokens = self._results[self._turn][:count]
        tokens.copy_(sampled.tokens[:count], non_blocking=True)
        logprobs = None
        if sampled.logprobs is not None:
            logprobs = tuple(self._to_host(value[:count]) for value in sampled.logprobs)
        event = torch.cuda.Event()
        event.record()
        return PendingResult(plan, tokens, logprobs, event.synchronize)

    def _to_host(self, value: Tensor) -> Tensor:
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return host.copy_(value, non_blocking=True)


def _needs(plan: StepPlan) -> Needs:
    needs = Needs()
    for row in plan.rows:
        if row.samples:
            needs = needs.including(row.request.sampling)
    return needs
