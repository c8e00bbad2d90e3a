"""JSON that a client sends as text (`parameters_json`, `arguments_json`, `chat_template_kwargs`),
as the body of a request over HTTP, or as a batch's line.

Invariant: what comes out is what the text says and nothing else. Keys keep their order; whole
numbers keep every digit and stay whole; numbers with a point or an exponent are doubles. What a
prompt could not show as it was written is refused: keys given twice, NaN and infinities, numbers
beyond a double, halves of surrogate pairs.
"""

import json
import math
from typing import Any, NoReturn

from quire.clients import large_json

MAX_DEPTH = 64  # objects and lists inside one another
BODY_DEPTH = 256  # of a body, or a line; a field beyond MAX_DEPTH is refused by its name


class BadJson(ValueError):
    """The text is not a JSON object that a prompt can show; the message says why."""


def read_object(text: str, most: int = MAX_DEPTH) -> dict[str, Any]:
    """The object. most: objects and lists inside one another. Raises BadJson."""
    try:
        value = large_json.loads(
            text, parse_constant=_refuse_constant, parse_float=_double, parse_int=large_json.whole
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadJson(f"is not JSON: {error.msg} ({where})") from None
    except large_json.RepeatedKey as error:
        raise BadJson(f"holds the key {_shown(error.key)} twice") from None
    except (large_json.TooManyParts, large_json.TooManyDigits) as error:
        raise BadJson(str(error)) from None
    except RecursionError:
        raise _too_deep(most) from None
    if not isinstance(value, dict):
        raise BadJson(f"must be a JSON object, not {_KINDS[type(value)]}")
    _check(value, most)
    return value


_KINDS = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _refuse_constant(name: str) -> NoReturn:
    raise BadJson(f"is not JSON: {name} is no number of JSON")


def _double(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadJson(f"holds {_shown(digits)}, which is beyond the range of a double")
    return value


def _check(value: dict[str, Any], most: int) -> None:
    """Depth and characters, without recursion."""
    level: list[Any] = [value]
    for _ in range(most):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside.extend(item.keys())
                inside.extend(item.values())
            elif isinstance(item, list):
                inside.extend(item)
            elif isinstance(item, str):
                _check_characters(item)
        level = inside
        if not level:
            return
    if any(isinstance(item, dict | list) for item in level):
        raise _too_deep(most)
    for item in level:
        if isinstance(item, str):
            _check_characters(item)


def _check_characters(text: str) -> None:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise BadJson("holds half of a surrogate pair, which is not a character")


def _too_deep(most: int) -> BadJson:
    return BadJson(f"is nested too deep: at most {most} objects and lists in one another")


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "…")
