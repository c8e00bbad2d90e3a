"""The endpoints that generate: /v1/chat/completions and /v1/completions."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from quire.clients.openai import chat, completions
from quire.clients.openai.parsed_body import ParsedBody
from quire.service.errors import invalid_field
from quire.service.openai.logprob_budget import LogprobBudget
from quire.service.openai.reply import Reply
from quire.service.openai.request_reader import RequestReader
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer

GENERATE = "/quire.v1.InferenceService/Generate"
Read = Callable[[dict[str, Any], str], ParsedBody]


class Generation:
    """Answers both."""

    def __init__(self, servicer: InferenceServicer, reader: RequestReader, model: str) -> None:
        """model: the name that answers carry."""
        self._servicer = servicer
        self._reader = reader
        self._model = model
        self._budget = LogprobBudget()

    async def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions."""
        return await self._reply(request, chat.read, is_chat=True)

    async def completions(self, request: Request) -> Any:
        """POST /v1/completions."""
        return await self._reply(request, completions.read, is_chat=False)

    async def _reply(self, request: Request, read: Read, *, is_chat: bool) -> Any:
        context = request.scope["context"]
        name = context.headers.get("x-request-id", "")
        parsed = await self._reader.read(request, GENERATE, lambda values: read(values, name))
        if isinstance(parsed, ParsedBody) and parsed.prompts > 1:
            n = parsed.each
            most, limit = self._servicer.access.most_at_once(n)
            if parsed.prompts > most:
                why = f"{parsed.prompts} prompts with n = {n}: at most {most} at once: {limit}"
                parsed = Malformed(invalid_field("prompt", why))
        return Reply(
            self._servicer, context, parsed, model=self._model, chat=is_chat, budget=self._budget
        )
