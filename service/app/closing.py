"""How the ports close at the server's end, so that every client learns how its call ended.

Invariant: a port stays open while gRPC has a call that the server has not seen, since closing would
cancel it without a status. It then stays open until the ends of all calls are written, as long as
that makes progress. All of it together takes at most `seconds`, whatever clients do.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from quire.service.app.listener import Listener
from quire.service.openai.http_server import HttpServer

log = logging.getLogger("quire.service")

_STALL = 1.0  # seconds without an end being written: nobody reads
_LOOK = 0.1  # seconds between looks at what was written
_QUIET = 0.05  # seconds without a call, twice in a row: then no call is left unseen
_GRACE = 60.0  # seconds that gRPC gives calls: long, as we are to cut them off first


class Closing:
    """The end of a server's ports, once the engine has ended all calls."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        http: HttpServer | None,
        ended_calls: Callable[[], int],
        seconds: float,
    ) -> None:
        """ended_calls: the number of calls that have ended so far. seconds: the time limit from
        now."""
        self._listeners = listeners
        self._http = http
        self._ended_calls = ended_calls
        self._clock = asyncio.get_running_loop().time
        self._until = self._clock() + seconds

    async def run(self, *, leaving: bool) -> None:
        """Close the ports. leaving: the process ends next, and what is still open ends with it;
        without it, calls that are still open at the end are cancelled here."""
        if leaving and not await self._all_told():
            return
        closing = [asyncio.create_task(port.stop(_GRACE)) for port in self._listeners]
        if self._http is not None:
            closing.append(asyncio.create_task(self._http.stop()))
        if not await self._written(closing) and not leaving:
            await asyncio.gather(*(port.stop(None) for port in self._listeners))

    async def _all_told(self) -> bool:
        """Wait until the server has seen every call that gRPC has. False: they arrive faster than
        they can be answered."""
        ended, quiet = self._ended_calls(), 0
        while quiet < 2:
            if self._clock() >= self._until:
                log.warning("calls have not ended: their connections are cut")
                return False
            await asyncio.sleep(_QUIET)
            before, ended = ended, self._ended_calls()
            quiet = quiet + 1 if ended == before else 0
        return True

    async def _written(self, closing: "Sequence[asyncio.Future[None]]") -> bool:
        """Wait until every call's end is written, for as long as that gets on."""
        moved, ended = self._clock(), self._ended_calls()
        while any(not task.done() for task in closing):
            if self._clock() >= self._until or self._clock() - moved >= _STALL:
                log.warning("not all clients have read how their calls ended")
                return False
            await asyncio.wait(closing, timeout=_LOOK)
            if self._ended_calls() != ended:
                ended, moved = self._ended_calls(), self._clock()
        return True
