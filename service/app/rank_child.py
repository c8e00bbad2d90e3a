"""The program of a rank's process; the engine's process starts it, and nobody else can.

    python -m quire.service.app.rank_child LOG_FORMAT LOG_LEVEL SOCKET

SOCKET is an inherited file descriptor (quire.engine.parallel.follower.run).
"""

import sys
from typing import TYPE_CHECKING, NoReturn

from quire.engine.client import stacks
from quire.service.telemetry import logs

if TYPE_CHECKING:
    from quire.engine.parallel.follower import Builder


def main(log_format: str, log_level: str, connection: str) -> NoReturn:
    """Logs as the server's own; then the rank, until its end."""
    logs.set_up(log_format, log_level)
    stacks.answer_signals()
    from quire.engine.parallel import follower  # seconds of imports

    follower.run(_load, int(connection), logs.flush)


def _load() -> "Builder":
    from quire.engine.loop.build import build_rank

    return build_rank


if __name__ == "__main__":
    main(*sys.argv[1:])
