"""The items of an answer: what the model thought, said and called, in the order of a response.

Invariant: an item is open until the next one begins or the answer ends, and only the last item is
open. Thoughts are one item, and calls follow one another: text behind a call waits for the end,
since the call may yet go on. Of one delta, text is told before the calls that begin in it. What is
held for later is bounded: where items keep no log-probabilities, no text that waits does.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from quire.clients.openai.shapes import chat_logprobs
from quire.clients.strict_json import BadJson, read_object
from quire.v1 import inference_pb2 as pb

Logprobs = Sequence[pb.TokenLogprob]
_MAX_SILENT = 64  # log-probabilities of tokens without text that are kept for the next text


class Kind(enum.Enum):
    """The types of items, with the beginnings of their ids."""

    REASONING = "rs"
    MESSAGE = "msg"
    CALL = "fc"


@dataclass(slots=True)
class Item:
    """index: its place among the items. head: of a call its id and its name."""

    kind: Kind
    id: str
    index: int
    head: dict[str, str]
    status: str = "in_progress"
    texts: list[str] = field(default_factory=list)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far: of a call its arguments."""
        return "".join(self.texts)

    def part(self) -> dict[str, Any]:
        """The only part of a message's or of thoughts' content."""
        if self.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": self.text}
        logprobs = written_logprobs(self.logprobs)
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}

    def object(self) -> dict[str, Any]:
        """As a response shows it; while it is open, without what it will hold."""
        begun = self.status == "in_progress"
        told = {"id": self.id, "status": self.status}
        if self.kind is Kind.CALL:
            text = "" if begun else self.text
            return {"type": "function_call", **told, **self.head, "arguments": text}
        content = [] if begun else [self.part()]
        if self.kind is Kind.REASONING:
            return {"type": "reasoning", **told, "summary": [], "content": content}
        return {"type": "message", **told, "role": "assistant", "content": content}


class Act(enum.Enum):
    """What happened to an item."""

    BEGAN = enum.auto()
    GREW = enum.auto()
    ENDED = enum.auto()


class Step(NamedTuple):
    """One change of the last item. text, logprobs: by which it grew."""

    act: Act
    item: Item
    text: str = ""
    logprobs: Logprobs = ()


class Items:
    """The items of one answer."""

    def __init__(self, *, keeps_logprobs: bool) -> None:
        """keeps_logprobs: in the items, and not in the steps alone."""
        self.all: list[Item] = []
        self.name = ""  # of the answer: it makes their ids unique
        self._keeps_logprobs = keeps_logprobs
        self._behind: list[tuple[str, Logprobs]] = []  # text behind a call
        self._silent: list[pb.TokenLogprob] = []  # of tokens that show nothing: the next text's

    def take(self, delta: pb.Delta) -> Iterator[Step]:
        """The next delta's steps. Thoughts come first in an answer, and its text before its
        calls."""
        if delta.reasoning:
            yield from self._grow(Kind.REASONING, delta.reasoning)
        if self._is(Kind.CALL) and delta.text:
            self._behind.append((delta.text, _of_text(delta) if self._keeps_logprobs else ()))
        elif delta.text or (delta.logprobs and self._is(Kind.MESSAGE)):
            yield from self._grow(Kind.MESSAGE, delta.text, [*self._silent, *_of_text(delta)])
        elif not delta.reasoning and not delta.tool_calls:
            self._silent = [*self._silent, *delta.logprobs][-_MAX_SILENT:]
        for piece in delta.tool_calls:
            if piece.id or piece.name:
                yield from self._begin(Kind.CALL, {"call_id": piece.id, "name": piece.name})
            if piece.arguments_json:
                yield from self._grow(Kind.CALL, piece.arguments_json)

    def end(self, status: str) -> Iterator[Step]:
        """The answer has ended, and so its last item; one that was completed says something, or
        calls. A call that was cut after text is cut, though that text comes last."""
        if self._behind:
            yield from self._close("completed" if _is_whole(self.all[-1].text) else status)
        for text, logprobs in self._behind:
            yield from self._grow(Kind.MESSAGE, text, logprobs)
        if status == "completed" and not (self._is(Kind.MESSAGE) or self._is(Kind.CALL)):
            yield from self._begin(Kind.MESSAGE)
        yield from self._close(status)

    def cut(self) -> None:
        """The answer broke off: nothing more is told of its last item."""
        for _ in self._close("incomplete"):
            pass

    def _is(self, kind: Kind) -> bool:
        return bool(self.all) and self.all[-1].kind is kind

    def _grow(self, kind: Kind, text: str, logprobs: Logprobs = ()) -> Iterator[Step]:
        if not self._is(kind):
            yield from self._begin(kind)
        item = self.all[-1]
        item.texts.append(text)
        self._silent.clear()
        if self._keeps_logprobs:
            item.logprobs.extend(logprobs)
        yield Step(Act.GREW, item, text, logprobs)

    def _begin(self, kind: Kind, head: dict[str, str] | None = None) -> Iterator[Step]:
        yield from self._close("completed")
        index = len(self.all)
        self.all.append(Item(kind, f"{kind.value}_{self.name}_{index}", index, head or {}))
        yield Step(Act.BEGAN, self.all[-1])

    def _close(self, status: str) -> Iterator[Step]:
        if self.all and self.all[-1].status == "in_progress":
            self.all[-1].status = status
            yield Step(Act.ENDED, self.all[-1])


def _is_whole(arguments: str) -> bool:
    """Whether they are not half of a call's."""
    try:
        read_object(arguments or "{}")
    except BadJson:
        return False
    return True


def _of_text(delta: pb.Delta) -> Logprobs:
    """Those of its text, and not of thoughts before that and calls behind it, where a delta that
    waited has all of these."""
    if not (delta.reasoning or delta.tool_calls):
        return delta.logprobs
    made = [one.bytes for one in delta.logprobs]
    joined, text, thoughts = b"".join(made), delta.text.encode(), delta.reasoning.encode()
    found = joined.find(text, len(thoughts)) if delta.tool_calls else joined.rfind(text)
    whole = len(joined) + 1
    begin = joined.rfind(thoughts, 0, found if found >= 0 else whole) + len(thoughts)
    end = found + len(text) if delta.tool_calls and found >= 0 else whole
    places = accumulate(map(len, made), initial=0)
    return [one for at, one in zip(places, delta.logprobs, strict=False) if begin <= at < end]


def written_logprobs(tokens: Logprobs) -> list[dict[str, Any]]:
    """As an item and an event show them."""
    told: list[dict[str, Any]] = chat_logprobs(tokens)["content"]
    return told
