"""Whole answers: the contract's events gathered into one object.

Invariant: an answer contains exactly what the events say, choice by choice, after the prompt if
that is to be repeated; nothing is added.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from quire.clients.openai.parsed_body import ParsedBody
from quire.clients.openai.shapes import (
    FINISH,
    Head,
    Offsets,
    PromptWithLogprobs,
    Tally,
    chat_logprobs,
    reasoning,
)
from quire.v1 import inference_pb2 as pb


@dataclass(slots=True)
class _Choice:
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def take(self, delta: pb.Delta) -> None:
        self.texts.append(delta.text)
        self.thoughts.append(delta.reasoning)
        self.logprobs.extend(delta.logprobs)
        for piece in delta.tool_calls:
            call = self.calls.setdefault(piece.index, {"id": "", "name": "", "arguments": []})
            call["id"] += piece.id
            call["name"] += piece.name
            call["arguments"].append(piece.arguments_json)


class Answer:
    """Gathers one body's events."""

    def __init__(self, model: str, parsed: ParsedBody, *, chat: bool) -> None:
        """parsed: the request that it answers."""
        kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
        self._head = Head(kind, prefix, model)
        self._chat = chat
        self._parsed = parsed
        self._tally = Tally()
        self._choices: dict[int, _Choice] = {}
        self._prompts = [PromptWithLogprobs() for _ in parsed.requests]

    def take(self, message: pb.GenerateResponse) -> None:
        """The next event."""
        event = message.WhichOneof("event")
        if event == "started":
            self._head.started(message.started)
            self._tally.started(message.started)
        elif event == "delta":
            self._choice(message.delta.index).take(message.delta)
        elif event == "prompt_logprobs":
            told = message.prompt_logprobs
            self._prompts[told.index // self._parsed.each].take(told)
        else:
            self._tally.finished(message.finished)
            self._choice(message.finished.index).finish = FINISH.get(message.finished.reason)

    def whole(self) -> dict[str, Any]:
        """The object, once all has ended."""
        shape = self._chat_choice if self._chat else self._text_choice
        choices = [shape(index, choice) for index, choice in sorted(self._choices.items())]
        told = self._head.object(choices) | {"usage": self._tally.usage()}
        if self._chat and self._parsed.prompt_logprobs:
            told["prompt_logprobs"] = self._prompts[0].by_id()
        return told

    def encoded(self) -> bytes:
        """The object as JSON; on any thread."""
        return json.dumps(self.whole(), ensure_ascii=False).encode("utf-8", "replace")

    def _choice(self, index: int) -> _Choice:
        return self._choices.setdefault(index, _Choice())

    def _chat_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text, calls = "".join(choice.texts), _calls(choice)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not calls else None,
            "refusal": None,
            **reasoning("".join(choice.thoughts)),
        }
        if calls:
            message["tool_calls"] = calls
        logprobs = chat_logprobs(choice.logprobs) if self._parsed.logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }

    def _text_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        parsed, place = self._parsed, index // self._parsed.each
        prompt, logprobs = self._prompts[place], None
        if parsed.logprobs:
            logprobs = Offsets().logprobs(choice.logprobs, prompt if parsed.echo else None)
        before = ""
        if parsed.echo:
            prompt_logprobs = parsed.requests[place].HasField("prompt_logprobs")
            before = prompt.text if prompt_logprobs else parsed.requests[place].text
        told = {
            "index": index,
            "text": before + "".join(choice.texts),
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }
        return told | ({"prompt_logprobs": prompt.by_id()} if parsed.prompt_logprobs else {})


def _calls(choice: _Choice) -> list[dict[str, Any]]:
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
        }
        for _, call in sorted(choice.calls.items())
    ]
