"""Counting, listing and small sums.

Invariant: a held-out range or pair appears in no trained turn; sums whose addends both lie within
`heldout.MAX_ADDEND` are split, larger ones are always trained.
"""

from __future__ import annotations

import heldout
import lexicon
from draw import Draw
from repeat import LOWER

RANGE_KINDS = ("up", "down", "twos", "letters")
_STEP = {"up": 1, "down": -1, "twos": 2}
_FORMS = {
    "up": ("Count from {} to {}.", "List the numbers from {} to {}."),
    "down": ("Count down from {} to {}.",),
    "twos": ("Count by twos from {} to {}.",),
    "letters": ("List the letters from {} to {}.",),
}


def _ends(draw: Draw, kind: str) -> tuple[int, int]:
    if kind == "letters":
        first = draw.below(25)
        return first, draw.between(first + 1, 25)
    low, steps = draw.below(200), draw.between(1, 20)
    high = low + steps * abs(_STEP[kind])
    return (high, low) if kind == "down" else (low, high)


def _items(kind: str, first: int, last: int) -> list[str]:
    if kind == "letters":
        return list(LOWER[first : last + 1])
    step = _STEP[kind]
    return [str(n) for n in range(first, last + (1 if step > 0 else -1), step)]


def range_turn(draw: Draw, held_out: bool = False, kind: str | None = None) -> tuple[str, str]:
    """One counting or listing (question, answer)."""
    kind = kind or draw.weighted((("up", 3.0), ("down", 2.0), ("twos", 2.0), ("letters", 1.0)))
    while True:
        items = _items(kind, *_ends(draw, kind))
        if heldout.range_held_out(kind, items[0], items[-1]) == held_out:
            question = draw.pick(_FORMS[kind]).format(items[0], items[-1])
            return question, ", ".join(items)


def week_turn(draw: Draw) -> tuple[str, str]:
    """Days or months in order."""
    names, what = draw.pick(((lexicon.DAYS, "days"), (lexicon.MONTHS, "months")))
    first = draw.below(len(names) - 1)
    last = draw.between(first + 1, len(names) - 1)
    question = f"List the {what} from {names[first]} to {names[last]}."
    return question, ", ".join(names[first : last + 1])


_SUM_FORMS = (
    ("What is {a} + {b}?", "{a} + {b} = {c}"),
    ("What is {a} plus {b}?", "{a} + {b} = {c}"),
    ("{a} + {b} =", "{a} + {b} = {c}"),
    ("Add {a} and {b}.", "{a} + {b} = {c}"),
    ("How much is {a} + {b}?", "{a} + {b} = {c}"),
    ("{a} + {b}", "{a} + {b} = {c}"),
    ("{a}+{b}", "{a} + {b} = {c}"),
    ("What's {a} + {b}?", "{a} + {b} = {c}"),
)


def _addends(draw: Draw, held_out: bool) -> tuple[int, int]:
    sizes = (9, 99) if held_out else (9, 99, 99, 99, 999)
    while True:
        a = draw.below(draw.pick(sizes) + 1)
        b = draw.below(draw.pick(sizes) + 1)
        if heldout.pair_held_out(a, b) == held_out:
            return a, b


def sum_turn(draw: Draw, held_out: bool = False) -> tuple[str, str]:
    """One sum (question, answer)."""
    a, b = _addends(draw, held_out)
    question, answer = draw.pick(_SUM_FORMS)
    return question.format(a=a, b=b), answer.format(a=a, b=b, c=a + b)


def difference_turn(draw: Draw) -> tuple[str, str]:
    """One difference whose sum is a trained pair."""
    a, b = _addends(draw, held_out=False)
    form = draw.pick(("What is {c} - {a}?", "What is {c} minus {a}?", "{c} - {a}"))
    return form.format(a=a, c=a + b), f"{a + b} - {a} = {b}"
