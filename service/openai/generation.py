"""The endpoints that generate: /v1/chat/completions and /v1/completions.

Invariant: what is refused before a call exists is counted and logged as gRPC's refusals are; a body
that was read goes to the servicer, whatever is wrong with it, and is refused, counted and traced
there. A large body is parsed on the prompts' threads, not on the event loop.
"""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from quire.service.errors import Refusal
from quire.service.openai import chat, completions
from quire.service.openai.asked import Asked
from quire.service.openai.bodies import Bodies, parse
from quire.service.openai.door import Door
from quire.service.openai.exchange import Exchange
from quire.service.openai.reply import Reply
from quire.service.openai.room import Room
from quire.service.rpc.reception import Malformed
from quire.service.rpc.servicer import InferenceServicer
from quire.service.text.workers import PromptWorkers

INLINE_BYTES = 32 << 10
Read = Callable[[dict[str, Any], str], Asked]


class Generation:
    """Answers both."""

    def __init__(
        self,
        servicer: InferenceServicer,
        door: Door,
        bodies: Bodies,
        workers: PromptWorkers,
        model: str,
    ) -> None:
        """model: the name that answers carry."""
        self._servicer = servicer
        self._door = door
        self._bodies = bodies
        self._workers = workers
        self._model = model
        self._room = Room()

    async def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions."""
        return await self._reply(request, chat.read, is_chat=True)

    async def completions(self, request: Request) -> Any:
        """POST /v1/completions."""
        return await self._reply(request, completions.read, is_chat=False)

    async def _reply(self, request: Request, read: Read, *, is_chat: bool) -> Any:
        exchange = request.scope["exchange"]
        try:
            await self._door.check_key(exchange)
            body = await self._bodies.read(request, exchange.peer())
        except Refusal as refusal:
            self._door.refused(exchange, refusal)
            raise
        asked = await self._asked(body, exchange, read)
        return Reply(
            self._servicer, exchange, asked, model=self._model, chat=is_chat, room=self._room
        )

    async def _asked(self, body: bytes, exchange: Exchange, read: Read) -> Asked:
        request_id = exchange.headers.get("x-request-id", "")

        def work(_wanted: object = None) -> Asked:
            return read(parse(body), request_id)

        try:
            if len(body) <= INLINE_BYTES:
                return work()
            return await self._workers.run(work, exchange.peer(), len(body))
        except Refusal as refusal:
            return Asked(Malformed(refusal))
