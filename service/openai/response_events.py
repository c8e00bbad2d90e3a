"""A response as server-sent events, in the order in which OpenAI's API sends them.

Invariant: events are numbered from 0 without gaps. Each item is announced before anything is told
of it, and told whole once it is done; the last event holds the whole response, but for
log-probabilities: those are in the deltas alone, so that a stream holds none.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from quire.clients.openai.response_answer import ResponseAnswer
from quire.clients.openai.response_items import Act, Item, Kind, Step, written_logprobs
from quire.clients.openai.responses import ResponsesBody
from quire.service.openai.named_events import encode, written
from quire.v1 import inference_pb2 as pb

_GROWS = {
    Kind.REASONING: "reasoning_text",
    Kind.MESSAGE: "output_text",
    Kind.CALL: "function_call_arguments",
}
Fields = Mapping[str, Any]


class ResponseEvents:
    """The events of one call."""

    def __init__(self, model: str, parsed: ResponsesBody) -> None:
        """parsed: the request that it answers."""
        self._answer = ResponseAnswer(model, parsed, keeps_logprobs=False)
        self._numbers = count()

    def encoded(self, message: pb.GenerateResponse) -> bytes:
        """The next event's."""
        steps = self._answer.steps(message)
        told: list[bytes | memoryview] = [
            self._event(*event) for step in steps for event in _told(step)
        ]
        if message.HasField("started"):
            told += *self._of_response("created"), *self._of_response("in_progress")
        return b"".join(told)

    def ended(self) -> bytes:
        """The last one: completed, or incomplete."""
        return b"".join(self._of_response(self._answer.status))

    def failed(self, error: Fields) -> bytes:
        """The last ones of a call that failed: the error, whose fields stand at the top too, where
        OpenAI's page has them, and the response."""
        self._answer.fail(error)
        fields = {name: error[name] for name in ("code", "message", "param")}
        told = self._event("error", fields | {"error": error})
        return b"".join((told, *self._of_response("failed")))

    def _event(self, kind: str, fields: Fields) -> bytes:
        value = {"type": kind, "sequence_number": next(self._numbers), **fields}
        return written(kind, encode(value).encode())

    def _of_response(self, status: str) -> tuple[bytes | memoryview, ...]:
        """In pieces: joined once, since what they repeat of the body may be large."""
        kind, number = f"response.{status}", next(self._numbers)
        told = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{number},"response":'
        return told.encode(), *self._answer.pieces(), b"}\n\n"


def _told(step: Step) -> Iterator[tuple[str, Fields]]:
    """A step's events, each by its name and fields."""
    item = step.item
    place: dict[str, Any] = {"output_index": item.index, "item_id": item.id}
    if item.kind is not Kind.CALL:
        place["content_index"] = 0
    if step.act is Act.BEGAN:
        yield "response.output_item.added", _of_item(item)
        if item.kind is not Kind.CALL:
            yield "response.content_part.added", place | {"part": item.part()}
    elif step.act is Act.GREW:
        delta = place | {"delta": step.text}
        if item.kind is Kind.MESSAGE:
            delta["logprobs"] = written_logprobs(step.logprobs)
        yield f"response.{_GROWS[item.kind]}.delta", delta
    else:
        yield from _ended(item, place)


def _ended(item: Item, place: dict[str, Any]) -> Iterator[tuple[str, Fields]]:
    done = f"response.{_GROWS[item.kind]}.done"
    if item.kind is Kind.CALL:
        yield done, place | {"name": item.head["name"], "arguments": item.text}
    else:
        text = place | {"text": item.text}
        yield done, text | {"logprobs": []} if item.kind is Kind.MESSAGE else text
        yield "response.content_part.done", place | {"part": item.part()}
    yield "response.output_item.done", _of_item(item)


def _of_item(item: Item) -> Fields:
    return {"output_index": item.index, "item": item.object()}
