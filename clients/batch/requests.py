"""The file of requests: one JSON object a line, each with a custom_id of its own.

Invariant: a file is read as a whole before anything is asked, and refused as a whole where a line
could not be told apart from the others: no object, no custom_id, or one that was there before. Only
ids and places are kept of it, so its size does not matter.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quire.clients.arguments import kind, show, text
from quire.clients.errors import OptionError
from quire.clients.openai_body import CHATS, COMPLETIONS, BodyError, read_body
from quire.v1 import inference_pb2 as pb

_FIELDS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class Line:
    """One request. fields: the line's JSON."""

    custom_id: str
    fields: Mapping[str, Any]

    @property
    def url(self) -> str:
        """What it asks for; of a line that `request` takes, CHATS or COMPLETIONS."""
        return str(self.fields.get("url"))

    def request(self) -> pb.GenerateRequest:
        """The message of the contract. Raises BodyError."""
        for name in self.fields:
            if name not in _FIELDS:
                raise BodyError(name, "is no field of a batch's line", "unknown_parameter")
        if self.fields.get("method") != "POST":
            raise BodyError("method", f"{show(self.fields.get('method'))}; only POST is supported")
        url, body = self.fields.get("url"), self.fields.get("body")
        if url not in (CHATS, COMPLETIONS):
            raise BodyError("url", f"{show(url)}; only {CHATS} and {COMPLETIONS} are supported")
        if not isinstance(body, Mapping):
            raise BodyError("body", f"an object, not {kind(body)}")
        return read_body(url, body)


class RequestFile:
    """Which requests a file holds, and where each stands."""

    def __init__(self, path: Path) -> None:
        """Reads it once. Raises OptionError, naming the line."""
        self.path = path
        self._places: dict[str, int] = {}  # where each line begins, in bytes
        try:
            with path.open("rb") as file:
                self._index(file)
        except OSError as error:
            raise OptionError(f"{path}: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, custom_id: object) -> bool:
        return custom_id in self._places

    def lines(self, done: set[str]) -> Iterator[Line]:
        """All but those, in the file's order. Raises OptionError for a file that has changed."""
        with self.path.open("rb") as file:
            for custom_id, place in self._places.items():
                if custom_id in done:
                    continue
                file.seek(place)
                try:
                    line = _parsed(file.readline())
                except ValueError:
                    line = None
                if line is None or line.custom_id != custom_id:
                    raise OptionError(f"{self.path}: has changed while it was read")
                yield line

    def _index(self, file: Any) -> None:
        place = 0
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                try:
                    custom_id = _parsed(raw).custom_id
                    if custom_id in self._places:
                        raise ValueError(f"custom_id {show(custom_id)}: was there before")
                except ValueError as error:
                    raise OptionError(f"{self.path}, line {number}: {error}") from None
                self._places[custom_id] = place
            place += len(raw)


def _parsed(raw: bytes) -> Line:
    """A line of the file. Raises ValueError, of which OptionError is one."""
    try:
        fields = json.loads(raw, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"an object, not {kind(fields)}")
    custom_id = fields.get("custom_id")
    if not custom_id:
        raise ValueError("custom_id: is missing")
    return Line(text("custom_id", custom_id), fields)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"is not JSON: {name}")
