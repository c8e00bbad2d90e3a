"""Messages and tools as a template gets them, and every string inside them."""

from collections.abc import Iterator, Mapping
from typing import Any


def as_rendered(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers passes it to templates: reasoning under each name that templates
    read, and no key without a value."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = given.get("reasoning_content")
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given}


def texts(value: Any, kind: str) -> Iterator[tuple[str, str]]:
    """Strings inside a value, keys too, each with its kind: `tool.name`, `tool.description`,
    `call.key`, `call.value`; a message's own strings have the kind that they came with."""
    waiting: list[tuple[Any, str]] = [(value, "value")]  # no recursion: clients nest as they like
    inside = kind in ("tool", "call")
    while waiting:
        item, name = waiting.pop()
        if isinstance(item, str):
            yield (f"{kind}.{name}" if inside else kind), item
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                yield f"{kind}.key", str(key)
                waiting.append((inner, key if key in ("name", "description") else "value"))
        elif isinstance(item, list | tuple):
            waiting.extend((inner, name) for inner in item)
