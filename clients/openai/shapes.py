"""Pieces of answers that whole ones and streamed ones share."""

import codecs
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from quire.v1 import inference_pb2 as pb

# The other reasons come with a status, which is the answer's end.
FINISH = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


@dataclass(slots=True)
class Head:
    """The fields that every object of an answer repeats. kind: its `object`; prefix: of its id."""

    kind: str
    prefix: str
    model: str
    id: str = ""
    fingerprint: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def started(self, started: pb.Started) -> None:
        """The call runs, or one of several prompts' calls, of which the first names the answer."""
        self.id = self.id or f"{self.prefix}-{started.request_id}"
        self.fingerprint = started.model_fingerprint

    def object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The object with these choices."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


class Tally:
    """Tokens of all prompts and all their choices."""

    def __init__(self) -> None:
        self._prompt = self._cached = self._made = self._thought = 0
        self._streamed = 0

    def started(self, started: pb.Started) -> None:
        """One prompt, which its choices share."""
        self._prompt += started.prompt_tokens
        self._cached += started.cached_tokens

    def delta(self, delta: pb.Delta) -> None:
        """More of a choice that goes on: for the count so far."""
        self._streamed += len(delta.token_ids)

    def finished(self, finished: pb.Finished) -> None:
        """One choice."""
        self._made += finished.usage.completion_tokens
        self._thought += finished.usage.reasoning_tokens

    def so_far(self) -> dict[str, Any]:
        """While choices go on."""
        told = self.usage()
        told |= {"completion_tokens": self._streamed, "total_tokens": self._prompt + self._streamed}
        return told

    def usage(self) -> dict[str, Any]:
        """The usage object that OpenAI's clients read."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._made,
            "total_tokens": self._prompt + self._made,
            "prompt_tokens_details": {"cached_tokens": self._cached},
            "completion_tokens_details": {"reasoning_tokens": self._thought},
        }


def chat_logprobs(tokens: Iterable[pb.TokenLogprob]) -> dict[str, Any]:
    """A chat's log-probabilities: each token with its bytes and the best others."""
    content = [
        {**_token(one), "top_logprobs": [_token(other) for other in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def _token(one: "pb.TokenLogprob | pb.TopLogprob") -> dict[str, Any]:
    raw = bytes(one.bytes)
    return {"token": raw.decode("utf-8", "replace"), "logprob": one.logprob, "bytes": list(raw)}


class PromptWithLogprobs:
    """A prompt's own tokens, gathered."""

    def __init__(self) -> None:
        self.first = b""
        self.logprobs: list[pb.TokenLogprob] = []

    def take(self, told: pb.PromptLogprobs) -> None:
        """More of them."""
        self.first += told.first_token_bytes
        self.logprobs.extend(told.logprobs)

    @property
    def text(self) -> str:
        """All of it."""
        pieces = [self.first, *(bytes(one.bytes) for one in self.logprobs)]
        return b"".join(pieces).decode("utf-8", "replace")

    def by_id(self) -> list[dict[str, Any] | None]:
        """vLLM's form: the candidates at each position, by id; None at the first position."""
        return [None, *map(_by_id, self.logprobs)]


def _by_id(one: pb.TokenLogprob) -> dict[str, Any]:
    ranked = [(one.token_id, one.rank, one.logprob, one.bytes)]
    ranked += [(o.token_id, at, o.logprob, o.bytes) for at, o in enumerate(one.top, 1)]
    return {
        str(token_id): {
            "logprob": logprob,
            "rank": rank,
            "decoded_token": bytes(raw).decode("utf-8", "replace"),
        }
        for token_id, rank, logprob, raw in reversed(ranked)
    }


class Offsets:
    """The log-probabilities of a completion, each with its offset in the text (characters)."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def logprobs(
        self, tokens: Iterable[pb.TokenLogprob], prompt: PromptWithLogprobs | None = None
    ) -> dict[str, Any]:
        """The log-probabilities of the next tokens. prompt: the text before them."""
        told: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        if prompt is not None:
            told["tokens"].append(prompt.first.decode("utf-8", "replace"))
            told["token_logprobs"].append(None)
            told["top_logprobs"].append(None)
            told["text_offset"].append(self._at)
            self._at += len(self._decoder.decode(prompt.first))
            tokens = chain(prompt.logprobs, tokens)
        for one in tokens:
            raw = bytes(one.bytes)
            told["tokens"].append(raw.decode("utf-8", "replace"))
            told["token_logprobs"].append(one.logprob)
            told["top_logprobs"].append(
                {bytes(o.bytes).decode("utf-8", "replace"): o.logprob for o in one.top}
            )
            told["text_offset"].append(self._at)
            self._at += len(self._decoder.decode(raw))
        return told


def call_delta(piece: pb.ToolCallDelta) -> dict[str, Any]:
    """A piece of a call: its first one names it, the others go on with the arguments."""
    function: dict[str, Any] = {"arguments": piece.arguments_json}
    delta: dict[str, Any] = {"index": piece.index, "function": function}
    if piece.id or piece.name:
        function["name"] = piece.name
        delta |= {"id": piece.id, "type": "function"}
    return delta


def reasoning(text: str) -> dict[str, str]:
    """Thoughts, under both names by which clients look for them."""
    return {"reasoning": text, "reasoning_content": text} if text else {}
