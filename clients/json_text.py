"""Python values as JSON text, in their order; text that is JSON already goes as it is.

Invariant: the text says what the value says, or OptionError names what JSON cannot hold. The text
of a caller is kept to the letter: whether it is JSON is judged by the server.
"""

import json
from collections.abc import Mapping
from typing import Any

from quire.clients.arguments import kind, show, text
from quire.clients.errors import OptionError


def write_object(where: str, value: Any) -> str:
    """A mapping, or the text of a JSON object. Raises OptionError."""
    if isinstance(value, str):
        return text(where, value)
    if not isinstance(value, Mapping):
        raise OptionError(f"{where}: a dict or the text of a JSON object, not {kind(value)}")
    try:
        written = json.dumps(_plain(where, value), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise OptionError(f"{where}: nested too deeply, or contains itself") from None
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}: not JSON: {error}") from None
    return text(where, written)


def _plain(where: str, value: Any) -> Any:
    """The value as dicts, lists and scalars. Keys are strings, as they are in JSON."""
    if isinstance(value, Mapping):
        return {_key(where, key): _plain(_at(where, key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{where}[{i}]", item) for i, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise OptionError(f"{where}: {kind(value)} cannot be written as JSON")


def _at(where: str, key: Any) -> str:
    """The place of a part, printable whatever its key is."""
    plain = isinstance(key, str) and key.isascii() and key.isidentifier() and len(key) <= 40
    return f"{where}.{key}" if plain else f"{where}[{show(key)}]"


def _key(where: str, key: Any) -> str:
    if not isinstance(key, str):
        raise OptionError(f"{where}: a key of JSON is text, not {kind(key)}")
    return key
