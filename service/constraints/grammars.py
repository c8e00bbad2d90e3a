"""Matchers made by llguidance, which compiles grammars for a vocabulary.

Invariant: a compiled grammar is kept unmoved, and every output gets a copy; equal texts are
compiled once while they are kept, or a few times, for as many lexers: outputs that share one cannot
have their masks made at once. What is kept is bounded in number and in memory. Texts are read
on threads with a deep stack (`deep_threads.py`), because llguidance recurses along chains of rules.
Its limits of work are set wherever it reads one, and looked at when a matcher is made and at each
of its tokens; what took too long once is refused at once when it comes again.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from quire.clients import large_json
from quire.engine.errors import RequestError
from quire.engine.request import Constraint, Vocabulary
from quire.engine.scheduling.matching import BeginWork, Mask, Matcher, Room, Step
from quire.service.constraints.deep_threads import DeepThreads, TooSlow
from quire.service.constraints.matcher_batch import MatcherBatch
from quire.service.constraints.sources import check_schema, field_of, grammar_of, with_exact_formats
from quire.service.constraints.tags import tags_as_text
from quire.service.constraints.text_matcher import REASON, TextMatcher, brief, reason
from quire.service.constraints.thoughts import AfterThoughts

MAX_KEPT = 64  # compiled grammars
MAX_KEPT_BYTES = 96 << 20  # that they take, the newest aside
# What one takes for each byte of its text, as measured: 14 to 24 of choices and of a regex, 21 to
# 250 of a schema (the most where it has many properties), 90 of rules.
_TAKEN, _TAKEN_BY_WORDS = 256, 24
LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 50_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 20_000,
}
CHOICE_FUEL = 5_000_000  # of the first lexer of choices, whose number and bytes are bounded
SHARING = 8  # outputs in turn that share a lexer, where a grammar may have several
QUICK = 0.05  # seconds; what takes longer to compile has one lexer

Key = tuple[str, str]  # a constraint's kind and text


class Grammars:
    """Implements `Matchers`."""

    def __init__(self, lexers: int = 1) -> None:
        """lexers: of one grammar, at most."""
        self._lexers = lexers
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._tokens: _Tokens | None = None
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._slow: OrderedDict[Key, str] = OrderedDict()  # what was said of it
        self._threads = DeepThreads()
        self._batch = MatcherBatch()

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """See Matchers. What is wrong with the vocabulary is told where a matcher is asked for."""
        with self._lock:
            self._vocabulary = vocabulary
        with contextlib.suppress(Exception):  # the library raises bare ones
            self._known_tokens()

    def compile(self, constraint: Constraint) -> Matcher:
        """See Matchers."""
        tokens = self._known_tokens()
        key = (constraint.kind, constraint.text)
        matcher = self._copy(key)
        if matcher is None:
            began = time.monotonic()
            matcher = TextMatcher(self._compiled(constraint, tokens), tokens)
            quick = time.monotonic() - began < QUICK
            self._keep(key, matcher.copy(), self._lexers if quick else 1)
        return AfterThoughts(matcher, tokens, constraint) if constraint.closes else matcher

    def write_to(self, room: Room) -> None:
        """See Matchers."""
        self._batch.room = room

    def set_concurrent_work(self, begin: BeginWork) -> None:
        """See Matchers."""
        self._batch.begin_work = begin

    def advance(self, steps: Sequence[Step]) -> Sequence[Mask | Exception]:
        """See Matchers."""
        return self._batch.advance(steps)

    def schema_fault(self, schema: Mapping[str, Any]) -> str:
        """Why no grammar can be made of a schema within the limits; empty: it can."""
        text = large_json.dumps(schema, ensure_ascii=False)
        try:
            check_schema(text)
            grammar = with_exact_formats(f"start: %json {text}")
            why = self._threads.run(lambda: LLMatcher.validate_grammar(grammar, limits=_limits("")))
        except (ValueError, TooSlow) as error:
            return str(error)
        return brief(why.partition("\n")[0])

    def _compiled(self, constraint: Constraint, tokens: "_Tokens") -> LLMatcher:
        key = constraint.kind, constraint.text
        with self._lock:
            known = self._slow.get(key)
        if known is not None:
            raise RequestError(field_of(constraint.kind), known)
        try:
            return self._threads.run(lambda: _compiled(constraint, tokens))
        except TooSlow as error:
            if error.own:
                self._remember_slow(key, str(error))
            raise RequestError(field_of(constraint.kind), str(error)) from error

    def _remember_slow(self, key: Key, words: str) -> None:
        with self._lock:
            self._slow[key] = words
            while len(self._slow) > MAX_KEPT:
                self._slow.popitem(last=False)

    def _known_tokens(self) -> "_Tokens":
        with self._lock:
            if self._tokens is None:
                if self._vocabulary is None:
                    raise RequestError("constraint", "no vocabulary is known to compile it for")
                self._tokens = _Tokens(self._vocabulary)
            return self._tokens

    def _copy(self, key: Key) -> TextMatcher | None:
        """Of what is kept; None: it is to be compiled, perhaps again."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            matcher = kept.copy()
        if matcher is None or not _spent(matcher):
            return matcher
        with self._lock:
            if kept.drop(matcher.lexer) and self._kept.get(key) is kept:
                self._kept_bytes -= _taken(key)
        return None

    def _keep(self, key: Key, base: TextMatcher, lexers: int) -> None:
        with self._lock:
            kept = self._kept.setdefault(key, _Kept(lexers))
            if not kept.add(base):
                return
            self._kept_bytes += _taken(key)
            while len(self._kept) > MAX_KEPT or (
                self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1
            ):
                oldest, gone = self._kept.popitem(last=False)
                self._kept_bytes -= _taken(oldest) * len(gone.bases)


class _Kept:
    """A grammar, compiled once for each of its lexers."""

    def __init__(self, lexers: int) -> None:
        self.bases: list[TextMatcher] = []
        self._lexers = lexers
        self._turn = 0

    def add(self, base: TextMatcher) -> bool:
        """Whether it is wanted."""
        if len(self.bases) >= self._lexers:
            return False
        self.bases.append(base)
        self._turn += 1  # the output that it was compiled for
        return True

    def drop(self, lexer: object) -> bool:
        """Forget what has it; whether anything had."""
        before = len(self.bases)
        self.bases = [base for base in self.bases if base.lexer is not lexer]
        return len(self.bases) < before

    def copy(self) -> TextMatcher | None:
        """For the next output. None: there may be a lexer more for it."""
        at = self._turn // SHARING
        if at >= len(self.bases) < self._lexers:
            return None
        self._turn += 1
        return self.bases[at % len(self.bases)].copy()


def _spent(matcher: TextMatcher) -> bool:
    """Whether a lexer has come to its limits, in whatever output: it stays so for all of them."""
    matcher.backend.compute_bitmask()
    return matcher.backend.is_error()


def _taken(key: Key) -> int:
    """Bytes that a compiled grammar takes, at most."""
    kind, text = key
    return len(text) * (_TAKEN_BY_WORDS if kind in ("choice", "regex") else _TAKEN)


class _Tokens:
    """A vocabulary as llguidance knows it. Implements thoughts.Tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends = list(vocabulary.eos_token_ids)
        text, self._tags = tags_as_text(vocabulary.tokenizer)
        self.backend = LLTokenizer(text, n_vocab=vocabulary.size, eos_token=ends or None)
        self.ends = frozenset((*ends, *self.backend.eos_tokens))
        self.mask_bytes = -(-vocabulary.size // 32) * 4

    def bytes_of(self, token_id: int) -> bytes:
        return self.backend.decode_bytes([token_id])

    def ids_of(self, text: bytes) -> list[int]:
        tag = self._tags.get(text)
        return self.backend.tokenize_bytes(text, parse_special=True) if tag is None else [tag]


def _compiled(constraint: Constraint, tokens: _Tokens) -> LLMatcher:
    field = field_of(constraint.kind)
    try:
        grammar = grammar_of(constraint)
    except ValueError as error:
        raise RequestError(field, str(error)[:REASON]) from error
    matcher = LLMatcher(tokens.backend, grammar, log_level=0, limits=_limits(constraint.kind))
    for tried in (matcher, _tried(matcher)):
        if tried.is_error():
            raise RequestError(field, reason(tried))
    return matcher


def _limits(kind: str) -> LLParserLimits:
    limits = LIMITS | ({"initial_lexer_fuel": CHOICE_FUEL} if kind == "choice" else {})
    return LLParserLimits(verbose_errors=False, **limits)  # type: ignore[arg-type]


def _tried(matcher: LLMatcher) -> LLMatcher:
    """A copy after a token and two masks: what its limits are too low for shows there."""
    trial = matcher.deep_copy()
    mask = trial.compute_bitmask()
    first = next((i for i, byte in enumerate(mask) if byte), None)
    if first is not None and not trial.is_error() and not trial.is_stopped():
        trial.consume_token(8 * first + (mask[first] & -mask[first]).bit_length() - 1)
        trial.compute_bitmask()
    return trial
