"""The events of a stream as plain values: Started, then Deltas, then one Finished per index.

Invariant: an event is frozen and holds no protobuf object; what the server left unset is None.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from quire.clients.messages import ToolCall
from quire.v1 import inference_pb2 as pb


class FinishReason(enum.StrEnum):
    """Why an index ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    TOOL_CALLS = "tool_calls"
    """The model has called tools, and waits for their answers."""
    UNKNOWN = "unknown"
    """A reason that this client is too old to know."""


_REASONS = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
    pb.FINISH_REASON_ERROR: FinishReason.ERROR,
    pb.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
}


@dataclass(frozen=True, slots=True)
class Started:
    """The request was scheduled; these are the values that it runs with."""

    request_id: str
    seed: int
    model_fingerprint: str
    prompt_tokens: int
    cached_tokens: int
    numerics: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The stream broke and goes on at another replica; see ReplicaPolicy.tell_resumed.

    replica, left: where it goes on, and where it was. fault: how it ended there. tokens: received
    until then. breaks: of this call. pause_seconds: from the break until it went on.
    """

    replica: str
    left: str
    fault: str
    tokens: int
    breaks: int
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the most probable tokens of a position; logprob is a natural logarithm."""

    token_id: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token's log-probability; rank 1 is the most probable."""

    token_id: int
    bytes: bytes
    logprob: float
    rank: int
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt's next tokens, from its second on; all of them come before
    any delta of index 0. first_token_id: the prompt's first token, in the first of these events."""

    logprobs: tuple[TokenLogprob, ...]
    first_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The beginning of a call, or more of its arguments. index: which call of this output.

    id and name: in a call's first piece alone, else empty. arguments: a piece of JSON text.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """What has come since the last delta of the same index: never cumulative. reasoning,
    tool_calls: if the output is parsed; they are not part of text."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one index."""

    index: int
    reason: FinishReason
    stop_token_id: int | None
    stop_string: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queued_seconds: float
    prefill_seconds: float
    decode_seconds: float
    preemptions: int
    peak_blocks: int
    reasoning_tokens: int = 0


Event: TypeAlias = Started | PromptLogprobs | Delta | Finished | Resumed


@dataclass(frozen=True, slots=True)
class Completion:
    """One index, whole: its deltas joined, and how it ended.

    tool_calls: each with its id and the JSON text of its arguments, as a Message takes them.
    prompt_logprobs: of the prompt's tokens from the second on, the same for every index.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finished: Finished
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


def from_proto(response: pb.GenerateResponse) -> Event | None:
    """The event of a message, or None for a kind that this client is too old to know."""
    kind = response.WhichOneof("event")
    if kind == "delta":
        return _delta(response.delta)
    if kind == "started":
        return _started(response.started)
    if kind == "finished":
        return _finished(response.finished)
    if kind == "prompt_logprobs":
        return _prompt_logprobs(response.prompt_logprobs)
    return None


def _started(m: pb.Started) -> Started:
    return Started(
        m.request_id, m.seed, m.model_fingerprint, m.prompt_tokens, m.cached_tokens, m.numerics
    )


def _delta(m: pb.Delta) -> Delta:
    logprobs = tuple(_logprob(t) for t in m.logprobs)
    calls = tuple(ToolCallDelta(c.index, c.id, c.name, c.arguments_json) for c in m.tool_calls)
    return Delta(m.index, m.text, tuple(m.token_ids), logprobs, m.reasoning, calls)


def _logprob(m: pb.TokenLogprob) -> TokenLogprob:
    top = tuple(TopLogprob(t.token_id, t.bytes, t.logprob) for t in m.top)
    return TokenLogprob(m.token_id, m.bytes, m.logprob, m.rank, top)


def _prompt_logprobs(m: pb.PromptLogprobs) -> PromptLogprobs:
    first = m.first_token_id if m.HasField("first_token_id") else None
    return PromptLogprobs(tuple(_logprob(t) for t in m.logprobs), first)


def _finished(m: pb.Finished) -> Finished:
    matched = m.WhichOneof("matched")
    return Finished(
        index=m.index,
        reason=_REASONS.get(m.reason, FinishReason.UNKNOWN),
        stop_token_id=m.stop_token_id if matched == "stop_token_id" else None,
        stop_string=m.stop_string if matched == "stop_string" else None,
        prompt_tokens=m.usage.prompt_tokens,
        completion_tokens=m.usage.completion_tokens,
        cached_tokens=m.usage.cached_tokens,
        queued_seconds=m.timings.queued_seconds,
        prefill_seconds=m.timings.prefill_seconds,
        decode_seconds=m.timings.decode_seconds,
        preemptions=m.preemptions,
        peak_blocks=m.peak_blocks,
        reasoning_tokens=m.usage.reasoning_tokens,
    )


def joined_calls(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """The tool calls of one index, joined from their pieces."""
    calls: dict[int, list[ToolCallDelta]] = {}
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCall(parts[0].name, "".join(part.arguments for part in parts), parts[0].id)
        for _, parts in sorted(calls.items())
    )


def text_of(event: Event) -> str:
    """The text that an event brings to index 0; empty where it brings none."""
    return event.text if isinstance(event, Delta) and event.index == 0 else ""


class Collector:
    """Joins the events of one stream into completions. Feed it each event once, in order."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._ids: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._thoughts: dict[int, list[str]] = {}
        self._calls: dict[int, list[ToolCallDelta]] = {}
        self._finished: dict[int, Finished] = {}
        self._prompt: list[TokenLogprob] = []

    def add(self, event: Event) -> None:
        """Takes one event."""
        if isinstance(event, Delta):
            self._texts.setdefault(event.index, []).append(event.text)
            self._ids.setdefault(event.index, []).extend(event.token_ids)
            self._logprobs.setdefault(event.index, []).extend(event.logprobs)
            self._thoughts.setdefault(event.index, []).append(event.reasoning)
            self._calls.setdefault(event.index, []).extend(event.tool_calls)
        elif isinstance(event, Finished):
            self._finished[event.index] = event
        elif isinstance(event, PromptLogprobs):
            self._prompt.extend(event.logprobs)

    def completions(self) -> list[Completion]:
        """The indices that have finished, in order."""
        return [
            Completion(
                index,
                "".join(self._texts.get(index, ())),
                tuple(self._ids.get(index, ())),
                tuple(self._logprobs.get(index, ())),
                finished,
                "".join(self._thoughts.get(index, ())),
                joined_calls(self._calls.get(index, ())),
                tuple(self._prompt),
            )
            for index, finished in sorted(self._finished.items())
        ]
