"""The program of the engine's process; `quire serve` starts it, and nobody else can.

    python -m quire.service.app.engine_child LOG_FORMAT LOG_LEVEL RANKS OPTIONS SOCKET MARK

RANKS: how many other ranks this machine is to have, which get ready beside this one. OPTIONS: some
of an EngineConfig's, as JSON (`compile_process.TOLD`), for what gets ready before all of them are
sent: the same, but that the model may have another name. SOCKET and MARK are inherited file
descriptors (quire.engine.client.process_main.run).
"""

import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from quire.engine.loop import garbage
from quire.engine.parallel.process import Program
from quire.engine.runner import compile_process, early_start
from quire.service.app.placement import sees_gpu
from quire.service.telemetry import logs

if TYPE_CHECKING:
    from quire.engine.loop.loop import Builder

_MAX_AHEAD = 7  # of eight: more have not been found on one machine, and may be a mistake


def main(
    log_format: str, log_level: str, ranks: str, options: str, connection: str, mark: str
) -> NoReturn:
    """Logs as the server's own; then the engine, until its end."""
    logs.set_up(log_format, log_level)
    rank = [sys.executable, "-P", "-m", "quire.service.app.rank_child", log_format, log_level]
    program = Program(rank, ahead=min(int(ranks), _MAX_AHEAD))
    gpu = json.loads(options)["device"] != "cpu" and sees_gpu(os.environ)
    if gpu:
        compile_process.start_early(options)
        early_start.start_driver(0)
        early_start.start_digest()
    from quire.engine.client import process_main  # numpy: beside what has begun

    process_main.run(partial(_load, program, gpu), int(connection), int(mark), logs.flush)


@garbage.put_off_for_good()
def _load(rank_program: Program, gpu: bool) -> "Builder":
    from quire.engine.startup.build_engine import build_engine  # seconds of imports
    from quire.service.constraints.grammars import Grammars
    from quire.service.constraints.matcher_batch import THREADS

    if gpu:
        early_start.digest_beside()
    return partial(build_engine, matchers=Grammars(THREADS), rank_program=rank_program)


if __name__ == "__main__":
    main(*sys.argv[1:])
