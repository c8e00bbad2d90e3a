"""Renames faults of the contract's fields after the body's own fields."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from quire.clients.openai.faults import Fault

Rules = tuple[tuple[re.Pattern[str], str], ...]


def rules(*pairs: tuple[str, str]) -> Rules:
    """Each a pattern of the contract's names, and what a body calls them. The first counts."""
    return tuple((re.compile(contract), told) for contract, told in pairs)


_CHAT = rules(
    (r"sampling\.", ""),
    (
        r"chat\.messages\[(\d+)\]\.tool_calls\[(\d+)\]\.name",
        r"messages[\1].tool_calls[\2].function.name",
    ),
    (
        r"chat\.messages\[(\d+)\]\.tool_calls\[(\d+)\]\.arguments_json",
        r"messages[\1].tool_calls[\2].function.arguments",
    ),
    (r"chat\.tools\[(\d+)\]\.parameters_json", r"tools[\1].function.parameters"),
    (r"chat\.tools\[(\d+)\]\.", r"tools[\1].function."),
    (r"chat\.tool_choice\.name", "tool_choice.function.name"),
    (r"chat\.", ""),
    (r"chat$", "messages"),
    (r"request_id$", "x-request-id"),
    (r"(text|token_ids)(\.ids)?(?=$|\[)", "prompt"),
)
_MESSAGE = re.compile(r"chat\.messages\[(\d+)\](.*)")
_CALL = re.compile(r"\.tool_calls(?:\[(\d+)\](.*))?")
_MAX_TOLD = 16
_IN_WORDS = (  # what the contract's words name, and a body has otherwise or not at all
    ("sampling.", ""),
    (" (see chat.allow_special_tokens)", ""),
    ("send text or token_ids", "send a prompt to /v1/completions"),
    ("(Embed)", "(/v1/embeddings)"),
)
_EFFORT = (
    " (medium is as if unset where a template knows no effort, none is "
    "chat_template_kwargs.enable_thinking = false, others are for templates that know "
    "reasoning_effort)"
)
_HINTS = {  # by the body's name of the field
    "reasoning_effort": _EFFORT,
    "reasoning.effort": _EFFORT,
    "output_config.effort": " (high is as if unset; others are for templates that know "
    "reasoning_effort)",
    "thinking": " (adaptive is as if unset; others are chat_template_kwargs.enable_thinking)",
}
_PRIORITY = " (in the contract's sense, where higher runs first: here turn the sign)"


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one request's fields. given: the contract's fields that this request gave under
    other names. rules: for all others; by default a chat's and a completion's."""

    given: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = _CHAT

    def body(self, contract: str) -> str:
        """A field's name."""
        for name, told in self.given.items():
            rest = contract.removeprefix(name)
            if rest != contract and (not rest or rest[0] in ".["):
                return told + rest
        for pattern, told in self.rules:
            if pattern.match(contract):
                return pattern.sub(told, contract, count=1)
        return contract

    def faults(self, contract: Iterable[tuple[str, str]]) -> list[Fault]:
        """The faults under the body's names; the first of very many."""
        return [self._fault(name, words) for name, words in islice(contract, _MAX_TOLD)]

    def _fault(self, contract: str, words: str) -> Fault:
        given = ((name, told) for name, told in self.given.items() if "." in name)
        for name, told in (*given, *_IN_WORDS):
            words = words.replace(name, told)
        if contract == "priority":
            words += _PRIORITY
        told = self.body(contract)
        return Fault(told, words + _HINTS.get(told, ""))


@dataclass(frozen=True, slots=True)
class PlacedNames(Names):
    """Of a body that has something else where the contract has messages."""

    def body(self, contract: str) -> str:
        """A field's name."""
        found = _MESSAGE.fullmatch(contract)
        if found is None:
            return Names.body(self, contract)
        return self.of_message(int(found[1]), found[2])

    def of_message(self, number: int, rest: str) -> str:
        """The name of a message's field. rest: the contract's, behind the message's."""
        raise NotImplementedError


def call_of(rest: str) -> tuple[int, str] | None:
    """Of a field of a message's calls: the call's number, and what follows it."""
    found = _CALL.fullmatch(rest)
    return None if found is None else (int(found[1] or 0), found[2] or "")
