"""The names of a Responses body's fields: its items, where the contract has messages."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from quire.clients.openai.field_names import PlacedNames, Rules, call_of, rules

_OF_CALLS = {".name": ".name", ".arguments_json": ".arguments", ".id": ".call_id"}
_OF_ITEMS = {  # by the item's type
    "message": {".role": ".role", ".content": ".content"},
    "reasoning": {".reasoning_content": ""},
    "function_call_output": {".content": ".output", ".tool_call_id": ".call_id"},
}
_RULES = rules(
    (r"sampling\.", ""),
    (r"chat\.tools\[(\d+)\]\.parameters_json", r"tools[\1].parameters"),
    (r"chat(\.messages)?$", "input"),
    (r"chat\.", ""),
    (r"request_id$", "x-request-id"),
)


class Place(NamedTuple):
    """What an item became: the number of a message, and in it that of a call."""

    message: int
    type: str
    call: int = 0


@dataclass(frozen=True, slots=True)
class ResponseNames(PlacedNames):
    """places: of the items, in their order, which is that of the messages as well. instructed: the
    first message is the instructions."""

    rules: Rules = _RULES
    places: tuple[Place, ...] = ()
    instructed: bool = False

    def of_message(self, number: int, rest: str) -> str:
        """The name of a message's field."""
        if number == 0 and self.instructed:
            return "instructions"
        items = list(self._items(number))
        told = (f"input[{i}]{name}" for i, at in items if (name := _name(at, rest)) is not None)
        first, other = next(told, None), next(told, None)
        if first is None:
            return f"input[{items[0][0]}]" if items else "input"
        return first if other is None else f"{first} (or a later one of its turn)"

    def _items(self, message: int) -> Iterator[tuple[int, Place]]:
        """Those of a message, each with its number."""
        first = bisect_left(self.places, message, key=lambda place: place.message)
        for number in range(first, len(self.places)):
            if self.places[number].message != message:
                return
            yield number, self.places[number]


def _name(place: Place, rest: str) -> str | None:
    """What an item calls a field of its message; None: the field is not this item's."""
    called = call_of(rest)
    if called is None:
        return _OF_ITEMS.get(place.type, {}).get(rest)
    call, field = called
    if place.type != "function_call" or place.call != call:
        return None
    return _OF_CALLS.get(field, "")
