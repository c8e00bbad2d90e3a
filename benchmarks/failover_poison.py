"""A server over the fake device whose process may die of a prompt: for `failover.py`, which asks
what a fleet makes of that, and for `scale_out.py`, which asks what two of them do.

python benchmarks/failover_poison.py --port PORT [--poison ID] [--step-ms MS] [--seqs N]
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_device import VOCAB_SIZE, FakeEngine, FakePending, FakeRunner

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.loop.core import EngineCore
from quire.engine.loop.loop import Progress
from quire.engine.scheduling.plan import StepPlan
from quire.service.app.server import Server
from quire.service.models import pocket
from quire.service.models.resolve import ResolvedModel
from quire.service.settings import ServiceConfig, Settings

STEP_MS = 5.0
LENGTH = 2048


class Mortal(FakeRunner):
    """Dies, and its process with it, when a prompt (of two tokens or more) holds the poison."""

    def __init__(self, poison: int, step_seconds: float) -> None:
        super().__init__(step_seconds)
        self._poison = poison

    def execute(self, plan: StepPlan) -> FakePending:
        """Run a step, if there is no poison in it."""
        if any(self._poison in row.token_ids for row in plan.rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(plan)


async def serve(poison: int, port: int, step_seconds: float, seqs: int) -> None:
    """Until the process is killed."""
    config = EngineConfig(max_num_seqs=seqs, max_model_len=LENGTH, num_blocks=1024, block_size=16)

    def build(config: EngineConfig, progress: Progress) -> FakeEngine:
        progress("fake", 1.0)
        engine = FakeEngine(config, step_seconds)
        engine.runner = Mortal(poison, step_seconds)
        engine.core = EngineCore(engine.core.scheduler, engine.runner, overlap=config.overlap)
        return engine

    engine = AsyncEngine(ThreadLink(config, build))
    resolved = ResolvedModel("fake", "fake", pocket.directory())
    server = Server(Settings(config, ServiceConfig(port=port, http_port=0)), resolved, engine)
    await server.open(LENGTH)
    await server.load(VOCAB_SIZE)
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--poison", type=int, default=-1, help="the id to die of; -1: none")
    parser.add_argument("--step-ms", type=float, default=STEP_MS)
    parser.add_argument("--seqs", type=int, default=8, help="requests in one step at most")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    step_seconds = options.step_ms / 1000
    asyncio.run(serve(options.poison, options.port, step_seconds, options.seqs))


if __name__ == "__main__":
    main()
