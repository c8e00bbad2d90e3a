"""/tokenize and /detokenize: a prompt's ids as a call would compute them, and ids' text.

Invariant: a prompt is checked, rendered and tokenized by the one validator, on the prompts'
threads; a client's limit of calls holds here too.
"""

import asyncio
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse

from quire.engine.errors import RequestError
from quire.service import errors
from quire.service.lifecycle import Lifecycle
from quire.service.openai.bodies import Bodies, parse
from quire.service.openai.chat import read_conversation
from quire.service.openai.completions import read_prompt
from quire.service.openai.exchange import Exchange
from quire.service.openai.fields import Fields
from quire.service.openai.names import Names
from quire.service.rpc.field_faults import Faults
from quire.service.rpc.reception import Entrance, Serving
from quire.service.rpc.servicer import InferenceServicer
from quire.service.text.detokenizer import Detokenizer
from quire.v1 import inference_pb2 as pb


class Tokens:
    """Answers both."""

    def __init__(
        self,
        servicer: InferenceServicer,
        entrance: Entrance,
        lifecycle: Lifecycle,
        bodies: Bodies,
    ) -> None:
        self._servicer = servicer
        self._entrance = entrance
        self._lifecycle = lifecycle
        self._bodies = bodies

    async def tokenize(self, request: Request) -> JSONResponse:
        """POST /tokenize."""
        values, serving, exchange = await self._begun(request)
        asked = _prompt(values)
        caller = self._entrance.authenticator.caller(cast(Any, exchange))
        permit = self._entrance.limits.enter(caller.client)
        try:
            accepted = await serving.validator.validate(
                asked, serving.engine.new_key(), caller.tenant, caller.client
            )
        except RequestError as error:
            raise errors.invalid_field(error.field, error.message) from error
        except errors.Refusal as refusal:
            raise Names().translated(refusal) from None
        finally:
            permit.end(0)
        ids = list(accepted.generation.prompt_token_ids)
        most = serving.model.info.max_model_len
        return JSONResponse({"count": len(ids), "max_model_len": most, "tokens": ids})

    async def detokenize(self, request: Request) -> JSONResponse:
        """POST /detokenize."""
        values, serving, exchange = await self._begun(request)
        caller = self._entrance.authenticator.caller(cast(Any, exchange))
        self._entrance.limits.enter(caller.client).end(0)
        faults = Faults()
        body = Fields(values, faults)
        ids = body.wholes("tokens")
        most, size = serving.model.info.max_model_len, serving.model.info.vocab_size
        faults.at_most("tokens", len(ids), most, "tokens: max_model_len")
        faults.ids("tokens", ids, size)
        self._check_model(body, serving)
        body.end()
        faults.raise_if_any()
        pieces = serving.model.tokenizer.text_pieces

        def text() -> str:
            words = Detokenizer(pieces)
            return "".join([*map(words.push, ids), words.flush()])

        return JSONResponse({"prompt": await asyncio.to_thread(text)})

    async def _begun(self, request: Request) -> tuple[dict[str, Any], Serving, Exchange]:
        exchange: Exchange = request.scope["exchange"]
        refusal = self._lifecycle.refusal()
        serving = self._servicer.serving
        if refusal is not None or serving is None:
            raise refusal or errors.unavailable("the server is loading its model", "LOADING")
        body = await self._bodies.read(request, exchange.peer())
        return parse(body), serving, exchange

    @staticmethod
    def _check_model(body: Fields, serving: Serving) -> None:
        model = body.text("model")
        if model and model != serving.model.name:
            raise errors.unknown_model(model, serving.model.name)


def _prompt(values: dict[str, Any]) -> pb.GenerateRequest:
    """Raises Refusal."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.GenerateRequest(model=body.text("model") or "")
    request.sampling.max_tokens = 1
    if body.has("prompt") and body.has("messages"):
        body.fault("messages", [], "excludes prompt: give one of the two")
    if body.has("messages"):
        read_conversation(body, request.chat)
    else:
        read_prompt(body, request)
    if request.HasField("token_ids"):
        body.fault("prompt", [], "must be a string")
    body.only("add_special_tokens", not request.HasField("chat"))
    body.end()
    faults.raise_if_any()
    return request
