"""The OpenAI API at an ingress: bodies read and answers written as a server does it, over replicas.

Invariant: the same mapping and the same refusals as `service/openai`; keys are asked for by the
replica, whose metadata are the request's headers.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from quire.clients.openai import chat, completions
from quire.clients.openai.faults import BadBody
from quire.service.admission.intake import Places, places_for
from quire.service.errors import OtherFace, Refusal
from quire.service.openai import problems
from quire.service.openai.bodies import Bodies, parse
from quire.service.openai.door import Hosts
from quire.service.openai.generation import Read
from quire.service.openai.reply import Reply
from quire.service.openai.room import Room
from quire.service.ray.plan import Plan
from quire.service.ray.streams import Streams
from quire.service.rpc.reception import Malformed
from quire.v1 import inference_pb2 as pb

MAX_BODY = 16 << 20  # bytes
_READERS: Mapping[str, tuple[Read, bool]] = {
    "/v1/chat/completions": (chat.read, True),
    "/v1/completions": (completions.read, False),
}


class _Exchange(OtherFace):
    """What Reply asks of a call's context."""

    def __init__(self, request: Request) -> None:
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.request_id = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers, names in small letters."""
        return tuple(self.headers.items())

    def span(self, code: grpc.StatusCode) -> tuple[str, Mapping[str, str | int]]:
        """Not traced here."""
        return "", {"code": code.value[0]}


class _Servicer:
    """In place of a server's own: its Generate goes to the replicas."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def Generate(self, request: Any, exchange: Any) -> AsyncIterator[pb.GenerateResponse]:
        """Raises Refusal."""
        if isinstance(request, Malformed):
            raise request.refusal
        async for message in self._streams.generate(request, exchange.invocation_metadata()):
            if message.HasField("started"):
                exchange.request_id = message.started.request_id
            yield message


class _Answer(Response):
    """Reply as what Ray sends."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._reply(scope, receive, send)


class OpenAIFace:
    """Of one ingress."""

    def __init__(self, streams: Streams, plan: Plan) -> None:
        self._streams = streams
        self._servicer = cast(Any, _Servicer(streams))
        self._hosts = Hosts("127.0.0.1", plan.names, guarded=False)
        self._bodies = Bodies(Places(places_for(MAX_BODY)), MAX_BODY)
        self._room = Room()
        self._model = ""

    async def answer(self, request: Request) -> Response:
        """Any request."""
        exchange = _Exchange(request)
        try:
            self._hosts.check(exchange.headers.get("host", ""))
            return await self._answer(request, exchange)
        except Refusal as refusal:
            told = problems.problem(refusal)
            return Response(
                told.body, told.status, dict(told.headers), media_type="application/json"
            )

    async def _answer(self, request: Request, exchange: _Exchange) -> Response:
        path = request.url.path
        if request.method == "GET" and path == "/v1/models":
            name = await self._name(exchange)
            served = {"id": name, "object": "model", "created": 0, "owned_by": "quire"}
            return JSONResponse({"object": "list", "data": [served]})
        if path not in _READERS or request.method != "POST":
            return JSONResponse({"error": {"message": f"{request.method} {path}: not here"}}, 404)
        read, is_chat = _READERS[path]
        body = await self._bodies.read(request, str(request.client))
        name = exchange.headers.get("x-request-id", "")
        try:
            asked: Any = read(parse(body), name)
        except BadBody as bad:
            asked = Malformed(problems.refused(bad))
        model = await self._name(exchange)
        reply = Reply(
            self._servicer, cast(Any, exchange), asked, model=model, chat=is_chat, room=self._room
        )
        return _Answer(reply)

    async def _name(self, exchange: _Exchange) -> str:
        """Of the served model, which stays; asking for it also asks for the caller's key."""
        if not self._model:
            metadata = exchange.invocation_metadata()
            packed = await self._streams.ask("GetModelInfo", pb.GetModelInfoRequest(), metadata)
            self._model = pb.GetModelInfoResponse.FromString(packed).model.name
        return self._model
