"""The APIs that generate: how each reads its bodies and writes its answers.

Invariant: what lies between is the same call for all of them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from quire.clients.openai import (
    anthropic_body,
    anthropic_errors,
    chat,
    completions,
    errors,
    responses,
)
from quire.clients.openai.answers import Answer
from quire.clients.openai.anthropic_answer import MessageAnswer
from quire.clients.openai.parsed_body import ParsedBody
from quire.clients.openai.response_answer import ResponseAnswer
from quire.service.openai.anthropic_events import MessageEvents
from quire.service.openai.chunks import Chunks
from quire.service.openai.http_context import MESSAGES
from quire.service.openai.problems import Shape
from quire.service.openai.response_events import ResponseEvents
from quire.v1 import inference_pb2 as pb


class Whole(Protocol):
    """An answer that is sent at once."""

    def take(self, message: pb.GenerateResponse) -> None:
        """The next event."""

    def encoded(self) -> bytes:
        """All of it, once all has ended; on any thread."""


class Stream(Protocol):
    """An answer that is sent as it comes."""

    def encoded(self, message: pb.GenerateResponse) -> bytes:
        """What the next event makes of it; empty: nothing."""

    def ended(self) -> bytes:
        """Its end, once all has ended."""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """Its end, where that is an error."""


class Api(NamedTuple):
    """read: of a body's object and a name for its call; raises BadBody. whole, stream: of the
    model's name and what was read. error: the shape of its refusals. id_headers: in which a call's
    name is told."""

    read: Callable[[dict[str, Any], str], ParsedBody]
    whole: Callable[[str, Any], Whole]
    stream: Callable[[str, Any], Stream]
    error: Shape = errors.told
    id_headers: tuple[bytes, ...] = (b"x-request-id",)


def _chunks(model: str, parsed: ParsedBody, *, chat: bool) -> Chunks:
    return Chunks(model, chat=chat, logprobs=parsed.logprobs, usage=parsed.usage, n=parsed.choices)


APIS: Mapping[str, Api] = {  # by their paths
    "/v1/chat/completions": Api(chat.read, partial(Answer, chat=True), partial(_chunks, chat=True)),
    "/v1/completions": Api(
        completions.read, partial(Answer, chat=False), partial(_chunks, chat=False)
    ),
    "/v1/responses": Api(responses.read, ResponseAnswer, ResponseEvents),
    MESSAGES: Api(
        anthropic_body.read,
        MessageAnswer,
        MessageEvents,
        error=anthropic_errors.told,
        id_headers=(b"x-request-id", b"request-id"),
    ),
}
