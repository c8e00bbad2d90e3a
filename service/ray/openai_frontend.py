"""The OpenAI API at an ingress: reads bodies and writes answers as a server does, over replicas.

Invariant: the same mapping and the same refusals as in `service/openai`. Keys are checked by the
replica, from the request's headers, before the body is read: a caller without a key costs no more
than its headers, and learns nothing about what it sent.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.clients.openai.faults import BadBody
from quire.service.admission.intake import Places, places_for
from quire.service.errors import OtherContext, Refusal
from quire.service.openai import cards, problems
from quire.service.openai.api import APIS
from quire.service.openai.bodies import Bodies, parse
from quire.service.openai.http_context import with_key
from quire.service.openai.logprob_budget import LogprobBudget
from quire.service.openai.reply import Reply
from quire.service.openai.request_guard import AllowedHosts
from quire.service.openai.request_reader import INLINE_BYTES
from quire.service.ray.application_plan import Plan
from quire.service.rpc.call_admission import Malformed
from quire.v1 import inference_pb2 as pb

if TYPE_CHECKING:  # needs ray
    from quire.service.ray.streams import Streams

MAX_BODY = 16 << 20  # bytes
_MODELS = "/v1/models/"  # behind it a name; without the last stroke: all of them


class _IngressContext(OtherContext):
    """A call's context, as far as Reply uses one."""

    def __init__(self, request: Request) -> None:
        headers = [(name.lower(), value) for name, value in request.headers.items()]
        self._metadata = with_key(request.url.path, headers)
        self.headers = dict(self._metadata)
        self.request_id = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers, names in small letters."""
        return self._metadata

    def span(self, code: grpc.StatusCode) -> tuple[str, Mapping[str, str | int]]:
        """Not traced here."""
        return "", {"code": code.value[0]}


class _Servicer:
    """Takes the place of a server's own: its Generate goes to the replicas."""

    def __init__(self, streams: "Streams") -> None:
        self._streams = streams

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        """Raises Refusal."""
        if isinstance(request, Malformed):
            raise request.refusal
        async for message in self._streams.generate(request, context.invocation_metadata()):
            if message.HasField("started"):
                context.request_id = message.started.request_id
            yield message


class _Answer(Response):
    """Reply as what Ray sends."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._reply(scope, receive, send)


class OpenAIFrontend:
    """The OpenAI API of one ingress."""

    def __init__(self, streams: "Streams", plan: Plan) -> None:
        self._parsing = asyncio.Semaphore(1)  # of large bodies: one at a time
        self._streams = streams
        self._servicer = cast(Any, _Servicer(streams))
        self._hosts = AllowedHosts("127.0.0.1", plan.names, guarded=False)
        self._bodies = Bodies(Places(places_for(MAX_BODY)), MAX_BODY)
        self._budget = LogprobBudget()
        self._keyed = plan.settings().service.api_keys is not None
        self._created = int(time.time())
        self._card: cards.Card | None = None

    async def answer(self, request: Request) -> Response:
        """Any request."""
        context = _IngressContext(request)
        try:
            self._hosts.check(context.headers.get("host", ""))
            return await self._answer(request, context)
        except Refusal as refusal:
            return problems.response(refusal, request.url.path)

    async def _answer(self, request: Request, context: _IngressContext) -> Response:
        path, method = request.url.path, request.method
        of_models = f"{path}/".startswith(_MODELS)
        if not of_models and path not in APIS:
            raise problems.no_such_path(path)
        if method != ("GET" if of_models else "POST"):
            raise problems.wrong_method(method, path)
        if not of_models:
            return await self._generated(request, context)
        model, name = await self._model(context), path.removeprefix(_MODELS)
        return cards.listing(model) if name == path else cards.named(model, name)

    async def _generated(self, request: Request, context: _IngressContext) -> Response:
        api = APIS[request.url.path]
        name = str((await self._model(context))["id"])
        body = await self._bodies.read(request, str(request.client))

        def parsed() -> Any:
            return api.read(parse(body), context.headers.get("x-request-id", ""))

        try:
            if len(body) <= INLINE_BYTES:
                asked = parsed()
            else:
                async with self._parsing:
                    asked = await asyncio.to_thread(parsed)
        except BadBody as bad:
            asked = Malformed(problems.refused(bad))
        reply = Reply(
            self._servicer, cast(Any, context), asked, api=api, model=name, budget=self._budget
        )
        return _Answer(reply)

    async def _model(self, context: _IngressContext) -> cards.Card:
        """The served model. A replica is asked, which so sees the caller's key; where no keys are
        needed, it is asked once. Raises Refusal."""
        if self._keyed or self._card is None:
            metadata = context.invocation_metadata()
            packed = await self._streams.ask("GetModelInfo", pb.GetModelInfoRequest(), metadata)
            model = pb.GetModelInfoResponse.FromString(packed).model
            self._card = cards.card(model.name, self._created, model.max_model_len)
        return self._card
