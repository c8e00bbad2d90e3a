"""Many outputs under constraints take their tokens at once, and each as if it were alone."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLExecutor
from tokenizers import Tokenizer

from quire.engine.errors import ConstraintError
from quire.engine.request import Constraint, Vocabulary
from quire.engine.scheduling.matching import Mask, Matcher, one_by_one
from quire.service.constraints import grammars as grammar_module
from quire.service.constraints import matcher_batch
from quire.service.constraints.grammars import LIMITS, SHARING, Grammars
from quire.service.constraints.text_matcher import TextMatcher
from quire.service.models import pocket
from quire.service.text.thinking import CLOSES, OPENS

EOS, SIZE = 2, 4100  # ids above the tokenizer's, in a last word that is not full
TOKENIZER = Tokenizer.from_file(str(Path(pocket.directory()) / "tokenizer.json"))
SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}'
DEEP = "(" * 60 + "[a-z ]" + "*)" * 60
CONSTRAINTS = (
    Constraint("json_schema", SCHEMA),
    Constraint("regex", "[a-z0-9 ]{1,400}"),
    Constraint("regex", DEEP),
    Constraint("choice", '["yes", "no", "certainly"]'),
    Constraint("json_object", ""),
    Constraint("regex", "[0-9 ]+", "", CLOSES),
    Constraint("regex", "[0-9 ]+", OPENS, CLOSES),
    Constraint("json_schema", '{"type": "array", "items": {"type": "integer"}}'),
)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars()
    made.set_vocabulary(Vocabulary(TOKENIZER.to_str(), SIZE, (EOS,)))
    return made


def told(found: Mask | Exception) -> bytes | str:
    return f"{type(found).__name__}: {found}" if isinstance(found, Exception) else bytes(found)


def drawn(mask: bytes, chance: random.Random) -> int:
    """Some allowed id; now and then one that is not."""
    ids = [i for i in range(SIZE) if mask[i >> 3] & 1 << (i & 7)]
    return chance.choice(ids) if ids and chance.random() < 0.97 else chance.randrange(256, SIZE)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as on a larger machine."""
    monkeypatch.setattr(matcher_batch, "THREADS", 3)


@pytest.mark.parametrize("times", (1, 4), ids=("few", "many"))
def test_what_many_take_together_is_what_each_takes_alone(grammars: Grammars, times: int) -> None:
    """Under several grammars, in and behind thoughts, with tokens that may not follow, and with
    more and fewer matchers from step to step."""
    assert len(CONSTRAINTS) < matcher_batch.FEW <= 4 * len(CONSTRAINTS) - 4
    chance = random.Random(7)
    alone: list[Matcher] = [grammars.compile(one) for one in CONSTRAINTS * times]
    close = TOKENIZER.encode(f"so{CLOSES}\n\n4", add_special_tokens=False).ids
    masks = [bytes(one.mask()) for one in alone]
    refused = 0
    for step in range(30):
        many = [one.copy() for one in alone]
        tokens = [drawn(mask, chance) for mask in masks]
        tokens[5] = close[step] if step < len(close) else tokens[5]
        expected = [told(one) for one in one_by_one(list(zip(alone, tokens, strict=True)))]
        found = grammars.advance(list(zip(many, tokens, strict=True)))
        assert [told(one) for one in found] == expected
        for at, one in enumerate(expected):
            if isinstance(one, str):  # it is begun again
                refused += 1
                alone[at] = grammars.compile((CONSTRAINTS * times)[at])
                masks[at] = bytes(alone[at].mask())
            else:
                masks[at] = one
                assert many[at].may_end() == alone[at].may_end()
    assert refused


def test_the_same_matchers_are_asked_again_and_then_others_as_many(grammars: Grammars) -> None:
    chance = random.Random(9)
    alone = [grammars.compile(CONSTRAINTS[i % 2]) for i in range(matcher_batch.FEW)]
    many = [one.copy() for one in alone]
    for step in range(9):
        if step % 3 == 2:  # they stand in another order, and one is another
            order = chance.sample(range(len(many)), len(many))
            alone, many = [alone[i] for i in order], [many[i] for i in order]
            alone[0] = grammars.compile(CONSTRAINTS[1])
            many[0] = alone[0].copy()
        masks = [one.mask() for one in alone]
        ids = [next(i for i in range(SIZE) if mask[i >> 3] & 1 << (i & 7)) for mask in masks]
        expected = one_by_one(list(zip(alone, ids, strict=True)))
        found = grammars.advance(list(zip(many, ids, strict=True)))
        assert [told(one) for one in found] == [told(one) for one in expected]


@pytest.mark.parametrize("fails", (False, True))
def test_what_is_begun_beside_many_masks_is_waited_for(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    said: list[str] = []

    class Executor:
        def __init__(self, num_threads: int) -> None:
            self._own = LLExecutor(num_threads=num_threads)
            self.consume_token_par = self._own.consume_token_par

        def unsafe_compute_mask_ptr(self, *asked: Any) -> None:
            self._own.unsafe_compute_mask_ptr(*asked)
            said.append("masks")
            if fails:
                raise OSError("afterwards")

    def begin() -> Callable[[], None]:
        said.append("begun")
        return lambda: said.append("waited")

    monkeypatch.setattr(matcher_batch, "LLExecutor", Executor)
    many = [grammars.compile(CONSTRAINTS[i % 2]) for i in range(matcher_batch.FEW)]
    steps = [(one.copy(), drawn(bytes(one.mask()), random.Random(1))) for one in many]
    asked = matcher_batch.MatcherBatch()
    asked.begin_work = begin
    asked.advance([(one, steps[at][1]) for at, one in enumerate(many[1:], 1)])
    assert not said, "few are made at once"
    with pytest.raises(OSError, match="afterwards") if fails else contextlib.nullcontext():
        asked.advance(steps)
    assert said == ["begun", "masks", "waited"]


def test_a_limit_that_is_reached_ends_one_of_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LIMITS, "step_max_items", 12)
    heavy = "start: a*\na: b | c\nb: /[a-z]+/ d?\nc: /[a-y]+/ d?\nd: /[0-9]+/ a?"
    weak = Grammars()
    weak.set_vocabulary(Vocabulary(TOKENIZER.to_str(), SIZE, (EOS,)))
    doomed = weak.compile(Constraint("grammar", heavy))
    twin = doomed.copy()
    monkeypatch.undo()
    others = [weak.compile(Constraint("regex", "[a-z0-9 ]{9,}")) for _ in range(matcher_batch.FEW)]
    ids = TOKENIZER.encode("ab1ab2ab3ab4ab5ab6", add_special_tokens=False).ids
    ended = []
    for token_id in ids:
        (alone,) = one_by_one([(twin, token_id)])
        first, *rest = weak.advance([(one, token_id) for one in (doomed, *others)])
        assert not any(isinstance(one, Exception) for one in rest)
        assert told(first) == told(alone)
        ended += [str(first)] if isinstance(first, Exception) else []
    assert ended and "items" in ended[0]


def test_a_lexer_that_outputs_have_used_up_is_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of one grammar share it, with its limits: the next output gets one of its own."""
    monkeypatch.setitem(LIMITS, "max_lexer_states", 1000)
    shared = Grammars()
    shared.set_vocabulary(Vocabulary(TOKENIZER.to_str(), SIZE, (EOS,)))
    many = Constraint("regex", "(0|1)*1(0|1){14}")  # remembers 15 digits: 32768 states
    ids = [TOKENIZER.token_to_id(digit) for digit in "01"]
    chance = random.Random(3)
    ended = 0
    for _ in range(12):
        one = shared.compile(many)
        one.mask()  # raises where the lexer is used up
        try:
            for _ in range(200):
                one.accept(chance.choice(ids))
                one.mask()
        except ConstraintError as error:
            assert "lexer" in str(error)
            ended += 1
    assert 0 < ended < 6


def test_a_long_output_that_is_resumed_may_cost_what_it_cost_token_by_token(
    grammars: Grammars,
) -> None:
    chance, ids = random.Random(3), [TOKENIZER.token_to_id(digit) for digit in "01"]
    resumed = grammars.compile(Constraint("regex", "(0|1)*1(0|1){14}"))
    for _ in range(3500):
        resumed.accept(chance.choice(ids))
    assert any(resumed.mask())


def test_outputs_under_one_grammar_are_parted_among_lexers() -> None:
    """So that masks are made at once; a few outputs in turn share what one of them has learnt."""
    parted = Grammars(3)
    parted.set_vocabulary(Vocabulary(TOKENIZER.to_str(), SIZE, (EOS,)))
    made = [parted.compile(CONSTRAINTS[0]) for _ in range(5 * SHARING)]
    lexers = [one.lexer for one in made if isinstance(one, TextMatcher)]
    assert len(lexers) == len(made) and len(set(lexers)) == 3
    assert all(len(set(lexers[at : at + SHARING])) == 1 for at in range(0, len(made), SHARING))
    assert lexers[0] is lexers[3 * SHARING] and made[0].copy().lexer is lexers[0]
    assert made[0].mask() == made[SHARING].mask() == made[-1].mask()


def test_a_vocabulary_is_read_once_when_there_is_time_or_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[Vocabulary] = []
    tokens = grammar_module._Tokens

    def read(vocabulary: Vocabulary) -> Any:
        reads.append(vocabulary)
        return tokens(vocabulary)

    monkeypatch.setattr(grammar_module, "_Tokens", read)
    vocabulary = Vocabulary(TOKENIZER.to_str(), SIZE, (EOS,))
    idle, asked = Grammars(), Grammars()
    for made in (idle, asked):
        assert not made.get_ready()
        made.set_vocabulary(vocabulary)
    assert not reads
    assert idle.get_ready() and not idle.get_ready()
    assert reads == [vocabulary]
    for made in (idle, asked):
        made.compile(CONSTRAINTS[1])
    assert reads == [vocabulary] * 2
    asked.get_ready()
    assert not asked.get_ready() and reads == [vocabulary] * 2
