"""Matchers made by llguidance, which compiles grammars for a vocabulary.

Invariant: a compiled grammar is kept unmoved, and every output gets a copy; equal texts are
compiled once while they are kept. What is kept is bounded in number and in bytes of text. Compiling
runs on a thread with a deep stack, because llguidance recurses along chains of rules. Its limits of
work are set for every matcher, and looked at when it is made and at each of its tokens.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from quire.engine.errors import ConstraintError, RequestError
from quire.engine.request import Constraint, Vocabulary
from quire.engine.scheduling.matching import Matcher
from quire.service.constraints.sources import grammar_of
from quire.service.constraints.thoughts import AfterThoughts

T = TypeVar("T")

MAX_KEPT = 64  # compiled grammars
MAX_KEPT_BYTES = 4 << 20  # of their texts
STACK_BYTES = 256 << 20  # of a compiling thread; only what is used takes memory
LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 50_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 20_000,
}
_REASON = 500  # characters of llguidance's reason that are repeated

_stack_lock = threading.Lock()  # the size of new threads' stacks is the process's


class Grammars:
    """Implements `Matchers`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._tokens: _Tokens | None = None
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._kept_bytes = 0

    def learn(self, vocabulary: Vocabulary) -> None:
        """See Matchers. The vocabulary is read when the first matcher is asked for."""
        with self._lock:
            self._vocabulary = vocabulary

    def compile(self, constraint: Constraint) -> Matcher:
        """See Matchers."""
        tokens = self._known_tokens()
        key = (constraint.kind, constraint.text)
        with self._lock:
            base = self._kept.get(key)
            if base is not None:
                self._kept.move_to_end(key)
                base = base.deep_copy()
        if base is None:
            base = _deep(lambda: _compiled(constraint, tokens))
            self._keep(key, base.deep_copy())
        matcher = TextMatcher(base, tokens)
        return AfterThoughts(matcher, tokens, constraint) if constraint.closes else matcher

    def _known_tokens(self) -> "_Tokens":
        with self._lock:
            if self._tokens is None:
                if self._vocabulary is None:
                    raise RequestError("constraint", "no vocabulary is known to compile it for")
                self._tokens = _Tokens(self._vocabulary)
            return self._tokens

    def _keep(self, key: tuple[str, str], base: LLMatcher) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = base
            self._kept_bytes += len(key[1])
            while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
                (_, text), _ = self._kept.popitem(last=False)
                self._kept_bytes -= len(text)


class _Tokens:
    """A vocabulary as llguidance knows it. Implements thoughts.Tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends = list(vocabulary.eos_token_ids)
        self.backend = LLTokenizer(
            vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=ends or None
        )
        self.ends = frozenset((*ends, *self.backend.eos_tokens))
        self.mask_bytes = -(-vocabulary.size // 32) * 4

    def bytes_of(self, token_id: int) -> bytes:
        return self.backend.decode_bytes([token_id])

    def ids_of(self, text: bytes) -> list[int]:
        return self.backend.tokenize_bytes(text, parse_special=True)


class TextMatcher:
    """Implements `Matcher` for text from its first byte on."""

    def __init__(self, matcher: LLMatcher, tokens: _Tokens) -> None:
        self._matcher = matcher
        self._tokens = tokens

    def mask(self) -> bytearray:
        """See Matcher."""
        size = self._tokens.mask_bytes
        mask = bytearray(self._matcher.compute_bitmask()[:size].ljust(size, b"\0"))
        if self._matcher.is_error():
            raise ConstraintError(_reason(self._matcher))
        for i in self._tokens.ends:
            mask[i >> 3] &= ~(1 << (i & 7))
        return mask

    def accept(self, token_id: int) -> None:
        """See Matcher."""
        if not self._matcher.consume_token(token_id) or self._matcher.is_error():
            raise ConstraintError(_reason(self._matcher) or f"token {token_id} may not follow")

    def may_end(self) -> bool:
        """See Matcher."""
        return self._matcher.is_accepting()

    def copy(self) -> "TextMatcher":
        """See Matcher."""
        return TextMatcher(self._matcher.deep_copy(), self._tokens)


def _compiled(constraint: Constraint, tokens: _Tokens) -> LLMatcher:
    field = f"constraint.{constraint.kind}"
    try:
        grammar = grammar_of(constraint)
    except ValueError as error:
        raise RequestError(field, str(error)[:_REASON]) from error
    limits = LLParserLimits(verbose_errors=False, **LIMITS)  # type: ignore[arg-type]
    matcher = LLMatcher(tokens.backend, grammar, log_level=0, limits=limits)
    for tried in (matcher, _tried(matcher)):
        if tried.is_error():
            raise RequestError(field, _reason(tried))
    return matcher


def _tried(matcher: LLMatcher) -> LLMatcher:
    """A copy after a token and two masks: what its limits are too low for shows there."""
    trial = matcher.deep_copy()
    mask = trial.compute_bitmask()
    first = next((i for i, byte in enumerate(mask) if byte), None)
    if first is not None and not trial.is_error() and not trial.is_stopped():
        trial.consume_token(8 * first + (mask[first] & -mask[first]).bit_length() - 1)
        trial.compute_bitmask()
    return trial


def _reason(matcher: LLMatcher) -> str:
    """llguidance's words, on one line, without its marks of what it has left out."""
    words = matcher.get_error().replace("<non-verbose/>", "")
    return " ".join(words.split())[:_REASON]


def _deep(work: Callable[[], T]) -> T:
    """What work() returns or raises, on a thread of its own with a deep stack."""
    result: list[T] = []
    fault: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            fault.append(error)

    thread = threading.Thread(target=run, name="quire-compile", daemon=True)
    with _stack_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if fault:
        raise fault[0]
    return result[0]
