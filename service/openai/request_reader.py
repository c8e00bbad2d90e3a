"""Reads an HTTP request into a request for the servicer.

Invariant: the key is checked before the body is read; a refusal before a call exists is counted and
logged like gRPC's; a body that was read always goes to the servicer, and if it is wrong it is
refused, counted and traced there. A large body is parsed on the prompt worker threads, not on the
event loop.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from quire.clients.openai.faults import BadBody
from quire.service.errors import Refusal
from quire.service.openai import problems
from quire.service.openai.bodies import Bodies, parse
from quire.service.openai.request_guard import RequestGuard
from quire.service.rpc.call_admission import Malformed
from quire.service.text.workers import PromptWorkers

INLINE_BYTES = 32 << 10
T = TypeVar("T")


class RequestReader:
    """The reader of one server."""

    def __init__(self, guard: RequestGuard, bodies: Bodies, workers: PromptWorkers) -> None:
        self._guard = guard
        self._bodies = bodies
        self._workers = workers

    async def read(
        self, request: Request, method: str, read: Callable[[dict[str, Any]], T]
    ) -> T | Malformed:
        """What `read` makes of the body's object; Malformed if that is not possible. method: of the
        service, for which refusals are counted. Raises Refusal."""
        context = request.scope["context"]
        try:
            await self._guard.check_key(context)
            body = await self._bodies.read(request, context.peer())
        except Refusal as refusal:
            self._guard.refused(context, refusal, method)
            raise

        def work(_wanted: object = None) -> T:
            return read(parse(body))

        try:
            if len(body) <= INLINE_BYTES:
                return work()
            return await self._workers.run(work, context.peer(), len(body))
        except BadBody as bad:
            return Malformed(problems.refused(bad))
        except Refusal as refusal:
            return Malformed(refusal)
