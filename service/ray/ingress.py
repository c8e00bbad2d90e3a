"""The ingress that Ray's proxies pass calls to: quire.v1's methods by name, and the OpenAI API.

Invariant: an ingress holds no engine and decides only where a call goes. Over gRPC a status keeps
its code and message; its rich details end here, since Ray's proxy sends trailers only with
messages. If a caller leaves, or its deadline passes, Ray cancels the call, and so the replica's
call; the deadline itself is not passed on to us.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from google.protobuf.message import Message

from quire.service.errors import Refusal, clip
from quire.service.ray.application_plan import Plan
from quire.service.ray.openai_frontend import OpenAIFrontend
from quire.service.ray.streams import Streams
from quire.v1 import inference_pb2 as pb

T = TypeVar("T", bound=Message)


class Ingress:
    """A deployment's class. Its methods are the contract's; Ray finds them by their names."""

    def __init__(self, plan: Plan, engines: Any) -> None:
        """engines: the handle of their deployment."""
        self._streams = Streams(engines)
        self._openai = OpenAIFrontend(self._streams, plan)

    async def Generate(
        self, request: pb.GenerateRequest, grpc_context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams one request's tokens, from as many replicas as that takes."""
        with _told(grpc_context):
            messages = self._streams.generate(request, grpc_context.invocation_metadata())
            async for message in messages:
                yield message

    async def Stats(self, request: pb.StatsRequest, grpc_context: Any) -> pb.StatsResponse:
        """The Stats of one replica."""
        return await self._ask("Stats", request, pb.StatsResponse, grpc_context)

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, grpc_context: Any
    ) -> pb.GetModelInfoResponse:
        """The answer of one replica; all serve the same."""
        return await self._ask("GetModelInfo", request, pb.GetModelInfoResponse, grpc_context)

    async def Tokenize(self, request: pb.TokenizeRequest, grpc_context: Any) -> pb.TokenizeResponse:
        """Answered by one replica."""
        return await self._ask("Tokenize", request, pb.TokenizeResponse, grpc_context)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, grpc_context: Any
    ) -> pb.DetokenizeResponse:
        """Answered by one replica."""
        return await self._ask("Detokenize", request, pb.DetokenizeResponse, grpc_context)

    async def Embed(self, request: pb.EmbedRequest, grpc_context: Any) -> pb.EmbedResponse:
        """Answered by one replica."""
        return await self._ask("Embed", request, pb.EmbedResponse, grpc_context)

    async def Score(self, request: pb.ScoreRequest, grpc_context: Any) -> pb.ScoreResponse:
        """Answered by one replica."""
        return await self._ask("Score", request, pb.ScoreResponse, grpc_context)

    async def FlushCache(
        self, request: pb.FlushCacheRequest, grpc_context: Any
    ) -> pb.FlushCacheResponse:
        """Flushes one replica: call it as often as there are replicas, or each directly."""
        return await self._ask("FlushCache", request, pb.FlushCacheResponse, grpc_context)

    async def __call__(self, request: Any) -> Any:
        """The OpenAI API: Ray gives a starlette request, and sends the response."""
        return await self._openai.answer(request)

    async def _ask(self, method: str, request: Any, kind: type[T], grpc_context: Any) -> T:
        with _told(grpc_context):
            metadata = grpc_context.invocation_metadata()
            message = kind()
            message.ParseFromString(await self._streams.ask(method, request, metadata))
            return message


@contextlib.contextmanager
def _told(grpc_context: Any) -> Any:
    """A refusal's code and words go where Ray's proxy takes them from."""
    try:
        yield
    except Refusal as refusal:
        grpc_context.set_code(refusal.code)
        words = clip(refusal.message)
        grpc_context.set_details(words)
        raise RuntimeError(words) from None  # which crosses processes, where ours does not
