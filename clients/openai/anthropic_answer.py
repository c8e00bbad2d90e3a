"""Anthropic's message, whole or while it grows.

Invariant: an answer holds exactly what the events say: a block for the thoughts, for the text and
for each call.
"""

import json
from collections.abc import Mapping
from typing import Any

from quire.clients.openai.item_answer import ItemAnswer
from quire.clients.openai.parsed_body import ParsedBody
from quire.clients.openai.response_items import Item, Kind
from quire.clients.strict_json import BODY_DEPTH, BadJson, read_object
from quire.v1 import inference_pb2 as pb

_STOPS = {
    pb.FINISH_REASON_STOP: "end_turn",
    pb.FINISH_REASON_LENGTH: "max_tokens",
    pb.FINISH_REASON_TOOL_CALLS: "tool_use",
}


class MessageAnswer(ItemAnswer):
    """Gathers one body's events."""

    def __init__(self, model: str, _parsed: ParsedBody) -> None:
        super().__init__(model, keeps_logprobs=False)

    def object(self) -> dict[str, Any]:
        """The message so far."""
        return {
            "id": f"msg_{self.items.name}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [block(item) for item in self.items.all],
            **self.stop(),
            "usage": self.usage(),
        }

    def stop(self) -> Mapping[str, str | None]:
        """Why it has ended; before, nothing."""
        if self.finished is None:
            return {"stop_reason": None, "stop_sequence": None}
        if self.finished.WhichOneof("matched") == "stop_string":
            return {"stop_reason": "stop_sequence", "stop_sequence": self.finished.stop_string}
        return {"stop_reason": _STOPS.get(self.finished.reason), "stop_sequence": None}

    def usage(self) -> dict[str, Any]:
        """As Anthropic counts: a prompt's cached tokens are none of its input tokens."""
        told = self.tally.usage()
        cached = told["prompt_tokens_details"]["cached_tokens"]
        thought = told["completion_tokens_details"]["reasoning_tokens"]
        return {
            "input_tokens": told["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": told["completion_tokens"],
            "output_tokens_details": {"thinking_tokens": thought},
        }

    def encoded(self) -> bytes:
        """The message as JSON, in ASCII; on any thread."""
        return json.dumps(self.object(), separators=(",", ":")).encode()


def block(item: Item) -> dict[str, Any]:
    """An item as a block. Nothing is signed, and clients look for a signature."""
    if item.kind is Kind.REASONING:
        return {"type": "thinking", "thinking": item.text, "signature": ""}
    if item.kind is Kind.MESSAGE:
        return {"type": "text", "text": item.text}
    head = {"id": item.head["call_id"], "name": item.head["name"]}
    return {"type": "tool_use", **head, "input": _input(item.text)}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments, where they are an object; those that broke off are none."""
    try:
        return read_object(arguments, BODY_DEPTH)
    except BadJson:
        return {}
