"""Rank 0's part in starting the others: what all agree on before any of them serves.

Invariant: every rank has the same model, options and number of cache blocks when this is over; what
keeps any from that is raised here, in words that name the rank.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.loop import sizing
from quire.engine.loop.loop import Progress
from quire.engine.model.layers.parallel import World
from quire.engine.model.shape import model_config
from quire.engine.parallel.exchange import over_gloo
from quire.engine.parallel.line import Kind
from quire.engine.parallel.ranks import Ranks

WEIGHTS = "weights"
Agree = Callable[[int, str], int]


def start_ranks(config: EngineConfig, program: Sequence[str] | None) -> Ranks:
    """Start the other ranks and tell them what to build. The CPU's threads are shared out over
    all, which have the same number: sums depend on it. Raises ConfigError."""
    size = config.tensor_parallel_size
    if program is None:
        raise ConfigError(
            f"tensor_parallel_size = {size}: the engine needs a process of its own "
            "(engine_process = on)"
        )
    shape, device = model_config(config), sizing.resolve_device(config)
    sizing.weight_bytes(config, shape, sizing.resolve_dtype(config, shape, device))
    threads = max(1, torch.get_num_threads() // size)
    ranks = Ranks(program, size)
    ranks.build(dataclasses.asdict(config), threads)
    torch.set_num_threads(threads)
    return ranks


def meet(ranks: Ranks) -> World:
    """Rank 0's place, once it can exchange with the others."""
    return World(0, ranks.size, ranks.meet(lambda store: over_gloo(store, 0, ranks.size)))


def leading(ranks: Ranks, progress: Progress) -> tuple[Progress, Agree]:
    """What building rank 0 is to call: for its progress, and for the number of blocks."""

    def told(stage: str, share: float) -> None:
        ranks.check()
        progress(stage, min(share, ranks.least_share()) if stage == WEIGHTS else share)

    def agree(blocks: int, fingerprint: str) -> int:
        said = ranks.wait_for(Kind.SIZED)
        for rank, its in enumerate(said, start=1):
            if its["fingerprint"] != fingerprint:
                raise ConfigError(
                    f"rank {rank} has another model than rank 0: fingerprint "
                    f"{its['fingerprint']}, not {fingerprint}"
                )
        least = min(blocks, *(int(its["blocks"]) for its in said))
        ranks.say(Kind.BLOCKS, blocks=least)
        return least

    return told, agree
