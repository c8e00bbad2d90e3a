"""Puts one rank together: weights, slots, cache, runner, in the order memory demands.

Room for the weights first, then everything of fixed size, then a profile run of the largest step;
what is left of the memory budget becomes the KV cache; then warm-up and capture. On a GPU threads
load the weights beside all of that (`loaded_beside`), and on a first start other processes compile
kernels (`runner/compile_ahead.py`): each until it is launched, or, where that does not do, all of
them beside the weights alone (`sized_beside`).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from quire.engine.config import EngineConfig
from quire.engine.loop.loop import Progress
from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import KVCache
from quire.engine.model.layers.parallel import World
from quire.engine.model.load_config import RANDOM_PREFIX, model_config, resolve_max_model_len
from quire.engine.model.registry import Model, build_model, check_operations
from quire.engine.runner import compile_ahead, exact_mode
from quire.engine.runner.compile_ahead import CompileAhead
from quire.engine.runner.runner import Runner
from quire.engine.runner.slots import SlotState
from quire.engine.runner.warmup import WarmStep, bounds_of, warm_steps
from quire.engine.startup import fit, sizing
from quire.engine.startup.kv_cache import allocate_cache
from quire.engine.startup.largest_step import Baseline, by_streams, peak_bytes
from quire.engine.startup.rank import Rank
from quire.engine.weights.loader import LOADING_BYTES, check_checkpoint, loading
from quire.engine.weights.random import fill_random
from quire.kernels.ops import Ops
from quire.kernels.support import before_hopper, can_chain, shared_bytes

if TYPE_CHECKING:  # what several ranks need is imported where there are any
    from quire.engine.startup.start_ranks import Agree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Basis:
    """What is known of a rank before anything takes memory."""

    config: EngineConfig
    world: World
    shape: ModelConfig
    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    max_model_len: int
    ops: Ops
    exact: bool
    ahead: CompileAhead | None

    @property
    def sized_beside(self) -> bool:
        """Whether the cache is sized while kernels are compiled, by a step that launches none, and
        each launch of the warm-up waits for its own kernel only. Only for one rank, and not for
        experts: without kernels, torch would look them up by uninitialised numbers."""
        if self.ahead is None or self.exact or self.shape.experts is not None:
            return False
        return self.ahead.at_work and self.world.exchange is None

    @property
    def loaded_beside(self) -> bool:
        """Whether the weights are loaded while everything else is prepared, whose results nobody
        uses then: from files to a GPU, by one rank. Not in exact mode, which compares results, and
        not with experts, which are chosen by them."""
        if self.exact or self.shape.experts is not None or self.world.exchange is not None:
            return False
        return self.device.type == "cuda" and not self.config.model.startswith(RANDOM_PREFIX)


def build_rank(
    config: EngineConfig,
    rank: int,
    meet: Callable[[], World],
    progress: Progress,
    agree: "Agree | None" = None,
    *,
    pdl: bool | None = None,
) -> Rank:
    """Load, size and warm up one rank's share. meet: returns once all ranks can exchange.
    agree(blocks, fingerprint): the number of cache blocks, the null block included, that all ranks
    have memory for; None: there is one. pdl: see build_engine."""
    clock = _TimeLine()
    basis = _basis_of(config, rank, meet, pdl, clock)
    model = _new_model(basis)
    sized = basis.loaded_beside and config.num_blocks is None
    before = Baseline.read(basis.device) if sized and by_streams() else None
    with _loading(basis, model) as load:
        if not basis.loaded_beside:
            load(partial(progress, "weights"))
        clock.mark("weights")
        if not basis.sized_beside:
            _have_kernels(basis, model, progress, clock)
        max_blocks = -(-basis.max_model_len // config.block_size)
        state = _new_slots(config, basis.shape, max_blocks, basis.device)
        kv = _new_cache(basis, model, state, agree, before)
        clock.mark("cache")
        with _kernels_beside(basis, progress) as waited:
            runner = _warm_runner(basis, model, kv, state, progress)
        clock.mark("warm-up", ("captures", runner.captured_seconds), *waited)
        if basis.loaded_beside:
            load(partial(progress, "weights"))
            clock.mark("rest of the weights")
    clock.log()
    return Rank(model, basis.ops, runner, kv, basis.max_model_len)


def _basis_of(
    config: EngineConfig,
    rank: int,
    meet: Callable[[], World],
    pdl: bool | None,
    clock: "_TimeLine",
) -> _Basis:
    """Resolve what the options leave open, take the device, and meet the other ranks.

    Compiling begins first: before the meeting, and before the imports that it needs. Raises
    ConfigError.
    """
    shape = model_config(config)
    device = sizing.resolve_device(config, rank)
    dtype = sizing.resolve_dtype(config, shape, device)
    cache_dtype = sizing.resolve_cache_dtype(config, dtype, device)
    max_model_len = resolve_max_model_len(config, shape)
    pdl = can_chain(device) if pdl is None else pdl
    exact = exact_mode.is_wanted(config, shape, dtype, device)
    leads = rank % config.ranks_per_node == 0
    ahead = compile_ahead.begin(config, dtype, device, pdl=pdl, leads=leads, exact=exact)
    ops = exact_mode.operations(device, pdl=pdl, exact=exact)
    check_operations(shape, ops)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # of this thread, the engine's own
        sizing.check_grids(config, shape)
    clock.mark("device")
    world = meet()
    if world.exchange is not None:
        clock.mark("ranks met")
    types = dtype, cache_dtype
    return _Basis(config, world, shape, device, *types, max_model_len, ops, exact, ahead)


def _have_kernels(basis: _Basis, model: Model, progress: Progress, clock: "_TimeLine") -> None:
    """Until the kernels are compiled and, in exact mode, their bits compared."""
    world, ahead = basis.world, basis.ahead
    if ahead is not None and ahead.at_work:
        ahead.wait(lambda share: progress("kernels", share))
        clock.mark("kernels")
    _wait_for_all(world, basis.device)
    if basis.exact:
        exact_mode.verify(basis.config, model, basis.ops)
        clock.mark("bits compared")


@contextmanager
def _kernels_beside(basis: _Basis, progress: Progress) -> Iterator[list[tuple[str, float]]]:
    """Within, launches wait for their kernels, where those are still compiled; what that took."""
    waited: list[tuple[str, float]] = []
    if not basis.sized_beside or basis.ahead is None:
        yield waited
        return

    def compiled(share: float) -> None:
        progress("kernels", share)

    with basis.ahead.awaited(compiled):
        yield waited
    basis.ahead.wait(compiled)
    waited.append(("kernels", basis.ahead.waited))


def _wait_for_all(world: World, device: torch.device) -> None:
    """Of GPUs: one rank of a node compiles; the others find its kernels and launch none before."""
    if device.type == "cuda" and world.exchange is not None:
        world.exchange.gather(torch.zeros(1, device=device))
        torch.cuda.synchronize(device)


def _new_model(basis: _Basis) -> Model:
    """A rank's share of the model; zeros where steps are run before the weights are there."""
    config, shape, world, dtype = basis.config, basis.shape, basis.world, basis.dtype
    build = partial(build_model, shape, basis.ops, dtype=dtype, world=world, int8=config.int8)
    if not config.model.startswith(RANDOM_PREFIX):  # before memory is taken for the weights
        outline = build(device=torch.device("meta"))
        check_checkpoint(outline, Path(config.model))
    nbytes = sizing.weight_bytes(config, shape, dtype) // world.size
    hint = "take a smaller model or dtype, or free memory on the device"
    with sizing.room_for("the weights", nbytes, basis.device, hint):
        model = build(device=basis.device)
    if basis.loaded_beside:
        for placement in model.placements():
            placement.clear()
        torch.cuda.synchronize(basis.device)  # other streams write them next
    return model


@contextmanager
def _loading(basis: _Basis, model: Model) -> Iterator[Callable[[Callable[[float], None]], None]]:
    """Within, threads load the weights from files; what it gives waits until they are there, and
    reports the share that is. Raises CapacityError, as of an error in a thread, if memory runs out
    meanwhile."""
    path = basis.config.model

    def load(fill: Callable[[], None]) -> None:
        lower = "" if basis.device.type == "cpu" else ", or lower gpu_memory_utilization"
        hint = f"free memory on the device{lower}"
        with sizing.room_for("loading the weights", LOADING_BYTES, basis.device, hint):
            fill()

    if path.startswith(RANDOM_PREFIX):
        yield lambda _report: load(lambda: fill_random(model, basis.config.seed))
        return
    with loading(model, Path(path)) as wait:
        yield lambda report: load(lambda: wait(lambda done, total: report(done / max(total, 1))))


def _new_cache(
    basis: _Basis,
    model: Model,
    state: SlotState,
    agree: "Agree | None",
    before: Baseline | None,
) -> KVCache:
    """As many blocks as all ranks have memory for. before: see `peak_bytes`."""
    config, shape, device = basis.config, basis.shape, basis.device
    with _sized(basis):
        sizes = basis.cache_dtype, basis.max_model_len
        num_blocks = _size_cache(config, shape, model, state, *sizes, before)
    if agree is not None:
        num_blocks = agree(num_blocks, model.served_fingerprint(basis.cache_dtype))
    plan = sizing.plan_of(config, shape, device, basis.dtype, num_blocks - 1)
    if basis.world.rank == 0:
        fit.warn_if_short(config, plan)
    hint = fit.what_to_lower(config, plan)
    with sizing.room_for("the KV cache", plan.kv_cache_bytes // basis.world.size, device, hint):
        blocks = num_blocks, plan.num_window_blocks + 1
        return allocate_cache(model, *blocks, config.block_size, basis.cache_dtype)


def _sized(basis: _Basis) -> AbstractContextManager[None]:
    """Within, the largest step is run, or only torch's part of it, which takes all of its memory,
    while the rest is still compiled."""
    if not basis.sized_beside:
        return nullcontext()
    from quire.kernels import offline  # needs triton

    return offline.nothing_launched()


def _warm_runner(
    basis: _Basis, model: Model, kv: KVCache, state: SlotState, progress: Progress
) -> Runner:
    """A runner that has launched whatever a step may launch, and captured what all need."""
    config, shape, dtype = basis.config, basis.shape, basis.dtype
    use_graphs = basis.device.type == "cuda" and not config.enforce_eager
    hint = f"lower max_num_seqs = {config.max_num_seqs}"
    hint += " or gpu_memory_utilization" if basis.device.type == "cuda" else ""
    graphs = sizing.graph_bytes(config, shape, dtype) if use_graphs else 0
    with sizing.room_for("steps and captured graphs", graphs, basis.device, hint):
        runner = Runner(
            model,
            basis.ops,
            kv,
            state,
            max_model_len=basis.max_model_len,
            prompt_tokens=sizing.captured_prompts(config, shape, dtype) if use_graphs else (),
            use_graphs=use_graphs,
            check=basis.world.check,
        )
        steps = _warm_steps(config, model, basis.exact)
        alone = basis.world.exchange is None  # others would have to use spare time together
        runner.warm_up(steps, partial(progress, "graphs"), spare_time=alone)
    if use_graphs:
        sizing.verify_graphs(runner.captured_bytes, graphs)
    return runner


def _warm_steps(config: EngineConfig, model: Model, exact: bool) -> tuple[WarmStep, ...]:
    """What a GPU is to run before it serves; a CPU has nothing to compile."""
    device = model.device
    if device.type != "cuda":
        return ()
    from quire.kernels.launches import Card  # needs triton

    card = Card(hopper=not before_hopper(device), shared=shared_bytes(device))
    return warm_steps(bounds_of(config, model, card, exact=exact))


def _new_slots(
    config: EngineConfig, shape: ModelConfig, max_blocks: int, device: torch.device
) -> SlotState:
    slots = config.max_num_seqs + 1
    tables = 2 if shape.window_layers else 1
    nbytes = slots * (5 * shape.vocab_size + 4 * tables * max_blocks)  # 5: what penalties count
    hint = f"lower max_num_seqs = {config.max_num_seqs}"
    with sizing.room_for("the slots of running requests", nbytes, device, hint):
        size = config.max_num_seqs, max_blocks, shape.vocab_size
        return SlotState(*size, device, two_tables=tables == 2)


def _size_cache(
    config: EngineConfig,
    shape: ModelConfig,
    model: Model,
    state: SlotState,
    dtype: torch.dtype,
    max_model_len: int,
    before: Baseline | None = None,
) -> int:
    """Cache blocks, the null block included, that fit beside the largest step."""
    device = state.seeds.device
    if device.type == "cpu":
        budget, what = sizing.cpu_budget(config)
    elif config.num_blocks is None:
        peak = peak_bytes(config, model, dtype, max_model_len, before)
        graphs = sizing.graph_bytes(config, shape, model.dtype)
        others = None if before is None else before.others
        budget, what = sizing.gpu_budget(config, device, peak, graphs, others)
    else:
        budget, what = 0, ""
    return sizing.cache_blocks(config, shape, dtype, budget, what)


class _TimeLine:
    """What the start spent its time on, logged in one line."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._marks: list[str] = []

    def mark(self, stage: str, *parts: tuple[str, float]) -> None:
        """A stage has ended, of which these were parts, in seconds: told by themselves."""
        now = time.monotonic()
        rest = now - self._last - sum(seconds for _, seconds in parts)
        for name, seconds in ((stage, rest), *parts):
            self._marks.append(f"{name} {seconds:.2f} s")
        self._last = now

    def log(self) -> None:
        log.info("start: %s", ", ".join(self._marks))
