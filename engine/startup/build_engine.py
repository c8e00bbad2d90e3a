"""Puts an engine together: its ranks, and over the first of them the scheduler and the core."""

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quire.engine.config import EngineConfig
from quire.engine.loop.core import EngineCore, StepRunner
from quire.engine.loop.loop import Progress
from quire.engine.loop.stats import EngineInfo, EngineStats, snapshot
from quire.engine.model.layers.parallel import World
from quire.engine.runner.runner import Runner
from quire.engine.scheduling.matching import Matchers
from quire.engine.startup import ranks_needed, sizing
from quire.engine.startup.build_rank import build_rank
from quire.engine.startup.kv_cache import scheduler_over
from quire.engine.startup.numerics import numerics
from quire.engine.startup.rank import Rank, memory_of

if TYPE_CHECKING:  # what several ranks need is imported where there are any
    from quire.engine.parallel.process import Program
    from quire.engine.parallel.ranks import Ranks


@dataclass(slots=True)
class Engine:
    """An engine that is ready."""

    core: EngineCore
    info: EngineInfo
    runner: Runner
    device: torch.device
    ranks: "Ranks | None" = None
    _memory: tuple[int, int] = (0, 0)
    _memory_read: float = float("-inf")

    def stats(self) -> EngineStats:
        """A snapshot, taken between steps. Memory is asked for once a second: it is slow to ask."""
        now = time.monotonic()
        if now - self._memory_read > 1:
            self._memory, self._memory_read = memory_of(self.device), now
        counters = self.runner.counters
        ranks = () if self.ranks is None else (self._memory, *self.ranks.memory)
        return snapshot(
            self.core.scheduler, counters.graph_steps, counters.eager_steps, self._memory, ranks
        )

    def stop(self) -> None:
        """Tell the other ranks that the stop is regular."""
        if self.ranks is not None:
            self.ranks.stop()


def build_engine(
    config: EngineConfig,
    progress: Progress,
    *,
    pdl: bool | None = None,
    matchers: Matchers | None = None,
    rank_program: "Program | None" = None,
) -> Engine:
    """Load, size and warm up. Raises QuireError; progress(stage, share) tells how far it is.

    matchers: makes matchers of constraints; None: requests must have none.
    pdl: launch kernels as programmatic dependents; None: where the device can (sm_90 and up).
    rank_program: of another rank's process; None: there can be no other. It ends this process when
    one is lost later on.
    """
    ranks_needed.refuse_too_large(config)
    if config.tensor_parallel_size == 1:
        rank = build_rank(config, 0, World, progress, pdl=pdl)
        return engine_over(config, rank, rank.runner, None, matchers)
    from quire.engine.startup.build_parallel import build_parallel

    return build_parallel(config, progress, rank_program, matchers, pdl=pdl)


def engine_over(
    config: EngineConfig,
    rank: Rank,
    runner: StepRunner,
    ranks: "Ranks | None",
    matchers: Matchers | None,
) -> Engine:
    """The scheduler's side of a rank that is built. runner: what the core is to drive."""
    scheduler = scheduler_over(
        rank.kv,
        rank.model.config.sliding_window,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.step_tokens(cpu=rank.model.device.type == "cpu"),
        max_model_len=rank.max_model_len,
        two_phase=config.two_phase,
        caching=config.enable_prefix_caching,
        seed=config.prefix_cache_seed,
    )
    core = EngineCore(scheduler, runner, overlap=config.overlap, matchers=matchers)
    if matchers is not None:
        matchers.write_to(rank.runner.mask_room)
        core.spare.append(matchers.get_ready)  # first, while nobody is likely to ask yet
    if ranks is None:  # others would have to do the same at the same time
        core.spare.append(rank.runner.use_spare_time)
    info = _info(config, rank, scheduler.pool.num_usable)
    return Engine(core, info, rank.runner, rank.model.device, ranks)


def _info(config: EngineConfig, rank: Rank, num_blocks: int) -> EngineInfo:
    """The engine's description of itself. num_blocks: without the null block."""
    model = rank.model
    shape, device = model.config, model.device
    plan = sizing.plan_of(config, shape, device, model.dtype, num_blocks)
    cache_dtype = sizing.resolve_cache_dtype(config, model.dtype, device)
    told = config.replace(max_num_batched_tokens=config.step_tokens(cpu=device.type == "cpu"))
    return EngineInfo(
        architecture=shape.architecture,
        fingerprint=model.served_fingerprint(cache_dtype),
        parameters=shape.num_parameters,
        vocab_size=shape.vocab_size,
        max_model_len=rank.max_model_len,
        dtype=str(model.dtype).removeprefix("torch."),
        kv_cache_dtype=plan.kv_cache_dtype,
        device=_device_name(device),
        block_size=config.block_size,
        num_blocks=num_blocks,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        weight_bytes=plan.weight_bytes,
        kv_cache_bytes=plan.kv_cache_bytes,
        device_memory_total=sizing.total_memory(device),
        eos_token_ids=shape.eos_token_ids,
        generation=shape.generation,
        options={name: str(value) for name, value in dataclasses.asdict(told).items()},
        hidden_size=shape.hidden_size,
        embeds_only=shape.embeds_only,
        numerics=numerics(device, rank.ops, ranks=config.tensor_parallel_size),
    )


def _device_name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
