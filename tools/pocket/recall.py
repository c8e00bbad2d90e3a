"""Facts stated early and asked late.

Invariant: within one conversation a (name, attribute) pair is stated once, so that each question
has one answer; a question about anything else is answered by saying so. Held-out conversations use
held-out names alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import heldout
import lexicon
import stories
from draw import Draw
from repeat import DIGITS, LOWER

ATTRIBUTES = (
    "code", "code", "code", "password", "colour", "animal", "city", "fruit", "tool", "job", "room",
)  # fmt: skip
WORD_VALUES = {
    "colour": lexicon.COLOURS,
    "animal": lexicon.ANIMALS,
    "city": lexicon.CITIES,
    "fruit": lexicon.FRUITS,
    "tool": lexicon.THINGS,
    "job": lexicon.JOBS,
}
COUNTED = ("animal", "fruit", "tool", "job")
"""Attributes whose value may be told with an article."""
STATEMENTS = ("The {a} of {n} is {v}.", "{n}'s {a} is {v}.")
QUESTIONS = ("What is the {a} of {n}?", "What is {n}'s {a}?")
INTRODUCTIONS = (
    "Remember these facts.", "Please remember:", "Here are some facts to keep in mind.",
    "Note the following.", "Keep this in mind.",
)  # fmt: skip
UNTOLD = "You have not told me that."
ACKNOWLEDGEMENTS = ("Noted.", "I will remember.", "Understood.", "Got it.")


@dataclass(frozen=True)
class Fact:
    """`name`'s `attribute` is `value`; `form` says which wording states it."""

    name: str
    attribute: str
    value: str
    form: int

    @property
    def statement(self) -> str:
        return STATEMENTS[self.form].format(a=self.attribute, n=self.name, v=self.value)

    def question(self, form: int) -> tuple[str, str]:
        """The question in wording `form`, and its answer."""
        filled = {"a": self.attribute, "n": self.name, "v": self.value}
        return QUESTIONS[form].format(**filled), STATEMENTS[form].format(**filled)


def _value(draw: Draw, attribute: str) -> str:
    if attribute == "code":
        return "".join(draw.picks(DIGITS, 4))
    if attribute == "room":
        return str(draw.between(100, 999))
    if attribute == "password":
        # Runs of at most three letters: no invented name can appear in one by accident.
        groups = ["".join(draw.picks(LOWER, 2)) + "".join(draw.picks(DIGITS, 1)) for _ in range(2)]
        return "".join(groups)
    word = draw.pick(WORD_VALUES[attribute])
    return stories.article(f"a {word}") if attribute in COUNTED and draw.chance(0.3) else word


def facts(draw: Draw, count: int, held_out: bool = False) -> list[Fact]:
    """`count` facts of different (name, attribute) pairs, in one wording or mixed."""
    names = heldout.HELD_OUT_NAMES if held_out else heldout.TRAINED_NAMES
    pool = draw.distinct(names, count)
    if not held_out and draw.chance(0.3):
        some = min(count, draw.between(1, 20))
        pool[:some] = draw.distinct(lexicon.FIRST_NAMES + lexicon.MORE_NAMES, some)
    if draw.chance(0.3):
        pool = draw.picks(pool, count)
    style = draw.below(3)
    only = draw.pick(ATTRIBUTES) if draw.chance(0.3) else None
    made: dict[tuple[str, str], Fact] = {}
    for name in pool:
        attribute = only or draw.pick(ATTRIBUTES)
        form = draw.below(2) if style == 2 else style
        value = _value(draw, attribute)
        made.setdefault((name, attribute), Fact(name, attribute, value, form))
    return list(made.values())


def block(draw: Draw, stated: list[Fact]) -> str:
    """The facts as one text, one a line or in running sentences."""
    separator = "\n" if draw.chance(0.6) else " "
    facts_text = separator.join(fact.statement for fact in stated)
    return draw.pick(INTRODUCTIONS) + draw.pick(("\n", separator)) + facts_text


def question(draw: Draw, fact: Fact) -> tuple[str, str]:
    """A question about `fact`, usually in the wording that stated it."""
    form = fact.form if draw.chance(0.75) else 1 - fact.form
    return fact.question(form)


def absent_question(draw: Draw, stated: list[Fact]) -> tuple[str, str]:
    """A question about something that was not stated: of another name, or of another attribute."""
    taken = {(fact.name, fact.attribute) for fact in stated}
    while True:
        known = bool(stated) and draw.chance(0.3)
        name = draw.pick(stated).name if known else draw.pick(heldout.TRAINED_NAMES)
        attribute = draw.pick(ATTRIBUTES)
        if (name, attribute) not in taken:
            asked, _ = Fact(name, attribute, "", draw.below(2)).question(draw.below(2))
            return asked, UNTOLD
