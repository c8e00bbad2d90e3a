"""Typed reading of a JSON object from a file.

Invariant: a returned value has the requested type, and every error names the file, the path of the
key and the value. A repeated key is refused: readers differ in which value they take.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from quire.engine.errors import ConfigError
from quire.engine.placeholder_file import missing, stand_in
from quire.engine.plain_file import read_whole

_Default = TypeVar("_Default")
_REQUIRED: Any = object()
_SHOWN = 200  # characters of a value in a complaint


class JsonFile:
    """One JSON object, with the file's name and the path within it for error messages.

    A `default` is returned if a key is missing or null; without one the key is required. Raises
    ConfigError.
    """

    def __init__(self, data: dict[str, Any], name: str, path: str = "") -> None:
        self.data = data
        self.name = name
        self.path = path

    @classmethod
    def read(cls, path: Path) -> "JsonFile":
        """Read an object from a file."""
        try:
            content = read_whole(path)
        except FileNotFoundError:
            raise ConfigError(f"{path}: {missing(path)}") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        instead = stand_in(content)
        if instead is not None:
            raise ConfigError(f"{path}: {instead}")
        try:
            data = json.loads(content, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: must hold an object, not {_kind(data)}")
        return cls(data, str(path))

    def has(self, key: str) -> bool:
        """Whether a key exists and is not null."""
        return self.data.get(key) is not None

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise ConfigError for a key's value."""
        where = f"{self.name}: {self.path}{key}"
        if key not in self.data:
            raise ConfigError(f"{where} is missing: {expected}")
        raise ConfigError(f"{where} = {_shown(self.data[key])}: {expected}")

    def integer(
        self, key: str, default: _Default = _REQUIRED, *, least: int = 1, most: int | None = None
    ) -> int | _Default:
        """An integer of at least `least` and, where there is a limit, at most `most`."""
        expected = f"must be an integer of at least {least}"
        expected += "" if most is None else f" and at most {most}"
        value = self._get(key, default, expected)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.refuse(key, expected)
        if most is not None and value > most:
            self.refuse(key, expected)
        return value

    def number(
        self,
        key: str,
        default: _Default = _REQUIRED,
        *,
        least: float = -math.inf,
        most: float = math.inf,
        above: float = -math.inf,
    ) -> float | _Default:
        """A finite number, at least `least`, at most `most` and above `above`."""
        limits = ((least, "at least"), (above, "above"), (most, "at most"))
        words = [f"{word} {limit:g}" for limit, word in limits if math.isfinite(limit)]
        expected = " ".join(("must be a number", " and ".join(words))).rstrip()
        value = self._get(key, default, expected)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, expected)
        number = _as_float(value)
        if not (math.isfinite(number) and least <= number <= most and number > above):
            self.refuse(key, expected)
        return number

    def boolean(self, key: str, default: _Default = _REQUIRED) -> bool | _Default:
        """true or false."""
        value = self._get(key, default, "must be true or false")
        if value is not default and not isinstance(value, bool):
            self.refuse(key, "must be true or false")
        return value

    def string(self, key: str, default: _Default = _REQUIRED) -> str | _Default:
        """A string."""
        value = self._get(key, default, "must be a string")
        if value is not default and not isinstance(value, str):
            self.refuse(key, "must be a string")
        return value

    def integers(self, key: str, *, least: int, below: int) -> tuple[int, ...]:
        """An integer or a list of them, each in [least, below); nothing if it is missing."""
        if not self.has(key):
            return ()
        value = self.data[key]
        values = value if isinstance(value, list) else [value]
        for one in values:
            if isinstance(one, bool) or not isinstance(one, int) or not least <= one < below:
                self.refuse(key, f"must be integers from {least} to {below - 1}")
        return tuple(values)

    def section(self, key: str) -> "JsonFile | None":
        """An object within the object, or None."""
        if not self.has(key):
            return None
        value = self.data[key]
        if not isinstance(value, dict):
            self.refuse(key, "must be an object")
        return JsonFile(value, self.name, f"{self.path}{key}.")

    def only(self, key: str, *allowed: object) -> None:
        """Refuse a value other than these; a missing or null one is no value."""
        if self.has(key) and not any(_same(self.data[key], one) for one in allowed):
            choices = ", ".join(json.dumps(value) for value in allowed)
            self.refuse(key, f"supported: {choices}")

    def _get(self, key: str, default: Any, expected: str) -> Any:
        if self.has(key):
            return self.data[key]
        if default is _REQUIRED:
            self.refuse(key, expected)
        return default


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs, for json.loads. Raises ValueError for a repeated key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {json.dumps(key)[:_SHOWN]} stands twice in one object")
        found[key] = value
    return found


def _as_float(value: float) -> float:
    """Infinity for an integer that is beyond a float."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _same(value: object, other: object) -> bool:
    """Equal, and not a bool compared with a number, which Python considers equal."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
