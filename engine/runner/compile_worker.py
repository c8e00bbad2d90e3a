"""A process that compiles the kernels that an engine can launch, and ends.

Invariant: it finds what there is to compile as the engine does, by running the steps of
`warm_steps`; here they run on meta tensors and over one layer, and a launch is only noted. What it
would run is compiled then, and Triton keeps that where the engine will look for it. No GPU is ever
touched. Its orders are a line of standard input, whose end is its own too (see lifeline); what it
finds, and what is compiled, it tells a line each (`compile_orders.Word`). The work is done by
forks of it. The longest, for which all others wait, has a fork of its own before it is known what
else there is: the largest step has it. What `compile_listed` has begun is left to that.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from triton import knobs

from quire.engine.model.config import ModelConfig
from quire.engine.model.forward_batch import KVCache
from quire.engine.model.layers.parallel import World
from quire.engine.model.load_config import resolve_max_model_len
from quire.engine.model.registry import build_model
from quire.engine.runner import early_start, exact_mode
from quire.engine.runner.compile_forks import LONGEST, Tell, compile_in_forks, tell, wait_for
from quire.engine.runner.compile_listed import ListFork
from quire.engine.runner.compile_orders import Counted, Found, Orders
from quire.engine.runner.runner import Runner
from quire.engine.runner.slots import SlotState
from quire.engine.runner.warmup import bounds_of, warm_steps
from quire.kernels import movable_cache, offline
from quire.kernels.launches import Card
from quire.kernels.linear import all_reduce_norm
from quire.kernels.meta_shapes import MetaShapes
from quire.kernels.offline import Kernel
from quire.kernels.support import NARROW
from quire.kernels.triton_ops import TritonOps


class Launches(Protocol):
    """A call that launches whatever an engine can, or what its largest step does."""

    def __call__(self, *, largest: bool = False) -> None: ...


class _Outline:
    """An exchange of meta tensors, with ranks that all reach one another."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._mail = all_reduce_norm.outline(size)

    def gather(self, x: Tensor) -> Tensor:
        return x.new_empty(self._size, *x.shape)

    def mail_for(self, partial: Tensor) -> all_reduce_norm.Mail | None:
        return self._mail if partial.dtype in all_reduce_norm.DTYPES else None

    def check(self) -> None:
        """Nothing is launched."""


def launches_of(orders: Orders) -> Launches:
    """A call that launches whatever an engine of these orders can, on meta tensors."""
    config = orders.config
    model_shape = orders.shape
    few_layers = one_of_each_kind(model_shape)  # the others launch the same
    meta, dtype = torch.device("meta"), getattr(torch, orders.dtype)
    ops = TritonOps.on(meta, pdl=orders.pdl, exact=orders.exact)
    ranks = config.tensor_parallel_size
    world = World(0, ranks, _Outline(ranks) if ranks > 1 else None)
    model = build_model(few_layers, ops, dtype=dtype, device=meta, world=world)
    zeros = partial(torch.zeros, dtype=NARROW if config.fp8_cache else dtype, device=meta)
    kv = KVCache.made(few_layers, model.num_kv_heads, (2, 2), config.block_size, zeros)
    longest = resolve_max_model_len(config, model_shape)
    blocks = -(-longest // config.block_size)
    size = config.max_num_seqs, blocks, model_shape.vocab_size
    state = SlotState(*size, meta, two_tables=kv.window is not None)
    runner = Runner(
        model,
        ops,
        kv,
        state,
        max_model_len=longest,
        prompt_tokens=(),
        use_graphs=False,
    )
    card = Card(hopper=orders.arch >= 90, shared=orders.shared)
    steps = warm_steps(bounds_of(config, model, card, exact=orders.exact))

    def launches(*, largest: bool = False) -> None:
        if largest:
            step = max(steps, key=lambda step: sum(step.longer))
            return runner.warm_up((step,), lambda _share: None)
        if orders.exact:
            exact_mode.verify(config, model, ops)
        return runner.warm_up(steps, lambda _share: None)

    return launches


def one_of_each_kind(shape: ModelConfig) -> ModelConfig:
    """The same model with one layer, or two where some have a window or experts and some have
    none."""
    if shape.full_layers:
        return dataclasses.replace(shape, num_layers=2, full_layers=(0,))
    dense = [layer for layer in range(shape.num_layers) if shape.experts_of(layer) is None]
    if shape.experts is None or len(dense) == shape.num_layers:
        return dataclasses.replace(shape, num_layers=1, experts=None)
    experts = dataclasses.replace(shape.experts, dense_layers=(0,) if dense else ())
    return dataclasses.replace(shape, num_layers=2 if dense else 1, experts=experts)


def kernels_of(launches: Callable[[], None]) -> dict[str, Kernel]:
    """Each kernel that is not compiled yet, by its name and what it is specialised to."""
    with offline.noted() as kernels, MetaShapes():
        launches()
    return kernels


def compile_all(orders: Orders, tell: Tell, begun: ListFork | None = None) -> bool:
    """Compile, in so many processes; whether each of them came to its end. tell: called there.
    begun: what is compiled already, or being compiled, by another."""
    if orders.cache:
        knobs.cache.dir = orders.cache
    movable_cache.use()  # as the engine does
    knobs.compilation.store_binary_only = True  # to write down all else is a tenth of the time
    offline.compile_for(offline.OfflineCard(orders.arch, orders.shared, orders.card))
    launches = launches_of(orders)
    known = frozenset[str]() if begun is None else begun.names(orders.cache)
    first = kernels_of(partial(launches, largest=True))
    longest = {
        name: kernel
        for name, kernel in first.items()
        if name.split()[0] in LONGEST and name not in known
    }
    forks = compile_in_forks(longest, len(longest), tell)
    kernels = kernels_of(launches)
    for name in kernels:
        tell(Found(name))
    tell(Counted(len(kernels)))
    others = {name: kernels[name] for name in kernels.keys() - longest.keys() - known}
    forks += compile_in_forks(others, orders.processes, tell)
    if begun is not None and not begun.came_to_its_end():
        again = {name: kernels[name] for name in kernels.keys() & known}
        forks += compile_in_forks(again, orders.processes, tell)
    return wait_for(forks)


def main(line: str = "", begun: ListFork | None = None) -> int:
    """Do what the orders say. line: theirs; else it is read from standard input."""
    early_start.digest_compiler()
    orders = Orders.read(line or sys.stdin.readline())
    return int(not compile_all(orders, tell, begun))
