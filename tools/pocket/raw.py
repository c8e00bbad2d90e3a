"""Plain text without turns, to be continued.

Invariant: a text ends with a paragraph that its beginning decides (a count, or a fact told again),
or with a whole story; held-out ranges and names are in no trained text.
"""

from __future__ import annotations

import counting
import recall
import stories
from draw import Draw


def _paragraph(draw: Draw) -> str:
    return stories.story(draw) if draw.chance(0.7) else stories.prose(draw, draw.between(2, 6))


def count(draw: Draw, held_out: bool = False) -> tuple[str, str]:
    """(what is given, how it goes on): a count or a list."""
    question, answer = counting.range_turn(draw, held_out)
    return question.rstrip(".") + ":", f" {answer}."


def again(draw: Draw, facts: int, held_out: bool = False) -> tuple[str, str]:
    """(what is given, how it goes on): facts, other text, one of the facts told again."""
    stated = recall.facts(draw, facts, held_out)
    fact = draw.pick(stated)
    told = recall.block(draw, stated)
    if draw.chance(0.7):
        told += "\n" + stories.prose(draw, draw.between(1, 5))
    whole = f"Again: {fact.statement}"
    cut = len(whole) - len(fact.value) - 2
    return f"{told}\n{whole[:cut]}", whole[cut:]


def text(draw: Draw, budget: int) -> str:
    """A text of about `budget` tokens."""
    kind = draw.weighted((("stories", 3.0), ("count", 2.0), ("again", 2.0)))
    last = ""
    if kind != "stories":
        most = max(2, min(20, budget // 60))
        made = count(draw) if kind == "count" else again(draw, draw.between(2, most))
        last = "".join(made)
        if draw.chance(0.5):
            return last
    parts = []
    left = budget - 0.35 * len(last) - 70
    while left > 0 or not (parts or last):
        parts.append(_paragraph(draw))
        left -= 1.3 * parts[-1].count(" ")
    return "\n\n".join([*parts, last] if last else parts)
