"""A message as server-sent events, in the order in which Anthropic's API sends them.

Invariant: a block is announced before anything is told of it, and ended before the next one; the
message ends with its reason and usage, or with an error.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from quire.clients.openai.anthropic_answer import MessageAnswer, block
from quire.clients.openai.anthropic_errors import around
from quire.clients.openai.parsed_body import ParsedBody
from quire.clients.openai.response_items import Act, Kind, Step
from quire.service.openai.named_events import encode, written
from quire.v1 import inference_pb2 as pb

_GROWS = {
    Kind.REASONING: ("thinking_delta", "thinking"),
    Kind.MESSAGE: ("text_delta", "text"),
    Kind.CALL: ("input_json_delta", "partial_json"),
}
Fields = Mapping[str, Any]


class MessageEvents:
    """The events of one call."""

    def __init__(self, model: str, parsed: ParsedBody) -> None:
        self._answer = MessageAnswer(model, parsed)

    def encoded(self, message: pb.GenerateResponse) -> bytes:
        """The next event's."""
        steps = self._answer.steps(message)
        told = b"".join(_event(*event) for step in steps for event in _told(step))
        if message.HasField("started"):
            told += _event("message_start", {"message": self._answer.object()})
        return told

    def ended(self) -> bytes:
        """The last ones."""
        last = {"delta": self._answer.stop(), "usage": self._answer.usage()}
        return _event("message_delta", last) + _event("message_stop", {})

    def failed(self, error: Fields) -> bytes:
        """The last one of a call that failed."""
        return _event("error", around(error, self._answer.items.name))


def _event(kind: str, fields: Fields) -> bytes:
    return written(kind, encode({"type": kind, **fields}).encode())


def _told(step: Step) -> Iterator[tuple[str, Fields]]:
    """A step's events, each by its name and fields."""
    item, place = step.item, {"index": step.item.index}
    if step.act is Act.BEGAN:
        yield "content_block_start", place | {"content_block": block(item)}
    elif step.act is Act.GREW:
        kind, field = _GROWS[item.kind]
        yield "content_block_delta", place | {"delta": {"type": kind, field: step.text}}
    else:
        if item.kind is Kind.REASONING:  # clients keep thoughts that are signed
            signed = {"type": "signature_delta", "signature": ""}
            yield "content_block_delta", place | {"delta": signed}
        yield "content_block_stop", place
