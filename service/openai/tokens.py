"""/tokenize and /detokenize: the calls Tokenize and Detokenize, as vLLM's server names them; and
/v1/messages/count_tokens, which is Tokenize too."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.responses import JSONResponse

from quire.clients.openai import anthropic_body
from quire.clients.openai.field_names import Names
from quire.clients.openai.tokens import read_detokenize, read_tokenize
from quire.service import errors
from quire.service.errors import Refusal
from quire.service.openai.problems import translated
from quire.service.openai.request_reader import RequestReader
from quire.service.rpc.call_admission import Malformed
from quire.service.rpc.servicer import InferenceServicer

_SERVICE = "/quire.v1.InferenceService/"
T = TypeVar("T")


class Tokens:
    """Answers them."""

    def __init__(self, servicer: InferenceServicer, reader: RequestReader, model: str) -> None:
        """model: the served one's name."""
        self._servicer = servicer
        self._reader = reader
        self._model = model

    async def tokenize(self, request: Request) -> JSONResponse:
        """POST /tokenize."""
        told = await self._told(request, "Tokenize", read_tokenize)
        ids = list(told.token_ids)
        return JSONResponse({"count": len(ids), "max_model_len": told.max_model_len, "tokens": ids})

    async def detokenize(self, request: Request) -> JSONResponse:
        """POST /detokenize."""
        told = await self._told(request, "Detokenize", read_detokenize)
        return JSONResponse({"prompt": told.text})

    async def count(self, request: Request) -> JSONResponse:
        """POST /v1/messages/count_tokens."""
        told = await self._told(request, "Tokenize", anthropic_body.read_count)
        return JSONResponse({"input_tokens": len(told.token_ids)})

    async def _told(
        self, request: Request, method: str, read: Callable[[Any], tuple[T, Names]]
    ) -> Any:
        def checked(values: dict[str, Any]) -> tuple[T, Names]:
            told = read(values)
            model = values.get("model")
            if model and model != self._model:
                raise errors.unknown_model(model, self._model)
            return told

        parsed = await self._reader.read(request, _SERVICE + method, checked)
        message, names = (parsed, None) if isinstance(parsed, Malformed) else parsed
        try:
            call = getattr(self._servicer, method)
            return await call(message, cast(Any, request.scope["context"]))
        except Refusal as refusal:
            if names is None:
                raise
            raise translated(refusal, names) from None
