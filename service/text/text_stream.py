"""One index's tokens on their way to text: ids leave together with the text they made.

Invariant: what `take` returns ends at the end of a token, never inside a character, and holds no
character that may belong to a stop string. So whoever resumes from the ids received so far holds
exactly the text that replaying those ids gives. `end` and a match give the rest. Every step is
linear in what it handles: nothing that waits is joined or looked at again.

    pending ids    [ a | b | c | d | e ]
    their texts    [ aaa|abb|cc |cdd|  ]   c and d share a character: no mark between them
    marks                ^   ^       ^     ends of tokens at which the text is whole
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from quire.engine.request import TokenLogprob
from quire.service.text.detokenizer import Detokenizer
from quire.service.text.stop_strings import StopAutomaton, StopFinder, StopMatch


class Piece:
    """Ids, the text that each made (empty: no text), and their log-probabilities (None: not asked
    for), ready to be sent. Text alone is what a resumed part of a character has become."""

    __slots__ = ("ids", "logprobs", "texts")

    def __init__(
        self, ids: list[int], texts: list[str], logprobs: list[TokenLogprob] | None
    ) -> None:
        self.ids = ids
        self.texts = texts
        self.logprobs = logprobs

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)

    def parts(self, size: int) -> Iterable["Piece"]:
        """Pieces of at most this many tokens each, which together are this one."""
        if len(self.ids) <= size:
            return (self,)
        return (self._part(slice(at, at + size)) for at in range(0, len(self.ids), size))

    def _part(self, part: slice) -> "Piece":
        logprobs = None if self.logprobs is None else self.logprobs[part]
        return Piece(self.ids[part], self.texts[part], logprobs)


class TextStream:
    """Holds back text that is not certain. Counts outputs, resumed ones included, for min_tokens.
    Positions are counted from the stream's beginning: ids in outputs, text in characters."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        stops: Sequence[str] | StopAutomaton | None = None,
        *,
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(pieces)
        self._finder = StopFinder(stops) if stops else None
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._count = 0  # ids that have come
        self._chars = 0  # characters that have come
        self._gone = 0  # ids that have been sent, or were resumed
        self._gone_chars = 0
        self._free = 0  # ids that may be sent
        self._ids: list[int] = []  # those that wait
        self._texts: list[str] = []  # of each
        self._logprobs: list[TokenLogprob] = []
        self._marks: deque[tuple[int, int]] = deque()  # places where the text is whole, ascending

    def replay(
        self, token_ids: Sequence[int], heard: Callable[[str], object] = str
    ) -> StopMatch | None:
        """Process outputs that the client holds already, without sending their text. If they end
        within a character, the rest of it comes later. heard: called with each one's text, up to
        the cut if they hold a stop string."""
        match = None
        for token_id in token_ids:
            text, match = self._read(token_id)
            self._texts.append(text)
            if match is not None:
                self._cut(match)
                break
        for text in self._texts:
            heard(text)
        self._texts.clear()
        self._gone = self._free = self._count
        self._gone_chars = self._chars
        return match

    def push(self, token_id: int, logprob: TokenLogprob | None = None) -> StopMatch | None:
        """Take the next token. A match ends the index; `take` then gives all up to the cut."""
        text, match = self._read(token_id)
        self._keep(token_id, text, logprob)
        if match is not None:
            self._cut(match)
        elif self._detokenizer.whole:
            self._marks.append((self._count, self._chars))
        return match

    def push_silent(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take the id that ended the index: it is counted and makes no text."""
        self._count += 1
        self._keep(token_id, "", logprob)

    def take(self) -> Piece | None:
        """What can be sent now, or None."""
        held = self._finder.held if self._finder is not None else 0
        # What is held never begins earlier than before, so each mark is passed once.
        while self._marks and self._marks[0][1] <= self._chars - held:
            self._free = self._marks.popleft()[0]
        return self._split(self._free - self._gone)

    def end(self) -> Piece | None:
        """The index has ended: all that was held back."""
        rest = self._detokenizer.flush()
        if not self._ids:
            return Piece([], [rest], None) if rest else None
        self._texts[-1] += rest
        return self._split(len(self._ids))

    def _read(self, token_id: int) -> tuple[str, StopMatch | None]:
        """The token's text, and the stop string that it completes."""
        self._count += 1
        text = self._detokenizer.push(token_id)
        self._chars += len(text)
        if self._finder is None:
            return text, None
        return text, self._finder.feed(text, honour=self._count >= self._min_tokens)

    def _keep(self, token_id: int, text: str, logprob: TokenLogprob | None) -> None:
        self._ids.append(token_id)
        self._texts.append(text)
        if logprob is not None:
            self._logprobs.append(logprob)

    def _cut(self, match: StopMatch) -> None:
        """Remove the text after the cut from the pending tokens; of a resumed stream, a part of the
        stop string may have been sent."""
        cut = match.end if self._include_stop else match.start
        excess = self._chars - max(cut, self._gone_chars)
        for i in range(len(self._texts) - 1, -1, -1):
            if excess <= 0:
                break
            text = self._texts[i]
            self._texts[i] = text[: max(len(text) - excess, 0)]
            excess -= len(text)
        self._free = self._count
        self._marks.clear()
        self._finder = None

    def _split(self, ids: int) -> Piece | None:
        if ids <= 0:
            return None
        logprobs = self._logprobs[:ids] if self._logprobs else None
        piece = Piece(self._ids[:ids], self._texts[:ids], logprobs)
        del self._ids[:ids], self._texts[:ids], self._logprobs[:ids]
        self._gone += ids
        self._gone_chars += sum(map(len, piece.texts))
        return piece
