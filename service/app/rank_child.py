"""The program of a rank's process, which the engine's process or a node's starts.

    python -m quire.service.app.rank_child LOG_FORMAT LOG_LEVEL [MODEL] SOCKET

SOCKET is an inherited file descriptor, MODEL where this node has the model, if it is not rank 0's
(quire.engine.parallel.follower.run).
"""

import os
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from quire.engine import lifeline
from quire.engine.client import stacks
from quire.engine.loop import garbage
from quire.engine.runner import early_start
from quire.service.app.placement import sees_gpu
from quire.service.telemetry import logs

if TYPE_CHECKING:
    from quire.engine.parallel.follower import Builder


def main(log_format: str, log_level: str, *rest: str) -> NoReturn:
    """Logs as the server's own; then the rank, until its end."""
    *models, connection = rest
    os.set_inheritable(int(connection), False)
    parent = socket.socket(fileno=int(connection))
    lifeline.end_with_parent(
        parent
    )  # before what takes seconds: rank 0 may have been refused by then
    logs.set_up(log_format, log_level)
    stacks.answer_signals()
    if sees_gpu(os.environ):
        early_start.start_driver()
        early_start.start_digest()
    with garbage.put_off_for_good():
        from quire.engine.parallel import follower  # seconds of imports

    follower.run(_load, parent, logs.flush, models[0] if models else None)


@garbage.put_off_for_good()
def _load() -> "Builder":
    from quire.engine.startup.build_rank import build_rank

    return build_rank


if __name__ == "__main__":
    main(*sys.argv[1:])
