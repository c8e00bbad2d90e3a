"""`quire serve` on a following node: no server, only this node's share of the ranks.

Invariant: it ends when node 0's engine does, and with exit code 0 only if that end was regular.
Until it has joined, a SIGTERM or SIGINT ends it. After that the first one is left to node 0,
because whoever ends a job sends it to every node: node 0's streams continue until it has drained.
The second one ends this node, and so all.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

from quire.engine.loop import garbage
from quire.service.models.resolve import resolve
from quire.service.settings import Settings
from quire.service.telemetry import logs

log = logging.getLogger("quire.service")


def follow(settings: Settings) -> int:
    """Returns the exit code. Raises QuireError if the ranks cannot start."""
    service = settings.service
    logs.set_up(service.log_format, service.log_level)
    try:
        _answer_signals(_leave)
        model = resolve(settings.engine).engine_model
        with garbage.put_off():
            from quire.engine.startup.start_ranks import follow_node_0  # seconds of imports

        words = ("-m", "quire.service.app.rank_child", service.log_format, service.log_level)
        return follow_node_0(
            settings.engine.replace(model=model),
            [sys.executable, "-P", *words, model],
            partial(_answer_signals, _wait_for_node_0),
        )
    except BaseException:
        logs.give_back()
        raise


def _answer_signals(how: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, how)


def _wait_for_node_0(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    log.info("%s: this node ends when node 0 does; a second signal ends it at once", name)
    _answer_signals(_leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)  # its ranks go with it (see lifeline)
