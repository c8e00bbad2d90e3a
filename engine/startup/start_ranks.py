"""Rank 0's part in starting the others: what all agree on before any of them serves.

Invariant: every rank has the same model, options and number of cache blocks when this is over; what
keeps any from that is raised here, in words that name the rank.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.loop.loop import Progress
from quire.engine.model.layers.parallel import World
from quire.engine.model.load_config import model_config
from quire.engine.parallel import node
from quire.engine.parallel.frame_channel import Kind
from quire.engine.parallel.join_listener import JoinListener
from quire.engine.parallel.network import listen
from quire.engine.parallel.node_config import NodeConfig, node_config_of
from quire.engine.parallel.process import Program
from quire.engine.parallel.ranks import Ranks, ended_on_error
from quire.engine.parallel.rendezvous import exchange_of
from quire.engine.parallel.secret import read_secret
from quire.engine.startup import sizing

WEIGHTS = "weights"
Agree = Callable[[int, str], int]


def start_ranks(config: EngineConfig, program: Program | None) -> Ranks:
    """Start the other ranks of this node, wait for the other nodes, and tell all what to build. The
    CPU's threads are shared out over this node's, and all have the same number: sums depend on it.
    Raises ConfigError."""
    size = config.tensor_parallel_size
    if program is None:
        raise ConfigError(
            f"tensor_parallel_size = {size}: the engine needs its own process (engine_process = on)"
        )
    node_config = common_config(config)
    listener = _join_listener(config, node_config) if config.nnodes > 1 else None
    threads = max(1, torch.get_num_threads() // config.ranks_per_node)
    ranks = Ranks(program, size, here=config.ranks_per_node)
    with ended_on_error(ranks):
        if listener is not None:
            ranks.take_in(listener.gather(config.join_seconds, ranks.check))
        ranks.build(dataclasses.asdict(config), threads)
    torch.set_num_threads(threads)
    return ranks


def follow_node_0(
    config: EngineConfig, program: Sequence[str], on_joined: Callable[[], None]
) -> int:
    """The life of a node that follows (see node.follow); its exit code. Raises ConfigError."""
    return node.follow(
        config,
        common_config(config),
        read_secret(config.join_secret_file, os.environ),
        program,
        on_joined,
    )


def common_config(config: EngineConfig) -> NodeConfig:
    """What all nodes must have in common. Raises ConfigError, on every node alike, if this many
    ranks cannot share the model."""
    shape, device = model_config(config), sizing.resolve_device(config)
    sizing.weight_bytes(config, shape, sizing.resolve_dtype(config, shape, device))
    return node_config_of(config, shape, device)


def _join_listener(config: EngineConfig, node_config: NodeConfig) -> JoinListener:
    assert config.master_addr is not None and config.master_port is not None
    secret = read_secret(config.join_secret_file, os.environ)
    listener = listen(config.master_addr, config.master_port)
    return JoinListener(listener, secret, node_config, node.places(config))


def rendezvous(config: EngineConfig, ranks: Ranks) -> World:
    """Rank 0's World, once all ranks can exchange tensors."""
    address = ranks.address
    return World(
        0, ranks.size, ranks.rendezvous(lambda store: exchange_of(config, store, 0, address))
    )


def leading(ranks: Ranks, progress: Progress) -> tuple[Progress, Agree]:
    """The callbacks with which rank 0 is built: for its progress, and for the number of blocks."""

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
        ranks.send_json(Kind.BLOCKS, blocks=least)
        return least

    return told, agree
