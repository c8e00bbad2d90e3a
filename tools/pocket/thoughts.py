"""What is thought before an answer, where thinking is on.

Invariant: the thoughts follow from the skill and the answer alone; what has to be
worked out stands in them, and they are never empty.
"""

from __future__ import annotations

import re

import recall
import talk
from objects import KEYS

_REPEAT = "The user wants a text back, letter by letter."
_FIXED = {
    "repeat": _REPEAT, "say": _REPEAT, "range": "This is a list in order.",
    "week": "This is a list in order.", "story": "The user wants a story.",
    "quire": "This is a question about Quire.", "plain": "This is a short question.",
    "note": "The user gives me a text to read.", "about": "This is about the user.",
    "unknown": "Is this something that I can do?",
}  # fmt: skip
_REFUSED = (talk.UNKNOWN, talk.TOO_HARD, talk.UNCLEAR, talk.ONLY_SMALL)


def before(skill: str, answer: str) -> str:
    """The thoughts before `answer`."""
    if skill in ("sum", "difference"):
        return f"I have to work this out: {answer}."
    if skill == "recall":
        if answer == recall.UNTOLD:
            return "I look for it in what was said. It is not there."
        return f"I look for it in what was said: {answer}"
    if skill == "json":
        keys = [key for key in re.findall(r'"(\w+)": ', answer) if key in KEYS]
        return f"The user wants JSON: {', '.join(keys)}." if keys else "The user wants JSON."
    if answer in _REFUSED:
        return "This is not one of the things that I can do."
    return _FIXED[skill]
