"""Builds an engine of several ranks: this process is rank 0, the others are started by it.

Imported where there are several: one rank alone starts without all that they speak through.
"""

from functools import partial

from quire.engine.config import EngineConfig
from quire.engine.loop.loop import Progress
from quire.engine.parallel.frame_channel import Kind
from quire.engine.parallel.leader import LeadingRunner
from quire.engine.parallel.process import Program
from quire.engine.parallel.ranks import ended_on_error
from quire.engine.scheduling.matching import Matchers
from quire.engine.startup.build_engine import Engine, engine_over
from quire.engine.startup.build_rank import build_rank
from quire.engine.startup.start_ranks import leading, rendezvous, start_ranks


def build_parallel(
    config: EngineConfig,
    progress: Progress,
    program: Program | None,
    matchers: Matchers | None,
    *,
    pdl: bool | None,
) -> Engine:
    """See build_engine. program: another rank's. Raises QuireError."""
    ranks = start_ranks(config, program)
    with ended_on_error(ranks):
        world = partial(rendezvous, config, ranks)
        rank = build_rank(config, 0, world, *leading(ranks, progress), pdl=pdl)
        ranks.wait_for(Kind.READY)
        engine = engine_over(config, rank, LeadingRunner(rank.runner, ranks), ranks, matchers)
        ranks.serving()
        return engine
