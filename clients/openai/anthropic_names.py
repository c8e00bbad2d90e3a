"""The names of Anthropic's fields: blocks, where the contract has messages."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from quire.clients.openai.faults import Fault
from quire.clients.openai.field_names import Names, PlacedNames, Rules, call_of, rules

_OF_CALLS = {".name": ".name", ".arguments_json": ".input", ".id": ".id"}
_OF_ANSWERS = {".content": ".content", ".tool_call_id": ".tool_use_id"}
_ROOM = re.compile(
    r"with it the prompt is too long: prompt \((\d+)\) \+ max_tokens \((\d+)\) = \d+ tokens exceed "
    r"max_model_len = (\d+)(?=: at most)"
)
_THEIR_ROOM = r"input length and `max_tokens` exceed context limit: \1 + \2 > \3"
_RULES = rules(
    (r"sampling\.", ""),
    (r"chat\.tools\[(\d+)\]\.parameters_json", r"tools[\1].input_schema"),
    (r"chat\.parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    (r"chat\.", ""),
    (r"chat$", "messages"),
    (r"request_id$", "x-request-id"),
)


class Place(NamedTuple):
    """Where a message of the chat stands in the body: in a message, or in a block of one. thought:
    the block of its thoughts. calls: those of its calls. message: None: it is `system`."""

    message: int | None
    block: int | None = None
    thought: int = 0
    calls: tuple[int, ...] = ()

    def name(self, rest: str) -> str:
        """Of one of the message's fields."""
        if self.message is None:
            return "system"
        at = f"messages[{self.message}]"
        if self.block is not None:
            return f"{at}.content[{self.block}]{_OF_ANSWERS.get(rest, '')}"
        if rest == ".reasoning_content":
            return f"{at}.content[{self.thought}].thinking"
        called = call_of(rest)
        if called is not None and self.calls:
            call, field = called
            return f"{at}.content[{self.calls[call]}]{_OF_CALLS.get(field, '')}"
        return at + rest


@dataclass(frozen=True, slots=True)
class MessagesNames(PlacedNames):
    """places: of the chat's messages."""

    rules: Rules = _RULES
    places: tuple[Place, ...] = ()

    def of_message(self, number: int, rest: str) -> str:
        """The name of a message's field."""
        return self.places[number].name(rest)

    def _fault(self, contract: str, words: str) -> Fault:
        """Where less than what was asked for fits behind the prompt, in Anthropic's words: clients
        read the numbers, and ask for less."""
        if contract == "chat.parallel_tool_calls":
            words = words.removeprefix("False: ")  # the body said true
        told = Names._fault(self, contract, words)
        return told._replace(words=_ROOM.sub(_THEIR_ROOM, told.words))
