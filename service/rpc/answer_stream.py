"""One index's tokens on their way to thoughts, text and calls of tools: a TextStream with a parser
behind it.

Invariant: a delta's events are what its ids made, and no id leaves while some of its text may yet
turn out to be markup. So ids and events of a stream, wherever it breaks, belong together: whoever
resumes from the ids gets the rest. Ids of tags leave with the delta that their tag is certain in.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from quire.engine.request import GenerationRequest, TokenLogprob
from quire.service.answers.events import Event, Kind, Reading
from quire.service.answers.parser import OutputParser
from quire.service.text.stop_strings import StopMatch
from quire.service.text.text_stream import Piece, TextStream


class CallPiece(NamedTuple):
    """More of a call. id and name: in its first piece alone."""

    number: int
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class _Token:
    """A token and its events. token_id is None for text left over from a resumed token."""

    token_id: int | None
    events: list[Event] = field(default_factory=list)
    logprob: TokenLogprob | None = None
    thought: bool = False


class AnswerPiece:
    """Tokens that are ready to be sent."""

    def __init__(self, tokens: list[_Token], call_id: Callable[[int], str]) -> None:
        self._tokens = tokens
        self._call_id = call_id

    @property
    def ids(self) -> list[int]:
        """The ids of its tokens."""
        return [token.token_id for token in self._tokens if token.token_id is not None]

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """The log-probabilities of its tokens; None: not asked for."""
        return [token.logprob for token in self._tokens if token.logprob is not None] or None

    @property
    def text(self) -> str:
        """The text that is neither reasoning nor tool calls."""
        return self._joined(Kind.TEXT)

    @property
    def reasoning(self) -> str:
        """Thoughts."""
        return self._joined(Kind.REASONING)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of thoughts, those of the tags around them included."""
        return sum(token.thought and token.token_id is not None for token in self._tokens)

    @property
    def calls(self) -> list[CallPiece]:
        """Pieces of calls, one a call."""
        pieces: list[CallPiece] = []
        for event in self._events():
            if event.kind is Kind.CALL:
                pieces.append(CallPiece(event.call, self._call_id(event.call), event.text, ""))
            elif event.kind is Kind.ARGUMENTS:
                if not pieces or pieces[-1].number != event.call:
                    pieces.append(CallPiece(event.call, "", "", ""))
                last = pieces[-1]
                pieces[-1] = last._replace(arguments=last.arguments + event.text)
        return pieces

    def parts(self, size: int) -> Iterator["AnswerPiece"]:
        """Pieces of at most this many tokens each, which together are this one. Text behind a call
        begins another: a delta does not say which of the two came first."""
        begin, called = 0, False
        for at, token in enumerate(self._tokens):
            kinds = [event.kind for event in token.events]
            if at - begin == size or (called and Kind.TEXT in kinds):
                yield AnswerPiece(self._tokens[begin:at], self._call_id)
                begin, called = at, False
            called = called or Kind.CALL in kinds or Kind.ARGUMENTS in kinds
        yield AnswerPiece(self._tokens[begin:], self._call_id)

    def _joined(self, kind: Kind) -> str:
        return "".join(event.text for event in self._events() if event.kind is kind)

    def _events(self) -> Iterator[Event]:
        for token in self._tokens:
            yield from token.events


class AnswerStream:
    """Used as a TextStream is."""

    def __init__(
        self, text: TextStream, reading: Reading, generation: GenerationRequest, index: int
    ) -> None:
        self._text = text
        self._parser = OutputParser(reading)
        self._generation, self._index = generation, index
        self._tokens: list[_Token] = []  # those that wait
        self._free = 0  # of them, those that may be sent
        self.resumed_thoughts = 0  # resumed ids of thoughts, the tags around them included

    @property
    def called(self) -> bool:
        """Whether tools were called, and no call is still open."""
        return self._parser.calls > 0 and not self._parser.in_call

    def replay(self, token_ids: Sequence[int]) -> StopMatch | None:
        """Process outputs that the client holds already, without sending their events."""
        waiting = 0  # ids whose text may yet turn out to open thoughts

        def heard(text: str) -> None:
            nonlocal waiting
            before = self._parser.thinking
            self._parser.feed(text)
            waiting += 1
            if before or self._parser.thinking:
                self.resumed_thoughts += waiting
                waiting = 0
            elif self._parser.certain:
                waiting = 0

        match = self._text.replay(token_ids, heard)
        if match is not None:
            self._parser.finish()
        return match

    def push(self, token_id: int, logprob: TokenLogprob | None = None) -> StopMatch | None:
        """Take the next token. A match ends the index; `take` then gives all up to the cut."""
        match = self._text.push(token_id, logprob)
        self._read(self._text.take())
        if match is not None:
            self._finish()
        return match

    def push_silent(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take the id that ended the index: it is counted and makes no text."""
        self._text.push_silent(token_id, logprob)

    def take(self) -> AnswerPiece | None:
        """What can be sent now, or None."""
        if not self._free:
            return None
        tokens = self._tokens[: self._free]
        del self._tokens[: self._free]
        self._free = 0
        return AnswerPiece(tokens, self._call_id)

    def end(self) -> AnswerPiece | None:
        """The index has ended: all that was held back."""
        self._read(self._text.end())
        self._finish()
        return self.take()

    def _read(self, piece: Piece | None) -> None:
        if piece is None:
            return
        for i, text in enumerate(piece.texts):
            token = _Token(piece.ids[i] if piece.ids else None)
            before = self._parser.thinking
            token.events = self._parser.feed(text)
            token.thought = before or self._parser.thinking
            token.logprob = None if piece.logprobs is None else piece.logprobs[i]
            self._tokens.append(token)
            if self._parser.thinking and not before:
                for waiting in self._tokens[self._free :]:  # the opening tag
                    waiting.thought = True
            if self._parser.certain:
                self._free = len(self._tokens)

    def _finish(self) -> None:
        events = self._parser.finish()
        if events and not self._tokens:  # of resumed tokens alone
            self._tokens.append(_Token(None))
        if events:
            self._tokens[-1].events += events
        self._free = len(self._tokens)

    def _call_id(self, number: int) -> str:
        """The same whenever the same request makes this call again; different in the next turn of a
        conversation, whatever its seed."""
        made = hashlib.blake2b(digest_size=12)
        seed = self._generation.sampling.seed
        made.update(f"{seed} {self._index} {number} ".encode())
        made.update(array("Q", self._generation.prompt_token_ids).tobytes())
        return f"call_{made.hexdigest()}"
