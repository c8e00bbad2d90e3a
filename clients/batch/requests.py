"""The file of requests: one JSON object per line, each with a unique custom_id.

Invariant: the whole file is read before any request is sent, and it is refused as a whole if a line
cannot be identified: no object, no custom_id, or a repeated one. Only ids and offsets are kept in
memory, so the file's size does not matter.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from quire.clients.arguments import refuse_what_is_no_file, show, text
from quire.clients.errors import OptionError
from quire.clients.openai import chat, completions, responses
from quire.clients.openai.answers import Answer
from quire.clients.openai.faults import Faults
from quire.clients.openai.parsed_body import ParsedBody
from quire.clients.openai.response_answer import ResponseAnswer
from quire.clients.strict_json import BODY_DEPTH, read_object


class Endpoint(NamedTuple):
    """read: a body. answer: gathers one, for the model's name and what was read."""

    read: Callable[[dict[str, Any]], ParsedBody]
    answer: Callable[[str, Any], Answer | ResponseAnswer]


CHATS, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
_ENDPOINTS: Mapping[str, Endpoint] = {
    CHATS: Endpoint(chat.read, partial(Answer, chat=True)),
    COMPLETIONS: Endpoint(completions.read, partial(Answer, chat=False)),
    RESPONSES: Endpoint(responses.read, ResponseAnswer),
}
_FIELDS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class Line:
    """One request. fields: the line's JSON."""

    custom_id: str
    fields: Mapping[str, Any]

    @property
    def endpoint(self) -> Endpoint:
        """Of a line that `parsed` accepts."""
        return _ENDPOINTS[self.fields["url"]]

    def parsed(self) -> ParsedBody:
        """The line's body, parsed. Raises BadBody."""
        faults = Faults()
        for name, value in self.fields.items():
            if name not in _FIELDS:
                faults.add(name, value, "is no field of a batch's line")
        if self.fields.get("method") != "POST":
            faults.add("method", self.fields.get("method"), "only POST is supported")
        url, body = self.fields.get("url"), self.fields.get("body")
        if not isinstance(url, str) or url not in _ENDPOINTS:
            faults.add("url", url, f"must be one of {', '.join(_ENDPOINTS)}")
        if not isinstance(body, dict):
            faults.add("body", body, "must be an object")
            body = {}
        faults.raise_if_any()
        parsed = self.endpoint.read(body)
        if parsed.stream:
            faults.add("stream", True, "an answer to a file is whole")
        faults.raise_if_any()
        return parsed


class RequestFile:
    """The requests of a file, and the offset of each."""

    def __init__(self, path: Path) -> None:
        """Reads it once. Raises OptionError, naming the line."""
        refuse_what_is_no_file(path)
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
                        raise ValueError(f"custom_id {show(custom_id)}: given twice")
                except ValueError as error:
                    raise OptionError(f"{self.path}, line {number}: {error}") from None
                self._places[custom_id] = place
            place += len(raw)


def _parsed(raw: bytes) -> Line:
    """A line of the file. Raises ValueError, of which OptionError is a subclass."""
    try:
        fields = read_object(raw.decode(), BODY_DEPTH)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from None
    custom_id = fields.get("custom_id")
    if not custom_id:
        raise ValueError("custom_id: is missing")
    return Line(text("custom_id", custom_id), fields)
