"""One index's tokens on their way to text: ids leave together with the text they made.

Invariant: what `take` returns ends at the end of a token, never inside a character, and holds no
character that may belong to a stop string. So whoever resumes from the ids received so far holds
exactly the text that replaying those ids gives. `end` and a match give the rest.

    pending ids    [ a | b | c | d | e ]
    pending text   [ aaaabbccc    dd   ]   c and d share a character: no mark between them
    marks                ^ ^      ^        ends of tokens at which the text is whole
"""

from collections.abc import Sequence

from quire.engine.request import TokenLogprob
from quire.service.text.detokenizer import Detokenizer
from quire.service.text.stop_strings import StopFinder, StopMatch


class Piece:
    """Ids, their log-probabilities (None: not asked for) and their text, ready to be sent."""

    __slots__ = ("ids", "logprobs", "text")

    def __init__(self, ids: list[int], text: str, logprobs: list[TokenLogprob] | None) -> None:
        self.ids = ids
        self.text = text
        self.logprobs = logprobs


class TextStream:
    """Holds back what is not certain. Counts outputs, resumed ones included, for min_tokens."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        stops: Sequence[str] = (),
        *,
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(pieces)
        self._finder = StopFinder(stops) if stops else None
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._count = 0
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text = ""
        self._text_start = 0  # characters sent before _text
        self._marks: list[tuple[int, int]] = []  # (ids, characters) of the pending, ascending

    def replay(self, token_ids: Sequence[int]) -> StopMatch | None:
        """Go through outputs that the client holds already, with their text: none is sent again.

        A part of a character at their end is all that is still to come of them.
        """
        for token_id in token_ids:
            match = self.push(token_id)
            if match is not None:
                return match
        self._text_start += len(self._text)
        self._text = ""
        self._ids.clear()
        self._marks.clear()
        return None

    def push(self, token_id: int, logprob: TokenLogprob | None = None) -> StopMatch | None:
        """Take the next token. A match ends the index; `take` then gives all up to the cut."""
        self._count += 1
        self._ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        text = self._detokenizer.push(token_id)
        self._text += text
        if self._finder is not None:
            match = self._finder.feed(text, honour=self._count >= self._min_tokens)
            if match is not None:
                self._cut(match)
                return match
        if self._detokenizer.whole:
            self._marks.append((len(self._ids), len(self._text)))
        return None

    def push_silent(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take the id that ended the index: it is counted and makes no text."""
        self._count += 1
        self._ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)

    def take(self) -> Piece | None:
        """What may be sent now, or None."""
        held = self._finder.held if self._finder is not None else 0
        limit = max(len(self._text) - held, 0)  # of a resumed stream, some of it has been sent
        marks = self._marks
        last = len(marks) - 1
        while last >= 0 and marks[last][1] > limit:
            last -= 1
        if last < 0:
            return None
        ids, chars = marks[last]
        self._marks = [(i - ids, c - chars) for i, c in marks[last + 1 :]]
        return self._split(ids, chars)

    def end(self) -> Piece | None:
        """The index has ended: all that was held back."""
        self._text += self._detokenizer.flush()
        self._marks.clear()
        return self._split(len(self._ids), len(self._text))

    def _cut(self, match: StopMatch) -> None:
        cut = match.end if self._include_stop else match.start
        self._text = self._text[: max(cut - self._text_start, 0)]
        self._marks = [(len(self._ids), len(self._text))]
        self._finder = None

    def _split(self, ids: int, chars: int) -> Piece | None:
        if not ids and not chars:
            return None
        logprobs = self._logprobs[:ids] if self._logprobs else None
        piece = Piece(self._ids[:ids], self._text[:chars], logprobs)
        self._ids = self._ids[ids:]
        self._logprobs = self._logprobs[ids:]
        self._text = self._text[chars:]
        self._text_start += chars
        return piece
