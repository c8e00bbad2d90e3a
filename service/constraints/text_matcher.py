"""One output's way through a grammar of llguidance's.

Invariant: whatever ends a matcher is raised where it is noticed, in llguidance's words on one line.
"""

import re

from llguidance import LLMatcher

from quire.engine.errors import ConstraintError
from quire.service.constraints.thoughts import Tokens

REFUEL = 16  # tokens taken in a row: what they may cost is renewed by a mask
REASON = 500  # characters of llguidance's reason that are repeated
_SCHEMA = "\n   1 | start: %json {"  # as llguidance shows it on, the whole of it
_PLACE = re.compile(
    r"^at \d+\(\d+\): (failed to compile JSON schema: )?"
    r"|\. Enable 'coerce_one_of' option to approximate oneOf with anyOf"  # which is refused
)
_WORDS = {"NoExtensionBias": "nothing that ends satisfies it"}


class TextMatcher:
    """Implements `Matcher` for text from its first byte on."""

    def __init__(self, backend: LLMatcher, tokens: Tokens, lexer: object | None = None) -> None:
        """lexer: identifies the lexer that llguidance's copies share; it is locked while a mask is
        made. None: one of its own."""
        self.backend = backend
        self.tokens = tokens
        self.lexer = lexer or object()
        self._accepted = 0

    def mask(self) -> bytearray:
        """See Matcher."""
        size = self.tokens.mask_bytes
        mask = bytearray(self.backend.compute_bitmask()[:size].ljust(size, b"\0"))
        self.check()
        for i in self.tokens.ends:
            mask[i >> 3] &= ~(1 << (i & 7))
        return mask

    def accept(self, token_id: int) -> None:
        """See Matcher."""
        if not self.backend.consume_token(token_id):
            raise self.refused(token_id)
        self._accepted += 1
        if self._accepted % REFUEL == 0:
            self.backend.compute_bitmask()
        self.check()

    def refused(self, token_id: int) -> ConstraintError:
        """Why a token was not taken."""
        return ConstraintError(reason(self.backend) or f"token {token_id} may not follow")

    def check(self) -> None:
        """Raises ConstraintError where a limit has ended it."""
        if self.backend.is_error():
            raise ConstraintError(reason(self.backend))

    def may_end(self) -> bool:
        """See Matcher."""
        return self.backend.is_accepting()

    def copy(self) -> "TextMatcher":
        """See Matcher."""
        return TextMatcher(self.backend.deep_copy(), self.tokens, self.lexer)


def reason(matcher: LLMatcher) -> str:
    return brief(matcher.get_error())


def brief(words: str) -> str:
    """llguidance's words, on one line, without a schema, marks of what it has left out, advice that
    is none here, and where in itself a fault of its own was."""
    words = (
        words.partition(_SCHEMA)[0]
        .partition("<backtrace>")[0][: 4 * REASON]
        .replace("<non-verbose/>", "")
    )
    said = " ".join(words.split())
    return _WORDS.get(said, _PLACE.sub("", said))[:REASON]
