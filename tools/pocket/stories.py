"""Short stories and running prose from a grammar.

Invariant: a story keeps its hero, place and thing from its first sentence to its last.
"""

from __future__ import annotations

import lexicon
from draw import Draw

PLACES = (
    "forest", "village", "valley", "garden", "harbour", "castle", "desert", "island", "library",
    "market", "mountain", "palace", "river", "school", "theatre", "tower", "farm", "city", "cave",
    "meadow",
)  # fmt: skip

OPENINGS = (
    "Once there was a {adj} {hero} named {name} who lived near a {place}.",
    "In a {adj2} {place} lived a {adj} {hero} named {name}.",
    "{name} was a {adj} {hero} from a {adj2} {place}.",
    "Long ago, a {adj} {hero} named {name} came to a {place}.",
)
WISHES = (
    "One day {name} lost a {colour} {thing}.",
    "One morning {name} found a {colour} {thing} by the road.",
    "More than anything, {name} wanted a {colour} {thing}.",
    "Every evening {name} looked for a {colour} {thing}.",
)
TROUBLES = (
    "But the night was {adj3} and the way was long.",
    "But a {adj3} storm came over the {place}.",
    "But a {adj3} {other} stood in the way.",
    "But nobody in the {place} would help.",
)
HELPS = (
    'Then a {adj4} {friend} said, "I will help you."',
    "Then {name} met a {adj4} {friend}, and they walked on together.",
    "A {adj4} {friend} heard of it and came at once.",
    "{name} asked a {adj4} {friend}, and the {friend} knew what to do.",
)
DEEDS = (
    "They looked under every stone and behind every door.",
    "They crossed the river and climbed the hill.",
    "They waited until the sun came up.",
    "They shared a {fruit} and made a plan.",
)
ENDINGS = (
    "At last {name} held the {colour} {thing} and smiled.",
    "In the end the {colour} {thing} was safe, and {name} went home happy.",
    "From that day on {name} and the {friend} were friends.",
    "That night {name} slept well, with the {colour} {thing} close by.",
)


def _article(text: str) -> str:
    words = text.split(" ")
    for at in range(len(words) - 1):
        if words[at] in ("a", "A") and words[at + 1][:1] in "aeiou":
            words[at] += "n"
    return " ".join(words)


def story(draw: Draw, hero: str | None = None) -> str:
    """A story of five or six sentences about `hero` (an animal or a job; drawn when None)."""
    hero = hero or draw.pick(lexicon.ANIMALS + lexicon.JOBS)
    other, friend = draw.distinct([a for a in lexicon.ANIMALS if a != hero], 2)
    slots = {
        "hero": hero, "other": other, "friend": friend,
        "name": draw.pick(lexicon.FIRST_NAMES), "place": draw.pick(PLACES),
        "thing": draw.pick(lexicon.THINGS), "colour": draw.pick(lexicon.COLOURS),
        "fruit": draw.pick(lexicon.FRUITS), "adj": draw.pick(lexicon.ADJECTIVES),
        "adj2": draw.pick(lexicon.ADJECTIVES), "adj3": draw.pick(lexicon.ADJECTIVES),
        "adj4": draw.pick(lexicon.ADJECTIVES),
    }  # fmt: skip
    parts = [OPENINGS, WISHES, TROUBLES, HELPS]
    if draw.chance(0.6):
        parts.append(DEEDS)
    parts.append(ENDINGS)
    return " ".join(_article(draw.pick(part).format(**slots)) for part in parts)


def story_turn(draw: Draw) -> tuple[str, str]:
    """ "Tell me a story", with or without a hero."""
    if draw.chance(0.3):
        form = draw.pick(("Tell me a story.", "Tell me a short story.", "Write a short story."))
        return form, story(draw)
    hero = draw.pick(lexicon.ANIMALS + lexicon.JOBS)
    form = draw.pick(("Tell me a story about {}.", "Write a story about {}."))
    return form.format(_article("a " + hero)), story(draw, hero)


NOTE_SENTENCES = (
    "{name} {verb} the {adj} {thing} in {city}.",
    "The {job} {verb} a {thing} near the {place}.",
    "It was a {adj} {day} in {month}.",
    "A {colour} {animal} {verb} by the {adj} {place}.",
    "The {adj} {job} and the {animal} {verb} together.",
    "Nobody in {city} {verb} the {colour} {thing}.",
    "After that, {name} {verb} the {fruit} and the {thing}.",
)


def prose(draw: Draw, sentences: int) -> str:
    """`sentences` sentences that belong to no fact: filler between a fact and its question."""
    made = []
    for _ in range(sentences):
        text = draw.pick(NOTE_SENTENCES).format(
            name=draw.pick(lexicon.FIRST_NAMES), verb=draw.pick(lexicon.VERBS_PAST),
            adj=draw.pick(lexicon.ADJECTIVES), thing=draw.pick(lexicon.THINGS),
            city=draw.pick(lexicon.CITIES), job=draw.pick(lexicon.JOBS), place=draw.pick(PLACES),
            day=draw.pick(lexicon.DAYS), month=draw.pick(lexicon.MONTHS),
            colour=draw.pick(lexicon.COLOURS), animal=draw.pick(lexicon.ANIMALS),
            fruit=draw.pick(lexicon.FRUITS),
        )  # fmt: skip
        made.append(_article(text))
    return " ".join(made)


def note_turn(draw: Draw, sentences: int) -> tuple[str, str]:
    """A text to read, with a one-word answer."""
    form, answer = draw.pick(
        (("Here is a note.\n{}", "Noted."), ("Read this.\n{}", "I have read it."))
    )
    return form.format(prose(draw, sentences)), answer
