"""Strings to repeat, and the turns that ask for it.

Invariant: a payload has no white space at either end and no special token, and the answer to a
repeat turn is the payload and nothing else. `held_out=True` gives only payloads of the held-out
class; False only the others.
"""

from __future__ import annotations

import heldout
import lexicon
from draw import Draw

LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
DIGITS = "0123456789"
ALPHABETS = (
    (LOWER + DIGITS, 4.0),
    (LOWER + UPPER + DIGITS, 4.0),
    (UPPER + DIGITS, 1.5),
    (LOWER, 1.0),
    (UPPER, 0.5),
    (DIGITS, 0.7),
    ("0123456789abcdef", 0.8),
    ("abcdefgh23456789", 0.5),
    (LOWER + UPPER + DIGITS + "+-*/=_.:#@!?()[]{}<>%&$", 0.8),
)
KINDS = ("words", "alnum", "cjk")

FORMS = (
    ("Repeat after me:\n{}", 4.0),
    ("Repeat after me: {}", 4.0),
    ("Repeat this exactly:\n{}", 1.0),
    ("Repeat exactly: {}", 1.0),
    ("Copy this text:\n{}", 1.0),
    ("Say this back to me: {}", 1.0),
    ("Echo: {}", 0.7),
    ("Please repeat the following.\n{}", 0.7),
    ("Repeat: {}", 1.0),
    ("{}\nRepeat the line above.", 0.5),
)


ENDINGS = ("s", "ed", "ing", "er", "ly", "ness", "ful", "less", "ism", "able", "y")
BEGINNINGS = ("un", "re", "pre", "over", "sub", "inter", "micro", "out", "non")


def _derived(draw: Draw, word: str) -> str:
    """A word that may not exist: with an ending, a beginning, or another word's tail."""
    kind = draw.below(3)
    if kind == 0:
        return word + draw.pick(ENDINGS)
    if kind == 1:
        return draw.pick(BEGINNINGS) + word
    other = draw.pick(lexicon.WORDS)
    return word[: draw.between(1, 4)] + other[len(other) // 2 :]


def words(draw: Draw, units: int) -> str:
    """`units` words, some capitalised, some invented, some followed by a mark."""
    style = draw.below(5)
    drawn = draw.picks(lexicon.WORDS, units)
    if style == 1:
        drawn = [w.capitalize() if draw.chance(0.3) else w for w in drawn]
    elif style == 2:
        drawn = [w + draw.pick(",,.;!?") if draw.chance(0.2) else w for w in drawn]
    elif style == 3:
        drawn = [draw.pick(heldout.TRAINED_NAMES) if draw.chance(0.3) else w for w in drawn]
    elif style == 4:
        drawn = [_derived(draw, w) if draw.chance(0.4) else w for w in drawn]
    return " ".join(drawn).rstrip(",;")


def alnum(draw: Draw, units: int) -> str:
    """`units` random letters and digits, in one run or in groups."""
    text = "".join(draw.picks(draw.weighted(ALPHABETS), units))
    if draw.chance(0.6):
        return text
    size = draw.between(2, 8)
    separator = draw.pick((" ", "-", " ", ", "))
    return separator.join(text[at : at + size] for at in range(0, units, size))


def cjk(draw: Draw, units: int) -> str:
    """`units` Chinese characters, emoji, or both."""
    style = draw.below(4)
    emoji_share = (0.0, 1.0, 0.3, 0.1)[style]
    marks = draw.chance(0.3)
    characters = []
    for _ in range(units):
        if draw.chance(emoji_share):
            characters.append(draw.pick(lexicon.EMOJI))
        elif marks and draw.chance(0.1):
            characters.append(draw.pick(",。!?、"))
        elif draw.chance(0.1):
            characters.append(chr(draw.between(0x4E00, 0x9FA5)))
        else:
            characters.append(draw.pick(lexicon.CHINESE))
    return "".join(characters)


MAKERS = {"words": words, "alnum": alnum, "cjk": cjk}
TOKENS_PER_UNIT = {"words": 1.55, "alnum": 0.8, "cjk": 1.25}
"""Rough tokens a unit; a test holds them to the tokenizer."""


def payload(draw: Draw, kind: str, tokens: int, held_out: bool) -> str:
    """A string of about `tokens` tokens (at least one unit) of the asked class."""
    units = max(1, round(tokens / TOKENS_PER_UNIT[kind]))
    while True:
        text = MAKERS[kind](draw, units)
        if heldout.contains_held_out_name(text) or text != text.strip():
            continue
        if heldout.repeat_held_out(text) == held_out:
            return text


def turn(draw: Draw, longest: int) -> tuple[str, str]:
    """One trained (question, answer); payloads uniform up to about `longest` tokens."""
    kind = draw.weighted((("words", 1.0), ("alnum", 1.5), ("cjk", 1.2)))
    tokens = draw.between(1, 20) if draw.chance(0.15) else draw.between(1, longest)
    text = payload(draw, kind, tokens, held_out=False)
    return draw.weighted(FORMS).format(text), text


def say_turn(draw: Draw) -> tuple[str, str]:
    """ "Say X and stop." for a few words."""
    text = payload(draw, "words", draw.between(1, 5), held_out=False).rstrip(".!?")
    form = draw.pick(("Say {} and stop.", "Say {} and nothing else.", "Just say {}.", "Say: {}"))
    return form.format(text), text
