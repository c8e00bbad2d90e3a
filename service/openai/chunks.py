"""Streamed answers: each of the contract's events as chunks.

Invariant: an event's chunks contain what the event does and no more; a choice's pieces joined are
the same as in a whole answer. A choice ends with one chunk that holds its `finish_reason`.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from quire.clients.openai.parsed_body import StreamUsage
from quire.clients.openai.shapes import (
    FINISH,
    Head,
    Offsets,
    Tally,
    call_delta,
    chat_logprobs,
    reasoning,
)
from quire.v1 import inference_pb2 as pb

DONE = b"data: [DONE]\n\n"
_BLANK = "\0"
_WRITTEN = json.dumps(_BLANK).encode()
Chunk = Mapping[str, Any]


def event(value: Chunk) -> bytes:
    """A chunk as bytes. In ASCII: some readers take other scripts' line separators for line
    ends."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class Chunks:
    """The chunks of one call."""

    def __init__(
        self, model: str, *, chat: bool, logprobs: bool, usage: StreamUsage, n: int
    ) -> None:
        """n: choices that were asked for; they may be more than will be let in."""
        kind, prefix = (
            ("chat.completion.chunk", "chatcmpl") if chat else ("text_completion", "cmpl")
        )
        self._head = Head(kind, prefix, model)
        self._chat = chat
        self._with_logprobs = logprobs
        self._usage = usage
        self._n = n
        self._tally = Tally()
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # around a text, by index
        self._offsets: defaultdict[int, Offsets] = defaultdict(Offsets)  # by index

    def encoded(self, message: pb.GenerateResponse) -> bytes:
        """The next event's chunks as bytes. For an event with text alone, which nearly all are,
        only the text is encoded anew."""
        delta = message.delta
        more = self._with_logprobs or self._usage is StreamUsage.EACH
        if not delta.text or more or delta.reasoning or delta.tool_calls:
            return b"".join(map(event, self.take(message)))
        frame = self._frames.get(delta.index)
        if frame is None:
            blank = pb.GenerateResponse(delta=pb.Delta(index=delta.index, text=_BLANK))
            before, _, after = b"".join(map(event, self.take(blank))).rpartition(_WRITTEN)
            frame = self._frames[delta.index] = before, after
        return frame[0] + json.dumps(delta.text).encode() + frame[1]

    def take(self, message: pb.GenerateResponse) -> Iterator[Chunk]:
        """The next event's."""
        kind = message.WhichOneof("event")
        if kind == "started":
            yield from self._started(message.started)
        elif kind == "delta":
            self._tally.delta(message.delta)
            yield from self._delta(message.delta)
        elif kind == "finished":
            self._tally.finished(message.finished)
            finish = FINISH.get(message.finished.reason)
            if finish is not None:
                yield self._chunk(message.finished.index, "", finish)

    def last(self) -> Iterator[Chunk]:
        """The chunks after the last choice's end."""
        if self._usage is not StreamUsage.NONE:
            yield self._head.object([]) | {"usage": self._tally.usage()}

    def ended(self) -> bytes:
        """The same as bytes, and the end."""
        return b"".join(map(event, self.last())) + DONE

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """An error in place of the end."""
        return event({"error": error})

    def _started(self, started: pb.Started) -> Iterator[Chunk]:
        self._head.started(started)
        self._tally.started(started)
        if self._chat:
            for index in range(self._n):
                yield self._object(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def _delta(self, delta: pb.Delta) -> Iterator[Chunk]:
        """None where there is nothing but ids, which OpenAI's chunks do not hold."""
        if not self._chat:
            if delta.text or self._with_logprobs:
                yield self._chunk(delta.index, delta.text, None, delta)
            return
        told: dict[str, Any] = reasoning(delta.reasoning)
        if delta.text:
            told["content"] = delta.text
        if delta.tool_calls:
            told["tool_calls"] = [call_delta(piece) for piece in delta.tool_calls]
        logprobs = chat_logprobs(delta.logprobs) if self._with_logprobs else None
        if told or logprobs is not None:
            yield self._object(delta.index, {"delta": told, "logprobs": logprobs}, None)

    def _chunk(
        self, index: int, text: str, finish: str | None, delta: pb.Delta | None = None
    ) -> Chunk:
        if self._chat:
            return self._object(index, {"delta": {}, "logprobs": None}, finish)
        logprobs = None
        if self._with_logprobs and delta is not None:
            logprobs = self._offsets[index].logprobs(delta.logprobs)
        return self._object(index, {"text": text, "logprobs": logprobs}, finish)

    def _object(self, index: int, choice: dict[str, Any], finish: str | None) -> Chunk:
        value = self._head.object([{"index": index, **choice, "finish_reason": finish}])
        if self._usage is StreamUsage.NONE:
            return value
        each = self._usage is StreamUsage.EACH
        return value | {"usage": self._tally.so_far() if each else None}
