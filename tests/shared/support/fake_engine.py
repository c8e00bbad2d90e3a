"""A device under the tests' control, beneath the real engine, scheduler and block pool.

Its "model" says the prompt back, token by token, then EOS, and from the start again: so a test
chooses the output by choosing the prompt. A hidden state is the prompt's length, then its last ids;
a logit is a twentieth of its last id, for the second of those asked for, and else 0. Steps can be
held, failed, or killed.
"""

import dataclasses
import struct
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from quire.engine.config import EngineConfig
from quire.engine.loop.core import EngineCore
from quire.engine.loop.stats import EngineInfo, EngineStats, snapshot
from quire.engine.model.config import GenerationDefaults
from quire.engine.prompt_logprobs import packed
from quire.engine.request import GenerationRequest, TokenLogprob
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.matching import Matchers
from quire.engine.scheduling.plan import Masks, PlanRow, PromptLogprobsRow, StepPlan, StepResult
from quire.engine.scheduling.scheduler import Scheduler

VOCAB_SIZE = 4096
HIDDEN_SIZE = 8
EOS = 2


class DeviceLost(Exception):
    """What no engine survives."""


def said_back(row: PlanRow, prompt: Sequence[int]) -> int:
    """The prompt again, then EOS, over and over."""
    at = (row.start + row.num_tokens - len(prompt)) % (len(prompt) + 1)
    return EOS if at == len(prompt) else prompt[at]


def spec_of(scheduler: Scheduler, key: int) -> GenerationRequest | None:
    """What was asked for under a key; None once it has ended, and nobody hears what is said."""
    live = scheduler.state.by_key.get(key)
    return live[0].spec if live else None


def state_of(prompt: Sequence[int]) -> list[float]:
    """The hidden state that is read of a prompt."""
    return [float(n) for n in (len(prompt), *reversed(prompt), *[0] * HIDDEN_SIZE)][:HIDDEN_SIZE]


def pooled_of(spec: GenerationRequest | None) -> bytes:
    """What is read of a prompt, as bytes."""
    if spec is None or spec.pooling is None:
        return struct.pack("<f", 0.0)
    if not spec.pooling.token_ids:
        return struct.pack(f"<{HIDDEN_SIZE}f", *state_of(spec.prompt_token_ids))
    return struct.pack("<2f", 0.0, spec.prompt_token_ids[-1] / 20)


def logprob_of(token_id: int, top: int) -> TokenLogprob:
    best = tuple(((token_id + i) % VOCAB_SIZE, -0.5 - i) for i in range(top))
    return TokenLogprob(token_id, -0.5, 1, best)


def prompt_logprobs_of(one: PromptLogprobsRow, rows: Sequence[PlanRow]) -> bytes:
    """What a prompt's own tokens had: of each, what `logprob_of` says."""
    (row,) = (row for row in rows if row.slot == one.slot)
    following = [] if one.following < 0 else [one.following]
    tokens = [*row.token_ids[1 : one.count + 1], *following]
    best = [logprob_of(token, one.top).top for token in tokens]
    return packed(
        np.full(len(tokens), -0.5, np.float32),
        np.ones(len(tokens), np.int64),
        np.array([[i for i, _ in top] for top in best], np.int64).reshape(len(tokens), one.top),
        np.array([[value for _, value in top] for top in best], np.float32).reshape(
            len(tokens), one.top
        ),
        one.top,
    )


class Device:
    """What the tests turn. `step_seconds`: time of a step."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.step_seconds = step_seconds
        self.open = threading.Event()  # clear: steps wait
        self.open.set()
        self.fail: Exception | None = None  # raised by the next step
        self.steps = 0
        self.embeds_only = False  # what the engine tells of its model
        self.say: Callable[[PlanRow, Sequence[int]], int] = said_back
        self.scheduler: Scheduler | None = None  # knows what a plan does not say: whole prompts
        self._open: StepPlan | None = None  # its model runs, and its masks are to come

    def hold(self) -> None:
        self.open.clear()

    def release(self) -> None:
        self.open.set()

    def fail_after(self, tokens: int) -> None:
        """The step after an output's so many tokens fails."""

        def say(row: PlanRow, prompt: Sequence[int]) -> int:
            if row.start + row.num_tokens - len(prompt) >= tokens:
                self.fail, self.say = ValueError("a fault"), said_back
            return said_back(row, prompt)

        self.say = say

    # ------------------------------------------------------------ what the engine calls

    def execute(self, plan: StepPlan) -> "Pending | None":
        if plan.masked:
            self._open = plan
            return None
        return Pending(self, plan)

    def sample(self, masks: Masks) -> "Pending":
        plan, self._open = self._open, None
        assert plan is not None
        return Pending(self, plan, masks)

    def reset(self) -> None:
        pass

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, DeviceLost)


class Pending:
    def __init__(self, device: Device, plan: StepPlan, masks: Masks = ()) -> None:
        self._device = device
        self._plan = plan
        self._masks = dict(masks)

    def wait(self) -> StepResult:
        device = self._device
        device.open.wait()
        if device.step_seconds:
            time.sleep(device.step_seconds)
        device.steps += 1
        if device.fail is not None:
            error, device.fail = device.fail, None
            raise error
        rows = [row for row in self._plan.rows if row.samples]
        assert device.scheduler is not None
        specs = [spec_of(device.scheduler, row.key) for row in rows]
        tokens = [
            [EOS if spec is None else self._chosen(row, device.say(row, spec.prompt_token_ids))]
            for row, spec in zip(rows, specs, strict=True)
        ]
        asked = [None if spec is None else spec.sampling.logprobs for spec in specs]
        logprobs = None
        if any(top is not None for top in asked):
            logprobs = [
                None if top is None else logprob_of(token[0], top)
                for top, token in zip(asked, tokens, strict=True)
            ]
        keys = {row.slot: row.key for row in self._plan.rows}
        asked_of = [spec_of(device.scheduler, keys[one.slot]) for one in self._plan.pooled]
        prompt_logprobs = tuple(
            prompt_logprobs_of(one, self._plan.rows) for one in self._plan.prompt_logprobs
        )
        return StepResult(tokens, logprobs, tuple(map(pooled_of, asked_of)), prompt_logprobs)

    def _chosen(self, row: PlanRow, wanted: int) -> int:
        """What is wanted if the row's mask has it, else the first id that it has."""
        mask = self._masks.get(row.slot)
        if mask is None or mask[wanted >> 3] >> (wanted & 7) & 1:
            return wanted
        bits = int.from_bytes(mask, "little")
        return (bits & -bits).bit_length() - 1


class FakeEngine:
    """Stands in for quire.engine.startup.build_engine.Engine."""

    def __init__(
        self, config: EngineConfig, device: Device, matchers: Matchers | None = None
    ) -> None:
        max_model_len = config.max_model_len or 2048
        num_blocks = config.num_blocks or 512
        pool = BlockPool(num_blocks + 1, config.block_size, config.enable_prefix_caching)
        scheduler = Scheduler(
            pool,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.step_tokens(),
            max_model_len=max_model_len,
            two_phase=config.two_phase,
        )
        device.scheduler = scheduler
        self.core = EngineCore(scheduler, device, overlap=config.overlap, matchers=matchers)
        self.info = EngineInfo(
            architecture="Fake",
            fingerprint="fake-fingerprint",
            parameters=1,
            vocab_size=VOCAB_SIZE,
            max_model_len=max_model_len,
            dtype="none",
            device="fake",
            block_size=config.block_size,
            num_blocks=num_blocks,
            kv_bytes_per_token=1,
            weight_bytes=1,
            kv_cache_bytes=1,
            device_memory_total=1,
            eos_token_ids=(EOS,),
            generation=GenerationDefaults(),
            options={name: str(value) for name, value in dataclasses.asdict(config).items()},
            hidden_size=HIDDEN_SIZE,
            embeds_only=device.embeds_only,
            numerics="fake numerics",
        )

    def stats(self) -> EngineStats:
        return snapshot(self.core.scheduler)

    def stop(self) -> None:
        """Nobody else is to be told."""


class Builder:
    """A builder for AsyncEngine over one device."""

    def __init__(
        self,
        device: Device,
        before: Callable[[], None] | None = None,
        matchers: Matchers | None = None,
    ) -> None:
        self._device = device
        self._before = before
        self._matchers = matchers
        self.built: FakeEngine | None = None  # for looks at its books when it is idle

    def __call__(self, config: EngineConfig, progress: Callable[[str, float], None]) -> FakeEngine:
        if self._before is not None:
            self._before()
        progress("weights", 1.0)
        self.built = FakeEngine(config, self._device, self._matchers)
        return self.built
