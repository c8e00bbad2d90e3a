"""A prompt that the viewer has written on the page, and its answer.

Invariant: the prompt is checked before anything is sent; the answer is plain values, one for each
event, and the last one is `finished` or `error`.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quire.clients.client import Client, Generation
from quire.clients.errors import CallError, ClientError
from quire.clients.events import Delta, Event, Finished, Started
from quire.clients.messages import Message

LARGEST = 1 << 20
"""Bytes that a prompt's body may have."""
MAX_TOKENS = 1 << 20
_FIELDS = ("prompt", "max_tokens", "temperature")


class BadPrompt(Exception):
    """The message says what is wrong with the body, and what is right."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The viewer's prompt. temperature None: the model's own."""

    prompt: str
    max_tokens: int
    temperature: float | None


def read(body: bytes) -> Wanted:
    """Raises BadPrompt."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise BadPrompt("the body is no JSON") from None
    if not isinstance(given, dict) or not set(given) <= set(_FIELDS):
        raise BadPrompt(f"the body is an object of {', '.join(_FIELDS)}")
    prompt, max_tokens = given.get("prompt"), given.get("max_tokens", 256)
    temperature = given.get("temperature")
    if not isinstance(prompt, str) or not prompt:
        raise BadPrompt("prompt: write some text")
    if type(max_tokens) is not int or not 0 < max_tokens <= MAX_TOKENS:
        raise BadPrompt(f"max_tokens: a whole number from 1 to {MAX_TOKENS:,}")
    if temperature is not None and type(temperature) not in (int, float):
        raise BadPrompt("temperature: a number, or nothing for the model's own")
    return Wanted(prompt, max_tokens, temperature)


def begin(client: Client, wanted: Wanted, *, chat: bool) -> Generation:
    """chat: sent as a user's message, else as plain text. Raises OptionError (text with half of a
    surrogate pair, a temperature that is no number)."""
    prompt = [Message("user", wanted.prompt)] if chat else wanted.prompt
    return client.generate(
        prompt,
        max_tokens=wanted.max_tokens,
        temperature=wanted.temperature,
        request_id=f"watch-{secrets.token_hex(4)}",
    )


def events(generation: Generation, explain: Callable[[CallError], str]) -> Iterator[dict[str, Any]]:
    """explain: the sentence for a call that failed."""
    try:
        for event in generation:
            plain = _plain(event)
            if plain is not None:
                yield plain
    except CallError as error:
        yield {"event": "error", "message": explain(error)}
    except ClientError as error:
        yield {"event": "error", "message": str(error)}


def _plain(event: Event) -> dict[str, Any] | None:
    if isinstance(event, Started):
        return {
            "event": "started",
            "request_id": event.request_id,
            "prompt_tokens": event.prompt_tokens,
            "cached_tokens": event.cached_tokens,
        }
    if isinstance(event, Delta):
        return {
            "event": "delta",
            "text": event.text,
            "reasoning": event.reasoning,
            "tokens": len(event.token_ids),
        }
    return _end(event) if isinstance(event, Finished) else None


def _end(event: Finished) -> dict[str, Any]:
    return {
        "event": "finished",
        "reason": event.reason.value,
        "tokens": event.completion_tokens,
        "queued": event.queued_seconds,
        "prefill": event.prefill_seconds,
        "decode": event.decode_seconds,
        "preemptions": event.preemptions,
    }
