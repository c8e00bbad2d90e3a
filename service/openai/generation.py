"""The endpoints that generate: see `api.APIS`."""

from typing import Any

from starlette.requests import Request

from quire.clients.openai.parsed_body import ParsedBody
from quire.service.errors import invalid_field
from quire.service.openai.api import Api
from quire.service.openai.logprob_budget import LogprobBudget
from quire.service.openai.reply import Reply
from quire.service.openai.request_reader import RequestReader
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer

GENERATE = "/quire.v1.InferenceService/Generate"


class Generation:
    """Answers them."""

    def __init__(self, servicer: InferenceServicer, reader: RequestReader, model: str) -> None:
        """model: the name that answers carry."""
        self._servicer = servicer
        self._reader = reader
        self._model = model
        self._budget = LogprobBudget()

    async def answer(self, api: Api, request: Request) -> Any:
        """POST at an API's path."""
        context = request.scope["context"]
        name = context.headers.get("x-request-id", "")
        parsed = await self._reader.read(request, GENERATE, lambda values: api.read(values, name))
        if isinstance(parsed, ParsedBody) and parsed.prompts > 1:
            n = parsed.each
            most, limit = self._servicer.access.most_at_once(n)
            if parsed.prompts > most:
                why = f"{parsed.prompts} prompts with n = {n}: at most {most} at once: {limit}"
                parsed = Malformed(invalid_field("prompt", why))
        return Reply(
            self._servicer, context, parsed, api=api, model=self._model, budget=self._budget
        )
