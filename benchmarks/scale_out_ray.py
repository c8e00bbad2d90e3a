"""`quire ray` over the fake device, for `scale_out.py`: whole replicas, but for what computes.

python benchmarks/scale_out_ray.py --replicas N --port PORT --http-port PORT --step-ms MS --seqs N
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fake_device import FakeBuilder

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.service.ray.application_plan import Plan
from quire.service.ray.replica import EngineReplica
from quire.service.ray.start import run_forever
from quire.service.settings import Settings

HERE = str(Path(__file__).parent)
STEP_MS = "QUIRE_FAKE_STEP_MS"  # how Ray's workers are told


class FakeReplica(EngineReplica):
    """Its engine takes a time for a step, and makes tokens up."""

    def _engine(self, settings: Settings, config: EngineConfig) -> AsyncEngine:
        del settings
        return AsyncEngine(ThreadLink(config, FakeBuilder(float(os.environ[STEP_MS]) / 1000)))


def main() -> int:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--step-ms", type=float, required=True)
    parser.add_argument("--seqs", type=int, required=True)
    options = parser.parse_args()
    os.environ[STEP_MS] = str(options.step_ms)
    path = [HERE, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # workers import this file by its name
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f"[engine]\nmax_num_seqs = {options.seqs}\nnum_blocks = 1024\n")
        file.flush()
        plan = Plan(
            config=file.name,
            replicas=options.replicas,
            cpus=0.1,
            port=options.port,
            http_port=options.http_port,
        )
        from scale_out_ray import FakeReplica as named

        return run_forever(plan, named)


if __name__ == "__main__":
    sys.exit(main())
