"""Small JSON objects on request.

Invariant: an answer is one JSON object and nothing else, its keys in the order in which they were
asked for, its values those of the question. Held-out objects hold a held-out name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import heldout
import lexicon
from chat import dumps
from draw import Draw

KEYS = ("name", "age", "city", "job", "colour", "animal", "fruit", "number", "month")
_SENTENCES = {
    "age": ("{name} is {age} years old.", "{name} is {age}."),
    "city": ("{name} lives in {city}.", "{name} is from {city}."),
    "job": ("{name} works as a {job}.", "{name} is a {job}."),
    "colour": ("{name} likes {colour}.", "The favourite colour of {name} is {colour}."),
    "animal": ("{name} has a {animal}.", "The pet of {name} is a {animal}."),
    "fruit": ("{name} eats a {fruit}.", "{name} bought a {fruit}."),
    "number": ("The number of {name} is {number}.", "{name} has the number {number}."),
    "month": ("{name} was born in {month}.", "The birthday of {name} is in {month}."),
}
EXTRACT_FORMS = (
    "Extract the {keys} as JSON:\n{text}", "Extract {keys} as JSON: {text}",
    "Give me the {keys} as JSON.\n{text}", "{text}\nGive me {keys} as JSON.",
    "Read this and answer with the {keys} as a JSON object.\n{text}",
)  # fmt: skip
WRITE_FORMS = (
    "Write a JSON object with {told}.", "Give me a JSON object with {told}.",
    "Make a JSON object: {told}.", "JSON with {told}, please.", "As JSON: {told}.",
)  # fmt: skip
LIST_FORMS = ("Write a JSON list of {told} under {key}.", "As JSON, {key}: {told}.")


def _person(draw: Draw, held_out: bool) -> dict[str, Any]:
    pool = heldout.HELD_OUT_NAMES if held_out else heldout.TRAINED_NAMES
    if not held_out and draw.chance(0.4):
        pool = lexicon.FIRST_NAMES + lexicon.MORE_NAMES
    return {
        "name": draw.pick(pool), "age": draw.between(1, 99), "city": draw.pick(lexicon.CITIES),
        "job": draw.pick(lexicon.JOBS), "colour": draw.pick(lexicon.COLOURS),
        "animal": draw.pick(lexicon.ANIMALS), "fruit": draw.pick(lexicon.FRUITS),
        "number": draw.between(0, 9999), "month": draw.pick(lexicon.MONTHS),
    }  # fmt: skip


def _listed(draw: Draw, words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    joint = draw.pick((" and ", ", ", " and "))
    return ", ".join(words[:-1]) + joint + words[-1]


def extract_turn(draw: Draw, held_out: bool = False) -> tuple[str, str]:
    """Some of what a text says of one person."""
    person = _person(draw, held_out)
    told = draw.distinct(KEYS[1:], draw.between(1, 5))
    sentences = [draw.pick(_SENTENCES[key]).format(**person) for key in told]
    known = ["name", *told]
    asked = draw.distinct(known, draw.between(1, len(known)))
    if draw.chance(0.5):  # the name first, as most would ask
        asked = ["name", *(key for key in asked if key != "name")]
    text = " ".join(sentences)
    keys = _listed(draw, asked)
    return (
        draw.pick(EXTRACT_FORMS).format(keys=keys, text=text),
        dumps({key: person[key] for key in asked}),
    )


def write_turn(draw: Draw, held_out: bool = False) -> tuple[str, str]:
    """Given keys and values."""
    person = _person(draw, held_out)
    keys = ["name", *draw.distinct(KEYS[1:], draw.between(0, 4))]
    if draw.chance(0.3):
        keys = draw.distinct(keys, len(keys))
    told = _listed(draw, [f"{key} {person[key]}" for key in keys])
    return draw.pick(WRITE_FORMS).format(told=told), dumps({key: person[key] for key in keys})


def _list_turn(draw: Draw) -> tuple[str, str]:
    words = draw.picks(lexicon.WORDS, draw.between(1, 6))
    key = draw.pick(("items", "words", "list", "things", "names"))
    question = draw.pick(LIST_FORMS).format(told=_listed(draw, words), key=key)
    return question, dumps({key: words})


def turn(draw: Draw) -> tuple[str, str]:
    """One trained (question, answer)."""
    kind = draw.below(5)
    if kind == 0:
        return _list_turn(draw)
    return extract_turn(draw) if kind < 3 else write_turn(draw)
