"""Token ids to text, one token at a time.

Invariant: the joined results of `push` and `flush` equal the decoding of all bytes at once, with
U+FFFD where the bytes are not UTF-8. Bytes that may still become a character are held back, three
at most; `whole` says that there are none.
"""

import codecs
from collections.abc import Sequence

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental decoding over a table of each token's bytes."""

    __slots__ = ("_decoder", "_pieces", "whole")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """pieces: the bytes of each id, empty for ids that give no text."""
        self._pieces = pieces
        self._decoder = _UTF8("replace")
        self.whole = True

    def push(self, token_id: int) -> str:
        """The text that is certain now."""
        piece = self._pieces[token_id]
        if self.whole and piece.isascii():
            return piece.decode("ascii")
        text = self._decoder.decode(piece)
        self.whole = not self._decoder.getstate()[0]
        return text

    def flush(self) -> str:
        """The end of the text: the bytes held back, as U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self.whole = True
        return text
