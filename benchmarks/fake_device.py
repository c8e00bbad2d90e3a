"""A device that takes a given time for a step and makes tokens up: what remains is the host.

Steps queue as on a GPU: one begins when it is launched and the one before it has ended. A step with
masked rows is launched in two parts, its model and then its sampler, which together take the same
time. The wait releases the interpreter lock. Tokens are a pure function of (key, index, position)
and of the mask, so a stream's content can be checked.
"""

import dataclasses
import time

from quire.engine.config import EngineConfig
from quire.engine.loop.core import EngineCore
from quire.engine.loop.loop import Progress
from quire.engine.loop.stats import EngineInfo, EngineStats, snapshot
from quire.engine.model.config import GenerationDefaults
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.matching import Matchers
from quire.engine.scheduling.plan import Masks, StepPlan, StepResult
from quire.engine.scheduling.scheduler import Scheduler

VOCAB_SIZE = 4096
FIRST_PLAIN_ID = 256  # ids below may be special in a tokenizer: never made up
SAMPLER_SHARE = 0.1  # of a step's time, where it is launched apart


def token_at(key: int, index: int, position: int) -> int:
    """The made-up token of a position."""
    mixed = (key * 1_000_003 + index * 7919 + position * 104_729) & 0x7FFFFFFF
    return FIRST_PLAIN_ID + mixed % (VOCAB_SIZE - FIRST_PLAIN_ID)


def allowed(token_id: int, mask: bytes) -> int:
    """The first id of the mask from this one on, round its end."""
    bits = int.from_bytes(mask, "little")
    above = bits >> token_id
    first = above or bits
    return (token_id if above else 0) + (first & -first).bit_length() - 1


class FakePending:
    """A step that ends at a given time."""

    def __init__(self, plan: StepPlan, ends_at: float, masks: Masks = ()) -> None:
        self._plan = plan
        self._ends_at = ends_at
        self._masks = masks

    def wait(self) -> StepResult:
        left = self._ends_at - time.monotonic()
        if left > 0:
            time.sleep(left)
        tokens, masks = [], dict(self._masks)
        for row in self._plan.rows:
            if row.samples:
                token = token_at(row.key, row.index, row.start + row.num_tokens)
                mask = masks.get(row.slot)
                tokens.append([token if mask is None else allowed(token, mask)])
        return StepResult(tokens)


class FakeRunner:
    """Runs every plan in `step_seconds`; `idle_seconds` adds up what the device waited for work."""

    def __init__(self, step_seconds: float) -> None:
        self.step_seconds = step_seconds
        self.idle_seconds = 0.0
        self.steps = 0
        self._free_at = 0.0
        self._open: StepPlan | None = None

    def execute(self, plan: StepPlan) -> FakePending | None:
        masked = plan.masked
        self._launch(self.step_seconds * (1 - SAMPLER_SHARE) if masked else self.step_seconds)
        self.steps += 1
        if masked:
            self._open = plan
            return None
        return FakePending(plan, self._free_at)

    def sample(self, masks: Masks) -> FakePending:
        plan, self._open = self._open, None
        assert plan is not None
        self._launch(self.step_seconds * SAMPLER_SHARE)
        return FakePending(plan, self._free_at, masks)

    def _launch(self, seconds: float) -> None:
        """Work of so many seconds, behind what was launched before."""
        now, free_at = time.monotonic(), self._free_at
        if now > free_at:
            if self.steps:
                self.idle_seconds += now - free_at
            free_at = now
        self._free_at = free_at + seconds

    def reset(self) -> None:
        self._free_at = 0.0

    @staticmethod
    def is_fatal(error: Exception) -> bool:
        del error
        return False


class FakeEngine:
    """Stands in for quire.engine.startup.build_engine.Engine."""

    def __init__(
        self, config: EngineConfig, step_seconds: float, matchers: Matchers | None = None
    ) -> None:
        max_model_len = config.max_model_len or 4096
        num_blocks = config.num_blocks or 65_536
        pool = BlockPool(num_blocks + 1, config.block_size, config.enable_prefix_caching)
        scheduler = Scheduler(
            pool,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.step_tokens(),
            max_model_len=max_model_len,
            two_phase=config.two_phase,
        )
        self.runner = FakeRunner(step_seconds)
        self.core = EngineCore(scheduler, self.runner, overlap=config.overlap, matchers=matchers)
        self.info = EngineInfo(
            architecture="fake",
            fingerprint="fake",
            parameters=0,
            vocab_size=VOCAB_SIZE,
            max_model_len=max_model_len,
            dtype="none",
            device="fake",
            block_size=config.block_size,
            num_blocks=num_blocks,
            kv_bytes_per_token=0,
            weight_bytes=0,
            kv_cache_bytes=0,
            device_memory_total=0,
            eos_token_ids=(),
            generation=GenerationDefaults(),
            options={name: str(value) for name, value in dataclasses.asdict(config).items()},
        )

    def stats(self) -> EngineStats:
        return snapshot(self.core.scheduler)

    def stop(self) -> None:
        """Nobody else is to be told."""


class FakeBuilder:
    """A builder for AsyncEngine: `AsyncEngine(config, FakeBuilder(0.01))`."""

    def __init__(self, step_seconds: float, matchers: Matchers | None = None) -> None:
        self._step_seconds = step_seconds
        self._matchers = matchers

    def __call__(self, config: EngineConfig, progress: Progress) -> FakeEngine:
        progress("fake", 1.0)
        return FakeEngine(config, self._step_seconds, self._matchers)
