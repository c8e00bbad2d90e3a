"""The response object, whole or while it grows.

Invariant: an answer holds exactly what the events say, and repeats what the body asked for.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from quire.clients.openai.item_answer import ItemAnswer
from quire.clients.openai.responses import ResponsesBody

_CODES = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}


class ResponseAnswer(ItemAnswer):
    """Gathers one body's events."""

    def __init__(self, model: str, parsed: ResponsesBody, *, keeps_logprobs: bool = True) -> None:
        """parsed: the request that it answers. keeps_logprobs: or they are in the steps alone."""
        super().__init__(model, keeps_logprobs=keeps_logprobs)
        self._repeated = memoryview(parsed.repeated)
        self._created = int(time.time())
        self._error: Mapping[str, Any] | None = None

    @property
    def status(self) -> str:
        """Of the response."""
        return self.ending if self._error is None else "failed"

    def fail(self, error: Mapping[str, Any]) -> None:
        """It ends with an error, of the shape that refusals have."""
        self._error = {
            "code": _CODES.get(error["type"], "server_error"),
            "message": error["message"],
        }
        self.items.cut()

    def whole(self) -> dict[str, Any]:
        """The object, once all has ended."""
        told: dict[str, Any] = json.loads(self.encoded())
        return told

    def encoded(self) -> bytes:
        """The object as JSON, in ASCII; on any thread."""
        return b"".join(self.pieces())

    def pieces(self) -> tuple[bytes, memoryview]:
        """The same in pieces. The last one repeats the body, and is no copy: it may be large."""
        done = self.status == "completed"
        told = {
            "id": f"resp_{self.items.name}",
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if done else None,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"}
            if self.status == "incomplete"
            else None,
            "model": self.model,
            "output": [item.object() for item in self.items.all],
            "usage": self._usage() if self.status in ("completed", "incomplete") else None,
        }
        return json.dumps(told, separators=(",", ":")).encode()[:-1] + b",", self._repeated[1:]

    def _usage(self) -> dict[str, Any]:
        told = self.tally.usage()
        return {
            "input_tokens": told["prompt_tokens"],
            "input_tokens_details": told["prompt_tokens_details"] | {"cache_write_tokens": 0},
            "output_tokens": told["completion_tokens"],
            "output_tokens_details": told["completion_tokens_details"],
            "total_tokens": told["total_tokens"],
        }
