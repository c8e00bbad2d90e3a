"""One rank's device work: from a StepPlan to sampled tokens, without waiting for the device.

Invariant: `execute` only enqueues; the host gets the tokens from the PendingResult, by a copy into
a pinned buffer that is not written again before it has been read. Plans are executed in order on
one stream, so whatever a later plan overwrites has been read before.

A captured step is launched in two parts, model and sampler, except for plain steps of few rows
(`graphs.fused`). With a logit bias the sampler runs eagerly; after prompts also with masks, or
where it is not captured yet. The masks of constraints come with `sample`, once the host has made
them; new masks are not written before the previous ones have been read.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from quire.engine.model.forward_batch import KVCache
from quire.engine.model.registry import Model
from quire.engine.runner.copies import warm_copies
from quire.engine.runner.device_errors import is_device_lost
from quire.engine.runner.graphs import (
    Done,
    GraphKey,
    GraphSizes,
    Key,
    SamplerKey,
    StepGraphs,
    fixed_bytes,
    free_bytes,
    fused,
    most_rows,
)
from quire.engine.runner.inputs import MixedShape, decode_inputs, mixed_inputs, stage_mixed
from quire.engine.runner.logit_edits import Bias, SlotEdits
from quire.engine.runner.model_output import ModelOutput, SamplerInputs
from quire.engine.runner.prompt_outputs import read
from quire.engine.runner.results import PendingResult, Results
from quire.engine.runner.sampler import Needs, Sampled, Sampler
from quire.engine.runner.slot_sampling import SlotSampling
from quire.engine.runner.slots import SlotState
from quire.engine.runner.staging import Staging
from quire.engine.runner.state_writes import Writer, write_bytes
from quire.engine.runner.uncaptured import Uncaptured, of_prompts
from quire.engine.runner.warmup import WarmStep, upload_null
from quire.engine.scheduling.plan import Masks, StepPlan
from quire.kernels.ops import Ops

_REPLAYED = 512  # prompt tokens up to which a graph is run once in spare time: more take longer


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
        prompt_tokens: Sequence[int],
        use_graphs: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """prompt_tokens: sizes (in prompt tokens) whose steps are captured. check: called when a
        step has ended, before its results are used; it may raise."""
        self.counters = RunnerCounters()
        self.captured_bytes = 0  # device memory that captures took during warm-up
        self.captured_seconds = 0.0
        self._model, self._ops, self._kv, self._state = model, ops, kv, state
        self._device, null = state.seeds.device, state.null_slot
        self.mask_room = state.masks.room  # where the next step's masks are written
        self._sampler = Sampler(ops, state, model.head)
        self._read = partial(read, model, ops, null)
        self._edits = SlotEdits(state.prompt_mask.shape[1])
        self._results = Results(self._device, null, check)
        steps = self._results.steps
        self._bias_staging = Staging(
            self._device, steps=steps
        )  # the step's own is still to be read
        width = model.config.hidden_size
        self._sampler_inputs = SamplerInputs(most_rows(null), width, model.dtype, self._device)
        self._open: Callable[[Masks], PendingResult] | None = None  # what `sample` will launch
        self._sizes = GraphSizes(null, max_model_len, prompt_tokens)
        room, ahead = fixed_bytes(null, prompt_tokens), write_bytes(null)
        self._staging = Staging(self._device, capacity=room, ahead=ahead, steps=steps)
        self._writer = Writer(self._staging, state, ops, kv, use_graphs=use_graphs)
        self._row_slots = self._writer.row_slots
        self._slot_sampling = SlotSampling()
        self._graphs = StepGraphs() if use_graphs else None
        self._uncaptured = Uncaptured()
        self._warm = False  # everything that can be launched is compiled
        self._layers: Sequence[int] | None = None  # layers that run; None: all

    @torch.inference_mode()
    def warm_up(
        self,
        steps: Sequence[WarmStep],
        progress: Callable[[float], None],
        *,
        spare_time: bool = False,
    ) -> None:
        """Run `steps` with one layer of each kind, which compiles everything that can be launched;
        then capture what every deployment needs. All on null rows, so that no slot changes.

        The largest are captured first: smaller graphs then fit into the memory that they took.
        Everything else is captured in spare time, or on demand: see Uncaptured. spare_time: there
        will be such time, so that most is captured then.
        """
        sizes = self._sizes
        keys = sizes.first_keys() if spare_time else sizes.common_keys()
        keys = [] if self._graphs is None else keys
        total = max(len(steps) + len(keys), 1)
        self._layers = self._model.distinct_layers()
        for done, step in enumerate(steps):
            self._run_null(step)
            progress((done + 1) / total)
        self._layers = None
        if steps:
            warm_copies(self._ops, self._kv)
            self._warm = True
        free, begin = free_bytes(self._device), time.monotonic()
        self._writer.capture()
        for done, key in enumerate(keys, len(steps)):
            self._capture_null(key)
            progress((done + 1) / total)
        self.captured_bytes = max(free - free_bytes(self._device), 0)
        self.captured_seconds = time.monotonic() - begin
        if spare_time:
            self._uncaptured.expect([*sizes.common_keys(), *sizes.burst_keys()])

    @torch.inference_mode()
    def use_spare_time(self) -> bool:
        """Capture one step that is likely to come; called with no step in flight. False: there is
        none left."""
        if self._graphs is None or not self._warm:
            return False
        key = self._uncaptured.next(self._graphs)
        if key is not None:
            self._capture_null(key, run=False)
            fits = key.shape.prefill_tokens <= min(self._sizes.context_bounds[-1], _REPLAYED)
            if of_prompts(key) and fits:  # others' rows may be those of requests
                self._graphs.replay(key)  # the first replay takes 0.5 ms longer
        return key is not None

    def _run_null(self, step: WarmStep) -> None:
        if not step.longer:
            row_slots = self._row_slots[: step.decode_rows]
            self._sample(self._decode_model(row_slots, step.max_context_len), step.needs)
            return
        upload_null(self._staging, step, self._state.null_slot)
        model = self._mixed_model(step.shape, max(step.longer), step.max_context_len)
        self._sample(model, step.needs)

    def _capture_null(self, key: Key, *, run: bool = True) -> None:
        """Capture a key's step on null rows: without running it, or else, with `run`, after it."""
        if of_prompts(key):
            step = WarmStep.of(key.shape)
            run = run and max(step.longer) <= self._sizes.context_bounds[-1]  # what a table holds
            upload_null(self._staging, step, self._state.null_slot)
        assert self._graphs is not None
        if self._warm:
            self._graphs.capture(key, *self._parts_of(key), ran=False)
        if run and key not in self._graphs:
            self._step_of(key)()
            self._graphs.capture(key, *self._parts_of(key))

    def reset(self) -> None:
        """After a failed step: assume nothing about the state of the device."""
        self._writer.reset()
        self._slot_sampling.reset()
        self._open = None

    @staticmethod
    def is_fatal(error: Exception) -> bool:
        """Whether the device is lost. Out of memory is not fatal; other device errors are."""
        return is_device_lost(error)

    # ------------------------------------------------------------ a step

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingResult | None:
        """Enqueue one step. None if some row needs a mask: `sample` must follow."""
        try:
            return self._execute(plan)
        finally:
            self._staging.launched()

    def _execute(self, plan: StepPlan) -> PendingResult | None:
        if plan.admitted:
            self._slot_sampling.admit(plan.admitted)
            self._edits.admit(plan.admitted)
        if plan.num_decode_rows == len(plan.rows):
            return self._execute_decode(plan)
        needs = self._slot_sampling.needs_of(plan)
        key = self._mixed_key(plan, needs)
        shape = MixedShape.of(plan) if key is None else key.shape
        whole = key is not None and key.needs is not None
        self._writer.begin(plan)
        stage_mixed(self._staging, plan, shape, self._state.null_slot, all_sample=whole)
        self._writer.write(plan)
        done = self._run_exact(plan, shape) if key is None else self._run(key)
        if isinstance(done, Sampled):
            return self._collect(plan, done)
        kept = None
        if key is not None:  # which rows sample is in the upload, and in no graph of the model
            count = sum([row.samples for row in plan.rows])
            done = done.sampling(self._staging.get("sampled_rows")[:count])
            kept = self._sizes.sampler(key, needs, count)
        self._open = partial(self._sample_behind, plan, done, needs, kept)
        return None if needs.masks else self.sample(())

    def _execute_decode(self, plan: StepPlan) -> PendingResult | None:
        needs = self._slot_sampling.needs_of_decode(plan)
        key = self._decode_key(plan, needs)
        self._writer.begin(plan, self._slot_sampling.decoding, key.decode_rows)
        self._writer.write(plan)
        done = self._run(key)
        if isinstance(done, Sampled):
            return self._collect(plan, done)
        kept = None if needs.bias else SamplerKey(len(done.row_slots), needs)
        if needs.masks and kept is not None and self._graphs is not None:
            self._graphs.begin(kept)  # while its masks are being made
        self._open = partial(self._sample_behind, plan, done, needs, kept)
        return None if needs.masks else self.sample(())

    @torch.inference_mode()
    def sample(self, masks: Masks) -> PendingResult:
        """Enqueue the sampler of the step whose model was enqueued last, with these masks."""
        launch, self._open = self._open, None
        assert launch is not None
        return launch(masks)

    def _sample_behind(
        self, plan: StepPlan, done: ModelOutput, needs: Needs, key: SamplerKey | None, masks: Masks
    ) -> PendingResult:
        """key: of the sampler to replay or capture; None: it runs eagerly."""
        if needs.masks:
            self._state.masks.put(self._edits.masks(plan, masks))
        bias = self._edits.bias(self._bias_staging, plan) if needs.bias else None
        kept = None if key is None else self._run(key)
        sampled = kept if isinstance(kept, Sampled) else self._sample(done, needs, bias)
        pending = self._collect(plan, self._read(sampled, done.hidden, self._staging, plan))
        if needs.masks:
            self._state.masks.launched(pending.fetch)
        return pending

    def _run(self, key: Key) -> Done:
        """Run a key's step, replayed or eagerly. Captured without a run once all is compiled."""
        graphs = self._graphs
        done = None if graphs is None else graphs.replay(key)
        new = done is None and graphs is not None and key not in graphs
        at_once = new and self._uncaptured.at_once(key, compiled=self._warm)
        if graphs is not None and at_once and self._warm:
            graphs.capture(key, *self._parts_of(key), ran=False)
            done = graphs.replay(key)
        if isinstance(key, GraphKey):
            self.counters.graph_steps += done is not None
            self.counters.eager_steps += done is None
        if done is not None:
            return done
        done = self._step_of(key)()
        if graphs is not None and at_once and key not in graphs:
            graphs.capture(key, *self._parts_of(key))
        elif new:
            self._uncaptured.met(key)
        return done

    def _run_exact(self, plan: StepPlan, shape: MixedShape) -> ModelOutput:
        """Run a step that is not captured, at its exact sizes."""
        self.counters.eager_steps += 1
        context = max(row.start + row.num_tokens for row in plan.rows)
        longest = max(row.num_tokens for row in plan.rows)
        return self._mixed_model(shape, longest, context)

    def _parts_of(self, key: Key) -> tuple[Callable[[], Done], ...]:
        """The step as it is captured: what a sampler does before it reads masks is its own part."""
        if not isinstance(key, SamplerKey) or not key.needs.masks:
            return (self._step_of(key),)
        made: list[ModelOutput] = []

        def head() -> ModelOutput:
            left = self._left(key)
            made[:] = [replace(left, logits=self._model.logits(left.hidden, left.logits_rows))]
            return made[0]

        return head, lambda: self._results.keep(self._sample(made.pop(), key.needs))

    def _left(self, key: SamplerKey) -> ModelOutput:
        if key.prompts:
            return self._sampler_inputs.left_by_prompts(self._staging)
        return self._sampler_inputs.left(self._row_slots[: key.rows])

    def _step_of(self, key: Key) -> Callable[[], Done]:
        if isinstance(key, SamplerKey):
            return lambda: self._sample(self._left(key), key.needs)
        whole = key.needs
        if whole is None:
            return lambda: self._sampler_inputs.keep(self._model_of(key))
        return lambda: self._sample(self._model_of(key), whole)

    def _model_of(self, key: GraphKey) -> ModelOutput:
        if not key.prefill_tokens:
            return self._decode_model(self._row_slots[: key.decode_rows], key.context_bound)
        longest = min(key.prefill_tokens, key.context_bound)
        return self._mixed_model(key.shape, longest, key.context_bound)

    # ------------------------------------------------------------ keys

    def _decode_key(self, plan: StepPlan, needs: Needs) -> GraphKey:
        rows, bound = len(plan.rows), max(row.start for row in plan.rows) + 1
        if self._graphs is None:
            return GraphKey(rows, 0, 0, bound, None if needs.edits else needs)
        key = self._sizes.decode(rows, bound, None)
        return self._best(key, needs, bound) if fused(key.decode_rows, needs) else key

    def _mixed_key(self, plan: StepPlan, needs: Needs) -> GraphKey | None:
        """None: the step runs eagerly at its exact sizes, because it is long."""
        if self._graphs is None or plan.prompt_logprobs:  # graphs keep each row's last token alone
            return None
        context = max(row.start + row.num_tokens for row in plan.rows)
        key = self._sizes.mixed(*MixedShape.of(plan), context)
        if key is None:
            return None
        in_front = key.decode_rows == plan.num_decode_rows  # real rows first, then the padding
        whole = in_front and all(row.samples for row in plan.rows)
        whole = whole and fused(key.rows, needs, key.prefill_tokens)
        return self._best(key, needs if whole else None, context)

    def _best(self, key: GraphKey, needs: Needs | None, context: int) -> GraphKey:
        """The best key of a step for which `key` serves too; see Uncaptured.choose."""
        best, graphs = self._sizes.best(key, needs, context), self._graphs
        return best if graphs is None else self._uncaptured.choose(best, key, graphs)

    # ------------------------------------------------------------ what runs on the device

    def _decode_model(self, row_slots: Tensor, max_context_len: int) -> ModelOutput:
        """The model's part of a step of one-token rows."""
        block_size = self._kv.block_size
        context_lens = self._sampler_inputs.context_lens(len(row_slots))
        inputs = decode_inputs(
            self._ops, self._state, block_size, row_slots, context_lens, max_context_len
        )
        return ModelOutput.of(self._model.forward(inputs.batch, self._kv, self._layers), inputs)

    def _mixed_model(self, shape: MixedShape, longest: int, max_context_len: int) -> ModelOutput:
        """The model's part of a step of rows of any length, from the upload."""
        block_size, staging = self._kv.block_size, self._staging
        lens = self._sampler_inputs.context_lens(shape.decode_rows + shape.prefill_rows)
        inputs = mixed_inputs(
            self._ops, self._state, block_size, staging, shape, longest, max_context_len, lens
        )
        return ModelOutput.of(self._model.forward(inputs.batch, self._kv, self._layers), inputs)

    def _sample(self, done: ModelOutput, needs: Needs, bias: Bias | None = None) -> Sampled:
        """The part after the model: compute logits, sample tokens, advance the slots."""
        rows = done.sampled_rows
        if rows is not None and not rows.numel():  # no row samples
            sampled = Sampled(torch.empty(0, dtype=torch.int64, device=self._device))
        else:
            logits = done.logits
            if logits is None:
                logits = self._model.logits(done.hidden, done.logits_rows, needs.best_alone)
            positions = done.context_lens if rows is None else done.context_lens[rows]
            slots = done.row_slots if rows is None else done.row_slots[rows]
            sampled = self._sampler(logits, slots, positions, needs, bias)
        state = self._state
        self._ops.advance(
            done.row_slots,
            done.query_lens,
            state.num_computed,
            rows,
            sampled.tokens,
            state.last_token,
            state.output_counts if needs.adjusts else None,
        )
        return sampled

    # ------------------------------------------------------------ results

    def _collect(self, plan: StepPlan, sampled: Sampled) -> PendingResult:
        """Start the copies to the host: in a padded step the real rows come first."""
        count = sum(row.samples for row in plan.rows)
        # Recorded now: the slots may belong to other requests when the result arrives.
        wanted = [] if sampled.logprobs is None else self._slot_sampling.logprobs_of(plan)
        return self._results.collect(sampled, count, wanted)
