"""A call's messages as OpenAI's JSON: the body of an answer, or of an error.

Invariant: an answer is made of every delta that came, and only of a stream that ended well; what a
token's bytes alone cannot say as text reads U+FFFD, and the bytes stand beside it.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.clients.errors import CallError, InvalidRequest
from quire.clients.openai_body import CHATS
from quire.v1 import inference_pb2 as pb

_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
    pb.FINISH_REASON_CANCELLED: "error",
    pb.FINISH_REASON_ERROR: "error",
}
_STATUS = {"NOT_FOUND": 404, "OUT_OF_RANGE": 400, "INVALID_ARGUMENT": 400}
# Where the contract has what a body has elsewhere: the beginnings of fields, and their ends.
_BEGINNINGS = (
    ("sampling.", ""),
    ("chat.", ""),
    ("constraint.json_schema", "response_format.json_schema.schema"),
    ("constraint", "response_format"),
    ("token_ids.ids", "prompt"),
    ("token_ids", "prompt"),
    ("text", "prompt"),
)
_ENDS = (("parameters_json", "function.parameters"), ("arguments_json", "function.arguments"))


@dataclass(slots=True)
class _Choice:
    """One index so far."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    finished: pb.Finished | None = None

    def add(self, delta: pb.Delta) -> None:
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.logprobs.extend(delta.logprobs)
        for piece in delta.tool_calls:
            call = self.calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.id
            call["name"] += piece.name
            call["arguments"] += piece.arguments_json


class Answer:
    """One call's. Feed it each message once, in order."""

    def __init__(self, url: str, model: str, *, logprobs: bool) -> None:
        """url: CHATS or COMPLETIONS. model: the name that the answer gives. logprobs: asked for."""
        self._chat = url == CHATS
        self._model = model
        self._logprobs = logprobs
        self._started = pb.Started()
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)

    def add(self, message: pb.GenerateResponse) -> None:
        """Takes one message."""
        match message.WhichOneof("event"):
            case "started":
                self._started = message.started
            case "delta":
                self._choices[message.delta.index].add(message.delta)
            case "finished":
                self._choices[message.finished.index].finished = message.finished

    def body(self) -> dict[str, Any]:
        """The whole answer, once the call has ended."""
        choices = sorted(self._choices.items())
        write = _chat_choice if self._chat else _completion_choice
        name, prefix = (
            ("chat.completion", "chatcmpl") if self._chat else ("text_completion", "cmpl")
        )
        return {
            "id": f"{prefix}-{self._started.request_id}",
            "object": name,
            "created": int(time.time()),
            "model": self._model,
            "choices": [
                {"index": index, **write(choice, self._logprobs)} for index, choice in choices
            ],
            "usage": self._usage(),
            "system_fingerprint": self._started.model_fingerprint,
        }

    def _usage(self) -> dict[str, Any]:
        usages = [c.finished.usage for c in self._choices.values() if c.finished is not None]
        made = sum(usage.completion_tokens for usage in usages)
        prompt = self._started.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": self._started.cached_tokens},
            "completion_tokens_details": {
                "reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)
            },
        }


def _reason(choice: _Choice) -> str | None:
    return None if choice.finished is None else _REASONS.get(choice.finished.reason, "stop")


def _chat_choice(choice: _Choice, logprobs: bool) -> dict[str, Any]:
    words, thoughts = "".join(choice.text), "".join(choice.reasoning)
    message: dict[str, Any] = {"role": "assistant", "content": words}
    if thoughts:
        message |= {"reasoning": thoughts, "reasoning_content": thoughts}
    if choice.calls:
        message["content"] = words or None
        message["tool_calls"] = [_call(call) for _, call in sorted(choice.calls.items())]
    content = [
        _token(one) | {"top_logprobs": list(map(_token, one.top))} for one in choice.logprobs
    ]
    return {
        "message": message,
        "logprobs": {"content": content} if logprobs else None,
        "finish_reason": _reason(choice),
    }


def _call(call: Mapping[str, str]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def _token(one: pb.TokenLogprob | pb.TopLogprob) -> dict[str, Any]:
    return {"token": _text(one.bytes), "logprob": one.logprob, "bytes": list(one.bytes)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _completion_choice(choice: _Choice, logprobs: bool) -> dict[str, Any]:
    told = _completion_logprobs(choice.logprobs) if logprobs else None
    return {"text": "".join(choice.text), "logprobs": told, "finish_reason": _reason(choice)}


def _completion_logprobs(logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
    tokens = [_text(one.bytes) for one in logprobs]
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [{_text(top.bytes): top.logprob for top in one.top} for one in logprobs],
        "text_offset": offsets,
    }


# ---------------------------------------------------------------- errors


def error_body(
    message: str, param: str | None, code: str | None, sort: str = "invalid_request_error"
) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    return {"error": {"message": message, "type": sort, "param": param, "code": code}}


def refused_body(error: CallError) -> tuple[int, dict[str, Any]]:
    """An HTTP status, and the body, for what the server has said of one request."""
    code = error.details.reason.lower() or error.code.name.lower()
    if not isinstance(error, InvalidRequest):
        return 500, error_body(error.message, None, code, "server_error")
    fields = [violation.field for violation in error.details.violations]
    param = None if not fields else _plain(fields[0])
    return _STATUS.get(error.code.name, 400), error_body(error.message, param, code)


def _plain(name: str) -> str:
    """The contract's name of a field as a body has it."""
    for theirs, ours in _BEGINNINGS:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in _ENDS:
        name = name.replace(f".{theirs}", f".{ours}")
    return name
