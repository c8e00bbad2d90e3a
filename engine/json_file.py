"""Typed reading of a JSON object from a file.

Invariant: a value that is returned has the type that was asked for, and every complaint names the
file, the key and the value.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from quire.engine.errors import ConfigError

_Default = TypeVar("_Default")
_REQUIRED: Any = object()


class JsonFile:
    """One JSON object and the name to complain under.

    A `default` stands in where a key is missing or null; without one the key is required. Raises
    ConfigError.
    """

    def __init__(self, data: dict[str, Any], name: str) -> None:
        self.data = data
        self.name = name

    @classmethod
    def read(cls, path: Path) -> "JsonFile":
        """Read an object from a file."""
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: must hold an object, not {_kind(data)}")
        return cls(data, str(path))

    def has(self, key: str) -> bool:
        """Whether a key is there and not null."""
        return self.data.get(key) is not None

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise ConfigError for a key's value."""
        if key not in self.data:
            raise ConfigError(f"{self.name}: {key} is missing: {expected}")
        raise ConfigError(f"{self.name}: {key} = {json.dumps(self.data[key])}: {expected}")

    def integer(self, key: str, default: _Default = _REQUIRED, *, least: int = 1) -> int | _Default:
        """An integer of at least `least`."""
        expected = f"must be an integer of at least {least}"
        value = self._get(key, default, expected)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
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
        limits = ((least, "at least"), (most, "at most"), (above, "above"))
        words = [f"{word} {limit:g}" for limit, word in limits if math.isfinite(limit)]
        expected = " ".join(("must be a number", " and ".join(words))).rstrip()
        value = self._get(key, default, expected)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, expected)
        if not (math.isfinite(value) and least <= value <= most and value > above):
            self.refuse(key, expected)
        return float(value)

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
        return JsonFile(value, f"{self.name}: {key}")

    def only(self, key: str, *allowed: object) -> None:
        """Refuse a value other than these; a missing or null one is no value."""
        if self.has(key) and self.data[key] not in allowed:
            choices = ", ".join(json.dumps(value) for value in allowed)
            self.refuse(key, f"supported: {choices}")

    def _get(self, key: str, default: Any, expected: str) -> Any:
        if self.has(key):
            return self.data[key]
        if default is _REQUIRED:
            self.refuse(key, expected)
        return default


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
